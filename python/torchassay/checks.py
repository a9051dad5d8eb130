"""Argument checks. One message format: function, argument, what was expected, what came.

``InputValueError`` is a ``ValueError`` and ``InputTypeError`` a ``TypeError``, and both are also what
``F.cross_entropy`` raises for the same mistakes, so that an ``except`` written for it goes on working.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchassay.scores import BIT, SIGNALS, TARGET_SIGNALS, Scores

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTS = (int, torch.SymInt)  # under compile
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
    plain: bool  # no option that only the reference has

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
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    extra: str = "",
) -> Call:
    """Check a call that scores rows; ``names`` None: the defaults of `torchassay.score`; ``extra`` is computed too."""
    dim = logits(function, input, dim)
    ignored_index(function, ignore_index)
    plain = weight is None and label_smoothing == 0.0
    labelled = True
    if target is not None:
        tensor(function, "target", target)
        if target.shape == input.shape or (target.is_floating_point() and target.dim() == input.dim()):
            probabilities(function, input, target, ignore_index)
            plain = labelled = False
        else:
            labels(function, input, target, dim)
        if not plain:
            loss_options(function, input, weight, label_smoothing, dim)
    elif not plain:
        raise InputValueError(f"{function}: weight and label_smoothing need a target, got none")
    if names is None:
        names = ("entropy", "confidence", "margin") if target is None else ("loss", "entropy", "grad_norm")
    names = signals(function, names, target is not None, labelled)
    bits, ordered = 0, True
    for name in names:
        ordered = ordered and BIT[name] > bits
        bits |= BIT[name]
    if extra and not bits & BIT[extra]:
        signals(function, extra, target is not None, labelled)
        bits, ordered = bits | BIT[extra], False
    in_order = names if ordered else tuple(name for name in SIGNALS if bits & BIT[name])
    return Call(names, in_order, bits, dim, plain)


def cross_entropy(
    function: str,
    input: Tensor,
    target: Tensor,
    names: Sequence[str] | str,
    dim: int | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Call:
    """Check a call of the loss; ``dim`` None is torch's rule: 1, or 0 for a single sample."""
    tensor(function, "target", target)
    if reduction not in ("none", "mean", "sum"):
        raise InputValueError(f"{function}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if dim is None:
        tensor(function, "input", input)
        dim = 1 if input.dim() > 1 else 0
    return score(function, input, target, names, dim, weight, ignore_index, label_smoothing)


def log_prob(
    function: str, input: Tensor, target: Tensor, dim: int, ignore_index: int, several: bool = True
) -> tuple[int, bool]:
    """The class dimension, and whether the target has a last dimension of several classes a row, if it may."""
    dim = logits(function, input, dim)
    ignored_index(function, ignore_index)
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


def signals(function: str, names: Sequence[str] | str, with_target: bool, labelled: bool) -> tuple[str, ...]:
    """The asked signals as a tuple. ``labelled``: the target holds classes, not probabilities."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in BIT:
            raise InputValueError(f"{function}: signals must be among {', '.join(SIGNALS)}; got {name!r}")
        if name in TARGET_SIGNALS and not with_target:
            raise InputValueError(f"{function}: signal '{name}' needs a target, got none")
        if name == "target_margin" and not labelled:
            raise InputValueError(f"{function}: signal 'target_margin' needs class indices, got class probabilities")
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


def loss_options(function: str, input: Tensor, weight: Tensor | None, label_smoothing: float, dim: int) -> None:
    if not 0.0 <= label_smoothing <= 1.0:
        raise InputValueError(f"{function}: label_smoothing must be in [0, 1], got {label_smoothing}")
    if weight is None:
        return
    tensor(function, "weight", weight)
    if not weight.is_floating_point():
        raise InputTypeError(f"{function}: weight must have a float dtype, got {dtype_name(weight.dtype)}")
    same_device(function, input, "weight", weight)
    if tuple(weight.shape) != (input.shape[dim],):
        expected = f"shape ({input.shape[dim]},), one number a class"
        raise InputValueError(f"{function}: weight must have {expected}, got {tuple(weight.shape)}")


def draws(function: str, row_id: Tensor, seed: int | Tensor, step: int) -> None:
    """Check the arguments that say which random numbers are meant."""
    tensor(function, "row_id", row_id)
    if row_id.dtype != torch.int64:
        raise InputTypeError(f"{function}: row_id must be int64, got {dtype_name(row_id.dtype)}")
    if row_id.dim() != 1:
        raise InputValueError(f"{function}: row_id must have shape (N,), got {tuple(row_id.shape)}")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            expected = "int64 where it is a tensor"
            raise InputTypeError(f"{function}: seed must be {expected}, got {dtype_name(seed.dtype)}")
        if seed.dim() != 0:
            raise InputValueError(f"{function}: seed must be 0-d where it is a tensor, got {tuple(seed.shape)}")
        if seed.device != row_id.device:
            expected = f"on row_id's device, {row_id.device}"
            raise InputValueError(f"{function}: seed must be {expected}, got {seed.device}")
    elif isinstance(seed, bool) or not isinstance(seed, _INTS):
        raise InputTypeError(f"{function}: seed must be an int or a 0-d int64 Tensor, got {type(seed).__name__}")
    elif not -(1 << 63) <= seed < 1 << 64:
        raise InputValueError(f"{function}: seed must have 64 bits, got {seed}")
    if isinstance(step, bool) or not isinstance(step, _INTS):
        raise InputTypeError(f"{function}: step must be an int, got {type(step).__name__}")
    if step < 0:
        raise InputValueError(f"{function}: step must be >= 0, got {step}")


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
