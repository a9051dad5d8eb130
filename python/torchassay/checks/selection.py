"""Calls that pick the largest of some values."""

from __future__ import annotations

from torch import Tensor

from torchassay.checks.arguments import NUMBERS, InputTypeError, InputValueError, floating, mask_of


def top_fraction(function: str, values: Tensor, fraction: float, mask: Tensor | None) -> None:
    floating(function, "values", values)
    if isinstance(fraction, bool) or not isinstance(fraction, NUMBERS):
        raise InputTypeError(f"{function}: fraction must be a number, got {type(fraction).__name__}")
    if not 0.0 <= fraction <= 1.0:
        raise InputValueError(f"{function}: fraction must be in [0, 1], got {fraction}")
    if mask is not None:
        mask_of(function, values, mask)
