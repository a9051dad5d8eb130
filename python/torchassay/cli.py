"""The command line: `torchassay demo | bench | compare | score | labels | select | doctor`."""

from __future__ import annotations

import datetime
import inspect
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import click
import torch

from torchassay import checks, labels_command, named_objects, speed
from torchassay.compare.command import compare
from torchassay.one_line import OneLine, Stop
from torchassay.scoring.command import score

_DEMO_NEEDS = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}  # module: package


@click.group(
    "torchassay",
    cls=OneLine,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(version("torchassay"), prog_name="torchassay")
@click.pass_context
def main(context: click.Context) -> None:
    """Per-sample loss, entropy, gradient norm and margins from one read of the logits."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command(short_help="Find flipped labels in real data; time the scores.")
@click.option("--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="Folder for the files.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of data and training.")
@click.option("--epochs", type=click.IntRange(1), default=50, show_default=True, help="Passes over the training data.")
def demo(out: Path, seed: int, epochs: int) -> None:
    """Find flipped labels in scikit-learn's digits, and time the scores against PyTorch. CPU only, under a minute."""
    start = time.perf_counter()
    _need_demo_extra()
    _need_folder(out)
    from torchassay import demo, doctor

    digits = demo.load(seed)
    click.echo(demo.summary(digits))
    found = demo.train(digits, seed, epochs)
    click.echo(f"\nThe most suspicious samples, by mean loss over {epochs} epochs\n")
    click.echo(demo.table(digits, found))
    click.echo(f"\ntest accuracy: {found.test_accuracy:.1%}")
    try:
        written = demo.save(digits, found, out)
    except OSError as error:
        raise Stop(f"could not write to '{out}': {error.strerror or error}") from error
    click.echo(f"written: {', '.join(map(str, written))}")
    click.echo("\nWhom Selective-Backprop picks where half of the labels are random\n")
    contest = demo.contest(out, seed)
    click.echo(f"{contest}\nwritten: {out / 'noise_share.png'}")
    click.echo(f"\nSpeed on this machine ({doctor.machine()})\n")
    results = _timed("float32")
    click.echo(f"\nIn five lines ({time.perf_counter() - start:.0f} s in all)\n")
    for number, line in enumerate(demo.closing(digits, found, results), 1):
        click.echo(f"{number}. {line}")


@main.command(short_help="Time five scores at three shapes against PyTorch.")
@click.option(
    "--dtype",
    type=click.Choice(speed.DTYPES),
    default="float32",
    show_default=True,
    help="Of the logits.",
)
@click.option("--threads", type=click.IntRange(1), help="Torch threads.  [default: torch's own]")
def bench(dtype: str, threads: int | None) -> None:
    """Time five scores at three shapes against the PyTorch chain and F.cross_entropy; verify them first."""
    from torchassay import doctor

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        click.echo(f"{doctor.machine()}, {datetime.date.today().isoformat()}\n")
        _timed(dtype)
    finally:
        torch.set_num_threads(before)


@main.command(short_help="Say what is built and available; find the traps in a trainer.")
@click.argument("trainer", required=False)
@click.pass_context
def doctor(context: click.Context, trainer: str | None) -> None:
    """Say what is built, what is available here, and why not the rest: paste it into a bug report.

    TRAINER, as package.module:name or path.py:name, is a trainer of Lightning, Transformers or Accelerate, or a
    function that makes one, or one and its training loader: then say what its samplers would stumble over. The exit
    status is 1 if a training would be wrong.
    """
    from torchassay import doctor

    if trainer is None:
        click.echo(doctor.report())
        return
    try:
        found = named_objects.imported("doctor", "trainer", trainer)
        found = found() if inspect.isroutine(found) else found
        findings = doctor.check(*found) if isinstance(found, tuple) else doctor.check(found)
    except (checks.InputValueError, checks.InputTypeError) as error:
        raise Stop(str(error).removeprefix("doctor: ")) from error
    for finding in findings:
        click.echo(f"{'wrong' if finding.wrong else 'note'}: {finding.text}")
    if not findings:
        click.echo("no known trap found")
    context.exit(any(finding.wrong for finding in findings))


for command in (compare, score, labels_command.labels, labels_command.select):
    main.add_command(command)


def _timed(dtype: str) -> list[speed.Result]:
    click.echo(speed.HEADER)
    bystanders, results = speed.Bystanders(), []
    for result in speed.measure_all(getattr(torch, dtype)):
        results.append(result)
        click.echo(speed.line(result))
    click.echo(f"\n{speed.caption(dtype)}")
    if bystanders.share() > 0.1:
        click.echo(
            f"Note: other programs took {bystanders.share():.0%} of this machine meanwhile; time again when idle."
        )
    return results


def _need_demo_extra() -> None:
    missing = []
    for module, package in _DEMO_NEEDS.items():
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            if error.name != module:  # there, but broken: its own message says more
                raise
            missing.append(package)
    if missing:
        raise Stop(f'this needs {" and ".join(missing)}: pip install "torchassay[demo]"')


def _need_folder(folder: Path) -> None:
    """Make the folder and try it before the work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Stop(f"--out must be a folder that can be written to, got '{folder}' ({error.strerror})") from error
