"""`make packaging`: what users type, in fresh environments, compiled; minutes, and the package index, are needed.

Each environment borrows torch, with what it needs, from the one that runs the tests; the build is isolated from both.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import packaged
import pytest
import torch

PROBE = """
import math, torch, torchassay, torchassay.triton_kernels
from torchassay.backends import native
s = torchassay.score(torch.tensor([[30.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
assert math.isclose(s.loss, math.log1p(math.exp(-30)), rel_tol=1e-12), s.loss
backend = torchassay.explain(torch.zeros(2, 3)).partition(":")[0]
print(backend, native is not None and native.cuda, torchassay.__file__)
"""


def environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]))
    return folder / "bin" / "python"


def run(*command, cwd: Path, cuda: bool = False, **changed: str) -> str:
    paths = os.environ["PATH"].split(os.pathsep)
    kept = paths if cuda else [path for path in paths if not Path(path, "nvcc").exists()]
    cuda_homes = {name: "" for name in ("CUDACXX", "CUDA_PATH", "CUDA_HOME") if not cuda}
    variables = os.environ | cuda_homes | {"PATH": os.pathsep.join(kept)} | changed
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def probed(python: Path, folder: Path) -> list[str]:
    """The backend of a CPU tensor, whether CUDA kernels are there, and where the package is; run from elsewhere."""
    return run(python, "-c", PROBE, cwd=folder).split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built in isolation, without CUDA, of what the sdist holds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = packaged.checkout(folder / "source")
    sdist = packaged.built("sdist", source, folder)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "out", sdist, cwd=folder)
    return next((folder / "out").iterdir())


def test_the_wheel_holds_the_package_and_the_extension(wheel):
    held = {name for name in packaged.names(wheel) if ".dist-info/" not in name}
    extension = f"torchassay/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert held == packaged.modules() | {"torchassay/py.typed", extension}
    print(f"\n{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")


def test_the_wheel_installs(wheel, tmp_path):
    python = environment(tmp_path / "venv")
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    backend, cuda, place = probed(python, tmp_path)
    assert (backend, cuda) == ("native", "False") and Path(place).is_relative_to(tmp_path / "venv")
    assert run(tmp_path / "venv" / "bin" / "torchassay", "--version", cwd=tmp_path).startswith("torchassay, version ")
    run(python, "-m", "pip", "uninstall", "-q", "-y", "torchassay", cwd=tmp_path)
    assert not list((tmp_path / "venv").glob("lib/python*/site-packages/torchassay*"))


@pytest.mark.parametrize("cuda", [False, True], ids=["without-nvcc", "with-nvcc"])
def test_an_editable_install(cuda, tmp_path):
    if cuda and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    python, source = environment(tmp_path / "venv"), packaged.checkout(tmp_path / "source")
    few = {"TORCHASSAY_CUDA_ARCHS": "90"}  # one GPU's code: minutes less
    run(python, "-m", "pip", "install", "-q", "-e", ".", cwd=source, cuda=cuda, **few)
    assert probed(python, tmp_path) == ["native", str(cuda), str(source / "python" / "torchassay" / "__init__.py")]


@pytest.mark.parametrize("editable", [False, True], ids=["install", "editable"])
def test_without_a_compiler(editable, tmp_path):
    python, source = environment(tmp_path / "venv"), packaged.checkout(tmp_path / "source")
    options = ("-e", ".") if editable else (".",)
    run(python, "-m", "pip", "install", "-q", *options, cwd=source, TORCHASSAY_NATIVE="0", CXX="/nowhere/c++")
    backend, _, place = probed(python, tmp_path)
    assert backend == "reference" and Path(place).is_relative_to(source if editable else tmp_path / "venv")


def test_an_install_without_a_compiler_says_so(tmp_path):
    python, source = environment(tmp_path / "venv"), packaged.checkout(tmp_path / "source")
    with pytest.raises(AssertionError, match="CXX"):
        run(python, "-m", "pip", "install", ".", cwd=source, CXX="/nowhere/c++")
