"""Mini-batch trimming and online hard example mining: train on the largest losses of each batch."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.samplers.in_step import Chosen, InStep, checked_signal, largest


class BatchTrimming(InStep):
    """Keep a share p of each batch, that of the largest losses, and drop the rest.

    Mini-batch trimming (Fassold 2021, arXiv 2110.13058, section 3): p falls linearly with the epoch, from 1 in the
    first to ``p_end`` in the last. With a constant p it is OHEM (Shrivastava et al. 2016, arXiv 1604.03540). There are
    no weights: the loss is the mean over what is kept. Wrong labels have large losses: on noisy data it trains on them.

    Args:
        epochs: of the whole training; p = 1 - (1 - p_end) * epoch / (epochs - 1), and 1 if there is a single one (an
            assumption: the paper has many). Needs `set_epoch`, which `batches` calls by itself.
        p_end: in (0, 1]; the paper has 0.2.
        p: in (0, 1], the constant share instead of ``epochs``.
        signal: a name among `torchassay.SIGNALS`; the papers take the loss.
        seed, group: as in `InStep`; nothing is random here. Each rank trims its own part of the batch.

    max(1, round(p n)) of n samples are kept, halves to even (an assumption: the paper does not say how it rounds); of
    equal values the first samples are. NaN counts as the largest.

    Raises:
        ValueError: an argument out of range, or both or neither of ``epochs`` and ``p``.
        TypeError: an argument of another type.
        RuntimeError: while picking, a schedule by epochs that nobody has told the epoch.
    """

    def __init__(
        self,
        epochs: int | None = None,
        p_end: float = 0.2,
        *,
        p: float | None = None,
        signal: str = "loss",
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ):
        name = "BatchTrimming"
        if (epochs is None) == (p is None):
            raise checks.InputValueError(f"{name}: one of epochs and p must be given, got {epochs} and {p}")
        if epochs is not None:
            checks.integer(name, "epochs", epochs, 1)
        for argument, value in (("p_end", p_end), ("p", p)):
            if value is not None and not 0.0 < value <= 1.0:
                raise checks.InputValueError(f"{name}: {argument} must be in (0, 1], got {value}")
        checked_signal(name, signal)
        super().__init__((signal,), seed=seed, group=group)
        self.epochs, self.p_end, self.p = epochs, p_end, p

    @property
    def share(self) -> float:
        """p of this epoch."""
        if self.p is not None:
            return self.p
        last = self.epochs - 1  # type: ignore[operator]  # without p there are epochs
        return 1 - (1 - self.p_end) * min(self._needs_epoch(), last) / last if last else 1.0

    def _choose(self, scores: dict[str, Tensor], index: Tensor | None, mask: Tensor | None) -> Chosen:
        return largest(scores[self.needs[0]], self.share, mask)
