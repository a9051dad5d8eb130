"""`score` and `cross_entropy` where each rank of a group holds a slice of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from torchassay import checks, reference
from torchassay.backends import for_op
from torchassay.history import History
from torchassay.options import Noise, Options
from torchassay.scores import BIT, ROW_SIGNALS, Scores
from torchassay.slices import Call, slice_scores
from torchassay.vocabulary import Facts, agreed, local, plain


class Shard:
    """This rank's slice of the logits, and of the class weights."""

    def __init__(self, function: str, input: Tensor, weight: Tensor | None, dim: int | None, group):
        self.function, self.group = function, group
        if dim is None:  # the rule of `F.cross_entropy`
            dim = 1 if isinstance(input, Tensor) and input.dim() > 1 else 0
        self.dim = dim
        self.input, self.vocabulary = local(function, "input", input, dim, group)
        self.weight = local(function, "weight", weight, 0, group)[0]

    def check(
        self,
        target: Tensor | None,
        signals: Sequence[str] | str | None,
        options: Options | None,
        ignore_index: int,
        extra: str = "",
        noise: Noise | None = None,
        reduction: str = "mean",
    ) -> checks.Call:
        """The call, after every rank has checked its own."""
        found = []
        function = self.function

        def check() -> Facts:
            checks.process_group(function, self.group)
            if noise is not None:
                raise checks.InputValueError(f"{function}: noise_std must be 0 with a group, got {noise.std}")
            if isinstance(target, Tensor) and target.is_floating_point():
                expected = "an integer dtype (class indices) with a group"
                got = checks.dtype_name(target.dtype)
                raise checks.InputTypeError(f"{function}: target must have {expected}, got {got}")
            names = self.input, target, signals
            if function == "score":
                rest = self.dim, options, ignore_index, extra, ROW_SIGNALS
                call = checks.score(function, *names, *rest)
            else:
                call = checks.cross_entropy(function, *names, self.dim, options, ignore_index, reduction)
            found.append(call)
            classes = self.input.shape[call.dim]
            numbers = None if options is None else [n for n in options[1:] if not isinstance(n, Tensor)]
            rest = self.input.dtype, call.signals, call.dim, ignore_index, numbers, reduction, target is None
            return Facts(self.input.numel() // classes, classes, 0, rest)

        if self.vocabulary is None and isinstance(self.group, dist.ProcessGroup):
            self.vocabulary = agreed(function, self.group, check)
        else:
            check()
        if target is not None:
            checks.class_range(function, target, self.vocabulary.total, ignore_index)
        return found[0]

    def scores(
        self,
        target: Tensor | None,
        options: Options | None,
        call: checks.Call,
        ignore_index: int,
        backend,
        differentiable: int,
    ) -> Sequence[Tensor]:
        options = (options or Options())._replace(weight=self.weight)
        how = Call(ignore_index, call.signals, self.vocabulary, self.function, for_op(backend))
        return slice_scores(self.input, target, options, call.dim, how, differentiable)

    def score(
        self,
        target: Tensor | None,
        signals: Sequence[str] | str | None,
        options: Options | None,
        ignore_index: int,
        noise: Noise | None,
        extra: str,
        history: History | None,
        backend: str | None,
    ) -> Scores:
        target = plain(target)
        call = self.check(target, signals, options, ignore_index, extra, noise)
        self.input = self.input.detach()
        outputs = self.scores(target, options, call, ignore_index, backend, 0)
        scores = call.scores(outputs)
        return scores if history is None else call.with_probability(scores, outputs, history, target, ignore_index)

    def cross_entropy(
        self,
        target: Tensor,
        signals: Sequence[str] | str,
        options: Options | None,
        ignore_index: int,
        reduction: str,
        backend: str | None,
    ) -> Tensor | tuple[Tensor, Scores]:
        target = plain(target)
        call = self.check(target, signals, options, ignore_index, reduction=reduction)
        rows, *outputs = self.scores(target, options, call.with_loss(), ignore_index, backend, BIT["loss"])
        own = None
        if self.weight is not None and reduction == "mean":
            own = self.vocabulary.own_weight(self.weight, target, ignore_index)
        loss = reference.reduced(rows, self.input, target, own, ignore_index, reduction)
        if not signals:
            return loss
        if "loss" in call.names:
            outputs.insert(0, rows)
        return loss, call.scores([output.detach() for output in outputs])
