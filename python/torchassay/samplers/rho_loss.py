"""RHO-Loss: train on what is not learnt yet, but can be."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.samplers.in_step import Chosen, InStep, largest


class RHOLoss(InStep):
    """Of each pool train on the samples with the largest reducible loss: loss - irreducible loss.

    RHO-Loss of Mindermann et al. (2022, arXiv 2206.07137): the irreducible loss is a sample's loss under a
    model that was trained on other data. It is high where the label is wrong and where the input says too little: such
    samples are left out, though their loss is large. There are no weights. The pool is the batch that is scored:
    `batches` makes one training batch of each batch of the loader (320 samples and 32 of them are what the authors'
    code is remembered to have, an assumption), so the loader's ``batch_size`` is the pool's.

    Args:
        irreducible: [N] float, by the samples' index in the data set: a tensor, or a field of a `SampleMemory`. It may
            lie on any device; where the index lies nothing waits. It is not copied.
        fraction: in (0, 1]: of the n samples max(1, round(fraction * n)) are picked, halves to even (an assumption).
        seed, group: as in `InStep`; nothing is random here. Each rank picks from its own part of the batch.

    The index is required: `pick` needs ``index=``, and `batches` a loader whose data set is a `torchassay.Indexed`. Of
    equal values the first sample is picked; where the loss or the irreducible loss is NaN, as in a memory that never
    saw the sample, it comes last.

    Raises:
        ValueError: an argument out of range, or an index while picking.
        TypeError: an argument of another type, or no index while picking.

    Example:
        >>> import torch, torchassay as ta
        >>> x, y, holdout = torch.randn(640, 4), torch.randint(3, (640,)), torch.nn.Linear(4, 3)
        >>> memory = ta.SampleMemory(640)  # under a model that was trained on other data:
        >>> for index in torch.arange(640).split(128):
        ...     with torch.no_grad():
        ...         memory.update(index, ta.score(holdout(x[index]), y[index], signals=("loss",)), step=0)
        >>> picker = ta.samplers.RHOLoss(memory["loss"])
        >>> index = torch.arange(320)  # of the batch
        >>> model = torch.nn.Linear(4, 3)
        >>> loss, s = ta.cross_entropy(model(x[index]), y[index], reduction="none", signals=picker.needs)
        >>> int(picker.pick(s, index=index).mask.sum())
        32
    """

    def __init__(
        self,
        irreducible: Tensor,
        fraction: float = 0.1,
        *,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ):
        checks.tensor("RHOLoss", "irreducible", irreducible)
        if not irreducible.is_floating_point() or irreducible.dim() != 1:
            got = f"{checks.dtype_name(irreducible.dtype)} of shape {tuple(irreducible.shape)}"
            raise checks.InputValueError(f"RHOLoss: irreducible must be floating-point of shape (N,), got {got}")
        if not 0.0 < fraction <= 1.0:
            raise checks.InputValueError(f"RHOLoss: fraction must be in (0, 1], got {fraction}")
        super().__init__(("loss",), seed=seed, group=group)
        self.irreducible, self.fraction = irreducible.detach(), fraction

    def _choose(self, scores: dict[str, Tensor], index: Tensor | None, mask: Tensor | None) -> Chosen:
        loss = scores["loss"]
        reducible = loss - self._irreducible_of(index, mask).to(loss.device)
        return largest(reducible.nan_to_num(nan=torch.finfo(reducible.dtype).min), self.fraction, mask)

    def _irreducible_of(self, index: Tensor | None, mask: Tensor | None) -> Tensor:
        if index is None:
            expected = "given to pick, and come from a torchassay.Indexed in batches"
            raise checks.InputTypeError(f"RHOLoss: index must be {expected}, got None")
        if mask is not None:
            index = index.masked_fill(~mask.to(index.device), 0)
        index, n = index.to(self.irreducible.device), len(self.irreducible)
        if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
            got = int(index.min()) if index.min() < 0 else int(index.max())
            raise checks.InputValueError(f"RHOLoss: index must be in [0, {n}), got {got}")
        return self.irreducible[index]

    def _full(self, size: int | None, more: bool) -> Iterator:
        """What was picked of a pool is a batch, whatever the loader's size is."""
        return super()._full(None, more)
