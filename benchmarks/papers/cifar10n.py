"""Selective backprop under the labels that people gave to CIFAR-10 (CIFAR-10N)."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from papers.evidence import Methods, everywhere, higher, lower, shown, shown_speedup
from papers.pages import Page, Table
from papers.study import Comparison, Place, cifar10

NAME = "cifar10n"
TITLE = "Loss-based prioritization under real human label noise"
PAPER = (
    "The claims of Hu, Hu, Liu, Hooker and Yosinski 2021 about random labels, tried on the human labels of Wei, Zhu, "
    "Cheng, Liu, Niu and Liu 2022 (CIFAR-10N). Neither paper has this experiment: beside our numbers stand Hu's for "
    "random labels, of a wide residual network on all of CIFAR-10."
)
LABELS = {"aggre_label": "majority of three", "random_label2": "one person", "worse_label": "worst of three"}
METHODS = {"sgd": "SGD", "sb:beta=1": "SB-50", "sb:beta=2": "SB-33", "sbe": "SBE"}
# Hu et al., Table 1, best errors with 25 % and 50 % random labels.
HU = {"sgd": "8.53, 13.27", "sb:beta=1": "9.03, 14.66", "sb:beta=2": "12.28, 33.73", "sbe": ""}


def comparisons(place: Place) -> list[Comparison]:
    shared = {"methods": ",".join(METHODS), "epochs": place.epochs(10), "seeds": place.seeds(3), "model": "cnn"}
    found = []
    for kind in LABELS:
        data = cifar10(place, 5_000, 2_000, partial(_given, kind))
        found.append(Comparison(kind, dataclasses.replace(data, name=f"{data.name}, {kind}"), **shared))
    return found


def _given(kind: str, folder: Path) -> np.ndarray:
    with np.load(folder / "cifar10n_human_labels.npz") as file:
        return file[kind]


def page(results: dict[str, dict]) -> Page:
    found = {kind: Methods(results.get(kind)) for kind in LABELS if kind in results}
    titles = {kind: f"{LABELS[kind]}, {100 * (here.base_rate or 0):.1f} % wrong" for kind, here in found.items()}
    rows = []
    for kind, here in found.items():
        for method, name in METHODS.items():
            error, speedup = shown(here.best(method)), shown_speedup(here.speedup(method))
            last = shown(here.last(method))
            rows.append([titles[kind], name, error, HU[method], last, speedup, shown(here.noise(method), 3)])
    head = [
        *("labels", "method", "best error here, %", "Hu et al., 25 % and 50 % random labels"),
        *("last error here, %", "speed-up here", "wrong labels' share of what was trained on, here"),
    ]
    about = next(iter(results.values()))["about"]["data"]
    data = (
        f"{about['name'].split(',')[0]}: {about['train']:,} random training images with the labels of CIFAR-10N "
        f"({', '.join(titles.values())}) and {about['test']:,} test images with the right ones."
    )

    def each(text, build, ours, others, value, digits=2):
        pairs = {kind: [(METHODS[name], value(here, name)) for name in (ours, others)] for kind, here in found.items()}
        return everywhere(text, {titles[kind]: build("", *pair, digits) for kind, pair in pairs.items()})

    noise, best = Methods.noise, Methods.best
    claims = [
        each("SB-50 trains on wrong labels more often than their share", higher, "sb:beta=1", "sgd", noise, 3),
        each("SB-33 does so more than SB-50", higher, "sb:beta=2", "sb:beta=1", noise, 3),
        each("SBE does so less than SB-50", lower, "sbe", "sb:beta=1", noise, 3),
        each("SB-50 ends at a higher best error than SGD", higher, "sb:beta=1", "sgd", best),
        each("SB-33 ends at a higher best error than SB-50", higher, "sb:beta=2", "sb:beta=1", best),
        each("SBE ends at a lower best error than SB-50", lower, "sbe", "sb:beta=1", best),
    ]
    return Page(data, [Table("Errors and what was trained on", head, rows)], claims, NOTES)


NOTES = [
    "A subset, and a CNN of three convolutions for 10 epochs in batches of 64 at a constant rate of 0.05, without "
    "augmentation: errors are far above those of the whole data set with a large network.",
    "People's errors are not random: they mix up animals that look alike, so a network finds some of them plausible.",
    "Every method goes through the data 10 times, so SB back-propagates a half or a third of what SGD does.",
]
