"""`make gpu`: build, test and measure on a machine with an NVIDIA GPU where torch is installed; touches nothing else.

The package goes into build/gpu, not into the environment, and nothing is fetched. Every step is run, whatever became
of the others; the exit status says which failed: the sum of 2 build, 4 smoke test, 8 tests, 16 benchmarks, 32 memcheck
and 64 racecheck; 1 if nothing can run here. `make gpu` ends within 9 minutes, `make gpu QUICK=1` within 5.

QUICK leaves out torch on the GPU as a backend of its own, torch.compile and gradcheck among the tests, and most shapes
among the benchmarks. `GPU_STEPS="tests benchmarks"` runs these steps only, on what was built before.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import steps
from steps import Step

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "build" / "gpu"
LOGS = ROOT / "build" / "gpu-logs"
NEEDED = ("torch", "triton", "numpy", "pytest", "pytest_benchmark", "hypothesis", "mpmath", "pybind11", "setuptools")
# seconds, of a full run and of a quick one: in all, at most for a step, and what earlier steps leave over for it
SECONDS = 535, 295
MOST = {"build": (120, 90), "smoke": (60, 40), "tests": (230, 110), "benchmarks": (240, 110), "sanitizer": (45, 40)}
KEPT = {"build": (0, 0), "smoke": (10, 10), "tests": (60, 30), "benchmarks": (120, 70), "sanitizer": (25, 0)}
TESTS = (
    "native-cuda or triton-cuda or reference-cuda or test_triton_row",
    "(native-cuda or triton-cuda) and not test_compile and not test_gradcheck",
)
COUNTS = r"(?m)^=* ?((?:\d+ \w+, )*\d+ (?:passed|failed|error|skipped)[^=\n]*?) in [\d.]+s"


def why_not() -> str:
    """Why this machine can't do it, "" if it can."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def architectures() -> str:
    """What to build for, as CMake names it: the GPUs that are here, each once."""
    import torch

    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ";".join(f"{major}{minor}" for major, minor in sorted(found))


def toolkit(name: str) -> str:
    """Where a program of the CUDA toolkit is, "" if nowhere."""
    homes = [os.environ.get(variable, "") for variable in ("CUDA_HOME", "CUDA_PATH")]
    folders = [f"{home}/bin" for home in (*homes, "/usr/local/cuda") if home]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders)) or ""


def plan(quick: bool, archs: str) -> list[Step]:
    """The steps of a run on a machine whose GPUs are ``archs``."""
    python = sys.executable
    paths = [str(TARGET), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "QUICK": str(int(quick))}
    nvcc, sanitizer = toolkit("nvcc"), toolkit("compute-sanitizer")
    building = {"TORCHASSAY_CUDA_ARCHS": os.environ.get("TORCHASSAY_CUDA_ARCHS", archs)}
    building |= {"CUDACXX": nvcc} if nvcc else {}
    pip = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade", "-v")
    build = (*pip, "--target", str(TARGET), ".")
    # a version's deprecations are listed, not failed; no test here uses the benchmark plugin, which warns of xdist
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default")
    tests = (*pytest, "tests", "-p", "no:benchmark", "-p", "broken_gpu", "--tb=short", "--maxfail=200", "-rfE")
    tests += ("-k", TESTS[quick])
    if importlib.util.find_spec("xdist"):
        tests += ("-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal")
    if importlib.util.find_spec("pytest_timeout"):
        tests += ("--timeout=100", "--timeout-method=thread")
    benchmarks = (*pytest, "benchmarks", "-o", "python_files=bench_*.py", "--benchmark-quiet", "--tb=short", "-rfEs")
    smoke = (python, "benchmarks/sanitize.py")

    def step(name: str, bit: int, command: tuple[str, ...], kind: str = "", **rest) -> Step:
        most, kept = MOST[kind or name][quick], KEPT[kind or name][quick]
        return Step(name, bit, command, most, kept, **{"environment": environment, **rest})

    def sanitize(tool: str, bit: int) -> Step:
        options = ("--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only")
        own = environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor has memory that ends where it ends
        missing = "" if sanitizer else "there is no compute-sanitizer"
        rest = {"environment": own, "telling": r"(?:ERROR|RACECHECK) SUMMARY: .*", "lines": 15, "missing": missing}
        return step(tool, bit, (sanitizer, *options, *smoke), "sanitizer", **rest)

    plain = {"environment": {"TORCHASSAY_NATIVE": "0"}, "only_without": "build", "lines": 5}
    return [
        step("build", 2, build, environment=building, telling=r"torchassay: (?:no )?CUDA kernels.*", lines=12),
        step("build without C++", 0, build, "build", **plain),
        step("smoke test", 4, smoke, "smoke", telling=r"(?m)^\d+ cases.*", lines=40),
        step("tests", 8, tests, telling=COUNTS, lines=40),
        step("benchmarks", 16, benchmarks, telling=COUNTS, lines=120),
        sanitize("memcheck", 32),
        sanitize("racecheck", 64),
    ]


def main() -> int:
    reason = why_not()
    if reason:
        print(f"make gpu needs an NVIDIA GPU and torch: {reason}")
        return 1
    quick = os.environ.get("QUICK", "0") not in ("", "0")
    chosen = os.environ.get("GPU_STEPS", "").split()
    planned = [step for step in plan(quick, architectures()) if not chosen or step.name.split()[0] in chosen]
    outcomes = steps.run_all(planned, SECONDS[quick], LOGS, ROOT)
    print(f"\n{steps.summary(outcomes)}")
    return steps.exit_status(outcomes)


if __name__ == "__main__":
    sys.exit(main())
