"""Read the machine code of the native CUDA kernels, out of the built module.

    python tests/cuda/static.py            print the figures and the committed ones as JSON
    python tests/cuda/static.py --write    write them to benchmarks/results/static.md

No GPU is needed, only cuobjdump: the triton package's or the CUDA toolkit's. Only code is looked at, neither numbers
nor time.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

from torchassay.backends import native

sys.path.insert(0, str(Path(__file__).parents[1]))

import sass

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "static.md"
COLUMNS = (
    *("kernel", "under", "dtype", "unit", "lanes", "target"),
    *("registers", "local", "shared", "wide loads", "instructions", "an element", "C = 100"),
)
KEY = 6  # columns that name a row
HEADS = {f"NS_4HeadE{i}": f"{head}_samples" for i, head in enumerate(("binary", "mse", "l1", "huber"))}  # csrc/api.h
KERNELS = (
    *("short_rows", "long_rows", "row_spans", "finish_rows", "swept_rows", "grad_vectors"),
    *("merge_parts", "finish_parts", "draw_states", "draw_mixtures", "mean_entropies", *HEADS.values()),
    *("cdf_values", "row_uniforms", "column_numbers"),
)
# What a kernel is compiled for: plain rows, options, a softcap, or the states of slices.
TASKS = {
    **{"": "", "NS_9ScoreTaskE": "", "NS_8GradTaskE": ""},
    **{"NS_10OptionTaskE": "options", "Lb0ENS_10OptionTaskE": "options", "NS_14OptionGradTaskILb0EE": "options"},
    **{"Lb1ENS_10OptionTaskE": "softcap", "NS_14OptionGradTaskILb1EE": "softcap"},
    **{"NS_9StateTaskE": "states", "Lb0ENS_9StateTaskE": "states", "Lb1ENS_9StateTaskE": "states, softcap"},
}
DTYPES = {"NS_7Float16E": "fp16", "NS_8Bfloat16E": "bf16", "f": "fp32", None: ""}
UNITS = {"NS_4UnitE16": "16", "NS_4UnitE8": "8", "NS_4UnitE0": "anywhere", "b1": "noise", "b0": "ensemble", None: ""}
# Of a template's instance: dtype; unit, head or whether there is noise; lanes; task. Or of a function.
MANGLED = re.compile(
    r"_ZN10torchassayL?\d+([a-z_]+)"
    r"(?:I(f|NS_\d+\w+?E)?(?:L(NS_4UnitE\d+|NS_4HeadE\d|b[01])E)?(?:Li(\d+)E)?((?:Lb\dE)?(?:NS_\d+\w+?Task(?:ILb\dE)?E)?)E)?E"
)
LANES = {
    "short_rows": "1-32",
    "row_spans": "256",
    "finish_rows": "256",
    "draw_states": "8-256",
    "draw_mixtures": "8-256",
}
COLUMNS_OF_LANE = 32
COLUMNS_OF_BLOCK = 4
SHORT_ROWS = {"an element": (1000, 32), "C = 100": (100, 4)}  # columns, and lanes that share such a row


def named(mangled: str) -> dict[str, str]:
    """The first columns, from a mangled name."""
    match = MANGLED.match(mangled)
    if not match or match[2] not in DTYPES or (match[5] or "") not in TASKS:
        raise ValueError(f"not a kernel of ours: {mangled}")
    kernel, dtype, kind, lanes, task = match.groups()
    names = {"under": TASKS[task or ""], "dtype": DTYPES[dtype]}
    if kind in HEADS:
        return {"kernel": HEADS[kind], **names, "unit": "anywhere", "lanes": "1-32"}
    if kernel not in KERNELS or kind not in UNITS:
        raise ValueError(f"not a kernel of ours: {mangled}")
    return {"kernel": kernel, **names, "unit": UNITS[kind], "lanes": lanes or LANES.get(kernel, "")}


def rank(line: str) -> tuple[int, ...]:
    """The way that a whole row of the common kind takes, when the number of exponentials is given.

    Without subroutines (slow division) and without the prediction, which alone takes the minimum of integers; the
    widest loads and stores; every load of the logits; and nothing left out of the search for the tops and the shuffles.
    """
    aside = bool(re.search(r"\bCALL\b|\bV?IMNMX", line))
    memory = bool(re.search(r"\b(LDG|STG)\b", line))
    reduces = bool(re.search(r"\b(FMNMX3?|V?HMNMX2?|SHFL)\b", line))
    return -aside, memory and ".128" in line, "LDG" in line, reduces


def in_loop(flow: sass.Flow, head: int, exp2_of_a_span: int) -> float:
    """Instructions for a logit of a lane, in a loop over spans: each has an exponential for the merge."""
    ways = sass.passes(flow, flow.loops[head], head, rank)
    exp2, _ = key = max(ways)
    spans, left = divmod(exp2, exp2_of_a_span + 1)
    if not spans or left:
        raise ValueError(f"{exp2} exponentials are no spans of {exp2_of_a_span} and one for the merge")
    return ways[key].instructions / (exp2 - spans)


def in_steps(flow: sass.Flow, head: int, columns: int, lanes: int) -> float:
    """The same for rows that lanes share: five numbers are reduced, in log2(lanes) levels."""
    levels = lanes.bit_length() - 1
    way = sass.passes(flow, flow.loops[head], head, rank)[COLUMNS_OF_LANE, 5 * levels]
    return way.instructions * lanes / columns


def of_exponentials(ways: dict[tuple[int, int], sass.Pass], exp2: int) -> sass.Pass:
    """The way with so many exponentials, the most that there are but for one that is rare."""
    if max(ways)[0] - exp2 not in (0, 1):
        raise ValueError(f"{max(ways)[0]} exponentials where {exp2} were expected")
    return max((way for (count, _), way in ways.items() if count == exp2), key=sass.Pass.order)


def straight(flow: sass.Flow, exp2: int) -> float:
    """The same for a kernel that a thread goes through without a loop."""
    blocks = set(flow.blocks).difference(*flow.loops.values())
    return of_exponentials(sass.passes(flow, blocks, flow.entry, rank), exp2).instructions / exp2


def in_vectors(flow: sass.Flow, head: int, logits: int, exp2_of_a_logit: int = 1) -> float:
    """The same for a loop over vectors of one row, or over its blocks of columns."""
    ways = sass.passes(flow, flow.loops[head], head, lambda line: rank(line)[:2])
    return of_exponentials(ways, logits * exp2_of_a_logit).instructions / logits


def figures_of(kernel: sass.Kernel) -> dict:
    """A row of the table, and what the tests ask besides."""
    names = named(kernel.name)
    flow = sass.Flow(kernel.code)
    bodies = {head: flow.lines(body) for head, body in flow.loops.items()}
    exp2 = {head: sum("MUFU.EX2" in line for line in lines) for head, lines in bodies.items()}
    hot = max(bodies, key=lambda head: (exp2[head], len(bodies[head])), default=None)
    vector = 4 if names["dtype"] == "fp32" else 8
    found = dict.fromkeys(SHORT_ROWS)
    if names["kernel"] == "long_rows":
        found["an element"] = in_loop(flow, hot, 4 * vector)
    elif names["kernel"] == "short_rows":
        found = {column: in_steps(flow, hot, *shape) for column, shape in SHORT_ROWS.items()}
    elif names["kernel"] == "row_spans":
        found["an element"] = straight(flow, 4 * vector)
    elif names["kernel"] == "grad_vectors":
        found["an element"] = in_vectors(flow, hot, vector, 2 if names["under"] == "softcap" else 1)
    elif names["kernel"] in ("draw_states", "draw_mixtures"):
        inner = [head for head, body in flow.loops.items() if not any(other < body for other in flow.loops.values())]
        found["an element"] = in_vectors(flow, max(inner, key=exp2.get), COLUMNS_OF_BLOCK)
    elif names["kernel"] == "binary_samples":
        inner = min((head for head in bodies if exp2[head]), key=lambda head: len(bodies[head]))
        found["an element"] = in_vectors(flow, inner, exp2[inner])
    return names | {
        "target": kernel.target,
        "registers": kernel.registers,
        "local": kernel.local,
        "shared": kernel.shared,
        "wide loads": kernel.count(r"\bLDG\.E\.(\w+\.)*128\b"),
        "instructions": len(kernel.code),
        **{column: None if value is None else round(value, 1) for column, value in found.items()},
        "faults": kernel.faults(),
        "barriers in the loop": sum(bool(re.search(r"\bBAR\b", line)) for line in bodies.get(hot, ())),
    }


def measured() -> tuple[str, list[dict]]:
    """The release of the compiler, and a row of the table for every kernel and architecture."""
    cuobjdump, module = sass.find_cuobjdump(), Path(native.__file__)
    with tempfile.TemporaryDirectory() as folder:
        release = sass.compiler(cuobjdump, module, Path(folder))
    dtypes, units = list(DTYPES.values()), list(UNITS.values())

    def place(row: dict) -> tuple:
        target = int(re.sub(r"\D", "", row["target"]))
        lanes = int(row["lanes"]) if row["lanes"].isdigit() else 0
        kernel = KERNELS.index(row["kernel"]), row["under"]
        return *kernel, dtypes.index(row["dtype"]), units.index(row["unit"]), lanes, target

    return release, sorted((figures_of(kernel) for kernel in sass.read(cuobjdump, module)), key=place)


def table(release: str, rows: list[dict]) -> str:
    """The figures as Markdown."""
    lines = [
        "# The native CUDA kernels' machine code",
        "",
        f"Written by `python tests/cuda/static.py --write` from a module built with nvcc {release}, without a GPU; the",
        "tests compare with it. `under`: what a kernel is for besides plain rows, the options of a loss (without a",
        "softcap), a softcap, or the states of slices of the classes, with a softcap or without. `unit`: what every",
        "row starts at a multiple of, in bytes, and is a whole number of.",
        "`lanes`: how many share a row. `local`: bytes of stack and local memory. `wide loads`: 128-bit loads.",
        "`an element`: warp instructions for 32 logits, on the way through the code that whole spans of a row take.",
        "In `long_rows` the loop over spans, merging included. In `short_rows` the loop over steps, for rows of 1000",
        "columns (32 lanes, five levels of every reduction, 1000 of 1024 columns useful) and of 100 (the last column:",
        "4 lanes, two levels, 100 of 128), without the prediction, and without the finish of up to 32 rows at its end.",
        "In `row_spans` the whole kernel. In `grad_vectors` the loop over vectors, for one that is in the same row as",
        "the one before and does not hold the target. In `draw_states` the loop over blocks of four columns, in",
        "`draw_mixtures` the one over the draws of a block: for one draw; their `unit` is whether they make noise. In",
        "`binary_samples` the loop over a lane's labels. Not counted for `finish_rows`, which merges, `swept_rows`,",
        "which go over a row two or three times, the regressions, which need no exponential, nor for the kernels",
        "that read no logits, of which `merge_parts` and `finish_parts` read states.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        lines.append("| " + " | ".join("" if row[column] is None else str(row[column]) for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def committed() -> tuple[str, list[dict]]:
    """The compiler's release of the committed table, and its rows."""
    text = TABLE.read_text()
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        if len(cells) == len(COLUMNS) and cells[0] in KERNELS:
            numbers = [float(cell) if cell else None for cell in cells[KEY:]]
            rows.append(dict(zip(COLUMNS, cells[:KEY] + numbers, strict=True)))
    return re.search(r"with nvcc ([\d.]+)", text)[1], rows


if __name__ == "__main__":
    if not getattr(native, "cuda", False) or sass.find_cuobjdump() is None:
        sys.exit("needs an extension that is built with CUDA kernels, and cuobjdump")
    release, rows = measured()
    if "--write" in sys.argv:
        TABLE.write_text(table(release, rows))
    else:
        before, expected = committed()
        print(json.dumps({"release": release, "measured": rows, "committed release": before, "committed": expected}))
