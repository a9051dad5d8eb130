"""The public functions in plain torch, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchassay import checks
from torchassay.options import Noise, Options, given, noise_given
from torchassay.reference.draws import draw_scores
from torchassay.reference.options import capped, inverse_of, option_scores
from torchassay.reference.rows import by_class, labels, row_scores, rows_of, scaled, state
from torchassay.scores import BIT, ROW_BITS, SIGNALS, STATS, Scores


def score(
    input: Tensor,
    target: Tensor | None = None,
    *,
    signals: Sequence[str] | str | None = None,
    dim: int = -1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    noise_std: float | Tensor = 0.0,
    noise_draws: int = 1,
    seed: int | Tensor = 0,
    row_id: Tensor | None = None,
    history=None,
) -> Scores:
    """`torchassay.score` in plain torch, but for the history's share of its window."""
    extra = "" if history is None else checks.signal_of(history, "score")
    options = given(weight, label_smoothing, temperature, softcap)
    noise = noise_given(noise_std, noise_draws, seed, row_id)
    call = checks.score("score", input, target, signals, dim, options, ignore_index, extra, SIGNALS, noise)
    input = input.detach()
    if noise is None:
        outputs = _outputs("score", input, target, call, options, ignore_index)
    else:
        of_rows = call._replace(signals=call.signals & ROW_BITS | STATS)
        *outputs, stats = _outputs("score", input, target, of_rows, options, ignore_index)
        outputs += _noise_outputs(input, stats[0], noise, options or Options(), call.dim, call.signals & ~ROW_BITS)
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
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor | tuple[Tensor, Scores]:
    """`torchassay.cross_entropy` in plain torch, differentiated by autograd."""
    function = "cross_entropy"
    options = given(weight, label_smoothing, temperature, softcap, z_loss)
    call = checks.cross_entropy(function, input, target, signals, dim, options, ignore_index, reduction)
    rows, *outputs = _outputs(function, input, target, call.with_loss(), options, ignore_index)
    loss = reduced(rows, input, target, own_weight(weight, target, ignore_index), ignore_index, reduction)
    if not signals:
        return loss
    if "loss" in call.names:
        outputs.insert(0, rows)
    return loss, call.scores([output.detach() for output in outputs])


def own_weight(weight: Tensor | None, target: Tensor, ignore_index: int) -> Tensor | None:
    """The weight of every row's class, 0 for ignored rows; None for no weights, or for class probabilities."""
    if weight is None or target.is_floating_point():
        return None
    y, ignored, _ = labels(target, weight.numel(), ignore_index)
    return weight[y].masked_fill(ignored, 0)


def reduced(
    rows: Tensor,  # [...], the loss of every row
    input: Tensor,
    target: Tensor,
    own: Tensor | None,  # [...], what a row counts in the mean; None: 1, or 0 if it is ignored
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
        else:
            rows = rows.sum() / ((target != ignore_index) if own is None else own.to(rows.dtype)).sum()
    dtype = input.dtype
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.promote_types(dtype, torch.float32)  # F.cross_entropy is a float32 op under autocast
    if target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
    return rows.to(dtype)


def log_prob(
    input: Tensor, target: Tensor, *, dim: int = -1, temperature: float | Tensor = 1.0, ignore_index: int = -100
) -> Tensor:
    """`torchassay.log_prob` in plain torch, differentiated by autograd."""
    function = "log_prob"
    options = given(None, 0.0, temperature, None)
    dim, several = checks.log_prob(function, input, target, dim, options, ignore_index)
    checks.class_range(function, target, input.shape[dim], ignore_index, target.shape[-1] if several else 1)
    if not several:
        return -_row_outputs(input, target, options, dim, ignore_index, BIT["loss"])[0]
    x = rows_of(input, dim)
    inverse = inverse_of(temperature)
    s = state(x, inverse)
    y, ignored, outside = labels(target, x.shape[-1], ignore_index)
    gap = torch.where(y == s.k.unsqueeze(-1), 0, scaled(s.m.unsqueeze(-1) - x.gather(-1, y), by_class(inverse)))
    loss = gap + torch.log1p(s.r).unsqueeze(-1)
    return -loss.masked_fill(outside, torch.nan).masked_fill(ignored, 0)


def log_prob_entropy(
    input: Tensor, target: Tensor, *, dim: int = -1, temperature: float | Tensor = 1.0, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """`torchassay.log_prob_entropy` in plain torch, differentiated by autograd."""
    function = "log_prob_entropy"
    options = given(None, 0.0, temperature, None)
    dim, _ = checks.log_prob(function, input, target, dim, options, ignore_index, several=False)
    checks.class_range(function, target, input.shape[dim], ignore_index)
    loss, entropy = _row_outputs(input, target, options, dim, ignore_index, BIT["loss"] | BIT["entropy"])
    return -loss, entropy


def entropy(input: Tensor, *, dim: int = -1, temperature: float | Tensor = 1.0) -> Tensor:
    """`torchassay.entropy` in plain torch, differentiated by autograd."""
    dim = checks.logits("entropy", input, dim)
    checks.temperatures("entropy", input, temperature, dim)
    return _row_outputs(input, None, given(None, 0.0, temperature, None), dim, -100, BIT["entropy"])[0]


def _outputs(
    function: str, input: Tensor, target: Tensor | None, call: checks.Call, options: Options | None, ignore_index: int
) -> list[Tensor]:
    if target is not None and not target.is_floating_point():
        checks.class_range(function, target, input.shape[call.dim], ignore_index)
    if not call.plain and options is None:
        options = Options()
    return _row_outputs(input, target, options, call.dim, ignore_index, call.signals)


def _noise_outputs(input: Tensor, top: Tensor, noise: Noise, options: Options, dim: int, signals: int) -> list[Tensor]:
    x, _ = capped(rows_of(input, dim), options.softcap)
    inverse = inverse_of(options.temperature)
    std, scale = (n.to(x.dtype).reshape(-1) if isinstance(n, Tensor) else n for n in (noise.std, inverse))
    row_id = None if noise.row_id is None else noise.row_id.reshape(-1)
    return draw_scores(x, top.reshape(-1), std, scale, row_id, noise.seed, noise.draws, x.dim() - 1, signals)


def _row_outputs(
    input: Tensor, target: Tensor | None, options: Options | None, dim: int, ignore_index: int, signals: int
) -> list[Tensor]:
    if options is None:
        return row_scores(input, target, dim, ignore_index, signals)
    return option_scores(input, target, options, dim, ignore_index, signals)
