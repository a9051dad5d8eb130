"""Whole calls: what they ask for, and whether their arguments go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from torchassay.checks.arguments import (
    InputTypeError,
    InputValueError,
    ignored_index,
    labels,
    logits,
    probabilities,
    reduced_by,
    tensor,
)
from torchassay.checks.options import loss_options, temperatures
from torchassay.checks.options import noise as check_noise
from torchassay.options import Noise, Options
from torchassay.scores import BIT, LINEAR_SIGNALS, NOISY_SIGNALS, ROW_SIGNALS, TARGET_SIGNALS, Scores


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

    def scores(self, outputs: Sequence[Tensor]) -> Scores:
        """``outputs``, which are in the order of the bits, by name in the order asked for."""
        found = dict(zip(self.in_order, outputs, strict=True))
        return Scores(found if self.in_order == self.names else {name: found[name] for name in self.names})

    def with_probability(
        self, scores: Scores, outputs: Sequence[Tensor], history, target: Tensor | None, ignore_index: int
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
    noise_name: str = "noise",
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
        check_noise(function, input, noise, dim, noise_name)
    if names is None:
        names = ("entropy", "confidence", "margin") if target is None else ("loss", "entropy", "grad_norm")
        names = names if noise is None else (*names, "noisy_entropy")
    found = target is not None, labelled, known, None if noise is not None else noise_name
    names = signals(function, names, *found)
    bits, ordered = 0, True
    for name in names:
        ordered = ordered and BIT[name] > bits
        bits |= BIT[name]
    if extra and not bits & BIT[extra]:
        signals(function, extra, *found)
        bits, ordered = bits | BIT[extra], False
    in_order = names if ordered else tuple(name for name in LINEAR_SIGNALS if bits & BIT[name])
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
    reduced_by(function, reduction)
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


def signals(
    function: str,
    names: Sequence[str] | str,
    with_target: bool,
    labelled: bool,
    known: tuple[str, ...] = ROW_SIGNALS,
    lacks_noise: str | None = "noise",  # None, or the name of the noise that is not there
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
        if name in NOISY_SIGNALS and lacks_noise is not None:
            raise InputValueError(f"{function}: signal '{name}' needs {lacks_noise}_std > 0, got 0.0")
    return names


def signal_of(history, function: str) -> str:
    """The signal that a `History` takes the values of."""
    if not hasattr(history, "probability"):
        raise InputTypeError(f"{function}: history must be a History, got {type(history).__name__}")
    return history.signal
