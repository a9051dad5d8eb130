"""Scores of an ensemble: over its members' predictions, and of their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchassay import checks
from torchassay.reference.draws import draw_scores
from torchassay.reference.rows import row_scores, row_sum, rows_of
from torchassay.scores import Scores


def ensemble_score(
    input: Tensor,
    target: Tensor | None = None,
    *,
    signals: Sequence[str] | str = ("predictive_entropy", "mutual_information"),
    draws_dim: int = 0,
    dim: int = -1,
    ignore_index: int = -100,
) -> Scores:
    """`torchassay.ensemble_score` in plain torch."""
    call = checks.ensemble("ensemble_score", input, target, signals, draws_dim, dim, ignore_index)
    members = input.detach().movedim(call.draws_dim, 0)
    noisy = draw_scores(members, None, 0.0, 1.0, None, 0, len(members), call.dim, call.noisy) if call.noisy else []
    if not call.mean:
        return call.scores(noisy, [])
    log_probs = mean_log_probs(members, call.dim)
    return call.scores(noisy, row_scores(log_probs, target, log_probs.dim() - 1, ignore_index, call.mean))


def mean_log_probs(
    members: Tensor,  # [T, ..., C, ...]
    dim: int,
) -> Tensor:
    """log mean_t softmax(x_t), [..., C], in the dtype that is computed in; -inf where no member gives any probability.

    Of a class: base + log mean_t e^(d_t - base) / z_t, with d_t = x_t - max x_t, z_t = sum e^d_t and base = max_t d_t.
    A large number is rounded twice, in d and in the sum, and members are added in their order: torch would choose the
    order by where the class lies.
    """
    x = rows_of(members, dim).contiguous()
    d = x - x.amax(-1, keepdim=True)  # NaN throughout a poisoned row
    base = d.amax(0)
    base = torch.where(base == -torch.inf, 0, base)
    total = 0
    for member in d:
        z = row_sum(torch.exp(member)).unsqueeze(-1)
        total = total + torch.exp(member - base) / z
    return base + torch.log(total / len(d))
