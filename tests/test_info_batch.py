"""InfoBatch against its rule in slow loops, and its weights over many draws."""

import math

import numpy as np
import pytest
import torch
import torchassay as ta
from torch.utils.data import DataLoader, TensorDataset
from torchassay.data import Indexed
from torchassay.samplers.info_batch import InfoBatch, prune

N = 83


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # the model is tiny


def made():
    """Data and a model, always the same."""
    random = torch.Generator().manual_seed(10)
    dataset = Indexed(TensorDataset(torch.randn(N, 5, generator=random), torch.arange(N) % 4))
    torch.manual_seed(11)
    return dataset, torch.nn.Linear(5, 4)


def train(sampler, dataset, model, until, batches=None, workers=0):
    """Train on from where the sampler is, at most so many batches: each batch's epoch, samples and weights."""
    seen = []
    loader = DataLoader(dataset, batch_size=sampler.batch_size, sampler=sampler, num_workers=workers)
    for epoch in range(sampler.epoch, until):
        sampler.set_epoch(epoch)
        for x, y, index, weight in loader:
            if batches is not None and len(seen) == batches:
                return seen
            assert weight.dtype == torch.float32
            loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=sampler.needs)
            model.zero_grad()
            (weight * loss).mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            sampler.observe(index, s)
            seen.append((epoch, index.tolist(), weight.tolist()))
    return seen


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


def test_the_weighted_gradient_is_that_of_all_samples_on_average():
    """Its mean over 10,000 plans along a fixed random direction, for a fixed model."""
    (dataset, model), draws = made(), 10_000
    x, y, _ = zip(*dataset, strict=True)
    x, y = torch.stack(x).double(), torch.stack(y)
    model = model.double()
    direction = torch.randn(4, 5, generator=torch.Generator().manual_seed(12)).double()
    found = model(x).softmax(1) - torch.nn.functional.one_hot(y, 4)
    each = ((found[:, :, None] * x[:, None]) * direction).sum((1, 2)).detach().numpy()
    score = ta.score(model(x), y, signals="loss").loss.float().numpy()
    rng, sums = np.random.default_rng(13), np.zeros(draws)
    for k in range(draws):
        order, weight = prune(score, 0.5, rng)
        sums[k] = (each[order] * weight).sum()
    assert abs(sums.mean() - each.sum()) < 3 * sums.std() / math.sqrt(draws)
    assert sums.std() > 0


def test_a_training_leaves_out_what_is_learned_until_the_last_epochs():
    """Against the losses as they were observed; a sample that was never seen has the score 3."""
    dataset, model = made()
    sampler = InfoBatch(dataset, batch_size=10, epochs=12, r=0.6, seed=3)
    assert sampler.needs == ("loss",) and len(sampler) == N
    score = np.full(N, 3, np.float32)
    for epoch in range(13):
        sampler.set_epoch(epoch)
        below = {i for i in range(N) if score[i] < score.mean(dtype=float)}
        seen = train(sampler, dataset, model, until=epoch + 1)
        weight = {i: w for _, index, weights in seen for i, w in zip(index, weights, strict=True)}
        assert sum(len(index) for _, index, _ in seen) == len(weight) == len(sampler)
        if epoch == 0 or epoch >= 10:  # 12.5 % of 12 epochs, rounded up, and what comes after them
            assert len(weight) == N and set(weight.values()) == {1.0}
        else:
            assert set(range(N)) - below < set(weight) and 0 < len(below) < N
            assert all(w == pytest.approx(2.5 if i in below else 1) for i, w in weight.items())
            assert abs(len(below & set(weight)) - 0.4 * len(below)) < 1
        score = sampler.memory["loss"].numpy().copy()
        assert np.isfinite(score).all()
    assert sampler.memory.visits.int().min() < sampler.memory.visits.int().max() == 13


def test_a_sample_without_a_loss_has_the_score_3():
    for loss, below in ((1.0, {0, 1}), (9.0, {2, 3})):
        sampler = InfoBatch(4, batch_size=2, epochs=8)
        sampler.memory.update(torch.arange(2), {"loss": torch.full((2,), loss)}, 0)
        sampler.set_epoch(1)
        weight = dict(sampler)
        assert set(range(4)) - below < set(weight) and len(weight) == 3
        assert all(w == (2 if i in below else 1) for i, w in weight.items())


@pytest.mark.parametrize(
    ("epochs", "delta", "whole"), [(200, 0.875, 25), (8, 0.875, 1), (4, 0.875, 1), (10, 0.7, 3), (5, 1, 0), (5, 0, 5)]
)
def test_the_last_epochs_are_whole(epochs, delta, whole):
    sampler = InfoBatch(4, batch_size=2, epochs=epochs, delta=delta)
    sampler.memory.update(torch.arange(4), {"loss": torch.tensor([1.0, 1.0, 1.0, 9.0])}, 0)
    found = []
    for epoch in range(1, epochs + 2):
        sampler.set_epoch(epoch)
        found.append(len(sampler) == 4)
    assert found == [epoch >= epochs - whole for epoch in range(1, epochs + 2)]


@pytest.mark.parametrize("at", [0, 4, 9, 13, 20])
def test_goes_on_where_it_was(tmp_path, at):
    expected = train(InfoBatch(N, batch_size=10, epochs=5), *made(), until=5)
    dataset, model = made()
    first = InfoBatch(N, batch_size=10, epochs=5)
    begun = train(first, dataset, model, until=5, batches=at)
    first.save(tmp_path / "state")
    second = InfoBatch(N, batch_size=10, epochs=5)
    second.load(tmp_path / "state")
    assert begun + train(second, dataset, model, until=5, workers=2 if at == 13 else 0) == expected


def test_a_state_of_other_arguments_is_refused():
    state = InfoBatch(N, batch_size=10, epochs=5).state_dict()
    with pytest.raises(ValueError) as raised:
        InfoBatch(N, batch_size=10, epochs=5, r=0.25).load_state_dict(state)
    assert str(raised.value) == "InfoBatch: the state must have r=0.25, got 0.5"
    InfoBatch(N, batch_size=10, epochs=9).load_state_dict(state)


def test_a_sample_costs_at_most_20_bytes():
    sampler = InfoBatch(1000, batch_size=10, epochs=5)
    kept = sampler.memory.nbytes + sum(
        value.nbytes for value in vars(sampler).values() if isinstance(value, np.ndarray)
    )
    assert 18 * 1000 <= kept <= 20 * 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.0}, "epochs must be an int, got float"),
        ({"r": 1}, "r must be in [0, 1), got 1"),
        ({"r": -0.5}, "r must be in [0, 1), got -0.5"),
        ({"delta": 87.5}, "delta must be in [0, 1], got 87.5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        InfoBatch(5, **({"batch_size": 2, "epochs": 3} | options))
    assert str(raised.value) == f"InfoBatch: {message}"
