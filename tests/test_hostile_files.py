"""Trees, memories, histories, scores and folders that were damaged, or made to harm: an error or other numbers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchassay as ta
from hypothesis import strategies as st
from strategies import damages, examples
from torchassay import score_files
from torchassay.compare import data as compare_data
from torchassay.compare import folder as comparison
from torchassay.scoring import parts, sources

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
