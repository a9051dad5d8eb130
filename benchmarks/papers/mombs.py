"""Mixed-order minibatches on long-tailed and on noisily labelled MNIST (MoMBS)."""

from __future__ import annotations

import dataclasses

import torch
from torchassay.compare import Data

from papers.evidence import Methods, difference, higher, joined, lower, shown
from papers.pages import Page, Table
from papers.study import Comparison, Place, mnist

NAME = "mombs"
TITLE = "MoMBS: mixed-order minibatch sampling"
PAPER = (
    "arXiv 2505.18741. The paper: lesion detection, segmentation, CIFAR100-LT and noisy CIFAR-100, networks such as "
    "ResNet-34; on CIFAR100-LT up to 6.7 points of accuracy, most with batches of 2 to 8, little with 64. Its tables "
    "were not at hand, so only these stand beside ours."
)
BATCHES = (2, 4, 8, 16, 64)
SMALL = (2, 4, 8)
METHODS = {"sgd": "shuffled", "mombs": "MoMBS"}
KINDS = {"tail": "long tail, 100 to 1", "noise": "40 % random labels"}
GAINS = {"tail": {True: "up to 6.7 (CIFAR100-LT)", False: "small"}, "noise": {True: "better", False: "small"}}


def comparisons(place: Place) -> list[Comparison]:
    shared = {"methods": ",".join(METHODS), "epochs": place.epochs(15), "seeds": place.seeds(3)}
    tail, plain = long_tailed(mnist(place, test=5_000), 20 if place.quick else 400), mnist(place, 1_000, 5_000)
    found = []
    for batch in BATCHES:
        rate = {"batch_size": batch, "lr": 0.02 * batch / 64}
        found.append(Comparison(f"tail-{batch}", tail, **rate, **shared))
        found.append(Comparison(f"noise-{batch}", plain, corrupt="labels:0.4", **rate, **shared))
    return found


def long_tailed(data: Data, most: int, ratio: float = 100.0) -> Data:
    """Of class c the first most * ratio^(-c / (C - 1)) samples, as in CIFAR100-LT."""
    rows = []
    for c in range(data.classes):
        count = max(1, round(most * ratio ** (-c / (data.classes - 1))))
        rows.append((data.labels == c).nonzero()[:count, 0])
    kept = torch.cat(rows).sort().values
    return dataclasses.replace(data, inputs=tuple(part[kept] for part in data.inputs), labels=data.labels[kept])


def page(results: dict[str, dict]) -> Page:
    rows, gains, claims = [], {}, []
    for kind, title in KINDS.items():
        for batch in BATCHES:
            here = Methods(results.get(f"{kind}-{batch}"))
            plain, mixed = here.last("sgd"), here.last("mombs")
            gains[kind, batch] = difference(plain, mixed)
            best = [shown(here.best(method)) for method in METHODS]
            paper = GAINS[kind][batch in SMALL]
            rows.append([title, str(batch), shown(plain), shown(mixed), shown(gains[kind, batch]), paper, *best])
        here = {batch: Methods(results.get(f"{kind}-{batch}")) for batch in SMALL}
        errors = [(name, joined(*(here[b].last(method) for b in SMALL))) for method, name in METHODS.items()]
        text = f"{title}: with batches of 2, 4 and 8, MoMBS ends at a lower error than shuffling (mean of the three)"
        claims.append(lower(text, errors[1], errors[0]))
        gain = joined(*(gains[kind, batch] for batch in SMALL))
        text = f"{title}: the gain with batches of 2, 4 and 8 is larger than with 64"
        claims.append(higher(text, ("gain with 2 to 8", gain), ("gain with 64", gains[kind, 64])))
    head = [
        "data",
        "batch",
        "shuffled, last error, %",
        "MoMBS, last error, %",
        "gain here, points",
        "gain in the paper",
    ]
    head += ["shuffled, best error, %", "MoMBS, best error, %"]
    sizes = {
        kind: next((part["about"] for name, part in results.items() if name.startswith(kind)), None) for kind in KINDS
    }
    made = [f"{KINDS[kind]}: {about['data']['train']:,} images" for kind, about in sizes.items() if about]
    data = (
        f"MNIST, {'; '.join(made)}. In the long tail, digit c has 100^(-c / 9) times as many images as digit 0. Of the "
        "random labels one in ten is right by chance. The test images are balanced and rightly labelled."
    )
    return Page(data, [Table("Errors by batch size", head, rows)], claims, NOTES)


NOTES = [
    "An MLP of 784-256-128-10 for 15 epochs, SGD with momentum, a rate of 0.02 for batches of 64 and in proportion to "
    "the batch for smaller ones. The order is mixed from the third epoch on.",
    "Uncertainty is the entropy of the mean prediction under noise in the features (two draws). The paper's noise is "
    "not known; ours is Gaussian, relative to the features' spread.",
    "Error after the last epoch decides; the best of any epoch stands beside it.",
]
