"""Samplers on a GPU: the picks that the CPU makes, and no waiting for them."""

from __future__ import annotations

import pytest
import torch
import torchassay as ta
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

PICKERS = {
    "SelectiveBackprop": lambda: ta.samplers.SelectiveBackprop(1.0, seed=3),
    "entropy": lambda: ta.samplers.SelectiveBackprop(1.0, signal="entropy", seed=3),
    "random": lambda: ta.samplers.SelectiveBackprop(1.0, signal="random", seed=3),
    "share of batch": lambda: ta.samplers.SelectiveBackprop(keep=0.5, start=0, end=1, seed=3),
    "VarianceReduction": lambda: ta.samplers.VarianceReduction(gate=False, seed=3),
    "BatchTrimming": lambda: ta.samplers.BatchTrimming(p=0.4),
    "LOW": lambda: ta.samplers.LOW(),
}


def scores(step: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    return {name: torch.rand(64, generator=random) for name in ("loss", "entropy", "grad_norm")}


@pytest.mark.parametrize("name", PICKERS)
def test_picks_are_those_of_the_cpu(name):
    here, there = PICKERS[name](), PICKERS[name]()
    for step in range(8):
        values = scores(step)
        mine = here.pick(values)
        theirs = there.pick({signal: value.cuda() for signal, value in values.items()})
        torch.testing.assert_close(theirs.weight.cpu(), mine.weight)
        assert theirs.weight.is_cuda and theirs.count.is_cuda
        loss = values["loss"]
        torch.testing.assert_close(theirs.mean(loss.cuda()).cpu(), mine.mean(loss))
    assert here.counters()["backward_items"] == there.counters()["backward_items"]


@pytest.mark.parametrize("name", PICKERS)
def test_nothing_waits_for_the_gpu(name):
    picker = PICKERS[name]()
    values = {signal: value.cuda() for signal, value in scores(0).items()}
    loss = values["loss"].clone().requires_grad_()
    picker.pick(values).mean(loss).backward()  # what happens once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            picker.pick(values).mean(loss).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_stay_where_the_loader_puts_them():
    data = ta.Indexed(TensorDataset(torch.randn(100, 4), torch.randint(3, (100,))))
    model = nn.Linear(4, 3).cuda()
    picker = ta.samplers.SelectiveBackprop(1.0)
    for (x, _, index), weight in picker.batches(DataLoader(data, batch_size=16), model):
        assert not x.is_cuda and not weight.is_cuda and len(index) == len(weight)


def test_observed_scores_come_from_the_gpu():
    sampler = ta.samplers.Shuffle(64, batch_size=16)
    loss = torch.rand(64)
    for index in torch.from_numpy(sampler.plan()).long().split(16):
        sampler.observe(index.cuda(), {"loss": loss[index].cuda()})
    assert torch.equal(sampler.memory["loss"], loss)
