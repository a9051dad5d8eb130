"""The methods by name, and how each takes part in training."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torchassay import checks, samplers
from torchassay.compare.data import Batches
from torchassay.samplers.planned import Planned
from torchassay.scores import Scores

_TAG = 0x50B5E7  # of the subset's random numbers
_GIVEN = ("data", "batch_size", "drop_last", "seed", "group", "rank", "num_replicas", "plan_dir", "irreducible")


class Subset(Planned):
    """The control of methods that drop samples: a random ``share`` of them, drawn once, and no others ever."""

    def __init__(self, data, *, batch_size, share: float = 0.5, seed: int = 0):
        if not 0.0 < share <= 1.0:
            raise checks.InputValueError(f"Subset: share must be in (0, 1], got {share}")
        n = self._samples(data)
        chosen = np.random.default_rng([seed, _TAG]).permutation(n)[: max(1, round(share * n))]
        self._taken = np.isin(np.arange(n), chosen)
        super().__init__(data, batch_size=batch_size, seed=seed)

    def _plan(self, epoch: int) -> tuple[np.ndarray, None]:
        order = self._shuffled()
        return order[self._taken[order]], None


class Setup(NamedTuple):
    """What a method may want to know of the training that it is made for."""

    train: Batches
    batch_size: int
    epochs: int
    budget: str
    seed: int
    irreducible: Callable[[], Tensor]  # for RHO-Loss

    def passes(self, share: float) -> int:
        """How often a method that trains on this share of the samples goes through the data within the budget."""
        return max(1, round(self.epochs / share)) if self.budget == "backprops" else self.epochs

    def steps(self, share: float) -> int:
        return self.passes(share) * math.ceil(len(self.train) / self.batch_size)


Presets = Callable[[Setup], dict]


class Kind(NamedTuple):
    """A method: its title, its class, what its name says of the arguments, and how it takes part in training."""

    title: str
    make: type
    presets: Presets
    way: type[Way]
    modalities: int = 1  # at least


class Way:
    """A method in a training loop::

    way.start(model, outputs)
    for batch, weight in way.batches(epoch, model, forward):
        inputs, target, index, *_ = batch
        loss, scores = ...
        way.weights(index, scores, weight) * loss ...
        way.trained(index, scores, step)
    """

    def __init__(self, method: samplers.InStep | samplers.CrossEpoch, setup: Setup):
        self.method, self.setup = method, setup
        self.signals = method.needs

    def _loader(self, sampler: samplers.CrossEpoch, batch_size: int) -> DataLoader:
        return DataLoader(self.setup.train, batch_size=batch_size, sampler=sampler, collate_fn=_as_it_is)

    def _shuffle(self, batch_size: int) -> samplers.Shuffle:
        return samplers.Shuffle(self.setup.train, batch_size=batch_size, seed=self.setup.seed)

    def start(self, model: nn.Module, outputs: Callable) -> None:
        """Before the first epoch of a run. ``outputs(model, batch)`` gives each modality's own logits, the fused ones,
        and the target."""

    def batches(self, epoch: int, model: nn.Module, forward: Callable) -> Iterator[tuple[tuple, Tensor | None]]:
        """The batches of an epoch, and the weights of their samples; None: all 1. ``forward(model, batch)`` gives the
        logits and the target."""
        raise NotImplementedError

    def weights(self, index: Tensor, scores: Scores, weight: Tensor | None) -> Tensor | None:
        """The weights, once the batch's scores are known."""
        return weight

    def trained(self, index: Tensor, scores: Scores, step: Step) -> None:
        """After the optimizer's step."""


class Step(NamedTuple):
    """What a method may look at behind an optimizer's step."""

    model: nn.Module
    inputs: tuple[Tensor, ...]  # on the model's device
    target: Tensor
    heads: list[Tensor]  # the modalities' own logits, none if there is one; detached
    fused: Tensor
    again: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]  # another forward, which is counted


class Picked(Way):
    """In-step methods: samples are scored without gradient, and those that are picked are trained on."""

    def __init__(self, method: samplers.InStep, setup: Setup):
        super().__init__(method, setup)
        share = method.fraction if isinstance(method, samplers.RHOLoss) else 1.0  # there a pool makes a batch
        size = max(1, round(setup.batch_size / share))
        self._order = self._shuffle(size)
        self._batches = self._loader(self._order, size)

    def batches(self, epoch, model, forward):
        self._order.set_epoch(epoch)
        return self.method.batches(self._batches, model, forward)

    def trained(self, index, scores, step):
        if isinstance(self.method, samplers.VarianceReduction):
            self.method.observe(scores)
        elif isinstance(self.method, samplers.SelectiveBackprop) and self.method.stale:
            self.method.observe(index, scores)


class Weighed(Way):
    """In-step methods that weigh a whole batch, by the scores of the training forward."""

    def __init__(self, method: samplers.InStep, setup: Setup):
        super().__init__(method, setup)
        self._order = self._shuffle(setup.batch_size)
        self._batches = self._loader(self._order, setup.batch_size)

    def batches(self, epoch, model, forward):
        self._order.set_epoch(epoch)
        self.method.set_epoch(epoch)
        return ((batch, None) for batch in self._batches)

    def weights(self, index, scores, weight):
        pick = self.method.pick(scores, index=index)
        return pick.weight * (len(index) / pick.count)


class Across(Way):
    """Cross-epoch methods: samplers of a loader, which observe what comes of each batch."""

    def __init__(self, method: samplers.CrossEpoch, setup: Setup):
        super().__init__(method, setup)
        self._batches = self._loader(method, setup.batch_size)
        self.signals = tuple(name for name in method.needs if name not in ("uncertainty", "similarity"))

    def batches(self, epoch, model, forward):
        self.method.set_epoch(epoch)
        return ((batch, batch[3] if self.method.weighted else None) for batch in self._batches)

    def trained(self, index, scores, step):
        self.method.observe(index, scores)


class Plain(Across):
    """Orders that depend on nothing: values of samples are not kept, which would cost plain training a tenth more time
    where the model is small."""

    def trained(self, index, scores, step):
        pass


class Mixed(Across):
    """MoMBS wants the entropy under feature noise, but in epochs whose values no plan reads."""

    def trained(self, index, scores, step):
        found = scores.as_dict()
        if "uncertainty" in self.method.fields:
            read = self.method.epoch >= self.method.pivot
            unknown = torch.full((len(index),), torch.nan)
            found["uncertainty"] = self.method.uncertainty(step.model, step.inputs, step.again) if read else unknown
        self.method.observe(index, found)


class Balanced(Across):
    """BSS measures all samples before the first epoch, and then wants each modality's own logits."""

    def start(self, model, outputs):
        batches = DataLoader(self.setup.train, batch_size=256, collate_fn=_as_it_is)
        self.method.measure(batches, model, lambda model, batch: samplers.balance_scores(*outputs(model, batch)))

    def trained(self, index, scores, step):
        found = samplers.balance_scores(step.heads, step.fused, step.target) if self.method.needs else {}
        self.method.observe(index, found)


def _nothing(setup: Setup) -> dict:
    return {}


def _always(**presets) -> Presets:
    return lambda setup: presets


def _bss(scheduler: str) -> Presets:
    """t_grow is 40 of the authors' 70 to 120 epochs."""
    return lambda setup: {"scheduler": scheduler, "t_grow": max(1, round(0.4 * setup.epochs))}


_SB, _VR, _OIS = samplers.SelectiveBackprop, samplers.VarianceReduction, samplers.OnlineImportance
_HU = {"pool": 2, "signal": "loss", "weighted": False, "warmup": False}

KINDS: dict[str, Kind] = {
    "sgd": Kind("SGD", samplers.Shuffle, _nothing, Plain),
    "subset": Kind("fixed random subset", Subset, _nothing, Plain),
    "random": Kind("random picks", _SB, _always(signal="random"), Picked),
    "sb": Kind("SB", _SB, _nothing, Picked),
    "sbe": Kind("SBE", _SB, _always(signal="entropy"), Picked),
    "stale-sb": Kind("StaleSB", _SB, _always(stale=3), Picked),
    # Half of every second step's samples in 40 % of the training: 90 % in all.
    "composer-sb": Kind("SB, Composer", _SB, lambda setup: {"keep": 0.5, "steps": setup.steps(0.9)}, Picked),
    "vr": Kind("VR", _VR, _nothing, Picked),
    "vr-hu": Kind("VR, Hu et al.", _VR, _always(**_HU), Picked),
    # A share that falls from 1 to 0.2: 60 % in all.
    "trim": Kind("trimming", samplers.BatchTrimming, lambda setup: {"epochs": setup.passes(0.6)}, Picked),
    "ohem": Kind("OHEM", samplers.BatchTrimming, _always(p=0.5), Picked),
    "low": Kind("LOW", samplers.LOW, _nothing, Weighed),
    "rho": Kind("RHO-Loss", samplers.RHOLoss, lambda setup: {"irreducible": setup.irreducible()}, Picked),
    "ois": Kind("OIS", _OIS, _nothing, Across),
    "ais": Kind("AIS", _OIS, _always(adaptive=True), Across),
    # The authors' pivot is epoch 20 of 300; less than two epochs would rank by hardly anything.
    "mombs": Kind(
        "MoMBS",
        samplers.MixedOrder,
        lambda setup: {"layers": "features", "pivot": max(2, round(setup.epochs / 15))},
        Mixed,
    ),
    "bss-h": Kind("BSS-H", samplers.BalanceAware, _bss("heuristic"), Balanced, 2),
    "bss-l": Kind("BSS-L", samplers.BalanceAware, _bss("learned"), Balanced, 2),
    # About three quarters of the samples come in an epoch (an assumption).
    "infobatch": Kind("InfoBatch", samplers.InfoBatch, lambda setup: {"epochs": setup.passes(0.75)}, Across),
}


class Method(NamedTuple):
    """One of the methods that are compared: a name and the options given with it."""

    name: str
    options: dict

    def __str__(self) -> str:
        """As it may be typed: "sb:beta=1,warmup_epochs=1"."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    @property
    def title(self) -> str:
        return ", ".join([KINDS[self.name].title, *(f"{key}={value}" for key, value in self.options.items())])

    def made(self, setup: Setup) -> Way:
        """The method, new, for one training."""
        kind = KINDS[self.name]
        arguments = kind.presets(setup) | self.options | {"seed": setup.seed}
        if issubclass(kind.make, samplers.CrossEpoch):
            arguments |= {"data": setup.train, "batch_size": setup.batch_size}
        return kind.way(kind.make(**arguments), setup)


def parse(specs: str | list[str] | tuple[str, ...]) -> list[Method]:
    """Methods from "sgd,sb:beta=1,warmup=1,sbe", or from a list of such.

    After a name and a colon options follow, the keyword arguments of the method's class in `torchassay.samplers`; they
    may be shortened as long as one alone begins so. A piece with "=" belongs to the method before it.

    Raises:
        ValueError: an unknown method or option, with the list of the known ones; a method twice, or none.
    """
    found: list[Method] = []
    for piece in (specs if isinstance(specs, str) else ",".join(specs)).split(","):
        piece = piece.strip()
        name, colon, option = piece.partition(":")
        if not colon and "=" in piece and found:
            name, option = found[-1].name, piece
        else:
            if name not in KINDS:
                raise checks.InputValueError(f"compare: methods must be among {', '.join(KINDS)}, got '{name}'")
            found.append(Method(name, {}))
        if colon or option:
            key, value = _option(name, option)
            if key in found[-1].options:
                raise checks.InputValueError(f"compare: options of {name} must be given once, got '{key}' twice")
            found[-1].options[key] = value
    for i, method in enumerate(found):
        if method in found[:i]:
            raise checks.InputValueError(f"compare: methods must be given once, got '{method}' twice")
    return found


def check(method: Method, modalities: int) -> None:
    """Raise unless the method can be run on data of so many modalities."""
    needed = KINDS[method.name].modalities
    if modalities < needed:
        expected = "an .npz with x_train_0, x_train_1, ..."
        raise checks.InputValueError(
            f"compare: {method.name} needs data of several modalities ({expected}), got data of {modalities}"
        )


def _option(name: str, text: str) -> tuple[str, object]:
    """An option of a method and its value."""
    key, equals, value = (part.strip() for part in text.partition("="))
    parameters = inspect.signature(KINDS[name].make).parameters
    known = [parameter for parameter in parameters if parameter not in _GIVEN]
    fitting = [key] if key in known else [option for option in known if key and option.startswith(key)]
    if len(fitting) != 1:
        expected = f"among {', '.join(known)}" if known else "left out: it has none"
        raise checks.InputValueError(f"compare: options of {name} must be {expected}, got '{key}'")
    if not equals or not value:
        raise checks.InputValueError(f"compare: options of {name} must be {fitting[0]}=VALUE, got '{text}'")
    try:
        return fitting[0], ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value, value))
    except (ValueError, SyntaxError):
        return fitting[0], value


def _as_it_is(batch: tuple) -> tuple:
    return batch
