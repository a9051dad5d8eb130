"""One argument at a time."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTS = (int, torch.SymInt)  # under compile
NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class InputValueError(ValueError, RuntimeError, IndexError):
    """A shape, value or device that does not fit."""


class InputTypeError(TypeError, NotImplementedError):
    """A dtype or Python type that does not fit."""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor(function: str, argument: str, value) -> None:
    if not isinstance(value, Tensor):
        raise InputTypeError(f"{function}: {argument} must be a Tensor, got {type(value).__name__}")


def floating(function: str, argument: str, value) -> None:
    tensor(function, argument, value)
    if value.dtype not in FLOATS:
        raise InputTypeError(f"{function}: {argument} must be floating-point, got {dtype_name(value.dtype)}")


def mask_of(function: str, values: Tensor, mask: Tensor) -> None:
    """``mask`` says of each of the ``values`` whether it counts."""
    tensor(function, "mask", mask)
    if mask.dtype != torch.bool or mask.shape != values.shape or mask.device != values.device:
        expected = f"bool of shape {tuple(values.shape)} on {values.device}"
        got = f"{dtype_name(mask.dtype)} of shape {tuple(mask.shape)} on {mask.device}"
        raise InputValueError(f"{function}: mask must be {expected}, got {got}")


def integer(function: str, argument: str, value, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{function}: {argument} must be an int, got {type(value).__name__}")
    if least is not None and value < least:
        raise InputValueError(f"{function}: {argument} must be at least {least}, got {value}")


def seed(function: str, value) -> None:
    """``value`` is an int of 64 bits, with a sign or without."""
    integer(function, "seed", value)
    if not -(1 << 63) <= value < 1 << 64:
        raise InputValueError(f"{function}: seed must have 64 bits, got {value}")


def process_group(function: str, group) -> None:
    """``group`` is a process group, or None: this process alone."""
    if group is not None and not isinstance(group, getattr(torch.distributed, "ProcessGroup", ())):
        expected = "a torch.distributed.ProcessGroup"
        raise InputTypeError(f"{function}: group must be {expected}, got {type(group).__name__}")


def same_device(function: str, input: Tensor, argument: str, value: Tensor) -> None:
    if value.device != input.device:
        expected = f"on input's device, {input.device}"
        raise InputValueError(f"{function}: {argument} must be {expected}, got {value.device}")


def logits(function: str, input: Tensor, dim: int) -> int:
    """The class dimension of ``input``, counted from the front."""
    tensor(function, "input", input)
    if input.dtype not in FLOATS:
        expected = "float16, bfloat16, float32 or float64"
        raise InputTypeError(f"{function}: input must be {expected}, got {dtype_name(input.dtype)}")
    if input.dim() == 0:
        raise InputValueError(f"{function}: input must have a class dimension, got a 0-d tensor")
    if not -input.dim() <= dim < input.dim():
        expected = f"in [{-input.dim()}, {input.dim() - 1}] for an input of shape {tuple(input.shape)}"
        raise InputValueError(f"{function}: dim must be {expected}, got {dim}")
    if input.shape[dim] == 0:
        raise InputValueError(f"{function}: input must have at least one class, got shape {tuple(input.shape)}")
    return dim % input.dim()


def labels(function: str, input: Tensor, target: Tensor, dim: int, trailing: bool = False) -> None:
    """``target`` holds one class a row of ``input``, or with ``trailing`` a last dimension of several."""
    tensor(function, "target", target)
    if target.dtype not in INTEGERS:
        expected = "an integer dtype (class indices)"
        raise InputTypeError(f"{function}: target must have {expected}, got {dtype_name(target.dtype)}")
    same_device(function, input, "target", target)
    rows = input.shape[:dim] + input.shape[dim + 1 :]
    if target.shape != rows and not (trailing and target.shape[:-1] == rows):
        _wrong_shape(function, input, target, dim, rows)


def _wrong_shape(function: str, input: Tensor, target: Tensor, dim: int, rows: torch.Size) -> None:
    shape = tuple(target.shape)
    counted = f"input {tuple(input.shape)} without dim {dim - input.dim() if dim else dim} is {tuple(rows)}"
    hint = ""
    for other in range(input.dim()):
        if input.shape[:other] + input.shape[other + 1 :] == target.shape:
            hint = f"; did you mean dim={other if other < input.dim() - 1 else -1}?"
    raise InputValueError(f"{function}: target has shape {shape} but {counted}{hint}")


def class_range(function: str, target: Tensor, classes: int, ignore_index: int, several: int = 1) -> None:
    """Every class of a CPU ``target``, ``several`` a row, is in range; on a GPU looking would mean waiting for it.

    Neither can a trace look; the ops look when they run.
    """
    if target.device.type != "cpu" or torch.compiler.is_compiling() or target.numel() == 0:
        return
    outside = (target < 0) | (target >= classes)
    outside &= target != ignore_index
    if outside.any():
        at = int(outside.reshape(-1).int().argmax())
        out_of_range(function, target.reshape(-1), at, classes, ignore_index, several)


def out_of_range(function: str, target: Tensor, at: int, classes: int, ignore_index: int, several: int = 1) -> None:
    expected = f"0 <= class < {classes} or ignore_index={ignore_index}"
    got = f"class {int(target[at])} at row {at // several}"
    raise InputValueError(f"{function}: target must hold {expected}, got {got}")


def reduced_by(function: str, reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise InputValueError(f"{function}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def ignored_index(function: str, ignore_index: int) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, INTS):
        raise InputTypeError(f"{function}: ignore_index must be an int, got {type(ignore_index).__name__}")


def probabilities(function: str, input: Tensor, target: Tensor, ignore_index: int) -> None:
    """``target`` holds class probabilities: it has the input's shape and a float dtype, and no row to ignore."""
    if not target.is_floating_point():
        expected = "a float dtype where it has input's shape (class probabilities)"
        raise InputTypeError(f"{function}: target must have {expected}, got {dtype_name(target.dtype)}")
    same_device(function, input, "target", target)
    if target.shape != input.shape:
        expected = f"input's shape {tuple(input.shape)} where it holds class probabilities"
        raise InputValueError(f"{function}: target must have {expected}, got {tuple(target.shape)}")
    if ignore_index >= 0:
        expected = "negative where target holds class probabilities"
        raise InputValueError(f"{function}: ignore_index must be {expected}, got {ignore_index}")


def by_row(function: str, input: Tensor, argument: str, value: float | Tensor, dim: int) -> None:
    """``value`` is a number, or a float tensor of one number a row that needs no gradient."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, NUMBERS):
            expected = "a number or a Tensor of one a row"
            raise InputTypeError(f"{function}: {argument} must be {expected}, got {type(value).__name__}")
        return
    if not value.is_floating_point():
        expected = "a float dtype where it is a tensor"
        raise InputTypeError(f"{function}: {argument} must have {expected}, got {dtype_name(value.dtype)}")
    same_device(function, input, argument, value)
    rows = input.shape[:dim] + input.shape[dim + 1 :]
    if value.shape != rows:
        expected = f"shape {tuple(rows)}, one number a row"
        raise InputValueError(f"{function}: {argument} must have {expected}, got {tuple(value.shape)}")
    if value.requires_grad and torch.is_grad_enabled():
        raise InputValueError(f"{function}: {argument} must not require grad: it is a constant here; detach it")
