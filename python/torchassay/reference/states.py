"""Rows of which a slice of the classes is at hand: the state of a slice, how states merge, what a row's state gives.

The slices are chunks of the vocabulary of a linear head, or what the ranks of a process group hold. A state is what
`rows` calls one, with the tops as they are in the input and the sums of `options.Options`: with v the capped logits,
over all classes of the slice but its top k,

    R = sum e_j     T = sum e_j d_j     Q = sum e_j^2     S = sum (slope_j e_j)^2
    e_j = e^-d_j     d_j = (v_u - v_j) / temperature

and of the part of a target that label smoothing spreads over all classes, b_j = w_j label_smoothing / C, of all slices'
C: rest = sum b_j, gap = sum b_j (v_u - v_j), and top = b_k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchassay.options import Options
from torchassay.reference.options import capped, inverse_of
from torchassay.reference.rows import (
    State,
    by_class,
    exp_difference,
    labels,
    row_sum,
    rows_of,
    scaled,
    state,
    unlabelled,
)
from torchassay.scores import BIT, ROW_SIGNALS, STATS

# Of a state, the last three under label smoothing.
NUMBERS = ("m", "u", "R", "T", "Q", "S", "x_y", "rest", "gap", "top")
PLAIN = 7  # so many without


class Slice(NamedTuple):
    """The state of a slice; every field is [N]."""

    m: Tensor  # the largest logit of the slice
    u: Tensor  # the second largest
    R: Tensor
    T: Tensor
    Q: Tensor
    S: Tensor
    x_y: Tensor  # the target's logit, if its class is in the slice
    rest: Tensor
    gap: Tensor
    top: Tensor
    k: Tensor  # int64, the class of m, or ~k where the slice holds the target's class

    @classmethod
    def of(cls, numbers: Tensor, k: Tensor) -> Slice:
        """The state that `flat` gave."""
        nothing = torch.zeros_like(numbers[0])
        return cls(*numbers, *[nothing] * (len(NUMBERS) - len(numbers)), k)

    def flat(self, smoothed: bool) -> tuple[Tensor, Tensor]:
        """As the ops hand it on: numbers [7 or 10, N] and k [N]."""
        return torch.stack(self[: len(NUMBERS) if smoothed else PLAIN]), self.k


def row_states(
    input: Tensor,  # [..., C, ...], classes first to first + C of total
    target: Tensor | None,  # [...], integer, classes of all slices
    options: Options,  # weight: [C], of the slice
    dim: int,
    first: int,
    total: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The op `row_states`: the state of a slice as `Slice.flat` gives it."""
    x = rows_of(input, dim)
    x = x.reshape(-1, x.shape[-1])
    options = flattened(options)
    inverse = inverse_of(options.temperature)
    v, slope = capped(x, options.softcap)
    k = x.argmax(-1)
    s = state(v, inverse, k)
    at_k = k.unsqueeze(-1)
    S = s.Q
    if options.softcap is not None:
        gone = (v == -torch.inf).scatter(-1, at_k, True)
        lone = s.u == -torch.inf
        d = scaled(v - torch.where(lone, 0, s.u).unsqueeze(-1), by_class(inverse))
        S = row_sum((torch.where(gone, 0, torch.exp(torch.where(gone, 0, d))) * slope) ** 2)
    u = x.scatter(-1, at_k, -torch.inf).amax(-1)
    x_y = rest = gap = top = torch.zeros_like(s.m)
    found = k + first
    if target is not None:
        y = target.reshape(-1).long() - first
        here = (y >= 0) & (y < x.shape[-1]) & (y + first != ignore_index)
        x_y = torch.where(here, x.gather(-1, torch.where(here, y, 0).unsqueeze(-1)).squeeze(-1), 0)
        found = torch.where(here, ~found, found)
    if options.label_smoothing > 0:
        w = x.new_ones(x.shape[-1]) if options.weight is None else options.weight.to(x.dtype)
        b = (options.label_smoothing / total * w).expand_as(x)
        top = b.gather(-1, at_k).squeeze(-1)
        b = b.scatter(-1, at_k, 0)
        rest = row_sum(b)
        reference = torch.where(s.u == -torch.inf, 0, s.u).unsqueeze(-1)
        gap = row_sum(torch.where(b == 0, 0, b * (reference - v)))
    flat = Slice(x.gather(-1, at_k).squeeze(-1), u, s.R, s.T, s.Q, S, x_y, rest, gap, top, found)
    return flat.flat(options.label_smoothing > 0)


def merge_states(numbers: Tensor, k: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The op `merge_states`: the state of all slices, [P, 7 or 10, N] and [P, N] in the order of their classes."""
    parts = [Slice.of(*part) for part in zip(numbers, k, strict=True)]
    return _merged(parts, flattened(options)).flat(len(numbers[0]) > PLAIN)


def _merged(parts: list[Slice], options: Options) -> Slice:
    inverse = inverse_of(options.temperature)
    all = parts[0]
    for part in parts[1:]:
        all = _merge(all, part, options.softcap, inverse)
    return all


def _merge(a: Slice, b: Slice, softcap: float | None, inverse: float | Tensor) -> Slice:
    """The state of two slices: the larger top wins, the first of equals; the other joins the rest."""
    later = b.m > a.m
    m, loser = torch.where(later, b.m, a.m), torch.where(later, a.m, b.m)
    kept = torch.where(later, b.u, a.u)
    u = torch.where(loser > kept, loser, kept)
    v_u = capped(u, softcap)[0]

    def distance(to: Tensor) -> Tensor:  # of a second or a top from u, 0 where there is none
        return torch.where(to == -torch.inf, 0, v_u - capped(to, softcap)[0])

    rest, gap, sums = 0, 0, [0, 0, 0, 0]
    top = torch.where(later, a.top, b.top)
    slope = capped(loser, softcap)[1]
    one, nothing = torch.ones_like(m), torch.zeros_like(m)
    lone = Slice(loser, loser, one, nothing, one, one * slope * slope, nothing, top, nothing, nothing, a.k)
    for part in (a, b, lone):
        raw = distance(part.u)
        d = scaled(raw, inverse)
        c = torch.where(part.u == -torch.inf, 0, torch.exp(-d))
        d = torch.where(c == 0, 0, d)  # that far below, R d may be infinite
        of_part = (part.R * c, c * (part.T + part.R * d), part.Q * (c * c), part.S * (c * c))
        sums = [total + more for total, more in zip(sums, of_part, strict=True)]
        rest = rest + part.rest
        away = torch.where(part.u == -torch.inf, torch.inf, raw)  # masked classes that have b
        gap = gap + part.gap + torch.where(part.rest == 0, 0, part.rest * away)
    x_y = torch.where(b.k < 0, b.x_y, a.x_y)
    k_a, k_b = _class_of(a.k), _class_of(b.k)
    poisoned = a.R.isnan() | a.m.isnan()
    k = torch.where(poisoned | ~(later | b.R.isnan() | b.m.isnan()), k_a, k_b)
    k = torch.where((a.k < 0) | (b.k < 0), ~k, k)
    return Slice(m, u, *sums, x_y, rest, gap, torch.where(later, b.top, a.top), k)


def _class_of(k: Tensor) -> Tensor:
    return torch.where(k < 0, ~k, k)


def finish_states(
    numbers: Tensor,  # [P, 7 or 10, N]
    k: Tensor,  # [P, N]
    target: Tensor | None,  # [N], integer
    own: Tensor | None,  # [N], the weights of the targets' classes; 1 if None
    options: Options,  # but for the weight, of which only is read whether there is one
    total: int,
    ignore_index: int,
    signals: int,  # bits of scores.BIT and scores.STATS
) -> list[Tensor]:
    """The op `finish_states`: as `option_scores`, from the states of slices that together hold all ``total`` classes.

    Where `needs_sweep`, the norm of the gradient is no matter of these sums: it is the root of the sum of the slices'
    squares of `option_grads` with an upstream of 1, and NaN here.
    """
    options = flattened(options)
    inverse = inverse_of(options.temperature)
    a = _merged([Slice.of(*part) for part in zip(numbers, k, strict=True)], options)
    m, u = capped(a.m, options.softcap)[0], capped(a.u, options.softcap)[0]
    lone = u == -torch.inf
    g, z = torch.where(lone, 0, scaled(m - u, inverse)), exp_difference(m, u, inverse)
    r = z * a.R + (m - m)
    s = State(m, _class_of(a.k), u, g, z, a.R, a.T, a.Q, r, 1 / (1 + r))
    found = unlabelled(s, inverse)
    rest = beta = torch.zeros_like(r)
    if target is not None:
        _, ignored, outside = labels(target, total, ignore_index)
        outside = outside | ((a.k >= 0) & ~ignored)  # no slice has its class

        def known(value: Tensor) -> Tensor:
            return value.masked_fill(outside, torch.nan).masked_fill(ignored, 0)

        weight = (1 - options.label_smoothing) * (torch.ones_like(r) if own is None else own.to(r.dtype))
        log_c = torch.log1p(r)
        x_y = capped(a.x_y, options.softcap)[0]
        gap, e_y = scaled(m - x_y, inverse), exp_difference(m, x_y, inverse)
        top = x_y == m
        b_rest = a.rest + torch.where(top, 0, weight)
        spread = torch.where(a.rest == 0, 0, scaled(a.gap, inverse) + a.rest * g)
        b_gap = spread + torch.where(top | (weight == 0), 0, weight * gap)
        extra = 2 * options.z_loss * found["lse"]
        whole = b_rest + a.top + torch.where(top, weight, 0)
        rest, beta = known(b_rest + extra), known(whole + extra)
        found["loss"] = known(whole * log_c + b_gap + options.z_loss * found["lse"] ** 2)
        if signals & BIT["grad_norm"]:
            found["grad_norm"] = known(scaled(_norm(a, s, x_y, e_y, weight, extra, options, total), inverse))
        found["target_margin"] = known(torch.where(top, found["margin"], torch.expm1(-gap) * s.c))
    outputs = [found[name] for name in ROW_SIGNALS if signals & BIT[name]]
    if signals & STATS:
        outputs.append(torch.stack([m, u, z, r, rest, found["mu"], beta]))
    return outputs


def needs_sweep(options: Options) -> bool:
    """Whether the norm of the gradient takes a second look at the logits: its sums would cancel near the target."""
    return options.label_smoothing > 0 and (options.weight is not None or options.softcap is not None)


def _norm(
    a: Slice, s: State, x_y: Tensor, e_y: Tensor, weight: Tensor, extra: Tensor, options: Options, total: int
) -> Tensor:
    """The norm of beta p - b by the capped logits, times their slopes; without the factor of the temperature."""
    top, not_y = x_y == s.m, 1 + s.r - e_y
    miss = torch.where(top, s.r, not_y) * s.c
    if needs_sweep(options):
        return torch.full_like(s.r, torch.nan)
    if options.softcap is not None:
        slope_m, slope_y = capped(a.m, options.softcap)[1], capped(a.x_y, options.softcap)[1]
        top = a.x_y == a.m  # far beyond the cap others have its capped value, but not its slope
        left = slope_m**2 + (s.z**2 * a.S - (e_y * slope_y) ** 2)
        others = torch.where(top, s.z * torch.sqrt(a.S), torch.sqrt(left.clamp(min=0))) * s.c
        return torch.hypot(slope_y * (extra - (weight + extra) * miss), (weight + extra) * others)
    squares = 1 + (s.z**2 * s.Q - e_y**2)  # of all but the label, which is not the top, times (1 + r)^2
    if options.label_smoothing > 0:
        n = max(total - 1, 1)
        beta = 1 + extra
        off = beta * miss - options.label_smoothing / total * (total - 1)
        variance = torch.where(top, s.z**2 * s.Q, squares) * s.c**2 - miss**2 / n
        return torch.sqrt((extra - off) ** 2 + off**2 / n + beta**2 * variance.clamp(min=0))
    if options.z_loss == 0:
        like = s.z * torch.sqrt(s.R**2 + s.Q)
        return weight * torch.where(top, like, torch.sqrt(not_y**2 + squares)) * s.c
    others = torch.where(top, s.z * torch.sqrt(s.Q), torch.sqrt(squares)) * s.c
    return torch.hypot(extra - (weight + extra) * miss, (weight + extra) * others)


def flattened(options: Options) -> Options:
    """The options of rows [N]."""
    by_row = options.temperature
    return options._replace(temperature=by_row.reshape(-1)) if isinstance(by_row, Tensor) else options
