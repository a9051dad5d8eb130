"""Scores of rows whose classes are at hand in slices: shards of several ranks, chunks of a linear head."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchassay import ops, reference
from torchassay.autograd import mark_outputs, upstream_of
from torchassay.distributed import all_reduced
from torchassay.options import Options
from torchassay.scores import BIT, STATS
from torchassay.vocabulary import Vocabulary, gathered


class Call(NamedTuple):
    """What a call says besides its tensors."""

    ignore_index: int
    signals: int  # bits of rows' signals
    vocabulary: Vocabulary
    function: str
    backend: str


def finished(
    numbers: Tensor,
    k: Tensor,
    target: Tensor | None,  # [N]
    options: Options,  # weight: of the slice
    call: Call,
    squares: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """A row's signals from the state of this process's slice, flat, in the order of their bits; and the stats.

    ``squares(stats)`` [N] float64: the sum of the squares of the loss's gradient by this slice's logits, for grad_norm.
    """
    _, total, group, _ = call.vocabulary
    own = None
    if target is not None and options.weight is not None:
        own = call.vocabulary.slice_weight(options.weight.detach(), target, call.ignore_index)
    if group is None:
        numbers, k = numbers.unsqueeze(0), k.unsqueeze(0)
    else:
        numbers, k, own = gathered(numbers, k, own, group)
    flat = options._replace(weight=own).flat()
    swept = bool(call.signals & BIT["grad_norm"]) and target is not None and reference.needs_sweep(options)
    bits = call.signals & ~BIT["grad_norm"] if swept else call.signals
    how = total, call.ignore_index, bits | STATS, call.function, call.backend
    *outputs, stats = ops.finish_states(numbers, k, target, *flat, *how)
    if swept:
        of_all = squares(stats)
        if group is not None:
            all_reduced(of_all, [group])
        at = (call.signals & (BIT["grad_norm"] - 1)).bit_count()
        outputs = [*outputs[:at], of_all.sqrt().to(stats.dtype), *outputs[at:]]  # torch 2.11 traces them as a tuple
    return outputs, stats


class SliceScores(torch.autograd.Function):
    """The signals of rows from this rank's slice of their logits, with gradients for those in ``differentiable``."""

    @staticmethod
    def forward(ctx, input, target, weight, smoothing, temperatures, temperature, softcap, z_loss, dim, *call):
        *call, differentiable = call
        call = Call(*call)
        first, total, *_ = call.vocabulary
        flat_target = None if target is None else target.reshape(-1)
        flat = weight, smoothing, temperatures, temperature, softcap, z_loss
        how = dim, first, total, call.ignore_index, call.function, call.backend
        numbers, k = ops.row_states(input, target, *flat, *how)

        def squares(stats: Tensor) -> Tensor:
            wide, one = input.to(stats.dtype), torch.ones_like(stats[0])
            grad = ops.option_grads(
                wide, target, *flat, _shaped(stats, input, dim), one, None, dim, *how[3:], first, total
            )
            norm = torch.linalg.vector_norm(grad.movedim(dim, -1).flatten(0, -2), dim=-1, dtype=torch.float64)
            return norm * norm

        outputs, stats = finished(numbers, k, flat_target, Options.of(*flat), call, squares)
        outputs = [output.view(input.shape[:dim] + input.shape[dim + 1 :]) for output in outputs]
        mark_outputs(ctx, call.signals, differentiable, outputs)
        ctx.save_for_backward(input, target, weight, temperatures, _shaped(stats, input, dim))
        ctx.call = (smoothing, temperature, softcap, z_loss), dim, call
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        given = upstream_of(ctx, upstream)
        grads = [None] * len(ctx.needs_input_grad)
        if all(grad is None for grad in given):
            return tuple(grads)
        refuse_higher(ctx.call[-1])
        input, target, weight, temperatures, stats = ctx.saved_tensors
        (smoothing, temperature, softcap, z_loss), dim, call = ctx.call
        options = weight, smoothing, temperatures, temperature, softcap, z_loss
        first, total, *_ = call.vocabulary
        how = dim, call.ignore_index, call.function, call.backend, first, total
        grads[0] = ops.option_grads(input, target, *options, stats, *given, *how)
        return tuple(grads)


def _shaped(stats: Tensor, input: Tensor, dim: int) -> Tensor:
    return stats.view(len(stats), *input.shape[:dim], *input.shape[dim + 1 :])


def refuse_higher(call: Call) -> None:
    if call.vocabulary.group is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{call.function}: there is no second derivative (create_graph=True) with a group")
