"""What goes wrong silently between a sampler and somebody else's training loop, told before the training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import DataLoader

from torchassay import checks
from torchassay.data import Indexed
from torchassay.samplers import CrossEpoch, InfoBatch, InStep, OnlineImportance
from torchassay.samplers.drawn import Drawn


class Finding(NamedTuple):
    """A trap that a trainer is about to step into.

    Attributes:
        text: one line that names the fix.
        wrong: whether the training would be wrong; otherwise it is right, and something about it may surprise.
    """

    text: str
    wrong: bool


def heed(function: str, findings: Iterable[Finding]) -> None:
    """Warn of each finding, and raise ``ValueError`` for those that would make the training wrong."""
    found = list(findings)
    for finding in found:
        if not finding.wrong:
            warnings.warn(f"{function}: {finding.text}", stacklevel=3)
    wrong = [finding.text for finding in found if finding.wrong]
    if wrong:
        raise checks.InputValueError(f"{function}: {'; '.join(wrong)}")


def of_loader(loader: Any, sampler: CrossEpoch) -> Iterator[Finding]:
    """Of a `DataLoader` that is to take its batches from ``sampler``."""
    name = type(sampler).__name__
    if not isinstance(loader, DataLoader):
        yield Finding(f"loader must be a torch.utils.data.DataLoader, got {type(loader).__name__}", True)
        return
    if loader.sampler is not sampler:
        fix = f"DataLoader(..., sampler=sampler) with the {name} itself, and without shuffle=True"
        yield Finding(f"the loader draws from a {type(loader.sampler).__name__}: {fix}", True)
    if loader.batch_size != sampler.batch_size:
        fix = f"DataLoader(batch_size={sampler.batch_size})"
        yield Finding(
            f"the loader's batch_size is {loader.batch_size}, the sampler's {sampler.batch_size}: {fix}", True
        )
    if not isinstance(loader.dataset, Indexed):
        fix = "torchassay.Indexed(dataset) for the loader and the sampler"
        yield Finding(f"batches do not say which samples they hold: {fix}", True)
    if not loader.in_order:
        yield Finding("batches may come in another order than they were drawn in: DataLoader(in_order=True)", True)
    yield from of_prefetching(sampler, loader.num_workers, loader.prefetch_factor)


def of_ranks(sampler: CrossEpoch, world: int) -> Iterator[Finding]:
    """Of a sampler that shares its batches out among other processes than those that train."""
    made_for = sampler._replicas.world
    if made_for != world:
        fix = "make the sampler behind torch.distributed.init_process_group"
        yield Finding(f"{world} processes train, the {type(sampler).__name__} shares out among {made_for}: {fix}", True)


def of_prefetching(sampler: CrossEpoch, num_workers: int, prefetch_factor: int | None) -> Iterator[Finding]:
    """Of batches that are drawn before the latest observations."""
    ahead = num_workers * (prefetch_factor or 2)
    if isinstance(sampler, Drawn) and ahead:
        fix = "num_workers=0 draws from the latest, fewer workers or a smaller prefetch_factor from later ones"
        name = type(sampler).__name__
        yield Finding(f"{name}'s batches are drawn {ahead} batches ahead, from scores that old: {fix}", False)


def of_model(model: nn.Module, sampler: CrossEpoch) -> Iterator[Finding]:
    """Of BatchNorm, which learns from the batches that it sees."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    if sampler.weighted:
        fix = "torch.optim.swa_utils.update_bn(plain_loader, model) before evaluating"
        yield Finding(f"BatchNorm's statistics become those of what {type(sampler).__name__} draws: {fix}", False)
    if len(sampler) % sampler.batch_size == 1:
        fix = f"{type(sampler).__name__}(drop_last=True)"
        yield Finding(f"the last batch has one sample, which BatchNorm refuses in training: {fix}", True)


def of_schedule(sampler: CrossEpoch, counts: str) -> Iterator[Finding]:
    """Of a learning rate that goes by steps counted beforehand, where epochs change their length."""
    if changes_length(sampler):
        fix = f"{counts}, or a schedule by epochs"
        yield Finding(
            f"epochs of {type(sampler).__name__} have other lengths than the learning rate counts: {fix}", False
        )


def of_picker(picker: InStep, world: int) -> Iterator[Finding]:
    """Of several processes that pick in step."""
    if world > 1 and picker.group is None:
        fix = f"{type(picker).__name__}(group=torch.distributed.group.WORLD)"
        yield Finding(f"each process divides by what it picked alone: {fix}", True)


def changes_length(sampler: CrossEpoch) -> bool:
    """Whether epochs differ in length."""
    prunes = isinstance(sampler, OnlineImportance) and sampler.keep is not None
    return prunes or isinstance(sampler, InfoBatch) or getattr(sampler, "scheduler", None) == "heuristic"
