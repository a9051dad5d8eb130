"""MixedOrder: its plan against the method's steps written out slowly."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
import torch
import torchassay as ta
from mixed import network, points
from torch import nn
from torch.utils.data import DataLoader
from torchassay.checks import InputTypeError, InputValueError
from torchassay.samplers.mixed_order import MixedOrder, ascending, in_batches, interleave, rank_sum

SIZES = [0, 1, 2, 5, 7, 8, 33, 96]


def slow_ranks(values) -> list[int]:
    """The place of each sample in Python's stable sort, samples without a value behind all others."""
    order = sorted(range(len(values)), key=lambda i: (np.isnan(values[i]), 0 if np.isnan(values[i]) else values[i]))
    return [order.index(i) for i in range(len(values))]


def slow_pairs(difficulty: list[int]) -> list[int]:
    """The easiest that is left, the hardest that is left, and so on; of equal ones the earlier is easier."""
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
    found = in_batches(ascending(difficulty), size, True, 0, np.random.default_rng(5))
    expected = cut(np.array(slow_pairs(difficulty.tolist()), dtype=np.int64), size)
    full = n // size
    assert sorted(cut(found, size)[:full]) == sorted(expected[:full])
    assert cut(found, size)[full:] == expected[full:]  # what is left over comes last


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_batch_is_half_of_the_easiest_and_half_of_the_hardest_left(size):
    """The same told another way, and for ranks without ties every batch adds up to the same."""
    n = 64
    difficulty = np.random.default_rng(1).permutation(n).astype(np.uint32)
    found = cut(in_batches(ascending(difficulty), size, True, 0, np.random.default_rng(0)), size)
    assert {int(difficulty[list(batch)].sum()) for batch in found} == {size * (n - 1) // 2}
    left = np.argsort(difficulty).tolist()
    for batch in sorted(found, key=lambda batch: difficulty[list(batch)].min()):
        assert set(batch) == set(left[: size // 2] + left[-size // 2 :])
        left = left[size // 2 : -size // 2]


def test_batches_come_in_an_order_of_their_own_in_every_epoch():
    order = np.arange(1000)
    first, again, other = (in_batches(order, 10, True, 0, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert set(cut(first, 10)) == set(cut(other, 10))
    places = [  # of the first batch of four
        cut(in_batches(np.arange(4), 1, True, 0, np.random.default_rng(seed)), 1).index((0,)) for seed in range(400)
    ]
    counts = collections.Counter(places)  # 100 each; 60 is 4.6 sigma off
    assert sorted(counts) == [0, 1, 2, 3] and min(counts.values()) > 60


@pytest.mark.parametrize("mixed", [True, False])
def test_other_samples_sit_out_in_every_epoch(mixed):
    n, size, sat_out = 50, 8, collections.Counter()
    for epoch in range(500):
        found = in_batches(np.arange(n), size, mixed, n % size, np.random.default_rng(epoch))
        assert sorted(found.tolist()) == list(range(n))
        sat_out.update(found[48:].tolist())
        trained = np.sort(found[:48])
        expected = cut(trained[slow_pairs(trained.tolist())], size) if mixed else cut(trained, size)
        assert (sorted(cut(found[:48], size)) if mixed else cut(found[:48], size)) == sorted(expected)
    assert len(sat_out) == n and max(sat_out.values()) < 50  # 20 each; 50 is 6.8 sigma off


# ---- epochs


def train(sampler: MixedOrder, epochs: int, workers: int = 0):
    """Train; gives each epoch's batches, and what was known when it was planned: its values by name."""
    torch.manual_seed(0)
    dataset, model = points(sampler.n), nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    loader = DataLoader(dataset, batch_size=sampler.batch_size, sampler=sampler, num_workers=workers)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        known = {name: sampler.memory[name].numpy().copy() for name in sampler.fields}
        batches = []
        for x, y, index in loader:
            batches.append(tuple(index.tolist()))
            loss, s = ta.cross_entropy(model(x), y, signals="loss")
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.3 * gradient
            values = {"loss": s.loss}
            if "uncertainty" in sampler.needs:
                values["uncertainty"] = sampler.uncertainty(model, x)
            sampler.observe(index, values)
            for name in sampler.fields:
                assert torch.equal(sampler.memory[name][index], values[name])
        yield batches, known


def expected_batches(known: dict[str, np.ndarray], size: int, order: str) -> list[tuple[int, ...]]:
    """Of an epoch, before the batches are permuted."""
    ranks = [slow_ranks(values) for values in known.values()]
    difficulty = [sum(of_one) for of_one in zip(*ranks, strict=True)]
    easy_first = sorted(range(len(difficulty)), key=difficulty.__getitem__)
    return cut(np.array(slow_pairs(difficulty) if order == "mixed" else easy_first), size)


@pytest.mark.parametrize(
    ("by", "order", "size", "pivot", "workers"),
    [
        ("both", "mixed", 4, 0, 2),
        ("both", "mixed", 7, 1, 0),
        ("loss", "mixed", 2, 0, 0),
        ("uncertainty", "easy_to_hard", 4, 0, 0),
    ],
)
def test_training_by_what_the_epoch_before_has_shown(by, order, size, pivot, workers):
    sampler = MixedOrder(46, batch_size=size, pivot=pivot, order=order, by=by, layers="1", std=0.5)
    shuffled, full, seen = ta.samplers.Shuffle(46, batch_size=size), 46 // size, []
    for epoch, (batches, known) in enumerate(train(sampler, 3, workers)):
        seen.append(batches)
        if epoch <= pivot:
            shuffled.set_epoch(epoch)
            assert list(itertools.chain(*batches)) == shuffled.plan().tolist()
            continue
        assert not any(np.isnan(values).any() for values in known.values())
        expected = expected_batches(known, size, order)
        assert batches[full:] == expected[full:]
        assert (batches == expected) == (order == "easy_to_hard") and sorted(batches[:full]) == sorted(expected[:full])
    again = MixedOrder(46, batch_size=size, pivot=pivot, order=order, by=by, layers="1", std=0.5)
    assert [batches for batches, _ in train(again, 3)] == seen


def test_samples_that_sit_out_keep_their_values_and_come_back():
    sampler = MixedOrder(11, batch_size=4, pivot=0, by="loss", drop_last=True)
    missing, latest = set(), np.full(11, np.nan, np.float32)
    for epoch in range(12):
        sampler.set_epoch(epoch)
        if epoch:
            trained = sampler.plan()
            hidden = np.setdiff1d(np.arange(11), trained)
            ranks = np.array(slow_ranks(latest))[trained]
            expected = cut(trained[slow_pairs(ranks.tolist())], 4)
            assert sorted(cut(trained, 4)) == sorted(expected)
            missing.add(tuple(hidden))
        for index in torch.tensor(list(sampler)).split(4):
            loss = torch.cos(index * 1.7 + epoch)
            sampler.observe(index, {"loss": loss})
            latest[index] = loss
        np.testing.assert_array_equal(sampler.memory["loss"].numpy(), latest)
    assert len(missing) > 6 and set(itertools.chain(*missing)) == set(range(11))


def test_samples_without_a_value_count_as_hard():
    sampler = MixedOrder(6, batch_size=2, pivot=0)
    loss, uncertainty = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([4.0, 3.0, torch.nan, 1.0])
    sampler.memory.update(torch.tensor([5, 1, 2, 4]), {"loss": loss, "uncertainty": uncertainty}, 0)
    sampler.set_epoch(1)  # ranks by loss 4 2 1 5 0 3, where 0 and 3 have none; by uncertainty 3 1 4 5 0 2, and 2 too
    assert sorted(map(sorted, cut(sampler.plan(), 2))) == [[0, 1], [2, 5], [3, 4]]  # the sums are 7 3 5 10 0 5


def test_ranks_leave_out_what_fills_no_round():
    """Two ranks of batches of 8 take 48 of 60 samples; from easy to hard too the hardest have their turn."""
    arguments = {"order": "easy_to_hard", "drop_last": True, "rank": 1, "num_replicas": 2}
    sampler, left_out = MixedOrder(60, batch_size=8, pivot=0, by="loss", **arguments), []
    sampler.memory.update(torch.arange(60), {"loss": torch.arange(60.0)}, 0)
    for epoch in range(1, 13):
        sampler.set_epoch(epoch)
        assert len(sampler.plan()) == 48 and (np.diff(sampler.plan()) > 0).all()
        left_out.append(set(range(60)) - set(sampler.plan().tolist()))
        assert list(sampler) == list(itertools.chain(*cut(sampler.plan(), 8)[1::2]))
    assert not set.intersection(*left_out) and len(set.union(*left_out)) > 48


# ---- categories


@pytest.mark.parametrize("n", [1, 8, 46])
def test_categories_by_halves_of_both_ranks(n):
    sampler = MixedOrder(n, batch_size=4)
    loss, uncertainty = scores(n, seed=1)
    sampler.memory.update(
        torch.arange(n), {"loss": torch.from_numpy(loss), "uncertainty": torch.from_numpy(uncertainty)}, 0
    )
    known = [i for i in range(n) if not np.isnan(loss[i]) and not np.isnan(uncertainty[i])]
    ranks = [dict(zip(known, slow_ranks([values[i] for i in known]), strict=True)) for values in (loss, uncertainty)]
    low = (len(known) + 1) // 2
    found = sampler.categories()
    for name, halves in (
        ("well_represented", (False, False)),
        ("overfitted", (False, True)),
        ("poorly_labeled", (True, False)),
        ("under_represented", (True, True)),
    ):
        assert found[name].tolist() == [i for i in known if (ranks[0][i] >= low, ranks[1][i] >= low) == halves]
    assert sum(map(len, found.values())) == len(known) and found["overfitted"].dtype == torch.int64


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pivot": 1.0}, InputTypeError, "MixedOrder: pivot must be an int, got float"),
        ({"pivot": -1}, InputValueError, "MixedOrder: pivot must be at least 0, got -1"),
        ({"draws": True}, InputTypeError, "MixedOrder: draws must be an int, got bool"),
        ({"draws": 0}, InputValueError, "MixedOrder: draws must be at least 1, got 0"),
        ({"order": "hard"}, InputValueError, "MixedOrder: order must be 'mixed' or 'easy_to_hard', got 'hard'"),
        ({"by": "entropy"}, InputValueError, "MixedOrder: by must be one of both, loss, uncertainty, got 'entropy'"),
        ({"data": 1 << 40}, InputValueError, f"MixedOrder: data must have at most {1 << 31} samples, got {1 << 40}"),
        ({"batch_size": 0}, InputValueError, "MixedOrder: batch_size must be at least 1, got 0"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error) as caught:
        MixedOrder(**{"data": 8, "batch_size": 2} | arguments)
    assert str(caught.value) == message


def test_what_is_missing_is_named():
    sampler = MixedOrder(8, batch_size=2, pivot=1)
    with pytest.raises(InputValueError) as caught:
        sampler.uncertainty(network(), torch.zeros(2, 6))
    expected = "given to MixedOrder, the names of the layers to make noisy"
    assert str(caught.value) == f"MixedOrder.uncertainty: layers must be {expected}, got None"
    sampler.set_epoch(2)
    with pytest.raises(RuntimeError) as caught:
        list(sampler)
    expected = "after the pivot, can't be planned before loss and uncertainty of samples have been observed"
    assert str(caught.value) == f"MixedOrder: epoch 2, {expected}"
    with pytest.raises(InputValueError) as caught:
        MixedOrder(8, batch_size=2, by="loss").categories()
    assert str(caught.value) == "MixedOrder.categories: by must be 'both', got 'loss'"


def test_staleness_is_the_age_of_what_a_plan_is_made_from():
    sampler = MixedOrder(40, batch_size=10, pivot=0, by="loss")
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for index in torch.tensor(list(sampler)).split(10):
            sampler.observe(index, {"loss": torch.rand(10)})
    # two plans, each of values that are 1, 2, 3 and 4 steps old
    assert sampler.counters()["staleness"] == pytest.approx(2.5)
    assert ta.samplers.Shuffle(40, batch_size=10).counters()["staleness"] == 0
