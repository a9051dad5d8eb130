"""The loss under class weights, label smoothing or class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay.reference.rows import labels, row_scores, row_sum, rows_of, state
from torchassay.scores import BIT, ROW_SIGNALS


def option_scores(
    input: Tensor,  # [..., C, ...]
    target: Tensor,  # [...], integer, or the input's shape, float
    dim: int,
    weight: Tensor | None,  # [C]
    ignore_index: int,
    label_smoothing: float,
    signals: int,
) -> list[Tensor]:
    """`row_scores` for a loss with class weights, label smoothing or class probabilities.

    The loss is sum_j b_j (lse - x_j) = B log1p(r) + sum_j b_j (m - x_j) for a non-negative b with sum B, its gradient
    B p - b; in the entry of the top class, B p_k - b_k = sum_{j != k} b_j - B (1 - p_k), nothing cancels.
    """
    x = rows_of(input, dim)
    classes = x.shape[-1]
    w = torch.ones(classes, dtype=x.dtype, device=x.device) if weight is None else weight.to(x.dtype)
    spread = label_smoothing / classes * w
    labelled = not target.is_floating_point()
    ignored = torch.zeros((), dtype=torch.bool, device=x.device)
    if labelled:
        y, ignored, outside = labels(target, classes, ignore_index)
        x = torch.where(ignored.unsqueeze(-1), 0, x)  # what an ignored row holds must not reach the gradient
        w_y = ((1 - label_smoothing) * w[y]).masked_fill(outside, torch.nan).unsqueeze(-1)
        b = spread.expand_as(x).scatter_add(-1, y.unsqueeze(-1), w_y)
    else:
        b = spread + (1 - label_smoothing) * target.movedim(dim, -1).to(x.dtype) * w
    s = state(x)
    total = row_sum(b)
    gap = (s.m.unsqueeze(-1) - x).scatter(-1, s.k.unsqueeze(-1), 0)
    if labelled:
        gap = torch.where(b == 0, 0, gap)  # classes outside the target, also those at -inf
    loss = total * torch.log1p(s.r) + row_sum(b * gap)
    found = {"loss": loss.masked_fill(ignored, 0)}
    if signals & BIT["grad_norm"]:
        k = s.k.unsqueeze(-1)
        gone = x == -torch.inf
        d = torch.where(gone, 0, x - torch.where(s.u == -torch.inf, s.m, s.u).unsqueeze(-1))
        p = torch.where(gone, 0, torch.exp(d.clamp(max=0))) * (s.z * s.c).unsqueeze(-1)
        at_top = row_sum(b.scatter(-1, k, 0)) - total * s.r * s.c
        g = (total.unsqueeze(-1) * p - b).scatter(-1, k, at_top.unsqueeze(-1))
        size = g.abs().amax(-1, keepdim=True)
        size = torch.where(size > 0, size, 1)  # the squares of a confident row would underflow
        found["grad_norm"] = (size.squeeze(-1) * torch.sqrt(row_sum((g / size) ** 2))).masked_fill(ignored, 0)
    rest = signals & ~(BIT["loss"] | BIT["grad_norm"])
    others = row_scores(input, target if labelled else None, dim, ignore_index, rest)
    found |= zip((name for name in ROW_SIGNALS if rest & BIT[name]), others, strict=True)
    return [found[name] for name in ROW_SIGNALS if signals & BIT[name]]
