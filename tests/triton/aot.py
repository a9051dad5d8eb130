"""Compile the kernels ahead of time, exactly as the launchers would launch them, and read the machine code.

    python tests/triton/aot.py            print the figures and the committed ones as JSON
    python tests/triton/aot.py --write    write them to benchmarks/results/triton_static.md

A process of its own, without TRITON_INTERPRET: interpreted functions cannot be compiled. No GPU is needed: the triton
package carries ptxas, lld and cuobjdump. Only code is looked at, neither numbers nor time.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import torch
import triton
from launches import VARIANTS
from torchassay.triton_kernels import (
    row_output,
    row_scores,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[1]))

import sass

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton_static.md"
CUOBJDUMP = sass.find_cuobjdump()
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
COLUMNS = (
    *("kernel", "dtype", "target", "registers", "spills", "shared", "wide loads", "products", "instructions"),
    "an element",
)
PRODUCTS = r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b"  # of NVIDIA's matrix units, from Ampere to Blackwell


def compiled(kernel, arguments: dict, options: dict, target: GPUTarget):
    """What the JIT would compile for these arguments, for a GPU that need not be there."""
    constants, attributes = {}, {}

    def kind(value, path: tuple[int, ...], constant: bool = False):
        if constant or value is None:
            constants[path] = value
            return "constexpr"
        if isinstance(value, row_output.Outputs):
            return type(value)(*(kind(member, (*path, i)) for i, member in enumerate(value)))
        if isinstance(value, torch.Tensor):
            if value.data_ptr() % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
            return POINTERS[value.dtype]
        if isinstance(value, float):
            return "fp32"
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    signature = {p.name: kind(arguments[p.name], (p.num,), p.is_constexpr) for p in kernel.params}
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)


TARGETS_OF = {name: tuple(TARGETS) for name in VARIANTS} | {  # large tiles spill on Ampere, which never gets them
    "linear": ("sm_90", "sm_100", "gfx942"),
    "linear, bias": ("sm_90", "sm_100", "gfx942"),
    "linear on Ampere": ("sm_80",),
    "linear on Ampere, bias": ("sm_80",),
}


def nvidia(kernel) -> dict:
    """Registers, bytes of local memory and SASS of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        (machine,) = sass.read(CUOBJDUMP, file.name)
    flow = sass.Flow(machine.code)
    return {
        "registers": machine.registers,
        "spills": machine.local,
        "wide loads": machine.count(r"LDG\.E\.128|LDGSTS\.E\.\S*128"),
        "products": machine.count(PRODUCTS),
        "instructions": len(machine.code),
        "loop": hot_loop(flow),
        "longest": max((len(flow.lines(body)) for body in flow.loops.values()), default=0),
        "sweeps": sum(map(len, loading_loops(flow))),
    }


def loading_loops(flow: sass.Flow) -> list[list[str]]:
    """The loops that load from global memory."""
    bodies = (flow.lines(body) for body in flow.loops.values())
    return [body for body in bodies if any("LDG" in line for line in body)]


def hot_loop(flow: sass.Flow) -> int:
    """Instructions of the loop with the most global loads, the shortest of these; 0 without a loop."""
    loads = ((sum("LDG" in line for line in body), -len(body)) for body in loading_loops(flow))
    return -max(loads, default=(0, 0))[1]


def amd(kernel) -> dict:
    """Registers and spills as the assembler notes them; loops are not looked for."""
    text = kernel.asm["amdgcn"]
    noted = {name: int(value) for name, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
    return {
        "registers": noted["vgpr_count"],
        "spills": noted["vgpr_spill_count"],  # scalar registers spill into lanes of vector registers, not into memory
        "wide loads": len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", text)),
        "products": len(re.findall(r"^\s+v_mfma", text, re.MULTILINE)),
        "instructions": len(re.findall(r"^\s+[vs]_|^\s+(?:global|buffer|ds)_", text, re.MULTILINE)),
        "loop": 0,
        "longest": 0,
        "sweeps": 0,
    }


def per_element(arguments: dict, threads: int, instructions: int, loop: int, sweeps: int) -> float:
    """Warp instructions for 32 logits (or their noise): of the hot loop of long rows and of draws or all sweeps of
    options, of everything else where rows fit a program."""
    if "BLOCKS" in arguments:
        logits = arguments["ROWS"] * min(arguments.get("C") or arguments["columns"], 4 * arguments["BLOCKS"])
        return (loop or instructions) * threads / logits
    constant = {name: arguments.get(name) for name in ("GROUPS", "ROWS", "COLUMNS", "VECTOR", "UNIT", "HEAD")}
    if constant["HEAD"] is not None:
        C = arguments["C"]
        taken, logits = instructions + (triton.cdiv(C, constant["COLUMNS"]) - 1) * loop, constant["ROWS"] * C
    elif constant["VECTOR"]:
        taken, logits = loop or instructions, row_scores.TILES.value * row_scores.LANES.value * constant["VECTOR"]
    elif arguments.get("WHOLE") is False:
        taken, logits = sweeps, constant["ROWS"] * constant["COLUMNS"]
    else:
        groups = constant["GROUPS"] or 1
        taken = instructions + (groups - 1) * loop
        C = arguments["C"] * (constant["UNIT"] or 1)
        logits = groups * constant["ROWS"] * min(C, constant["COLUMNS"])
    return taken * threads / logits


def figures() -> list[dict]:
    """A row of the table for every kernel, dtype and target."""
    found = []
    for variant, (dtypes, launched) in VARIANTS.items():
        for dtype_name in dtypes:
            for kernel, arguments, options in launched(DTYPES[dtype_name]):
                for target_name in TARGETS_OF[variant]:
                    target = TARGETS[target_name]
                    machine = compiled(kernel, arguments, options, target)
                    entry = amd(machine) if target.backend == "hip" else nvidia(machine)
                    loop, longest, sweeps = (entry.pop(name) for name in ("loop", "longest", "sweeps"))
                    threads = machine.metadata.num_warps * 32
                    entry["an element"] = None
                    drawn = "BLOCKS" in arguments
                    logits = drawn or ("rows_ptr" in arguments and arguments.get("states_ptr") is None)
                    if target.backend == "cuda" and logits:
                        loop = longest if drawn else loop
                        cost = per_element(arguments, threads, entry["instructions"], loop, sweeps)
                        entry["an element"] = round(cost, 1)
                    name = f"{variant}: {kernel.__name__}"
                    entry |= {"kernel": name, "dtype": dtype_name, "target": target_name}
                    entry["aligned"] = arguments.get("UNIT", 1) > 1
                    entry["merges"] = arguments.get("states_ptr") is not None and kernel.__name__ == "long_rows"
                    found.append(entry | {"shared": machine.metadata.shared})
    return found


def sum_layouts(variant: str) -> list[str]:
    """The layouts that a kernel's reductions over a row work in, which fix the order of every sum."""
    (call,) = VARIANTS[variant][1](torch.bfloat16)
    text = compiled(*call, TARGETS["sm_90"]).asm["ttgir"]
    named = dict(re.findall(r"^(#\w+) = (#ttg\.blocked<.*>)$", text, re.MULTILINE))
    reductions = re.findall(r'"tt\.reduce".*?\}\) : \((tensor<[^>]*>)', text, re.DOTALL)
    return sorted({re.sub(r"#\w+", lambda name: named.get(name[0], name[0]), kind) for kind in reductions})


def table(found: list[dict]) -> str:
    """The figures as Markdown."""
    lines = [
        "# The Triton kernels' machine code",
        "",
        f"Written by `python tests/triton/aot.py --write` with triton {triton.__version__}, without a GPU; the",
        "tests compare with it. Five signals (loss, entropy, grad_norm, confidence, margin) unless it says all.",
        "`spills`: bytes of local memory (sm) or vector registers spilled (gfx). `wide loads`: 128-bit loads, also",
        "those straight into shared memory. `products`: instructions of the matrix units; float32 has none on NVIDIA,",
        "where they would round it to TF32.",
        "`an element`: warp instructions for 32 logits, in the hot loop of long rows (in all three loops of",
        "`option_rows`), in everything where rows fit into a program, or are walked along by it (`_head_scores`); not",
        "counted for gfx942, nor where `long_rows` only merges what `row_segments` summed, nor for `_cdf`, which reads",
        "no logits. Noise, ensembles and normals: for 32 elements of one draw.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for entry in found:
        cells = ("" if entry[column] is None else str(entry[column]) for column in COLUMNS)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def committed() -> tuple[str, dict[tuple[str, str, str], dict]]:
    """The triton version of the committed table, and its rows by (kernel, dtype, target)."""
    text = TABLE.read_text()
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(COLUMNS) and cells[2] in TARGETS:
            numbers = (float(cell) if cell else None for cell in cells[3:])
            rows[tuple(cells[:3])] = dict(zip(COLUMNS[3:], numbers, strict=True))
    return re.search(r"with triton ([\d.]+)", text)[1], rows


if __name__ == "__main__":
    measured = figures()
    if "--write" in sys.argv:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(table(measured))
    else:
        version, rows = committed()
        report = {
            "version": triton.__version__,
            "measured": measured,
            "committed version": version,
            "committed": [dict(zip(COLUMNS, key, strict=False)) | row for key, row in rows.items()],
            "layouts": {variant: sum_layouts(variant) for variant in ("scores 1000", "scores 1000, few rows")},
        }
        print(json.dumps(report))
