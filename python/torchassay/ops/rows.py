"""Scores of rows of logits, and their gradient."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from torchassay import checks, reference
from torchassay.backends import choose, native
from torchassay.ops.memory import (
    DTYPES,
    address,
    as_rows,
    computed_in,
    current,
    empty_grad,
    flat_target,
    layout,
    native_layout,
    place,
    with_classes_last,
)
from torchassay.reference.rows import STATS_ROWS
from torchassay.scores import BIT, ROW_SIGNALS, STATS

torch.library.define(
    "torchassay::row_scores",
    "(Tensor input, Tensor? target, int dim, int ignore_index, int signals, str function, str backend) -> Tensor[]",
)
torch.library.define(
    "torchassay::row_grads",
    "(Tensor input, Tensor? target, Tensor stats, Tensor? grad_loss, Tensor? grad_entropy, int dim, int ignore_index,"
    " str function, str backend) -> Tensor",
)

SLOTS = (*(BIT[name] for name in ROW_SIGNALS), STATS)  # csrc/api.h, enum Slot
PREDICTION_SLOT, STATS_SLOT = ROW_SIGNALS.index("prediction"), len(ROW_SIGNALS)


@functools.cache
def asked_slots(signals: int) -> tuple[int, ...]:
    return tuple(slot for slot, bit in enumerate(SLOTS) if signals & bit)


def by_slot(asked: tuple[int, ...], values: Iterable, nothing) -> list:
    """What belongs to the outputs asked for, as the kernels take all of them."""
    slots = [nothing] * len(SLOTS)
    for slot, value in zip(asked, values, strict=True):
        slots[slot] = value
    return slots


def empty_outputs(input: Tensor, dim: int, asked: tuple[int, ...], stats_rows: int = STATS_ROWS) -> list[Tensor]:
    shape = input.shape[:dim] + input.shape[dim + 1 :]
    dtype = computed_in(input)
    outputs, last = [], None
    for slot in asked:
        if slot == PREDICTION_SLOT:
            outputs.append(torch.empty(shape, dtype=torch.int64, device=input.device))
        elif slot == STATS_SLOT:
            outputs.append(torch.empty((stats_rows, *shape), dtype=dtype, device=input.device))
        else:  # empty_like is the cheapest way to a second one; one tensor for all would be fresh pages in every call
            last = torch.empty(shape, dtype=dtype, device=input.device) if last is None else torch.empty_like(last)
            outputs.append(last)
    return outputs


def _row_scores(
    input: Tensor,
    target: Tensor | None,
    dim: int,
    ignore_index: int,
    signals: int,
    function: str,
    backend: str,
) -> list[Tensor]:
    backend = choose(function, input.device.type, input.dtype, input.shape[dim], backend)
    if backend == "reference":
        if target is not None:
            checks.class_range(function, target, input.shape[dim], ignore_index)
        return reference.row_scores(input, target, dim, ignore_index, signals)
    asked = asked_slots(signals)
    outputs = empty_outputs(input, dim, asked)
    if not outputs or input.numel() == 0:
        return outputs
    target = flat_target(target)
    if backend == "triton":
        from torchassay.triton_kernels.row_scores import row_scores

        rows, *where = layout(input, dim)
        flat = (
            output.view(STATS_ROWS, -1) if slot == STATS_SLOT else output.view(-1)
            for slot, output in zip(asked, outputs, strict=True)
        )
        slots = by_slot(asked, flat, None)
        with current(input):
            row_scores(as_rows(rows, where), target, ignore_index, slots)
        if target is not None:
            checks.class_range(function, target, input.shape[dim], ignore_index)
        return outputs
    rows, *where = native_layout(input, dim)
    pointers = [0] * len(SLOTS)
    for slot, output in zip(asked, outputs):  # noqa: B905 - of one length, and in the way of every call
        pointers[slot] = output.data_ptr()
    at, wide = (0, False) if target is None else (target.data_ptr(), target.dtype == torch.int64)
    call = rows.data_ptr(), DTYPES[input.dtype], *where, at, wide, ignore_index, pointers
    if input.is_cuda:
        device, stream = place(input)
        outer, inner, classes = where[:3]
        size = native.cuda_row_scores_workspace(DTYPES[input.dtype], outer * inner, classes, device)
        workspace = torch.empty(size, dtype=torch.uint8, device=input.device) if size else None
        with current(input):
            native.cuda_row_scores(*call, address(workspace), device, stream)
        return outputs
    bad_row = native.row_scores(*call, torch.get_num_threads())
    if bad_row >= 0:
        checks.out_of_range(function, target, bad_row, input.shape[dim], ignore_index)
    return outputs


def _row_grads(
    input: Tensor,
    target: Tensor | None,
    stats: Tensor,
    grad_loss: Tensor | None,
    grad_entropy: Tensor | None,
    dim: int,
    ignore_index: int,
    function: str,
    backend: str,
) -> Tensor:
    backend = choose(function, input.device.type, input.dtype, input.shape[dim], backend)
    if backend == "reference":
        grad = reference.row_grads(input, target, stats, grad_loss, grad_entropy, dim, ignore_index)
        return empty_grad(input, dim).copy_(grad)
    grad = empty_grad(input, dim)
    if grad.numel() == 0:
        return grad
    target = flat_target(target)
    upstream = [None if g is None else g.to(stats.dtype).reshape(-1) for g in (grad_loss, grad_entropy)]
    if backend == "triton":
        from torchassay.triton_kernels.row_grads import row_grads

        rows, *where = layout(input, dim)
        with current(input), with_classes_last(grad, dim) as out:
            row_grads(as_rows(rows, where), target, stats.view(STATS_ROWS, -1), *upstream, ignore_index, out)
        return grad
    rows, *where = native_layout(input, dim)
    call = (
        rows.data_ptr(),
        DTYPES[input.dtype],
        *where,
        address(target),
        target is not None and target.dtype == torch.int64,
        ignore_index,
        stats.data_ptr(),
        *(number for g in upstream for number in ((0, 0) if g is None else (g.data_ptr(), g.stride(0)))),
        grad.data_ptr(),
    )
    if input.is_cuda:
        with current(input):
            native.cuda_row_grads(*call, *place(input))
    else:
        native.row_grads(*call, torch.get_num_threads())
    return grad


torch.library.impl("torchassay::row_scores", "CompositeExplicitAutograd", _row_scores)
torch.library.impl("torchassay::row_grads", "CompositeExplicitAutograd", _row_grads)


@torch.library.register_fake("torchassay::row_scores")
def _(input, target, dim, ignore_index, signals, function, backend):
    return empty_outputs(input, dim, asked_slots(signals))


@torch.library.register_fake("torchassay::row_grads")
def _(input, target, stats, grad_loss, grad_entropy, dim, ignore_index, function, backend):
    return empty_grad(input, dim)


row_scores = torch.ops.torchassay.row_scores.default
row_grads = torch.ops.torchassay.row_grads.default
