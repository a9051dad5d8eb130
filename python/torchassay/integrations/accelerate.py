"""Samplers beside Hugging Face's Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchassay import checks
from torchassay.integrations import ranks, traps
from torchassay.samplers import CrossEpoch, InStep

try:
    from accelerate import Accelerator
    from accelerate.data_loader import get_sampler
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('register needs Accelerate: pip install "accelerate>=1.15"') from error


def register(accelerator: Accelerator, *parts: CrossEpoch | InStep) -> None:
    """Keep samplers and pickers in what ``accelerator.save_state`` writes and ``load_state`` reads.

    ::

        model, optimizer = accelerator.prepare(model, optimizer)  # not the loader
        ta.integrations.accelerate.register(accelerator, sampler)
        for x, y, index, weight in loader:
            x, y, weight = (part.to(accelerator.device) for part in (x, y, weight))

    ``accelerator.register_for_checkpointing`` alone keeps the state of the first process and gives it to all; here
    each gets its own back. The loader stays as it is: one that went through ``prepare`` shares out what the sampler has
    shared out, runs a batch ahead, and sets the sampler back to epoch 0 after a resume.

    Args:
        accelerator: after ``prepare``. `check` looks for traps in it: what would make the training wrong is a
            ``ValueError``.
        *parts: `CrossEpoch` or `InStep`, the same ones in the same order whenever the training starts.

    Raises:
        TypeError: a part is of another type.
    """
    for part in parts:
        if not isinstance(part, CrossEpoch | InStep):
            expected = "torchassay.samplers.CrossEpoch or InStep"
            raise checks.InputTypeError(f"register: parts must be {expected}, got {type(part).__name__}")
    accelerator.register_for_checkpointing(*(_OfAllRanks(part) for part in parts))
    traps.heed("register", check(accelerator))


class _OfAllRanks:
    """A part whose state is that of all processes: Accelerate writes one file."""

    def __init__(self, part: CrossEpoch | InStep):
        self.part = part

    def state_dict(self) -> dict:
        return {"ranks": ranks.of_all_ranks(self.part.state_dict())}

    def load_state_dict(self, state: dict) -> None:
        self.part.load_state_dict(ranks.of_this_rank("register", state["ranks"]))


def check(accelerator: Accelerator, loader: Any = None) -> Iterator[traps.Finding]:
    """The traps between an Accelerator and samplers.

    Args:
        accelerator: after ``prepare``.
        loader: the training loader, if its own traps are wanted too.
    """
    registered = [found.part for found in accelerator._custom_objects if isinstance(found, _OfAllRanks)]
    samplers = [part for part in registered if isinstance(part, CrossEpoch)]
    for prepared in accelerator._dataloaders:
        sampler = get_sampler(prepared)
        if isinstance(sampler, CrossEpoch):
            fix = "accelerator.prepare(model, optimizer) without the loader"
            name = type(sampler).__name__
            yield traps.Finding(
                f"a prepared loader shares out the {name}'s batches again and resets its epoch: {fix}", True
            )
    drawn_from = getattr(loader, "sampler", None)
    for sampler in samplers if loader is not None else ():
        yield from traps.of_loader(loader, sampler)
    for known in (*accelerator._custom_objects, drawn_from):
        if isinstance(known, CrossEpoch) and known not in samplers:
            fix = "torchassay.integrations.accelerate.register(accelerator, sampler)"
            yield traps.Finding(f"save_state keeps no {type(known).__name__} of each process: {fix}", True)
    for part in registered:
        if isinstance(part, InStep):
            yield from traps.of_picker(part, accelerator.num_processes)
    for sampler in samplers:
        yield from traps.of_ranks(sampler, accelerator.num_processes)
        for model in accelerator._models:
            yield from traps.of_model(model, sampler)
        if accelerator._schedulers:
            yield from traps.of_schedule(sampler, "a schedule of as many steps as will be taken")
