"""Tables of results, one a topic: as Markdown to read, as JSON to compute with."""

from __future__ import annotations

import json
from pathlib import Path

Tables = dict[str, list[dict]]


def cell(value, column: str = "") -> str:
    if not isinstance(value, float):
        return str(value)
    if column == "ms":
        return f"{value:.4f}"
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:,.{2 if value < 100 else 0}f}"


def table(rows: list[dict]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([cell(row[name], name) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(name: str, about: str, how: str, tables: Tables) -> str:
    """Everything as Markdown; ``about``: the machine, the versions, the day; ``how``: how it was measured."""
    parts = [f"# Benchmarks: {name}\n\n{about}. {how}"]
    parts += [f"## {topic}\n\n{table(rows)}" for topic, rows in tables.items()]
    return "\n\n".join(parts) + "\n"


def save(folder: Path, name: str, about: str, how: str, tables: Tables) -> str:
    """Write ``name``.md and ``name``.json into ``folder``; the Markdown."""
    text = document(name, about, how, tables)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps({"machine": about, "tables": tables}, indent=1) + "\n")
    return text
