"""What the studies of papers have in common: the data, and how comparisons are trained and kept."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torchassay.compare import Data, methods
from torchassay.compare import run as running
from torchassay.compare.data import load
from torchassay.compare.folder import Folder, arrays_name
from torchassay.compare.training import Training
from torchassay.threads import one_thread

QUICK = {"samples": 300, "epochs": 2, "seeds": 2}


class Place(NamedTuple):
    """Where the data are, and where results go."""

    data: Path
    out: Path
    quick: bool = False  # far fewer samples, epochs and seeds, which show that it runs and nothing else

    def samples(self, n: int) -> int:
        return min(n, QUICK["samples"]) if self.quick else n

    def epochs(self, n: int) -> int:
        return min(n, QUICK["epochs"]) if self.quick else n

    def seeds(self, n: int) -> list[int]:
        return list(range(min(n, QUICK["seeds"]) if self.quick else n))


class Adam(Training):
    """Training by Adam at a constant rate."""

    decay = 0.0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        rate, parameters = self.settings.lr, self.model.parameters()
        self.optimizer = torch.optim.Adam(parameters, rate, weight_decay=self.decay, fused=True)


class Comparison(NamedTuple):
    """Methods on one data set, trained for the same number of passes through it."""

    name: str  # of its folder
    data: Data
    methods: str
    epochs: int
    seeds: list[int]
    corrupt: str | None = None
    model: str = "mlp"
    batch_size: int = 64
    lr: float | None = None
    training: type[Training] = Training  # of another kind than that of `compare`
    kinds: Mapping[str, methods.Kind] = MappingProxyType({})  # methods that this comparison alone has

    def train(self, folder: Path) -> None:
        """All runs that are not there yet."""
        arguments = {name: getattr(self, name) for name in ("corrupt", "model", "epochs", "seeds", "batch_size", "lr")}
        with mock.patch.dict(methods.KINDS, self.kinds):
            plan = running.check(self.data, self.methods, **arguments, budget="epochs", device="cpu")
            if self.training is Training:
                running.train(plan, folder / self.name, resume=True)
            else:
                self._train(plan, folder / self.name)

    def _train(self, plan: running.Plan, path: Path) -> None:
        folder = Folder(path)
        folder.open(plan.about, resume=True)
        for seed in plan.seeds:
            for method in plan.methods:
                if folder.run(str(method), seed) is None:
                    print(f"{self.name}: {method} seed {seed}", flush=True)
                    with one_thread(True), torch.random.fork_rng(devices=[]):
                        training = self.training(method, seed, plan.settings)
                        training.begin()
                        while not training.done:
                            training.epoch(lambda share: None)
                    run = {"method": str(method), "title": method.title, "seed": seed, "done": True}
                    run |= {"arrays": arrays_name(str(method), seed), "versions": {"torch": torch.__version__}}
                    run |= {"counters": training.counters(), "epochs": training.records}
                    folder.enter(run)
                    folder.finish(run, training.arrays())
        folder.close()


def found(folder: Path) -> dict[str, dict]:
    """What has been kept of a paper's comparisons, by their names."""
    paths = sorted(folder.glob("*/results.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def run(paper: ModuleType, place: Place) -> None:
    """Train what a paper's page is made of; what is there already stays."""
    folder = place.out / paper.NAME
    folder.mkdir(parents=True, exist_ok=True)
    for comparison in paper.comparisons(place):
        comparison.train(folder)
    if extra := getattr(paper, "more", None):
        extra(place, folder)


# ---- data


def mnist(place: Place, train: int = 60_000, test: int = 10_000) -> Data:
    return subset(load(place.data / "mnist.npz"), place.samples(train), place.samples(test))


def subset(data: Data, train: int, test: int) -> Data:
    """Random samples, always the same ones, in the order in which they were."""
    rows, others = _some(len(data), train), _some(len(data.test_labels), test)
    return dataclasses.replace(
        data,
        inputs=tuple(part[rows] for part in data.inputs),
        labels=data.labels[rows],
        true=None if data.true is None else data.true[rows],
        test_inputs=tuple(part[others] for part in data.test_inputs),
        test_labels=data.test_labels[others],
    )


def _some(n: int, count: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count].sort().values


def cifar10(place: Place, train: int, test: int, given: Callable[[Path], np.ndarray] | None = None) -> Data:
    """CIFAR-10 from ``cifar10.npz``, or from JPEG files one after the other in ``cifar10_jpeg.npz``; ``given`` reads
    the labels to train on, of all samples."""
    plain = place.data / "cifar10.npz"
    with np.load(plain if plain.exists() else place.data / "cifar10_jpeg.npz") as file:
        labels = {part: torch.from_numpy(file[f"y_{part}"].astype(np.int64)) for part in ("train", "test")}
        rows = {part: _some(len(labels[part]), place.samples(n)) for part, n in (("train", train), ("test", test))}
        if plain.exists():
            images = {part: file[f"x_{part}"][rows[part].numpy()] for part in rows}
        else:
            images = {part: _decoded(file[f"{part}_jpeg"], file[f"{part}_offset"], rows[part]) for part in rows}
    inputs = {part: torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() for part, pixels in images.items()}
    clean = {part: labels[part][rows[part]] for part in rows}
    noisy = clean["train"]
    if given is not None:
        noisy = torch.from_numpy(given(place.data).astype(np.int64))[rows["train"]]
    return Data(
        "CIFAR-10" if plain.exists() else "CIFAR-10 (JPEG copy)",
        (inputs["train"],),
        noisy,
        (inputs["test"],),
        clean["test"],
        true=None if given is None else clean["train"],
    )


def _decoded(files: np.ndarray, ends: np.ndarray, rows: Tensor) -> np.ndarray:
    from PIL import Image

    pieces = (files[ends[i] : ends[i + 1]].tobytes() for i in rows.tolist())
    return np.stack([np.asarray(Image.open(io.BytesIO(piece))) for piece in pieces])
