"""The module forms of `cross_entropy` and `score`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchassay import functional
from torchassay.scores import Scores


class CrossEntropyLoss(torch.nn.Module):
    """`torch.nn.CrossEntropyLoss` that can return the scores of the batch too.

    Args:
        weight: [C], class weights; a buffer, so it moves with the module.
        ignore_index, reduction, label_smoothing, dim, signals, temperature, softcap, z_loss, backend: as in
            `torchassay.cross_entropy`.

    ``forward(input, target)`` gives the loss, or with ``signals`` the pair (loss, `Scores`), and raises what
    `torchassay.cross_entropy` raises.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        dim: int | None = None,
        signals: Sequence[str] | str = (),
        temperature: float | Tensor = 1.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
        backend: str | None = None,
    ):
        super().__init__()
        self.register_buffer("weight", weight)
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "reduction": reduction,
            "label_smoothing": label_smoothing,
            "dim": dim,
            "signals": signals,
            "temperature": temperature,
            "softcap": softcap,
            "z_loss": z_loss,
            "backend": backend,
        }

    def forward(self, input: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Scores]:
        return functional.cross_entropy(input, target, self.weight, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class Scorer(torch.nn.Module):
    """`torchassay.score` with its options fixed: ``Scorer(("loss", "entropy"))(logits, target)`` gives `Scores`.

    A single name gives a tensor: ``Scorer("entropy")(logits)``. Errors are those of `torchassay.score`.

    Args:
        signals: names among `torchassay.SIGNALS`, or one name.
        options: keyword arguments of `torchassay.score`.
    """

    def __init__(self, signals: Sequence[str] | str, **options: Any):
        super().__init__()
        self.signals = signals
        self.options = options

    def forward(self, input: Tensor, target: Tensor | None = None) -> Scores | Tensor:
        scores = functional.score(input, target, signals=self.signals, **self.options)
        return getattr(scores, self.signals) if isinstance(self.signals, str) else scores

    def extra_repr(self) -> str:
        return ", ".join([repr(self.signals), *(f"{name}={value!r}" for name, value in self.options.items())])
