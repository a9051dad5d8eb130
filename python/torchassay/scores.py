"""The signals by name, and ``Scores``, the container that every scoring function returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

ROW_SIGNALS = (  # of the logits as they are: what the op row_scores knows
    "loss",
    "entropy",
    "grad_norm",
    "lse",
    "confidence",
    "least_confidence",
    "margin",
    "gini",
    "target_margin",
    "prediction",
)
NOISY_SIGNALS = ("noisy_entropy", "predictive_entropy", "mutual_information")  # of several draws: the op draw_scores
SIGNALS = ROW_SIGNALS + NOISY_SIGNALS
LINEAR_SIGNALS = (*SIGNALS, "weight_grad_norm")  # of hidden states and a linear head
TARGET_SIGNALS = ("loss", "grad_norm", "target_margin", "weight_grad_norm")
BIT = {name: 1 << i for i, name in enumerate(LINEAR_SIGNALS)}
ROW_BITS = sum(BIT[name] for name in ROW_SIGNALS)
STATS = 1 << len(LINEAR_SIGNALS)  # the numbers a row that the backward needs: reference/rows.py, options.py
TARGET_BITS = BIT["loss"] | BIT["grad_norm"] | BIT["target_margin"]


class Scores:
    """The signals of a batch, one tensor each, shaped like the logits without their class dimension.

    Only what was asked for is there: ``s.loss``, ``s.entropy``, ... are float32 (float64 for float64 logits),
    ``s.prediction`` is int64, ``s.select_prob`` is float32 and comes with a `History`; any other name raises
    ``AttributeError`` and says what was asked. ``s[mask]`` and ``s[i]`` index every tensor alike. A ``Scores`` is a
    pytree, copies and pickles.
    """

    def __init__(self, values: dict[str, Tensor]):
        self._values = values

    @property
    def signals(self) -> tuple[str, ...]:
        """The names that are present."""
        return tuple(self._values)

    def as_dict(self) -> dict[str, Tensor]:
        """``{name: tensor}``, a new dict around the same tensors."""
        return dict(self._values)

    def __getattr__(self, name: str) -> Tensor:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        if name in LINEAR_SIGNALS:
            raise AttributeError(f"Scores has no '{name}': it was not asked for (signals={tuple(values)})")
        if name == "select_prob":
            raise AttributeError("Scores has no 'select_prob': it comes with score(..., history=)")
        raise AttributeError(f"Scores has no '{name}'; signals={tuple(values)}")

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._values]

    def __len__(self) -> int:
        return len(next(iter(self._values.values())))

    def __repr__(self) -> str:
        parts = (f"{name}={tuple(value.shape)}" for name, value in self._values.items())
        return f"Scores({', '.join(parts)})"

    def __getitem__(self, index: Any) -> Scores:
        return self._map(lambda value: value[index])

    def cpu(self) -> Scores:
        """The same scores in host memory."""
        return self._map(Tensor.cpu)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Scores:
        return Scores({name: function(value) for name, value in self._values.items()})

    @staticmethod
    def cat(parts: Sequence[Scores]) -> Scores:
        """Join scores of several batches along their first dimension.

        Raises:
            ValueError: if ``parts`` is empty or the parts do not hold the same signals.
        """
        if not parts:
            raise ValueError("Scores.cat: parts must hold at least one Scores, got none")
        names = parts[0].signals
        for part in parts:
            if part.signals != names:
                raise ValueError(f"Scores.cat: parts must hold the same signals, got {names} and {part.signals}")
        return Scores({name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def per_sample(self, mask: Tensor, reduce: str = "mean") -> Scores:
        """Reduce per-token scores [B, T] to per-sample scores [B].

        Args:
            mask: bool [B, T], True where a token counts. What stands elsewhere, NaN included, has no effect.
            reduce: "mean", "sum" or "max" over the counted tokens; a sample without any gets 0.

        ``prediction`` is a class, not a quantity, and is left out.

        Raises:
            TypeError: if ``mask`` is not bool.
            ValueError: if ``mask`` has another shape than the scores, or ``reduce`` another value.
        """
        if reduce not in ("mean", "sum", "max"):
            raise ValueError(f"Scores.per_sample: reduce must be 'mean', 'sum' or 'max', got {reduce!r}")
        if mask.dtype != torch.bool:
            raise TypeError(f"Scores.per_sample: mask must be bool, got {str(mask.dtype).removeprefix('torch.')}")
        values = {name: value for name, value in self._values.items() if name != "prediction"}
        for name, value in values.items():
            if value.dim() != 2 or value.shape != mask.shape:
                shapes = f"mask {tuple(mask.shape)} and {name} {tuple(value.shape)}"
                raise ValueError(f"Scores.per_sample: mask and scores must share one shape [B, T], got {shapes}")
        count = mask.sum(1)

        def reduced(value: Tensor) -> Tensor:
            if reduce == "max" and value.shape[1]:
                top = value.masked_fill(~mask, -torch.inf).amax(1)
                return torch.where(count > 0, top, 0)
            total = value.masked_fill(~mask, 0).sum(1)
            return total if reduce == "sum" else total / count.clamp(min=1)

        return Scores({name: reduced(value) for name, value in values.items()})


def _flatten(scores: Scores) -> tuple[list[Tensor], tuple[str, ...]]:
    return list(scores.as_dict().values()), scores.signals


def _unflatten(values: Iterable[Tensor], names: Iterable[str]) -> Scores:
    return Scores(dict(zip(names, values, strict=True)))


_pytree.register_pytree_node(
    Scores,
    _flatten,
    _unflatten,
    serialized_type_name="torchassay.Scores",
    to_dumpable_context=list,
    from_dumpable_context=tuple,  # JSON has lists only
)
