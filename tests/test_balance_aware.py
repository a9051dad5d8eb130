"""BalanceAware's plan against BSS's formulas in slow loops and many draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from torchassay.samplers import balance_aware
from torchassay.samplers.balance_aware import BalanceAware, balance, highest, share_of_epoch, weighted_order


def chi_square(counts, expected):
    """How far counts are from what is expected, in standard deviations of the statistic."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def test_share_of_epoch_grows_as_published():
    """lambda(t) of the method's slides, t = epoch + 1."""
    for t, expected in ((1, 0.1864), (10, 0.5074), (20, 0.7106), (39, 0.9875)):
        assert round(share_of_epoch(t - 1), 4) == expected
    assert share_of_epoch(39) == share_of_epoch(100) == 1
    for t in range(1, 8):
        exact = min(1.0, math.sqrt((1 - 0.3**2) / 7 * t + 0.3**2))
        assert share_of_epoch(t - 1, 0.3, 7) == pytest.approx(exact, rel=1e-15)
    for lambda0 in np.linspace(0, 1, 101):
        assert share_of_epoch(6, lambda0, 7) == 1  # exactly, so that no sample is left out


def test_balance_is_the_difference_of_both_scaled_to_one():
    random = np.random.default_rng(2)
    similarity = random.random(200, dtype=np.float32) * np.float32(0.3) + np.float32(0.5)
    loss = random.exponential(size=200).astype(np.float32)
    by_hand = {"both": [], "similarity": [], "loss": []}
    for cosine, nats in zip(similarity.astype(float), loss.astype(float), strict=True):
        agreed = (cosine - similarity.min()) / (float(similarity.max()) - similarity.min())
        lost = (nats - loss.min()) / (float(loss.max()) - loss.min())
        for name, value in (("both", agreed - lost), ("similarity", agreed), ("loss", -lost)):
            by_hand[name].append(value)
    before = similarity.copy(), loss.copy()
    given = {"both": (similarity, loss), "similarity": (similarity, None), "loss": (None, loss)}
    for name, expected in by_hand.items():
        found = balance(*given[name])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)
        assert found.min() >= -1 and found.max() <= 1
    assert (similarity == before[0]).all() and (loss == before[1]).all()


def test_balance_of_equal_and_of_infinite_values():
    equal, rising = np.full(4, 0.1, np.float32), np.array([0, 1, 2, 4], np.float32)
    assert balance(equal, equal).tolist() == [0, 0, 0, 0]
    assert balance(equal, rising).tolist() == [0, -0.25, -0.5, -1]
    assert balance(rising, equal).tolist() == [0, 0.25, 0.5, 1]
    infinite = np.array([0, np.inf, 2, 4], np.float32)  # a masked class as target: as bad as the worst other
    assert balance(None, infinite).tolist() == [0, -1, -0.5, -1]
    assert balance(equal, np.full(4, np.inf, np.float32)).tolist() == [0, 0, 0, 0]


def test_highest_takes_the_highest():
    values = np.random.default_rng(3).permutation(500).astype(np.float32)
    by_value = sorted(range(500), key=lambda i: -values[i])
    for count in (1, 2, 250, 499, 500):
        found = highest(values, count, seed=0)
        assert found.dtype == np.int32
        assert found.tolist() == sorted(by_value[:count])


def test_highest_draws_among_equals_once_for_all_epochs():
    values = np.repeat(np.array([1, 0, 2, 1], np.float32), 500)
    before = set()
    for count in (100, 500, 501, 900, 1500, 1501, 2000):
        found = set(highest(values, count, seed=4).tolist())
        assert len(found) == count and before <= found  # the sequence is fixed: more join, none leaves
        before = found
        for value in (2, 1, 0):  # no lower one as long as a higher is left
            of_value = set(np.flatnonzero(values == value).tolist())
            assert of_value <= found or all(values[i] >= value for i in found)
    alike = highest(np.zeros(2000, np.float32), 1000, seed=4)
    assert abs((alike < 1000).sum() - 500) < 4 * math.sqrt(1000 / 4)
    assert not np.array_equal(alike, highest(np.zeros(2000, np.float32), 1000, seed=5))


def test_weighted_order_is_the_order_of_gumbel_keys():
    weight = np.exp(np.random.default_rng(5).uniform(-1, 1, 1000)).astype(np.float32)
    times = np.random.default_rng(6).standard_exponential(1000)
    gumbel = [math.log(float(w)) - math.log(t) for w, t in zip(weight, times, strict=True)]
    found = weighted_order(weight, np.random.default_rng(6))
    assert found.dtype == np.int32
    assert found.tolist() == sorted(range(1000), key=lambda i: -gumbel[i])


def test_weighted_order_of_more_samples_than_a_part():
    n = balance_aware._PART + 1000
    weight = np.random.default_rng(7).random(n, dtype=np.float32) + np.float32(0.01)
    times = np.random.default_rng(8).standard_exponential(n) / weight
    expected = sorted(range(n), key=lambda i: (np.float32(times[i]), i))
    assert weighted_order(weight, np.random.default_rng(8)).tolist() == expected


def test_weighted_order_draws_in_proportion_to_the_weights():
    """Frequencies of whole orders against the chance of each, that of drawing one after the other."""
    weight = np.array([0.4, 0.1, 0.3, 0.9])
    chance = {}
    for order in itertools.permutations(range(4)):
        chance[order] = math.prod(weight[i] / weight[list(order[k:])].sum() for k, i in enumerate(order))
    rng, draws = np.random.default_rng(9), 20_000
    counts = dict.fromkeys(chance, 0)
    for _ in range(draws):
        counts[tuple(weighted_order(weight, rng).tolist())] += 1
    assert abs(chi_square(list(counts.values()), [draws * p for p in chance.values()])) < 3
    first = [sum(count for order, count in counts.items() if order[0] == i) for i in range(4)]
    assert abs(chi_square(first, draws * weight / weight.sum())) < 3
    assert chi_square(first, [draws / 4] * 4) > 100  # which plain shuffling would not pass


def test_the_heuristic_has_at_least_one_sample():
    sampler = BalanceAware(3, batch_size=2, scheduler="heuristic")
    sampler.memory.update(torch.arange(3), {"similarity": torch.ones(3), "loss": torch.tensor([2.0, 1.0, 3.0])}, 0)
    assert sampler.plan().tolist() == [1] and len(sampler) == 1


@pytest.mark.parametrize(("criterion", "high"), [("similarity", 2), ("loss", 0)])
def test_one_criterion_alone(criterion, high):
    for scheduler in ("learned", "heuristic"):
        sampler = BalanceAware(4, batch_size=2, criterion=criterion, scheduler=scheduler, lambda0=0.5, t_grow=100)
        assert tuple(sampler.memory.fields) == (criterion,)
        sampler.memory.update(torch.arange(4), {criterion: torch.tensor([0.1, 0.3, 0.9, 0.5])}, 0)
        plan = sampler.plan().tolist()
        if scheduler == "learned":
            assert sorted(plan) == list(range(4)) and sampler.needs == (criterion,)
            s = (sampler._smoothed / 32767).tolist()
            expected = [0, 0.25, 1, 0.5] if criterion == "similarity" else [0, -0.25, -1, -0.5]
            assert s == pytest.approx(expected, abs=2e-5)
        else:
            assert plan[0] == high or plan[1] == high


def test_epochs_wait_for_the_scores_of_all():
    sampler = BalanceAware(10, batch_size=2)
    half = {"similarity": torch.rand(5), "loss": torch.rand(5)}
    sampler.memory.update(torch.arange(5), half, 0)
    half["loss"][3] = torch.nan
    sampler.memory.update(torch.arange(5, 10), half, 0)
    assert "batch 0" in repr(sampler)
    for call in (sampler.plan, lambda: next(iter(sampler)), lambda: len(sampler)):
        with pytest.raises(RuntimeError) as raised:
            call()
        assert str(raised.value) == (
            "BalanceAware: every sample must have a score, got 1 of 10 without one or with NaN, the first of them 8; "
            "call measure(loader, model, forward) first"
        )
    sampler.memory.update(torch.tensor([8]), {"similarity": torch.ones(1), "loss": torch.ones(1)}, 0)
    assert sorted(sampler.plan().tolist()) == list(range(10))


def test_a_sample_costs_at_most_20_bytes():
    for scheduler in ("learned", "heuristic"):
        sampler = BalanceAware(1000, batch_size=10, scheduler=scheduler, lambda0=1)
        sampler.memory.update(torch.arange(1000), {name: torch.rand(1000) for name in ("similarity", "loss")}, 0)
        sampler.plan()
        plan = sum(value.nbytes for value in vars(sampler).values() if isinstance(value, np.ndarray))
        assert 18 * 1000 <= sampler.memory.nbytes + plan <= 20 * 1000 + 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "both"}, "scheduler must be one of learned, heuristic, got 'both'"),
        ({"criterion": "entropy"}, "criterion must be one of both, similarity, loss, got 'entropy'"),
        ({"mode": "code"}, "mode must be one of paper, official, got 'code'"),
        ({"lambda0": 1.5}, "lambda0 must be in [0, 1], got 1.5"),
        ({"t_grow": 0}, "t_grow must be greater than 0 and finite, got 0"),
        ({"beta": 0}, "beta must be in (0, 1], got 0"),
        ({"beta": math.nan}, "beta must be in (0, 1], got nan"),
        ({"rescore_every": 0}, "rescore_every must be at least 1, got 0"),
        ({"rescore_every": 1.0}, "rescore_every must be an int, got float"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        BalanceAware(5, batch_size=2, **options)
    assert str(raised.value) == f"BalanceAware: {message}"
