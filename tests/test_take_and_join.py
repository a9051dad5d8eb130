"""Rows of batches against loops over samples."""

import collections

import pytest
import refusals
import torch
import torchassay as ta
from items import Items, Pair
from torch.utils.data import DataLoader
from torchassay.data import join, take


def nested(samples: list[int]):
    """A batch of every structure, from the samples' numbers."""
    x = torch.tensor(samples, dtype=torch.float32)
    names = [f"sample {i}" for i in samples]
    return {
        "image": torch.stack([x, x + 1], 1),
        "text": names,
        "pairs": (x.long(), [x.double(), tuple(names)]),
        "named": Pair(x[:, None, None].expand(-1, 2, 1), {"mask": x > 2, "weight": list(samples)}),
        "empty": (),
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("rows", [[2, 0, 4], [1], [3, 3], []])
def test_rows_of_a_batch(rows):
    batch = nested([10, 11, 1, 13, 0])
    found = take(batch, torch.tensor(rows, dtype=torch.int64))
    assert same(found, nested([[10, 11, 1, 13, 0][row] for row in rows]))
    assert same(batch, nested([10, 11, 1, 13, 0]))


def test_batches_side_by_side():
    parts = [[1, 2, 3], [], [4], [5, 6]]
    assert same(join([nested(part) for part in parts]), nested([1, 2, 3, 4, 5, 6]))
    assert same(join(iter([nested([7])])), nested([7]))


def test_what_was_taken_apart_fits_together():
    """As a sampler regroups the picked rows of several batches; with collated data sets of all kinds."""
    for kind in ("tuple", "dict", "namedtuple"):
        loader = DataLoader(ta.Indexed(Items(24, kind)), batch_size=8)
        picked = [take(batch, torch.tensor([1, 5, 6])) for batch in loader]
        whole = join(picked)
        *_, index = whole.values() if kind == "dict" else whole
        assert index.tolist() == [1, 5, 6, 9, 13, 14, 17, 21, 22]
        assert same(take(whole, torch.arange(3, 6)), picked[1])


def test_other_mappings_keep_their_type():
    batch = collections.defaultdict(list, x=torch.arange(4), y=["a", "b", "c", "d"])
    found = take(batch, torch.tensor([3]))
    assert type(found) is collections.defaultdict and found["x"].tolist() == [3] and found["y"] == ["d"]
    user = collections.UserDict(x=torch.arange(4))
    found = join([user, user])
    assert type(found) is collections.UserDict and len(found["x"]) == 8 and len(user["x"]) == 4


X = torch.ones(3, 2)
ROWS = torch.tensor([0])
BAD = {
    "rows": (lambda: take(X, [0]), TypeError, "take: rows must be a Tensor, got list"),
    "dtype of rows": (
        lambda: take(X, ROWS.bool()),
        ValueError,
        "take: rows must be int64 of shape (M,) on cpu, got bool of shape (1,) on cpu",
    ),
    "range of rows": (lambda: take((X, X), ROWS + 3), ValueError, "take: rows must be in [0, 3), got 3"),
    "negative rows": (lambda: take([X, X], ROWS - 1), ValueError, "take: rows must be in [0, 3), got -1"),
    "lengths": (
        lambda: take({"x": X, "y": torch.ones(4)}, ROWS),
        ValueError,
        "take: batch must hold columns of one length, got 3 and 4",
    ),
    "number": (
        lambda: take({"x": X, "y": 4}, ROWS),
        TypeError,
        "take: a batch must hold tensors with rows, lists, tuples and dicts, got int",
    ),
    "0-d": (
        lambda: take((X, torch.tensor(1.0)), ROWS),
        TypeError,
        "take: a batch must hold tensors with rows, lists, tuples and dicts, got float32 tensor of shape ()",
    ),
    "nothing to join": (lambda: join([]), ValueError, "join: batches must hold at least one batch, got none"),
    "structures": (
        lambda: join([{"x": X}, {"y": X}]),
        ValueError,
        "join: batches must have one structure, got dict of x and dict of y",
    ),
    "lengths to join": (
        lambda: join([(X, X), (X,)]),
        ValueError,
        "join: batches must have one structure, got tuple of 1 and tuple of 2",
    ),
    "shapes": (
        lambda: join([X, torch.ones(1, 4)]),
        ValueError,
        "join: tensors must have one shape but for their rows, got (3, 2) and (1, 4)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    refusals.check(*BAD[case])
