"""How tensors lie in memory, and where kernels run: what every op hands to its kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/api.h, enum Dtype


# CPU kernels read rows in place whose classes stand apart in memory, if the rows are neighbours there instead: as many
# as the widest vector holds at least, and of no more classes than a core's second cache holds of so many rows.
NEIGHBOURS, CLASSES_APART = 16, 4096


class Apart(NamedTuple):
    """Rows whose classes stand apart: row a B + b, the B of one a being neighbours."""

    outer: int  # A
    inner: int  # B
    outer_stride: int
    class_stride: int
    outer_dims: int  # of the dimensions of the rows


def apart(input: Tensor, dim: int) -> Apart | None:
    """How the rows of a CPU tensor with its classes apart are read in place, None where they are not."""
    class_stride, classes = input.stride(dim), input.shape[dim]
    if class_stride == 1 or not 1 < classes <= CLASSES_APART or input.device.type != "cpu":
        return None
    x = input.movedim(dim, -1)
    sizes, strides = list(x.shape[:-1]), list(x.stride()[:-1])
    inner = 1
    while sizes and (sizes[-1] == 1 or strides[-1] == inner):
        inner *= sizes.pop()
        strides.pop()
    outer_dims = len(sizes)
    sizes, strides = _joined(sizes, strides)
    if inner < NEIGHBOURS or len(sizes) > 1:
        return None
    return Apart(*sizes or [1], inner, *strides or [0], class_stride, outer_dims)


def empty_rows(input: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Of the input's shape, dense, in memory with the classes innermost; [A, C, B] where they are read `apart`."""
    found = apart(input, dim)
    rows = input.shape[:dim] + input.shape[dim + 1 :]
    at = len(rows) if found is None else found.outer_dims
    shape = rows[:at] + input.shape[dim : dim + 1] + rows[at:]
    return torch.empty(shape, dtype=dtype, device=input.device).movedim(at, dim)


def empty_grad(input: Tensor, dim: int) -> Tensor:
    """What the kernels write a gradient to."""
    return empty_rows(input, dim, input.dtype)


@contextlib.contextmanager
def with_classes_last(grad: Tensor, dim: int) -> Iterator[Tensor]:
    """The gradient as [N, C], for kernels that know no other way: a copy where a CPU tensor has its classes apart."""
    rows = grad.movedim(dim, -1)
    dense = rows.contiguous()
    yield dense.view(-1, rows.shape[-1])
    if dense is not rows:
        rows.copy_(dense)


def _joined(all_sizes: Sequence[int], all_strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Dimensions, outermost first, with neighbours joined where one stride leads through both."""
    sizes, strides = [], []
    for size, stride in zip(all_sizes, all_strides, strict=True):
        if size == 1:
            continue
        if sizes and strides[-1] == size * stride:
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    return sizes, strides


def layout(input: Tensor, dim: int) -> tuple[Tensor, int, int, int, int, int]:
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
    sizes, strides = _joined(x.shape[:-1], x.stride()[:-1])
    if len(sizes) > 2:
        return x.contiguous(), 1, x.numel() // classes, classes, 0, classes
    sizes, strides = [1, 1, *sizes], [0, 0, *strides]
    return x, *sizes[-2:], classes, *strides[-2:]


def native_layout(input: Tensor, dim: int) -> tuple[Tensor, int, ...]:
    """`layout` as the native kernels take it, on the CPU with the stride of the classes behind."""
    if input.is_cuda:
        return layout(input, dim)
    found = None if dim == input.dim() - 1 and input.is_contiguous() else apart(input, dim)
    if found is None:
        return *layout(input, dim), 1
    return input, found.outer, found.inner, input.shape[dim], found.outer_stride, 1, found.class_stride


def as_rows(rows: Tensor, where: Sequence[int]) -> Tensor:
    """A `layout` as a tensor [A, B, C], which the Triton kernels take."""
    outer, inner, classes, *strides = where
    return rows.as_strided((outer, inner, classes), (*strides, 1))


def computed_in(input: Tensor) -> torch.dtype:
    """The dtype that kernels compute in, and that their scores have."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data lie, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def flat_target(target: Tensor | None) -> Tensor | None:
    if target is None:
        return None
    if target.dtype != torch.int64 and target.dtype != torch.int32:
        target = target.long()
    return target if target.dim() == 1 and target.is_contiguous() else target.contiguous().view(-1)


def flat_values(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Numbers of rows or of classes as the kernels take them: dense, of the dtype that is computed in."""
    return None if values is None else values.detach().reshape(-1).to(dtype).contiguous()


_HERE = contextlib.nullcontext()


def current(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Kernels are launched on the current device: it must be the tensor's."""
    elsewhere = tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()
    return torch.cuda.device_of(tensor) if elsewhere else _HERE


def place(input: Tensor) -> tuple[int, int]:
    """The index of a CUDA tensor's device and torch's current stream there."""
    device = input.get_device()
    return device, torch._C._cuda_getCurrentRawStream(device)
