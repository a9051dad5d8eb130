"""The state of a row, its signals and its gradient: the ops `row_scores` and `row_grads`.

Per row of logits: the largest value m (class k, the lowest index on ties), the second largest u, and over all classes
but k, relative to u,

    R = sum e^(x_j - u)      T = sum e^(x_j - u) (u - x_j)      Q = sum e^(2 (x_j - u))

The top class stays out of the sums, so nothing cancels against 1; the rest is relative to its own maximum, so nothing
underflows however confident the row is. With g = m - u, z = e^-g, r = z R and t = z (T + g R) every signal follows
without subtracting nearly equal numbers: see `row_scores`. The kernels compute the same formulas.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchassay.scores import BIT, ROW_SIGNALS, STATS

STATS_ROWS = 6  # m, u, z, r, miss = 1 - p_y, mu = t / (1 + r)


class State(NamedTuple):
    """What a row's signals are made of; every field is [...], the shape of the input without its class dimension."""

    m: Tensor  # the largest logit
    k: Tensor  # its class, int64
    u: Tensor  # the second largest logit, -inf if there is none
    g: Tensor  # m - u (over the temperature, as x - u in the sums), 0 if there is no u
    z: Tensor  # e^-g, 0 if there is no u
    R: Tensor  # the three sums over all classes but k, 0 if there is no u
    T: Tensor
    Q: Tensor
    r: Tensor  # z R, NaN for a row with NaN or +inf and for a row of -inf
    c: Tensor  # 1 / (1 + r), the probability of k


def exp_difference(a: Tensor, b: Tensor, inverse: float | Tensor = 1.0) -> Tensor:
    """e^((b - a) inverse) for b <= a, with the rounding errors of the difference taken along; 0 at b = -inf."""
    gone = b == -torch.inf
    b = torch.where(gone, a, b)
    if a.dtype != torch.float64 and not _is_one(inverse):
        return torch.where(gone, 0, torch.exp((b.double() - a.double()) * inverse).to(a.dtype))
    difference = a - b
    back = difference - a
    error = (a - (difference - back)) - (b + back)
    return torch.where(gone, 0, torch.exp(-difference * inverse) * (1 - error.detach() * inverse))


def _is_one(inverse: float | Tensor) -> bool:
    return not isinstance(inverse, Tensor) and inverse == 1.0


def scaled(difference: Tensor, inverse: float | Tensor) -> Tensor:
    """A difference of two logits, by the inverse of the temperature; of tops far apart the scaling costs no digit."""
    return difference * (inverse.to(difference.dtype) if isinstance(inverse, Tensor) else inverse)


def by_class(inverse: float | Tensor) -> float | Tensor:
    """What belongs to a row, for every class of it."""
    return inverse.unsqueeze(-1) if isinstance(inverse, Tensor) else inverse


def state(x: Tensor, inverse: float | Tensor = 1.0, k: Tensor | None = None) -> State:  # [..., C]
    """The state of every row of ``x``, differentiable in ``x``: u is only a point of reference, so it is detached.

    Args:
        inverse: of the temperature; a tensor [...] is float64.
        k: the top class, where ``x`` alone does not tell: of logits that were distinct before they were capped.
    """
    if k is None:
        m, k = x.max(-1)
    else:
        m = x.gather(-1, k.unsqueeze(-1)).squeeze(-1)
    rest = x.scatter(-1, k.unsqueeze(-1), -torch.inf)
    u = rest.detach().amax(-1)
    lone = u == -torch.inf
    gone = rest == -torch.inf  # the top and masked classes: exactly 0 in every sum, also in the gradient
    d = torch.where(gone, 0, scaled(rest - torch.where(lone, 0, u).unsqueeze(-1), by_class(inverse)))
    e = torch.where(gone, 0, torch.exp(d))
    R, T, Q = row_sum(e), -row_sum(e * torch.where(e == 0, 0, d)), row_sum(e * e)  # d may be infinite there
    g, z = torch.where(lone, 0, scaled(m - u, inverse)), exp_difference(m, u, inverse)
    r = z * R + (m - m)  # m - m is 0, and NaN for a top of +-inf
    return State(m, k, u, g, z, R, T, Q, r, 1 / (1 + r))


def unlabelled(s: State, inverse: float | Tensor = 1.0) -> dict[str, Tensor]:
    """The signals that need no target, and mu = t / (1 + r), by which the entropy exceeds log1p(r)."""
    log_c = torch.log1p(s.r)  # -log p_k
    mu = s.z * (s.T + s.g.clamp(max=1000) * s.R) * s.c  # z is 0 there, and g R might overflow
    return {
        "entropy": log_c + mu,
        "lse": scaled(s.m, inverse) + log_c,
        "confidence": s.c,
        "least_confidence": s.r * s.c,
        "margin": torch.where(s.u == -torch.inf, 1, -torch.expm1(-s.g)) * s.c,
        "gini": s.c**2 * (s.r * (s.r + 2) - s.z**2 * s.Q),  # z^2 Q is at most r and r^2: nothing cancels
        "prediction": s.k,
        "mu": mu,
    }


def row_scores(
    input: Tensor,  # [..., C, ...]
    target: Tensor | None,  # [...], integer
    dim: int,
    ignore_index: int,
    signals: int,  # bits of scores.BIT and scores.STATS
) -> list[Tensor]:
    """The op behind `score`: one tensor for each bit of ``signals``, in the order of the bits; differentiable.

    ``prediction`` is int64; ``STATS`` is [STATS_ROWS, ...]; the others are shaped like the input without ``dim``.
    An ignored row has 0 in whatever needs the target, a row whose target is out of range NaN.
    """
    x = rows_of(input, dim)
    s = state(x)
    found = unlabelled(s)
    miss = torch.zeros_like(s.r)
    if target is not None:
        y, ignored, outside = labels(target, x.shape[-1], ignore_index)
        x_y = x.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        top, e_y = y == s.k, exp_difference(s.m, x_y)
        gap = torch.where(top, 0, s.m - x_y)  # no gradient through m - m: 1 - 1 would hide the small rest
        like = s.z * torch.sqrt(s.R * s.R + s.Q)
        unlike = torch.sqrt((1 + s.r - e_y) ** 2 + 1 + s.z * s.z * s.Q - e_y * e_y)

        def known(value: Tensor) -> Tensor:
            return value.masked_fill(outside, torch.nan).masked_fill(ignored, 0)

        miss = known(torch.where(top, s.r, 1 + s.r - e_y) * s.c)
        found["loss"] = known(gap + torch.log1p(s.r))
        found["grad_norm"] = known(torch.where(top, like, unlike) * s.c)
        found["target_margin"] = known(torch.where(top, found["margin"], torch.expm1(-gap) * s.c))
    outputs = [found[name] for name in ROW_SIGNALS if signals & BIT[name]]
    if signals & STATS:
        outputs.append(torch.stack([s.m, s.u, s.z, s.r, miss, found["mu"]]))
    return outputs


def row_grads(
    input: Tensor,  # [..., C, ...]
    target: Tensor | None,  # [...], integer
    stats: Tensor | None,  # [STATS_ROWS, ...], or None to compute it here, differentiable in the input
    grad_loss: Tensor | None,  # [...]
    grad_entropy: Tensor | None,  # [...]
    dim: int,
    ignore_index: int,
) -> Tensor:
    """The op behind every backward: d (sum grad_loss loss + grad_entropy entropy) / d input, in the input's dtype.

        dx_j = gL p_j + gH p_j (a_j - mu),   dx_y = -gL miss + gH p_y (a_y - mu),   a_j = m - x_j

    where p_j = e^(x_j - u) z / (1 + r) for every class but the top, because m - x_j of a confident row is rounded and
    x_j - u of the classes that matter is not.
    """
    x = rows_of(input, dim)
    if stats is None:
        stats = row_scores(input, target, dim, ignore_index, BIT["entropy"] | STATS)[-1]
    m, u, z, r, miss, mu = (row.unsqueeze(-1) for row in stats)
    c = 1 / (1 + r)
    gone, lone = x == -torch.inf, u == -torch.inf
    d = torch.where(gone, 0, x - torch.where(lone, m, u).detach())
    top = (d > 0) | (lone & ~gone)  # at a tie d = 0, z = 1: both forms agree
    p = torch.where(gone, 0, torch.where(top, c, torch.exp(torch.where(top, 0, d)) * z * c))
    p = p + (r - r)  # a poisoned row is NaN throughout
    dx = torch.zeros_like(p)
    if grad_loss is not None:
        y, ignored, outside = (label.unsqueeze(-1) for label in labels(target, x.shape[-1], ignore_index))
        gL = grad_loss.to(x.dtype).unsqueeze(-1)
        dx_loss = (gL * p).scatter(-1, y, -gL * miss).masked_fill(outside, torch.nan)
        dx = torch.where(ignored, 0, dx_loss)  # also where an ignored row is poisoned
    if grad_entropy is not None:
        a = torch.where(gone | top, 0, m - x)
        dx = dx + grad_entropy.to(x.dtype).unsqueeze(-1) * p * (a - mu)
    return dx.to(input.dtype).movedim(-1, dim)


def rows_of(input: Tensor, dim: int) -> Tensor:
    """The input with its classes last, half precision widened to float32."""
    x = input.movedim(dim, -1)
    return x if x.dtype == torch.float64 else x.float()


def row_sum(x: Tensor) -> Tensor:
    """The sum over the last dimension, in an order that depends on its size alone.

    torch cuts a single long sum among its threads, so that a row alone would differ from the same row in a batch.
    """
    whole = x.shape[-1] // 1024 * 1024
    tail = x[..., whole:].sum(-1)
    return x[..., :whole].unflatten(-1, (-1, 1024)).sum(-1).sum(-1) + tail if whole else tail


def labels(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The target made safe to gather with, where it is ignored, and where it is out of range."""
    ignored = target == ignore_index
    outside = ((target < 0) | (target >= classes)) & ~ignored
    return torch.where(ignored | outside, 0, target).long(), ignored, outside
