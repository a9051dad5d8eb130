"""A small training that can be killed at any moment and started again, for tests/test_resume.py.

``python tests/training.py Shuffle --folder here --workers 4`` trains; a second call goes on from the last whole
checkpoint, or from the start; ``torchrun`` runs it on several processes. Each rank writes what it trained on into
``here/log.RANK``, a line a step, and in the end what it knows into ``here/final.RANK``. ``--kill 20:observed`` ends a
process for which that moment comes with SIGKILL. ``--serve`` starts trainings that stand in JSON on standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torchassay as ta
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchassay.samplers import (
    LOW,
    BalanceAware,
    BatchTrimming,
    CrossEpoch,
    InfoBatch,
    InStep,
    MixedOrder,
    OnlineImportance,
    RHOLoss,
    SelectiveBackprop,
    Shuffle,
    VarianceReduction,
)

N, D, CLASSES, BATCH, EPOCHS, EVERY = 100, 5, 3, 8, 3, 4
MOMENTS = ("given", "trained", "observed", "half saved", "saved")  # of a step: when it can be killed
SIGNALS = ("loss", "grad_norm", "entropy", "target_margin")


class Trainee(NamedTuple):
    """What a training has, and keeps: all of it goes into a checkpoint."""

    loader: DataLoader
    sampler: CrossEpoch
    picker: InStep | None
    model: nn.Module
    optimizer: torch.optim.Optimizer
    at: Callable[[str], None]  # a moment of the step has come

    def learn(self, x: Tensor, y: Tensor, weight: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """One step; the losses and what else is known of the samples."""
        loss, scores = ta.cross_entropy(self.model(x), y, reduction="none", signals=SIGNALS)
        self.optimizer.zero_grad()
        (weight * loss).mean().backward()
        self.optimizer.step()
        self.at("trained")
        return loss, scores.as_dict()


def observed(trainee: Trainee) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of a cross-epoch sampler."""
    for x, y, index, *weight in trainee.loader:
        trainee.at("given")
        weight = weight[0] if weight else torch.ones(len(index))
        _, known = trainee.learn(x, y, weight)
        if isinstance(trainee.sampler, MixedOrder):
            known["uncertainty"] = trainee.sampler.uncertainty(trainee.model, x)
        trainee.sampler.observe(index, known | {"similarity": known["entropy"]})
        yield index, weight


def regrouped(trainee: Trainee) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of the batches that an in-step method makes of what it picks."""
    for (x, y, index), weight in trainee.picker.batches(trainee.loader, trainee.model):
        trainee.at("given")
        trainee.learn(x, y, weight)
        yield index, weight


def picked(trainee: Trainee) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch in which an in-step method picks from the loss of the training forward."""
    for x, y, index in trainee.loader:
        trainee.at("given")
        loss, scores = ta.cross_entropy(trainee.model(x), y, reduction="none", signals=SIGNALS)
        pick = trainee.picker.pick(scores, index=index)
        trainee.optimizer.zero_grad()
        pick.mean(loss).backward()
        trainee.optimizer.step()
        trainee.at("trained")
        trainee.sampler.observe(index, scores)
        yield index, pick.weight


def measured(trainee: Trainee) -> None:
    """What `BalanceAware` needs before the first epoch, of this rank's share of the samples."""

    def forward(model: nn.Module, batch: list[Tensor]) -> dict[str, Tensor]:
        known = ta.score(model(batch[0]), batch[1], signals=("loss", "entropy"))
        return {"loss": known.loss, "similarity": known.entropy}

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    part = Subset(trainee.loader.dataset, range(rank, N, world))
    trainee.sampler.measure(DataLoader(part, batch_size=BATCH), trainee.model, forward)


class Case(NamedTuple):
    """One way to train: the loader's sampler, of (data, batch_size=, seed=); the picker, of (seed=, group=)."""

    sampler: Callable[..., CrossEpoch]
    picker: Callable[..., InStep] | None = None
    epoch: Callable[[Trainee], Iterator[tuple[Tensor, Tensor]]] = observed
    before: Callable[[Trainee], None] | None = None  # the first epoch
    ahead: bool = False  # the stream depends on how far the loader fetches ahead


CASES = {  # those with a hyphen are for `make stress`
    "Shuffle": Case(Shuffle),
    "MixedOrder": Case(partial(MixedOrder, pivot=0, layers="0")),
    "BalanceAware": Case(BalanceAware, before=measured),
    "BalanceAware-heuristic": Case(partial(BalanceAware, scheduler="heuristic", t_grow=3), before=measured),
    "InfoBatch": Case(partial(InfoBatch, epochs=EPOCHS, delta=1.0)),
    "OnlineImportance": Case(OnlineImportance, ahead=True),
    "OnlineImportance-keep": Case(partial(OnlineImportance, keep=0.8, replacement=False), ahead=True),
    "SelectiveBackprop": Case(Shuffle, SelectiveBackprop, regrouped),
    "SelectiveBackprop-pick": Case(Shuffle, SelectiveBackprop, picked),
    "SelectiveBackprop-stale": Case(Shuffle, partial(SelectiveBackprop, stale=2), regrouped),
    "VarianceReduction": Case(Shuffle, partial(VarianceReduction, 2, tau_threshold=1.1, warmup=False), regrouped),
    "BatchTrimming": Case(Shuffle, partial(BatchTrimming, EPOCHS), regrouped),
    "LOW": Case(Shuffle, LOW, picked),
    "RHOLoss": Case(Shuffle, partial(RHOLoss, torch.linspace(0, 2, N), 0.4), regrouped),
}


def train(name: str, folder: Path, workers: int, kill: str = "") -> None:
    """Train from the last checkpoint in ``folder``, or from the start, to the end; die in the moment ``kill``."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(20)
    data = ta.Indexed(
        TensorDataset(torch.randn(N, D, generator=random), torch.randint(CLASSES, (N,), generator=random))
    )
    case, group = CASES[name], dist.group.WORLD if dist.is_initialized() else None
    rank = dist.get_rank() if group else 0
    step = 0

    def at(moment: str) -> None:
        if kill == f"{step}:{moment}":
            os.kill(os.getpid(), signal.SIGKILL)

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    sampler = case.sampler(data, batch_size=BATCH, seed=3)
    picker = case.picker(seed=4, group=group) if case.picker else None
    trained = DistributedDataParallel(model) if group else model
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.3, momentum=0.9)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=workers)
    trainee = Trainee(loader, sampler, picker, trained, optimizer, at)
    kept = {"sampler": sampler, "picker": picker} if picker else {"sampler": sampler}

    latest = folder / "latest"
    if latest.exists():
        step = int(latest.read_text())
        checkpoint = folder / latest.read_text()
        for what, part in kept.items():
            part.load(checkpoint / f"{what}.{rank}")
        states = torch.load(checkpoint / "model", weights_only=True)
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
    elif case.before:
        case.before(trainee)

    def save() -> None:
        """A checkpoint counts when ``latest`` names it, and that is when every rank has written its part."""
        checkpoint = folder / str(step)
        for what, part in kept.items():
            part.save(checkpoint / f"{what}.{rank}")
            at("half saved")
        if rank == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint / "model")
        if group:
            dist.barrier()
        if rank == 0:
            (folder / "next").write_text(str(step))
            (folder / "next").replace(latest)

    log = folder / f"log.{rank}"
    lines = log.read_text().splitlines(keepends=True)[:step] if log.exists() else []
    log.write_text("".join(lines))
    with open(log, "ab", buffering=0) as file:
        for epoch in range(sampler.epoch, EPOCHS):
            sampler.set_epoch(epoch)
            for index, weight in case.epoch(trainee):
                file.write(f"{json.dumps([step, epoch, index.tolist(), weight.tolist()])}\n".encode())
                at("observed")
                step += 1
                if step % EVERY == 0:
                    save()
                at("saved")
    if group:
        dist.barrier()
    counters = {what: part.counters() | {"scoring_ms": 0} for what, part in kept.items()}
    final = {"memory": sampler.memory.state_dict(), "counters": counters, "model": model.state_dict()}
    final |= {"epoch": sampler.epoch, "position": sampler.position}
    torch.save(final, folder / f"final.{rank}")


def run(arguments: dict) -> None:
    """`train` as a rank of a group, where the arguments name one."""
    rank, world, meet, folder = (arguments.pop(name) for name in ("rank", "world", "meet", "folder"))
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet-{meet}", rank=rank, world_size=world)
    train(folder=Path(folder), **arguments)


def serve() -> None:
    """Fork the processes that a line asks for, a list of arguments of `run`, and answer how each ended.

    All of a group are killed as soon as one is, as torchrun does; what they forked goes with them.
    """
    torch.optim.SGD(nn.Linear(1, 1).parameters())  # imports much, once for all of them
    for line in sys.stdin:
        running, ended = {}, {}
        for number, arguments in enumerate(json.loads(line)):
            child = os.fork()
            if child == 0:
                signal.alarm(300)  # ends one that hangs
                try:
                    run(arguments)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            os.setpgid(child, child)
            running[child] = number
        while running:
            child, status = os.wait()
            ended[running.pop(child)] = os.waitstatus_to_exitcode(status)
            for group in (child, *running) if status else ():
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
        print(json.dumps([ended[number] for number in sorted(ended)]), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than there are processors
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", choices=CASES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kill", default="")
    parser.add_argument("--serve", action="store_true")
    given = vars(parser.parse_args())
    if given.pop("serve"):
        serve()
    else:
        if "RANK" in os.environ:
            dist.init_process_group("gloo")
            if dist.get_rank() == 0:  # another one is to die
                given["kill"] = ""
        train(**given)
