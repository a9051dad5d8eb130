"""InfoBatch against its rule in slow loops, and its weights over many draws."""

import math

import numpy as np
import pytest
from torchassay.samplers.info_batch import prune


def losses(n, seed=1):
    return np.random.default_rng(seed).exponential(size=n).astype(np.float32)


@pytest.mark.parametrize("r", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [1, 2, 9, 1000])
def test_prune_by_hand(n, r):
    score = losses(n)
    order, weight = prune(score, r, np.random.default_rng(2))
    assert order.dtype == np.int32 and weight.dtype == np.float32
    mean = sum(score.tolist()) / n
    below = {i for i in range(n) if score[i] < mean}
    weight_of = dict(zip(order.tolist(), weight.tolist(), strict=True))
    assert len(weight_of) == len(order)  # nobody twice
    assert set(range(n)) - below <= set(weight_of)
    for i, w in weight_of.items():
        assert w == pytest.approx(1 / (1 - r) if i in below else 1.0, rel=1e-6)
    kept = len(below & set(weight_of))
    assert abs(kept - (1 - r) * len(below)) < 1


def test_nothing_lies_below_the_mean_of_equal_scores():
    for value in (3.0, 0.1, 1e-30, 0.7):
        for n in (3, 10, 1001):
            order, weight = prune(np.full(n, value, np.float32), 0.5, np.random.default_rng(3))
            assert sorted(order.tolist()) == list(range(n)) and (weight == 1).all()


@pytest.mark.parametrize(("n", "r"), [(9, 0.5), (10, 0.3), (3, 0.9)])
def test_the_expected_weight_of_every_sample_is_1(n, r):
    """So the expected sum of weights is n, also where (1 - r) of those below the mean is no whole number."""
    score, rng, draws = np.sort(losses(n)), np.random.default_rng(4), 4000
    below = int((score < score.mean(dtype=float)).sum())
    assert ((1 - r) * below) % 1 > 0.05 and below < n
    total = np.zeros(n)
    sums = np.zeros(draws)
    for k in range(draws):
        order, weight = prune(score, r, rng)
        total[order] += weight
        sums[k] = weight.sum()
    assert (total[below:] == draws).all()
    spread = math.sqrt(r / (1 - r) / draws)  # of the mean of one weight: 1 / (1 - r) with chance 1 - r, else 0
    assert (abs(total[:below] / draws - 1) < 3.5 * spread).all()
    assert abs(sums.mean() - n) < 3 * max(sums.std(), 1e-9) / math.sqrt(draws)


def test_kept_samples_stand_anywhere_in_the_order():
    score, rng = losses(50), np.random.default_rng(5)
    below = score < score.mean(dtype=float)
    places = []
    for _ in range(400):
        order, _ = prune(score, 0.5, rng)
        places.append((np.flatnonzero(below[order]).mean() + 0.5) / len(order))
    assert abs(np.mean(places) - 0.5) < 3 * np.std(places) / math.sqrt(400)
    assert len({tuple(prune(score, 0.5, rng)[0].tolist()) for _ in range(5)}) == 5
