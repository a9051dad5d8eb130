"""Gradients around the ops: the loss and the entropy of a row are differentiable, every other signal is not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchassay import ops, reference
from torchassay.options import Options
from torchassay.scores import BIT, ROW_BITS, STATS


def mark_outputs(ctx, signals: int, differentiable: int, outputs: Sequence[Tensor]) -> None:
    """Tell autograd which outputs have a gradient, and remember where those of loss and entropy stand."""
    names = [name for name, bit in BIT.items() if signals & bit & ROW_BITS]
    fixed = [output for name, output in zip(names, outputs, strict=True) if not differentiable & BIT[name]]
    ctx.mark_non_differentiable(*fixed)
    ctx.set_materialize_grads(False)
    ctx.position = [names.index(name) if differentiable & BIT[name] else None for name in ("loss", "entropy")]


def upstream_of(ctx, upstream: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of loss and entropy."""
    return [None if at is None else upstream[at] for at in ctx.position]


class RowScores(torch.autograd.Function):
    """`ops.row_scores` with gradients for the signals in ``differentiable`` (bits of loss and entropy)."""

    @staticmethod
    def forward(ctx, input, target, dim, ignore_index, signals, differentiable, function, backend):
        *outputs, stats = ops.row_scores(input, target, dim, ignore_index, signals | STATS, function, backend)
        mark_outputs(ctx, signals, differentiable, outputs)
        ctx.save_for_backward(input, target, stats)
        ctx.call = dim, ignore_index, function, backend
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        grad_loss, grad_entropy = upstream_of(ctx, upstream)
        nothing = (None,) * 7
        if grad_loss is None and grad_entropy is None:
            return None, *nothing
        arguments = (*ctx.saved_tensors, grad_loss, grad_entropy, *ctx.call)
        if torch.compiler.is_compiling():
            return ops.row_grads(*arguments), *nothing
        return RowGrads.apply(*arguments), *nothing


class RowGrads(torch.autograd.Function):
    """`ops.row_grads`, whose own gradient is that of the reference."""

    @staticmethod
    def forward(ctx, input, target, stats, grad_loss, grad_entropy, dim, ignore_index, function, backend):
        ctx.save_for_backward(input, target, grad_loss, grad_entropy)
        ctx.call = dim, ignore_index
        return ops.row_grads(input, target, stats, grad_loss, grad_entropy, dim, ignore_index, function, backend)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        input, target, grad_loss, grad_entropy = ctx.saved_tensors
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            # aliases: an upstream may itself come from the input, and that path is not this function's to walk
            leaves = {0: input, 3: grad_loss, 4: grad_entropy}
            leaves = {at: None if value is None else value.view_as(value) for at, value in leaves.items()}
            grad = reference.row_grads(leaves[0], target, None, leaves[3], leaves[4], *ctx.call)
        wanted = {at: value for at, value in leaves.items() if ctx.needs_input_grad[at]}
        found = torch.autograd.grad(grad, list(wanted.values()), upstream, create_graph=higher)
        grads = dict(zip(wanted, found, strict=True))
        return tuple(grads.get(at) for at in range(9))


class OptionScores(torch.autograd.Function):
    """`ops.option_scores` likewise; probabilities have a gradient too. What is not the plain gradient by the input is
    that of the reference."""

    @staticmethod
    def forward(ctx, input, target, weight, smoothing, temperatures, temperature, softcap, z_loss, *call):
        dim, ignore_index, signals, differentiable, function, backend = call
        options = weight, smoothing, temperatures, temperature, softcap, z_loss
        *outputs, stats = ops.option_scores(
            input, target, *options, dim, ignore_index, signals | STATS, function, backend
        )
        mark_outputs(ctx, signals, differentiable, outputs)
        ctx.save_for_backward(input, target, weight, temperatures, stats)
        ctx.numbers = smoothing, temperature, softcap, z_loss
        ctx.call = dim, ignore_index, function, backend
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        given = upstream_of(ctx, upstream)
        grads = [None] * 14
        if all(grad is None for grad in given):  # == would compare tensors, which torch 2.11 does not compile
            return tuple(grads)
        input, target, weight, temperatures, stats = ctx.saved_tensors
        smoothing, temperature, softcap, z_loss = ctx.numbers
        options = weight, smoothing, temperatures, temperature, softcap, z_loss
        higher = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # create_graph: the reference has one
        if ctx.needs_input_grad[1] or higher:
            wanted = [at for at in (0, 1) if ctx.needs_input_grad[at] and (higher or at == 1)]
            found = _by_reference(input, target, options, given, ctx.call, wanted, higher)
            for at, grad in zip(wanted, found, strict=True):
                grads[at] = grad
        if ctx.needs_input_grad[0] and not higher:
            dim, ignore_index, *how = ctx.call
            grads[0] = ops.option_grads(input, target, *options, stats, *given, dim, ignore_index, *how)
        return tuple(grads)


def _by_reference(input, target, options, upstream, call, wanted, higher) -> tuple[Tensor, ...]:
    """The gradients of loss and entropy by the input (0) and the probabilities (1), as far as wanted."""
    dim, ignore_index, *_ = call
    with torch.enable_grad():
        leaves = [input.view_as(input), target if target is None else target.view_as(target)]
        if not higher:
            leaves = [leaf if leaf is None else leaf.detach() for leaf in leaves]
            for at in wanted:
                leaves[at].requires_grad_()
        asked = [leaves[at] for at in wanted]
        return by_reference(*leaves, Options.of(*options), dim, ignore_index, upstream, asked, higher)


def by_reference(
    input: Tensor,
    target: Tensor | None,
    options: Options,
    dim: int,
    ignore_index: int,
    upstream: Sequence[Tensor | None],  # of loss and entropy
    asked: Sequence[Tensor],  # what input and target were made of
    higher: bool,
) -> tuple[Tensor, ...]:
    """The gradients of loss and entropy by what is asked for, of the reference; with ``higher`` with a graph."""
    bits = sum(BIT[name] for name, g in zip(("loss", "entropy"), upstream, strict=True) if g is not None)
    found = reference.option_scores(input, target, options, dim, ignore_index, bits)
    given = [g.to(rows.dtype) for g, rows in zip((g for g in upstream if g is not None), found, strict=True)]
    return torch.autograd.grad(found, asked, given, create_graph=higher, allow_unused=True)


class LogProbs(torch.autograd.Function):
    """Log-probabilities of several classes a row, from one read: -(m - x_y) / temperature - log1p(r), the classes
    gathered."""

    @staticmethod
    def forward(ctx, input, target, temperature, dim, ignore_index, function, backend):
        if temperature is None:
            stats = ops.row_scores(input, None, dim, ignore_index, STATS, function, backend)[0]
        else:
            options = Options(temperature=temperature).flat()
            stats = ops.option_scores(input, None, *options, dim, ignore_index, STATS, function, backend)[0]
        y, ignored, outside = reference.labels(target, input.shape[dim], ignore_index)
        gap = stats[0].unsqueeze(-1) - input.movedim(dim, -1).gather(-1, y)
        if temperature is not None:
            gap = reference.scaled(gap, reference.by_class(reference.inverse_of(temperature)))
        loss = gap + torch.log1p(stats[3]).unsqueeze(-1)
        ctx.save_for_backward(input, target, stats)
        ctx.temperature = temperature  # no leaf of the graph
        ctx.call = dim, ignore_index, function, backend
        return -loss.masked_fill(outside, torch.nan).masked_fill(ignored, 0)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        input, target, stats = ctx.saved_tensors
        dim, ignore_index, *call = ctx.call
        temperature, inverse = ctx.temperature, 1.0
        nothing = (None,) * 6
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: the reference has one
            by_row = 1.0 if temperature is None else temperature
            log_probs = reference.log_prob(input, target, dim=dim, temperature=by_row, ignore_index=ignore_index)
            return torch.autograd.grad(log_probs, input, upstream, create_graph=True)[0], *nothing
        if target.shape[-1] == 0:
            return torch.zeros_like(input), *nothing
        y, ignored, outside = reference.labels(target, input.shape[dim], ignore_index)
        unused = ignored.all(-1)  # the row has no gradient, whatever it holds
        gL = (-upstream).masked_fill(outside, torch.nan).masked_fill(ignored, 0)
        # the softmax of every class from the kernel; then the entries of the targets, formed without cancellation
        first = y[..., 0].masked_fill(unused, -1)
        m, r = stats[0].unsqueeze(-1), stats[3].unsqueeze(-1)
        if temperature is None:
            grad = ops.row_grads(input, first, stats, gL.sum(-1), None, dim, -1, *call)
        else:
            one = torch.ones_like(stats[0])  # rest and beta of a label that is none of the classes
            stats = torch.stack([*stats[:4], one, stats[5], one])
            options = Options(temperature=temperature).flat()
            grad = ops.option_grads(input, first, *options, stats, gL.sum(-1), None, dim, -1, *call)
            inverse = reference.by_class(reference.inverse_of(temperature))
        classes_last = grad.movedim(dim, -1)
        x_y = input.movedim(dim, -1).gather(-1, y).to(stats.dtype)
        e_y = reference.exp_difference(m, x_y, inverse)
        p = e_y / (1 + r)
        miss = torch.where(x_y == m, r, 1 + r - e_y) / (1 + r)
        same = y.unsqueeze(-1) == y.unsqueeze(-2)
        entry = (torch.where(same, -miss.unsqueeze(-1), p.unsqueeze(-1)) * gL.unsqueeze(-2)).sum(-1)
        entry = reference.scaled(entry, inverse).masked_fill(unused.unsqueeze(-1), 0)
        classes_last.scatter_(-1, y, entry.to(grad.dtype))
        return grad, *nothing
