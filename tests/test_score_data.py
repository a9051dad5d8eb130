"""What `torchassay score` reads: the same rows from every kind of data set, and what is none."""

import json

import numpy as np
import pytest
import scorable
import torch

pytest.importorskip("pyarrow")

import pyarrow
from pyarrow import parquet
from torchassay.scoring.parts import Plan
from torchassay.scoring.sources import opened

X, Y = (tensor.numpy() for tensor in scorable.rows().tensors)
N = scorable.N


def as_npz(folder):
    np.savez(folder / "data.npz", x=X, y=Y)
    return folder / "data.npz"


def as_train_npz(folder):
    np.savez(folder / "data.npz", x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3])
    return folder / "data.npz"


def table(rows=slice(None), fixed=True):
    x = list(X[rows])
    kind = pyarrow.list_(pyarrow.float32(), X.shape[1]) if fixed else pyarrow.list_(pyarrow.float32())
    return pyarrow.table({"x": pyarrow.array(x, kind), "name": ["a"] * len(x), "y": Y[rows]})


def as_parquet(folder):
    parquet.write_table(table(), folder / "data.parquet", row_group_size=31)
    return folder / "data.parquet"


def as_folder(folder):
    """Files in the order of their paths, of several row groups each, beside files that are none of the data."""
    (folder / "data" / "b").mkdir(parents=True)
    parquet.write_table(table(slice(0, 40)), folder / "data" / "a.parquet", row_group_size=17)
    parquet.write_table(table(slice(40, 41), fixed=True), folder / "data" / "b" / "0.parquet")
    parquet.write_table(table(slice(41, N)), folder / "data" / "b" / "1.parquet", row_group_size=50)
    (folder / "data" / "_SUCCESS.parquet").write_text("")
    return folder / "data"


def as_lists(folder):
    parquet.write_table(table(fixed=False), folder / "data.parquet")
    return folder / "data.parquet"


def as_hugging_face(folder):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"x": X, "label": Y}).save_to_disk(str(folder / "data"))
    return folder / "data"


def as_name(folder):
    return f"{scorable.__file__}:rows"


def as_object(folder):
    return scorable.rows()


@pytest.mark.filterwarnings("default")  # those of the package datasets
@pytest.mark.parametrize(
    "made", [as_npz, as_train_npz, as_parquet, as_folder, as_lists, as_hugging_face, as_name, as_object]
)
def test_every_kind_gives_the_same_rows(tmp_path, made):
    source = opened("f", made(tmp_path))
    assert len(source) == N
    for start, stop in ((0, 40), (25, 60), (39, 42), (N - 7, N), (5, 6)):
        columns, broken = source.read(start, stop)
        assert broken == {} and np.asarray(columns["index"]).tolist() == list(range(start, stop))
        y = columns["y"] if "y" in columns else columns["label"]
        assert np.array_equal(np.stack([np.asarray(x) for x in columns["x"]]), X[start:stop])
        assert np.array_equal(np.asarray([int(value) for value in y]), Y[start:stop])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("made", [as_npz, as_parquet, as_folder, as_hugging_face, as_object])
def test_the_fingerprint_is_of_the_contents(tmp_path, monkeypatch, made):
    def fingerprint(name):
        (tmp_path / name).mkdir()
        return opened("f", made(tmp_path / name)).fingerprint

    first, other = fingerprint("one"), fingerprint("two")
    if made is not as_hugging_face:  # which makes a new one for each data set in memory
        assert first == other
    changed = X.copy()
    changed[0, 3] += 100
    monkeypatch.setitem(globals(), "X", changed)
    monkeypatch.setattr(
        scorable, "rows", lambda: torch.utils.data.TensorDataset(torch.from_numpy(changed), torch.tensor(Y))
    )
    assert fingerprint("three") != first


def test_rows_that_cannot_be_read(tmp_path):
    columns, broken = opened("f", scorable.Broken()).read(10, 45)
    assert broken == {17: "must be one that can be read, got OSError: truncated"}
    assert columns["index"].tolist() == [*range(10, 17), *range(18, 45)] and len(columns["x"]) == 34
    items = [(1.0, 2)] * 3 + [(1.0,)] + [(1.0, 2)]
    columns, broken = opened("f", items).read(0, 5)
    assert broken == {3: "must have the columns x, y of other rows, got x"} and len(columns["y"]) == 4


def test_missing_values_of_parquet_are_none(tmp_path):
    ids = [[1, 2], None, [3]]
    parquet.write_table(pyarrow.table({"input_ids": ids, "y": [1, None, 2]}), tmp_path / "data.parquet")
    columns, _ = opened("f", tmp_path / "data.parquet").read(0, 3)
    assert columns["input_ids"][1] is None and columns["input_ids"][2].tolist() == [3]
    assert columns["y"][1] is None and columns["y"][2] == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("none.npz", "{must} 'none.npz', which is not there"),
        ("a.csv", "{must} 'a.csv'"),
        ("empty", "data must be a folder of .parquet files or a saved Hugging Face dataset, got 'empty' without any"),
        ("lengths.npz", "data must hold arrays of one length, got x 3, y 2"),
        ("zero.npz", "data must have at least one row, got none in 'zero.npz'"),
        ("broken.npz", "data must be a .npz that can be read, got: "),
        ("broken.parquet", "data must be Parquet that can be read, got 'broken.parquet': "),
        ("scorable:number", "data must be a data set with a length and keys, got int"),
        (iter([1]), "data must be a data set with a length and keys, got list_iterator"),
        ([], "data must have at least one row, got none in '[]'"),
    ],
)
def test_bad_data(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("x\n1\n")
    np.savez("lengths.npz", x=np.zeros(3), y=np.zeros(2))
    np.savez("zero.npz", x=np.zeros((0, 3)))
    (tmp_path / "broken.npz").write_bytes(b"PK no")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    must = (
        "data must be a .npz, a .parquet or a folder of them, a saved Hugging Face dataset, or package.module:name, got"
    )
    with pytest.raises((ValueError, TypeError)) as error:
        opened("f", data)
    expected = "f: " + message.format(must=must)
    assert str(error.value) == expected or (expected.endswith(": ") and str(error.value).startswith(expected))


def test_without_pyarrow(tmp_path, monkeypatch):
    import sys

    path = as_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError) as error:
        opened("score_dataset", path)
    assert str(error.value) == f"score_dataset: '{path}' needs pyarrow: pip install \"torchassay[io]\""


def test_a_plan_holds_every_row_once():
    """Whatever does not fill a part goes to the last one, so that none is of a row or two."""
    for n in (1, 7, 8, 9, 63, 64, 65, 150):
        for batch_size, per_part in ((8, 4), (1, 1), (5, 3), (200, 2)):
            plan = Plan(n, batch_size, per_part)
            batches = [batch for part in range(plan.parts) for batch in plan.batches_of(part)]
            assert batches == list(range(plan.batches))
            rows = [row for batch in batches for row in range(*plan.rows_of(batch))]
            assert rows == list(range(n))
            assert plan.rows_in(range(plan.parts)) == n
            assert all(len(plan.batches_of(part)) >= per_part for part in range(plan.parts)) or plan.parts == 1


def test_saved_datasets_need_their_package(tmp_path, monkeypatch):
    import sys

    (tmp_path / "state.json").write_text(json.dumps({}))
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError) as error:
        opened("score_dataset", tmp_path)
    assert str(error.value) == f"score_dataset: '{tmp_path}' needs the package datasets: pip install datasets"
