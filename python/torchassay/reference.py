"""The definition of correct: every public function in plain torch, for any float dtype, device and stride.

Per row of logits: the largest value m (class k, the lowest index on ties), the second largest u, and over all classes
but k, relative to u,

    R = sum e^(x_j - u)      T = sum e^(x_j - u) (u - x_j)      Q = sum e^(2 (x_j - u))

The top class stays out of the sums, so nothing cancels against 1; the rest is relative to its own maximum, so nothing
underflows however confident the row is. With g = m - u, z = e^-g, r = z R and t = z (T + g R) every signal follows
without subtracting nearly equal numbers: see `row_scores`. The kernels compute the same formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchassay import checks
from torchassay.scores import BIT, SIGNALS, STATS, Scores


class State(NamedTuple):
    """What a row's signals are made of; every field is [...], the shape of the input without its class dimension."""

    m: Tensor  # the largest logit
    k: Tensor  # its class, int64
    u: Tensor  # the second largest logit, -inf if there is none
    g: Tensor  # m - u, 0 if there is no u
    z: Tensor  # e^-g, 0 if there is no u
    R: Tensor  # the three sums over all classes but k, 0 if there is no u
    T: Tensor
    Q: Tensor
    r: Tensor  # z R, NaN for a row with NaN or +inf and for a row of -inf
    c: Tensor  # 1 / (1 + r), the probability of k


def exp_difference(a: Tensor, b: Tensor) -> Tensor:
    """e^(b - a) for b <= a, with the rounding error of the difference (two-sum) taken along; 0 at b = -inf."""
    gone = b == -torch.inf
    b = torch.where(gone, a, b)
    difference = a - b
    back = difference - a
    error = (a - (difference - back)) - (b + back)
    return torch.where(gone, 0, torch.exp(-difference) * (1 - error.detach()))


def state(x: Tensor) -> State:  # [..., C]
    """The state of every row of ``x``, differentiable in ``x``: u is only a point of reference, so it is detached."""
    m, k = x.max(-1)
    rest = x.scatter(-1, k.unsqueeze(-1), -torch.inf)
    u = rest.detach().amax(-1)
    lone = u == -torch.inf
    gone = rest == -torch.inf  # the top and masked classes: exactly 0 in every sum, also in the gradient
    d = torch.where(gone, 0, rest - torch.where(lone, 0, u).unsqueeze(-1))
    e = torch.where(gone, 0, torch.exp(d))
    R, T, Q = _sum(e), -_sum(e * d), _sum(e * e)
    g, z = torch.where(lone, 0, m - u), exp_difference(m, u)
    r = z * R + (m - m)  # m - m is 0, and NaN for a top of +-inf
    return State(m, k, u, g, z, R, T, Q, r, 1 / (1 + r))


def row_scores(
    input: Tensor,  # [..., C, ...]
    target: Tensor | None,  # [...], integer
    dim: int,
    ignore_index: int,
    signals: int,  # bits of scores.BIT and scores.STATS
) -> list[Tensor]:
    """The op behind `score`: one tensor for each bit of ``signals``, in the order of the bits; differentiable.

    ``prediction`` is int64; ``STATS`` is [6, ...]: m, u, z, r, miss = 1 - p_y, mu = t / (1 + r); the others are shaped
    like the input without ``dim``. An ignored row has 0 in whatever needs the target, a row whose target is out of
    range NaN.
    """
    x = _rows(input, dim)
    s = state(x)
    log_c = torch.log1p(s.r)  # -log p_k
    mu = s.z * (s.T + s.g.clamp(max=1000) * s.R) * s.c  # z is 0 there, and g R might overflow
    margin = torch.where(s.u == -torch.inf, 1, -torch.expm1(-s.g)) * s.c
    found = {
        "entropy": log_c + mu,
        "lse": s.m + log_c,
        "confidence": s.c,
        "least_confidence": s.r * s.c,
        "margin": margin,
        "prediction": s.k,
    }
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
        found["loss"] = known(gap + log_c)
        found["grad_norm"] = known(torch.where(top, like, unlike) * s.c)
        found["target_margin"] = known(torch.where(top, margin, torch.expm1(-gap) * s.c))
    outputs = [found[name] for name in SIGNALS if signals & BIT[name]]
    if signals & STATS:
        outputs.append(torch.stack([s.m, s.u, s.z, s.r, miss, mu]))
    return outputs


def row_grads(
    input: Tensor,  # [..., C, ...]
    target: Tensor | None,  # [...], integer
    stats: Tensor | None,  # [6, ...], or None to compute it here, differentiable in the input
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
    x = _rows(input, dim)
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
    x = _rows(input, dim)
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
    total = _sum(b)
    gap = (s.m.unsqueeze(-1) - x).scatter(-1, s.k.unsqueeze(-1), 0)
    if labelled:
        gap = torch.where(b == 0, 0, gap)  # classes outside the target, also those at -inf
    loss = total * torch.log1p(s.r) + _sum(b * gap)
    found = {"loss": loss.masked_fill(ignored, 0)}
    if signals & BIT["grad_norm"]:
        k = s.k.unsqueeze(-1)
        gone = x == -torch.inf
        d = torch.where(gone, 0, x - torch.where(s.u == -torch.inf, s.m, s.u).unsqueeze(-1))
        p = torch.where(gone, 0, torch.exp(d.clamp(max=0))) * (s.z * s.c).unsqueeze(-1)
        at_top = _sum(b.scatter(-1, k, 0)) - total * s.r * s.c
        g = (total.unsqueeze(-1) * p - b).scatter(-1, k, at_top.unsqueeze(-1))
        size = g.abs().amax(-1, keepdim=True)
        size = torch.where(size > 0, size, 1)  # the squares of a confident row would underflow
        found["grad_norm"] = (size.squeeze(-1) * torch.sqrt(_sum((g / size) ** 2))).masked_fill(ignored, 0)
    rest = signals & ~(BIT["loss"] | BIT["grad_norm"])
    others = row_scores(input, target if labelled else None, dim, ignore_index, rest)
    found |= zip((name for name in SIGNALS if rest & BIT[name]), others, strict=True)
    return [found[name] for name in SIGNALS if signals & BIT[name]]


def score(
    input: Tensor,
    target: Tensor | None = None,
    *,
    signals: Sequence[str] | str | None = None,
    dim: int = -1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    history=None,
) -> Scores:
    """`torchassay.score` in plain torch, but for the history's share of its window."""
    extra = "" if history is None else checks.signal_of(history, "score")
    call = checks.score("score", input, target, signals, dim, weight, ignore_index, label_smoothing, extra)
    outputs = _outputs("score", input.detach(), target, call, weight, ignore_index, label_smoothing)
    scores = call.scores(outputs)
    return scores if history is None else call.with_probability(scores, outputs, history, target, ignore_index)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    dim: int | None = None,
    signals: Sequence[str] | str = (),
) -> Tensor | tuple[Tensor, Scores]:
    """`torchassay.cross_entropy` in plain torch, differentiated by autograd."""
    function = "cross_entropy"
    call = checks.cross_entropy(function, input, target, signals, dim, weight, ignore_index, label_smoothing, reduction)
    rows, *outputs = _outputs(function, input, target, call.with_loss(), weight, ignore_index, label_smoothing)
    loss = reduced(rows, input, target, weight, ignore_index, reduction)
    if not signals:
        return loss
    if "loss" in call.names:
        outputs.insert(0, rows)
    return loss, call.scores([output.detach() for output in outputs])


def reduced(
    rows: Tensor,  # [...], the loss of every row
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The rows as `F.cross_entropy` reduces them, in the dtype that it returns.

    The mean is over rows that are not ignored, each counting as the weight of its class; over all rows for class
    probabilities.
    """
    if reduction == "sum":
        rows = rows.sum()
    elif reduction == "mean":
        if target.is_floating_point():
            count = rows.numel()
            rows = rows.sum() / count if count else rows.sum() * torch.nan
        elif weight is None:
            rows = rows.sum() / (target != ignore_index).sum()
        else:
            y, ignored, _ = labels(target, weight.numel(), ignore_index)
            rows = rows.sum() / weight.to(rows.dtype)[y].masked_fill(ignored, 0).sum()
    dtype = input.dtype
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.promote_types(dtype, torch.float32)  # F.cross_entropy is a float32 op under autocast
    if target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
    return rows.to(dtype)


def log_prob(input: Tensor, target: Tensor, *, dim: int = -1, ignore_index: int = -100) -> Tensor:
    """`torchassay.log_prob` in plain torch, differentiated by autograd."""
    function = "log_prob"
    dim, several = checks.log_prob(function, input, target, dim, ignore_index)
    checks.class_range(function, target, input.shape[dim], ignore_index, target.shape[-1] if several else 1)
    if not several:
        return -row_scores(input, target, dim, ignore_index, BIT["loss"])[0]
    x = _rows(input, dim)
    s = state(x)
    y, ignored, outside = labels(target, x.shape[-1], ignore_index)
    gap = torch.where(y == s.k.unsqueeze(-1), 0, s.m.unsqueeze(-1) - x.gather(-1, y))
    loss = gap + torch.log1p(s.r).unsqueeze(-1)
    return -loss.masked_fill(outside, torch.nan).masked_fill(ignored, 0)


def log_prob_entropy(
    input: Tensor, target: Tensor, *, dim: int = -1, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """`torchassay.log_prob_entropy` in plain torch, differentiated by autograd."""
    function = "log_prob_entropy"
    dim, _ = checks.log_prob(function, input, target, dim, ignore_index, several=False)
    checks.class_range(function, target, input.shape[dim], ignore_index)
    loss, entropy = row_scores(input, target, dim, ignore_index, BIT["loss"] | BIT["entropy"])
    return -loss, entropy


def entropy(input: Tensor, *, dim: int = -1) -> Tensor:
    """`torchassay.entropy` in plain torch, differentiated by autograd."""
    return row_scores(input, None, checks.logits("entropy", input, dim), -100, BIT["entropy"])[0]


def cdf(
    window: Tensor,  # [capacity] float32
    total: Tensor,  # 0-d int64
    values: Tensor,  # [N] float32
    midrank: bool,
) -> Tensor:
    """The op behind `History`: the share of a window's first min(total, capacity) entries that lie below each value.

    With ``midrank`` half of the entries equal to it count too. NaN for NaN, else 1 if there are no entries.
    """
    capacity = window.numel()
    count = total.clamp(0, capacity)
    entries = window.masked_fill(torch.arange(capacity, device=window.device) >= count, torch.inf).sort().values
    values = values.contiguous()
    found = torch.searchsorted(entries, values)
    if midrank:
        found = found + torch.searchsorted(entries, values, right=True).minimum(count)  # inf equals what was masked
        count = 2 * count
    share = torch.where(count > 0, found.float() / count.float(), 1)
    return torch.where(values.isnan(), torch.nan, share)


def _outputs(
    function: str,
    input: Tensor,
    target: Tensor | None,
    call: checks.Call,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> list[Tensor]:
    if target is not None and not target.is_floating_point():
        checks.class_range(function, target, input.shape[call.dim], ignore_index)
    if call.plain:
        return row_scores(input, target, call.dim, ignore_index, call.signals)
    return option_scores(input, target, call.dim, weight, ignore_index, label_smoothing, call.signals)


def _rows(input: Tensor, dim: int) -> Tensor:
    """The input with its classes last, half precision widened to float32."""
    x = input.movedim(dim, -1)
    return x if x.dtype == torch.float64 else x.float()


def _sum(x: Tensor) -> Tensor:
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
