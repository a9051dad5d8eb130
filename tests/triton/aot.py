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
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from torchassay.reference.states import NUMBERS, PLAIN
from torchassay.scores import ROW_SIGNALS
from torchassay.triton_kernels import (
    cdf,
    draw_scores,
    head_scores,
    linear_scores,
    option_grads,
    option_scores,
    philox,
    row_grads,
    row_output,
    row_scores,
    row_states,
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
SLOTS = (*ROW_SIGNALS, "stats")
FIVE = ("loss", "entropy", "grad_norm", "confidence", "margin")
SEED = 2**63 - 5  # of 64 bits
COLUMNS = (
    *("kernel", "dtype", "target", "registers", "spills", "shared", "wide loads", "products", "instructions"),
    "an element",
)
PRODUCTS = r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b"  # of NVIDIA's matrix units, from Ampere to Blackwell


def launch(module, function: Callable[[], None]) -> list[tuple]:
    """The kernels that ``function`` would launch: (kernel, arguments by name, launch options)."""
    kernels = {name: value for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    calls = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def record(*args, **options):
                calls.append((self.kernel, dict(zip(self.kernel.arg_names, args, strict=True)), options))

            return record

    try:
        for name, kernel in kernels.items():
            setattr(module, name, Recorder(kernel))
        function()
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
    return calls


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


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory, at address 0, which is a multiple of 16."""
    return torch.empty(shape, dtype=dtype, device="meta")


def outputs(N: int, signals: tuple[str, ...], stats: int) -> list:
    """The slots of these signals; ``stats`` numbers a row for the backward."""
    found = {name: empty(N) for name in SLOTS}
    found |= {"prediction": empty(N, dtype=torch.int64), "stats": empty(stats, N)}
    return [found[name] if name in signals else None for name in SLOTS]


def scores(dtype: torch.dtype, C: int, N: int, signals: tuple[str, ...] = FIVE) -> list[tuple]:
    """The launches of `row_scores`."""
    target, out = empty(N, dtype=torch.int64), outputs(N, signals, 6)
    return launch(row_scores, lambda: row_scores.row_scores(empty(1, N, C, dtype=dtype), target, -100, out))


def asked(options: str, C: int, N: int) -> tuple:
    """Labels, probabilities, weight, label_smoothing, temperature and softcap of N rows."""
    return (
        *((None, empty(N, C)) if "probabilities" in options else (empty(N, dtype=torch.int64), None)),
        empty(C) if "weight" in options else None,
        0.1 if "smoothing" in options else 0.0,
        empty(N) if "of rows" in options else 0.7,
        30.0 if "softcap" in options else 0.0,
    )


def option_launches(dtype: torch.dtype, C: int, options: str, N: int = 65536) -> list[tuple]:
    """The launches of `option_scores`; under a temperature, a weight and a z-loss alone they are `row_scores`'."""
    rows, given, z_loss = empty(1, N, C, dtype=dtype), asked(options, C, N), 1e-4 if "z-loss" in options else 0.0
    swept = any(name in options for name in ("smoothing", "probabilities", "softcap"))
    call = (rows, *given, z_loss, -100, outputs(N, FIVE, 7))
    return launch(option_scores if swept else row_scores, lambda: option_scores.option_scores(*call))


def option_grad_launch(dtype: torch.dtype, C: int, options: str, N: int = 65536) -> list[tuple]:
    """The launch of `option_grads`."""
    rows, out, stats, upstream = empty(1, N, C, dtype=dtype), empty(N, C, dtype=dtype), empty(7, N), empty(N)
    call = (rows, *asked(options, C, N), stats, upstream, upstream, -100, 0, C, out)
    return launch(option_grads, lambda: option_grads.option_grads(*call))


def states(dtype: torch.dtype, C: int, options: str, N: int = 65536) -> list[tuple]:
    """The launches of `row_states` for a slice; without options they are `row_scores`'."""
    smoothing, softcap = 0.1 if "smoothing" in options else 0.0, 30.0 if "softcap" in options else 0.0
    numbers = empty(len(NUMBERS) if smoothing else PLAIN, N)
    k, target = empty(N, dtype=torch.int64), empty(N, dtype=torch.int64)
    rows, weight = empty(1, N, C, dtype=dtype), empty(C) if "weight" in options else None
    call = (rows, target, -100, C, 4 * C, weight, smoothing, 0.7, softcap, numbers, k)
    module = row_states if smoothing or softcap else row_scores
    return launch(module, lambda: row_states.row_states(*call))


def merged(fields: int) -> list[tuple]:
    """The launch of `merge_states`."""
    N = 8192
    parts = empty(4, fields, N), empty(4, N, dtype=torch.int64)
    out = empty(fields, N), empty(N, dtype=torch.int64)
    return launch(row_states, lambda: row_states.merge_states(*parts, 0.7, 0.0, *out))


def finished(fields: int) -> list[tuple]:
    """The launch of `finish_states`."""
    N = 8192
    parts, target = (empty(4, fields, N), empty(4, N, dtype=torch.int64)), empty(N, dtype=torch.int64)
    call = (*parts, target, -100, 151936, None, 0.1 if fields > PLAIN else 0.0, 0.7, 0.0, 0.0, outputs(N, FIVE, 7))
    return launch(row_states, lambda: row_states.finish_states(*call))


def linear(dtype: torch.dtype, large: bool, options: str = "") -> list[tuple]:
    """The launch of `linear_states`, for a GPU that takes the large tiles or not."""
    N, D, V = 8192, 4096, 151936
    head = empty(N, D, dtype=dtype), empty(V, D, dtype=dtype), empty(V, dtype=dtype) if "bias" in options else None
    weight, smoothing = empty(V) if "weight" in options else None, 0.1 if "smoothing" in options else 0.0
    call = (*head, empty(N, dtype=torch.int64), -100, 0, V, weight, smoothing, 0.7, 30.0 if "softcap" in options else 0)
    asked, linear_scores.is_large = linear_scores.is_large, lambda _: large
    try:
        return launch(linear_scores, lambda: linear_scores.linear_states(*call))
    finally:
        linear_scores.is_large = asked


def grads(dtype: torch.dtype, C: int) -> list[tuple]:
    """The launches of `row_grads`."""
    rows, out, stats, upstream = empty(1, 2, C, dtype=dtype), empty(2, C, dtype=dtype), empty(6, 2), empty(2)
    target = empty(2, dtype=torch.int64)
    return launch(row_grads, lambda: row_grads.row_grads(rows, target, stats, upstream, upstream, -100, out))


def shares(midrank: bool) -> list[tuple]:
    """The launch of `cdf`."""
    window, total, values, out = empty(1024), empty(dtype=torch.int64), empty(8192), empty(8192)
    return launch(cdf, lambda: cdf.cdf(window, total, values, midrank, out))


def heads(head: str, dtype: torch.dtype, C: int) -> list[tuple]:
    """The launch of `head_scores`."""
    rows, target, weight = empty(8192, C, dtype=dtype), empty(8192, C), empty(C)
    out = [empty(8192), empty(8192), empty(8192)]
    if head != "binary":
        weight = out[1] = None
    return launch(head_scores, lambda: head_scores.head_scores(rows, target, weight, head, 1.0, out))


def noisy(dtype: torch.dtype, C: int) -> list[tuple]:
    """The launches of `draw_scores` for noise: numbers and ids of each row, everything asked for."""
    N = 128
    row_id, out = empty(N, dtype=torch.int64), [empty(N) for _ in range(3)]
    rows = empty(1, N, C, dtype=dtype)
    return launch(
        draw_scores,
        lambda: draw_scores.draw_scores(rows, empty(N), empty(N), empty(N), row_id, None, SEED, 4, out),
    )


def members(dtype: torch.dtype, C: int) -> list[tuple]:
    """The launches of `draw_scores` for an ensemble."""
    rows, out = empty(4, 1, 128, C, dtype=dtype), [empty(128) for _ in range(3)]
    return launch(draw_scores, lambda: draw_scores.draw_scores(rows, None, 0.0, 1.0, None, None, 0, 4, out))


def numbers(uniform: bool) -> list[tuple]:
    """The launch of `normals`."""
    row_id, out = empty(128, dtype=torch.int64), empty(128, 1024)
    return launch(philox, lambda: philox.normals(row_id, None, SEED, philox.FEATURE_NOISE.value, 1, uniform, out))


EVERY = ("fp16", "bf16", "fp32")
# Every kernel, aligned and not, in these dtypes; five signals unless it says all.
VARIANTS: dict[str, tuple[tuple[str, ...], Callable[[torch.dtype], list[tuple]]]] = {
    "scores 10": (EVERY, lambda dtype: scores(dtype, 10, 65536)),
    "scores 100": (("bf16",), lambda dtype: scores(dtype, 100, 65536)),
    "scores 1000": (EVERY, lambda dtype: scores(dtype, 1000, 65536)),
    "scores 1000, few rows": (("bf16",), lambda dtype: scores(dtype, 1000, 128)),
    "scores 4096": (("bf16",), lambda dtype: scores(dtype, 4096, 65536)),
    "scores 50257": (EVERY, lambda dtype: scores(dtype, 50257, 65536)),
    "scores 151936": (EVERY, lambda dtype: scores(dtype, 151936, 65536)),
    "scores 151936, all": (("bf16",), lambda dtype: scores(dtype, 151936, 65536, SLOTS)),
    "scores 151936, few rows": (("bf16", "fp32"), lambda dtype: scores(dtype, 151936, 16)),
    "grads 100": (("bf16",), lambda dtype: grads(dtype, 100)),
    "grads 50257": (("bf16",), lambda dtype: grads(dtype, 50257)),
    "grads 151936": (EVERY, lambda dtype: grads(dtype, 151936)),
    "temperature 10": (("bf16",), lambda dtype: option_launches(dtype, 10, "temperature")),
    "temperature 1000": (("bf16",), lambda dtype: option_launches(dtype, 1000, "temperature")),
    "temperature 151936": (("bf16", "fp32"), lambda dtype: option_launches(dtype, 151936, "temperature")),
    "temperature 151936, few rows": (("bf16",), lambda dtype: option_launches(dtype, 151936, "temperature", 16)),
    "temperatures of rows, weight, z-loss 151936": (
        ("bf16",),
        lambda dtype: option_launches(dtype, 151936, "temperatures of rows, weight, z-loss"),
    ),
    "weight, smoothing 100": (("bf16",), lambda dtype: option_launches(dtype, 100, "weight, smoothing")),
    "smoothing 151936": (("bf16",), lambda dtype: option_launches(dtype, 151936, "smoothing")),
    "probabilities 1000": (("bf16",), lambda dtype: option_launches(dtype, 1000, "probabilities")),
    "softcap 1000": (("bf16",), lambda dtype: option_launches(dtype, 1000, "softcap")),
    "softcap 151936": (("fp32",), lambda dtype: option_launches(dtype, 151936, "softcap")),
    "temperature grads 151936": (("bf16",), lambda dtype: option_grad_launch(dtype, 151936, "temperature")),
    "probabilities, weight, softcap grads 1000": (
        ("fp32",),
        lambda dtype: option_grad_launch(dtype, 1000, "probabilities, weight, softcap"),
    ),
    "states 10": (("bf16",), lambda dtype: states(dtype, 10, "")),
    "states 1000": (("bf16",), lambda dtype: states(dtype, 1000, "")),
    "states 37984": (("bf16", "fp32"), lambda dtype: states(dtype, 37984, "")),
    "states 37984, weight, smoothing": (("bf16",), lambda dtype: states(dtype, 37984, "weight, smoothing")),
    "states 37984, softcap": (("bf16",), lambda dtype: states(dtype, 37984, "softcap")),
    "states of 4 parts": (("fp32",), lambda _: merged(PLAIN)),
    "states of 4 parts, smoothing": (("fp32",), lambda _: merged(len(NUMBERS))),
    "signals of 4 parts": (("fp32",), lambda _: finished(PLAIN)),
    "signals of 4 parts, smoothing": (("fp32",), lambda _: finished(len(NUMBERS))),
    "linear": (EVERY, lambda dtype: linear(dtype, True)),
    "linear, bias": (("bf16",), lambda dtype: linear(dtype, True, "bias")),
    "linear on Ampere": (("bf16", "fp32"), lambda dtype: linear(dtype, False)),
    "linear on Ampere, bias": (("bf16",), lambda dtype: linear(dtype, False, "bias")),
    "linear, bias, weight, smoothing": (("bf16",), lambda dtype: linear(dtype, True, "bias, weight, smoothing")),
    "linear, bias, softcap": (("bf16",), lambda dtype: linear(dtype, True, "bias, softcap")),
    "linear, all": (("bf16", "fp32"), lambda dtype: linear(dtype, True, "bias, weight, smoothing, softcap")),
    "binary 1": (("fp32",), lambda dtype: heads("binary", dtype, 1)),
    "binary 100": (EVERY, lambda dtype: heads("binary", dtype, 100)),
    "binary 5000": (("bf16",), lambda dtype: heads("binary", dtype, 5000)),
    "mse 100": (("fp32",), lambda dtype: heads("mse", dtype, 100)),
    "l1 100": (("fp32",), lambda dtype: heads("l1", dtype, 100)),
    "huber 100": (("fp32",), lambda dtype: heads("huber", dtype, 100)),
    "noise 10": (("bf16",), lambda dtype: noisy(dtype, 10)),
    "noise 1000": (("bf16",), lambda dtype: noisy(dtype, 1000)),
    "noise 151936": (("bf16", "fp32"), lambda dtype: noisy(dtype, 151936)),
    "ensemble 1000": (("bf16",), lambda dtype: members(dtype, 1000)),
    "ensemble 151936": (("bf16", "fp32"), lambda dtype: members(dtype, 151936)),
    "normals 1024": (("fp32",), lambda _: numbers(False)),
    "uniforms 1024": (("fp32",), lambda _: numbers(True)),
    "cdf 1024": (("fp32",), lambda _: shares(False)),
    "cdf 1024, midrank": (("fp32",), lambda _: shares(True)),
}


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
    for variant, (dtypes, launches) in VARIANTS.items():
        for dtype_name in dtypes:
            for kernel, arguments, options in launches(DTYPES[dtype_name]):
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
