"""Pictures of a comparison. Each function takes matplotlib `Axes` to draw on, or makes some, and returns them.

``results`` is what `torchassay.compare.compare` returns and its ``results.json`` holds. A picture of its own is
``axes.figure``: the last line of a notebook's cell shows it, ``axes.figure.savefig(path)`` keeps it. The legend stands
below the axes. Colours are those of Okabe and Ito, which colour-blind readers tell apart; a method has the same colour,
dashes and marker in all pictures of the same results, plain training the colour of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchassay import checks
from torchassay.colours import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from torchassay.compare import summary

try:
    from matplotlib import rcParams
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
    from matplotlib.transforms import ScaledTranslation
except ImportError:
    raise ImportError('torchassay.plots needs matplotlib: pip install "torchassay[plot]"') from None

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

COLOURS = (VERMILLION, BLUE, GREEN, ORANGE, SKY, PURPLE)
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = "osD^vPX"
CATEGORIES = {  # (loss, uncertainty) above the median
    "well represented": ((False, False), GREEN, "o"),
    "overfitted": ((False, True), SKY, "s"),
    "poorly labeled": ((True, False), VERMILLION, "^"),
    "under represented": ((True, True), BLUE, "D"),
}
WIDTH = 5.2  # inches, so that text of 9 points is still read on the screen of a phone
FEW = 4  # methods of which single seeds are drawn, too
TILES = 8  # images in a row


def error_by_backprops(results: dict, ax: Axes | None = None) -> Axes:
    """Test error against the samples that were back-propagated until then: the mean over seeds after each epoch.

    The dotted line is 1.2 times the best error of plain training, the target of Hu et al. (2021, section 3.2), as a
    mean over seeds. Of four methods or fewer the single seeds are there as thin lines.

    Args:
        results: of a comparison; only finished runs are drawn.
        ax: where to draw. Default: a figure of its own.

    Raises:
        ValueError: no run has finished.
        TypeError: something else than results or axes.
    """
    return _errors("error_by_backprops", results, ax, "backward")


def error_by_seconds(results: dict, ax: Axes | None = None) -> Axes:
    """Test error against the time that training, with scoring, had taken by then; else as `error_by_backprops`."""
    return _errors("error_by_seconds", results, ax, "seconds")


def noise_share(results: dict, ax: Axes | None = None) -> Axes:
    """The share of corrupted samples among those trained on in each epoch (Hu et al. 2021, Figure 3).

    An epoch stands where it ends, in back-propagated samples, since methods that drop samples have more epochs. The
    dotted line is their share in the training set, which a method that is blind to them would pick. Arguments and
    errors as of `error_by_backprops`; ValueError also if nothing was corrupted.
    """
    found = _check("noise_share", results)
    base = summary.base_rate(results)
    if base is None:
        raise checks.InputValueError("noise_share: results must be of corrupted data, got none corrupted")
    ax = _curves("noise_share", found, ax, "backward", "noise_share", (base, f"base rate ({100 * base:.3g} %)"))
    ax.yaxis.set_major_formatter(_percent)
    ax.set_ylabel("corrupted among the picks (%)")
    return ax


def effective_sample_size(results: dict, ax: Axes | None = None) -> Axes:
    """What a batch's weights leave of its size, (sum of w)^2 / (n sum of w^2), the mean over each epoch's batches.

    It is 1 for equal weights; the dotted line is that of all methods that never give others. Epochs stand as in
    `noise_share`, arguments and errors are those of `error_by_backprops`.
    """
    found = _check("effective_sample_size", results)
    weighted = [summary.weighted(method) for method in found]
    line = 1.0, f"equal weights ({len(found) - sum(weighted)})"
    ax = _curves("effective_sample_size", found, ax, "backward", "ess", line, weighted)
    ax.set(ylabel="effective sample size / batch", ylim=(0, 1.05))
    return ax


def categories(
    loss: ArrayLike, uncertainty: ArrayLike, ax: Axes | None = None, *, corrupted: ArrayLike | None = None
) -> Axes:
    """Every sample's loss against its uncertainty, in the four kinds of MoMBS (arXiv 2505.18741).

    Low in both: well represented; low loss, high uncertainty: overfitted; high loss, low uncertainty: poorly labeled;
    high in both: under represented. That high means above the median is an assumption, and so are the cuts drawn here.

    Args:
        loss, uncertainty: [N], nats; samples without both (NaN) are left out.
        ax: where to draw. Default: a figure of its own.
        corrupted: bool [N]: the legend then says which share of each kind is corrupted.

    Raises:
        ValueError: shapes that differ, or no sample with both values.
        TypeError: ``ax`` is something else than axes.
    """
    loss, uncertainty = np.asarray(loss, float), np.asarray(uncertainty, float)
    corrupted = None if corrupted is None else np.asarray(corrupted, bool)
    for name, value in (("uncertainty", uncertainty), ("corrupted", corrupted)):
        if value is not None and value.shape != loss.shape:
            expected = f"the shape of loss {loss.shape}"
            raise checks.InputValueError(f"categories: {name} must have {expected}, got {value.shape}")
    known = np.isfinite(loss) & np.isfinite(uncertainty)
    if not known.any():
        raise checks.InputValueError("categories: loss and uncertainty must have a sample with both, got none")
    ax = _axes("categories", ax, 4.6)
    cuts = np.median(loss[known]), np.median(uncertainty[known])
    for name, ((high_loss, high_uncertainty), colour, marker) in CATEGORIES.items():
        kind = known & ((loss > cuts[0]) == high_loss) & ((uncertainty > cuts[1]) == high_uncertainty)
        label = f"{name} ({kind.sum():,}"
        if corrupted is not None and kind.any():
            label += f", {100 * corrupted[kind].mean():.0f} % corrupted"
        look = {"color": colour, "marker": marker, "s": 12, "linewidths": 0, "alpha": 0.55}
        ax.scatter(uncertainty[kind], loss[kind], label=f"{label})", **look)
    ax.axhline(cuts[0], color=rcParams["text.color"], linewidth=0.8, linestyle=":")
    ax.axvline(cuts[1], color=rcParams["text.color"], linewidth=0.8, linestyle=":")
    _log(ax, loss[known])
    ax.set(xlabel="uncertainty (nats)", ylabel="loss (nats)")
    for handle in _legend(ax).get_legend().legend_handles:
        handle.set(alpha=1, sizes=[30])
    return ax


def picks(counts: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """How often samples were trained on: a histogram for each method, one above the other.

    Args:
        counts: by the name of a method, int [N] each: how often it trained on each sample.
        ax: where to draw. Default: a figure of its own.

    Raises:
        ValueError: no counts.
        TypeError: ``ax`` is something else than axes.
    """
    found = {str(name): np.asarray(value, int) for name, value in counts.items()}
    if not found or not all(value.size for value in found.values()):
        raise checks.InputValueError("picks: counts must hold a method with at least one sample, got none")
    ax = _axes("picks", ax, 1.0 + 0.32 * len(found))
    most = max(int(value.max()) for value in found.values())
    width = -(-(most + 1) // 60)  # at most 60 bars
    bins = np.arange(0, most + 1 + width, width) - 0.5
    for place, (value, (colour, _, _)) in enumerate(zip(found.values(), _looks(len(found)), strict=True)):
        share = np.histogram(value, bins)[0] / value.size
        ax.stairs(0.85 * share / share.max() - place, bins, baseline=-place, fill=True, color=colour)
        ax.axhline(-place, color=rcParams["text.color"], linewidth=0.5)
    ax.set_yticks(-np.arange(len(found)) + 0.3, [_plain(name) for name in found], fontsize=_size(len(found)))
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="times a sample was trained on", ylim=(0.85 - len(found), 1))
    return ax


def most_and_least_picked(
    images: ArrayLike,
    counts: ArrayLike,
    ax: Axes | None = None,
    *,
    given: ArrayLike | None = None,
    corrupted: ArrayLike | None = None,
) -> Axes:
    """The 16 images that a method trained on most often and the 16 it did least (as Hu et al. 2021, Figure 2).

    Among equals chance decides, in the same way each time. Frames mark corrupted samples.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        counts: int [N]: how often each was trained on.
        ax: where to draw. Default: a figure of its own.
        given: [N], labels to write below.
        corrupted: bool [N].

    Raises:
        ValueError: shapes that don't fit, or fewer than two images.
        TypeError: ``ax`` is something else than axes.
    """
    function, images, counts = "most_and_least_picked", np.asarray(images), np.asarray(counts)
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)) or len(images) < 2:
        expected = "shape (N, H, W) or (N, H, W, 3) with N at least 2"
        raise checks.InputValueError(f"{function}: images must have {expected}, got {images.shape}")
    for name, value in (("counts", counts), ("given", given), ("corrupted", corrupted)):
        if value is not None and np.shape(value) != images.shape[:1]:
            got = np.shape(value)
            raise checks.InputValueError(f"{function}: {name} must have shape ({len(images)},), got {got}")
    order = np.random.default_rng(0).permutation(len(images))
    order = order[np.argsort(-counts[order], kind="stable")]
    shown = min(2 * TILES, len(images) // 2)
    height = 0.9 * images.shape[1] / images.shape[2]  # of a tile that is 0.9 wide, in a cell of 1
    cell = height + (0.4 if given is not None else 0.1)
    block = -(-shown // TILES) * cell + 0.6
    ax = _axes(function, ax, (2 * block + 0.1) * WIDTH / TILES)
    for top, name, chosen in ((0.0, "most", order[:shown]), (block, "least", order[-shown:][::-1])):
        low, high = counts[chosen].min(), counts[chosen].max()
        times = f"{low}" if low == high else f"{low} to {high}"
        ax.text(0, top + 0.35, f"picked {name} often: {times} times", fontsize=10)
        for place, i in enumerate(chosen):
            x, y = place % TILES, top + 0.5 + place // TILES * cell
            look = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
            ax.imshow(images[i], extent=(x, x + 0.9, y + height, y), **look)
            if corrupted is not None and corrupted[i]:
                ax.add_patch(Rectangle((x, y), 0.9, height, fill=False, edgecolor=VERMILLION, linewidth=2.5))
            if given is not None:
                ax.text(x + 0.45, y + height + 0.04, str(given[i]), ha="center", va="top", fontsize=8)
    ax.set(xlim=(-0.05, TILES - 0.05), ylim=(2 * block + 0.1, 0), aspect="equal")
    ax.axis("off")
    return ax


# ---- what they share


def _check(function: str, results: dict) -> list[summary.Method]:
    if not isinstance(results, dict) or not {"about", "runs"} <= results.keys():
        expected = "a dict with 'about' and 'runs', as compare returns"
        got = f"one with {', '.join(map(repr, results))}" if isinstance(results, dict) else type(results).__name__
        raise checks.InputTypeError(f"{function}: results must be {expected}, got {got}")
    found = summary.methods(results)
    if not found:
        raise checks.InputValueError(f"{function}: results must have a finished run, got none")
    return found


def _axes(function: str, ax: Axes | None, height: float) -> Axes:
    if ax is None:
        return Figure(figsize=(WIDTH, height), layout="constrained").add_subplot()
    if not isinstance(ax, Axes):
        raise checks.InputTypeError(f"{function}: ax must be matplotlib Axes or None, got {type(ax).__name__}")
    return ax


def _looks(count: int) -> list[tuple[str, Any, str]]:
    """Colour, dashes and marker of as many methods; the first has the colour of the text."""
    colours = (rcParams["text.color"], *COLOURS)
    n = len(colours)
    return [(colours[i % n], DASHES[i // n % len(DASHES)], MARKERS[(i + i // n) % len(MARKERS)]) for i in range(count)]


def _curves(
    function: str,
    found: list[summary.Method],
    ax: Axes | None,
    x: str,
    y: str,
    line: tuple[float, str] | None,
    shown: Sequence[bool] | None = None,
) -> Axes:
    """The means over seeds of the ``shown`` methods (default: all), and a dotted line across."""
    shown = [True] * len(found) if shown is None else shown
    labels = [method.title for method, show in zip(found, shown, strict=True) if show] + ([line[1]] if line else [])
    ax = _axes(function, ax, 3.8 + 0.17 * -(-len(labels) // _columns(labels)))
    for place, (method, (colour, dashes, marker)) in enumerate(zip(found, _looks(len(found)), strict=True)):
        if not shown[place]:
            continue
        xs, ys = summary.curve(method, x), summary.curve(method, y)
        look = {"color": colour, "linestyle": dashes, "zorder": 3 if place == 0 else 2}
        if len(found) <= FEW and len(xs) > 1:
            ax.plot(xs.T, ys.T, linewidth=0.6, alpha=0.5, **look)
        apart = max(1, xs.shape[1] // 6)  # markers of different methods at different epochs
        look |= {"marker": marker, "markersize": 4.5, "markevery": (place % apart, apart)}
        width = 1.8 if len(found) <= FEW else 1.2
        ax.plot(xs.mean(0), ys.mean(0), label=_plain(method.title), linewidth=width, **look)
    if line:
        ax.axhline(line[0], color=rcParams["text.color"], linewidth=1, linestyle=":", label=_plain(line[1]))
    if x == "backward":
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel({"backward": "back-propagated samples", "seconds": "seconds of training"}[x])
    ax.grid(alpha=0.25)
    return _legend(ax)


def _errors(function: str, results: dict, ax: Axes | None, x: str) -> Axes:
    found = _check(function, results)
    line = None
    for method in found:
        if method.name == summary.BASELINE:
            aim = np.mean([summary.target(run) for run in method.runs.values()])
            line = float(aim), f"{summary.FACTOR:g} x best of {method.title}"
    ax = _curves(function, found, ax, x, "test_error", line)
    _log(ax, np.concatenate([line.get_ydata() for line in ax.lines]))
    ax.yaxis.set_major_formatter(_percent)
    ax.set_ylabel("test error (%)")
    return ax


def _log(ax: Axes, values: np.ndarray) -> None:
    """A logarithmic scale, if the values are such that it has enough ticks."""
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)  # NaN without any
    if not 0 < 2 * low < high:
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _percent(value: float, _: int) -> str:
    return f"{100 * value:.3g}"


def _columns(labels: Sequence[str]) -> int:
    """How many entries of a legend fit beside one another, in points."""
    return max(1, min(3, int(72 * WIDTH / (36 + 5.2 * max(map(len, labels))))))


def _size(count: int) -> float:
    return 9 if count <= 8 else 8


def _legend(ax: Axes) -> Axes:
    """Half an inch below the axes, where it hides nothing."""
    labels = ax.get_legend_handles_labels()[1]
    below = ax.transAxes + ScaledTranslation(0, -0.5, ax.figure.dpi_scale_trans)
    where = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below, "borderaxespad": 0}
    ax.legend(
        ncols=_columns(labels), fontsize=_size(len(labels)), handlelength=3, columnspacing=1, frameon=False, **where
    )
    return ax


def _plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")
