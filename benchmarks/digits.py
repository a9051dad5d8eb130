"""Every sampling method on scikit-learn's digits: what it reaches, what it spends, and whom it picks.

    python benchmarks/digits.py [--noise 0.25] [--seeds 5] [--methods 'sgd;SB;MoMBS']

The budget is one of back-propagated samples: methods that drop some go through the data more often. Accuracy is that
of the best epoch on held-out digits, as Hu et al. (2021) take it; of 400, so that a digit is a quarter of a point.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torchassay as ta
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchassay import samplers

BATCH, EPOCHS, WIDTH, RATE = 32, 25, 64, 2e-3
CLASSES, TEST = 10, 400


class Problem(NamedTuple):
    """The digits, split by a seed; labels of the training part may be wrong."""

    train: ta.Indexed
    corrupted: Tensor  # bool [N], labels that were drawn anew
    test: tuple[Tensor, Tensor]


class Result(NamedTuple):
    """What one training gave."""

    accuracy: float  # of the best epoch
    last: float  # of the last one
    epochs: float  # how often it went through the data
    noise: float  # share of corrupted ones among them
    ms: float  # of the processor, a step that trains


class Halves(nn.Module):
    """Two modalities: the left and the right half of a digit, an encoder each, and a head on both."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleList(nn.Sequential(nn.Linear(32, WIDTH), nn.ReLU()) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))
        self.fused = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        pixels = x.view(-1, 8, 8)
        features = [f(half.flatten(1)) for f, half in zip(self.encoders, pixels.split(4, 2), strict=True)]
        return [head(h) for head, h in zip(self.heads, features, strict=True)], self.fused(torch.cat(features, 1))


def problem(seed: int, noise: float = 0.0) -> Problem:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32) / 16, torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = order.tensor_split([TEST])
    noisy = ta.data.corrupt(TensorDataset(x[train], y[train]), "labels", noise, seed=seed, targets=y[train])
    return Problem(ta.Indexed(noisy), noisy.mask, (x[test], y[test]))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, CLASSES))


Steps = Callable[[int], Iterator[Tensor]]  # the losses of an epoch


class Training:
    """A model, its optimizer, and how each kind of method trains it."""

    def __init__(self, data: Problem, seed: int, model: nn.Module | None = None):
        self.data, self.seed, self.model = data, seed, network(seed) if model is None else model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.method: samplers.InStep | samplers.CrossEpoch

    def loader(self, sampler: samplers.CrossEpoch) -> DataLoader:
        return DataLoader(self.data.train, batch_size=BATCH, sampler=sampler)

    def in_step(self, picker: samplers.InStep, pool: int = 1) -> Steps:
        """`batches`: only what is picked is trained on. ``pool``: so many times as many samples are scored at once."""
        self.method = picker
        order = samplers.Shuffle(self.data.train, batch_size=BATCH * pool, seed=self.seed)
        loader = DataLoader(self.data.train, batch_size=BATCH * pool, sampler=order)

        def epoch(number: int) -> Iterator[Tensor]:
            order.set_epoch(number)
            for (x, y, _), weight in picker.batches(loader, self.model):
                for part in torch.arange(len(x)).split(BATCH):
                    yield (weight[part] * ta.cross_entropy(self.model(x[part]), y[part], reduction="none")).mean()

        return epoch

    def weighting(self, picker: samplers.InStep) -> Steps:
        """`pick`: the scores come with the loss of the training forward."""
        self.method = picker
        order = samplers.Shuffle(self.data.train, batch_size=BATCH, seed=self.seed)

        def epoch(number: int) -> Iterator[Tensor]:
            order.set_epoch(number)
            picker.set_epoch(number)
            for x, y, index in self.loader(order):
                loss, s = ta.cross_entropy(self.model(x), y, reduction="none", signals=picker.needs)
                yield picker.pick(s, index=index).mean(loss)

        return epoch

    def across(self, sampler: samplers.CrossEpoch) -> Steps:
        self.method = sampler

        def epoch(number: int) -> Iterator[Tensor]:
            sampler.set_epoch(number)
            for x, y, index, *weight in self.loader(sampler):
                loss, s = ta.cross_entropy(self.model(x), y, reduction="none", signals=("loss", "grad_norm"))
                yield (weight[0] * loss if weight else loss).mean()
                scores = s.as_dict()
                if isinstance(sampler, samplers.MixedOrder):
                    scores["uncertainty"] = sampler.uncertainty(self.model, x)
                sampler.observe(index, scores)

        return epoch

    def halves(self, sampler: samplers.CrossEpoch) -> Steps:
        """Two modalities; the loss is that of all three heads, as in the authors' code."""
        self.method = sampler

        def scores(model: nn.Module, batch) -> dict[str, Tensor]:
            heads, fused = model(batch[0])
            return samplers.balance_scores(heads, fused, batch[1])

        if isinstance(sampler, samplers.BalanceAware):
            sampler.measure(DataLoader(self.data.train, batch_size=256), self.model, scores)

        def epoch(number: int) -> Iterator[Tensor]:
            sampler.set_epoch(number)
            for x, y, index in self.loader(sampler):
                heads, fused = self.model(x)
                yield sum(ta.cross_entropy(logits, y) for logits in (*heads, fused))
                found = samplers.balance_scores([head.detach() for head in heads], fused.detach(), y)
                sampler.observe(index, found if sampler.needs else {})

        return epoch

    def run(self, epoch: Steps) -> Result:
        """Train; `Result.ms` is the median over epochs of the processor's time for a step, scoring included."""
        torch.manual_seed(self.seed)
        self.method.track(self.data.corrupted)
        reached, times = [], []
        for number in range(8 * EPOCHS):
            if self.method.counters()["backward_items"] > (EPOCHS - 0.5) * len(self.data.train):
                break
            steps, began = 0, time.process_time()
            for loss in epoch(number):
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                steps += 1
            times.append((time.process_time() - began) / max(1, steps) * 1e3)
            reached.append(accuracy(self.model, *self.data.test))
        found = self.method.counters()
        ms = sorted(times)[len(times) // 2]
        return Result(max(reached), reached[-1], len(reached), found["noise_share"], ms)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        logits = model(x)
        if isinstance(logits, tuple):
            logits = sum(logits[0], logits[1])
    model.train()
    return float((logits.argmax(1) == y).float().mean())


def irreducible(data: Problem, seed: int) -> Tensor:
    """What RHO-Loss subtracts: each half's losses under a model that was trained on the other half, since no data are
    held out (Mindermann et al. 2022, section 4.2)."""
    x, y = (torch.stack(column) for column in zip(*((x, torch.as_tensor(y)) for x, y, _ in data.train), strict=True))
    found = torch.empty(len(x))
    halves = torch.randperm(len(x)).tensor_split(2)
    for mine, others in (halves, halves[::-1]):
        model = network(seed + 1000)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        for _ in range(EPOCHS):
            for rows in others[torch.randperm(len(others))].split(BATCH):
                optimizer.zero_grad()
                ta.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        found[mine] = ta.score(model.eval()(x[mine]), y[mine], signals="loss").loss
    return found


def _plain(t: Training, **common) -> samplers.CrossEpoch:
    return samplers.Shuffle(t.data.train, batch_size=BATCH, seed=t.seed, **common)


def _subset(t: Training) -> Steps:
    """The control of methods that halve the backward passes: half of the samples, drawn anew in each epoch."""
    return t.in_step(samplers.SelectiveBackprop(1.0, signal="random", seed=t.seed))


def _mixed(t: Training, **options) -> samplers.MixedOrder:
    arguments = {"batch_size": BATCH, "seed": t.seed, "pivot": 3, "layers": "1"} | options
    return samplers.MixedOrder(t.data.train, **arguments)


def _ois(t: Training, **options) -> samplers.OnlineImportance:
    return samplers.OnlineImportance(t.data.train, batch_size=BATCH, seed=t.seed, **options)


def _bss(t: Training, scheduler: str) -> samplers.BalanceAware:
    arguments = {"batch_size": BATCH, "seed": t.seed, "scheduler": scheduler, "t_grow": EPOCHS * 0.4}
    return samplers.BalanceAware(t.data.train, **arguments)


METHODS: dict[str, Callable[[Training], Steps]] = {
    "sgd": lambda t: t.across(_plain(t)),
    "random half": _subset,
    "SB": lambda t: t.in_step(samplers.SelectiveBackprop(1.0, warmup_epochs=1, seed=t.seed)),
    "SBE": lambda t: t.in_step(samplers.SelectiveBackprop(1.0, signal="entropy", warmup_epochs=1, seed=t.seed)),
    "StaleSB": lambda t: t.in_step(samplers.SelectiveBackprop(1.0, stale=3, warmup_epochs=1, seed=t.seed)),
    "SB, per batch": lambda t: t.in_step(
        samplers.SelectiveBackprop(keep=0.5, steps=EPOCHS * len(t.data.train) // BATCH, seed=t.seed)
    ),
    "VR": lambda t: t.in_step(samplers.VarianceReduction(tau_threshold=1.2, seed=t.seed)),
    "VR, loss": lambda t: t.in_step(
        samplers.VarianceReduction(2, signal="loss", weighted=False, warmup=False, tau_threshold=1.2, seed=t.seed)
    ),
    "trimming": lambda t: t.in_step(samplers.BatchTrimming(round(EPOCHS / 0.6), seed=t.seed)),
    "OHEM": lambda t: t.in_step(samplers.BatchTrimming(p=0.5, seed=t.seed)),
    "LOW": lambda t: t.weighting(samplers.LOW(seed=t.seed)),
    "RHO-Loss": lambda t: t.in_step(samplers.RHOLoss(irreducible(t.data, t.seed), 0.25, seed=t.seed), pool=4),
    "OIS": lambda t: t.across(_ois(t)),
    "AIS": lambda t: t.across(_ois(t, adaptive=True)),
    "OIS, pruned": lambda t: t.across(_ois(t, keep=0.9, interval=3, min_keep=400)),
    "MoMBS": lambda t: t.across(_mixed(t)),
    "easy to hard": lambda t: t.across(_mixed(t, order="easy_to_hard")),
    "InfoBatch": lambda t: t.across(
        samplers.InfoBatch(t.data.train, batch_size=BATCH, seed=t.seed, epochs=round(EPOCHS / 0.75))
    ),
    "sgd, two halves": lambda t: t.halves(_plain(t)),
    "BSS-H": lambda t: t.halves(_bss(t, "heuristic")),
    "BSS-L": lambda t: t.halves(_bss(t, "learned")),
}
OF_HALVES = ("sgd, two halves", "BSS-H", "BSS-L")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """So small a network gains nothing from more, and its sums come out the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(name: str, seed: int, noise: float = 0.0) -> Result:
    """One training by a method."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Halves() if name in OF_HALVES else None
        training = Training(problem(seed, noise), seed, model)
        return training.run(METHODS[name](training))


def baseline(name: str) -> str:
    """The plain training of the same model."""
    return "sgd, two halves" if name in OF_HALVES else "sgd"


def compare(names: list[str], seeds: int, noise: float) -> list[dict]:
    """A row for each method: means over the seeds, and the difference to plain training of the same seed."""
    found = {name: [train(name, seed, noise) for seed in range(seeds)] for name in names}
    rows = []
    for name, results in found.items():
        plain = found.get(baseline(name), results)
        gain = torch.tensor([mine.accuracy - theirs.accuracy for mine, theirs in zip(results, plain, strict=True)])
        mean = Result(*(sum(column) / seeds for column in zip(*results, strict=True)))
        spread = float(gain.std()) / seeds**0.5 if seeds > 1 else 0.0
        rows.append(
            {
                "method": name,
                "best accuracy, %": f"{100 * mean.accuracy:.2f}",
                "points over sgd": f"{100 * float(gain.mean()):+.2f} ± {100 * spread:.2f}",
                "last epoch, %": f"{100 * mean.last:.2f}",
                "epochs": f"{mean.epochs:.0f}",
                "corrupted among them": f"{mean.noise:.3f}",
                "time of a step / sgd's": f"{mean.ms / (sum(r.ms for r in plain) / seeds):.2f}",
            }
        )
    return rows


if __name__ == "__main__":
    from tables import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.0, help="share of labels drawn anew")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=None, help="names, separated by semicolons")
    options = parser.parse_args()
    chosen = list(METHODS) if options.methods is None else options.methods.split(";")
    print(table(compare(chosen, options.seeds, options.noise)))
