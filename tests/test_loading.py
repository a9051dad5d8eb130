"""No file that torchassay reads can run code: pickles are refused wherever a file is opened."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torchassay import checks, labels, scoring

FILES = sorted((Path(__file__).parent.parent / "python" / "torchassay").rglob("*.py"))
RUN_CODE = {"eval", "exec", "joblib.load", "marshal.load", "marshal.loads", "pickle.load", "pickle.loads"}
RUN_CODE |= {"pickle.Unpickler", "shelve.open", "yaml.load"}
SAID = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def calls(source: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Each call's name as it is written, and its constant keywords."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), constants


def unsafe(source: str) -> list[str]:
    """The calls that unpickle or run what a file holds, or do not say that they won't."""
    found = []
    for name, keywords in calls(source):
        keyword, safe = SAID.get(name, ("", None))
        if name in RUN_CODE or keywords.get(keyword) is not safe:
            found.append(name)
    return found


def test_no_call_loads_a_pickle():
    found = {path.name: unsafe(path.read_text()) for path in FILES}
    assert {name: names for name, names in found.items() if names} == {
        "ray.py": ["pickle.loads"],  # an error of its own actor, over Ray's channel, which pickles everything
    }
    assert len(FILES) > 100


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path)", ["np.load"]),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("np.load(path, allow_pickle=False)", []),
        ("pickle.load(file)", ["pickle.load"]),
        ("model.eval()", []),
    ],
)
def test_unsafe_finds(source, expected):
    assert unsafe(source) == expected


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("reader", [labels.report, lambda path: scoring.score_dataset("torch.nn:Flatten", path, path)])
def test_a_hostile_npz_is_an_error(reader, tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "bad.npz", x=trap, y=trap, loss=trap)
    with pytest.raises(checks.InputValueError, match="Object arrays cannot be loaded when allow_pickle=False"):
        reader(tmp_path / "bad.npz")
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "bad.npz", allow_pickle=True)["x"]  # the trap works
    assert (tmp_path / "sprung").exists()
