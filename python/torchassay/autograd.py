"""Gradients around the ops: the loss and the entropy of a row are differentiable, every other signal is not."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import ops, reference
from torchassay.scores import BIT, SIGNALS, STATS


class RowScores(torch.autograd.Function):
    """`ops.row_scores` with gradients for the signals in ``differentiable`` (bits of loss and entropy)."""

    @staticmethod
    def forward(ctx, input, target, dim, ignore_index, signals, differentiable, function, backend):
        *outputs, stats = ops.row_scores(input, target, dim, ignore_index, signals | STATS, function, backend)
        names = [name for name in SIGNALS if signals & BIT[name]]
        fixed = [output for name, output in zip(names, outputs, strict=True) if not differentiable & BIT[name]]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, stats)
        ctx.call = dim, ignore_index, function, backend
        ctx.position = [names.index(name) if differentiable & BIT[name] else None for name in ("loss", "entropy")]
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        grad_loss, grad_entropy = (None if at is None else upstream[at] for at in ctx.position)
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


class LogProbs(torch.autograd.Function):
    """Log-probabilities of several classes a row, from one read: -(m - x_y) - log1p(r) with the classes gathered."""

    @staticmethod
    def forward(ctx, input, target, dim, ignore_index, function, backend):
        stats = ops.row_scores(input, None, dim, ignore_index, STATS, function, backend)[0]
        y, ignored, outside = reference.labels(target, input.shape[dim], ignore_index)
        gap = stats[0].unsqueeze(-1) - input.movedim(dim, -1).gather(-1, y)
        loss = gap + torch.log1p(stats[3]).unsqueeze(-1)
        ctx.save_for_backward(input, target, stats)
        ctx.call = dim, ignore_index, function, backend
        return -loss.masked_fill(outside, torch.nan).masked_fill(ignored, 0)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        input, target, stats = ctx.saved_tensors
        dim, ignore_index, *call = ctx.call
        nothing = (None,) * 5
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: the reference has one
            log_probs = reference.log_prob(input, target, dim=dim, ignore_index=ignore_index)
            return torch.autograd.grad(log_probs, input, upstream, create_graph=True)[0], *nothing
        if target.shape[-1] == 0:
            return torch.zeros_like(input), *nothing
        y, ignored, outside = reference.labels(target, input.shape[dim], ignore_index)
        unused = ignored.all(-1)  # the row has no gradient, whatever it holds
        gL = (-upstream).masked_fill(outside, torch.nan).masked_fill(ignored, 0)
        # the softmax of every class from the kernel; then the entries of the targets, formed without cancellation
        first = y[..., 0].masked_fill(unused, -1)
        grad = ops.row_grads(input, first, stats, gL.sum(-1), None, dim, -1, *call)
        classes_last = grad.movedim(dim, -1)
        m, r = stats[0].unsqueeze(-1), stats[3].unsqueeze(-1)
        x_y = input.movedim(dim, -1).gather(-1, y).to(stats.dtype)
        e_y = reference.exp_difference(m, x_y)
        p = e_y / (1 + r)
        miss = torch.where(x_y == m, r, 1 + r - e_y) / (1 + r)
        same = y.unsqueeze(-1) == y.unsqueeze(-2)
        entry = (torch.where(same, -miss.unsqueeze(-1), p.unsqueeze(-1)) * gL.unsqueeze(-2)).sum(-1)
        entry = entry.masked_fill(unused.unsqueeze(-1), 0)
        classes_last.scatter_(-1, y, entry.to(grad.dtype))
        return grad, *nothing
