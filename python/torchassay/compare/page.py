"""A report's parts, and the two forms they are written in: Markdown, and an HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Heading(NamedTuple):
    text: str


class Text(NamedTuple):
    text: str


class Items(NamedTuple):
    rows: Sequence[str]


class Code(NamedTuple):
    text: str


class Table(NamedTuple):
    """The first column holds names, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG for light pages and one for dark ones."""

    name: str
    caption: str
    light: bytes
    dark: bytes


Part = Heading | Text | Items | Code | Table | Picture

CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1b1b; --faint: #5c6166; --line: #d5d9dd;
  --band: #f5f6f7; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16191d; --ink: #e6e6e6; --faint: #a3a9b0; --line: #3a4047; --band: #1f2429; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 48rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
ul { padding-left: 1.2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; overflow-wrap: normal; }
th, td { padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom; }
td { white-space: nowrap; }
tr { background: var(--ground); }
tbody tr:nth-child(odd) { background: var(--band); }
th:first-child, td:first-child { position: sticky; left: 0; background: inherit; text-align: left; }
@media (max-width: 30rem) { table { font-size: 0.8rem; } th, td { padding: 0.3rem 0.4rem; } }
figure { margin: 1.8rem 0; }
img { display: block; width: 100%; max-width: 36rem; height: auto; }
figcaption, footer { color: var(--faint); font-size: 0.9rem; }
pre { padding: 0.7rem; background: var(--band); overflow-x: auto; }
"""


def markdown(title: str, parts: Sequence[Part], folder: str) -> str:
    """``folder``: where the pictures lie, seen from the file."""
    return "\n\n".join([f"# {_inline(title)}", *(_markdown(part, folder) for part in parts)]) + "\n"


def _markdown(part: Part, folder: str) -> str:
    match part:
        case Heading(text):
            return f"## {_inline(text)}"
        case Text(text):
            return _inline(text)
        case Items(rows):
            return "\n".join(f"- {_inline(row)}" for row in rows)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Table(head, rows):
            lines = [map(_inline, head), ["---", *["---:"] * (len(head) - 1)], *(map(_inline, row) for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(name, caption):
            return f"![{_inline(caption)}]({folder}/{name}.png)\n\n*{_inline(caption)}*"


def _inline(text: str) -> str:
    """Text that is nothing but text in Markdown, too."""
    text = escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|" else letter for letter in text)


def html(title: str, parts: Sequence[Part], footer: str) -> str:
    """One page, light or dark as the reader's device is, that fits a phone."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{chr(10).join(map(_html, parts))}
</main>
<footer><p>{escape(footer)}</p></footer>
</body>
</html>
"""


def _html(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Items(rows):
            return f"<ul>{''.join(f'<li>{escape(row)}</li>' for row in rows)}</ul>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Table(head, rows):
            top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
            body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
            return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
        case Picture(_, caption, light, dark):
            image = f'<img src="{_data(light)}" alt="{escape(caption)}">'
            source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
            return f"<figure><picture>{source}{image}</picture><figcaption>{escape(caption)}</figcaption></figure>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
