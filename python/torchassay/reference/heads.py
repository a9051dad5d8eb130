"""Heads that are no softmax over classes: the op `head_scores`, and the public functions in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchassay import checks
from torchassay.reference.rows import row_sum
from torchassay.scores import Scores


def score_binary(
    input: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | None = None,
    signals: Sequence[str] | str | None = None,
) -> Scores:
    """`torchassay.score_binary` in plain torch."""
    names = checks.binary("score_binary", input, target, pos_weight, signals)
    with torch.no_grad():
        return Scores(dict(zip(names, head_scores(input, target, pos_weight, "binary", 1.0, names), strict=True)))


def score_regression(
    input: Tensor,
    target: Tensor,
    *,
    loss: str = "mse",
    delta: float = 1.0,
    signals: Sequence[str] | str | None = None,
) -> Scores:
    """`torchassay.score_regression` in plain torch."""
    names = checks.regression("score_regression", input, target, loss, delta, signals)
    with torch.no_grad():
        return Scores(dict(zip(names, head_scores(input, target, None, loss, delta, names), strict=True)))


def head_scores(
    input: Tensor,  # [N] or [N, L]
    target: Tensor,  # the same shape
    pos_weight: Tensor | None,  # [L] or 0-d; for "binary"
    head: str,  # "binary", "mse", "l1" or "huber"
    delta: float,  # of "huber"
    signals: Sequence[str],  # among loss, entropy and grad_norm
) -> list[Tensor]:
    """The op behind `score_binary` and `score_regression`: one tensor [N] for each of ``signals``."""
    x = input if input.dtype == torch.float64 else input.float()
    y = target.to(x.dtype)
    if x.dim() == 1:
        x, y = x.unsqueeze(-1), y.unsqueeze(-1)
    if head == "binary":
        w = 1 if pos_weight is None else pos_weight.to(x.dtype)
        loss, entropy, slope = _binary(x, y, w)
    else:
        loss, slope = _regression(x, y, head, delta)
        entropy = loss  # is not among the signals
    found = {"loss": loss, "entropy": entropy}
    return [_norm(slope) if name == "grad_norm" else row_sum(found[name]) for name in signals]


def _binary(x: Tensor, y: Tensor, w: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, entropy and slope of the loss for every logit.

    With a = |x|, e = e^-a and c = 1 / (1 + e) the likelier side has probability c and loss log1p(e), the other e c and
    a + log1p(e): for labels of 0 and 1 nothing is subtracted.
    """
    a = x.abs() + (x - x)  # an infinite logit is NaN
    e = torch.exp(-a)
    c, log1p = 1 / (1 + e), torch.log1p(e)
    rest = e * c
    on, off = y * w, 1 - y
    loss = (off + on) * log1p + torch.where(x > 0, off, on) * a
    return loss, log1p + a * rest, off * torch.where(x > 0, c, rest) - on * torch.where(x > 0, rest, c)


def _regression(x: Tensor, y: Tensor, loss: str, delta: float) -> tuple[Tensor, Tensor]:
    """Loss, and the size of its slope, for every output."""
    a = (x - y).abs()
    if loss == "mse":
        return a * a, a + a
    if loss == "l1":
        return a, torch.where(a > 0, 1, a)  # NaN passes
    inner = a.clamp(max=delta)
    return inner * (a - inner / 2), inner


def _norm(slope: Tensor) -> Tensor:
    """The norm of every row, of slopes relative to the largest: their squares would underflow or overflow."""
    size = slope.abs().amax(-1, keepdim=True)
    size = torch.where((size > 0) & (size < torch.inf), size, 1)
    return size.squeeze(-1) * torch.sqrt(row_sum((slope / size) ** 2))
