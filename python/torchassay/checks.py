"""Argument checks. One message format: function, argument, what was expected, what came.

``InputValueError`` is a ``ValueError`` and ``InputTypeError`` a ``TypeError``, and both are also what
``F.cross_entropy`` raises for the same mistakes, so that an ``except`` written for it goes on working.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchassay.options import Noise, Options
from torchassay.scores import BIT, NOISY_SIGNALS, ROW_SIGNALS, SIGNALS, TARGET_SIGNALS, Scores

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTS = (int, torch.SymInt)  # under compile
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class InputValueError(ValueError, RuntimeError, IndexError):
    """A shape, value or device that does not fit."""


class InputTypeError(TypeError, NotImplementedError):
    """A dtype or Python type that does not fit."""


class Call(NamedTuple):
    """What the checks of a call found out."""

    names: tuple[str, ...]  # the signals in the order asked for
    in_order: tuple[str, ...]  # these and the history's signal, in the order of the bits
    signals: int  # their bits
    dim: int  # the class dimension, counted from the front
    plain: bool  # class labels or no target, and no options

    def with_loss(self) -> Call:
        """The same call, which also computes the loss."""
        return self._replace(signals=self.signals | BIT["loss"])

    def scores(self, outputs: list[Tensor]) -> Scores:
        """``outputs``, which are in the order of the bits, by name in the order asked for."""
        found = dict(zip(self.in_order, outputs, strict=True))
        return Scores(found if self.in_order == self.names else {name: found[name] for name in self.names})

    def with_probability(
        self, scores: Scores, outputs: list[Tensor], history, target: Tensor | None, ignore_index: int
    ) -> Scores:
        """``scores`` and ``select_prob``, by the `History` that the call was given."""
        labelled = target is not None and not target.is_floating_point()
        values = outputs[self.in_order.index(history.signal)]
        chance = history.probability(values, mask=target != ignore_index if labelled else None)
        return Scores({**scores.as_dict(), "select_prob": chance})


def score(
    function: str,
    input: Tensor,
    target: Tensor | None,
    names: Sequence[str] | str | None,
    dim: int,
    options: Options | None,
    ignore_index: int,
    extra: str = "",
    known: tuple[str, ...] = ROW_SIGNALS,
    noise: Noise | None = None,
) -> Call:
    """Check a call that scores rows; ``names`` None: the defaults of `torchassay.score`; ``extra`` is computed too."""
    dim = logits(function, input, dim)
    ignored_index(function, ignore_index)
    labelled = True
    if target is not None:
        tensor(function, "target", target)
        if target.shape == input.shape or (target.is_floating_point() and target.dim() == input.dim()):
            probabilities(function, input, target, ignore_index)
            labelled = False
        else:
            labels(function, input, target, dim)
    if options is not None:
        loss_options(function, input, target is not None, options, dim)
    if noise is not None:
        logit_noise(function, input, noise, dim)
    if names is None:
        names = ("entropy", "confidence", "margin") if target is None else ("loss", "entropy", "grad_norm")
        names = names if noise is None else (*names, "noisy_entropy")
    names = signals(function, names, target is not None, labelled, known, noise is not None)
    bits, ordered = 0, True
    for name in names:
        ordered = ordered and BIT[name] > bits
        bits |= BIT[name]
    if extra and not bits & BIT[extra]:
        signals(function, extra, target is not None, labelled, known, noise is not None)
        bits, ordered = bits | BIT[extra], False
    in_order = names if ordered else tuple(name for name in SIGNALS if bits & BIT[name])
    return Call(names, in_order, bits, dim, labelled and options is None)


def cross_entropy(
    function: str,
    input: Tensor,
    target: Tensor,
    names: Sequence[str] | str,
    dim: int | None,
    options: Options | None,
    ignore_index: int,
    reduction: str,
) -> Call:
    """Check a call of the loss; ``dim`` None is torch's rule: 1, or 0 for a single sample."""
    tensor(function, "target", target)
    if reduction not in ("none", "mean", "sum"):
        raise InputValueError(f"{function}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if dim is None:
        tensor(function, "input", input)
        dim = 1 if input.dim() > 1 else 0
    return score(function, input, target, names, dim, options, ignore_index)


def log_prob(
    function: str,
    input: Tensor,
    target: Tensor,
    dim: int,
    options: Options | None,
    ignore_index: int,
    several: bool = True,
) -> tuple[int, bool]:
    """The class dimension, and whether the target has a last dimension of several classes a row, if it may."""
    dim = logits(function, input, dim)
    ignored_index(function, ignore_index)
    if options is not None:
        temperatures(function, input, options.temperature, dim)
    labels(function, input, target, dim, trailing=True)
    if target.dim() == input.dim() and not several:
        expected = f"shape {tuple(target.shape[:-1])}, one class a row"
        raise InputValueError(f"{function}: target must have {expected}, got {tuple(target.shape)}")
    return dim, target.dim() == input.dim()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor(function: str, argument: str, value) -> None:
    if not isinstance(value, Tensor):
        raise InputTypeError(f"{function}: {argument} must be a Tensor, got {type(value).__name__}")


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


def same_device(function: str, input: Tensor, argument: str, value: Tensor) -> None:
    if value.device != input.device:
        expected = f"on input's device, {input.device}"
        raise InputValueError(f"{function}: {argument} must be {expected}, got {value.device}")


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


def signals(
    function: str,
    names: Sequence[str] | str,
    with_target: bool,
    labelled: bool,
    known: tuple[str, ...] = ROW_SIGNALS,
    noisy: bool = False,
) -> tuple[str, ...]:
    """The asked signals as a tuple, all ``known``. ``labelled``: the target holds classes, not probabilities."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in known:
            raise InputValueError(f"{function}: signals must be among {', '.join(known)}; got {name!r}")
        if name in TARGET_SIGNALS and not with_target:
            raise InputValueError(f"{function}: signal '{name}' needs a target, got none")
        if name == "target_margin" and not labelled:
            raise InputValueError(f"{function}: signal 'target_margin' needs class indices, got class probabilities")
        if name in NOISY_SIGNALS and not noisy:
            raise InputValueError(f"{function}: signal '{name}' needs noise_std > 0, got 0.0")
    return names


def signal_of(history, function: str) -> str:
    """The signal that a `History` takes the values of."""
    if not hasattr(history, "probability"):
        raise InputTypeError(f"{function}: history must be a History, got {type(history).__name__}")
    return history.signal


def ignored_index(function: str, ignore_index: int) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, _INTS):
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
        if value is not None and (isinstance(value, bool) or not isinstance(value, _NUMBERS)):
            raise InputTypeError(f"{function}: {argument} must be a number, got {type(value).__name__}")
    if options.softcap is not None and not 0.0 < options.softcap < math.inf:
        raise InputValueError(f"{function}: softcap must be finite and > 0, got {options.softcap}")
    if not 0.0 <= options.z_loss < math.inf:
        raise InputValueError(f"{function}: z_loss must be finite and >= 0, got {options.z_loss}")


def temperatures(function: str, input: Tensor, temperature: float | Tensor, dim: int) -> None:
    """``temperature`` is one number, or a constant tensor of one a row; on a GPU its values are not looked at."""
    by_row(function, input, "temperature", temperature, dim)
    if isinstance(temperature, Tensor):
        looked_at = temperature.device.type == "cpu" and not torch.compiler.is_compiling()
        if looked_at and not bool(((temperature > 0) & (temperature < math.inf)).all()):
            raise InputValueError(f"{function}: temperature must be finite and > 0 in every row")
    elif not 0.0 < temperature < math.inf:
        raise InputValueError(f"{function}: temperature must be finite and > 0, got {temperature}")


def by_row(function: str, input: Tensor, argument: str, value: float | Tensor, dim: int) -> None:
    """``value`` is a number, or a float tensor of one number a row that needs no gradient."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, _NUMBERS):
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


def logit_noise(function: str, input: Tensor, noise: Noise, dim: int) -> None:
    """Check the noise of a call; the values of a tensor are looked at on the CPU alone."""
    std = noise.std
    by_row(function, input, "noise_std", std, dim)
    if isinstance(std, Tensor):
        looked_at = std.device.type == "cpu" and not torch.compiler.is_compiling()
        if looked_at and not bool(((std >= 0) & (std < math.inf)).all()):
            raise InputValueError(f"{function}: noise_std must be finite and >= 0 in every row")
    elif not 0.0 <= std < math.inf:
        raise InputValueError(f"{function}: noise_std must be finite and >= 0, got {std}")
    if isinstance(noise.draws, bool) or not isinstance(noise.draws, _INTS):
        raise InputTypeError(f"{function}: noise_draws must be an int, got {type(noise.draws).__name__}")
    if noise.draws < 1:
        raise InputValueError(f"{function}: noise_draws must be >= 1, got {noise.draws}")
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
    if isinstance(step, bool) or not isinstance(step, _INTS):
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
    elif isinstance(seed, bool) or not isinstance(seed, _INTS):
        raise InputTypeError(f"{function}: seed must be an int or a 0-d int64 Tensor, got {type(seed).__name__}")
    elif not -(1 << 63) <= seed < 1 << 64:
        raise InputValueError(f"{function}: seed must have 64 bits, got {seed}")
