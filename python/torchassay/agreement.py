"""What the processes of a group tell each other before they compute: an error on one of them is one on all."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.backends import choose
from torchassay.distributed import all_gathered
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
            facts = self.function, self.group, self.layout, lambda: self._facts(look(), same())
            call, self.vocabulary = agreed(*facts)
        if self.layout is None:
            self._check_range(self.vocabulary.total)  # the ranks have the same target: an error is everybody's
        return call

    def _check_range(self, total: int) -> None:
        if self.target is not None:
            checks.class_range(self.function, self.target, total, self.ignore_index)

    def _facts(self, call: checks.Call, same: dict[str, object]) -> Facts:
        options, target = self.options, self.target
        by_row = isinstance(options.temperature, Tensor)
        device, dtype, shape = self.input.device.type, self.input.dtype, tuple(self.input.shape)
        of_all = {
            "function": self.function,
            "device type": device,
            "dtype": checks.dtype_name(dtype),
            "signals": ", ".join(call.in_order),
            "ignore_index": self.ignore_index,
            "target": "none" if target is None else "one",
            "weight": "none" if options.weight is None else "one",
            "label_smoothing": float(options.label_smoothing),
            "temperature": "one a row" if by_row else float(options.temperature),
            "softcap": options.softcap and float(options.softcap),
            "z_loss": float(options.z_loss),
            "backend": choose(self.function, device, dtype, self.classes(), self.backend or ""),
            **same,
        }
        of_rows = {"shape of the rows": shape[: call.dim] + shape[call.dim + 1 :], "target": contents(target)}
        if by_row:
            of_rows["temperature"] = contents(options.temperature)
        if self.layout is not None:
            of_rows["number of classes"] = self.layout.total
        return Facts(call, self.classes(), of_all, of_rows)


class Facts(NamedTuple):
    """What a rank says of its call before anything is computed."""

    call: checks.Call | None
    classes: int  # here
    of_all: dict[str, object]  # by name what must be the same on all ranks
    of_rows: dict[str, object]  # likewise, on all ranks that have slices of the same rows


def contents(value) -> str:
    """What tells one value from another; of a CPU tensor a checksum. On a GPU looking would mean waiting for it."""
    if not isinstance(value, Tensor):
        return "none" if value is None else str(value)
    kind = f"{checks.dtype_name(value.dtype)} {tuple(value.shape)}"
    if value.device.type != "cpu":
        return kind
    return f"{kind} with checksum {zlib.crc32(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy()):08x}"


def agreed(
    function: str, group: dist.ProcessGroup | None, layout: Layout | None, check: Callable[[], Facts]
) -> tuple[checks.Call, Vocabulary]:
    """The call and this rank's slice, after the ranks have told each other, in one short exchange, what they have.

    ``check`` looks at the arguments. What it raises is raised here, after the other ranks know of it: an error on one
    rank is an error on every rank, and none waits for another. The exchange goes by the CPU where the group can send
    from there; else the GPU is waited for, but not for the sake of a `Layout`, which knows its sizes.
    """
    groups = [group] if layout is None else [layout.group, *layout.row_groups]
    if layout is not None and not all(_sends_from_cpu(group) for group in groups):
        return check().call, layout.vocabulary
    error, mine = None, Facts(None, 0, {}, {})
    try:
        mine = check()
    except Exception as refusal:
        error = refusal
    classes: list[int] = []
    for group in groups:
        same = {name: str(value) for name, value in (mine.of_all if classes else mine.of_all | mine.of_rows).items()}
        numbers = [error is not None, mine.classes, zlib.crc32(repr(same).encode())]
        refused, counts, checksums = _exchanged(numbers, group)
        if any(refused) or len(set(checksums)) > 1:
            error = _explained(function, group, error, same)
        classes = classes or counts
    if error is not None:
        raise error
    if layout is not None:
        return mine.call, layout.vocabulary
    return mine.call, Vocabulary(sum(classes[: dist.get_rank(group)]), sum(classes), group)


def _sends_from_cpu(group: dist.ProcessGroup) -> bool:
    return "cpu:" in dist.get_backend_config(group)


def _exchanged(numbers: list[int], group: dist.ProcessGroup) -> list[list[int]]:
    """For each of the numbers those of all ranks."""
    device = "cpu" if _sends_from_cpu(group) else dist.get_backend_config(group).partition(":")[0]
    return all_gathered(torch.tensor(numbers, device=device), group).t().tolist()


def _explained(function: str, group: dist.ProcessGroup, error: Exception | None, same: dict[str, str]) -> Exception:
    """``error``, or why the call fails where another rank has one or was given something else."""
    everyone: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (None if error is None else str(error), same), group=group)
    if error is not None:
        return error
    for rank, (reason, _) in enumerate(everyone):
        if reason is not None:
            refused = f"rank {rank} of the group refused its arguments: {reason.removeprefix(f'{function}: ')}"
            return checks.InputValueError(f"{function}: {refused}")
    first = everyone[0][1]
    rank, name = next(
        (rank, name) for name in first for rank, (_, theirs) in enumerate(everyone) if theirs.get(name) != first[name]
    )
    got = f"{first[name]} on rank 0 and {everyone[rank][1].get(name)} on rank {rank}"
    return checks.InputValueError(f"{function}: every rank of the group must be given the same {name}, got {got}")
