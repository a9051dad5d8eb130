"""BlockWeights: what is drawn, how often, in which order, and after which changes."""

import collections
import itertools
import math

import numpy as np
import pytest
from importance import chi_square
from torchassay.checks import InputValueError
from torchassay.samplers.weights import AT_ONCE, BLOCK, BlockWeights


def gamma(n: int, seed: int = 1) -> np.ndarray:
    """Uneven weights, a tenth of them 0."""
    generator = np.random.default_rng(seed)
    values = generator.gamma(2.0, size=n).astype(np.float32)
    values[generator.random(n) < 0.1] = 0
    return values


def test_draws_are_in_proportion():
    values = gamma(3 * BLOCK + 77)
    drawn = BlockWeights(values).draw(np.random.default_rng(2), 40 * AT_ONCE + 5)
    counts = np.bincount(drawn, minlength=len(values))
    assert counts.sum() == 40 * AT_ONCE + 5
    assert chi_square(counts, values.astype(np.float64)) < 4
    assert chi_square(counts, (values > 0).astype(np.float64)) > 100  # the test can tell


def test_successive_sampling_has_the_chances_of_its_definition():
    values, size, times = np.array([4, 1, 0, 2, 1.5, 3], np.float32), 3, 4000
    exact = {}
    for order in itertools.permutations(np.flatnonzero(values).tolist(), size):
        left, chance = float(values.sum()), 1.0
        for place in order:
            chance, left = chance * values[place] / left, left - values[place]
        exact[order] = chance
    assert sum(exact.values()) == pytest.approx(1)

    weights, rng = BlockWeights(values), np.random.default_rng(3)
    found = collections.Counter(tuple(weights.draw(rng, size, replacement=False).tolist()) for _ in range(times))
    assert set(found) <= set(exact)
    counts = np.array([found[order] for order in exact])
    assert chi_square(counts, np.array(list(exact.values()))) < 4

    for place in range(len(values)):
        inclusion = sum(chance for order, chance in exact.items() if place in order)
        times_in = sum(count for order, count in found.items() if place in order)
        assert abs(times_in - times * inclusion) <= 4 * math.sqrt(times * inclusion * (1 - inclusion))


def test_changed_weights_draw_what_new_ones_do():
    generator = np.random.default_rng(4)
    values = gamma(5 * BLOCK + 3)
    weights = BlockWeights(values)
    for _ in range(20):
        index = generator.choice(len(values), 30, replace=False)
        values[index] = generator.gamma(0.3, size=30).astype(np.float32) * np.float32(10) ** generator.integers(-20, 20)
        weights.update(index, values[index])
        again = BlockWeights(values)
        assert weights.total == again.total
        for replacement in (True, False):
            mine, theirs = (w.draw(np.random.default_rng(5), 64, replacement) for w in (weights, again))
            assert np.array_equal(mine, theirs)
        assert weights.total == again.total  # what was drawn without replacement is back


def test_the_ends_of_the_random_numbers():
    """0 must not draw what weighs nothing before the first weight, nor almost 1 what stands behind the last one."""

    class Constant:
        def __init__(self, number: float):
            self.number = number

        def random(self, size: int) -> np.ndarray:
            return np.full(size, self.number)

    values = np.zeros(5 * BLOCK, np.float32)
    values[2 * BLOCK + 5 : 2 * BLOCK + 9] = 0.1, 0.7, 1e-30, 3e8
    weights = BlockWeights(values)
    assert weights.draw(Constant(0.0), 2).tolist() == [2 * BLOCK + 5] * 2
    assert weights.draw(Constant(1 - 2**-53), 2).tolist() == [2 * BLOCK + 8] * 2


def test_nothing_is_left_of_a_large_weight():
    values = np.full(BLOCK, 1e-30, np.float32)
    values[7] = 1e30
    weights = BlockWeights(values)
    assert (weights.draw(np.random.default_rng(6), 1000) == 7).all()
    weights.update(np.array([7]), np.array([3e-30], np.float32))
    drawn = weights.draw(np.random.default_rng(6), 20_000)
    values[7] = 3e-30
    assert chi_square(np.bincount(drawn, minlength=BLOCK), values.astype(np.float64)) < 4


def test_entries_beyond_two_to_the_24():
    values = np.zeros((1 << 24) + 1000, np.float32)
    values[[(1 << 24) + 1, (1 << 24) + 2]] = 1, 3
    drawn = BlockWeights(values).draw(np.random.default_rng(7), 10_000) - (1 << 24)
    assert set(drawn.tolist()) == {1, 2}
    assert abs((drawn == 2).sum() - 7500) < 4 * math.sqrt(10_000 * 3 / 16)


def test_one_weight_far_above_the_others_does_not_stop_a_draw_without_replacement():
    values = np.float32(2.0) ** np.arange(-60, 60)
    weights = BlockWeights(values)
    drawn = weights.draw(np.random.default_rng(8), 120, replacement=False)
    assert np.array_equal(np.sort(drawn), np.arange(120))
    assert weights.total == pytest.approx(float(values.astype(np.float64).sum()))
    assert np.corrcoef(drawn, -np.arange(120))[0, 1] > 0.95  # largest first


def test_probabilities():
    values = gamma(1000)
    weights = BlockWeights(values)
    found = weights.probability(np.arange(1000))
    np.testing.assert_allclose(found, values.astype(np.float64) / math.fsum(values.tolist()), rtol=1e-14)
    assert math.fsum(found.tolist()) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("replacement", [True, False])
def test_where_all_weigh_nothing_draws_are_uniform(replacement):
    weights, rng = BlockWeights(np.zeros(40, np.float32)), np.random.default_rng(9)
    counts = np.bincount(np.concatenate([weights.draw(rng, 10, replacement) for _ in range(400)]), minlength=40)
    assert chi_square(counts, np.ones(40)) < 4
    assert weights.probability(np.array([0, 39])).tolist() == [1 / 40, 1 / 40]


def test_positive_weights_come_before_those_of_zero():
    values = np.zeros(300, np.float32)
    values[[3, 299]] = 1e-40, 5  # a subnormal number counts
    for seed in range(20):
        drawn = BlockWeights(values).draw(np.random.default_rng(seed), 10, replacement=False)
        assert drawn[:2].tolist() == [299, 3] and len(set(drawn.tolist())) == 10


def test_inactive_entries_are_never_drawn():
    active = np.arange(600) % 3 == 0
    weights, rng = BlockWeights(gamma(600), active), np.random.default_rng(10)
    assert weights.count == 200
    weights.update(np.array([1, 3]), np.array([1e9, 5], np.float32))  # 1 is inactive
    drawn = weights.draw(rng, 2000)
    assert (drawn % 3 == 0).all() and 3 in drawn
    assert weights.probability(np.array([1])) == [0]
    assert np.array_equal(np.sort(weights.draw(rng, 200, replacement=False)), np.flatnonzero(active))

    nothing = BlockWeights(np.zeros(600, np.float32), active)
    assert np.array_equal(np.sort(nothing.draw(rng, 200, replacement=False)), np.flatnonzero(active))
    assert nothing.probability(np.array([0, 1])).tolist() == [1 / 200, 0]


def test_the_weights_given_are_copied():
    values, active = gamma(50), np.ones(50, bool)
    weights = BlockWeights(values, active)
    before = weights.probability(np.arange(50))
    values[:], active[:] = 0, False
    assert np.array_equal(weights.probability(np.arange(50)), before)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_weight_is_refused(value):
    values = np.ones(700, np.float32)
    values[600] = value
    expected = f"BlockWeights: values must be finite and at least 0, got {values[600]} at 600"
    with pytest.raises(InputValueError) as error:
        BlockWeights(values)
    assert str(error.value) == expected
    weights = BlockWeights(np.ones(700, np.float32))
    with pytest.raises(InputValueError) as error:
        weights.update(np.array([2, 600]), np.array([1, value], np.float32))
    assert str(error.value) == expected
    assert weights.total == 700


def test_more_than_there_are_without_replacement():
    with pytest.raises(InputValueError) as error:
        BlockWeights(np.ones(5, np.float32)).draw(np.random.default_rng(0), 6, replacement=False)
    assert str(error.value) == "BlockWeights.draw: size must be at most 5, got 6"
