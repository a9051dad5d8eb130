"""Argument checks. One message format: function, argument, what was expected, what came.

``InputValueError`` is a ``ValueError`` and ``InputTypeError`` a ``TypeError``, and both are also what
``F.cross_entropy`` raises for the same mistakes, so that an ``except`` written for it goes on working.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchassay.scores import BIT, NOISY_SIGNALS, ROW_SIGNALS, SIGNALS, TARGET_SIGNALS, Scores

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
        if name not in ROW_SIGNALS:
            raise InputValueError(f"{function}: signals must be among {', '.join(ROW_SIGNALS)}; got {name!r}")
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


class Ensemble(NamedTuple):
    """What the checks of a call on several draws of the logits found out."""

    names: tuple[str, ...]  # the signals in the order asked for
    noisy: int  # bits of those over the draws; predictive_entropy stands for entropy too
    mean: int  # bits of those of the mean prediction
    draws_dim: int  # counted from the front
    dim: int  # the class dimension, counted from the front once the draws come first

    def scores(self, noisy: list[Tensor], mean: list[Tensor]) -> Scores:
        """What `draw_scores` and `row_scores` gave, in the order of the bits, by name in the order asked for."""
        found = dict(zip((name for name in NOISY_SIGNALS if self.noisy & BIT[name]), noisy, strict=True))
        found |= zip((name for name in ROW_SIGNALS if self.mean & BIT[name]), mean, strict=True)
        return Scores({name: found["predictive_entropy" if name == "entropy" else name] for name in self.names})


def ensemble(
    function: str,
    input: Tensor,
    target: Tensor | None,
    names: Sequence[str] | str,
    draws_dim: int,
    dim: int,
    ignore_index: int,
) -> Ensemble:
    """Check a call that scores several draws of the logits; the target is one class a row, the same for all draws."""
    dim = logits(function, input, dim)
    ignored_index(function, ignore_index)
    shape, rank = tuple(input.shape), input.dim()
    if rank < 2:
        expected = "a dimension of draws and one of classes"
        raise InputValueError(f"{function}: input must have {expected}, got shape {shape}")
    if not -rank <= draws_dim < rank:
        expected = f"in [{-rank}, {rank - 1}] for an input of shape {shape}"
        raise InputValueError(f"{function}: draws_dim must be {expected}, got {draws_dim}")
    draws_dim %= rank
    if draws_dim == dim:
        raise InputValueError(f"{function}: draws_dim must be another dimension than dim, got {draws_dim} for both")
    if shape[draws_dim] == 0:
        raise InputValueError(f"{function}: input must have at least one draw, got shape {shape}")
    member = input.select(draws_dim, 0)
    member_dim = dim - (draws_dim < dim)
    if target is not None:
        tensor(function, "target", target)
        rows = member.shape[:member_dim] + member.shape[member_dim + 1 :]
        if target.shape != rows:
            counted = f"input {shape} without draws_dim {draws_dim} and dim {dim} is {tuple(rows)}"
            raise InputValueError(f"{function}: target has shape {tuple(target.shape)} but {counted}")
        labels(function, member, target, member_dim)
        class_range(function, target, member.shape[member_dim], ignore_index)
    names = (names,) if isinstance(names, str) else tuple(names)
    noisy = mean = 0
    allowed = [name for name in SIGNALS if name != "lse"]  # the mean of several predictions has no logits
    for name in names:
        if name not in allowed:
            raise InputValueError(f"{function}: signals must be among {', '.join(allowed)}; got {name!r}")
        if name in TARGET_SIGNALS and target is None:
            raise InputValueError(f"{function}: signal '{name}' needs a target, got none")
        if name in NOISY_SIGNALS or name == "entropy":
            noisy |= BIT["predictive_entropy" if name == "entropy" else name]
        else:
            mean |= BIT[name]
    return Ensemble(names, noisy, mean, draws_dim, member_dim + 1)
