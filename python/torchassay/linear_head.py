"""Gradients around the ops of a linear head."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import ops
from torchassay.autograd import by_reference, mark_outputs, upstream_of
from torchassay.distributed import all_reduced
from torchassay.options import Options
from torchassay.slices import Call, finished, refuse_higher


class LinearScores(torch.autograd.Function):
    """The signals of the rows that a linear head would give, with gradients for those in ``differentiable``."""

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, target, weight, smoothing, temperatures, *call):
        temperature, softcap, z_loss, columns, *call, differentiable = call
        call = Call(*call)
        first, total, *_ = call.vocabulary
        head = input, linear_weight, linear_bias, target
        flat = weight, smoothing, temperatures, temperature, softcap, z_loss
        how = first, total, call.ignore_index, columns, call.function, call.backend
        numbers, k = ops.linear_states(*head, *flat, *how)

        def squares(stats: Tensor) -> Tensor:
            return ops.linear_squares(*head, *flat, stats, *how)

        outputs, stats = finished(numbers, k, target, Options.of(*flat), call, squares)
        mark_outputs(ctx, call.signals, differentiable, outputs)
        ctx.save_for_backward(*head, weight, temperatures, stats)
        ctx.call = (smoothing, temperature, softcap, z_loss), columns, call
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        given = upstream_of(ctx, upstream)
        grads = [None] * len(ctx.needs_input_grad)
        if all(grad is None for grad in given):
            return tuple(grads)
        (smoothing, temperature, softcap, z_loss), columns, call = ctx.call
        refuse_higher(call)
        *head, weight, temperatures, stats = ctx.saved_tensors
        options = weight, smoothing, temperatures, temperature, softcap, z_loss
        wanted = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: the reference has one
            with torch.enable_grad():  # aliases: what came before the call is not this function's to walk
                leaves = [t if t is None else t.view_as(t) for t in head[:3]]
                asked = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
                logits = torch.nn.functional.linear(*leaves)  # materialised
                of_options = Options.of(*options), 1, call.ignore_index
                found = by_reference(logits, head[3], *of_options, given, asked, True)
        else:
            first, total, group, _ = call.vocabulary
            how = first, total, call.ignore_index, columns, call.function, call.backend
            found = ops.linear_grads(*head, *options, stats, *given, *wanted, *how)
            if wanted[0]:  # of a group each rank has what its slice gives the hidden states, which all share
                dx, *found = found
                found = [(dx if group is None else all_reduced(dx, [group])).to(head[0].dtype), *found]
        for at, grad in zip([at for at in range(3) if wanted[at]], found, strict=True):
            grads[at] = grad
        return tuple(grads)
