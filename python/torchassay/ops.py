"""The ops behind every function: schema, fake and implementation. The only user of torch.library.

An op gets checked arguments and a class dimension counted from the front. It has no autograd of its own: the
`torch.autograd.Function`s in `autograd.py` stand around it.
"""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

from torchassay import checks, philox, reference
from torchassay.backends import choose, native
from torchassay.scores import BIT, SIGNALS, STATS

torch.library.define(
    "torchassay::row_scores",
    "(Tensor input, Tensor? target, int dim, int ignore_index, int signals, str function, str backend) -> Tensor[]",
)
torch.library.define(
    "torchassay::row_grads",
    "(Tensor input, Tensor? target, Tensor stats, Tensor? grad_loss, Tensor? grad_entropy, int dim, int ignore_index,"
    " str function, str backend) -> Tensor",
)
torch.library.define(  # SymInt: compiled code is not for one step alone
    "torchassay::uniforms", "(Tensor row_id, Tensor? seed_tensor, SymInt seed, SymInt step, str backend) -> Tensor"
)

torch.library.define(
    "torchassay::cdf", "(Tensor window, Tensor total, Tensor values, bool midrank, str backend) -> Tensor"
)

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/api.h, enum Dtype
_SLOTS = (*(BIT[name] for name in SIGNALS), STATS)  # csrc/api.h, enum Slot
_PREDICTION_SLOT, _STATS_SLOT = SIGNALS.index("prediction"), len(SIGNALS)


@functools.cache
def _asked(signals: int) -> tuple[int, ...]:
    return tuple(slot for slot, bit in enumerate(_SLOTS) if signals & bit)


def _empty_outputs(input: Tensor, dim: int, asked: tuple[int, ...]) -> list[Tensor]:
    shape = input.shape[:dim] + input.shape[dim + 1 :]
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    outputs, last = [], None
    for slot in asked:
        if slot == _PREDICTION_SLOT:
            outputs.append(torch.empty(shape, dtype=torch.int64, device=input.device))
        elif slot == _STATS_SLOT:
            outputs.append(torch.empty((6, *shape), dtype=dtype, device=input.device))
        else:  # empty_like is the cheapest way to a second one; one tensor for all would be fresh pages in every call
            last = torch.empty(shape, dtype=dtype, device=input.device) if last is None else torch.empty_like(last)
            outputs.append(last)
    return outputs


def _empty_grad(input: Tensor, dim: int) -> Tensor:
    """Like the input, in memory with the classes innermost: what the kernels write."""
    shape = input.shape[:dim] + input.shape[dim + 1 :] + input.shape[dim : dim + 1]
    return torch.empty(shape, dtype=input.dtype, device=input.device).movedim(-1, dim)


def _layout(input: Tensor, dim: int) -> tuple[Tensor, int, int, int, int, int]:
    """The input as rows: (tensor, A, B, C, stride of A, stride of B), row a B + b, its C classes dense in memory.

    A view where two row strides can tell (also of ``logits[:, :-1]``), else a copy.
    """
    if dim == input.dim() - 1 and input.is_contiguous():
        classes = input.shape[-1]
        return input, 1, input.numel() // classes, classes, 0, classes
    x = input.movedim(dim, -1)
    classes = x.shape[-1]
    if x.stride(-1) != 1 and classes != 1:
        x = x.contiguous()
    sizes, strides = [], []  # of the row dimensions, outermost first, neighbours joined
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if sizes and strides[-1] == size * stride:
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    if len(sizes) > 2:
        return x.contiguous(), 1, x.numel() // classes, classes, 0, classes
    sizes, strides = [1, 1, *sizes], [0, 0, *strides]
    return x, *sizes[-2:], classes, *strides[-2:]


def _flat_target(target: Tensor | None) -> Tensor | None:
    if target is None:
        return None
    if target.dtype != torch.int64 and target.dtype != torch.int32:
        target = target.long()
    return target if target.dim() == 1 and target.is_contiguous() else target.contiguous().view(-1)


_HERE = contextlib.nullcontext()


def _current(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Kernels are launched on the current device: it must be the tensor's."""
    elsewhere = tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()
    return torch.cuda.device_of(tensor) if elsewhere else _HERE


def _place(input: Tensor) -> tuple[int, int]:
    """The index of a CUDA tensor's device and torch's current stream there."""
    device = input.get_device()
    return device, torch._C._cuda_getCurrentRawStream(device)


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
    asked = _asked(signals)
    outputs = _empty_outputs(input, dim, asked)
    if not outputs or input.numel() == 0:
        return outputs
    rows, *layout = _layout(input, dim)
    target = _flat_target(target)
    if backend == "triton":
        from torchassay.triton_kernels.row_scores import row_scores

        slots = [None] * len(_SLOTS)
        for slot, output in zip(asked, outputs, strict=True):
            slots[slot] = output.view(6, -1) if slot == _STATS_SLOT else output.view(-1)
        outer, inner, classes, *strides = layout
        rows = rows.as_strided((outer, inner, classes), (*strides, 1))
        with _current(input):
            row_scores(rows, target, ignore_index, slots)
        if target is not None:
            checks.class_range(function, target, classes, ignore_index)
        return outputs
    pointers = [0] * len(_SLOTS)
    for slot, output in zip(asked, outputs):  # noqa: B905 - of one length, and in the way of every call
        pointers[slot] = output.data_ptr()
    address, wide = (0, False) if target is None else (target.data_ptr(), target.dtype == torch.int64)
    call = rows.data_ptr(), _DTYPES[input.dtype], *layout, address, wide, ignore_index, pointers
    if input.is_cuda:
        device, stream = _place(input)
        outer, inner, classes = layout[:3]
        size = native.cuda_row_scores_workspace(_DTYPES[input.dtype], outer * inner, classes, device)
        workspace = torch.empty(size, dtype=torch.uint8, device=input.device) if size else None
        with _current(input):
            native.cuda_row_scores(*call, workspace.data_ptr() if size else 0, device, stream)
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
        return _empty_grad(input, dim).copy_(grad)
    grad = _empty_grad(input, dim)
    if grad.numel() == 0:
        return grad
    rows, *layout = _layout(input, dim)
    target = _flat_target(target)
    upstream = [None if g is None else g.to(stats.dtype).reshape(-1) for g in (grad_loss, grad_entropy)]
    if backend == "triton":
        from torchassay.triton_kernels.row_grads import row_grads

        outer, inner, classes, *strides = layout
        rows = rows.as_strided((outer, inner, classes), (*strides, 1))
        out = grad.movedim(dim, -1).view(-1, classes)
        with _current(input):
            row_grads(rows, target, stats.view(6, -1), *upstream, ignore_index, out)
        return grad
    call = (
        rows.data_ptr(),
        _DTYPES[input.dtype],
        *layout,
        0 if target is None else target.data_ptr(),
        target is not None and target.dtype == torch.int64,
        ignore_index,
        stats.data_ptr(),
        *(number for g in upstream for number in ((0, 0) if g is None else (g.data_ptr(), g.stride(0)))),
        grad.data_ptr(),
    )
    if input.is_cuda:
        with _current(input):
            native.cuda_row_grads(*call, *_place(input))
    else:
        native.row_grads(*call, torch.get_num_threads())
    return grad


def _uniforms(row_id: Tensor, seed_tensor: Tensor | None, seed: int, step: int, backend: str) -> Tensor:
    backend = choose("uniforms", row_id.device.type, torch.float32, 1, backend)
    if backend == "reference":
        return philox.pick_uniforms(row_id, seed if seed_tensor is None else seed_tensor, step)
    row_id = row_id.contiguous()
    out = torch.empty(row_id.shape, dtype=torch.float32, device=row_id.device)
    if out.numel() == 0:
        return out
    if backend == "triton":
        from torchassay.triton_kernels.philox import uniforms

        with _current(row_id):
            uniforms(row_id, seed_tensor, seed, step, out)
        return out
    address = 0 if seed_tensor is None else seed_tensor.data_ptr()
    call = row_id.data_ptr(), row_id.numel(), address, seed, step, out.data_ptr()
    if row_id.is_cuda:
        with _current(row_id):
            native.cuda_uniforms(*call, *_place(row_id))
    else:
        native.uniforms(*call)
    return out


def _cdf(window: Tensor, total: Tensor, values: Tensor, midrank: bool, backend: str) -> Tensor:
    backend = choose("History", values.device.type, torch.float32, 1, backend)
    if backend == "reference":
        return reference.cdf(window, total, values, midrank)
    out = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    if out.numel() == 0:
        return out
    if backend == "triton":
        from torchassay.triton_kernels.cdf import cdf

        with _current(values):
            cdf(window, total, values, midrank, out)
        return out
    if window.is_cuda and window.data_ptr() % 16:
        window = window.clone()  # its kernel reads 16 bytes at a time
    call = (
        *(window.data_ptr(), window.numel(), total.data_ptr()),
        *(values.data_ptr(), values.stride(0), values.numel(), midrank, out.data_ptr()),
    )
    if values.is_cuda:
        with _current(values):
            native.cuda_cdf(*call, *_place(values))
    else:
        native.cdf(*call, torch.get_num_threads())
    return out


torch.library.impl("torchassay::row_scores", "CompositeExplicitAutograd", _row_scores)
torch.library.impl("torchassay::row_grads", "CompositeExplicitAutograd", _row_grads)
torch.library.impl("torchassay::cdf", "CompositeExplicitAutograd", _cdf)
torch.library.impl("torchassay::uniforms", "CompositeExplicitAutograd", _uniforms)


@torch.library.register_fake("torchassay::row_scores")
def _(input, target, dim, ignore_index, signals, function, backend):
    return _empty_outputs(input, dim, _asked(signals))


@torch.library.register_fake("torchassay::row_grads")
def _(input, target, stats, grad_loss, grad_entropy, dim, ignore_index, function, backend):
    return _empty_grad(input, dim)


@torch.library.register_fake("torchassay::uniforms")
def _(row_id, seed_tensor, seed, step, backend):
    return torch.empty(row_id.shape, dtype=torch.float32, device=row_id.device)


@torch.library.register_fake("torchassay::cdf")
def _(window, total, values, midrank, backend):
    return torch.empty(values.shape, dtype=torch.float32, device=values.device)


row_scores = torch.ops.torchassay.row_scores.default
row_grads = torch.ops.torchassay.row_grads.default
cdf = torch.ops.torchassay.cdf.default
