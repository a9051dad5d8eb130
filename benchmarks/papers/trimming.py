"""Mini-batch trimming with Adam (Fassold 2021)."""

from __future__ import annotations

from papers.evidence import Methods, lower, shown
from papers.pages import Page, Table
from papers.study import Adam, Comparison, Place, cifar10, mnist

NAME = "trimming"
TITLE = "Mini-batch trimming"
PAPER = (
    "Fassold 2021 (arXiv 2110.13058), “Some like it tough: improving model generalization via progressively increasing "
    "the training difficulty”. The paper: error of the final model, 150 epochs, 10 seeds; ResNet-34 and DenseNet-121."
)
METHODS = {"sgd": "whole batches", "trim": "trimmed"}
SETS = {"mnist": "MNIST, MLP", "cifar10": "CIFAR-10, CNN"}
# Final errors without and with trimming.
ERRORS = {
    "SVHN, ResNet-34": (5.87, 5.76),
    "SVHN, DenseNet-121": (4.62, 4.42),
    "CIFAR-10, ResNet-34": (17.43, 17.01),
    "CIFAR-10, DenseNet-121": (10.10, 10.19),
    "CIFAR-100, ResNet-34": (48.19, 47.72),
    "CIFAR-100, DenseNet-121": (32.95, 32.18),
}


class Fassold(Adam):
    """The paper's optimizer: Adam with weight decay, whose rate is halved after one and two thirds of the epochs."""

    decay = 1e-4

    def epoch(self, told) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * 0.5 ** (3 * len(self.records) // self.settings.epochs)
        super().epoch(told)


def comparisons(place: Place) -> list[Comparison]:
    shared = {"methods": ",".join(METHODS), "batch_size": 128, "lr": 1e-3, "training": Fassold}
    small, large = mnist(place, 10_000), cifar10(place, 5_000, 2_000)
    return [
        Comparison("mnist", small, epochs=place.epochs(30), seeds=place.seeds(10), **shared),
        Comparison("cifar10", large, epochs=place.epochs(15), seeds=place.seeds(3), model="cnn", **shared),
    ]


def page(results: dict[str, dict]) -> Page:
    found = {name: Methods(results.get(name)) for name in SETS}
    rows, claims = [], []
    for name, title in SETS.items():
        here = found[name]
        last, best = [here.last(method) for method in METHODS], [here.best(method) for method in METHODS]
        rows.append([f"here: {title}", *map(shown, last), *map(shown, best)])
        named = [(label, numbers) for label, numbers in zip(METHODS.values(), last, strict=True)]
        claims.append(lower(f"{title}: trimming lowers the error of the final model", named[1], named[0]))
    rows += [[f"paper: {title}", *(f"{error:.2f}" for error in pair), "", ""] for title, pair in ERRORS.items()]
    head = ["", "final error, %", "trimmed", "best error, %", "trimmed"]
    made = [
        f"{part['about']['data']['name']}, {part['about']['data']['train']:,} random training images and "
        f"{part['about']['data']['test']:,} to test with, {part['about']['epochs']} epochs"
        for part in results.values()
    ]
    return Page("; ".join(made) + ".", [Table("Errors", head, rows)], claims, NOTES)


NOTES = [
    "As in the paper: Adam with rate 0.001 and weight decay 0.0001, batches of 128, the rate halved after one and two "
    "thirds of the epochs, the kept share falling from 1 to 0.2 in equal steps. Smaller: few images and small "
    "networks, no augmentation.",
    "Only the kept samples go through the training forward, so BatchNorm sees these alone; in the paper it sees the "
    "whole batch. It concerns the CNN.",
]
