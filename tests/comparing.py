"""Small problems for the tests of `torchassay compare`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torchassay.compare import Data

CLASSES, TRAIN, TEST = 4, 240, 80


def blobs(modalities: int = 1) -> dict[str, np.ndarray]:
    """Pictures of 4 x 4 pixels of four kinds, each with a bright corner; several modalities see other noise."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", TRAIN), ("test", TEST)):
        arrays[f"y_{part}"] = labels = np.arange(n) % CLASSES
        for i in range(modalities):
            pixels = rng.integers(0, 130, (n, 4, 4))
            pixels[np.arange(n), 3 * (labels // 2), 3 * (labels % 2)] += 125
            arrays[f"x_{part}" + (f"_{i}" if modalities > 1 else "")] = pixels.astype(np.uint8)
    return arrays


def data(modalities: int = 1) -> Data:
    arrays = blobs(modalities=modalities)
    ends = [f"_{i}" for i in range(modalities)] if modalities > 1 else [""]
    parts = [
        value
        for part in ("train", "test")
        for value in (
            tuple(torch.from_numpy(arrays[f"x_{part}{end}"])[:, None] for end in ends),
            torch.from_numpy(arrays[f"y_{part}"]),
        )
    ]
    return Data("blobs", *parts)


def without_seconds(results: dict) -> dict:
    """Results that two equal comparisons share."""
    runs = []
    for run in results["runs"]:
        epochs = [{name: value for name, value in record.items() if name != "seconds"} for record in run["epochs"]]
        timed = ("scoring_ms", "preparation_seconds")
        counters = {name: value for name, value in run["counters"].items() if name not in timed}
        runs.append(run | {"epochs": epochs, "counters": counters})
    about = {name: value for name, value in results["about"].items() if name != "date"}
    return {"about": about, "runs": sorted(runs, key=lambda run: (run["method"], run["seed"]))}


class Fused(nn.Module):
    """Logits of as many modalities and classes as asked for."""

    def __init__(self, classes: list[int]):
        super().__init__()
        self.classes = classes

    def forward(self, x, y):
        return [torch.zeros(len(x), n) for n in self.classes], torch.zeros(len(x), 4)
