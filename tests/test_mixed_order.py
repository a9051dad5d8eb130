"""MixedOrder: its plan against the method's steps written out slowly, its uncertainty against a model's own hooks."""

import collections

import numpy as np
import pytest
from torchassay.samplers.mixed_order import ascending, in_batches, interleave, rank_sum

SIZES = [0, 1, 2, 5, 7, 8, 33, 96]


def slow_ranks(values) -> list[int]:
    """The place of each sample in Python's stable sort, samples without a value behind all others."""
    order = sorted(range(len(values)), key=lambda i: (np.isnan(values[i]), 0 if np.isnan(values[i]) else values[i]))
    return [order.index(i) for i in range(len(values))]


def slow_pairs(difficulty: list[int]) -> list[int]:
    """The easiest that is left, the hardest that is left, and so on; of equally difficult ones the earlier is easier."""
    left = collections.deque(sorted(range(len(difficulty)), key=difficulty.__getitem__))
    found = []
    while left:
        found.append(left.popleft() if len(found) % 2 == 0 else left.pop())
    return found


def scores(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses and uncertainties with ties, zeros of both signs, infinities and missing values."""
    rng = np.random.default_rng([n, seed])
    found = rng.gamma(2.0, size=(2, n)).round(1)
    for special in (0.0, -0.0, np.inf, -1.5, -np.inf, np.nan, -np.nan):
        found[rng.random((2, n)) < 0.05] = special
    return tuple(found.astype(np.float32))


def cut(order: np.ndarray, size: int) -> list[tuple[int, ...]]:
    return [tuple(order[start : start + size].tolist()) for start in range(0, len(order), size)]


# ---- the plan


@pytest.mark.parametrize("n", SIZES)
def test_ranks_are_those_of_a_stable_sort(n):
    loss, uncertainty = scores(n)
    kept = loss.copy()
    ranks = slow_ranks(loss)
    assert ascending(loss).tolist() == sorted(range(n), key=ranks.__getitem__)
    expected = [a + b for a, b in zip(ranks, slow_ranks(uncertainty), strict=True)]
    assert rank_sum(loss, uncertainty).tolist() == expected
    assert rank_sum(loss).tolist() == ranks
    assert loss.tobytes() == kept.tobytes()


def test_sums_of_ranks_sort_as_whole_numbers():
    sums = np.array([0, 3, (1 << 32) - 2, 3, 1 << 31, (1 << 31) - 1], dtype=np.uint32)
    assert ascending(sums).tolist() == [0, 1, 3, 5, 4, 2]


def test_easiest_meets_hardest():
    assert interleave(np.arange(8)).tolist() == [0, 7, 1, 6, 2, 5, 3, 4]
    assert interleave(np.arange(7)).tolist() == [0, 6, 1, 5, 2, 4, 3]  # the middle one once


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 40])
def test_mixed_batches_are_those_of_the_slow_method(n, size):
    difficulty = rank_sum(*scores(n))
    found = in_batches(ascending(difficulty), size, True, False, np.random.default_rng(5))
    expected = cut(np.array(slow_pairs(difficulty.tolist()), dtype=np.int64), size)
    full = n // size
    assert sorted(cut(found, size)[:full]) == sorted(expected[:full])
    assert cut(found, size)[full:] == expected[full:]  # what is left over comes last


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_batch_is_half_of_the_easiest_and_half_of_the_hardest_left(size):
    """The same told another way, and for ranks without ties every batch adds up to the same."""
    n = 64
    difficulty = np.random.default_rng(1).permutation(n).astype(np.uint32)
    found = cut(in_batches(ascending(difficulty), size, True, False, np.random.default_rng(0)), size)
    assert {int(difficulty[list(batch)].sum()) for batch in found} == {size * (n - 1) // 2}
    left = np.argsort(difficulty).tolist()
    for batch in sorted(found, key=lambda batch: difficulty[list(batch)].min()):
        assert set(batch) == set(left[: size // 2] + left[-size // 2 :])
        left = left[size // 2 : -size // 2]


def test_batches_come_in_an_order_of_their_own_in_every_epoch():
    order = np.arange(1000)
    first, again, other = (in_batches(order, 10, True, False, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert set(cut(first, 10)) == set(cut(other, 10))
    places = [
        cut(in_batches(np.arange(4), 1, True, False, np.random.default_rng(seed)), 1).index((0,)) for seed in range(400)
    ]
    assert min(collections.Counter(places).values()) > 60 and set(places) == {
        0,
        1,
        2,
        3,
    }  # 100 each; 60 is 4.6 sigma off


@pytest.mark.parametrize("mixed", [True, False])
def test_other_samples_sit_out_in_every_epoch(mixed):
    n, size = 50, 8
    sat_out = collections.Counter()
    for epoch in range(500):
        found = in_batches(np.arange(n), size, mixed, True, np.random.default_rng(epoch))
        assert sorted(found.tolist()) == list(range(n))
        sat_out.update(found[48:].tolist())
        trained = np.sort(found[:48])
        expected = np.array(slow_pairs(trained.tolist())) if mixed else np.arange(48)
        assert sorted(cut(found[:48], size)) == sorted(cut(trained[expected], size))
    assert len(sat_out) == n and max(sat_out.values()) < 50  # 20 each; 50 is 6.8 sigma off


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("drop_last", [False, True])
def test_from_easy_to_hard(n, drop_last):
    found = in_batches(np.arange(n), 4, False, drop_last, np.random.default_rng(0))
    kept = n - n % 4 if drop_last else n
    assert found[:kept].tolist() == sorted(found[:kept].tolist()) and sorted(found.tolist()) == list(range(n))
