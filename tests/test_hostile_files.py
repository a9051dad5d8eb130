"""Files that were damaged, or made to harm: an error or the same data, and nothing that a file says is executed."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchassay as ta
from hypothesis import strategies as st
from strategies import examples
from torchassay import score_files
from torchassay.compare import data as compare_data
from torchassay.compare import folder as comparison
from torchassay.samplers import Shuffle, states
from torchassay.scoring import parts, sources

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


# ---- damaged files


@st.composite
def damages(draw):
    """A function from bytes to other bytes: some changed, some gone, some more; each place a share of the whole."""
    places = draw(st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=4))
    kind = draw(st.sampled_from(["flip", "flip", "head", "cut", "more", "zeros"]))

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        share, value = places[0]
        if kind == "cut":
            return bytes(changed[: int(share * len(data))])
        if kind == "more":
            at = int(share * len(data))
            return bytes(changed[:at] + bytes([value]) * len(places) + changed[at:])
        if kind == "zeros":
            at = int(share * len(data))
            return bytes(changed[:at] + bytes(len(data) - at)) if any(data[at:]) else bytes(changed[:at])
        within = len(data) if kind == "flip" else min(len(data), 128)
        for share, value in places:
            changed[int(share * within)] ^= value
        return bytes(changed) if changed != data else bytes(changed) + b"\0"

    return damaged


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


# ---- trees, memories, histories


@examples(40, damages())
def test_a_damaged_tree_is_refused_or_another_tree(tmp_path, damage):
    path = tmp_path / "tree.npy"
    np.save(path, np.arange(50.0))
    data = damage(path.read_bytes())
    path.write_bytes(data)
    try:
        tree = ta.SumTree.open(path)
    except ValueError as error:
        assert str(error).startswith(f"SumTree.open: {path} must ")
        assert path.read_bytes() == data
        return
    assert np.array_equal(tree.weights().numpy(), np.load(path, allow_pickle=False))
    if tree.positive:  # else there is nothing to draw
        assert (tree.weights()[tree.sample(20, seed=1)] > 0).all()


@pytest.mark.parametrize(
    "header", [b"(" * 9000, b"{'descr': '<f8', 'x': L'", b"{'descr': '<f8'," + b"-" * 9000 + b"1}"]
)
def test_a_header_that_is_hard_to_read(tmp_path, header):
    path = tmp_path / "tree.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"must be a .npy file of float64 \[n\], got another file$"):
        ta.SumTree.open(path)


@examples(25, damages(), st.sampled_from(["fields.json", "loss.float32", "visits.uint16", "last_step.int32"]))
def test_a_damaged_memory_is_refused_or_another_memory(tmp_path_factory, damage, name):
    folder = tmp_path_factory.mktemp("memory") / "memory"
    ta.SampleMemory(30, path=folder).update(torch.arange(5), {"loss": torch.arange(5.0)}, 3)
    data = damage((folder / name).read_bytes())
    (folder / name).write_bytes(data)
    try:
        memory = ta.SampleMemory(30, path=folder)
    except ValueError as error:
        assert str(error).startswith("SampleMemory: ")
        return
    assert memory["loss"].shape == (30,) and len(memory.top("loss", 40)[0]) <= 30
    assert (folder / name).read_bytes() == data


def test_a_memory_whose_description_goes_on_and_on(tmp_path):
    ta.SampleMemory(3, path=tmp_path / "memory")
    (tmp_path / "memory" / "fields.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"^SampleMemory: path must hold a memory of .*, got another file$"):
        ta.SampleMemory(3, path=tmp_path / "memory")


def full_history(bins: bool) -> ta.History:
    history = ta.History(8, bins=bins)
    history.update(torch.arange(12.0))
    return history


@pytest.mark.parametrize(
    ("bins", "name", "value", "message"),
    [
        (False, "total", torch.tensor(-5), r"'total' in \[0, 2\^62\), got -5"),
        (False, "total", torch.tensor(2**63 - 1), r"'total' in \[0, 2\^62\), got 9223372036854775807"),
        (False, "window", torch.full((8,), torch.nan), "numbers other than NaN in 'window', got others"),
        (False, "window", 7, r"'window' of shape \(8,\), float32, got none"),
        (True, "counts", torch.full((1 << 15,), -1.0), "finite numbers of at least 0 in 'counts', got others"),
        (True, "counts", torch.full((1 << 15,), torch.nan), "finite numbers of at least 0 in 'counts', got others"),
    ],
)
def test_a_history_that_would_be_written_beside_its_window(bins, name, value, message):
    """A total below 0 is a place before the window."""
    state = full_history(bins).state_dict() | {name: value}
    history = ta.History(8, bins=bins)
    with pytest.raises(ValueError, match=f"^History: the state must have {message}$"):
        history.load_state_dict(state)
    assert (history.probability(torch.arange(3.0)) <= 1).all()


# ---- score files


def test_a_column_of_a_text_that_numpy_shortens_to_a_number(tmp_path):
    (tmp_path / "scores.csv").write_bytes(b"loss\n1\0\n2\n")
    with pytest.raises(ValueError, match=r"column 'loss' must hold a number a sample, got '1'$"):
        score_files.read("select", tmp_path / "scores.csv").numbers("loss")


def score_file(path: Path) -> bytes:
    columns = {"index": np.arange(20), "loss": np.linspace(0, 1, 20)}
    if path.suffix == ".npz":
        np.savez_compressed(path, **columns)
    elif path.suffix == ".csv":
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", score_files.KINDS)
@examples(30, damages())
def test_a_damaged_file_of_scores_is_refused_or_other_scores(tmp_path, kind, damage):
    path = tmp_path / f"scores{kind}"
    path.write_bytes(damage(score_file(path)))
    try:
        found = score_files.read("select", path)
        values = found.numbers("loss")
    except ValueError as error:
        assert str(error).startswith("select: ")
        return
    assert values.dtype == np.float64 and len(values) == found.n <= 1000


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(9000000000000000000,)", "(-1,)", "(1000000, 1000000)"])
def test_an_array_that_says_it_is_larger_than_its_file(tmp_path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    with zipfile.ZipFile(tmp_path / "scores.npz", "w") as archive:
        archive.writestr("loss.npy", data)
    with pytest.raises(ValueError, match=r"^select: .*scores.npz' must be a .npz file that can be read, got: "):
        score_files.read("select", tmp_path / "scores.npz")


# ---- folders of runs and of comparisons

ODD_JSON = (b"", b"[1]", b"7", b"{", b"[" * 200_000, b"\xff\xfe", b"{}", b'{"parts": "7", "about": [], "runs": {}}')


@pytest.mark.parametrize("text", ODD_JSON, ids=range(len(ODD_JSON)))
def test_what_a_folder_says_of_itself(tmp_path, text):
    for name in ("_run.json", "results.json"):
        (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=r"^score: '.*_run.json' must be JSON with parts, got another file$"):
        parts.Folder("score", tmp_path).open({"parts": 3}, resume=True)
    with pytest.raises(ValueError, match=r"^compare: '.*results.json' must be JSON with about and runs, got another"):
        comparison.Folder(tmp_path).open({}, resume=True)


@pytest.mark.parametrize("text", [*ODD_JSON, b'{"parts": 1e400}', b'{"parts": 1000000000000000000}'])
def test_scores_in_a_folder_that_says_what_is_not_so(tmp_path, text):
    pytest.importorskip("pyarrow")
    score_file(tmp_path / "part-00000.parquet")
    (tmp_path / "_run.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"^select: '.*' must be a .parquet file that can be read, got: "):
        score_files.read("select", tmp_path)


def test_a_run_that_says_it_has_a_quintillion_parts(tmp_path):
    """Which nobody looks for one by one."""
    about = dict.fromkeys(parts._LIKE, 1) | {"parts": 3}
    (tmp_path / "_run.json").write_text(json.dumps(about | {"parts": 10**18}))
    with pytest.raises(ValueError, match=r"with this run in it \(0 of 3 parts: go on with resume\)$"):
        parts.Folder("score", tmp_path).open(about, resume=False)


@examples(10, damages())
def test_a_damaged_file_of_a_comparison_is_refused_or_other_numbers(tmp_path, damage):
    pytest.importorskip("matplotlib")
    from torchassay.compare import report

    np.savez(tmp_path / "data.npz", images=np.arange(64, dtype=np.uint8).reshape(4, 4, 4))
    (tmp_path / "data.npz").write_bytes(damage((tmp_path / "data.npz").read_bytes()))
    try:
        found = report._stored(tmp_path / "data.npz")
    except ValueError as error:
        assert str(error).startswith("report.write: '")
        return
    assert sum(values.nbytes for values in found.values()) <= 1 << 12


@examples(10, damages(), st.sampled_from(["compare", "score"]))
def test_a_damaged_data_set_is_refused_or_another(tmp_path, damage, command):
    path, rng = tmp_path / "data.npz", np.random.default_rng(0)
    arrays = {"x_train": rng.random((20, 3)), "y_train": np.arange(20) % 2}
    np.savez(path, **arrays, x_test=arrays["x_train"], y_test=arrays["y_train"])
    path.write_bytes(damage(path.read_bytes()))
    try:
        found = compare_data._from_file(path) if command == "compare" else sources.Arrays("score", path)
    except ValueError as error:
        assert str(error).startswith(f"{command}: ")
        return
    assert found is not None
