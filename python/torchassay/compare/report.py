"""``write``: a comparison as a report, in Markdown and as an HTML page that needs no other file."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchassay import checks, npz, plots
from torchassay.compare import page, summary
from torchassay.compare.summary import Interval, Method, Row, Speedup
from torchassay.whole_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = "pictures"  # the folder of those that report.md shows
THEMES = (("#ffffff", "#1b1b1b"), ("#16191d", "#e6e6e6"))  # ground and ink of a light page and of a dark one
DPI = 170
PICTURED = 4  # methods whose most and least picked images are shown
DASH = "–"  # noqa: RUF001, the paper's sign for an error that is never reached
BUDGETS = {
    "backprops": "every run ends once it has back-propagated as many samples as {epochs} epochs hold, {samples:,}",
    "seconds": "every run trains for as many seconds as SGD with the same seed takes for {epochs} epochs",
    "epochs": "every run goes {epochs} times through the data, however few of them it trains on",
}


def write(out: str | os.PathLike) -> tuple[Path, Path]:
    """Write the report of a comparison into its folder: ``report.md`` with ``pictures/``, and ``report.html``.

    The table is that of Hu et al. (2021, "When does loss-based prioritization fail?", Table 1), with seconds beside
    samples, and means with intervals over seeds. Runs that have not finished are left out, and the report says so; it
    leaves out what the comparison has no numbers for. It may be written as often as you like, by nothing but the files
    of the folder.

    Args:
        out: the folder, which holds a ``results.json``.

    Returns:
        The paths of the two files.

    Raises:
        ValueError: there is no such file.
        ImportError: without matplotlib, which `torchassay[plot]` brings.
    """
    out = Path(out)
    if not (out / "results.json").is_file():
        raise checks.InputValueError(f"report.write: out must be a folder with a results.json, got '{out}'")
    results = checks.json_object("report.write", out / "results.json", about=dict, runs=list)
    about = results["about"]
    title = f"Sampling methods on {about['data']['name']}"
    parts = list(_parts(out, results))
    footer = f"torchassay {about['version']}, torch {about['torch']}, {about['date']}"
    (out / PICTURES).mkdir(exist_ok=True)
    for part in parts:
        if isinstance(part, page.Picture):
            _write(out / PICTURES / f"{part.name}.png", part.light)
    paths = out / "report.md", out / "report.html"
    _write(paths[0], page.markdown(title, parts, PICTURES).encode())
    _write(paths[1], page.html(title, parts, footer).encode())
    return paths


def _parts(out: Path, results: dict) -> Iterator[page.Part]:
    rows = summary.table(results)
    yield page.Text(_setting(results))
    notes = list(_unfinished(results))
    arrays = dict(_arrays(out, rows, notes))
    if rows:
        yield page.Items(list(_findings(rows, results)))
    if notes:
        yield page.Items(notes)
    if rows:
        yield page.Heading("Results")
        yield _table(rows)
        if rows[0].samples is None:
            yield page.Text("SGD has no finished run here, so there is no error to reach and no speed-up.")
    yield page.Heading("Rules")
    yield page.Items(list(_rules(rows, results)))
    if rows:
        yield page.Heading("Pictures")
        yield from _pictures(out, rows, results, arrays)
        yield page.Heading("What a run spent")
        yield _costs(rows)
    yield page.Heading("To repeat it")
    yield page.Code(results["about"]["command"])


def _setting(results: dict) -> str:
    about, data = results["about"], results["about"]["data"]
    shapes = [data["shape"]] if data["modalities"] == 1 else data["shape"]
    shape = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
    return (
        f"{data['name']}: {data['train']:,} samples to train on ({shape}, {data['classes']} classes), {data['test']:,} "
        f"to test with; model {about['model']}, batches of {about['batch_size']}; {about['machine']}, "
        f"{about['device']}, {about['date']}."
    )


def _unfinished(results: dict) -> Iterator[str]:
    """Notes on what is missing."""
    titles = {run["method"]: run["title"] for run in results["runs"]}
    done = {(run["method"], run["seed"]) for run in results["runs"] if run["done"]}
    if not done:
        yield "No run has finished yet."
        return
    for name, title in titles.items():
        missing = [seed for seed in results["about"]["seeds"] if (name, seed) not in done]
        if missing:
            many = len(missing) > 1
            which = f"seed{'s' if many else ''} {', '.join(map(str, missing))}"
            yield f"{title}: {which} {'have' if many else 'has'} not finished and {'are' if many else 'is'} left out."


def _arrays(out: Path, rows: list[Row], notes: list[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """By the name of a method, what its first run keeps of every sample."""
    for row in rows:
        path = out / (_first(row.method)["arrays"] or "")
        if path.is_file():
            yield row.method.name, _stored(path)
        else:
            notes.append(f"{row.method.title}: its numbers for single samples are missing, so some pictures lack it.")


def _stored(path: Path) -> dict[str, np.ndarray]:
    try:
        return npz.arrays(path)
    except Exception as error:  # whatever the bytes made of the reader
        raise checks.InputValueError(f"report.write: '{path}' must be an .npz of plain arrays, got: {error}") from error


def _findings(rows: list[Row], results: dict) -> Iterator[str]:
    """What the table says, in sentences."""
    known = [row for row in rows if row.error.count]
    if known:
        low, high = min(known, key=lambda row: row.error.mean), max(known, key=lambda row: row.error.mean)
        yield f"Best error: {_named(low, low.error)} at the lowest, {_named(high, high.error)} at the highest."
    others = [row for row in rows if row.samples and row.method.name != summary.BASELINE]
    for column, unit in (("samples", "in back-propagated samples"), ("seconds", "in seconds")):
        found = [(getattr(row, column), row) for row in others if row.samples.factor.count]
        if found:
            most, row = max(found, key=lambda pair: pair[0].factor.mean)
            aim = f"{summary.FACTOR:g} x the best error of SGD"
            yield f"Largest speed-up {unit} to {aim}: {row.method.title}, {_speedup(most)}."
    never = [row.method.title for row in others if not row.samples.factor.count]
    if never:
        yield f"Never there: {'; '.join(never)}."
    base = summary.base_rate(results)
    picked = [row for row in rows if row.noise and row.noise.count]
    if base is not None and picked:
        low, high = min(picked, key=lambda row: row.noise.mean), max(picked, key=lambda row: row.noise.mean)
        yield (
            f"Corrupted samples are {100 * base:.2f} % of the training set; among the picks they are "
            f"most with {_named(high, high.noise)}, fewest with {_named(low, low.noise)}."
        )


def _table(rows: list[Row]) -> page.Table:
    columns: list[tuple[str, Callable[[Row], str]]] = [("method", lambda row: row.method.title)]
    if rows[0].samples is not None:
        columns.append(("speed-up, samples", lambda row: _of(row, row.samples)))
        columns.append(("speed-up, seconds", lambda row: _of(row, row.seconds)))
    columns.append(("best error, %", lambda row: _percent(row.error)))
    if rows[0].noise is not None:
        columns.append(("corrupted picks, %", lambda row: _percent(row.noise)))
    if len({len(row.method.runs) for row in rows}) > 1:
        columns.append(("seeds", lambda row: str(len(row.method.runs))))
    return page.Table([name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def _costs(rows: list[Row]) -> page.Table:
    """Means over seeds of what stands in the last epoch."""
    head = ("method", "epochs", "samples forward", "samples backward", "seconds", "last error, %")
    found = []
    for row in rows:
        runs = row.method.runs.values()
        epochs = np.mean([len(run["epochs"]) for run in runs])
        columns = ("forward", "backward", "seconds", "test_error")
        *numbers, error = (summary.interval(summary.values(run, name)[-1] for run in runs) for name in columns)
        forward, backward, seconds = (each.mean for each in numbers)
        spent = f"{epochs:.3g}", f"{forward:,.0f}", f"{backward:,.0f}", f"{seconds:,.1f}"
        found.append((row.method.title, *spent, _percent(error._replace(half=math.nan))))
    return page.Table(head, found)


def _rules(rows: list[Row], results: dict) -> Iterator[str]:
    about, seeds = results["about"], results["about"]["seeds"]
    epochs, samples = about["epochs"], about["epochs"] * about["data"]["train"]
    yield f"Budget, {about['budget']}: {BUDGETS[about['budget']].format(epochs=epochs, samples=samples)}."
    if rows and rows[0].samples is not None:
        yield (
            "Speed-up, in back-propagated samples and in seconds: what SGD spends until the end of the first epoch "
            f"with a test error of at most {summary.FACTOR:g} times its own best, divided by what the method spends "
            "until its first such epoch (Hu et al. 2021, section 3.2); seed by seed, then the mean of the seeds that "
            f"get there. If not all do, their number follows, and the mean flatters; {DASH}: none does."
        )
    yield "Best error: the least test error after any epoch, chosen by the test set itself, as in the paper."
    yield (
        "Seconds: training with all scoring, without evaluation, on this machine. What comes before the first epoch "
        "(RHO-Loss trains two other models) is counted nowhere."
    )
    if len(seeds) > 1:
        yield (
            f"±: half the width of the {100 * summary.LEVEL:g} % interval for the mean over the seeds "
            f"({', '.join(map(str, seeds))}): Student's t, one degree of freedom fewer than seeds, by its exact "
            "distribution. The data are the same for all seeds, so it covers what chance does to "
            "training, not what other data would."
        )
    else:
        yield f"One seed ({', '.join(map(str, seeds))}), so there is no interval: differences may be chance."
    if summary.base_rate(results) is not None:
        share = f"{about['corrupted']:,} of {about['data']['train']:,} samples"
        yield (
            f"Corruption, {about['corrupt']}: {share}, of which {about['changed']:,} really changed; a pick counts as "
            "corrupted either way. The test set is as it was."
        )


def _pictures(out: Path, rows: list[Row], results: dict, arrays: dict[str, dict]) -> Iterator[page.Picture]:
    mean = "" if len(results["about"]["seeds"]) == 1 else ", mean over the seeds"
    yield _picture(
        f"Test error against back-propagated samples{mean}.", "error_by_backprops", plots.error_by_backprops, results
    )
    yield _picture(
        f"Test error against seconds of training{mean}.", "error_by_seconds", plots.error_by_seconds, results
    )
    if summary.base_rate(results) is not None:
        caption = f"Corrupted samples among those trained on, epoch by epoch{mean}."
        yield _picture(caption, "noise_share", plots.noise_share, results)
    if any(summary.weighted(row.method) for row in rows):
        caption = f"What the weights leave of a batch's size{mean}."
        yield _picture(caption, "effective_sample_size", plots.effective_sample_size, results)
    counts = {row.method.title: arrays[row.method.name]["picks"] for row in rows if row.method.name in arrays}
    if counts:
        caption = f"How often a sample was trained on, seed {_first(rows[0].method)['seed']}."
        yield _picture(caption, "picks", plots.picks, counts)
    yield from _kinds(rows, arrays)
    yield from _images(out, rows, arrays)


def _kinds(rows: list[Row], arrays: dict[str, dict]) -> Iterator[page.Picture]:
    """The kinds of samples by the first method with an uncertainty of its own, else by the first one's entropy."""
    for row, name in [*((row, "uncertainty") for row in rows), *((row, "entropy") for row in rows)]:
        found = arrays.get(row.method.name, {})
        if name in found and np.any(np.isfinite(found[name]) & np.isfinite(found["loss"])):
            corrupted = found["corrupted"] if found["corrupted"].any() else None
            what = "its own uncertainty" if name == "uncertainty" else "the mean entropy as uncertainty"
            caption = f"The four kinds of samples of MoMBS, cut at the medians: {row.method.title}, mean loss, {what}."
            yield _picture(caption, "categories", plots.categories, found["loss"], found[name], corrupted=corrupted)
            return


def _images(out: Path, rows: list[Row], arrays: dict[str, dict]) -> Iterator[page.Picture]:
    if not (out / "data.npz").is_file():
        return
    images = _stored(out / "data.npz").get("images")
    if images is None:
        return
    choosy = [row for row in rows if row.method.name in arrays and np.ptp(arrays[row.method.name]["picks"]) > 0]
    for place, row in enumerate(choosy[:PICTURED]):
        found = {name: value[: len(images)] for name, value in arrays[row.method.name].items()}
        framed = "; corrupted ones are framed" if found["corrupted"].any() else ""
        caption = f"{row.method.title}: what it trained on most and least often, with the given labels{framed}."
        marks = {"given": found["given"], "corrupted": found["corrupted"]}
        yield _picture(caption, f"picked_{place}", plots.most_and_least_picked, images, found["picks"], **marks)


def _picture(caption: str, name: str, draw: Callable[..., Axes], *arguments, **options) -> page.Picture:
    """Drawn twice: for a light page and for a dark one."""
    from matplotlib import style

    files = []
    for ground, ink in THEMES:
        inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        theme = dict.fromkeys(inked, ink) | {"figure.facecolor": ground, "axes.facecolor": ground}
        with style.context(["default", theme]):
            file = io.BytesIO()
            draw(*arguments, **options).figure.savefig(file, format="png", dpi=DPI)
            files.append(file.getvalue())
    return page.Picture(name, caption, *files)


def _first(method: Method) -> dict:
    """Its run with the first seed."""
    return method.runs[min(method.runs)]


def _named(row: Row, found: Interval) -> str:
    return f"{row.method.title} ({_percent(found)} %)"


def _percent(found: Interval) -> str:
    if not found.count:
        return DASH
    half = "" if math.isnan(found.half) else f" ± {100 * found.half:.2f}"
    return f"{100 * found.mean:.2f}{half}"


def _of(row: Row, found: Speedup) -> str:
    return "1x" if row.method.name == summary.BASELINE and found.factor.count else _speedup(found)


def _speedup(found: Speedup) -> str:
    """With the number of seeds that it is the mean of, if some don't get there."""
    factor = found.factor
    if not factor.count:
        return DASH
    half = "" if math.isnan(factor.half) else f" ± {factor.half:.2f}"
    some = f" ({factor.count} of {found.seeds})" if factor.count < found.seeds else ""
    return f"{factor.mean:.2f}x{half}{some}"


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as fresh:
        fresh.write_bytes(content)
