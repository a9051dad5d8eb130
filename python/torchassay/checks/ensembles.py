"""Calls on several draws of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from torchassay.checks.arguments import InputValueError, class_range, ignored_index, labels, logits, tensor
from torchassay.scores import BIT, NOISY_SIGNALS, ROW_SIGNALS, SIGNALS, TARGET_SIGNALS, Scores


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
