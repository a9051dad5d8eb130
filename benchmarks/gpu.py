"""`make gpu`: build, test and measure on a machine with an NVIDIA GPU where torch is installed; touches nothing else.

The package goes into build/gpu, not into the environment, and nothing is fetched.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "build" / "gpu"
NEEDED = ("torch", "triton", "numpy", "pytest", "pytest_benchmark", "hypothesis", "mpmath", "pybind11", "setuptools")


def why_not() -> str:
    """Why this machine can't do it, "" if it can."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def run(*command: str, **environment: str) -> int:
    print("$", *command, flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode


def main() -> int:
    reason = why_not()
    if reason:
        print(f"make gpu needs an NVIDIA GPU and torch: {reason}")
        return 1
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade")
    failed = run(*pip, "--target", str(TARGET), ".")
    if failed:
        return failed
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    failed = run(*pytest, "tests", PYTHONPATH=str(TARGET))
    bench = ("benchmarks", "-o", "python_files=bench_*.py", "--benchmark-quiet", "-W", "default")
    return run(*pytest, *bench, PYTHONPATH=str(TARGET)) or failed


if __name__ == "__main__":
    sys.exit(main())
