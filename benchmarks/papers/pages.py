"""The pages: our numbers beside a paper's, and what becomes of its claims. Nothing in them is written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple

from papers.evidence import CLOSE, FAILS, HOLDS, UNKNOWN, Claim

COMMAND = "python benchmarks/papers/run.py"


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]


class Page(NamedTuple):
    """What a study says."""

    data: str  # how they were made
    tables: list[Table]
    claims: list[Claim]
    notes: list[str]  # how this differs from the paper


def markdown(paper: ModuleType, results: dict[str, dict], quick: bool = False) -> str:
    """A paper's page, from the results of its comparisons."""
    page: Page = paper.page(results)
    parts = [f"# {paper.TITLE}\n\n{paper.PAPER}"]
    if quick:
        parts.append("**A quick run: it shows that the study runs, and its numbers say nothing.**")
    parts += [_made(results), f"```\n{_command(paper.NAME, quick)}\n```", f"**Data.** {page.data}"]
    parts.append("\n".join(f"- {note}" for note in page.notes))
    parts.append(f"## Claims\n\n{verdicts(page.claims).capitalize()}.\n\n" + "\n".join(map(line, page.claims)))
    parts.append(
        "## Numbers\n\n± is half the width of the 95 % interval for the mean over seeds (Student's t); a claim is "
        "judged by means, and its sentence says where chance could have made the difference. – means: never."  # noqa: RUF001
    )
    parts += [f"### {table.title}\n\n{_rows(table)}" for table in page.tables]
    return "\n\n".join(parts) + "\n"


def line(claim: Claim) -> str:
    return f"- **{claim.verdict}**: {claim.text}. Here: {claim.evidence}."


def verdicts(claims: Iterable[Claim]) -> str:
    """How many there are of each."""
    found = [claim.verdict for claim in claims]
    many = {HOLDS: "hold", CLOSE: "hold within chance", FAILS: "do not reproduce here", UNKNOWN: UNKNOWN}
    counts = ((found.count(verdict), verdict, plural) for verdict, plural in many.items())
    return ", ".join(f"{count} {verdict if count == 1 else plural}" for count, verdict, plural in counts if count)


def index(papers: Iterable[tuple[ModuleType, dict[str, dict]]]) -> str:
    """The page of pages."""
    rows = []
    for paper, results in papers:
        if results:
            rows.append([f"[{paper.TITLE}]({paper.NAME}.md)", verdicts(paper.page(results).claims), _dates(results)])
        else:
            rows.append([paper.TITLE, "not run", ""])
    table = _rows(Table("", ["paper", "claims", "run"], rows))
    return f"""# The papers' claims, here

{table}

Each page has our numbers beside the paper's and says of each claim whether its direction holds here; verdicts are
computed from the numbers. "Within chance": the direction is right, and the interval over seeds includes no difference
at all, in some of the settings at least. The settings are far smaller than the papers' (MNIST or few images, small
networks, few seeds), so a claim that does not reproduce here is not refuted at the paper's size, and one that holds is
not proven.

```
{COMMAND} all --data DIR --out OUT            trains what OUT does not hold yet, and writes the pages
{COMMAND} hu2021 --data DIR --out OUT         one paper
{COMMAND} all --out OUT --render              writes the pages from what OUT holds
{COMMAND} all --data DIR --out OUT --quick    a minute or two, to see that it runs; pages go to OUT/quick
```

DIR holds `mnist.npz` (x_train, y_train, x_test, y_test), `cifar10.npz` of the same form (or `cifar10_jpeg.npz`, JPEG
files one after the other) and `cifar10n_human_labels.npz` (aggre_label, random_label2, worse_label in the order of
CIFAR-10's training images). A run that was stopped goes on with the same command. Training uses one thread.
"""


def _command(name: str, quick: bool) -> str:
    return f"{COMMAND} {name} --data DIR --out OUT" + (" --quick" if quick else "")


def _made(results: dict[str, dict]) -> str:
    """Day, machine, versions, seeds and how long training took."""
    abouts = [found["about"] for found in results.values()]
    seconds = sum(run["epochs"][-1]["seconds"] for found in results.values() for run in found["runs"] if run["epochs"])
    seeds = {", ".join(map(str, about["seeds"])) for about in abouts}
    machines = " and ".join(sorted({about["machine"] for about in abouts}))
    versions = " and ".join(sorted({f"torchassay {about['version']}" for about in abouts}))
    return (
        f"{_dates(results)}; {machines}; {versions}; seeds {' and '.join(sorted(seeds))}; "
        f"{seconds / 60:.1f} minutes of training in all."
    )


def _dates(results: dict[str, dict]) -> str:
    return " and ".join(sorted({found["about"]["date"] for found in results.values()}))


def _rows(table: Table) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
