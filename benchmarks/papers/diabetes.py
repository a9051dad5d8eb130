"""Importance sampling in a training loop of one's own: the diabetes regression of scikit-learn."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import time
from pathlib import Path

import torch
import torchassay as ta
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchassay import doctor, samplers

METHODS = {"sgd": "uniform", "ois": "OIS, weights 1 / (N p)"}
BATCH, RATE, TRAIN = 32, 1e-3, 342
DATA = (
    "Diabetes (scikit-learn): 442 patients, 10 features, of whom 342 are trained on, split by the seed; features and "
    "target standardised by the training part."
)


def train(folder: Path, epochs: int, seeds: list[int]) -> None:
    """All runs, kept as `torchassay compare` keeps its own; nothing if they are there already."""
    path = folder / "results.json"
    if path.exists():
        return
    about = {"version": importlib.metadata.version("torchassay"), "torch": torch.__version__}
    about |= {"machine": doctor.machine(), "date": datetime.date.today().isoformat(), "seeds": seeds, "epochs": epochs}
    runs = [
        {"method": method, "title": title, "seed": seed, "done": True, "epochs": _run(method, seed, epochs)}
        for seed in seeds
        for method, title in METHODS.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "runs": runs}, indent=1), encoding="utf-8")


def early(run: dict) -> float:
    """The training loss after a tenth of the epochs."""
    return run["epochs"][max(0, len(run["epochs"]) // 10 - 1)]["train_loss"]


def problem(seed: int) -> tuple[TensorDataset, TensorDataset]:
    from sklearn.datasets import load_diabetes

    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[rows], y[rows][:, None]
    x = (x - x[:TRAIN].mean(0)) / x[:TRAIN].std(0)
    y = (y - y[:TRAIN].mean(0)) / y[:TRAIN].std(0)
    return TensorDataset(x[:TRAIN], y[:TRAIN]), TensorDataset(x[TRAIN:], y[TRAIN:])


def _run(method: str, seed: int, epochs: int) -> list[dict]:
    """A record for each epoch. The first weights are the same for both methods."""
    train, test = problem(seed)
    data = ta.Indexed(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    kind = samplers.OnlineImportance if method == "ois" else samplers.Shuffle
    sampler = kind(data, batch_size=BATCH, seed=seed)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
    records, seconds = [], 0.0
    for epoch in range(epochs):
        began = time.perf_counter()
        sampler.set_epoch(epoch)
        for x, y, index, *weight in loader:
            found = model(x)
            loss = (found - y).square().sum(1)
            optimizer.zero_grad()
            (weight[0] * loss if weight else loss).mean().backward()
            optimizer.step()
            sampler.observe(index, ta.score_regression(found.detach(), y))
        seconds += time.perf_counter() - began
        losses = {"train_loss": _loss(model, train), "test_loss": _loss(model, test)}
        records.append({"epoch": epoch, "seconds": seconds, "backward": (epoch + 1) * TRAIN, **losses})
    return records


def _loss(model: nn.Module, data: TensorDataset) -> float:
    x, y = data.tensors
    with torch.no_grad():
        return float((model(x) - y).square().mean())
