"""What the ranks of tests/test_replicas.py do; in a module, since spawned processes import it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchassay import distributed
from torchassay.distributed import Replicas
from torchassay.samplers import InfoBatch, MixedOrder, Shuffle
from torchassay.samplers.planned import Planned

EPOCHS = 3
SIZES = {  # samples, batch size, drop_last
    "uneven": (103, 10, False),
    "one sample more": (81, 10, False),
    "few": (9, 8, False),
    "dropped": (103, 10, True),
}
LEAVES_OUT_OTHERS = ("MixedOrder", "dropped")  # than one process: as many as fill no batch for every rank
FAR = (1 << 24) + 1  # no float32


class ByLoss(Planned):
    """Highest losses first; a plan that is wrong if any rank's values are missing."""

    fields: ClassVar[dict[str, str]] = {"loss": "mean"}

    def _plan(self, epoch: int) -> tuple[np.ndarray, None]:
        values = np.nan_to_num(self.memory["loss"].numpy(), nan=0.0)
        return np.argsort(-values, kind="stable").astype(self._index_type), None


METHODS = {
    "Shuffle": Shuffle,
    "ByLoss": ByLoss,
    "MixedOrder": partial(MixedOrder, pivot=0, by="loss"),
    "InfoBatch": partial(InfoBatch, epochs=2 * EPOCHS),
}


def loss(index: Tensor, epoch: int) -> Tensor:
    """What is observed: another order in each epoch."""
    return ((index * 7919 + epoch * 31) % 1009).float()


def known(sampler: Planned) -> dict[str, Tensor]:
    return {name: value for name, value in sampler.memory.state_dict().items() if name != "fields"}


def walk(sampler: Planned, until: int = EPOCHS, batches: int | None = None) -> list[list[int]]:
    """The rank's batches from where the sampler is, observed; so many, or up to epoch ``until``, which begins."""
    seen: list[list[int]] = []
    for epoch in range(sampler.epoch, until):
        sampler.set_epoch(epoch)
        already, keys = sampler.position, list(sampler)
        assert already or len(sampler) == len(keys)
        for first in range(0, len(keys), sampler.batch_size):
            if len(seen) == batches:
                return seen
            batch = keys[first : first + sampler.batch_size]
            index = torch.tensor([key[0] for key in batch] if sampler.weighted else batch)
            sampler.observe(index, {"loss": loss(index, epoch)})
            seen.append(index.tolist())
    sampler.set_epoch(until)  # brings the values of the other machines
    return seen


def shared(rank: int) -> dict[str, dict]:
    """Whole trainings on all ranks."""
    found = {}
    for name, method in METHODS.items():
        for size, (n, batch_size, drop_last) in SIZES.items():
            if (name, size) == LEAVES_OUT_OTHERS:
                continue
            sampler = method(n, batch_size=batch_size, drop_last=drop_last)
            found[f"{name}, {size}"] = {"seen": walk(sampler), "known": known(sampler)}
            dist.barrier()
    return found


def merged(rank: int) -> dict[str, Tensor]:
    """Rows that changed here, there, on both machines, long ago; far out, and in several messages."""
    distributed._ROWS_A_MESSAGE = 3
    rows = {"last_step": np.zeros(FAR + 9, np.int32), "loss": np.zeros(FAR + 9, np.float32)}
    here = {1: 9, 5: 7, 7: 8, FAR: 7, FAR + 1: 6}
    there = {2: 9, 5: 8, 7: 7, 8: 9, 10: 9, 11: 9, FAR + 1: 7, FAR + 2: 9}
    for index, step in (here, there)[rank].items():
        rows["last_step"][index], rows["loss"][index] = step, 100 * rank + step
    rows["last_step"][3], rows["loss"][3] = 5, rank  # before the epoch: stays
    Replicas("merge").merge(rows, since=6)
    at = np.flatnonzero(rows["last_step"])
    return {"index": torch.from_numpy(at)} | {name: torch.from_numpy(values[at]) for name, values in rows.items()}


def resumed(rank: int, folder: Path, ahead: bool) -> dict:
    """A training that goes on from states of 9 batches; rank 0 saved when rank 1 was a batch further, or behind."""
    sampler = ByLoss(103, batch_size=10)
    seen = walk(sampler, batches=9 if ahead or rank == 0 else 8)
    if rank == 1 and ahead:
        sampler.save(folder / f"state {ahead} 1")
        walk(sampler, batches=1)
    dist.barrier()
    if rank == 0:
        sampler.save(folder / f"state {ahead} 0")
    dist.barrier()
    if rank == 1 and not ahead:
        seen += walk(sampler, batches=1)
        sampler.save(folder / f"state {ahead} 1")
    again = ByLoss(103, batch_size=10)
    again.load(folder / f"state {ahead} {rank}")
    return {"seen": seen + walk(again), "known": known(again)}


def refused(call: Callable[[], None]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def moved(rank: int, folder: Path) -> dict:
    """States of two machines loaded on one, states of one on two, and states of different moments."""
    found = {}
    os.environ["GROUP_RANK"] = str(rank)
    two = ByLoss(103, batch_size=10)
    seen = walk(two, batches=9)
    two.save(folder / f"two {rank}")
    dist.barrier()
    os.environ["GROUP_RANK"] = "0"
    one = ByLoss(103, batch_size=10)
    one.load(folder / f"two {rank}")
    found["two to one"] = {"seen": seen + walk(one), "known": known(one)}
    dist.barrier()
    one.save(folder / f"one {rank}")
    one.set_epoch(EPOCHS + 1)
    one.save(folder / f"later {rank}")
    dist.barrier()
    states = folder / f"{'one' if rank else 'later'} {rank}"
    found["moments"] = refused(lambda: ByLoss(103, batch_size=10).load(states))
    os.environ["GROUP_RANK"] = str(rank)
    found["one to two"] = refused(lambda: ByLoss(103, batch_size=10).load(folder / f"one {rank}"))
    return found


def late(rank: int) -> dict[str, Tensor]:
    """What is known after epochs of different lengths, if one rank always hears last that all have merged."""
    sampler = METHODS["InfoBatch"](103, batch_size=10)
    merge = sampler._replicas.merge

    def slow(*arguments) -> None:
        merge(*arguments)
        time.sleep(0.1 * rank)

    sampler._replicas.merge = slow
    walk(sampler)
    return known(sampler)


def of_two(rank: int, folder: Path) -> dict:
    """Everything that two ranks do, on one machine and then as two."""
    os.environ["GROUP_RANK"] = "0"
    found = {"shared": shared(rank), "ahead": resumed(rank, folder, True), "behind": resumed(rank, folder, False)}
    os.environ["GROUP_RANK"] = str(rank)
    found |= {"machines": Replicas("of_two").machines, "late": late(rank)}
    return found | {"apart": shared(rank), "merged": merged(rank), "moved": moved(rank, folder)}


def of_four(rank: int) -> dict:
    """Two machines of two ranks."""
    os.environ["GROUP_RANK"] = str(rank // 2)
    return {"machines": Replicas("of_four").machines, "apart": shared(rank)}
