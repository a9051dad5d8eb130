"""The formulas of Katharopoulos and Fleuret (2018) in plain Python, and batches whose scores are given."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import torch
from torchassay.philox import uniforms

NEVER = 1e9  # no tau comes that far


def tau_of(scores: list[float]) -> float:
    """As the paper writes it."""
    g = [score / sum(scores) for score in scores]
    return (1 - sum((p - 1 / len(g)) ** 2 for p in g) / sum(p * p for p in g)) ** -0.5


def drawn(scores: list[float], count: int, seed: int, step: int) -> list[int]:
    """Inverse transform sampling with the documented numbers, each of two 24-bit halves."""
    upto = list(accumulate(scores))
    ids = torch.arange(count)
    high, low = (uniforms(ids + half, seed=seed, step=step).double() for half in (0, 1 << 40))
    return [bisect_right(upto, uniform * upto[-1]) for uniform in (high + low / 2**24).tolist()]


def as_given(model, batch):
    """A batch's second column is its scores."""
    return {"grad_norm": batch[1], "loss": batch[1]}


def columns(scores: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (number, score)."""
    return list(zip(torch.arange(len(scores)).split(size), scores.split(size), strict=True))
