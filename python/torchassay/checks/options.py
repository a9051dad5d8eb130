"""Options of a loss, noise, and which random numbers are meant."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchassay.checks.arguments import (
    INTS,
    NUMBERS,
    InputTypeError,
    InputValueError,
    by_row,
    dtype_name,
    same_device,
    tensor,
)
from torchassay.options import Noise, Options


def loss_options(function: str, input: Tensor, with_target: bool, options: Options, dim: int) -> None:
    """Check every option of a call; ``dim`` counts from the front."""
    weight, smoothing = options.weight, options.label_smoothing
    if not with_target and (weight is not None or smoothing != 0.0):
        raise InputValueError(f"{function}: weight and label_smoothing need a target, got none")
    if not 0.0 <= smoothing <= 1.0:
        raise InputValueError(f"{function}: label_smoothing must be in [0, 1], got {smoothing}")
    if weight is not None:
        tensor(function, "weight", weight)
        if not weight.is_floating_point():
            raise InputTypeError(f"{function}: weight must have a float dtype, got {dtype_name(weight.dtype)}")
        same_device(function, input, "weight", weight)
        if tuple(weight.shape) != (input.shape[dim],):
            expected = f"shape ({input.shape[dim]},), one number a class"
            raise InputValueError(f"{function}: weight must have {expected}, got {tuple(weight.shape)}")
    temperatures(function, input, options.temperature, dim)
    for argument, value in (("softcap", options.softcap), ("z_loss", options.z_loss)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, NUMBERS)):
            raise InputTypeError(f"{function}: {argument} must be a number, got {type(value).__name__}")
    if options.softcap is not None and not 0.0 < options.softcap < math.inf:
        raise InputValueError(f"{function}: softcap must be finite and > 0, got {options.softcap}")
    if not 0.0 <= options.z_loss < math.inf:
        raise InputValueError(f"{function}: z_loss must be finite and >= 0, got {options.z_loss}")


def temperatures(function: str, input: Tensor, temperature: float | Tensor, dim: int) -> None:
    """``temperature`` is one number, or a constant tensor of one a row; on a GPU its values are not looked at."""
    by_row(function, input, "temperature", temperature, dim)
    if isinstance(temperature, Tensor):
        least, most = _extremes(temperature)
        if not 0.0 < least <= most < math.inf:
            raise InputValueError(f"{function}: temperature must be finite and > 0 in every row")
    elif not 0.0 < temperature < math.inf:
        raise InputValueError(f"{function}: temperature must be finite and > 0, got {temperature}")


def _extremes(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest, NaN if there is one; 1 where they are not looked at: on a GPU, in a trace."""
    if values.device.type != "cpu" or values.numel() == 0 or torch.compiler.is_compiling():
        return 1.0, 1.0
    least, most = values.detach().aminmax()
    return float(least), float(most)


def noise(function: str, input: Tensor, noise: Noise, dim: int, name: str) -> None:
    """Check the noise of a call, ``name`` its arguments; the values of a tensor are looked at on the CPU alone."""
    std = noise.std
    by_row(function, input, f"{name}_std", std, dim)
    if isinstance(std, Tensor):
        least, most = _extremes(std)
        if not 0.0 <= least <= most < math.inf:
            raise InputValueError(f"{function}: {name}_std must be finite and >= 0 in every row")
    elif not 0.0 <= std < math.inf:
        raise InputValueError(f"{function}: {name}_std must be finite and >= 0, got {std}")
    if isinstance(noise.draws, bool) or not isinstance(noise.draws, INTS):
        raise InputTypeError(f"{function}: {name}_draws must be an int, got {type(noise.draws).__name__}")
    if noise.draws < 1:
        raise InputValueError(f"{function}: {name}_draws must be >= 1, got {noise.draws}")
    rows = input.shape[:dim] + input.shape[dim + 1 :]
    if noise.row_id is None:
        seed_of(function, noise.seed, "input", input)
        return
    tensor(function, "row_id", noise.row_id)
    if noise.row_id.shape != rows:
        expected = f"shape {tuple(rows)}, one number a row"
        raise InputValueError(f"{function}: row_id must have {expected}, got {tuple(noise.row_id.shape)}")
    same_device(function, input, "row_id", noise.row_id)
    draws(function, noise.row_id.reshape(-1), noise.seed, 0)


def draws(function: str, row_id: Tensor, seed: int | Tensor, step: int) -> None:
    """Check the arguments that say which random numbers are meant."""
    tensor(function, "row_id", row_id)
    if row_id.dtype != torch.int64:
        raise InputTypeError(f"{function}: row_id must be int64, got {dtype_name(row_id.dtype)}")
    if row_id.dim() != 1:
        raise InputValueError(f"{function}: row_id must have shape (N,), got {tuple(row_id.shape)}")
    seed_of(function, seed, "row_id", row_id)
    if isinstance(step, bool) or not isinstance(step, INTS):
        raise InputTypeError(f"{function}: step must be an int, got {type(step).__name__}")
    if step < 0:
        raise InputValueError(f"{function}: step must be >= 0, got {step}")


def seed_of(function: str, seed: int | Tensor, beside: str, other: Tensor) -> None:
    """Check a seed, which as a tensor lies on the device of ``other``."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            expected = "int64 where it is a tensor"
            raise InputTypeError(f"{function}: seed must be {expected}, got {dtype_name(seed.dtype)}")
        if seed.dim() != 0:
            raise InputValueError(f"{function}: seed must be 0-d where it is a tensor, got {tuple(seed.shape)}")
        if seed.device != other.device:
            expected = f"on {beside}'s device, {other.device}"
            raise InputValueError(f"{function}: seed must be {expected}, got {seed.device}")
    elif isinstance(seed, bool) or not isinstance(seed, INTS):
        raise InputTypeError(f"{function}: seed must be an int or a 0-d int64 Tensor, got {type(seed).__name__}")
    elif not -(1 << 63) <= seed < 1 << 64:
        raise InputValueError(f"{function}: seed must have 64 bits, got {seed}")
