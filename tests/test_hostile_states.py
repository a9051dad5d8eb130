"""Saved states that were damaged, or made to harm: an error or the same state, and nothing in them is executed."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchassay as ta
from strategies import damages, examples
from torchassay import score_files
from torchassay.samplers import Shuffle, states

PACKAGE = Path(ta.__file__).parent
DIGEST = hashlib.sha256().digest_size


# ---- what the source may call


def calls() -> list[tuple[str, str, dict[str, object]]]:
    """Every call of the package by file: its name as it is written, and the keywords that are constants."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                found.append((path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), given))
    return found


def test_nothing_that_is_loaded_can_execute():
    """Ray's driver alone unpickles: errors that its own actors pickled, whose results Ray pickles anyhow."""
    whole = calls()
    assert len(whole) > 3000
    loads = [(path, name, given) for path, name, given in whole if name in ("torch.load", "np.load")]
    assert {name for _, name, _ in loads} == {"torch.load", "np.load"}
    for path, name, given in loads:
        safe = {"weights_only": True} if name == "torch.load" else {"allow_pickle": False}
        assert safe.items() <= given.items(), (path, name)
    modules = ("pickle", "marshal", "shelve", "dill", "joblib", "yaml", "cloudpickle")
    modules += ("eval", "exec")
    wrong = [f"{path}: {name}" for path, name, _ in whole if name.split(".")[0] in modules]
    assert sorted(wrong) == ["integrations/ray.py: pickle.dumps", "integrations/ray.py: pickle.loads"]


# ---- states


def small_sampler() -> Shuffle:
    return Shuffle(40, batch_size=4)


def saved(path: Path, n: int = 40) -> bytes:
    sampler = Shuffle(n, batch_size=4)
    sampler.observe(torch.from_numpy(sampler.plan()[:4].astype(np.int64)), {"loss": torch.arange(4.0)})
    sampler.save(path)
    return path.read_bytes()


@examples(25, damages())
def test_a_damaged_state_is_refused(tmp_path, damage):
    data = saved(tmp_path / "state")
    (tmp_path / "state").write_bytes(damage(data))
    with pytest.raises(ValueError, match=r"^load: .* must be what save wrote, got another file \("):
        small_sampler().load(tmp_path / "state")


@examples(25, damages())
def test_a_damaged_state_that_was_sealed_again_does_no_harm(tmp_path, damage):
    """With a checksum that is right: then it may be another state, and going on with it may be an error."""
    data = damage(saved(tmp_path / "state")[:-DIGEST])
    (tmp_path / "state").write_bytes(data + hashlib.sha256(data).digest())
    try:
        found = states.load(tmp_path / "state")
    except ValueError:
        return
    assert isinstance(found, dict)
    sampler = small_sampler()
    try:
        sampler.load(tmp_path / "state")
    except ValueError:
        return
    assert len(list(sampler)) <= 40 and set(sampler) <= set(range(40))


@examples(6, damages())
def test_a_damaged_file_beside_a_state_is_refused(tmp_path, damage):
    saved(tmp_path / "state", 100_000)
    (beside,) = tmp_path.glob("state.*")
    beside.write_bytes(damage(beside.read_bytes()))
    with pytest.raises(ValueError, match=r"^load: .* must have the checksum"):
        Shuffle(100_000, batch_size=4).load(tmp_path / "state")
    beside.unlink()


class Harm:
    def __reduce__(self):
        return os.mkdir, (os.environ["TORCHASSAY_HARM"],)


def sealed(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


def test_a_state_that_would_execute_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHASSAY_HARM", str(tmp_path / "harm"))
    (tmp_path / "state").write_bytes(sealed({"state": {"a": Harm()}, "tensors": {}}))
    with pytest.raises(ValueError, match=r"must be what save wrote, got another file \(UnpicklingError\)"):
        states.load(tmp_path / "state")
    np.savez(tmp_path / "scores.npz", loss=np.array([Harm()], object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        score_files.read("select", tmp_path / "scores.npz")
    assert not (tmp_path / "harm").exists()


def test_a_state_of_a_version_that_wrote_no_checksum(tmp_path):
    """Of small tensors, and of large ones with their file beside it."""
    buffer = io.BytesIO()
    torch.save({"state": {"a": 1, "b": {None: "0"}}, "tensors": {"0": torch.arange(3)}}, buffer)
    (tmp_path / "state").write_bytes(buffer.getvalue())
    found = states.load(tmp_path / "state")
    assert found["a"] == 1 and torch.equal(found["b"], torch.arange(3))
    saved(tmp_path / "large", 100_000)
    whole = (tmp_path / "large").read_bytes()
    (tmp_path / "large").write_bytes(whole[:-DIGEST])
    assert states.load(tmp_path / "large")["own"]["order"].shape == (100_000,)


STATE = small_sampler().state_dict()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "order",
            torch.arange(1, 41).int(),
            "the state must have a plan of samples 0 to 39, got others",
        ),
        (
            "order",
            torch.arange(-1, 39).int(),
            "the state must have a plan of samples 0 to 39, got others",
        ),
        ("order", torch.zeros(41, dtype=torch.int32), "the state must have a plan of at most 40, got another"),
        ("order", torch.zeros(40), "the state must have a plan of at most 40, got another"),
        ("length", torch.tensor([41]), "the state must have a plan of at most 40, got another"),
        ("length", torch.tensor([-1]), "the state must have a plan of at most 40, got another"),
        ("order", 7, ".* must hold a state of Shuffle, got another state \\(AttributeError: .*\\)"),
        ("length", torch.zeros(0), ".* must hold a state of Shuffle, got another state \\(IndexError: .*\\)"),
    ],
)
def test_a_plan_of_samples_that_there_are_not(tmp_path, name, value, message):
    states.save(tmp_path / "state", dict(STATE) | {"own": dict(STATE["own"]) | {name: value}})
    with pytest.raises(ValueError, match=f"^Shuffle: {message}$"):
        small_sampler().load(tmp_path / "state")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("order", torch.zeros(0, dtype=torch.int64), "4 samples of 0 to 2, got others"),
        ("order", torch.tensor([0, 1, 2, 3]), "4 samples of 0 to 2, got others"),
        ("order", torch.tensor([0, 1, 2, -1]), "4 samples of 0 to 2, got others"),
        ("position", -1, "a position of 0 to 4, got -1"),
        ("position", 5, "a position of 0 to 4, got 5"),
    ],
)
def test_draws_of_samples_that_there_are_not(tmp_path, name, value, message):
    """With too few of them an epoch would never have ended."""
    sampler = ta.WeightedSampler([1.0, 2.0, 3.0], 4)
    state = sampler.state_dict()
    state |= {"own": {name: value}} if name == "order" else {name: value}
    states.save(tmp_path / "state", state)
    with pytest.raises(ValueError, match=f"^WeightedSampler: the state must have {message}$"):
        sampler.load(tmp_path / "state")


def again_and_again() -> list:
    found: list = [1]
    for _ in range(60):
        found = [found, found]
    return found


def around() -> dict:
    found: dict = {}
    found["me"] = found
    return found


@pytest.mark.parametrize(
    "value",
    [
        7,
        {},
        {"state": 1},
        {"state": {None: "0"}, "tensors": {}},
        {"state": {None: []}, "tensors": {}},
        {"state": around(), "tensors": {}},
        {"state": {}, "tensors": {}, "beside": "../../etc/passwd", "checksum": ""},
        {"state": {}, "tensors": {}, "beside": 7},
        {"state": {None: "0"}, "tensors": 7},
        {"state": {None: "0"}, "tensors": {"0": 7}},
        {"state": {None: "0"}, "tensors": {"0": torch.zeros(1).expand(1 << 50)}},
        {"state": {None: "0"}, "tensors": {"0": torch.zeros(1 << 50, device="meta")}},
        {"state": {None: "0"}, "tensors": {"0": torch.zeros(4).to_sparse()}},
    ],
    ids=range(13),
)
def test_a_state_of_another_make(tmp_path, value):
    (tmp_path / "state").write_bytes(sealed(value))
    with pytest.raises(ValueError, match=r"^load: "):
        states.load(tmp_path / "state")


def test_a_state_that_says_the_same_a_quintillion_times_takes_no_time(tmp_path):
    (tmp_path / "state").write_bytes(sealed({"state": again_and_again(), "tensors": {}}))
    found = states.load(tmp_path / "state")
    assert found[0] is found[1] and len(found[0]) == 2


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path):
    buffer = io.BytesIO()
    torch.save({"state": {None: "0"}, "tensors": {"0": torch.zeros(1 << 24)}}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as smaller:
        for name in archive.namelist():
            smaller.writestr(name, archive.read(name))
    data = packed.getvalue()
    assert len(data) < 1 << 18
    (tmp_path / "state").write_bytes(data + hashlib.sha256(data).digest())
    del buffer, packed
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"got another file \(BadZipFile\)$"):
        states.load(tmp_path / "state")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
