"""SumTree: what is drawn, how often, in which order, and after which changes; native and in NumPy, to the bit."""

from __future__ import annotations

import collections
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import random123
import torch
import torchassay as ta
from importance import chi_square
from torchassay import sum_tree
from torchassay.philox import Purpose
from torchassay.sum_tree import SumTree, key_of

SIZES = (1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 70_000)  # around whole nodes of one to four levels


@pytest.fixture(params=["native", "numpy"])
def backend(request, monkeypatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(sum_tree, "native", None)
    elif sum_tree.native is None:
        pytest.skip("the C++ extension is not there")
    return request.param


def uneven(n: int, seed: int = 1) -> np.ndarray:
    """Weights in [0.2, 2) in float64, a tenth of them 0, but not all."""
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.2, 2, n)
    weights[generator.random(n) < 0.1] = 0
    weights[n // 2] = 1
    return weights


def counts(tree: SumTree, draws: int, seed: int = 2) -> np.ndarray:
    return np.bincount(tree.sample(draws, seed=seed), minlength=len(tree))


# ---- what is drawn


@pytest.mark.parametrize("n", SIZES)
def test_draws_are_in_proportion(backend, n):
    weights = uneven(n)
    found = counts(SumTree(weights), 20_000 + 10 * n)
    assert found.sum() == 20_000 + 10 * n
    if n > 1:
        assert abs(chi_square(found, weights)) < 4.5
        assert n < 15 or chi_square(found, (weights > 0).astype(np.float64)) > 20  # the test can tell


def exact_draw(weights: list[int], key: int, i: int) -> int:
    """From the definition, in exact numbers: level after level, the top first."""
    levels = [weights]
    while len(levels) == 1 or len(levels[-1]) > 16:
        levels.append([sum(levels[-1][first : first + 16]) for first in range(0, len(levels[-1]), 16)])
    node = 0
    for depth, level in enumerate(reversed(levels)):
        words = random123.words(key, Purpose.WEIGHTED_DRAWS, i, 0, depth // 2)[2 * (depth % 2) :]
        uniform = Fraction((words[1] << 32 | words[0]) >> 11, 1 << 53)
        below = level[16 * node : 16 * node + 16]
        upto = list(itertools.accumulate(below))
        node = 16 * node + next(child for child, end in enumerate(upto) if uniform * upto[-1] < end)
    return node


@pytest.mark.parametrize("n", [1, 16, 40, 600, 5000])
def test_draws_are_those_of_the_definition(backend, n):
    weights = np.random.default_rng(n).integers(0, 1000, n)
    weights[-1] = 5
    found = SumTree(weights).sample(60, seed=(7, 3))
    key = key_of("test", (7, 3))
    assert found.tolist() == [exact_draw(weights.tolist(), key, i) for i in range(60)]


def test_a_draw_depends_on_seed_and_number_alone(backend, threads):
    tree = SumTree(uneven(5000))
    threads(1)
    found = tree.sample(40_000, seed=5)
    assert torch.equal(tree.sample(33, seed=5), found[:33])
    threads(2)
    assert torch.equal(tree.sample(40_000, seed=5), found)
    assert torch.equal(SumTree(uneven(5000)).sample(50, seed=[5]), found[:50])
    seeds = (5, 6, (5, 0), (0, 5), (5, 0, 0), (5 + (1 << 32),), (5, 1 << 32), 1 << 63, (1 << 64) - 1)
    assert len({tuple(tree.sample(20, seed=seed).tolist()) for seed in seeds}) == len(seeds)
    assert tree.sample(0, seed=5).shape == (0,)


@pytest.mark.skipif(sum_tree.native is None, reason="the C++ extension is not there")
@pytest.mark.parametrize("n", SIZES)
def test_numpy_gives_the_same_bits(n, monkeypatch):
    found = []
    for native in (sum_tree.native, None):
        monkeypatch.setattr(sum_tree, "native", native)
        weights = uneven(n) * 10.0 ** np.random.default_rng(3).integers(-30, 30, n)
        tree = SumTree(weights)
        bits = [tree._sums.copy()]
        for k in (1, 7, 300, 3 * n):  # the last ones set whole levels anew
            index = np.random.default_rng(k).integers(0, n, k)
            tree.update(index, np.random.default_rng(k).gamma(0.3, size=k))
            bits += [tree._sums.copy(), np.float64([tree.total, tree.positive])]
            bits += [tree.sample(100, seed=(n, k)).numpy()]
            bits += [tree.sample(min(100, tree.positive), seed=(n, k), replacement=False).numpy()]
        found.append(bits)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


def test_entries_beyond_two_to_the_24(backend):
    weights = np.zeros((1 << 24) + 1000, np.float32)
    weights[[(1 << 24) + 1, (1 << 24) + 2]] = 1, 3
    drawn = SumTree(weights).sample(10_000, seed=7) - (1 << 24)
    assert set(drawn.tolist()) == {1, 2}
    assert abs(int((drawn == 2).sum()) - 7500) < 4 * math.sqrt(10_000 * 3 / 16)


# ---- what is never drawn


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("n", SIZES)
def test_the_ends_of_the_random_numbers(n, word, monkeypatch):
    """0 must not draw what weighs nothing before the first weight, nor almost 1 what stands behind the last one."""
    monkeypatch.setattr(sum_tree, "native", None)
    monkeypatch.setattr(
        sum_tree.reference, "random_words", lambda seed, purpose, row, draw, n: (torch.full_like(row, word),) * 4
    )
    for scale in (5e-324, 1e-310, 0.1, 1.0, 3.0, 1e300):
        weights = np.zeros(n)
        weights[n // 3 : n // 3 + 5] = [scale, 2 * scale, 0, scale, 0][: len(weights[n // 3 : n // 3 + 5])]
        first, *_, last = np.flatnonzero(weights).tolist() * 2
        assert SumTree(weights).sample(2, seed=0).tolist() == [last if word else first] * 2


@pytest.mark.parametrize("flush", [False, True])
def test_subnormal_weights(backend, flush):
    """A random number times their sum is often rounded up to it. The native module does not flush them to 0 either."""
    if flush and backend == "numpy":
        pytest.skip("NumPy computes as the process does")
    weights = np.zeros(600)
    weights[[3, 300, 301, 599]] = 5e-324, 5e-324, 1e-323, 5e-324
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor has no such mode")
    try:
        tree = SumTree(weights)
        found = counts(tree, 2000)
        different = tree.sample(4, seed=1, replacement=False)
    finally:
        torch.set_flush_denormal(False)
    assert np.flatnonzero(found).tolist() == [3, 300, 301, 599] and found[301] > found[3]
    assert sorted(different.tolist()) == [3, 300, 301, 599]


def test_zeros_among_all_magnitudes(backend):
    generator = np.random.default_rng(4)
    for n in (17, 300, 5000):
        weights = 2.0 ** generator.integers(-1070, 1000, n) * (generator.random(n) < 0.3)
        weights[0] = 1
        for seed in range(5):
            assert (weights[SumTree(weights).sample(500, seed=seed)] > 0).all()


# ---- without replacement


@pytest.mark.parametrize("weights", [[4, 1, 0, 2, 1.5, 3], [40, 1, 0, 2, 0, 3]])  # one more than half of all
@pytest.mark.parametrize("spread", [1, 20])  # all in one node, or each in its own
def test_successive_sampling_has_the_chances_of_its_definition(backend, weights, spread):
    size, times = 3, 3000 if backend == "native" else 500
    exact = {}
    for order in itertools.permutations(np.flatnonzero(weights).tolist(), size):
        left, chance = float(sum(weights)), 1.0
        for place in order:
            chance, left = chance * weights[place] / left, left - weights[place]
        exact[order] = chance
    assert sum(exact.values()) == pytest.approx(1)

    spaced = np.zeros((len(weights), spread))
    spaced[:, 0] = weights
    tree = SumTree(spaced.ravel())
    draws = (tree.sample(size, seed=(3, k), replacement=False) // spread for k in range(times))
    found = collections.Counter(tuple(draw.tolist()) for draw in draws)
    assert set(found) <= set(exact)
    assert chi_square(np.array([found[order] for order in exact]), np.array(list(exact.values()))) < 4

    for place in range(len(weights)):
        inclusion = sum(chance for order, chance in exact.items() if place in order)
        times_in = sum(count for order, count in found.items() if place in order)
        assert abs(times_in - times * inclusion) <= 4 * math.sqrt(times * inclusion * (1 - inclusion))


def test_one_weight_far_above_the_others_does_not_stop_a_draw_without_replacement(backend):
    weights = 2.0 ** np.arange(-150, 150)
    tree = SumTree(weights)
    drawn = tree.sample(300, seed=8, replacement=False)
    assert sorted(drawn.tolist()) == list(range(300))
    assert np.corrcoef(drawn, -np.arange(300))[0, 1] > 0.99  # largest first


def test_all_that_weigh_something_without_replacement(backend):
    weights = uneven(4097)
    tree = SumTree(weights)
    sums = tree._sums.copy()
    drawn = tree.sample(tree.positive, seed=3, replacement=False)
    assert np.array_equal(np.sort(drawn), np.flatnonzero(weights))
    assert np.array_equal(tree.weights(), weights) and np.array_equal(tree._sums, sums)
    with pytest.raises(ValueError) as error:
        tree.sample(tree.positive + 1, seed=3, replacement=False)
    expected = f"at most {tree.positive}, the number of weights above 0, got {tree.positive + 1}"
    assert str(error.value) == f"SumTree.sample: n must be {expected}"


# ---- changes


@pytest.mark.parametrize("n", SIZES)
def test_changed_weights_draw_what_new_ones_do(backend, n):
    generator = np.random.default_rng(4)
    weights = uneven(n)
    tree = SumTree(weights)
    for k in (1, 3, 30, 300, 2 * n):
        index = generator.integers(0, n, k)
        values = generator.gamma(0.3, size=k) * 10.0 ** generator.integers(-20, 20) * (generator.random(k) < 0.9)
        tree.update(index, values)
        for place, value in zip(index.tolist(), values.tolist(), strict=True):  # of the same index the last one
            weights[place] = value
        again = SumTree(weights)
        assert np.array_equal(tree._sums, again._sums) and np.array_equal(tree.weights(), weights)
        assert tree.positive == again.positive == np.count_nonzero(weights)
        assert tree.total == pytest.approx(math.fsum(weights.tolist()), rel=1e-14)


def test_nothing_drifts(backend):
    """Where differences were added to the sums, each of these changes would leave an error of 1e-16 of 1e10."""
    generator = np.random.default_rng(5)
    tree = SumTree(10_000)
    for _ in range(100):
        for scale in (1e10, 1e-10):
            tree.update(generator.integers(0, 10_000, 1000), generator.random(1000) * scale)
    tree.update(np.arange(10_000), generator.random(10_000) * 1e-10)
    assert tree.total == pytest.approx(math.fsum(tree.weights().tolist()), rel=1e-14)


def test_nothing_is_left_of_a_large_weight(backend):
    weights = np.full(256, 1e-30)
    weights[7] = 1e30
    tree = SumTree(weights)
    assert (tree.sample(1000, seed=6) == 7).all()
    weights[7] = 3e-30
    tree.update([7], [3e-30])
    assert chi_square(counts(tree, 20_000), weights) < 4


# ---- what is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_weights_come_back_as_they_were_given(backend, dtype):
    weights = (torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 9).to(dtype)
    before = weights.clone()
    tree = SumTree(weights)
    index = torch.tensor([0, 17, 299, 17])
    assert torch.equal(tree.weights().to(dtype), weights) and torch.equal(tree.weights(index).to(dtype), weights[index])
    tree.update(index, weights[:4])
    assert torch.equal(tree.weights([17, 299, 0]).to(dtype), weights[[3, 2, 0]])
    assert torch.equal(weights, before) and tree.weights().dtype == torch.float64


def test_weights_are_copied_and_may_be_of_any_kind():
    array = np.arange(40.0)[::-2]
    trees = [SumTree(array), SumTree(array.tolist()), SumTree(torch.from_numpy(array.copy())), SumTree(20)]
    trees[3].update(range(20), array)
    array[:] = 0
    assert all(torch.equal(tree.weights(), torch.arange(39.0, 0, -2, dtype=torch.float64)) for tree in trees)
    assert [len(tree) for tree in trees] == [20] * 4 and repr(trees[0]) == "SumTree(20 weights, total 400.0)"
    assert ta.SumTree is SumTree


def test_bytes_of_a_weight():
    assert SumTree(100_000).nbytes <= 9 * 100_000
