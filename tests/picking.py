"""What the ranks of tests/test_in_step_group.py do; in a module, since spawned processes import it."""

from __future__ import annotations

import torch
import torchassay as ta
from small import D, dataset, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torchassay.samplers import SelectiveBackprop
from torchassay.samplers.in_step import Chosen, InStep


class Firsts(InStep):
    """Picks so many of the first samples of each batch, other numbers on each rank."""

    def __init__(self, counts: list[int], **common):
        super().__init__(("loss",), **common)
        self.counts = counts

    def _choose(self, scores, index, mask):
        weight = torch.zeros(len(scores["loss"]))
        weight[: self.counts[self.step]] = 1.0
        return Chosen(weight, weight.sum())


def selective(rank: int, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Picks of this rank's part of each row of values, and the gradient of their mean by the values."""
    group = torch.distributed.group.WORLD
    picker = SelectiveBackprop(1.0, capacity=64, seed=3, group=group)
    mine = values[:, rank :: group.size()].clone().requires_grad_()
    masks = []
    for row in mine:
        pick = picker.pick({"loss": row})
        pick.mean(row**2).backward()
        masks.append(pick.mask)
    return {"mask": torch.stack(masks), "grad": mine.grad}


def regrouped(rank: int, counts: list[list[int]], empty: int | None = None) -> dict[str, list]:
    """The batches of a rank that picks so many of each of its own, as indices and weights; trained on under DDP."""
    own = range(rank, 200, torch.distributed.get_world_size())[: 10 * len(counts[rank])]
    data = Subset(ta.Indexed(dataset(200)), list(own) if rank != empty else [])
    picker = Firsts(counts[rank], group=torch.distributed.group.WORLD)
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, weights = [], []
    try:
        for (x, y, index), weight in picker.batches(DataLoader(data, batch_size=10), model):
            seen.append(index.tolist())
            weights.append(weight.tolist())
            optimizer.zero_grad()
            (weight * ta.cross_entropy(model(x), y, reduction="none")).mean().backward()
            optimizer.step()
    except RuntimeError as error:
        return {"error": str(error)}
    return {"seen": seen, "weights": weights, "parameters": model.module[0].weight.detach()}


def gradients(rank: int, picked: list[int]) -> torch.Tensor:
    """The gradient of a linear model under DDP from uneven picks: this rank has the samples rank, rank + W, ..."""
    world = torch.distributed.get_world_size()
    x, y = (value[rank::world] for value in dataset(40).tensors)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(D, 4))
    picker = Firsts(picked[rank : rank + 1], group=torch.distributed.group.WORLD)
    loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=("loss",))
    picker.pick(s).mean(loss).backward()
    return model.module.weight.grad


def everything(rank: int, values: torch.Tensor, picked: list[int], counts: list[list[list[int]]]) -> dict:
    """All of it in one start of the processes."""
    found = {"selective": selective(rank, values), "gradients": gradients(rank, picked)}
    return found | {"regrouped": [regrouped(rank, case) for case in counts], "empty": regrouped(rank, [[5, 5]] * 2, 1)}
