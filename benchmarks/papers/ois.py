"""Online importance sampling and pruning on MNIST, and on the diabetes regression (OIS)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchassay import samplers
from torchassay.compare import methods

from papers import diabetes
from papers.evidence import Methods, faster, lower, near, shown, shown_speedup
from papers.pages import Page, Table
from papers.study import Adam, Comparison, Place, mnist

NAME = "ois"
TITLE = "Online importance sampling"
PAPER = (
    "Salaün et al., arXiv 2311.14468, ICPRAM 2025, with arXiv 2407.15525 for the algorithm and its adaptive variant. "
    "The papers' results are curves, so only directions stand beside our numbers; MNIST there: an MLP, Adam, 50 epochs."
)
TITLES = {"sgd": "uniform", "ois": "OIS", "ais": "AIS, no weights"}
SHARES = {0.9: "0.9", 0.8: "0.8"}  # kept at each of four prunings
_TAG = 0xD1CE


class RandomPruning(samplers.OnlineImportance):
    """The control of pruning by importance: everything as there, but chance says who leaves."""

    def _prune(self, importance: np.ndarray) -> None:
        super()._prune(np.random.default_rng([self.seed, self.epoch, _TAG]).random(len(importance), np.float32))


CONTROL = {"random-pruning": methods.KINDS["ois"]._replace(title="OIS, random pruning", make=RandomPruning)}


def comparisons(place: Place) -> list[Comparison]:
    names = [*TITLES, *(name for share in SHARES for name in _pruned(share))]
    shared = {"epochs": place.epochs(10), "seeds": place.seeds(3), "batch_size": 128, "lr": 1e-3}
    return [Comparison("mnist", mnist(place), ",".join(names), **shared, training=Adam, kinds=CONTROL)]


def more(place: Place, folder: Path) -> None:
    diabetes.train(folder / "diabetes", place.epochs(100), place.seeds(20))


def _pruned(share: float) -> tuple[str, str]:
    return tuple(f"{name}:keep={share},interval=2" for name in ("ois", "random-pruning"))


def page(results: dict[str, dict]) -> Page:
    here, small = Methods(results.get("mnist")), Methods(results.get("diabetes"))
    rows = [
        [title, shown(here.best(name)), shown(here.last(name)), shown(here.last(name, "test_loss", 1), 4), *end]
        for name, title in TITLES.items()
        for end in [[shown_speedup(here.speedup(name)), "" if name == "sgd" else "faster than uniform"]]
    ]
    head = [
        "sampling",
        "best error, %",
        "last error, %",
        "last test loss",
        "speed-up to 1.2 x uniform's best",
        "papers",
    ]
    tables = [Table("MNIST: convergence", head, rows)]
    best = {name: (title, here.best(name)) for name, title in TITLES.items()}
    claims = []
    for name in ("ois", "ais"):
        title = TITLES[name]
        claims.append(
            faster(f"MNIST: {title} gets to 1.2 times uniform sampling's best error sooner", title, here.speedup(name))
        )
        claims.append(
            lower(f"MNIST: {title} gets to a lower error in the same number of steps", best[name], best["sgd"])
        )

    rows = [["no pruning", "100", shown(here.last("ois")), "", ""]]
    for share in SHARES:
        own, chance = _pruned(share)
        size = f"{100 * share**4:.0f}"
        errors = {"importance": here.last(own), "chance": here.last(chance)}
        rows.append([f"{share:g} four times", size, *map(shown, errors.values()), "accuracy kept, better than random"])
        text = f"MNIST: pruning to {size} % by importance ends at a lower error than random pruning to as many"
        claims.append(lower(text, *errors.items()))
        text = f"MNIST: pruning to {size} % by importance ends within 0.2 points of no pruning"
        aim = here.last("ois")
        claims.append(near(text, ("pruned", errors["importance"]), sum(aim.values()) / len(aim) if aim else None, 0.2))
    head = [
        "kept",
        "left at the end, %",
        "last error, by importance, %",
        "last error, by chance, %",
        "paper (60, 43, 35 %)",
    ]
    tables.append(Table("MNIST: pruning", head, rows))

    rows = []
    for name, title in diabetes.METHODS.items():
        ends = [small.last(name, column, 1) for column in ("train_loss", "test_loss")]
        rows.append([title, *(shown(values, 4) for values in (small.numbers(name, diabetes.early), *ends))])
    head = ["sampling", "training loss after a tenth of the steps", "training loss at the end", "test loss at the end"]
    tables.append(Table("Diabetes: regression", head, rows))
    pairs = [(title, small.last(name, "train_loss", 1)) for name, title in diabetes.METHODS.items()]
    text = (
        "Diabetes: importance sampling with weights 1 / (N p) gets to a lower training loss in the same number of steps"
    )
    claims.append(lower(text, pairs[1], pairs[0], 4))
    pairs = [(title, small.numbers(name, diabetes.early)) for name, title in diabetes.METHODS.items()]
    claims.append(lower("Diabetes: so it does after a tenth of the steps", pairs[1], pairs[0], 4))
    sizes = results["mnist"]["about"]["data"]
    data = f"MNIST, {sizes['train']:,} training images, {sizes['test']:,} to test with. {diabetes.DATA}"
    return Page(data, tables, claims, NOTES)


NOTES = [
    "MNIST: an MLP of 784-256-128-10, Adam with rate 0.001, batches of 128, 10 epochs of equal length for all but the "
    "pruned runs. Momentum of the importances 0.2; what is added to them after each epoch, 0.001 of their mean, is our "
    "assumption.",
    "Pruning: the paper's rule is not known. Ours drops the least important tenth or fifth of the samples after every "
    "second epoch. Random pruning drops as many by chance and samples what is left by importance just the same.",
    "Diabetes: a network of 10-64-64-1 and Adam with rate 0.001; training loss is the mean over all training samples.",
]
