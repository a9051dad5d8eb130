"""``keep`` against sorting."""

import math

import pytest
import refusals
import torch
import torchassay as ta


def window(values: list[float], start: int, stop: int, largest: bool) -> list[int]:
    """Places [start, stop) in the order of a stable sort, NaN below all other numbers."""
    keys = [-math.inf if math.isnan(value) else value for value in values]
    return sorted(sorted(range(len(keys)), key=lambda i: -keys[i] if largest else keys[i])[start:stop])


def halves_upwards(n: int, *hundredths: int) -> int:
    return (2 * n * sum(hundredths) + 100) // 200


VALUES = torch.randint(0, 12, (101,), generator=torch.Generator().manual_seed(5)).float()
VALUES[::9] = torch.nan
VALUES[3] = -torch.inf
VALUES[4] = torch.inf


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("fraction", [0, 10, 35, 50, 100])
@pytest.mark.parametrize("offset", [0, 15, 65])
def test_windows_are_those_of_a_sort(fraction, offset, largest):
    if fraction + offset > 100:
        offset = 0
    start, stop = halves_upwards(101, offset), halves_upwards(101, offset, fraction)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = ta.keep(VALUES.to(dtype), fraction / 100, offset / 100, largest=largest)
        assert found.dtype == torch.int64 and found.tolist() == window(VALUES.tolist(), start, stop, largest)


@pytest.mark.parametrize("largest", [True, False])
def test_windows_of_every_class(largest):
    classes = torch.randint(-1, 4, (101,), generator=torch.Generator().manual_seed(6), dtype=torch.int16)
    classes[50] = 30000  # alone
    expected = []
    for label in set(classes.tolist()):
        members = [i for i, other in enumerate(classes.tolist()) if other == label]
        start, stop = halves_upwards(len(members), 20), halves_upwards(len(members), 20, 50)
        expected += [members[i] for i in window(VALUES[members].tolist(), start, stop, largest)]
    assert ta.keep(VALUES, 0.5, 0.2, largest=largest, by=classes).tolist() == sorted(expected)


@pytest.mark.parametrize("n", [1, 5, 15, 23])
def test_windows_side_by_side_share_nothing_and_leave_nothing_out(n):
    values = torch.rand(n, generator=torch.Generator().manual_seed(n))
    parts = [ta.keep(values, 0.2, 0.1), ta.keep(values, 0.1), ta.keep(values, 0.4, 0.3), ta.keep(values, 0.3, 0.7)]
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert all(abs(len(part) - n * share) < 1 for part, share in zip(parts, (0.2, 0.1, 0.4, 0.3), strict=True))


def test_windows_whose_shares_are_sums_of_floats():
    """0.08 + 0.47 is less than 0.55 in floats; of 10 samples, the half one must not go both ways."""
    values = torch.arange(10.0)
    assert len(ta.keep(values, 0.47, 0.08)) + len(ta.keep(values, 0.45, 0.55)) == 9  # 1 to 10
    assert ta.keep(values, 0.47, 0.08).tolist() == ta.keep(values, 0.55)[:-1].tolist()


def test_a_window_of_nothing():
    assert ta.keep(torch.empty(0), 0.5).tolist() == []
    assert ta.keep(torch.empty(0), 0.5, by=torch.empty(0, dtype=torch.int64)).tolist() == []


BAD = {
    "values": (lambda: ta.keep([1.0], 0.5), TypeError, "keep: values must be a Tensor, got list"),
    "whole values": (
        lambda: ta.keep(torch.arange(1), 0.5),
        TypeError,
        "keep: values must be floating-point, got int64",
    ),
    "shape of values": (
        lambda: ta.keep(torch.ones(1, 2), 0.5),
        ValueError,
        "keep: values must have shape (N,), got (1, 2)",
    ),
    "fraction": (lambda: ta.keep(torch.ones(1), 1.1), ValueError, "keep: fraction must be in [0, 1], got 1.1"),
    "offset": (
        lambda: ta.keep(torch.ones(1), 0.8, 0.3),
        ValueError,
        "keep: offset must be in [0, 1 - fraction], got 0.3 with 0.8",
    ),
    "classes": (
        lambda: ta.keep(torch.ones(1), 0.5, by=torch.ones(1)),
        TypeError,
        "keep: by must have an integer dtype, got float32",
    ),
    "shape of classes": (
        lambda: ta.keep(torch.ones(1), 0.5, by=torch.arange(2)),
        ValueError,
        "keep: by must have the shape of values (1,), got (2,)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    refusals.check(*BAD[case])
