"""The processes that train together: who they are, which share a machine, and what they tell each other."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks

_ROWS_A_MESSAGE = 1 << 15  # of changed rows, so that no machine needs room for all of them at once
_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}  # of each world its ranks joined by gloo, for CPU tensors


def joined() -> bool:
    """Whether torch.distributed connects this process with others."""
    return dist.is_available() and dist.is_initialized()


def cpu_group() -> dist.ProcessGroup | None:
    """All ranks, joined by a backend that sends CPU tensors; the first call is everybody's."""
    world = dist.group.WORLD
    if "gloo" in dist.get_backend(world):
        return world
    if world not in _groups:
        _groups[world] = dist.new_group(backend="gloo")
    return _groups[world]


def sends_from_cpu(group: dist.ProcessGroup | None) -> bool:
    """Whether a group's messages can lie on the CPU, where nobody waits for a GPU."""
    return "cpu:" in dist.get_backend_config(group)


def messages_of(group: dist.ProcessGroup | None) -> torch.device:
    """Where a group's small messages lie: on the CPU if it sends from there."""
    return torch.device("cpu" if sends_from_cpu(group) else dist.get_backend_config(group).partition(":")[0])


def all_gathered(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """What every rank of the group has, [W, ...], in the order of ranks."""
    everyone = mine.new_empty(dist.get_world_size(group), *mine.shape)
    dist.all_gather(list(everyone), mine.contiguous(), group=group)
    return everyone


def all_reduced(value: Tensor, groups: Iterable[dist.ProcessGroup]) -> Tensor:
    """The sum over the ranks of one group, and then of the next; ``value`` becomes it."""
    for group in groups:
        dist.all_reduce(value, group=group)
    return value


def placed(function: str, rank: int | None, num_replicas: int | None) -> tuple[int, int]:
    """The rank and the number of replicas that a ``function``'s arguments mean, as `DistributedSampler` takes them: of
    torch.distributed where it is initialised, else 0 of 1."""
    if (rank is None) != (num_replicas is None):
        got = f"rank={rank} and num_replicas={num_replicas}"
        raise checks.InputValueError(f"{function}: rank and num_replicas must be given together, got {got}")
    if rank is None:
        rank, num_replicas = (dist.get_rank(), dist.get_world_size()) if joined() else (0, 1)
    if not 0 <= rank < num_replicas:
        raise checks.InputValueError(f"{function}: rank must be in [0, {num_replicas - 1}], got {rank}")
    return rank, num_replicas


class Replicas:
    """This process among those that share an epoch: arguments as of `placed`.

    The ranks of one machine share its arrays: the lowest of them, ``leader``, makes and plans them.
    """

    def __init__(self, function: str, rank: int | None = None, num_replicas: int | None = None):
        self.function = function
        self.rank, self.world = placed(function, rank, num_replicas)
        self.talks = self.world > 1 and joined() and dist.get_world_size() == self.world
        self.leader, self.machines = True, 1
        if self.talks:
            self.group = cpu_group()
            here = (socket.gethostname(), os.environ.get("GROUP_RANK", ""))  # torchrun's number of the machine
            everyone = self.everyone(here)
            leaders = sorted({everyone.index(machine) for machine in everyone})
            self.my_leader = everyone.index(here)
            self.leader, self.machines = dist.get_rank() == self.my_leader, len(leaders)
            self.leaders = dist.new_group(leaders, backend="gloo") if len(leaders) > 1 else None

    def everyone(self, said) -> list:
        """What every process says, in the order of ranks."""
        if not self.talks:
            return [said]
        found: list = [None] * self.world
        dist.all_gather_object(found, said, group=self.group)
        return found

    def barrier(self) -> None:
        if self.talks:
            dist.barrier(group=self.group)

    def folder(self, parent: str | os.PathLike | None) -> Path | None:
        """A new empty folder that the ranks of this machine share; None if one process keeps everything in memory."""
        if parent is not None:
            os.makedirs(parent, exist_ok=True)
        if not self.talks:
            return Path(tempfile.mkdtemp(prefix="torchassay-", dir=parent)) if parent is not None else None
        mine = tempfile.mkdtemp(prefix="torchassay-", dir=parent) if self.leader else None
        return Path(self.everyone(mine)[self.my_leader])

    def forget(self, folder: Path | None) -> None:
        """The folder's name goes when all ranks have mapped its files; the files live until their last process ends."""
        self.barrier()
        if folder is not None and self.leader:
            shutil.rmtree(folder)

    def merge(self, rows: dict[str, np.ndarray], since: int) -> None:
        """Bring rows that changed on other machines here; of one that changed on several the newest counts.

        ``rows`` are arrays [n] of this machine, ``last_step`` among them; those changed whose last step is at least
        ``since``.
        """
        self.barrier()
        if self.machines > 1 and self.leader:
            changed = np.flatnonzero(rows["last_step"] >= since)
            count = torch.tensor([len(changed)])
            dist.all_reduce(count, dist.ReduceOp.MAX, group=self.leaders)
            for first in range(0, int(count), _ROWS_A_MESSAGE):
                self._exchange(rows, changed[first : first + _ROWS_A_MESSAGE])
        self.barrier()

    def _exchange(self, rows: dict[str, np.ndarray], mine: np.ndarray) -> None:
        everyone: list = [None] * self.machines
        said = {"index": mine} | {name: values[mine] for name, values in rows.items()}
        dist.all_gather_object(everyone, said, group=self.leaders)
        for theirs in everyone:
            index = theirs.pop("index")
            newer = theirs["last_step"] > rows["last_step"][index]
            for name, values in theirs.items():
                rows[name][index[newer]] = values[newer]
