"""Trainings with `OnlineImportance` without a model, and whether draws are as likely as they should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
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


def chi_square(counts: np.ndarray, chances: np.ndarray) -> float:
    """How many standard deviations the statistic lies above its mean; cells without a chance must be empty."""
    assert counts[chances == 0].sum() == 0
    counts, chances = counts[chances > 0], chances[chances > 0]
    expected = counts.sum() * chances / chances.sum()
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)
