"""OnlineImportance: the algorithm sample by sample, the estimator's mean, options, pruning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from importance import SCORES, N, Score, batches, chi_square, train
from torchassay.checks import InputTypeError, InputValueError
from torchassay.samplers import OnlineImportance


def test_the_algorithm_sample_by_sample():
    """Its box in floats: q of the first epoch, p and weights of each batch, one renewal a sample, eps."""
    generator = np.random.default_rng(2)
    sampler = OnlineImportance(N, batch_size=10, seed=3, alpha=0.3, eps=0.01)
    q: dict[int, float] = {}
    repeated = 0
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for index, weight in batches(sampler):
            if epoch == 0:
                assert (weight == 1).all()
            else:
                p = [q[i] / math.fsum(q.values()) for i in index]
                np.testing.assert_allclose(weight, [1 / (N * chance) for chance in p], rtol=1e-6)
            g = generator.gamma(1.0, size=len(index)).astype(np.float32)  # augmented: other ones for the same sample
            sampler.observe(torch.from_numpy(index), {"grad_norm": torch.from_numpy(g)})
            for i, score in dict(zip(index, g, strict=True)).items():  # of the same index the last one
                q[i] = 0.3 * q[i] + 0.7 * float(score) if i in q else float(score)
            repeated += len(index) - len(set(index))
        found = sampler.memory["importance"]
        np.testing.assert_allclose(found, [q[i] for i in range(N)], rtol=1e-5)
        eps = 0.01 * math.fsum(q.values()) / N
        q = {i: value + eps for i, value in q.items()}
    assert repeated > 20


def test_the_first_epoch_is_a_shuffled_one():
    sampler = OnlineImportance(N, batch_size=10)
    assert len(sampler) == N and sampler.needs == ("grad_norm",)
    given = train(sampler, 1)
    assert [len(index) for _, index, _ in given] == [*[10] * 10, 3]
    order = np.concatenate([index for _, index, _ in given])
    assert sorted(order) == list(range(N)) and sorted(order) != order.tolist()
    assert torch.equal(sampler.memory["importance"], torch.from_numpy(SCORES))
    other = OnlineImportance(N, batch_size=10, seed=1)
    assert [i for i, _ in other] != order.tolist()


def test_the_first_epoch_is_the_first_that_is_trained():
    sampler = OnlineImportance(N, batch_size=10)
    sampler.set_epoch(4)
    given = train(sampler, 6)
    assert sorted(i for epoch, index, _ in given if epoch == 4 for i in index) == list(range(N))
    assert all((weight == 1).all() == (epoch == 4) for epoch, _, weight in given)


def test_batches_drawn_ahead_know_what_was_observed_before_them():
    sampler = OnlineImportance(N, batch_size=10, alpha=0.0, eps=0.0)
    train(sampler, 1)
    sampler.set_epoch(1)
    q = SCORES.copy()
    ahead = batches(sampler)
    waiting = [next(ahead) for _ in range(3)]
    for index, weight in waiting:
        np.testing.assert_allclose(weight, q.sum(dtype=np.float64) / (N * q[index]), rtol=1e-5)
    for index, _ in waiting:
        q[index] = 2 * SCORES[index]
        sampler.observe(torch.from_numpy(index), {"grad_norm": torch.from_numpy(q[index])})
    index, weight = next(ahead)
    np.testing.assert_allclose(weight, q.sum(dtype=np.float64) / (N * q[index]), rtol=1e-5)


@pytest.mark.parametrize("signal", ["grad_norm", "loss"])
def test_draws_are_in_proportion_to_importance(signal):
    sampler = OnlineImportance(N, batch_size=16, signal=signal, eps=0.0)  # scores stay, so importances do
    train(sampler, 1)
    drawn = np.concatenate([index for _, index, _ in train(sampler, 100)])
    assert abs(chi_square(np.bincount(drawn, minlength=N), SCORES.astype(np.float64))) < 4
    assert chi_square(np.bincount(drawn, minlength=N), np.ones(N)) > 100


# ---- the estimator


class Softmax:
    """A linear classifier in float64 that stays as it is, and its gradients along one random direction."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
        w = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
        y = torch.randint(4, (N,), generator=generator)
        direction = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        logits = x @ w
        self.loss = F.cross_entropy(logits, y, reduction="none")
        self.along = np.array(
            [(torch.autograd.grad(loss, w, retain_graph=True)[0] * direction).sum().item() for loss in self.loss]
        )
        self.scores = ta.score(logits.detach().float(), y, signals=["loss", "grad_norm"])

    def score(self, signal: str) -> Score:
        return lambda index: getattr(self.scores, signal).numpy()[index]


@pytest.fixture(scope="module")
def model() -> Softmax:
    return Softmax()


def estimates(model: Softmax, draws: int, **options) -> tuple[np.ndarray, np.ndarray, list[OnlineImportance]]:
    """Each step's estimate of the mean gradient, and its mean weight, from ranks that train side by side."""
    world = options.pop("num_replicas", 1)
    ranks = [OnlineImportance(N, batch_size=24, seed=5, rank=r, num_replicas=world, **options) for r in range(world)]
    for rank in ranks:
        train(rank, 3, model.score(rank.signal))
    steps, drawn = [], 0
    while drawn < draws:
        given = [train(rank, rank.epoch + 2, model.score(rank.signal)) for rank in ranks]
        for side_by_side in zip(*given, strict=True):
            parts = [(np.mean(w * model.along[index]), np.mean(w)) for _, index, w in side_by_side]
            steps.append(np.mean(parts, axis=0))
            drawn += sum(len(index) for _, index, _ in side_by_side)
    gradient, weight = np.array(steps).T
    return gradient, weight, ranks


@pytest.mark.parametrize("world", [1, 2, 4])  # 103 samples: the ranks' shares differ by one
@pytest.mark.parametrize("signal", ["grad_norm", "loss"])
def test_the_weighted_mean_has_no_bias(model, signal, world):
    gradient, weight, _ = estimates(model, 10_000, signal=signal, num_replicas=world)
    for found, exact in ((gradient, model.along.mean()), (weight, 1.0)):
        assert abs(found.mean() - exact) < 3 * found.std() / math.sqrt(len(found))


def test_importance_has_less_variance_than_uniform_draws(model):
    """24 draws a step, and 7 in the last of each epoch."""
    generator = np.random.default_rng(6)
    gradient, _, _ = estimates(model, 4000)
    uniform = [model.along[generator.integers(N, size=size)].mean() for size in [24, 24, 24, 24, 7] * 20]
    assert gradient.std() < 0.9 * np.std(uniform)


def test_without_bias_also_after_pruning(model):
    gradient, weight, ranks = estimates(model, 10_000, num_replicas=2, keep=0.6, interval=1, min_keep=60)
    left = np.concatenate([np.flatnonzero(rank._active) * 2 + rank._replicas.rank for rank in ranks])
    assert len(left) == 60
    for found, exact in ((gradient, model.along[left].mean()), (weight, 1.0)):
        assert abs(found.mean() - exact) < 3 * found.std() / math.sqrt(len(found))


def test_adaptive_sampling_has_weights_of_one_and_a_bias(model):
    gradient, weight, _ = estimates(model, 10_000, adaptive=True)
    assert (weight == 1).all()
    norms = model.scores.grad_norm.double().numpy()
    biased = (norms * model.along).sum() / norms.sum()
    sigma = gradient.std() / math.sqrt(len(gradient))
    assert abs(gradient.mean() - biased) < 4 * sigma < abs(gradient.mean() - model.along.mean())


@pytest.mark.parametrize("world", [1, 2])
def test_the_weights_scale_with_what_is_left(world):
    """w = ranks / (N p) by hand, after one pruning that leaves 51 (26 and 26 of 52 and 51) samples."""
    for rank in range(world):
        sampler = OnlineImportance(N, batch_size=10, rank=rank, num_replicas=world, keep=0.5, interval=1)
        train(sampler, 1)
        sampler.set_epoch(1)
        own = np.arange(rank, N, world)
        q = SCORES[own].astype(np.float64) * 1.0
        q += 1e-3 * q.mean()
        left = {1: [52], 2: [26, 26]}[world]  # halves go to the even number
        q = dict(sorted(zip(own, q, strict=True), key=lambda pair: pair[1])[-left[rank] :])
        index, weight = next(batches(sampler))
        np.testing.assert_allclose(weight, [world * sum(q.values()) / (sum(left) * q[i]) for i in index], rtol=1e-5)
        assert len(sampler) == left[rank]


# ---- options and edges


def test_without_replacement_no_batch_holds_a_sample_twice():
    replaced, unreplaced = (OnlineImportance(N, batch_size=40, replacement=r) for r in (True, False))
    assert any(len(set(index)) < len(index) for _, index, _ in train(replaced, 4))
    given = train(unreplaced, 4)
    assert all(len(set(index)) == len(index) for _, index, _ in given)
    later = np.concatenate([index for epoch, index, _ in given if epoch])
    assert chi_square(np.bincount(later, minlength=N), np.ones(N)) > 5
    q = SCORES.astype(np.float64) + 1e-3 * SCORES.astype(np.float64).mean()
    epoch, index, weight = given[3]
    assert epoch == 1
    np.testing.assert_allclose(weight, q.sum() / (N * q[index]), rtol=1e-5)


def test_without_replacement_samples_of_no_importance_fill_up_with_a_weight_of_one():
    score = np.where(np.arange(N) < 5, SCORES, np.float32(0))
    sampler = OnlineImportance(N, batch_size=20, replacement=False, eps=0.0)
    given = train(sampler, 3, lambda index: score[index])
    for epoch, index, weight in given:
        if epoch > 0:
            assert set(index[:5]) <= {0, 1, 2, 3, 4} and (index[5:] >= 5).all()
            assert (weight[5:] == 1).all() and np.isfinite(weight).all()


def test_eps_brings_back_what_had_no_importance():
    score = np.where(np.arange(N) == 7, np.float32(0), SCORES)
    without = train(OnlineImportance(N, batch_size=16, eps=0.0), 30, lambda index: score[index])
    assert sum((index == 7).sum() for _, index, _ in without) == 1  # in the first epoch
    again = train(OnlineImportance(N, batch_size=16, eps=0.1), 30, lambda index: score[index])
    assert sum((index == 7).sum() for _, index, _ in again) > 1


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_are_uniform_where_all_importances_are_zero(replacement):
    sampler = OnlineImportance(N, batch_size=16, replacement=replacement)
    later = [given for given in train(sampler, 60, lambda index: np.zeros(len(index), np.float32)) if given[0]]
    assert all((weight == 1).all() for _, _, weight in later)
    assert chi_square(np.bincount(np.concatenate([index for _, index, _ in later]), minlength=N), np.ones(N)) < 4


@pytest.mark.parametrize("score", [math.nan, math.inf, -1.0])
def test_a_score_that_is_none_leaves_the_importance_as_it_was(score):
    """In the first epoch there is none yet: the sample gets the mean of the others."""
    sampler = OnlineImportance(N, batch_size=10, eps=0.0, alpha=0.0)
    train(sampler, 1, lambda index: np.where(index == 7, np.float32(score), SCORES[index]))
    sampler.set_epoch(1)
    known = np.delete(SCORES, 7).astype(np.float64)
    expected = SCORES.copy()
    expected[7] = known.mean()
    np.testing.assert_allclose(sampler.memory["importance"], expected, rtol=1e-6)
    train(sampler, 3, lambda index: np.full(len(index), score, np.float32))
    np.testing.assert_allclose(sampler.memory["importance"], expected, rtol=1e-6)


def test_without_any_score_draws_are_uniform():
    sampler = OnlineImportance(N, batch_size=16)
    later = [given for given in train(sampler, 40, lambda index: np.full(len(index), math.nan)) if given[0]]
    assert all((weight == 1).all() for _, _, weight in later)
    assert chi_square(np.bincount(np.concatenate([index for _, index, _ in later]), minlength=N), np.ones(N)) < 4


def test_samples_of_dropped_batches_can_be_drawn():
    sampler = OnlineImportance(N, batch_size=10, drop_last=True)
    assert len(sampler) == 100
    first = np.concatenate([index for _, index, _ in train(sampler, 1)])
    missing = sorted(set(range(N)) - set(first))
    assert len(missing) == 3
    later = np.concatenate([index for _, index, _ in train(sampler, 20)])
    assert len(later) == 1900 and set(missing) <= set(later)


def test_clip():
    free, clipped = (OnlineImportance(N, batch_size=16, clip=clip) for clip in (None, 1.5))
    largest = 0.0
    for (_, index, weight), (_, same, bounded) in zip(train(free, 3), train(clipped, 3), strict=True):
        assert np.array_equal(index, same) and np.array_equal(bounded, np.minimum(weight, 1.5))
        largest = max(largest, weight.max())
    assert largest > 1.5


def test_pruning_by_interval():
    sampler = OnlineImportance(N, batch_size=10, keep=0.7, interval=2, min_keep=40)
    given = train(sampler, 10)
    sizes = [sum(len(index) for epoch, index, _ in given if epoch == e) for e in range(10)]
    assert sizes == [103, 103, 72, 72, 50, 50, 40, 40, 40, 40]
    for epoch, size in enumerate(sizes):
        drawn = np.concatenate([index for e, index, _ in given if e == epoch])
        largest = np.sort(np.argsort(SCORES, kind="stable")[-size:])
        assert set(drawn) <= set(largest)


def test_eps_is_relative_to_those_that_are_left():
    score = np.where(np.arange(N) < 53, np.float32(1), np.float32(100))
    sampler = OnlineImportance(N, batch_size=10, keep=0.5, eps=0.01)
    train(sampler, 2, lambda index: score[index])
    before, left = sampler.memory["importance"].clone(), torch.from_numpy(sampler._active.copy())
    assert left.sum() == 52 and before[left].mean() > 1.5 * before.mean()
    sampler.set_epoch(2)
    added = sampler.memory["importance"] - before
    np.testing.assert_allclose(added, np.full(N, 0.01 * before[left].mean()), rtol=1e-3)


def test_of_equal_importances_the_first_samples_leave():
    sampler = OnlineImportance(8, batch_size=4, keep=0.5)
    given = train(sampler, 6, lambda index: np.ones(len(index), np.float32))
    assert {i for epoch, index, _ in given if epoch == 1 for i in index} <= {4, 5, 6, 7}
    assert [len(index) for _, index, _ in given] == [4, 4, 4, 2, 1, 1, 1]


def test_arguments():
    for options, message in (
        ({"signal": "entropy"}, "signal must be 'grad_norm' or 'loss', got 'entropy'"),
        ({"alpha": 1.0}, "alpha must be in [0, 1), got 1.0"),
        ({"eps": -0.1}, "eps must be at least 0 and finite, got -0.1"),
        ({"eps": math.inf}, "eps must be at least 0 and finite, got inf"),
        ({"clip": 0.0}, "clip must be above 0 or None, got 0.0"),
        ({"keep": 0.0}, "keep must be in (0, 1] or None, got 0.0"),
        ({"keep": 1.5}, "keep must be in (0, 1] or None, got 1.5"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"min_keep": 0}, "min_keep must be at least 1, got 0"),
        ({"rank": 0, "num_replicas": N + 1}, "data must have at least one sample for each of 104 ranks, got 103"),
    ):
        with pytest.raises(InputValueError) as error:
            OnlineImportance(N, batch_size=10, **options)
        assert str(error.value) == f"OnlineImportance: {message}"
    for options, message in (
        ({"interval": 1.5}, "interval must be an int, got float"),
        ({"min_keep": True}, "min_keep must be an int, got bool"),
    ):
        with pytest.raises(InputTypeError) as error:
            OnlineImportance(N, batch_size=10, **options)
        assert str(error.value) == f"OnlineImportance: {message}"


def test_a_missing_signal():
    sampler = OnlineImportance(N, batch_size=10)
    index, _ = next(batches(sampler))
    with pytest.raises(InputValueError) as error:
        sampler.observe(torch.from_numpy(index), {"loss": torch.zeros(10)})
    assert str(error.value) == "SampleMemory.update: scores must hold 'grad_norm', got loss"


def test_steps_go_on_where_epochs_get_shorter():
    sampler = OnlineImportance(N, batch_size=10, keep=0.5)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen = int(sampler.memory.last_step.max())
        for index, _ in batches(sampler):
            sampler.observe(torch.from_numpy(index), {"grad_norm": torch.from_numpy(SCORES[index])})
        assert sampler.memory.last_step[torch.from_numpy(index)].min() > seen


def test_a_loop_that_fetches_the_batches_of_two_steps_at_once_goes_on():
    """As loops that accumulate gradients do: each of the two is drawn with another lag."""

    def go_on(sampler: OnlineImportance, pairs: int) -> list[list[int]]:
        ahead, seen = batches(sampler), []
        for _ in range(pairs):
            for index in [next(ahead)[0], next(ahead)[0]]:
                sampler.observe(torch.from_numpy(index), {"grad_norm": 1.0 + torch.from_numpy(index) % 7})
                seen.append(index.tolist())
        return seen

    whole, stopped, resumed = (OnlineImportance(80, batch_size=10, seed=3) for _ in range(3))
    stream = go_on(whole, 4)
    assert go_on(stopped, 1) == stream[:2]
    resumed.load_state_dict(stopped.state_dict())
    assert go_on(resumed, 3) == stream[2:]
