"""The commands `torchassay labels` and `torchassay select`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
from click.core import ParameterSource

from torchassay.one_line import Stop

_OF_TRAINING = ("corrupt", "epochs", "folds", "seed")


@click.command(short_help="Rank labels by how likely they are wrong.")
@click.argument("scores", required=False, type=click.Path(path_type=Path))
@click.option("--data", metavar="DATA", help="'digits', or a .npz with x_train, y_train and, if known, y_train_true.")
@click.option(
    "--by",
    type=click.Choice(("loss", "self_confidence", "target_margin")),
    default="loss",
    show_default=True,
    help="What to rank by.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="labels", show_default=True, help="Folder for the files."
)
@click.option("--corrupt", metavar="labels:SHARE", help="Draw a share of the labels anew first, to count those found.")
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True, help="Passes over the data.")
@click.option(
    "--folds", type=click.IntRange(1), default=1, show_default=True, help="From 2: score by models trained on others."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of all random draws.")
@click.pass_context
def labels(
    context: click.Context,
    scores: Path | None,
    data: str | None,
    by: str,
    out: Path,
    corrupt: str | None,
    epochs: int,
    folds: int,
    seed: int,
) -> None:
    """Rank labels by how likely they are wrong.

    SCORES is a file of a training's scores: a .parquet of SampleMemory.to_parquet, runs/NAME.npz of a comparison, or
    another .npz or .csv with columns loss, self_confidence or target_margin. Without it, a small network is trained on
    DATA; with it, DATA gives the labels and images that the file lacks.
    """
    if scores is None and data is None:
        raise click.UsageError("SCORES or --data must be given, got neither", context)
    for name in _OF_TRAINING:
        if scores is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is for training on --data, but the scores are there: '{scores}'", context)
    share = _share(context, corrupt)
    from torchassay import labels, quick_training, score_files

    with _told(context):
        samples = None if data is None else quick_training.load(data)
        if share is not None:
            samples = quick_training.flip(samples, share, seed)
        if scores is None:
            out.mkdir(parents=True, exist_ok=True)  # before the work, not after
            scores = quick_training.train(samples, epochs, seed, folds)
        of_data = {}
        if samples is not None:
            has = score_files.columns("labels.report", scores)  # a file knows better what it was trained on
            of_data = {name: getattr(samples, name) for name in ("given", "true") if name not in has}
            of_data["images"] = samples.images
        found = labels.report(scores, by=by, out=out, in_sample=folds == 1, **of_data)
    click.echo(found.text())
    click.echo(f"\nwritten: {', '.join(map(str, found.written))}")


@click.command(short_help="Keep a share of the samples by their scores.")
@click.argument("scores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--by", required=True, metavar="COLUMN", help="Column to rank by, the mean over the files.")
@click.option("--keep", "fraction", required=True, type=click.FloatRange(0, 1), help="Share of the samples to keep.")
@click.option(
    "--offset", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share to leave out before them."
)
@click.option("--per-class", is_flag=True, help="The same shares of every class (column given).")
@click.option("--smallest", is_flag=True, help="Keep the smallest values in place of the largest.")
@click.option("--out", type=click.Path(path_type=Path), default="keep.npy", show_default=True, help="File to write.")
@click.pass_context
def select(
    context: click.Context,
    scores: tuple[Path, ...],
    by: str,
    fraction: float,
    offset: float,
    per_class: bool,
    smallest: bool,
    out: Path,
) -> None:
    """Keep a window of the samples in the order of a score, and write their numbers (int64, ascending).

    SCORES are one or more files (.parquet, .npz or .csv) of the same samples, such as those of several seeds. The
    largest values come first: --offset leaves out the first share, as samples that may be noise, and --keep keeps the
    next (Paul et al. 2021).
    """
    import numpy as np
    import torch

    from torchassay import memory, score_files, whole_files

    with _told(context):
        index, values, given = score_files.mean(scores, by, per_class)
        groups = None if given is None else torch.from_numpy(given)
        kept = memory.keep(torch.from_numpy(values), fraction, offset, largest=not smallest, by=groups).numpy()
        with whole_files.replacing(out) as path, path.open("wb") as file:
            np.save(file, index[kept])
    spread = f" ({by} {values[kept].min():.4g} to {values[kept].max():.4g})" if len(kept) else ""
    click.echo(f"kept {len(kept)} of {len(index)} samples{spread}")
    click.echo(f"written: {out}")


def _share(context: click.Context, corrupt: str | None) -> float | None:
    if corrupt is None:
        return None
    found = re.fullmatch(r"labels:(\d*\.?\d+)", corrupt)
    if not found or float(found[1]) > 1:
        raise click.UsageError(f"--corrupt must be labels:SHARE with SHARE in [0, 1], got '{corrupt}'", context)
    return float(found[1])


@contextlib.contextmanager
def _told(context: click.Context) -> Iterator[None]:
    """Bad input, a missing package and a full disk are one line that names the command."""
    try:
        yield
    except (ValueError, ImportError) as error:
        message = re.sub(r"^(labels\.report|labels|select|keep|corrupt): ", "", str(error))
    except OSError as error:
        message = f"could not write to '{context.params['out']}': {error.strerror or error}"
    else:
        return
    raise Stop(message)
