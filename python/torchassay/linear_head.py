"""Gradients around the ops of a linear head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import ops, reference
from torchassay.options import Options
from torchassay.scores import BIT
from torchassay.slices import Call, finished, keep, refuse_higher, upstream_of


class LinearScores(torch.autograd.Function):
    """The signals of the rows that a linear head would give, with gradients for those in ``differentiable``."""

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, target, weight, smoothing, temperatures, *call):
        temperature, softcap, z_loss, columns, *call, differentiable = call
        call = Call(*call)
        first, total, _ = call.vocabulary
        head = input, linear_weight, linear_bias, target
        flat = weight, smoothing, temperatures, temperature, softcap, z_loss
        how = first, total, call.ignore_index, columns, call.function, call.backend
        numbers, k = ops.linear_states(*head, *flat, *how)

        def squares(stats: Tensor) -> Tensor:
            return ops.linear_squares(*head, *flat, stats, *how)

        outputs, stats = finished(numbers, k, target, Options.of(*flat), call, squares)
        keep(ctx, call.signals, differentiable, outputs)
        ctx.save_for_backward(*head, weight, temperatures, stats)
        ctx.call = (smoothing, temperature, softcap, z_loss), columns, call
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        given = upstream_of(ctx, upstream)
        grads = [None] * len(ctx.needs_input_grad)
        if given == [None, None]:
            return tuple(grads)
        (smoothing, temperature, softcap, z_loss), columns, call = ctx.call
        refuse_higher(call)
        *head, weight, temperatures, stats = ctx.saved_tensors
        options = weight, smoothing, temperatures, temperature, softcap, z_loss
        wanted = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: the reference has one
            found = _by_reference(*head, Options.of(*options), call.ignore_index, given, wanted)
        else:
            first, total, group = call.vocabulary
            how = first, total, call.ignore_index, columns, call.function, call.backend
            found = ops.linear_grads(*head, *options, stats, *given, *wanted, *how)
            if group is not None and wanted[0]:  # each rank has what its slice gives the hidden states, which all share
                dist.all_reduce(found[0], group=group)
        for at, grad in zip([at for at in range(3) if wanted[at]], found, strict=True):
            grads[at] = grad
        return tuple(grads)


def _by_reference(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    options: Options,
    ignore_index: int,
    upstream: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The gradients that are wanted, with a graph of their own: the logits are materialised."""
    with torch.enable_grad():
        leaves = [t if t is None else t.view_as(t) for t in (input, linear_weight, linear_bias)]
        logits = torch.nn.functional.linear(*leaves)
        bits = sum(BIT[name] for name, g in zip(("loss", "entropy"), upstream, strict=True) if g is not None)
        found = reference.option_scores(logits, target, options, 1, ignore_index, bits)
        given = [g.to(rows.dtype) for g, rows in zip((g for g in upstream if g is not None), found, strict=True)]
        asked = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        return torch.autograd.grad(found, asked, given, create_graph=True)
