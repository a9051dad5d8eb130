"""OnlineImportance: the algorithm sample by sample, the estimator's mean, pruning, ranks, resume, real training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from torch.utils.data import DataLoader, Dataset
from torchassay.checks import InputTypeError, InputValueError
from torchassay.samplers import OnlineImportance

N = 103
SCORES = np.random.default_rng(1).gamma(0.7, size=N).astype(np.float32)  # uneven, one for each sample

Score = Callable[[np.ndarray], np.ndarray]


def batches(sampler: OnlineImportance) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices and weights of an epoch's batches, each asked for after the last one was done with."""
    keys = iter(sampler)
    while batch := list(islice(keys, sampler.batch_size)):
        index, weight = zip(*batch, strict=True)
        yield np.array(index), np.array(weight)


def train(sampler: OnlineImportance, until: int, score: Score = lambda index: SCORES[index]) -> list[tuple]:
    """What the sampler gave from where it is to the end of epoch ``until`` - 1: (epoch, indices, weights)."""
    given = []
    for epoch in range(sampler.epoch, until):
        sampler.set_epoch(epoch)
        for index, weight in batches(sampler):
            given.append((epoch, index, weight))
            sampler.observe(torch.from_numpy(index), {sampler.signal: torch.from_numpy(score(index))})
    return given


def chi_square(index: np.ndarray, chances: np.ndarray) -> float:
    """How many standard deviations the statistic lies above its mean."""
    expected = len(index) * chances / chances.sum()
    statistic = ((np.bincount(index, minlength=len(chances)) - expected) ** 2 / expected).sum()
    return (statistic - len(chances) + 1) / math.sqrt(2 * len(chances) - 2)


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


@pytest.mark.parametrize("signal", ["grad_norm", "loss"])
def test_draws_are_in_proportion_to_importance(signal):
    sampler = OnlineImportance(N, batch_size=16, signal=signal, eps=0.0)  # scores stay, so importances do
    train(sampler, 1)
    drawn = np.concatenate([index for _, index, _ in train(sampler, 100)])
    assert abs(chi_square(drawn, SCORES.astype(np.float64))) < 4
    assert chi_square(drawn, np.ones(N)) > 100


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


def estimates(model: Softmax, draws: int, **options) -> tuple[np.ndarray, np.ndarray, list[OnlineImportance]]:
    """Each step's estimate of the mean gradient, and its mean weight, from ranks that train side by side."""
    world = options.pop("num_replicas", 1)
    ranks = [OnlineImportance(N, batch_size=8, seed=5, rank=r, num_replicas=world, **options) for r in range(world)]
    for rank in ranks:
        train(rank, 3, model.score(rank.signal))
    steps = []
    while len(steps) * 8 * world < draws:
        given = [train(rank, rank.epoch + 2, model.score(rank.signal)) for rank in ranks]
        for side_by_side in zip(*given, strict=True):
            assert len({epoch for epoch, _, _ in side_by_side}) == 1
            parts = [(np.mean(w * model.along[index]), np.mean(w)) for _, index, w in side_by_side]
            steps.append(np.mean(parts, axis=0))
    gradient, weight = np.array(steps).T
    return gradient, weight, ranks


@pytest.mark.parametrize("world", [1, 2, 4])  # 103 samples: the ranks' shares differ by one
@pytest.mark.parametrize("signal", ["grad_norm", "loss"])
def test_the_weighted_mean_has_no_bias(signal, world):
    model = Softmax()
    gradient, weight, _ = estimates(model, 10_000, signal=signal, num_replicas=world)
    for found, exact in ((gradient, model.along.mean()), (weight, 1.0)):
        assert abs(found.mean() - exact) < 3 * found.std() / math.sqrt(len(found))


def test_importance_has_less_variance_than_uniform_draws():
    model = Softmax()
    gradient, _, _ = estimates(model, 4000)
    uniform = model.along[np.random.default_rng(6).integers(N, size=(500, 8))].mean(axis=1)
    assert gradient.std() < 0.9 * uniform.std()


def test_without_bias_also_after_pruning():
    model = Softmax()
    gradient, weight, ranks = estimates(model, 10_000, num_replicas=2, keep=0.6, interval=1, min_keep=60)
    left = np.concatenate([np.flatnonzero(rank._active) * 2 + rank._replicas.rank for rank in ranks])
    assert len(left) == 60
    for found, exact in ((gradient, model.along[left].mean()), (weight, 1.0)):
        assert abs(found.mean() - exact) < 3 * found.std() / math.sqrt(len(found))


def test_adaptive_sampling_has_weights_of_one_and_a_bias():
    model = Softmax()
    gradient, weight, _ = estimates(model, 10_000, adaptive=True)
    assert (weight == 1).all()
    norms = model.scores.grad_norm.double().numpy()
    biased = (norms * model.along).sum() / norms.sum()
    sigma = gradient.std() / math.sqrt(len(gradient))
    assert abs(gradient.mean() - biased) < 4 * sigma < abs(gradient.mean() - model.along.mean())
