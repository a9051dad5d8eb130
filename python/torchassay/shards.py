"""`score` and `cross_entropy` where each rank of a group holds a slice of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.backends import for_op
from torchassay.history import History
from torchassay.options import Noise, Options
from torchassay.part import Part
from torchassay.scores import BIT, Scores
from torchassay.slices import Call, SliceScores
from torchassay.vocabulary import is_dtensor


class Shard(Part):
    """This rank's slice of the logits of a call with a group or of a DTensor."""

    def __init__(
        self,
        function: str,
        input: Tensor,
        target: Tensor | None,
        dim: int | None,
        options: Options | None,
        ignore_index: int,
        backend: str | None,
        group: dist.ProcessGroup | None,
    ):
        if dim is None:  # the rule of `F.cross_entropy`
            dim = 1 if isinstance(input, Tensor) and input.dim() > 1 else 0
        layout = None
        if group is None and is_dtensor(input):
            from torchassay.dtensors import Layout

            layout = Layout.of_logits(function, input, dim)
        super().__init__(function, input, target, options, ignore_index, backend, group, layout)
        self.dim = dim

    def classes(self) -> int:
        return self.input.shape[self.dim]

    def take(self) -> None:
        super().take()
        if self.layout is not None:
            self.input = self.layout.logits(self.input)

    def score(self, signals: Sequence[str] | str | None, noise: Noise | None, history: History | None) -> Scores:
        """What `torchassay.score` returns."""

        def check() -> checks.Call:
            if noise is not None:
                raise checks.InputValueError(f"{self.function}: noise_std must be 0 where the classes are in slices")
            extra = "" if history is None else checks.signal_of(history, self.function)
            rest = self.dim, self.options, self.ignore_index, extra
            return checks.score(self.function, self.input, self._labels(), signals, *rest)

        call = self.agree(check, dict)
        self.input = self.input.detach()
        outputs = self._outputs(call, 0)
        scores = call.scores(outputs)
        if history is None:
            return scores
        return call.with_probability(scores, outputs, history, self.target, self.ignore_index)

    def cross_entropy(self, signals: Sequence[str] | str, reduction: str) -> Tensor | tuple[Tensor, Scores]:
        """What `torchassay.cross_entropy` returns."""

        def check() -> checks.Call:
            rest = self.dim, self.options, self.ignore_index, reduction
            return checks.cross_entropy(self.function, self.input, self._labels(), signals, *rest)

        call = self.agree(check, lambda: {"reduction": reduction})
        rows, *outputs = self._outputs(call.with_loss(), BIT["loss"])
        of_rows = self.input, self.target, self.options.weight, self.ignore_index
        loss = self.vocabulary.reduced(rows, *of_rows, reduction)
        if not signals:
            return loss
        if "loss" in call.names:
            outputs = [rows, *outputs]
        return loss, call.scores([output.detach() for output in outputs])

    def _labels(self) -> Tensor | None:
        if isinstance(self.target, Tensor) and self.target.is_floating_point():
            expected = "an integer dtype (class indices) where the classes are in slices"
            got = checks.dtype_name(self.target.dtype)
            raise checks.InputTypeError(f"{self.function}: target must have {expected}, got {got}")
        return self.target

    def _outputs(self, call: checks.Call, differentiable: int) -> Sequence[Tensor]:
        how = Call(self.ignore_index, call.signals, self.vocabulary, self.function, for_op(self.backend))
        return SliceScores.apply(self.input, self.target, *self.options.flat(), call.dim, *how, differentiable)
