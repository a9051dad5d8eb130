"""A call that several processes make together, as far as its tensors are this one's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.agreement import Facts, agreed, contents
from torchassay.backends import choose
from torchassay.distributed import sends_from_cpu
from torchassay.options import Options
from torchassay.vocabulary import Vocabulary, refuse_dtensors

if TYPE_CHECKING:
    from torchassay.dtensors import Layout


class Part:
    """A call as far as its tensors are this process's, and where its classes stand: `vocabulary`, once all agree."""

    def __init__(
        self,
        function: str,
        input: Tensor,  # logits, or hidden states
        target: Tensor | None,
        options: Options | None,
        ignore_index: int,
        backend: str | None,
        group: dist.ProcessGroup | None,
        layout: Layout | None,
    ):
        checks.process_group(function, group)
        self.function, self.input, self.target, self.options = function, input, target, options or Options()
        self.ignore_index, self.backend, self.group, self.layout = ignore_index, backend, group, layout

    def take(self) -> None:
        """Replace DTensors by what is here of them."""
        options = self.options
        if self.layout is not None:
            self.target = self.layout.of_rows("target", self.target)
            weight = self.layout.slice("weight", options.weight)
            temperature = self.layout.of_rows("temperature", options.temperature)
            self.options = options._replace(weight=weight, temperature=temperature)
        elif self.group is not None:
            given = {"input": self.input, "target": self.target}
            refuse_dtensors(self.function, **given, weight=options.weight, temperature=options.temperature)

    def classes(self) -> int:
        """How many are here."""
        raise NotImplementedError

    def agree(self, check: Callable[[], checks.Call], same: Callable[[], dict[str, object]]) -> checks.Call:
        """The call, after every rank has checked its own.

        ``check`` looks at the arguments, which are taken by then. ``same`` are, by name, those arguments of the
        function that all ranks must be given alike.
        """

        def look() -> checks.Call:
            self.take()
            call = check()
            if self.layout is not None:
                self._check_range(self.layout.total)
            return call

        if self.group is None and self.layout is None:
            call, self.vocabulary = look(), Vocabulary(0, self.classes())
        else:
            agreed = torch.compiler.disable(self._agreed) if torch.compiler.is_compiling() else self._agreed
            call, self.vocabulary = agreed(look, same)
        if self.layout is None:
            self._check_range(self.vocabulary.total)  # the ranks have the same target: an error is everybody's
        return call

    def _check_range(self, total: int) -> None:
        if self.target is not None:
            checks.class_range(self.function, self.target, total, self.ignore_index)

    def _agreed(
        self, look: Callable[[], checks.Call], same: Callable[[], dict[str, object]]
    ) -> tuple[checks.Call, Vocabulary]:
        groups = [self.group] if self.layout is None else [self.layout.group, *self.layout.row_groups]
        if self.layout is not None and not all(sends_from_cpu(group) for group in groups):
            return look(), self.layout.vocabulary  # it knows the sizes, and no GPU is to be waited for
        found = []

        def check() -> Facts:
            found.append(look())
            return self._facts(found[0], same())

        classes = agreed(self.function, groups, check)
        if self.layout is not None:
            return found[0], self.layout.vocabulary
        return found[0], Vocabulary(sum(classes[: dist.get_rank(self.group)]), sum(classes), self.group)

    def _facts(self, call: checks.Call, same: dict[str, object]) -> Facts:
        options = self.options
        device, dtype, shape = self.input.device.type, self.input.dtype, tuple(self.input.shape)
        of_all = {
            "function": self.function,
            "device type": device,
            "dtype": checks.dtype_name(dtype),
            "signals": ", ".join(call.in_order),
            "ignore_index": self.ignore_index,
            "weight": "none" if options.weight is None else "one",
            "label_smoothing": float(options.label_smoothing),
            "softcap": None if options.softcap is None else float(options.softcap),
            "z_loss": float(options.z_loss),
            "backend": choose(self.function, device, dtype, self.classes(), self.backend or ""),
            **same,
        }
        of_rows = {"shape of the rows": shape[: call.dim] + shape[call.dim + 1 :], "target": contents(self.target)}
        by_row = isinstance(options.temperature, Tensor)
        if by_row:
            of_rows["temperature"] = contents(options.temperature)
        else:
            of_all["temperature"] = float(options.temperature)
        if self.layout is not None:
            of_rows["number of classes"] = self.layout.total
        return Facts(of_all, of_rows, self.classes())
