"""The demo: find flipped labels in scikit-learn's digits by the loss that training computes anyway.

A fifth of the training labels is flipped, a small network is trained on them, and every step keeps the scores of its
batch. A label that is wrong stays hard to fit, so the mean loss over the epochs gives it away.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import torchassay
from torchassay.colours import BLUE, VERMILLION
from torchassay.quick_training import BATCH, small_network
from torchassay.speed import Result, times
from torchassay.threads import one_thread

SIGNALS = ("loss", "entropy", "grad_norm")
CLASSES = 10

_TEST = 360  # a fifth of the 1797 digits
_FLIPPED_SHARE = 0.2
_DPI = 120
_CONTEST_EPOCHS = 20


class Digits(NamedTuple):
    """The data, split; the n training samples come first."""

    index: Tensor  # [n], place in scikit-learn's data set
    images: Tensor  # [n, 64], 0 to 1
    given: Tensor  # [n], labels to train on, a fifth of them flipped
    true: Tensor  # [n]
    test_images: Tensor
    test_labels: Tensor

    @property
    def flipped(self) -> Tensor:
        """[n], True where the given label is wrong."""
        return self.given != self.true


class Findings(NamedTuple):
    """What training found out."""

    scores: torchassay.Scores  # [n] each, mean over the epochs
    belief: Tensor  # [n], class the trained network takes each sample for
    order: Tensor  # [n], the most suspicious first
    test_accuracy: float

    def hits(self, digits: Digits, count: int) -> int:
        """How many of the ``count`` most suspicious samples are flipped."""
        return int(digits.flipped[self.order[:count]].sum())


def load(seed: int) -> Digits:
    """Split the digits and flip a fifth of the training labels, each to one of the nine other classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    generator = torch.Generator().manual_seed(seed)
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16
    labels = torch.tensor(bunch.target)
    test, train = torch.randperm(len(images), generator=generator).tensor_split([_TEST])
    true = labels[train]
    count = round(_FLIPPED_SHARE * len(train))
    flipped = torch.randperm(len(train), generator=generator)[:count]
    given = true.clone()
    given[flipped] += torch.randint(1, CLASSES, (count,), generator=generator)
    return Digits(train, images[train], given % CLASSES, true, images[test], labels[test])


def train(digits: Digits, seed: int, epochs: int) -> Findings:
    """Train on the given labels; the scores come with the loss, so watching every sample costs nothing."""
    n = len(digits.given)
    totals = {name: torch.zeros(n) for name in SIGNALS}
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
        torch.manual_seed(seed)
        model, optimizer = small_network(digits.images.shape[1], CLASSES)
        for _ in tqdm(range(epochs), desc="training", unit="epoch"):
            for batch in torch.randperm(n, generator=generator).split(BATCH):
                logits = model(digits.images[batch])
                loss, scores = torchassay.cross_entropy(logits, digits.given[batch], signals=SIGNALS)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for name, values in scores.as_dict().items():
                    totals[name][batch] += values
    model.eval()
    with torch.inference_mode():
        belief = _classes(model(digits.images))
        right = _classes(model(digits.test_images)) == digits.test_labels
    scores = torchassay.Scores({name: total / epochs for name, total in totals.items()})
    order = scores.loss.argsort(descending=True, stable=True)
    return Findings(scores, belief, order, right.float().mean().item())


def _classes(logits: Tensor) -> Tensor:
    return torchassay.score(logits, signals="prediction").prediction


def summary(digits: Digits) -> str:
    """One line on the data."""
    n, test, flipped = len(digits.given), len(digits.test_labels), int(digits.flipped.sum())
    return f"digits of scikit-learn: {n} to train on, {flipped} of their labels flipped; {test} to test with"


def table(digits: Digits, found: Findings, rows: int = 15) -> str:
    """The most suspicious samples, and how many of them are indeed flipped."""
    lines = ["rank  index  given  true  belief  mean loss  mean entropy  flipped"]
    for rank, i in enumerate(found.order[:rows].tolist(), 1):
        lines.append(
            f"{rank:>4}  {digits.index[i]:>5}  {digits.given[i]:>5}  {digits.true[i]:>4}  {found.belief[i]:>6}  "
            f"{found.scores.loss[i]:>9.3f}  {found.scores.entropy[i]:>12.3f}  {'yes' if digits.flipped[i] else 'no':>7}"
        )
    lines.append("")
    for count in (50, int(digits.flipped.sum())):
        hits = found.hits(digits, count)
        lines.append(f"flipped among the {count:>3} most suspicious: {hits:>3} ({hits / count:.1%})")
    return "\n".join(lines)


def save(digits: Digits, found: Findings, folder: Path) -> list[Path]:
    """Write the two pictures and the scores into ``folder``, which exists; returns what was written."""
    paths = [folder / name for name in ("loss_vs_entropy.png", "worst_16.png", "scores.csv")]
    for path, write in zip(paths, (_scatter, _worst, _csv), strict=True):
        write(digits, found, path)
    return paths


def _scatter(digits: Digits, found: Findings, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    flipped, loss, entropy = digits.flipped, found.scores.loss, found.scores.entropy
    count = int(flipped.sum())
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    looks = (
        (~flipped, "as it should be", {"color": BLUE, "marker": "o", "s": 14, "alpha": 0.5, "linewidths": 0}),
        (flipped, "flipped", {"color": VERMILLION, "marker": "^", "s": 22, "alpha": 0.75, "linewidths": 0}),
    )
    for mask, name, look in looks:
        axes.scatter(entropy[mask].numpy(), loss[mask].numpy(), label=f"label {name} ({int(mask.sum())})", **look)
    cut = loss[found.order[count - 1]].item()
    axes.axhline(cut, color="0.35", linewidth=1, linestyle="--", label=f"the {count} most suspicious lie above")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("mean entropy over the epochs (nats)")
    axes.set_ylabel("mean loss over the epochs (nats, log scale)")
    axes.set_title(f"Mean loss against mean entropy of every training digit (n = {len(flipped)})")
    axes.grid(alpha=0.25)
    legend = axes.legend(loc="lower right", framealpha=0.95)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    figure.savefig(path, dpi=_DPI)


def _worst(digits: Digits, found: Findings, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 7.5), layout="constrained")
    figure.suptitle("The 16 most suspicious digits\ngiven label → true label (mean loss in nats)", fontsize=12)
    for place, i in zip(figure.subplots(4, 4).flat, found.order[:16].tolist(), strict=True):
        place.imshow(digits.images[i].view(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
        loss = found.scores.loss[i].item()
        if digits.flipped[i]:
            title, color = f"{digits.given[i]} → {digits.true[i]}  ({loss:.1f})", VERMILLION
        else:
            title, color = f"{digits.given[i]}, not flipped  ({loss:.1f})", BLUE
        place.set_title(title, color=color, fontsize=10)
        place.set_xticks([])
        place.set_yticks([])
    figure.savefig(path, dpi=_DPI)


def _csv(digits: Digits, found: Findings, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("rank", "index", "given", "true", "belief", "flipped", *SIGNALS))
        for rank, i in enumerate(found.order.tolist(), 1):
            facts = (column[i].item() for column in (digits.index, digits.given, digits.true, found.belief))
            means = (f"{getattr(found.scores, name)[i].item():.6g}" for name in SIGNALS)
            writer.writerow((rank, *facts, int(digits.flipped[i]), *means))


def contest(folder: Path, seed: int) -> str:
    """Selective-Backprop by the loss and by the entropy, half of the labels drawn anew: whom each picks, as a picture
    in ``folder`` and a line."""
    from matplotlib.figure import Figure

    from torchassay import plots
    from torchassay.compare import run

    plan = run.check("digits", "sgd,sb,sbe", corrupt="labels:0.5", epochs=_CONTEST_EPOCHS, seeds=[seed], device="cpu")
    with tempfile.TemporaryDirectory() as runs:
        results = run.train(plan, runs)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = plots.noise_share(results, figure.add_subplot())
    axes.set_title("Whom Selective-Backprop picks where half of the labels are random")
    figure.savefig(folder / "noise_share.png", dpi=_DPI)
    share, error = ({each["method"]: of(each) for each in results["runs"]} for of in (_picked_noise, _best_error))
    return (
        f"With half of the labels drawn anew, {share['sb']:.0%} of what Selective-Backprop picks by the loss is "
        f"corrupted, by the entropy {share['sbe']:.0%}; their best test errors are {error['sb']:.1%} and "
        f"{error['sbe']:.1%}, plain training's {error['sgd']:.1%}."
    )


def _picked_noise(run: dict) -> float:
    return run["counters"]["noise_share"]


def _best_error(run: dict) -> float:
    return min(record["test_error"] for record in run["epochs"])


def closing(digits: Digits, found: Findings, speed: Sequence[Result]) -> list[str]:
    """Five sentences to repeat to a colleague, with the figures of this run."""
    count = int(digits.flipped.sum())
    hits, share = found.hits(digits, count), count / len(digits.given)
    loss, entropy, flipped = found.scores.loss, found.scores.entropy, digits.flipped
    error, eager_error = (max(getattr(result, name) for result in speed) for name in ("error", "eager_error"))
    example = speed[len(speed) // 2]
    ratios = [times(result.eager_ratio) for result in (example, *sorted(speed, key=lambda result: result.eager_ratio))]
    return [
        f"Of the 50 samples with the highest mean loss, {found.hits(digits, 50)} had a flipped label; "
        f"50 taken blindly would hold {50 * share:.0f}.",
        f"Of the {count} flipped labels, {hits} ({hits / count:.0%}) were among the {count} most suspicious, "
        f"and the network still reads {found.test_accuracy:.0%} of the test digits.",
        f"A flipped label costs {loss[flipped].mean():.2f} nats on average, a right one {loss[~flipped].mean():.2f}; "
        f"the entropy, which no label enters, is {entropy[flipped].mean():.2f} and {entropy[~flipped].mean():.2f}.",
        f"Five scores of {example.rows} x {example.classes} logits take {example.ms:.3g} ms, "
        f"{ratios[0]} times as fast as the PyTorch chain ({ratios[1]} to {ratios[-1]} times over the shapes); "
        f"F.cross_entropy takes {example.loss_only_ms:.3g} ms for the loss alone.",
        f"Their worst relative error is {error:.0e}; the PyTorch chain, in the same precision, "
        f"is off by up to {eager_error:.0%} where the model is sure.",
    ]
