"""The source as it is checked out, copied to where it may be built, and what is built of it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ("CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md")
SOURCE += (".clang-format", "pyproject.toml", "setup.py", "benchmarks", "csrc", "docs", "python", "tests")
SOURCE += ("triton_kernels",)
BUILT = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")


def checkout(folder: Path) -> Path:
    """A copy of the source in ``folder``, without what was built in place."""
    folder.mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=BUILT)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def built(kind: str, source: Path, folder: Path, **environment: str) -> Path:
    """The archive that setuptools makes of the ``source``: ``kind`` is sdist or wheel. Nothing is downloaded."""
    code = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"
    command = [sys.executable, "-c", code, kind, str(folder)]
    done = subprocess.run(command, cwd=source, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def modules() -> set[str]:
    """Every Python file that the package consists of, as it stands in a wheel."""
    package = {path.relative_to(ROOT / "python").as_posix() for path in (ROOT / "python" / "torchassay").rglob("*.py")}
    return package | {f"torchassay/triton_kernels/{path.name}" for path in (ROOT / "triton_kernels").glob("*.py")}
