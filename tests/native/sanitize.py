"""The native code under sanitizers: the tests of its entry points with the module under AddressSanitizer and UBSan.

The module is built into a package of its own, links to ours but for that file. Then test_sanitizers.py: threads.
"""

import os
import subprocess
import sys

from counts import ROOT, configured

BUILD = ROOT / "build" / "sanitize"
PACKAGE = BUILD / "package" / "torchassay"
TESTS = (  # every entry point of csrc/api.h, every instruction set
    *("cpu_isas", "options_cpu", "row_grads", "row_scores_edges", "layouts", "row_states", "row_states_edges"),
    *("draws", "heads", "normals", "philox", "cdf", "history", "sum_tree", "determinism"),
)
# Other backends, torch.compile, processes of their own, and what needs 4 GB and more.
LEFT_OUT = "triton or reference-cpu or [numpy or compil or opcheck or case_08 or workers"


def linked() -> None:
    """The package without its native module."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    source = ROOT / "python" / "torchassay"
    for path in (*source.iterdir(), ROOT / "triton_kernels"):
        link = PACKAGE / path.name
        if path.suffix != ".so" and path.name != "__pycache__" and not link.exists():
            link.symlink_to(path)


def preloaded() -> str:
    """The runtimes, which must be there before Python is."""
    asked = [os.environ.get("CXX", "g++"), "-print-file-name=libasan.so", "-print-file-name=libubsan.so"]
    found = [subprocess.run([asked[0], name], capture_output=True, text=True, check=True).stdout for name in asked[1:]]
    return ":".join(map(str.strip, found))


def main() -> int:
    linked()
    configured(
        BUILD,
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DTORCHASSAY_SANITIZE=address,undefined",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={PACKAGE}",
    )
    subprocess.run(["cmake", "--build", BUILD], check=True)
    environment = os.environ | {
        "LD_PRELOAD": preloaded(),
        "PYTHONPATH": str(PACKAGE.parent),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it has at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    where = "import torchassay._native as native; print(native.__file__)"
    found = subprocess.run([sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True)
    if not found.stdout.startswith(str(PACKAGE)):
        sys.exit(f"sanitize: another module was taken, {found.stdout.strip()}")
    files = [f"tests/test_{name}.py" for name in TESTS]
    pytest = sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"
    codes = [
        subprocess.run([*pytest, *files, "-k", f"not ({LEFT_OUT})"], cwd=ROOT, env=environment).returncode,
        subprocess.run([*pytest, "tests/native/test_sanitizers.py"], cwd=ROOT).returncode,
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
