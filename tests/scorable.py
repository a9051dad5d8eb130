"""Models and data sets for the tests of `torchassay score`, by name: ``tests/scorable.py:network``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

N, D, C = 150, 6, 4
BROKEN = {17: "unreadable", 40: "of another shape", 41: "a label too large", 90: "nothing"}
shared = nn.Linear(D, C)
number = 3


def network() -> nn.Module:
    random = torch.random.get_rng_state()
    torch.manual_seed(4)
    made = nn.Sequential(nn.Linear(D, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, C))
    torch.random.set_rng_state(random)
    return made


def unseeded() -> nn.Module:
    return nn.Linear(D, C)


def not_a_module() -> int:
    return 3


class Features(nn.Module):
    """A model that stops too early."""

    def forward(self, x: Tensor) -> dict:
        return {"last_hidden_state": x, "pooled": x.mean()}


def rows(n: int = N) -> TensorDataset:
    random = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(n, D, generator=random), torch.randint(C, (n,), generator=random))


class Broken(Dataset):
    """The same with a few rows that are not as they should be."""

    def __init__(self):
        self.rows = rows()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int):
        x, y = self.rows[index]
        why = BROKEN.get(index)
        if why == "unreadable":
            raise OSError("truncated")
        x = x[:2] if why == "of another shape" else None if why == "nothing" else x
        return {"x": x, "y": C if why == "a label too large" else int(y)}


class Slow(Dataset):
    """The same, at leisure."""

    def __init__(self):
        self.rows = rows()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int):
        time.sleep(0.01)
        return self.rows[index]


class Deadly(Slow):
    """The same, but if there is a file ``die`` in the working directory, it goes, and the process that reads row 80."""

    def __getitem__(self, index: int):
        if index == 80 and Path("die").exists():
            Path("die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
