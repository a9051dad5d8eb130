"""The loss under class weights, label smoothing, class probabilities, a temperature, capped logits and a z-loss.

The formulas are those of `torchassay.options.Options`. With B = sum b, the loss is B log1p(r) + sum_j b_j (m - v_j) /
temperature + z_loss lse^2, a sum of non-negative numbers, and its gradient by x_j

    slope_j / temperature (beta p_j - b_j)      beta = B + 2 z_loss lse      slope_j = 1 - tanh^2(x_j / softcap)

In the entry of the top class k, beta p_k - b_k = rest - beta (1 - p_k) with rest = sum_{j != k} b_j + 2 z_loss lse,
nothing cancels where p_k is near 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchassay.options import Options
from torchassay.reference.rows import by_class, labels, row_sum, rows_of, scaled, state, unlabelled
from torchassay.scores import BIT, ROW_SIGNALS, STATS, TARGET_BITS

STATS_ROWS = 7  # m, u, z, r, rest, mu, beta


class Target(NamedTuple):
    """What a row's loss asks for."""

    b: Tensor  # [..., C]
    y: Tensor | None  # [...], None for probabilities
    ignored: Tensor  # bool, [...] or one for all
    outside: Tensor


def inverse_of(temperature: float | Tensor) -> float | Tensor:
    """1 / temperature, a tensor [...] in float64: its rounding would be multiplied by every gap."""
    return 1.0 / (temperature.double() if isinstance(temperature, Tensor) else temperature)


def capped(x: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | float]:
    """v and its slope. A class at -inf stays there: it is masked; and +inf is no number under a cap either."""
    if softcap is None:
        return x, 1.0
    e = torch.exp(-2 * (x.double() / softcap).abs())
    slope = 4 * e / (1 + e) ** 2  # 1 - tanh^2, which would cancel far from 0
    return torch.where(x.isinf(), x, softcap * torch.tanh(x / softcap)), slope.to(x.dtype)


def _target(
    target: Tensor,
    shape: torch.Size,
    x: Tensor,
    dim: int,
    ignore_index: int,
    options: Options,
    first: int = 0,
    total: int | None = None,
) -> Target:
    """Of classes ``first`` to ``first`` + C of ``total``: all there are, if None."""
    classes = x.shape[-1]
    total = classes if total is None else total
    w = torch.ones(classes, dtype=x.dtype, device=x.device) if options.weight is None else options.weight.to(x.dtype)
    spread = options.label_smoothing / total * w
    if target.is_floating_point():
        b = spread + (1 - options.label_smoothing) * target.movedim(dim, -1).to(x.dtype) * w
        nowhere = torch.zeros((), dtype=torch.bool, device=x.device)
        return Target(b, None, nowhere, nowhere)
    y, ignored, outside = labels(target, total, ignore_index)
    y = y - first
    here = (y >= 0) & (y < classes)
    y = torch.where(here, y, 0)
    own = torch.where(here, (1 - options.label_smoothing) * w[y], 0)
    b = spread.expand(shape).scatter_add(-1, y.unsqueeze(-1), own.unsqueeze(-1))
    return Target(b, y, ignored, outside)


def option_scores(
    input: Tensor,  # [..., C, ...]
    target: Tensor | None,  # [...], integer, or the input's shape, float
    options: Options,
    dim: int,
    ignore_index: int,
    signals: int,
) -> list[Tensor]:
    """The op behind every loss with options: as `row_scores`, and ``STATS`` is [7, ...]: m, u, z, r, rest, mu, beta."""
    x = rows_of(input, dim)
    inverse = inverse_of(options.temperature)
    v, _ = capped(x, options.softcap)
    s = whole = state(v, inverse, x.argmax(-1))
    found = unlabelled(s, inverse)
    rest = beta = torch.zeros_like(s.r)
    if target is not None and signals & (TARGET_BITS | STATS):
        t = _target(target, x.shape, x, dim, ignore_index, options)

        def known(value: Tensor) -> Tensor:
            return value.masked_fill(t.outside, torch.nan).masked_fill(t.ignored, 0)

        if t.y is not None:  # what an ignored row holds must not reach the gradient
            x = torch.where(t.ignored.unsqueeze(-1), 0, x)
        v, slope = capped(x, options.softcap)
        s = state(v, inverse, x.argmax(-1))
        k = s.k.unsqueeze(-1)
        log_c = torch.log1p(s.r)
        lse = scaled(s.m, inverse) + log_c
        gap = raw_gap = scaled((s.m.unsqueeze(-1) - v).scatter(-1, k, 0), by_class(inverse))
        if t.y is not None:
            gap = torch.where(t.b == 0, 0, gap)  # classes outside the target, also those at -inf
        total, others = row_sum(t.b), row_sum(t.b.scatter(-1, k, 0))
        extra = 2 * options.z_loss * lse
        rest, beta = known(others + extra), known(total + extra)
        found["loss"] = known(total * log_c + row_sum(t.b * gap) + options.z_loss * lse * lse)
        if signals & BIT["grad_norm"]:
            top = _top_entry(s.r, s.c, others + extra, total + extra, t.b.gather(-1, k).squeeze(-1))
            g = (total + extra).unsqueeze(-1) * _softmax(v, s.m, s.u, s.z, s.r, by_class(inverse)) - t.b
            g = g.scatter(-1, k, top.unsqueeze(-1)) * slope
            size = g.abs().amax(-1, keepdim=True)
            size = torch.where(size > 0, size, 1)  # the squares of a confident row would underflow
            norm = scaled(size.squeeze(-1) * torch.sqrt(row_sum((g / size) ** 2)), inverse)
            found["grad_norm"] = known(norm)
        if signals & BIT["target_margin"]:
            y_gap = raw_gap.gather(-1, t.y.unsqueeze(-1)).squeeze(-1)  # that of a class of weight 0 too
            margin = unlabelled(s, inverse)["margin"]
            found["target_margin"] = known(torch.where(t.y == s.k, margin, torch.expm1(-y_gap) * s.c))
    outputs = [found[name] for name in ROW_SIGNALS if signals & BIT[name]]
    if signals & STATS:
        outputs.append(torch.stack([whole.m, whole.u, whole.z, whole.r, rest, found["mu"], beta]))
    return outputs


def _softmax(v: Tensor, m: Tensor, u: Tensor, z: Tensor, r: Tensor, inverse: float | Tensor) -> Tensor:
    """p of every class from its difference to u, the top's 1 / (1 + r)."""
    m, u, z, c = (row.unsqueeze(-1) for row in (m, u, z, 1 / (1 + r)))
    gone, lone = v == -torch.inf, u == -torch.inf
    d = torch.where(gone, 0, v - torch.where(lone, m, u).detach())
    top = (v > _middle(m, u)) & ~gone  # at a tie z = 1: both forms agree
    p = torch.where(gone, 0, torch.where(top, c, torch.exp(scaled(d.clamp(max=0), inverse)) * z * c))
    return p + (r - r).unsqueeze(-1)  # a poisoned row is NaN throughout


def _middle(m: Tensor, u: Tensor) -> Tensor:
    """Only the top lies above: halfway, because v may have been computed with another rounding elsewhere."""
    return torch.where(u == -torch.inf, u, u + (m - u) / 2).detach()


def _top_entry(r: Tensor, c: Tensor, rest: Tensor, beta: Tensor, b: Tensor) -> Tensor:
    """beta p_k - b_k from whichever of p_k and 1 - p_k is small."""
    return torch.where(c > 0.5, rest - beta * (r * c), beta * c - b)


def option_grads(
    input: Tensor,  # [..., C, ...]
    target: Tensor | None,
    options: Options,
    stats: Tensor,  # [7, ...]
    grad_loss: Tensor | None,  # [...]
    grad_entropy: Tensor | None,  # [...]
    dim: int,
    ignore_index: int,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """d (sum grad_loss loss + grad_entropy entropy) / d input, in the input's dtype.

    The input's classes may be those from ``first`` on of ``total``: the stats are of all.

    dx_j = slope_j / temperature (gL (beta p_j - b_j) + gH p_j (a_j - mu)),   a_j = (m - v_j) / temperature
    """
    x = rows_of(input, dim)
    v, slope = capped(x, options.softcap)
    inverse = inverse_of(options.temperature)
    m, u, z, r, rest, mu, beta = stats
    c = 1 / (1 + r)
    p = _softmax(v, m, u, z, r, by_class(inverse))
    gone = v == -torch.inf
    k = x.argmax(-1, keepdim=True)
    is_top = v.gather(-1, k).squeeze(-1) > _middle(m, u)  # a slice may lack the top class
    dx = torch.zeros_like(p)
    if grad_loss is not None:
        t = _target(target, x.shape, x, dim, ignore_index, options, first, total)
        entry = beta.unsqueeze(-1) * p - t.b
        top = _top_entry(r, c, rest, beta, t.b.gather(-1, k).squeeze(-1))
        entry = entry.scatter(-1, k, torch.where(is_top, top, entry.gather(-1, k).squeeze(-1)).unsqueeze(-1))
        entry = grad_loss.to(x.dtype).unsqueeze(-1) * entry
        entry = entry.masked_fill(t.outside.unsqueeze(-1), torch.nan)
        dx = torch.where(t.ignored.unsqueeze(-1), 0, entry)  # also where an ignored row is poisoned
    if grad_entropy is not None:
        a = torch.where(gone | (p == 0), 0, scaled(m.unsqueeze(-1) - v, by_class(inverse)))  # it may have overflowed
        a = a.scatter(-1, k, torch.where(is_top, 0, a.gather(-1, k).squeeze(-1)).unsqueeze(-1))
        dx = dx + grad_entropy.to(x.dtype).unsqueeze(-1) * p * (a - mu.unsqueeze(-1))
    dx = torch.where(dx == 0, 0, scaled(dx * slope, by_class(inverse)))  # ignored rows are 0, also poisoned ones
    return dx.to(input.dtype).movedim(-1, dim)
