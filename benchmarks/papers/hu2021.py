"""Selective backprop and variance reduction on corrupted MNIST (Hu et al. 2021)."""

from __future__ import annotations

from papers.evidence import (
    Claim,
    Methods,
    at_least,
    everywhere,
    faster,
    higher,
    lower,
    near,
    not_above,
    shown,
    shown_speedup,
)
from papers.pages import Page, Table
from papers.study import Comparison, Place, mnist

NAME = "hu2021"
TITLE = "When does loss-based prioritization fail?"
PAPER = (
    "Hu, Hu, Liu, Hooker and Yosinski 2021. The paper: CIFAR-10, a wide residual network 28-10, 100 epochs, 5 seeds "
    "(its Table 1; for SBE its section 4)."
)
METHODS = {
    "sgd": "SGD",
    "sb:beta=1": "SB-50",
    "sb:beta=2": "SB-33",
    "sbe": "SBE",
    "vr-hu:pool=2": "VR-50",
    "vr-hu:pool=3": "VR-33",
}
CORRUPTIONS = {
    "none": "none",
    "labels:0.25": "random labels, 25 %",
    "labels:0.5": "random labels, 50 %",
    "shuffle:0.25": "shuffled pixels, 25 %",
    "shuffle:0.5": "shuffled pixels, 50 %",
    "gauss:0.25": "Gaussian pixels, 25 %",
    "gauss:0.5": "Gaussian pixels, 50 %",
}
# Best test errors in percent and speed-ups, in the order of the corruptions.
ERRORS = {
    "sgd": (4.28, 8.53, 13.27, 4.98, 6.88, 5.27, 6.72),
    "sb:beta=1": (4.26, 9.03, 14.66, 5.48, 7.71, 5.68, 8.47),
    "sb:beta=2": (4.39, 12.28, 33.73, 6.31, 9.95, 7.18, 17.92),
    "vr-hu:pool=2": (4.87, 8.74, 13.14, 6.27, 7.69, 6.30, 6.70),
    "vr-hu:pool=3": (4.81, 8.65, 13.20, 5.71, 6.95, 5.35, 6.89),
}
SPEEDUPS = {
    "sgd": ("1x",) * 7,
    "sb:beta=1": ("2.0x", "2.0x", "1.5x", "2.0x", "2.0x", "2.0x", "never"),
    "sb:beta=2": ("3.0x", *("never",) * 6),
    "sbe": ("", "", "2.0x", "", "", "", ""),
    "vr-hu:pool=2": ("1.8x", "1.0x", "1.0x", "never", "1.1x", "1.1x", "1.0x"),
    "vr-hu:pool=3": ("1.7x", "1.0x", "1.0x", "1.1x", "1.0x", "1.0x", "1.0x"),
}


def comparisons(place: Place) -> list[Comparison]:
    shared = {"methods": ",".join(METHODS), "epochs": place.epochs(10), "seeds": place.seeds(3), "batch_size": 128}
    data = mnist(place)
    return [Comparison(_folder(kind), data, corrupt=None if kind == "none" else kind, **shared) for kind in CORRUPTIONS]


def page(results: dict[str, dict]) -> Page:
    found = {kind: Methods(results.get(_folder(kind))) for kind in CORRUPTIONS}
    rows = []
    for place, (kind, title) in enumerate(CORRUPTIONS.items()):
        for method, name in METHODS.items():
            here = found[kind]
            paper = f"{ERRORS[method][place]:.2f}" if method in ERRORS else ""
            error, speedup = shown(here.best(method)), shown_speedup(here.speedup(method))
            noise = "" if kind == "none" else shown(here.noise(method), 3)
            rows.append([title, name, error, paper, speedup, SPEEDUPS[method][place], noise])
    head = [
        "corruption",
        "method",
        "best error here, %",
        "paper, CIFAR-10",
        "speed-up here",
        "paper",
        "noise share here",
    ]
    sizes = {about["data"]["train"] for about in (part["about"] for part in results.values())}
    data = (
        f"MNIST, {' and '.join(f'{size:,}' for size in sorted(sizes))} training images; a random quarter or half of "
        "them has its label drawn anew from all ten classes, its pixels shuffled by one permutation, or its pixels "
        "drawn from a normal distribution with the image's mean and variance (the paper's section 3.1). The test "
        "images stay clean."
    )
    return Page(data, [Table("Best test error and speed-up", head, rows)], list(_claims(found)), NOTES)


NOTES = [
    "MNIST and an MLP of 784-256-128-10 for 10 epochs at a constant rate, not CIFAR-10 and a residual network for 100; "
    "batches of 128, SGD with momentum 0.9 and weight decay 5e-4 as there.",
    "Speed-up, as in the paper: back-propagated samples that SGD needs to 1.2 times its best test error, divided by "
    "what the method needs; looked at after every epoch.",
    "Every method goes through the data 10 times; SB back-propagates a half (SB-50, SBE) or a third (SB-33) of it.",
    "VR is the paper's variant: loss scores, no weights, no warm-up, a pool of 2 or 3 batches, uniform sampling as "
    "long as no gain in variance is expected. Its threshold and how pools map to selectivity are not in the paper.",
    "Noise share: corrupted ones among all samples trained on, over the whole run. The paper has it as curves (Figure "
    "3).",
]


def _folder(kind: str) -> str:
    return kind.replace(":", "-")


def _claims(found: dict[str, Methods]):
    clean, noisy = found["none"], {kind: found[kind] for kind in CORRUPTIONS if kind != "none"}
    for method in ("sb:beta=1", "sb:beta=2", "vr-hu:pool=2", "vr-hu:pool=3"):
        text = f"On clean data {METHODS[method]} needs fewer back-propagations than SGD to 1.2 times its best error"
        yield faster(text, METHODS[method], clean.speedup(method))

    def each(text, build, ours, others, value, digits=2) -> Claim:
        """A comparison of two methods under every corruption."""
        pairs = {
            CORRUPTIONS[kind]: [(METHODS[name], value(here, name)) for name in (ours, others)]
            for kind, here in noisy.items()
        }
        return everywhere(text, {title: build("", *pair, digits) for title, pair in pairs.items()})

    errors = Methods.best
    for method in ("sb:beta=1", "sb:beta=2"):
        text = f"Under each corruption {METHODS[method]} ends at a higher best error than SGD"
        yield each(text, higher, method, "sgd", errors)
    yield each("Under each corruption SB-33 is worse than SB-50", higher, "sb:beta=2", "sb:beta=1", errors)
    text = "VR degrades less than SB: under each corruption VR-33's best error is below SB-33's"
    yield each(text, lower, "vr-hu:pool=3", "sb:beta=2", errors)
    for method in ("sb:beta=1", "sb:beta=2", "vr-hu:pool=2", "vr-hu:pool=3"):
        text = f"Under each corruption {METHODS[method]} trains on more corrupted samples than their share of the data"
        yield each(text, higher, method, "sgd", Methods.noise, 3)

    half = noisy["labels:0.5"]
    text = (
        "With 50 % random labels SBE needs fewer back-propagations than SGD to 1.2 times its best error (paper: 2.0x)"
    )
    yield faster(text, "SBE", half.speedup("sbe"))
    best = {name: (title, half.best(name)) for name, title in METHODS.items()}
    yield lower("With 50 % random labels SBE's best error is below SB-50's", best["sbe"], best["sb:beta=1"])
    gauss = noisy["gauss:0.5"]
    text = "With 50 % Gaussian images SBE's best error is above SB-50's"
    yield higher(text, ("SBE", gauss.best("sbe")), ("SB-50", gauss.best("sb:beta=1")))

    for kind, bound in (("labels:0.25", 0.37), ("labels:0.5", 0.65)):
        here, share = noisy[kind], CORRUPTIONS[kind]
        noise = {name: (title, here.noise(name)) for name, title in METHODS.items()}
        yield at_least(f"{share}: SB-50's noise share is at least {bound}", noise["sb:beta=1"], bound, 3)
        yield higher(f"{share}: SB-33's noise share is above SB-50's", noise["sb:beta=2"], noise["sb:beta=1"], 3)
        yield near(
            f"{share}: SBE's noise share stays within 0.05 of the base rate", noise["sbe"], here.base_rate, 0.05, 3
        )
    parts = {
        "SBE at most SB-50": not_above("", best["sbe"], best["sb:beta=1"]),
        "SB-50 below SB-33": lower("", best["sb:beta=1"], best["sb:beta=2"]),
    }
    yield everywhere("With 50 % random labels best errors come in the order SBE <= SB-50 < SB-33", parts)
