"""``report``: which labels of a data set are likely to be wrong, by the scores of a training."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from torchassay import checks
from torchassay.colours import BLUE, VERMILLION
from torchassay.memory import SampleMemory
from torchassay.score_files import Columns, array, columns, read
from torchassay.scores import Scores
from torchassay.whole_files import replacing

BY = {"loss": -1, "self_confidence": 1, "target_margin": 1}  # -1: the largest are the most suspicious
IN_SAMPLE = (
    "Note: if the training that gave these scores saw the labels, they flatter: in time a network learns wrong labels "
    "by heart, and the list then misses them. Take means over the epochs, stop early, and look at the first by eye; "
    "surer are scores by models trained on other samples (torchassay labels --data ... --folds 5)."
)

_PAGE = (6, 8)  # rows and columns of thumbnails
_DPI = 120


class Report(NamedTuple):
    """What `report` found."""

    by: str
    table: dict[str, np.ndarray]  # a row a sample, the most suspicious first
    precision: dict[int, float]  # by k, where the truth is known: share of wrong labels among the first k
    notes: list[str]
    written: list[Path]

    @property
    def order(self) -> np.ndarray:
        """The samples' numbers, the most suspicious first."""
        return self.table["index"]

    def text(self, rows: int = 15) -> str:
        """The first rows, precision at k, and the notes."""
        cells = [list(self.table)]
        for at in range(min(rows, len(self.order))):
            cells.append([_cell(column[at], ".4g") for column in self.table.values()])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in cells]
        if self.precision:
            wrong = int(self.table["wrong"].sum())
            share = f"{wrong} of {len(self.order)} ({wrong / len(self.order):.1%})"
            lines += ["", f"wrong labels: {share}, which is the precision of blind picks"]
            lines += [f"precision at {k:>{len(str(max(self.precision)))}}: {p:.1%}" for k, p in self.precision.items()]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def report(
    scores: str | os.PathLike | SampleMemory | Scores | Mapping[str, Tensor | np.ndarray],
    *,
    given: Tensor | np.ndarray | None = None,
    true: Tensor | np.ndarray | None = None,
    images: Tensor | np.ndarray | None = None,
    by: str = "loss",
    out: str | os.PathLike | None = None,
    k: int | Sequence[int] = (10, 50, 100),
    in_sample: bool = True,
) -> Report:
    """Rank samples by how likely their labels are wrong: those that a training finds hard to fit come first.

    Args:
        scores: a .parquet of `SampleMemory.to_parquet`, a ``runs/*.npz`` of a comparison, another .npz or .csv, a
            `SampleMemory`, or arrays [N] by name. Columns that are read: ``index`` (whose row it is; else 0, 1, ...),
            ``loss``, ``loss_last``, ``self_confidence``, ``target_margin``, ``given``, ``true``, and of a .npz or a
            mapping ``pred_probs`` [N, C].
        given: [n] integers, the labels as trained on, of all samples that an index can name. None: of the file.
        true: [n] integers, the right labels, if they are known. None: of the file.
        images: [n, H, W], [n, H, W, 3] or [n, 3, H, W] (or with one channel), of which the worst are shown. None: of
            the ``data.npz`` beside the folder ``runs`` of a comparison.
        by: "loss": the largest first, best of a mean over the epochs (a loss history). "target_margin", p_given - the
            largest other p: the smallest first. "self_confidence", the smallest first, is the column of that name, else
            ``pred_probs`` of the given label, else exp(-loss_last), else exp(-loss), which ranks as the loss does.
        out: a folder for ``labels.csv``, ``labels.parquet`` (with pyarrow) and, of images, ``worst.png`` (with
            matplotlib). None: nothing is written.
        k: where to take precision, the share of wrong labels among the first k; also taken where k is as many as are
            wrong, and left out where there are fewer samples.
        in_sample: whether the scores come from models that were trained on the labels, which the report then warns of.

    Returns:
        A `Report`. Samples whose value is NaN, such as those never visited, are left out of it. Equal values keep the
        samples' order.

    With ``pred_probs``, given labels and cleanlab installed, the table also has its ``label_quality`` and
    ``label_issue``, of `get_label_quality_scores` and `find_label_issues` (confident learning, Northcutt et al. 2021,
    arXiv 1911.00068).

    Raises:
        ValueError: an argument out of range, a file or column that is missing or does not fit.
        TypeError: an argument of another type.
        ImportError: a .parquet without pyarrow.

    Example:
        >>> import torch, torchassay as ta
        >>> scores = {"loss": torch.tensor([0.1, 2.0, 0.3, 1.0])}
        >>> found = ta.labels.report(scores, given=[0, 1, 1, 0], true=[0, 0, 1, 0], k=2)
        >>> found.order.tolist(), found.precision
        ([1, 3, 2, 0], {1: 1.0, 2: 0.5})
    """
    if by not in BY:
        raise checks.InputValueError(f"labels.report: by must be one of {', '.join(BY)}, got {by!r}")
    ks = _ks(k)
    found = columns("labels.report", scores)
    given, true = (_labels(found, name, value) for name, value in (("given", given), ("true", true)))
    if true is not None and given is None:
        raise found.error(f"true must come with given labels, got none in {found.where}")
    probabilities = _probabilities(found, given)
    known = _signals(found, given, probabilities)
    if by not in known:
        needed = {"loss": "'loss'", "self_confidence": "'self_confidence', 'loss_last' or 'loss'"}.get(by, f"'{by}'")
        raise found.error(f"{found.where} must have a column {needed}, got {', '.join(found.names)}")
    order = np.argsort(BY[by] * known[by], kind="stable")
    order = order[~np.isnan(known[by][order])]
    if len(order) == 0:
        raise found.error(f"{found.where}: column '{by}' must hold a number for some sample, got NaN only")
    pictures = _pictures(found, scores, images)

    notes = [IN_SAMPLE] if in_sample else []
    if len(order) < found.n:
        notes.append(f"{found.n - len(order)} samples without a value of '{by}' are left out.")
    table = {"rank": np.arange(1, len(order) + 1), "index": found.index[order]}
    table |= {name: values[order] for name, values in known.items()}
    if given is not None:
        table["given"] = given[order]
    if probabilities is not None and given is not None:
        table["belief"] = probabilities.argmax(1)[order]
        notes.append(_cleanlab(table, probabilities[order], given[order]))
    elif "self_confidence" in known:
        notes.append("self_confidence is cleanlab's label quality; its find_label_issues needs given and pred_probs.")
    precision = {}
    if true is not None:
        wrong_label = (given != true)[order]  # type: ignore[index]  # an array: with true there is given
        table |= {"true": true[order], "wrong": wrong_label.astype(np.int64)}
        wrong = int(table["wrong"].sum())
        places = sorted({*ks, wrong} - {0})
        precision = {place: float(table["wrong"][:place].mean()) for place in places if place <= len(order)}
    made = Report(by, table, precision, notes, [])
    if out is not None:
        _write(made, pictures, Path(out))
    return made


def _ks(k: int | Sequence[int]) -> Sequence[int]:
    ks = [k] if isinstance(k, int) else k
    if not isinstance(ks, Sequence) or not all(isinstance(place, int) and not isinstance(place, bool) for place in ks):
        raise checks.InputTypeError(f"labels.report: k must be an int or a sequence of ints, got {k!r}")
    if any(place < 1 for place in ks):
        raise checks.InputValueError(f"labels.report: k must be at least 1, got {min(ks)}")
    return ks


def _labels(found: Columns, name: str, value: Any) -> np.ndarray | None:
    """Labels of the rows: as they came, or else of the file."""
    if value is None:
        return found.labels(name) if name in found else None
    value = array(value)
    if value.ndim != 1 or value.dtype.kind not in "iu":
        raise found.error(f"{name} must be integers of shape (n,), got {value.dtype} of shape {value.shape}")
    return found.of_rows(name, value).astype(np.int64)


def _probabilities(found: Columns, given: np.ndarray | None) -> np.ndarray | None:
    if "pred_probs" not in found or given is None:
        return None
    values = found["pred_probs"]
    if values.ndim != 2 or values.dtype.kind != "f":
        expected = f"floats of shape ({found.n}, classes)"
        raise found.error(f"{found.where}: pred_probs must hold {expected}, got {values.dtype} of shape {values.shape}")
    if not ((values >= 0).all() and np.allclose(values.sum(1, dtype=np.float64), 1, atol=1e-3)):
        raise found.error(f"{found.where}: pred_probs must be at least 0 and sum to 1 in every row, got others")
    if given.min() < 0 or given.max() >= values.shape[1]:
        got = given.min() if given.min() < 0 else given.max()
        raise found.error(f"given must be in [0, {values.shape[1]}), the classes of pred_probs, got {got}")
    return values


def _signals(found: Columns, given: np.ndarray | None, probabilities: np.ndarray | None) -> dict[str, np.ndarray]:
    """The columns that samples can be ranked by."""
    known = {name: found.numbers(name) for name in ("loss", "self_confidence", "target_margin") if name in found}
    if "self_confidence" not in known:
        if probabilities is not None:
            known["self_confidence"] = probabilities[np.arange(found.n), given].astype(np.float64)
        else:
            loss = next((found.numbers(name) for name in ("loss_last", "loss") if name in found), None)
            if loss is not None:
                with np.errstate(over="ignore"):  # a loss may be no -log p, and far below 0
                    known["self_confidence"] = np.exp(-loss)
    return {name: known[name] for name in BY if name in known}


def _cleanlab(table: dict[str, np.ndarray], probabilities: np.ndarray, given: np.ndarray) -> str:
    """Add what cleanlab says, if it is there."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return 'cleanlab can say how many labels are wrong: pip install "torchassay[clean]"'
    table["label_quality"] = get_label_quality_scores(given, probabilities)
    table["label_issue"] = find_label_issues(given, probabilities, n_jobs=1).astype(np.int64)
    return f"cleanlab takes {table['label_issue'].sum()} labels for wrong: column label_issue."


def _pictures(found: Columns, scores: Any, images: Any) -> np.ndarray | None:
    """Images [n, H, W] or [n, H, W, channels], as matplotlib shows them; of a comparison perhaps of the first only."""
    if images is None:
        beside = Path(scores).parent if isinstance(scores, (str, os.PathLike)) else Path()
        data = beside.parent / "data.npz"
        if beside.name != "runs" or not data.exists():
            return None
        return read("labels.report", data, ("images",))["images"]
    images = array(images)
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.dtype.kind not in "buif" or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        expected = "(n, H, W), (n, H, W, 3) or (n, 3, H, W)"
        raise found.error(f"images must be numbers of shape {expected}, got {images.dtype} of shape {images.shape}")
    found.of_rows("images", images)
    return images


def _write(made: Report, pictures: np.ndarray | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "labels.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(made.table)
        writer.writerows(map(_row, zip(*made.table.values(), strict=True)))
    made.written.append(folder / "labels.csv")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        made.notes.append('labels.parquet needs pyarrow: pip install "torchassay[io]"')
    else:
        with replacing(folder / "labels.parquet") as path:
            pyarrow.parquet.write_table(pyarrow.table(made.table), path)
        made.written.append(folder / "labels.parquet")
    if pictures is None or made.order.min() >= len(pictures):
        return
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        made.notes.append('worst.png needs matplotlib: pip install "torchassay[plot]"')
    else:
        with replacing(folder / "worst.png") as path:
            _thumbnails(made, pictures, path)
        made.written.append(folder / "worst.png")


def _row(values: tuple) -> list[str]:
    return [_cell(value, ".9g") for value in values]


def _cell(value: np.generic, form: str) -> str:
    """A number as text; NaN is empty."""
    if not isinstance(value, np.floating):
        return str(value)
    return "" if np.isnan(value) else format(value, form)


def _thumbnails(made: Report, pictures: np.ndarray, path: Path) -> None:
    from matplotlib.figure import Figure

    table, (_, columns) = made.table, _PAGE
    shown = np.flatnonzero(made.order < len(pictures))[: math.prod(_PAGE)]
    lines = -(-len(shown) // columns)
    height, width = (side / max(pictures.shape[1:3]) for side in pictures.shape[1:3])  # of tiles; the larger is 1
    down, right = height + 0.35, width + 0.1
    figure = Figure(figsize=(1.2 * columns * right, 1.2 * lines * down + 0.6), layout="constrained")
    names = {"true": "given → true label", "belief": "given → what the model takes it for", "given": "given label"}
    meaning = next((text for name, text in names.items() if name in table), "number of the sample")
    colours = "\norange: wrong, blue: right" if "wrong" in table else ""
    figure.suptitle(f"The {len(shown)} most suspicious labels by {made.by}: rank, {meaning}{colours}", fontsize=11)
    low, high = (0, 255) if pictures.dtype == np.uint8 else (pictures.min(), pictures.max())
    axes = figure.add_subplot()
    for place, at in enumerate(shown):
        x, y = place % columns * right, place // columns * down
        image = (pictures[made.order[at]].astype(np.float64) - low) / max(high - low, 1e-12)
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(x, x + width, y + height, y))
        color = "black" if "wrong" not in table else (VERMILLION if table["wrong"][at] else BLUE)
        label = table["given"][at] if "given" in table else made.order[at]
        other = next((f" → {table[name][at]}" for name in ("true", "belief") if name in table), "")
        text = f"{table['rank'][at]}:  {label}{other}"
        axes.text(x + width / 2, y - 0.05, text, color=color, fontsize=9, ha="center", va="bottom")
    axes.set_xlim(-0.05, columns * right - 0.05)
    axes.set_ylim(lines * down - 0.35, -0.3)
    axes.set_axis_off()
    figure.savefig(path, dpi=_DPI, format="png")
