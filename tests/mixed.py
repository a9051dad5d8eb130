"""Points of two classes, and a network with all that noise and modes of training could disturb."""

from __future__ import annotations

import torch
import torchassay as ta
from torch import nn
from torch.utils.data import TensorDataset


def points(n: int = 46) -> ta.Indexed:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 6, generator=generator)
    return ta.Indexed(TensorDataset(x, (x[:, 0] + 0.5 * torch.randn(n, generator=generator) > 0).long()))


def inputs() -> torch.Tensor:
    return torch.stack([x for x, *_ in points()])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), nn.Linear(16, 3)
    )
