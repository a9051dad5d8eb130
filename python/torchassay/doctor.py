"""What is built, what is available here and why not: plain text for bug reports. And the traps in a trainer."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from torchassay import checks
from torchassay.backends import backends, native

_CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "asimd", "sve", "bf16")
_LIBRARIES = ("lightning", "transformers", "accelerate")
_VARIABLES = ("TRITON_INTERPRET", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def report() -> str:
    """The whole report: one fact a line, then the table of backends."""
    facts = [*_python(), *_machine(), *_torch(), *_packages(), ("native", _native()), *_environment()]
    width = max(len(name) for name, _ in facts) + 2
    return "\n".join([*(f"{name:<{width}}{value}" for name, value in facts), "", backends()])


def check(trainer, loader=None) -> list:
    """The known traps between samplers and somebody else's trainer, before the training.

    Args:
        trainer: a `lightning.Trainer`, `transformers.Trainer` or `accelerate.Accelerator`.
        loader: the training loader, where the trainer does not know it yet.

    Returns:
        A list of ``Finding(text, wrong)``: one line that names the fix, and whether the training would be wrong. The
        adapters in `torchassay.integrations` do the same at the start, and raise what is wrong.

    Raises:
        TypeError: another trainer.
    """
    for kind in type(trainer).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in _LIBRARIES:
            return list(importlib.import_module(f"torchassay.integrations.{library}").check(trainer, loader))
    expected = "a trainer of Lightning, Transformers or Accelerate"
    raise checks.InputTypeError(f"check: trainer must be {expected}, got {type(trainer).__name__}")


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    found = _cpuinfo().get("model name", "")
    if not found and sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found or platform.processor() or platform.machine() or "unknown"


def machine() -> str:
    """One line for the caption of a timing: processor, threads, torch."""
    count = torch.get_num_threads()
    return f"{cpu_model()}, {count} thread{'' if count == 1 else 's'}, torch {torch.__version__}"


def version(package: str) -> str:
    """The installed version of a package, "not installed" without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (row.partition(":") for row in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _python() -> Iterator[tuple[str, str]]:
    yield "torchassay", version("torchassay")
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    yield "platform", platform.platform()


def _machine() -> Iterator[tuple[str, str]]:
    cpuinfo = _cpuinfo()
    flags = cpuinfo.get("flags", cpuinfo.get("Features", "")).split()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cpu", f"{cpu_model()}, {usable} cores usable"
    yield "cpu flags", " ".join(flag for flag in _CPU_FLAGS if flag in flags) or "unknown"


def _torch() -> Iterator[tuple[str, str]]:
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    built_for = built_for or (f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU only")
    yield "torch built for", built_for
    if not torch.cuda.is_available():
        yield "gpu", "none that torch can use"
        return
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        yield f"gpu {i}", f"{torch.cuda.get_device_name(i)}, compute capability {major}.{minor}"


def _packages() -> Iterator[tuple[str, str]]:
    yield "triton", _triton()
    for name in ("numpy", "matplotlib", "scikit-learn"):
        yield name, version(name)


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return 'not installed: pip install "torchassay[triton]" (Linux)'
    try:
        import triton
    except Exception as error:  # a broken install may raise anything, and must not hide the rest of the report
        return f"installed, but does not import: {type(error).__name__}: {error}"
    return triton.__version__


def _native() -> str:
    if native is None:
        return "not built: see the table"
    isa = f", uses {native.cpu_isa()}" if hasattr(native, "cpu_isa") else ""
    return f"{native.__file__}{isa}"


def _environment() -> Iterator[tuple[str, str]]:
    names = sorted(name for name in os.environ if name.startswith("TORCHASSAY_") or name in _VARIABLES)
    yield "environment", " ".join(f"{name}={os.environ[name]}" for name in names) or "none of ours set"
