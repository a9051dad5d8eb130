"""One run: a model trained by one method with one seed, in epochs that can be saved between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchassay as ta
from torchassay import samplers
from torchassay.compare.data import Batches, Data
from torchassay.compare.methods import Method, Setup, Step
from torchassay.samplers.counters import REUSE_BINS
from torchassay.samplers.forwards import evaluating

BUDGETS = ("backprops", "seconds", "epochs")
SCHEDULES = ("constant", "cosine")
_SIGNALS = ("loss", "entropy", "target_margin")  # kept of every sample
_MOST_PASSES = 20  # times ``epochs``, for a method that picks next to nothing
_TEST_BATCH = 1000
_MOMENTUM, _DECAY = 0.9, 5e-4  # of Hu et al. (2021)


class Settings(NamedTuple):
    """What all runs of a comparison have in common."""

    data: Data
    make: Callable[[], nn.Module]
    epochs: int
    budget: str
    batch_size: int
    lr: float
    schedule: str
    device: torch.device


class Scale:
    """Inputs as models take them, on their device: pixels (uint8) standardised by channel, floats as they are."""

    def __init__(self, data: Data, device: torch.device):
        self.device = device
        self._moments = [_moments(part, device) if part.dtype == torch.uint8 else None for part in data.inputs]

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        moved = (part.to(self.device, non_blocking=True) for part in inputs)
        pairs = zip(moved, self._moments, strict=True)
        return tuple(part if moments is None else (part - moments[0]) * moments[1] for part, moments in pairs)


def _moments(pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each channel, from counts of its 256 values."""
    channels = pixels.unbind(1) if pixels.dim() == 4 else [pixels]
    share = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels]).double()
    share /= share.sum(1, keepdim=True)
    values = torch.arange(256.0, dtype=torch.float64)
    mean = share @ values
    std = ((values - mean[:, None]).square() * share).sum(1).sqrt().clamp(min=1.0)
    shape = (-1, 1, 1) if pixels.dim() == 4 else (-1,)
    return tuple(value.float().view(shape).to(device) for value in (mean, 1 / std))


class Tallies:
    """What is known of every sample: how often it was trained on, and what it was worth then."""

    def __init__(self, n: int):
        self.arrays = {"picks": np.zeros(n, np.int32), "loss_last": np.full(n, np.nan, np.float32)}
        self.arrays |= {f"{name}_sum": np.zeros(n) for name in _SIGNALS}

    def add(self, index: Tensor, values: dict[str, Tensor]) -> None:
        """An epoch's samples in the order in which they were trained on."""
        rows, n = index.numpy(), len(self.arrays["picks"])
        self.arrays["picks"] += np.bincount(rows, minlength=n).astype(np.int32)
        for name in _SIGNALS:
            self.arrays[f"{name}_sum"] += np.bincount(rows, values[name].double().numpy(), n)
        self.arrays["loss_last"][rows] = values["loss"].numpy()

    def means(self) -> dict[str, np.ndarray]:
        """As they are written: means over the visits, NaN where there was none."""
        picks = self.arrays["picks"]
        found = {"picks": picks, "loss_last": self.arrays["loss_last"]}
        for name in _SIGNALS:
            mean = np.full(len(picks), np.nan, np.float32)
            np.divide(self.arrays[f"{name}_sum"], picks, out=mean, where=picks > 0, casting="same_kind")
            found[name] = mean
        return found


class Training:
    """A model, its optimizer, the method, and what has been recorded.

    The budget is ``epochs`` times the number of training samples in back-propagations ("backprops"), that many passes
    through the data ("epochs"), or ``seconds`` of training ("seconds"). The first and the last end a run in mid-epoch;
    a run that would take more than 20 times ``epochs`` passes ends there.
    """

    def __init__(self, method: Method, seed: int, settings: Settings, seconds: float = math.inf):
        self.settings, self.seed, self.limit = settings, seed, seconds
        self.data, self.device = settings.data, settings.device
        self.records: list[dict] = []
        self.forward = self.backward = 0
        self.seconds = 0.0
        self.prepared: dict = {}  # what was computed before the first epoch, and what that took
        self.tallies = Tallies(len(self.data))
        self.scale = Scale(self.data, self.device)
        torch.manual_seed(seed)
        self.model = settings.make().to(self.device)
        self.optimizer = optimizer_of(self.model, self.settings.lr)
        train = Batches(self.data)
        self._setup = Setup(
            train, settings.batch_size, settings.epochs, settings.budget, seed, lambda: self._irreducible(train)
        )
        self._method = method
        self.way = None  # RHO-Loss trains models to be made, which a resumed run has no need to

    # ---- in epochs

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        if self.settings.budget == "backprops":
            spent = self.backward / (self.settings.epochs * len(self.data))
        elif self.settings.budget == "epochs":
            spent = len(self.records) / self.settings.epochs
        else:
            spent = self.seconds / self.limit
        return min(1.0, max(spent, len(self.records) / (_MOST_PASSES * self.settings.epochs)))

    @property
    def done(self) -> bool:
        return self.progress >= 1.0

    def begin(self) -> None:
        """Before the first epoch."""
        self.way = self._method.made(self._setup)
        self.way.start(self.model, self._outputs)

    def epoch(self, told: Callable[[float], None]) -> None:
        """One pass through the data, or what the budget leaves of it; ``told`` hears of the progress."""
        trained: list[tuple[Tensor, ...]] = []  # index, weight and signals of every step
        began, before = time.perf_counter(), self.seconds
        self.model.train()
        for batch, weight in self.way.batches(len(self.records), self.model, self._scored):
            trained.append(self._step(batch, weight))
            self.seconds = before + time.perf_counter() - began
            told(self.progress)
            if self.done:
                break
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = before + time.perf_counter() - began
        self._record(trained)
        told(self.progress)

    def _step(self, batch: tuple, weight: Tensor | None) -> tuple[Tensor, ...]:
        if self.settings.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * 0.5 * (1 + math.cos(math.pi * self.progress))
        index = batch[2]
        inputs, target = self.scale(batch[0]), batch[1].to(self.device, non_blocking=True)
        heads, fused = self._forward(self.model, inputs)
        signals = tuple(dict.fromkeys((*_SIGNALS, *self.way.signals)))
        loss, scores = ta.cross_entropy(fused, target, reduction="none", signals=signals)
        weight = self.way.weights(index, scores, weight)
        total = sum((F.cross_entropy(head, target, reduction="none") for head in heads), start=loss)
        if weight is None:
            objective, weight = total.mean(), torch.ones(len(index))
        else:
            objective = (weight.to(self.device, non_blocking=True) * total).mean()
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()
        self.backward += len(index)
        heads = [head.detach() for head in heads]
        again = lambda model, inputs: self._forward(model, inputs)[1]  # noqa: E731
        self.way.trained(index, scores, Step(self.model, inputs, target, heads, fused.detach(), again))
        return index, weight, *(getattr(scores, name) for name in _SIGNALS)

    def _record(self, trained: list[tuple[Tensor, ...]]) -> None:
        record = {"epoch": len(self.records), "forward": self.forward, "backward": self.backward}
        record |= {"seconds": self.seconds, **self._tested()}
        record |= {"train_loss": None, "noise_share": None, "ess": None}
        if trained:
            index, weight, *values = (torch.cat(column).cpu() for column in zip(*trained, strict=True))
            taken = weight > 0  # the others make up for a batch that BatchNorm would find too small
            self.tallies.add(index[taken], dict(zip(_SIGNALS, (value[taken] for value in values), strict=True)))
            record["train_loss"] = float(values[0][taken].double().mean())
            record["ess"] = float(np.mean([_effective(step[1]) for step in trained]))
            if self.data.corrupted is not None:
                record["noise_share"] = float(self.data.corrupted[index[taken]].double().mean())
        self.records.append({name: _finite(value) for name, value in record.items()})

    # ---- forwards, each of which is counted

    def _forward(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Each modality's own logits, none if there is one, and those on all."""
        n = len(inputs[0])
        self.forward += n
        if n == 1 and model.training:  # BatchNorm refuses a single sample
            inputs = tuple(part.repeat(2, *[1] * (part.dim() - 1)) for part in inputs)
        found = model(*inputs)
        heads, fused = ([], found) if len(inputs) == 1 else found
        return [head[:n] for head in heads], fused[:n]

    def _outputs(self, model: nn.Module, batch: tuple) -> tuple[list[Tensor], Tensor, Tensor]:
        heads, fused = self._forward(model, self.scale(batch[0]))
        return heads, fused, batch[1].to(self.device, non_blocking=True)

    def _scored(self, model: nn.Module, batch: tuple) -> tuple[Tensor, Tensor]:
        _, fused, target = self._outputs(model, batch)
        return fused, target

    def _tested(self) -> dict[str, float]:
        """Error and mean loss on the test set; with several modalities their logits are summed to decide."""
        before, wrong, total = self.forward, 0.0, 0.0
        with evaluating(self.model), torch.no_grad():
            for rows in torch.arange(len(self.data.test_labels)).split(_TEST_BATCH):
                inputs = self.scale(tuple(part[rows] for part in self.data.test_inputs))
                target = self.data.test_labels[rows].to(self.device)
                heads, fused = self._forward(self.model, inputs)
                wrong += (sum(heads, start=fused).argmax(1) != target).sum().double()
                total += F.cross_entropy(fused, target, reduction="sum").double()
        self.forward = before
        n = len(self.data.test_labels)
        return {"test_error": float(wrong) / n, "test_loss": float(total) / n}

    def _irreducible(self, train: Batches) -> Tensor:
        """What RHO-Loss subtracts: each half's losses under a model that was trained on the other half, since no data
        are held out (Mindermann et al. 2022, section 4.2). Each is trained for ``epochs`` epochs of plain SGD."""
        if "irreducible" in self.prepared:
            return self.prepared["irreducible"]
        before, began = self.forward, time.perf_counter()
        found, steps = torch.empty(len(train)), 0
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed + (1 << 20))
            halves = torch.randperm(len(train)).tensor_split(2)
            for mine, others in (halves, halves[::-1]):
                model = self.settings.make().to(self.device)
                optimizer = optimizer_of(model, self.settings.lr)
                for _ in range(self.settings.epochs):
                    for rows in others[torch.randperm(len(others))].split(self.settings.batch_size):
                        heads, fused, target = self._outputs(model, train.__getitems__(rows.tolist()))
                        optimizer.zero_grad()
                        sum(F.cross_entropy(logits, target) for logits in (fused, *heads)).backward()
                        optimizer.step()
                        steps += len(rows)
                with evaluating(model), torch.no_grad():
                    for rows in mine.split(_TEST_BATCH):
                        logits, target = self._scored(model, train.__getitems__(rows.tolist()))
                        found[rows] = ta.score(logits, target, signals="loss").loss.float().cpu()
        self.forward = before
        spent = {"preparation_backward": steps, "preparation_seconds": time.perf_counter() - began}
        self.prepared = {"irreducible": found} | spent
        return found

    # ---- what is kept

    def counters(self) -> dict:
        """The method's own, with what the whole run went through and picked."""
        picks = self.tallies.arrays["picks"]
        found = self.way.method.counters() | {"forward_items": self.forward, "backward_items": self.backward}
        found["reuse"] = np.bincount(np.minimum(picks, REUSE_BINS - 1), minlength=REUSE_BINS).tolist()
        if self.data.corrupted is not None:
            found["noise_share"] = float(picks[self.data.corrupted.numpy()].sum() / max(1, picks.sum()))
        found |= {name: value for name, value in self.prepared.items() if name != "irreducible"}
        return {name: _finite(value) for name, value in found.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """What a run leaves of every sample."""
        data = self.data
        nothing = np.zeros(len(data), bool)
        found = self.tallies.means() | {"given": data.labels.numpy(), "corrupted": nothing, "changed": nothing}
        if isinstance(self.way.method, samplers.MixedOrder) and "uncertainty" in self.way.method.fields:
            found["uncertainty"] = self.way.method.memory["uncertainty"].numpy()
        known = {"true": data.true, "corrupted": data.corrupted, "changed": data.changed}
        return found | {name: value.numpy() for name, value in known.items() if value is not None}

    def state(self) -> dict:
        """Everything that going on needs, between epochs."""
        own = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        own |= {"method": self.way.method.state_dict(), "rng": torch.get_rng_state()}
        own |= {"tallies": {name: torch.from_numpy(values) for name, values in self.tallies.arrays.items()}}
        if self.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        counts = {"forward": self.forward, "backward": self.backward, "seconds": self.seconds, "limit": self.limit}
        return own | counts | {"records": self.records, "prepared": self.prepared}

    def go_on(self, state: dict) -> None:
        """From a `state`."""
        for name in ("forward", "backward", "seconds", "limit", "records", "prepared"):
            setattr(self, name, state[name])
        self.way = self._method.made(self._setup)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.way.method.load_state_dict(state["method"])
        for name, values in state["tallies"].items():
            self.tallies.arrays[name][:] = values.numpy()
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    arguments = {"momentum": _MOMENTUM, "weight_decay": _DECAY, "nesterov": True}
    return torch.optim.SGD(model.parameters(), lr, fused=True, **arguments)


def _effective(weight: Tensor) -> float:
    """(sum w)^2 / sum w^2 over the number of weights that are not 0."""
    weight = weight[weight > 0].double()
    return float(weight.sum() ** 2 / weight.square().sum() / len(weight)) if len(weight) else 0.0


def _finite(value):
    """JSON has no NaN: a loss that is none is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
