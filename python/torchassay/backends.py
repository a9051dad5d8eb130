"""What is available, which backend a call takes, and why not another.

`native` is C++ (CPU) and CUDA C++ (NVIDIA GPUs), `triton` the Triton kernels (NVIDIA, AMD and Intel GPUs; Triton's
interpreter in tests), `reference` plain torch (anything). A tensor never moves between devices.
"""

from __future__ import annotations

import functools
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
FAST = {"cpu": ("native",), "cuda": ("native", "triton"), "xpu": ("triton",)}  # by device type; else the reference

# Which of the two a CUDA tensor takes first, by the number of classes, up to and including. All of it is guessed from
# the warp instructions a logit (benchmarks/results/static.md and triton_static.md): no GPU has timed the two yet.
CUDA_RULE = (
    # classes, float32, bfloat16 and float16
    (32, "native", "native"),  # guess: triton's one row a lane has no reduction, but loads element by element
    (1024, "native", "native"),  # guess
    (8192, "native", "native"),  # guess
    (sys.maxsize, "native", "native"),  # guess
)

UNDER_COMPILE = "under compile"  # what a compiled call hands to its op instead of "": choose, but never warn

_warned: set[str] = set()


class BackendFallback(UserWarning):
    """A call took the slow reference because a fast backend lacks something; given once for each reason."""


def interpreting() -> bool:
    """Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(backend: str, device: str, dtype: torch.dtype) -> str:
    """Why ``backend`` can't take such a call, "" if it can."""
    if backend == "reference":
        return ""
    if backend == "native":
        if native is None:
            return _missing
        if device == "cpu":
            return ""
        if device != "cuda":
            return f"the native kernels run on the CPU and on NVIDIA GPUs, the input is on {device}"
        return "the GPU kernels have no float64" if dtype == torch.float64 else _why_not_cuda()
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype == torch.float64:
        return "the GPU kernels have no float64"
    if device == "cpu" and not interpreting():
        return "Triton takes CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    return ""


@functools.cache
def _why_not_cuda() -> str:
    if not native.cuda:
        return "the C++ extension was built without CUDA; reinstall where nvcc is on PATH"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"the CUDA kernels need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return ""


def fast_backends(device: str, dtype: torch.dtype, classes: int) -> tuple[str, ...]:
    """The fast backends for such a tensor, the one to take first."""
    if device != "cuda":
        return FAST.get(device, ())
    column = 1 if dtype == torch.float32 else 2
    first = next(rule[column] for rule in CUDA_RULE if classes <= rule[0])
    return (first, *(name for name in FAST["cuda"] if name != first))


def choose(function: str, device: str, dtype: torch.dtype, classes: int, forced: str) -> str:
    """The backend of a call; raises RuntimeError if the forced one can't take it, warns if it must be the reference."""
    if wanted := _forced(function, "" if forced == UNDER_COMPILE else forced):
        reason = why_not(wanted, device, dtype)
        if reason:
            raise RuntimeError(f"{function}: backend '{wanted}' is not available for this call: {reason}")
        return wanted
    why = ""
    for name in fast_backends(device, dtype, classes):
        reason = why_not(name, device, dtype)
        if not reason:
            return name
        why = reason if why in ("", reason) else f"{why}; {reason}"
    if why and why not in _warned and forced != UNDER_COMPILE and not torch.compiler.is_compiling():
        _warned.add(why)
        warnings.warn(f"{function} takes the slow reference: {why}", BackendFallback, stacklevel=_caller_level())
    return "reference"


def for_op(backend: str | None) -> str:
    """What an op is handed of a call's ``backend=``."""
    return backend or (UNDER_COMPILE if torch.compiler.is_compiling() else "")


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


def describe(device: str, dtype: torch.dtype, classes: int, forced: str) -> str:
    """One line on the backend of such a call, one on each other backend that can't take it."""
    forced = _forced("explain", forced)
    reasons = {name: why_not(name, device, dtype) for name in BACKENDS}
    order = (forced,) if forced else (*fast_backends(device, dtype, classes), "reference")
    taken = next((name for name in order if not reasons[name]), "none")
    lines = [f"{taken}: {device} tensor, {checks.dtype_name(dtype)}"]
    lines += [f"not {name}: {reason}" for name, reason in reasons.items() if reason]
    return "\n".join(lines)


def backends() -> str:
    """A table of the backends: what each runs on, and whether it is available here."""
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name, device, where in (
        ("native", "cpu", "cpu"),
        ("native", "cuda", "cuda"),
        ("triton", gpu, gpu),
        ("reference", "cpu", "anything"),
    ):
        reason = why_not(name, device, torch.float32)
        rows.append(f"{name:<10} {where:<9} {'no: ' + reason if reason else 'yes'}")
    return "\n".join([f"{'backend':<10} {'runs on':<9} available", *rows])
