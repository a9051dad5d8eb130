"""What the processes of a group tell each other before they compute: an error on one of them is one on all."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.distributed import all_gathered, messages_of


class Facts(NamedTuple):
    """What a rank says of its arguments."""

    same: Mapping[str, object]  # by name what must be the same on all ranks
    same_in_first: Mapping[str, object] = {}  # likewise, on the ranks of the first group
    count: int = 0  # of which the ranks of the first group learn


def agreed(function: str, groups: Sequence[dist.ProcessGroup], check: Callable[[], Facts]) -> list[int]:
    """The counts of the ranks of the first group, after the ranks of all groups, one after the other, have told each
    other in a short exchange what they were given.

    What ``check`` raises is raised here, after the other ranks know of it: an error on one rank is an error on every
    rank, and none waits for another. The exchange goes by the CPU where a group sends from there; else it is waited for
    on the GPU.
    """
    error, mine = None, Facts({})
    try:
        mine = check()
    except Exception as refusal:
        error = refusal
    counts: list[int] = []
    for group in groups:
        facts = mine.same if counts else {**mine.same_in_first, **mine.same}
        facts = {name: str(value) for name, value in facts.items()}
        numbers = error is not None, zlib.crc32(repr(facts).encode()), mine.count
        refused, checksums, of_ranks = _exchanged(numbers, group)
        if any(refused) or len(set(checksums)) > 1:
            error = _explained(function, error, facts, group)
        counts = counts or of_ranks
    try:
        if error is not None:
            raise error
    finally:
        del error  # its traceback holds this frame, and that the groups
    return counts


def _exchanged(numbers: Sequence[int], group: dist.ProcessGroup) -> list[list[int]]:
    """For each of the numbers those of all ranks."""
    mine = torch.tensor(numbers, dtype=torch.int64, device=messages_of(group))
    return all_gathered(mine, group).t().tolist()


def _explained(function: str, error: Exception | None, facts: dict[str, str], group: dist.ProcessGroup) -> Exception:
    """``error``, or if there is none, why the call fails here too."""
    everyone: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (None if error is None else str(error), facts), group=group)
    if error is not None:
        return error
    for rank, (reason, _) in enumerate(everyone):
        if reason is not None:
            reason = reason.removeprefix(f"{function}: ")
            refused = f"rank {rank} of the group refused its arguments: {reason}"
            return checks.InputValueError(f"{function}: {refused}")
    first, *others = (theirs for _, theirs in everyone)
    name, rank = next(
        (name, rank) for name in first for rank, theirs in enumerate(others, 1) if theirs.get(name) != first[name]
    )
    got = f"{first[name]} on rank 0 and {others[rank - 1].get(name)} on rank {rank}"
    return checks.InputValueError(f"{function}: every rank of the group must be given the same {name}, got {got}")


def contents(value) -> str:
    """What tells one value from another; of a CPU tensor a checksum. On a GPU looking would mean waiting for it."""
    if not isinstance(value, Tensor):
        return "none" if value is None else str(value)
    kind = f"{checks.dtype_name(value.dtype)} {tuple(value.shape)}"
    if value.device.type != "cpu":
        return kind
    return f"{kind} with checksum {zlib.crc32(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy()):08x}"
