"""Calls that give hidden states and a linear head instead of logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchassay.checks.arguments import (
    FLOATS,
    INTEGERS,
    INTS,
    InputTypeError,
    InputValueError,
    dtype_name,
    labels,
    same_device,
    tensor,
)
from torchassay.checks.calls import Call, score
from torchassay.options import Noise, Options
from torchassay.scores import LINEAR_SIGNALS, NOISY_SIGNALS


def linear(
    function: str,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    names: Sequence[str] | str | None,
    options: Options | None,
    ignore_index: int,
    extra: str = "",
    noise: Noise | None = None,
    *,
    loss: bool,
) -> Call:
    """Check a call that scores what a linear head would give, or one for its loss, which needs a target and knows no
    noise; its class dimension is the last."""
    if loss:
        tensor(function, "target", target)
    for argument, value in (("input", input), ("linear_weight", linear_weight)):
        tensor(function, argument, value)
        if value.dtype not in FLOATS:
            expected = "float16, bfloat16, float32 or float64"
            raise InputTypeError(f"{function}: {argument} must be {expected}, got {dtype_name(value.dtype)}")
    if input.dim() == 0:
        raise InputValueError(f"{function}: input must have shape (..., D), got a 0-d tensor")
    features = input.shape[-1]
    if linear_weight.dim() != 2 or linear_weight.shape[1] != features or 0 in linear_weight.shape:
        expected = f"shape (V, {features}), of input's last dimension"
        raise InputValueError(f"{function}: linear_weight must have {expected}, got {tuple(linear_weight.shape)}")
    _beside(function, input, "linear_weight", linear_weight)
    classes = len(linear_weight)
    if linear_bias is not None:
        tensor(function, "linear_bias", linear_bias)
        if tuple(linear_bias.shape) != (classes,):
            expected = f"shape ({classes},), one number a class"
            raise InputValueError(f"{function}: linear_bias must have {expected}, got {tuple(linear_bias.shape)}")
        _beside(function, input, "linear_bias", linear_bias)
    if target is not None:
        rows = input.shape[:-1]
        if isinstance(target, Tensor) and target.dtype in INTEGERS and target.shape != rows:
            expected = f"shape {tuple(rows)}, one class a row"
            raise InputValueError(f"{function}: target must have {expected}, got {tuple(target.shape)}")
        labels(function, input, target, input.dim() - 1)
    logits = input.detach().new_empty(()).expand(*input.shape[:-1], classes)  # their shape, without their memory
    known = tuple(name for name in LINEAR_SIGNALS if not loss or name not in NOISY_SIGNALS)
    rest = options, ignore_index, extra, known, noise, "feature_noise"
    return score(function, logits, target, names, -1, *rest)


def _beside(function: str, input: Tensor, argument: str, value: Tensor) -> None:
    same_device(function, input, argument, value)
    if value.dtype != input.dtype:
        expected = f"input's dtype, {dtype_name(input.dtype)}"
        raise InputTypeError(f"{function}: {argument} must have {expected}, got {dtype_name(value.dtype)}")


def workspace(function: str, most: int | None, least: int, classes: int, rows: int) -> None:
    """``most`` is None, or an int and at least ``least``, the bytes that so many classes of all rows take."""
    if most is None:
        return
    if isinstance(most, bool) or not isinstance(most, INTS):
        raise InputTypeError(f"{function}: max_workspace_bytes must be an int, got {type(most).__name__}")
    if most < least:
        expected = f"at least {least}, for {classes} classes of {rows} rows"
        raise InputValueError(f"{function}: max_workspace_bytes must be {expected}, got {most}")
