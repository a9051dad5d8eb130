"""Signals over several draws of a row of logits: noisy copies of it, or the members of an ensemble.

Per draw t, p_t = softmax(y_t) with entropy H_t; over the draws, pbar = (1/T) sum_t p_t:

    noisy_entropy = (1/T) sum_t H_t     predictive_entropy = H(pbar)     mutual_information = their difference (BALD)

The top class stays out of every sum, as in `rows`, so nothing cancels against 1 however confident the row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay.philox import Purpose, Word, normals
from torchassay.reference.rows import row_sum, rows_of, state
from torchassay.scores import BIT, NOISY_SIGNALS


def draw_scores(
    input: Tensor,  # [..., C, ...]; of an ensemble [T, ..., C, ...]
    top: Tensor | None,  # [N], the largest logit of each row; None: an ensemble
    std: Tensor | float,  # [N], or one number for all
    scale: Tensor | float,  # 1 / temperature, likewise
    row_id: Tensor | None,  # [N] int64; None: 0 to N - 1
    seed: Word,
    draws: int,
    dim: int,
    signals: int,  # bits of scores.BIT
) -> list[Tensor]:
    """The op behind the signals of `NOISY_SIGNALS`: one tensor for each bit of ``signals``, in the order of the bits.

    A noisy copy is y_j = ((x_j - top) + std eps_j) scale with eps_j of `philox.normals`; what is added to all logits of
    a row changes nothing, and far from 0 it would cost digits. Each output is shaped like a row's place in the input.
    """
    x = rows_of(input, dim)
    shape, classes = x.shape[:-1] if top is not None else x.shape[1:-1], x.shape[-1]
    if top is None:
        members = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    else:
        x = x.reshape(-1, classes) - top.unsqueeze(-1)
        if row_id is None:
            row_id = torch.arange(len(x), device=x.device)
        std, scale = (n.unsqueeze(-1) if isinstance(n, Tensor) else n for n in (std, scale))

    def draw(t: int) -> Tensor:
        if top is None:
            return members[t]
        return (x + std * normals(row_id, seed, Purpose.LOGIT_NOISE, t, classes).to(x.dtype)) * scale

    total, mean = 0, 0
    for t in range(draws):
        y = draw(t)
        s = state(y)
        total = total + torch.log1p(s.r) + s.z * (s.T + s.g.clamp(max=1000) * s.R) * s.c
        mean = mean + torch.exp(y - s.m.unsqueeze(-1)) * s.c.unsqueeze(-1)
    found = {"noisy_entropy": total / draws, "predictive_entropy": _entropy(mean / draws)}
    found["mutual_information"] = (found["predictive_entropy"] - found["noisy_entropy"]).clamp(min=0)
    return [found[name].reshape(shape) for name in NOISY_SIGNALS if signals & BIT[name]]


def _entropy(p: Tensor) -> Tensor:  # [N, C]
    """Of the top class from the others' sum s: -p_k ln p_k = p_k log1p(s / p_k), where 1 - p_k would lose it."""
    p_k, k = p.max(-1)
    rest = p.scatter(-1, k.unsqueeze(-1), 0)
    return p_k * torch.log1p(row_sum(rest) / p_k) - row_sum(torch.xlogy(rest, rest))
