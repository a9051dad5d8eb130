"""Calls on heads without classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchassay.checks.arguments import (
    FLOATS,
    InputTypeError,
    InputValueError,
    dtype_name,
    same_device,
    tensor,
)


def binary(
    function: str, input: Tensor, target: Tensor, pos_weight: Tensor | None, names: Sequence[str] | str | None
) -> tuple[str, ...]:
    """Check a call on the logits of independent labels; the asked signals."""
    names = _head(function, input, target, names, ("loss", "entropy", "grad_norm"))
    if target.is_complex():
        raise InputTypeError(f"{function}: target must be real, got {dtype_name(target.dtype)}")
    if pos_weight is None:
        return names
    tensor(function, "pos_weight", pos_weight)
    if not pos_weight.is_floating_point():
        raise InputTypeError(f"{function}: pos_weight must have a float dtype, got {dtype_name(pos_weight.dtype)}")
    same_device(function, input, "pos_weight", pos_weight)
    labels = input.shape[1] if input.dim() == 2 else 1
    if pos_weight.dim() and tuple(pos_weight.shape) != (labels,):
        expected = f"shape ({labels},), one number a label, or ()"
        raise InputValueError(f"{function}: pos_weight must have {expected}, got {tuple(pos_weight.shape)}")
    return names


def regression(
    function: str, input: Tensor, target: Tensor, loss: str, delta: float, names: Sequence[str] | str | None
) -> tuple[str, ...]:
    """Check a call on the outputs of a regression; the asked signals."""
    names = _head(function, input, target, names, ("loss", "grad_norm"))
    if not target.is_floating_point():
        got = f"{dtype_name(target.dtype)}; did you mean target.float()?"
        raise InputTypeError(f"{function}: target must have a float dtype, got {got}")
    if loss not in ("mse", "l1", "huber"):
        raise InputValueError(f"{function}: loss must be 'mse', 'l1' or 'huber', got {loss!r}")
    if isinstance(delta, bool) or not isinstance(delta, (int, float)):
        raise InputTypeError(f"{function}: delta must be a float, got {type(delta).__name__}")
    if not delta > 0:
        raise InputValueError(f"{function}: delta must be > 0, got {delta}")
    return names


def _head(
    function: str, input: Tensor, target: Tensor, names: Sequence[str] | str | None, among: tuple[str, ...]
) -> tuple[str, ...]:
    """What all heads without classes have in common; the asked signals, by default all that there are."""
    tensor(function, "input", input)
    if input.dtype not in FLOATS:
        expected = "float16, bfloat16, float32 or float64"
        raise InputTypeError(f"{function}: input must be {expected}, got {dtype_name(input.dtype)}")
    tensor(function, "target", target)
    same_device(function, input, "target", target)
    if input.dim() not in (1, 2):
        hint = "; did you mean input.flatten(1) and target.flatten(1)?" if input.dim() > 2 else ""
        raise InputValueError(f"{function}: input must have shape (N,) or (N, L), got {tuple(input.shape)}{hint}")
    if input.dim() == 2 and input.shape[1] == 0:
        raise InputValueError(f"{function}: input must have at least one output, got shape {tuple(input.shape)}")
    if target.shape != input.shape:
        hint = ""
        if target.numel() == input.numel():
            hint = "; did you mean target.view_as(input)?"
        elif target.shape == input.shape[:1] and not target.is_floating_point():
            hint = "; classes, one a sample, are for score"
        expected = f"input's shape {tuple(input.shape)}"
        raise InputValueError(f"{function}: target must have {expected}, got {tuple(target.shape)}{hint}")
    names = among if names is None else (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in among:
            raise InputValueError(f"{function}: signals must be among {', '.join(among)}; got {name!r}")
    return names
