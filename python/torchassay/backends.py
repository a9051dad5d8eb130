"""What is available, which backend a call takes, and why not another.

`native` is C++ (CPU), `triton` the Triton kernels (NVIDIA, AMD and Intel GPUs; Triton's interpreter in tests),
`reference` plain torch (anything). A tensor never moves between devices.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings

import torch

from torchassay import checks

try:
    import torchassay._native as native
except ImportError as error:
    native = None
    _missing = f"the C++ extension is not there ({error}); reinstall with a C++ compiler, without TORCHASSAY_NATIVE=0"

BACKENDS = ("native", "triton", "reference")
PREFERRED = {"cpu": "native", "cuda": "triton", "xpu": "triton"}  # by device type; anything else takes the reference

UNDER_COMPILE = "under compile"  # what a compiled call hands to its op instead of "": choose, but never warn

_warned: set[str] = set()


class BackendFallback(UserWarning):
    """A call took the slow reference because a fast backend lacks something; given once for each reason."""


def interpreting() -> bool:
    """Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(backend: str, device: str, dtype: torch.dtype, plain: bool) -> str:
    """Why ``backend`` can't take such a call, "" if it can. ``plain``: no option that only the reference has."""
    if backend == "reference":
        return ""
    if not plain:
        return "class weights, label smoothing and class probabilities are in the reference only"
    if backend == "native":
        if native is None:
            return _missing
        return "" if device == "cpu" else f"the native kernels run on the CPU, the input is on {device}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype == torch.float64:
        return "the Triton kernels have no float64"
    if device == "cpu" and not interpreting():
        return "Triton takes CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    return ""


def choose(function: str, device: str, dtype: torch.dtype, forced: str, plain: bool = True) -> str:
    """The backend of a call; raises RuntimeError if the forced one can't take it, warns if it must be the reference."""
    wanted = _forced(function, "" if forced == UNDER_COMPILE else forced)
    if wanted:
        reason = why_not(wanted, device, dtype, plain)
        if reason:
            raise RuntimeError(f"{function}: backend '{wanted}' is not available for this call: {reason}")
        return wanted
    preferred = PREFERRED.get(device, "reference")
    reason = why_not(preferred, device, dtype, plain)
    if not reason:
        return preferred
    if reason not in _warned and forced != UNDER_COMPILE and not torch.compiler.is_compiling():
        _warned.add(reason)
        warnings.warn(f"{function} takes the slow reference: {reason}", BackendFallback, stacklevel=_caller_level())
    return "reference"


def _forced(function: str, backend: str) -> str:
    """The backend that the argument or the environment forces, "" if none."""
    forced = backend or os.environ.get("TORCHASSAY_BACKEND", "")
    if forced and forced not in BACKENDS:
        raise checks.InputValueError(f"{function}: backend must be one of {', '.join(BACKENDS)}, got {forced!r}")
    return forced


def _caller_level() -> int:
    """How far up the stack, seen from the function that asks, the code stands that called torchassay."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("torchassay", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def describe(device: str, dtype: torch.dtype, forced: str, plain: bool) -> str:
    """One line on the backend of such a call, one on each other backend that can't take it."""
    forced = _forced("explain", forced)
    wanted = forced or PREFERRED.get(device, "reference")
    reasons = {name: why_not(name, device, dtype, plain) for name in BACKENDS}
    taken = wanted if not reasons[wanted] else "none" if forced else "reference"
    lines = [f"{taken}: {device} tensor, {checks.dtype_name(dtype)}"]
    lines += [f"not {name}: {reason}" for name, reason in reasons.items() if reason]
    return "\n".join(lines)


def backends() -> str:
    """A table of the backends: what each runs on, and whether it is available here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name, where in (("native", "cpu"), ("triton", device), ("reference", "anything")):
        reason = why_not(name, "cpu" if name == "native" else device, torch.float32, True)
        rows.append(f"{name:<10} {where:<9} {'no: ' + reason if reason else 'yes'}")
    return "\n".join([f"{'backend':<10} {'runs on':<9} available", *rows])
