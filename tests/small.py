"""A small data set, a network with BatchNorm and dropout, and the plain loop that samplers are compared with."""

from __future__ import annotations

import torch
import torchassay as ta
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

N, D, C, B = 203, 6, 4, 20


def dataset(n: int = N) -> TensorDataset:
    random = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(n, D, generator=random), torch.randint(C, (n,), generator=random))


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(D, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, C))


def loader(index: bool = False, n: int = N) -> DataLoader:
    data = dataset(n)
    return DataLoader(ta.Indexed(data) if index else data, batch_size=B)


def train(step, model: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers after 5 epochs: over 50 steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(5)
    for _ in range(5):
        for loss in step(model):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [value.clone() for value in model.state_dict().values()]


def plain(model: nn.Module):
    for x, y in loader():
        yield ta.cross_entropy(model(x), y, reduction="none").mean()
