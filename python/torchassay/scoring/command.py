"""The command `torchassay score`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from torchassay.one_line import Stop
from torchassay.scoring.models import DTYPES


@click.command(short_help="Score a data set by a model, into Parquet.")
@click.argument("model")
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for the parts.")
@click.option(
    "--signals", default="loss,entropy,grad_norm", show_default=True, help="Names of torchassay.LINEAR_SIGNALS."
)
@click.option("--tokens", is_flag=True, help="Also the scores of each token, as lists.")
@click.option("--probs", is_flag=True, help="Also class probabilities (column pred_probs).")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Rows of a forward.")
@click.option(
    "--batches-per-part", type=click.IntRange(1), default=64, show_default=True, help="What a kill loses at most."
)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read ahead.")
@click.option("--device", help="cpu, cuda or cuda:N.  [default: a GPU, if there is one]")
@click.option(
    "--dtype",
    type=click.Choice(tuple(DTYPES)),
    help="Of the model's parameters.  [default: as they are]",
)
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="At a broken row: stop, or log its id and go on.",
)
@click.option("--resume", is_flag=True, help="Go on with what is in --out.")
def score(model: str, data: str, out: Path, signals: str, **options: Any) -> None:
    """Score every row of DATA by MODEL, and write Parquet parts that a killed run goes on from.

    MODEL is package.module:name or path.py:name, an nn.Module or a callable without arguments that makes one. DATA is a
    .npz (x and y, or columns that the model's forward names), a .parquet or a folder of them, a folder of Hugging
    Face's save_to_disk, or package.module:name of a map-style data set or of a callable that makes one.

    On several processes: torchrun --nproc-per-node 2 -m torchassay score ...; with --resume their number may be another
    one. `torchassay labels` and `torchassay select` read the folder.
    """
    from torchassay.scoring import score_dataset

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    names = [name.strip() for name in signals.split(",") if name.strip()]
    try:
        done = score_dataset(model, data, out, signals=names, progress=True, **options)
    except (ValueError, TypeError, ImportError) as error:
        message = re.sub(r"^(score_dataset|DatasetScorer|linear_score|score)(:| (?=needs))", "", str(error)).lstrip()
        raise Stop(message.replace("go on with resume", "go on with --resume")) from error
    except OSError as error:
        raise Stop(f"could not write to '{out}': {error.strerror or error}; go on with --resume") from error
    tokens = f"{done.tokens} tokens, " if done.tokens else ""
    rate = f"{done.rows / done.seconds:.0f} rows/s" if done.rows else "nothing was left to do"
    where = f"rank {rank} of {world}: " if world > 1 else ""
    click.echo(f"{where}{done.rows} rows, {tokens}{done.skipped} skipped, {done.seconds:.1f} s ({rate})")
    click.echo(f"{where}written: {out} ({done.parts} parts)")
