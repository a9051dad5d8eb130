"""The command `torchassay compare`."""

from __future__ import annotations

from pathlib import Path

import click

from torchassay import checks
from torchassay.compare.training import BUDGETS, SCHEDULES


class Seeds(click.ParamType):
    """A number of seeds, or a list of them."""

    name = "N|LIST"

    def convert(self, value, parameter, context):
        try:
            if isinstance(value, str):
                return [int(part) for part in value.split(",") if part] if "," in value else int(value)
            return value
        except ValueError:
            self.fail(f"'{value}' is neither a number of seeds nor a list such as 0,1,2.", parameter, context)


@click.command(short_help="Methods against each other, at an equal budget.")
@click.option("--data", required=True, help="digits, mnist, cifar10 or PATH.npz with x_train, y_train, x_test, y_test.")
@click.option("--methods", required=True, help="Names with options, see above: sgd,sb:beta=1,sbe,vr:pool=3.")
@click.option("--corrupt", metavar="KIND:SHARE", help="labels, shuffle or gauss, as labels:0.25.")
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True, help="The budget, see above.")
@click.option("--seeds", type=Seeds(), default=1, show_default=True, help="How many, from 0 on, or a list: 3,4,5.")
@click.option("--budget", type=click.Choice(BUDGETS), default="backprops", show_default=True, help="See above.")
@click.option("--out", type=click.Path(path_type=Path), default="compare", show_default=True, help="A folder.")
@click.option("--model", help="mlp, cnn, resnet, package.module:name or path.py:name.  [default: by the data]")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Samples in a step.")
@click.option("--lr", type=float, help="Learning rate of SGD.  [default: 0.02, convolutions 0.05]")
@click.option("--schedule", type=click.Choice(SCHEDULES), default="constant", show_default=True, help="Of the rate.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--resume", is_flag=True, help="Go on with what is in --out.")
def compare(out: Path, resume: bool, **options) -> None:
    """Train a model by each method with each seed, at an equal budget, and write a report.

    \b
    --budget backprops  until EPOCHS x training samples have been back-propagated: a
                        method that drops samples goes through the data more often
    --budget epochs     EPOCHS passes through the data for every method
    --budget seconds    the seconds of training that sgd of the same seed took for
                        EPOCHS epochs (sgd must be among the methods)

    Testing is in no budget, scoring in that of seconds. The rate of --schedule cosine follows the share of the budget
    that is spent, by the same rule for all methods. A small model (mlp) on a CPU runs with one thread: it gains nothing
    from more, and results do not depend on the machine's number of them.

    Methods: sgd, subset, random, sb, sbe, stale-sb, composer-sb, vr, vr-hu, trim, ohem, low, rho, ois, ais, mombs,
    bss-h, bss-l (both on several modalities), infobatch. Options of a method are the keyword arguments of its class in
    torchassay.samplers and may be shortened.
    """
    from torchassay.compare import compare

    again = f"go on with the same command and --resume (--out {out})"
    try:
        results = compare(out=out, resume=resume, **options)
    except (checks.InputValueError, checks.InputTypeError) as error:
        raise click.UsageError(str(error).removeprefix("compare: "), click.get_current_context()) from error
    except ImportError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
    except OSError as error:
        message = f"could not write to '{out}': {error.strerror or error}; {again}"
        raise click.UsageError(message, click.get_current_context()) from error
    except KeyboardInterrupt:
        click.echo(f"\nstopped after the last whole epoch; {again}", err=True)
        raise
    done = sum(run["done"] for run in results["runs"])
    click.echo(f"{done} runs in {out}: results.json, report.md, report.html")
