"""How tensors lie in memory, and where kernels run: what every op hands to its kernels."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/api.h, enum Dtype


def empty_grad(input: Tensor, dim: int) -> Tensor:
    """Like the input, in memory with the classes innermost: what the kernels write."""
    shape = input.shape[:dim] + input.shape[dim + 1 :] + input.shape[dim : dim + 1]
    return torch.empty(shape, dtype=input.dtype, device=input.device).movedim(-1, dim)


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


def flat_target(target: Tensor | None) -> Tensor | None:
    if target is None:
        return None
    if target.dtype != torch.int64 and target.dtype != torch.int32:
        target = target.long()
    return target if target.dim() == 1 and target.is_contiguous() else target.contiguous().view(-1)


_HERE = contextlib.nullcontext()


def current(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Kernels are launched on the current device: it must be the tensor's."""
    elsewhere = tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()
    return torch.cuda.device_of(tensor) if elsewhere else _HERE


def place(input: Tensor) -> tuple[int, int]:
    """The index of a CUDA tensor's device and torch's current stream there."""
    device = input.get_device()
    return device, torch._C._cuda_getCurrentRawStream(device)
