"""The functions of hidden states and a linear head in plain torch, on the logits that `F.linear` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchassay import checks
from torchassay.options import Noise, Options, given, noise_given
from torchassay.philox import Purpose, normals
from torchassay.reference.draws import draw_scores
from torchassay.reference.functional import own_weight, reduced
from torchassay.reference.options import capped, inverse_of, option_scores
from torchassay.reference.rows import by_class, rows_of, scaled
from torchassay.scores import BIT, ROW_BITS, ROW_SIGNALS, Scores


def linear_score(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    signals: Sequence[str] | str | None = None,
    feature_noise_std: float | Tensor = 0.0,
    feature_noise_draws: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    seed: int | Tensor = 0,
    row_id: Tensor | None = None,
    history=None,
) -> Scores:
    """`torchassay.linear_score` in plain torch, but for the history's share of its window."""
    function = "linear_score"
    extra = "" if history is None else checks.signal_of(history, function)
    head = autocast(input, linear_weight, linear_bias)
    options = given(weight, label_smoothing, temperature, softcap)
    noise = noise_given(feature_noise_std, feature_noise_draws, seed, row_id)
    call = checks.linear(function, *head, target, signals, options, ignore_index, extra, noise, loss=False)
    head = [None if operand is None else operand.detach() for operand in head]
    found = _signals(function, head, target, options or Options(), ignore_index, call.signals, noise)
    outputs = [found[name] for name in call.in_order]
    scores = call.scores(outputs)
    return scores if history is None else call.with_probability(scores, outputs, history, target, ignore_index)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    signals: Sequence[str] | str = (),
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor | tuple[Tensor, Scores]:
    """`torchassay.linear_cross_entropy` in plain torch, differentiated by autograd."""
    function = "linear_cross_entropy"
    checks.reduced_by(function, reduction)
    head = autocast(input, linear_weight, linear_bias)
    options = given(weight, label_smoothing, temperature, softcap, z_loss)
    call = checks.linear(function, *head, target, signals, options, ignore_index, loss=True)
    bits = call.with_loss().signals
    found = _signals(function, head, target, options or Options(), ignore_index, bits, None)
    own = own_weight(weight, target, ignore_index)
    loss = reduced(found["loss"], head[0], target, own, ignore_index, reduction)
    return (loss, call.scores([found[name].detach() for name in call.in_order])) if signals else loss


def linear_log_prob_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """`torchassay.linear_log_prob_entropy` in plain torch, differentiated by autograd."""
    function = "linear_log_prob_entropy"
    head = autocast(input, linear_weight, linear_bias)
    options = given(None, 0.0, temperature, softcap)
    checks.linear(function, *head, target, (), options, ignore_index, loss=True)
    bits = BIT["loss"] | BIT["entropy"]
    found = _signals(function, head, target, options or Options(), ignore_index, bits, None)
    return -found["loss"], found["entropy"]


def autocast(*operands: Tensor | None) -> list[Any]:
    """The operands of a linear layer as autocast would cast them, if it is on."""
    kind = operands[0].device.type if isinstance(operands[0], Tensor) else "cpu"
    if not torch.is_autocast_enabled(kind):
        return list(operands)
    dtype = torch.get_autocast_dtype(kind)

    def cast(value):
        wanted = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if wanted else value

    return [cast(operand) for operand in operands]


def _signals(
    function: str,
    head: Sequence[Tensor | None],
    target: Tensor | None,
    options: Options,
    ignore_index: int,
    signals: int,  # bits of scores.BIT
    noise: Noise | None,
) -> dict[str, Tensor]:
    """Those asked for by name, [...] each, and maybe others."""
    input, linear_weight, linear_bias = head
    if target is not None:
        checks.class_range(function, target, len(linear_weight), ignore_index)
    of_norm = signals & BIT["weight_grad_norm"]
    bits = signals & ROW_BITS | (BIT["grad_norm"] if of_norm else 0)
    logits = F.linear(input, linear_weight, linear_bias)
    outputs = option_scores(logits, target, options, logits.dim() - 1, ignore_index, bits)
    found = dict(zip((name for name in ROW_SIGNALS if bits & BIT[name]), outputs, strict=True))
    if of_norm:  # the gradient by a row's logits g gives g h^T for linear_weight and g for linear_bias
        squares = rows_of(input.detach(), -1).square().sum(-1)
        of_features = torch.sqrt(squares if linear_bias is None else squares + 1)
        found["weight_grad_norm"] = found["grad_norm"] * of_features
    if noise is not None:
        names = ("noisy_entropy", "predictive_entropy", "mutual_information")
        bits = sum(BIT[name] for name in names)
        draws = torch.stack([_noisy_logits(head, options, noise, draw) for draw in range(noise.draws)])
        of_draws = draw_scores(draws, None, 0.0, 1.0, None, 0, noise.draws, draws.dim() - 1, bits)
        found |= dict(zip(names, of_draws, strict=True))
    return found


def _noisy_logits(head: Sequence[Tensor | None], options: Options, noise: Noise, draw: int) -> Tensor:
    """The logits, capped and over the temperature, of hidden states with the normals of a draw, [..., V]."""
    input, linear_weight, linear_bias = head
    wide = rows_of(input, -1)
    rows = input.shape[:-1]
    row_id = torch.arange(rows.numel(), device=input.device) if noise.row_id is None else noise.row_id.reshape(-1)
    eps = normals(row_id, noise.seed, Purpose.FEATURE_NOISE, draw, input.shape[-1]).view(input.shape)
    std = noise.std.unsqueeze(-1).to(wide.dtype) if isinstance(noise.std, Tensor) else noise.std
    copy = (wide + std * eps.to(wide.dtype)).to(input.dtype)
    v, _ = capped(rows_of(F.linear(copy, linear_weight, linear_bias), -1), options.softcap)
    return scaled(v, by_class(inverse_of(options.temperature)))
