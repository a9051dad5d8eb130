"""Samples for heads that are no softmax, and their exact signals: the textbook's definitions in many digits."""

from __future__ import annotations

from functools import lru_cache

import mpmath
import torch
from torch import Tensor

LOSSES = ("mse", "l1", "huber")


def binary(x: Tensor, y: Tensor, w: Tensor | None = None) -> dict[str, Tensor]:
    """Loss, entropy and grad_norm, float64 [N], of logits and targets [N, L] and weights [L]."""
    rows = []
    with mpmath.workdps(60 if x.abs().max() < 90 else 340):  # 1 - p of the surest, and 20 more
        weights = [1.0] * x.shape[1] if w is None else w.tolist()
        for logits, targets in zip(x.double().tolist(), y.double().tolist(), strict=True):
            loss, entropy, squares = mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(0)
            for value, t, weight in zip(logits, targets, weights, strict=True):
                p = 1 / (1 + mpmath.exp(-mpmath.mpf(value)))
                log_p, log_q, t = mpmath.log(p), mpmath.log(1 - p), mpmath.mpf(t)
                loss -= weight * t * log_p + (1 - t) * log_q
                entropy -= p * log_p + (1 - p) * log_q
                squares += (weight * t * (p - 1) + (1 - t) * p) ** 2
            rows.append([float(loss), float(entropy), float(mpmath.sqrt(squares))])
    columns = torch.tensor(rows, dtype=torch.float64).T
    return dict(zip(("loss", "entropy", "grad_norm"), columns, strict=True))


def regression(x: Tensor, y: Tensor, kind: str, delta: float = 1.0) -> dict[str, Tensor]:
    """Loss and grad_norm, float64 [N], of outputs and targets [N, D]."""
    rows = []
    with mpmath.workdps(40):
        for outputs, targets in zip(x.double().tolist(), y.double().tolist(), strict=True):
            loss, squares = mpmath.mpf(0), mpmath.mpf(0)
            for value, t in zip(outputs, targets, strict=True):
                d = mpmath.mpf(value) - mpmath.mpf(t)
                if kind == "mse":
                    here, slope = d**2, 2 * d
                elif kind == "l1":
                    here, slope = abs(d), mpmath.sign(d)
                elif abs(d) < delta:
                    here, slope = d**2 / 2, d
                else:
                    here, slope = delta * (abs(d) - mpmath.mpf(delta) / 2), delta
                loss += here
                squares += mpmath.mpf(slope) ** 2
            rows.append([float(loss), float(mpmath.sqrt(squares))])
    columns = torch.tensor(rows, dtype=torch.float64).T
    return dict(zip(("loss", "grad_norm"), columns, strict=True))


@lru_cache(maxsize=4)  # the tests walk the places of one case before the next
def binary_case(labels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Logits, labels, weights and exact signals: from nearly even to sure; right everywhere, but for one, at random."""
    generator = torch.Generator().manual_seed(labels)
    y = torch.rand(12, labels, generator=generator).round()
    noise = torch.randn(12, labels, generator=generator, dtype=torch.float64)
    size = torch.tensor([0.0, 1e-6, 0.1, 1, 5, 20], dtype=torch.float64)[:, None]
    right = torch.tensor([1.0, 8, 30, 60, 80], dtype=torch.float64)[:, None] + noise[:5].abs()
    x = torch.cat([noise[:6] * size, right * (2 * y[6:11] - 1), 15 * (2 * y[11:] - 1)])
    x[-1, labels // 2] *= -1
    w = torch.rand(labels, generator=generator) * 5
    every = 1 if labels < 200 else 3
    x, y = x[::every].to(dtype), y[::every]
    return x, y, w, binary(x, y, w)


@lru_cache(maxsize=4)
def regression_case(size: int, dtype: torch.dtype, kind: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Outputs, targets and exact signals for delta = 0.75: differences of 0, on both sides of delta, tiny and large."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(6, size, generator=generator).to(dtype)
    y = torch.randn(6, size, generator=generator) + torch.tensor([0.0, 1, 100, 1e4, 0, 0])[:, None]
    y[4] = x[4].float()
    y[5, size // 2 :] = x[5, size // 2 :].float()
    every = 1 if size < 200 else 2
    x, y = x[::every], y[::every]
    return x, y, regression(x, y, kind, 0.75)
