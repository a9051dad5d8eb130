"""``compare``: every method with every seed at an equal budget, into a folder that can be gone on with."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

import torchassay as ta
from torchassay import checks, doctor
from torchassay.compare import data as data_of
from torchassay.compare import methods as methods_of
from torchassay.compare import models
from torchassay.compare.data import Batches, Data
from torchassay.compare.folder import Folder, arrays_name
from torchassay.compare.training import BUDGETS, SCHEDULES, Scale, Settings, Training, optimizer_of
from torchassay.threads import one_thread

RATES = {"mlp": 0.02, "cnn": 0.05, "resnet": 0.05}
_RATE = 0.02  # of other models


class Plan(NamedTuple):
    """A comparison that has been checked."""

    settings: Settings
    methods: list[methods_of.Method]
    seeds: list[int]
    about: dict


def compare(
    data: str | os.PathLike | Data | Sequence[Dataset],
    methods: str | Sequence[str],
    *,
    model: str | Callable[..., nn.Module] | None = None,
    corrupt: str | None = None,
    epochs: int = 20,
    seeds: int | Sequence[int] = (0,),
    budget: str = "backprops",
    out: str | os.PathLike,
    device: str = "auto",
    batch_size: int = 64,
    lr: float | None = None,
    schedule: str = "constant",
    resume: bool = False,
    progress: bool = True,
) -> dict:
    """Train by each method with each seed, at an equal budget, and report what each reached, spent and picked.

    Everything is checked before the first run. Runs are trained by SGD with momentum 0.9 (Nesterov) and weight decay
    5e-4. Data, corruption and split are the same for all seeds, which differ in the first weights and in what is
    picked. After each pass through the data the test set is looked at; seconds are those of training, scoring included
    and testing left out.

    Args:
        data: "digits", "mnist", "cifar10", a path to an .npz, a `Data`, or a pair (training, test) of map-style data
            sets: see `torchassay.compare.data.load`.
        methods: "sgd,sb:beta=1,sbe" or a list of such: see `torchassay.compare.methods.parse`.
        model: "mlp", "cnn", "resnet", "package.module:name" or a callable that makes a model from (shape, classes), or
            from nothing: ``model(x)`` gives logits [N, C]; with several modalities ``model(x_0, x_1, ...)`` gives the
            list of the modalities' logits and the fused ones. Default: an MLP, for images of more than 784 values a
            residual network.
        corrupt: "labels:0.25", "shuffle:0.25" or "gauss:0.25" (Hu et al. 2021); see `torchassay.data.corrupt`.
        epochs, budget: "backprops": every run goes on until ``epochs`` times the number of training samples have been
            back-propagated, and ends in mid-epoch if need be; methods that drop samples go through the data more often.
            "epochs": every run goes through the data ``epochs`` times. "seconds": every run trains for as many seconds
            as SGD of the same seed took for ``epochs`` epochs; SGD must be among the methods. What happens before the
            first epoch (RHO-Loss trains two models on halves of the data) is outside the budget and in the counters.
            No run goes through the data more than 20 times ``epochs`` times.
        seeds: that many, from 0 on, or a list.
        out: a folder for the results; made if need be.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
        batch_size: samples in a training step.
        lr: learning rate. Default: 0.02, and 0.05 for convolutions.
        schedule: "constant", or "cosine": lr (1 + cos(pi p)) / 2, p being the share of the budget that is spent.
        resume: go on with what is in ``out``. A run that was stopped goes on after its last whole epoch, with the
            results that it would have had but for seconds; methods and seeds may be added.
        progress: show a bar.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError, TypeError: an argument that does not fit, before any training; one line.
        OSError: ``out`` cannot be written to. What was written is whole, and can be resumed.
    """
    plan = check(
        data,
        methods,
        model=model,
        corrupt=corrupt,
        epochs=epochs,
        seeds=seeds,
        budget=budget,
        device=device,
        batch_size=batch_size,
        lr=lr,
        schedule=schedule,
    )
    from torchassay.compare import report  # without matplotlib an error now, not behind hours of training

    results = train(plan, out, resume, progress)
    report.write(Path(out))
    return results


def train(plan: Plan, out: str | os.PathLike, resume: bool = False, progress: bool = True) -> dict:
    """All runs of a comparison, without a report."""
    folder = Folder(out)
    folder.open(plan.about, resume)
    folder.thumbnails(plan.settings.data.thumbnails())
    small = plan.about["model"] == "mlp" and plan.settings.device.type == "cpu"
    cuda = [plan.settings.device] if plan.settings.device.type == "cuda" else []
    with one_thread(small), torch.random.fork_rng(devices=cuda):
        _train_all(plan, folder, progress)
    folder.close()
    return folder.results


def check(
    data,
    methods,
    *,
    model=None,
    corrupt=None,
    epochs=20,
    seeds=(0,),
    budget="backprops",
    device="auto",
    batch_size=64,
    lr=None,
    schedule="constant",
) -> Plan:
    """Everything that can be wrong is found here; the arguments are those of `compare`."""
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise checks.InputValueError(f"compare: {name} must be an int of at least 1, got {value!r}")
    for name, value, known in (("budget", budget, BUDGETS), ("schedule", schedule, SCHEDULES)):
        if value not in known:
            raise checks.InputValueError(f"compare: {name} must be one of {', '.join(known)}, got {value!r}")
    if lr is not None and not 0 < lr < math.inf:
        raise checks.InputValueError(f"compare: lr must be above 0 and finite, got {lr}")
    if isinstance(seeds, bool) or not isinstance(seeds, (int, Sequence)):
        raise checks.InputTypeError(f"compare: seeds must be an int or a list of ints, got {type(seeds).__name__}")
    every = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not every or len({*every}) < len(every) or not all(isinstance(seed, int) and seed >= 0 for seed in every):
        raise checks.InputValueError(f"compare: seeds must be different ints of at least 0, at least one, got {every}")
    chosen = methods_of.parse(methods)
    if budget == "seconds" and not any(str(method) == "sgd" for method in chosen):
        raise checks.InputValueError("compare: methods must have sgd for budget seconds, whose time is the budget")
    place = _device(device)
    problem = data_of.load(data)
    problem = problem if corrupt is None else data_of.corrupted(problem, corrupt)
    for method in chosen:
        methods_of.check(method, len(problem.inputs))
    name, make = models.maker(model, problem)
    rate = lr if lr is not None else RATES.get(name, _RATE)
    settings = Settings(problem, make, epochs, budget, batch_size, rate, schedule, place)
    _rehearse(settings, chosen)
    return Plan(settings, chosen, every, _about(settings, chosen, every, name, corrupt, data))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise checks.InputValueError(f"compare: device must be auto, cpu, cuda or cuda:N, got '{name}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        got = f"'{name}' with {torch.cuda.device_count()} NVIDIA GPUs"
        raise checks.InputValueError(f"compare: device must be one that is here, got {got}")
    return device


def _rehearse(settings: Settings, chosen: list[methods_of.Method]) -> None:
    """Make the model and every method once, and take a step with a batch."""
    data, train = settings.data, Batches(settings.data)
    setup = methods_of.Setup(
        train, settings.batch_size, settings.epochs, settings.budget, 0, lambda: torch.zeros(len(train))
    )
    with torch.random.fork_rng(devices=[settings.device] if settings.device.type == "cuda" else []):
        model = settings.make().to(settings.device)
        inputs, target, *_ = train.__getitems__(list(range(min(len(train), settings.batch_size))))
        inputs = Scale(data, settings.device)(inputs)
        models.check_output(model.eval(), inputs, data.classes)
        _warm_up(model.train(), inputs, target.to(settings.device))
    modules = dict(model.named_modules())
    for method in chosen:
        layers = getattr(method.made(setup).method, "layers", None) or []
        for layer in [layers] if isinstance(layers, str) else layers:
            if layer not in modules:
                known = ", ".join(name for name in modules if name)
                expected = f"the name of a layer of the model (mombs:layers=NAME), one of {known}"
                raise checks.InputValueError(f"compare: layers must be {expected}, got '{layer}'")


def _warm_up(model: nn.Module, inputs: tuple[torch.Tensor, ...], target: torch.Tensor) -> None:
    """A step as training takes it: what PyTorch loads and compiles at the first one is in no run's seconds."""
    found = model(*inputs)
    loss, _ = ta.cross_entropy(found if len(inputs) == 1 else found[1], target, reduction="none", signals=("entropy",))
    loss.mean().backward()
    optimizer_of(model, 0.0).step()


def _about(settings: Settings, chosen: list[methods_of.Method], seeds: list[int], model: str, corrupt, source) -> dict:
    """What `results.json` says of a comparison, with the command that repeats it."""
    data = settings.data
    wrong = {"corrupted": data.corrupted, "changed": data.changed}
    facts = {"name": data.name, "train": len(data), "test": len(data.test_labels), "classes": data.classes}
    facts |= {"shape": _listed(data.shape), "modalities": len(data.inputs)}
    about = {"data": facts, "corrupt": corrupt}
    about |= {name: 0 if mask is None else int(mask.sum()) for name, mask in wrong.items()}
    about |= {"model": model, "epochs": settings.epochs, "budget": settings.budget, "batch_size": settings.batch_size}
    about |= {"lr": settings.lr, "schedule": settings.schedule, "device": settings.device.type, "seeds": seeds}
    given = str(source) if isinstance(source, (str, os.PathLike)) else data.name
    words = ["torchassay", "compare", "--data", given, "--methods", ",".join(map(str, chosen))]
    words += ["--corrupt", corrupt] if corrupt else []
    for name in ("model", "epochs", "budget", "batch_size", "lr", "schedule", "device"):
        words += [f"--{name.replace('_', '-')}", str(about[name])]
    words += ["--seeds", ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")]
    version, today = importlib.metadata.version("torchassay"), datetime.date.today().isoformat()
    machine = doctor.machine()
    return {"version": version, "torch": torch.__version__, "machine": machine, "date": today} | {
        "command": shlex.join(words),
        **about,
    }


def _listed(shape) -> list:
    return [_listed(part) if isinstance(part, tuple) else part for part in shape]


def _train_all(plan: Plan, folder: Folder, progress: bool) -> None:
    """Seed after seed, so that all methods have a first result soon; SGD first where its seconds are the budget."""
    order = sorted(plan.methods, key=lambda method: plan.settings.budget == "seconds" and str(method) != "sgd")
    runs = [(method, seed) for seed in plan.seeds for method in order]
    finished = sum((folder.run(str(method), seed) or {}).get("done", False) for method, seed in runs)
    bar = tqdm(
        total=len(runs),
        initial=finished,
        disable=not progress,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} to go",
    )
    with bar:
        for method, seed in runs:
            run = folder.run(str(method), seed)
            if run is None or not run["done"]:
                bar.set_description(f"{method} seed {seed}")
                _train(method, seed, plan, folder, bar)


def _train(method: methods_of.Method, seed: int, plan: Plan, folder: Folder, bar: tqdm) -> None:
    name, limit, settings = str(method), math.inf, plan.settings
    if settings.budget == "seconds":
        if name == "sgd":
            settings = settings._replace(budget="epochs")
        else:
            limit = folder.run("sgd", seed)["epochs"][-1]["seconds"]
    training = Training(method, seed, settings, limit)
    run = {"method": name, "title": method.title, "seed": seed, "done": False, "arrays": arrays_name(name, seed)}
    run |= {"versions": _versions(), "counters": {}, "epochs": training.records}
    state = folder.state(run)
    if state is None:
        training.begin()
    else:
        training.go_on(state)
    run["epochs"] = training.records
    folder.enter(run)
    began = bar.n
    while not training.done:
        training.epoch(lambda share: bar.update(began + share - bar.n))
        run["counters"] = training.counters()
        folder.save_state(run, training.state())
        folder.write()
    run["done"], run["counters"] = True, training.counters()
    folder.finish(run, training.arrays())


def _versions() -> dict[str, str]:
    packages = {"torchassay": importlib.metadata.version("torchassay"), "torch": torch.__version__}
    return packages | {"numpy": np.__version__, "python": platform.python_version()}
