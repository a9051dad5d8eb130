"""What is installed: everything it needs, and nothing else. `make packaging` installs it, compiled, as users do."""

import re
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import packaged
import pytest

if sys.version_info >= (3, 11):
    import tomllib


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    archive = packaged.built("sdist", packaged.checkout(folder / "source"), folder)
    return packaged.unpacked(archive, folder / "unpacked")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built of the sdist alone, without the extension."""
    return packaged.built("wheel", sdist, tmp_path_factory.mktemp("wheel"), TORCHASSAY_NATIVE="0")


def test_the_sdist_holds_the_source(sdist):
    source = {path.relative_to(packaged.ROOT) for name in packaged.SOURCE for path in files(packaged.ROOT / name)}
    held = {path.relative_to(sdist) for path in files(sdist)}
    assert source <= held and Path("csrc/cuda/row_scores.cuh") in held
    made = {path for path in held - source if "egg-info" not in str(path)}
    assert made == {Path("PKG-INFO"), Path("setup.cfg")}


def files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    unbuilt = (found for found in path.rglob("*") if found.is_file() and "__pycache__" not in found.parts)
    return [found for found in unbuilt if found.suffix != ".so" and "egg-info" not in str(found)]


def test_the_wheel_holds_the_package_alone(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")  # without the extension it runs anywhere
    held = {name for name in packaged.names(wheel) if ".dist-info/" not in name}
    assert held == packaged.modules() | {"torchassay/py.typed"}
    assert {"torchassay/integrations/trl.py", "torchassay/scoring/run.py"} <= held
    assert "torchassay/triton_kernels/row_scores.py" in held


def test_the_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [place] = [name.split("/")[0] for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = Parser().parsestr(archive.read(f"{place}/METADATA").decode())
        assert f"{place}/licenses/LICENSE" in archive.namelist()
        assert archive.read(f"{place}/entry_points.txt").decode().split() == [
            *("[console_scripts]", "torchassay", "=", "torchassay.cli:main")
        ]
    assert metadata["Version"] == version("torchassay") and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown" and "Typing :: Typed" in metadata.get_all(
        "Classifier"
    )
    assert metadata.get_payload().strip() == (packaged.ROOT / "README.md").read_text().strip()
    needed = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == {"torch>=2.11", "numpy", "tqdm", "click"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_every_extra_that_is_named_exists():
    project = tomllib.loads((packaged.ROOT / "pyproject.toml").read_text())["project"]
    named = set()
    for path in (packaged.ROOT / "README.md", *packaged.ROOT.glob("docs/*.md")):
        named |= set(re.findall(r"`\[(\w+)\]`", path.read_text()))
    for path in (packaged.ROOT / "python").rglob("*.py"):
        found = re.findall(r"torchassay\[([\w,]+)\]", path.read_text())
        named |= {extra for extras in found for extra in extras.split(",")}
    assert named and named <= set(project["optional-dependencies"])
