"""The machine code of the native CUDA kernels, read out of the built module by static.py; no GPU is needed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sass
from torchassay.backends import native

STATIC = Path(__file__).with_name("static.py")
CUOBJDUMP = sass.find_cuobjdump()
DTYPES = "fp16", "bf16", "fp32"
WITHOUT_LOGITS = (  # kernel, lanes
    *(("mean_entropies", ""), ("cdf_values", "32"), ("cdf_values", "256"), ("row_uniforms", "")),
    *(("column_numbers", ""), ("merge_parts", ""), ("finish_parts", "")),
)


@pytest.fixture(scope="module")
def report():
    if not getattr(native, "cuda", False):
        pytest.skip("the extension is built without CUDA kernels")
    if CUOBJDUMP is None:
        pytest.skip("no cuobjdump: neither the triton package nor a CUDA toolkit is there")
    done = subprocess.run([sys.executable, str(STATIC)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def key(row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("kernel", "under", "dtype", "unit", "lanes", "target"))


def of(row) -> str:
    return " ".join(key(row))


def test_every_kernel_is_there_for_every_architecture(report):
    instances = {("short_rows", unit, "1-32") for unit in ("16", "8", "anywhere")}
    instances |= {("long_rows", unit, lanes) for unit in ("16", "anywhere") for lanes in ("32", "256")}
    instances |= {(kernel, unit, "256") for unit in ("16", "anywhere") for kernel in ("row_spans", "finish_rows")}
    under = {(kernel, under, *rest) for kernel, *rest in instances for under in ("", "options", "states")}
    sweeps = ("options", "16"), ("options", "anywhere"), ("softcap", "anywhere")
    sweeps += ("states", "16"), ("states", "anywhere"), ("states, softcap", "anywhere")
    under |= {("swept_rows", *sweep, lanes) for sweep in sweeps for lanes in ("8", "32", "256")}
    under |= {("grad_vectors", under, "", "") for under in ("", "options", "softcap")}
    under |= {
        (kernel, "", kind, "8-256") for kind in ("noise", "ensemble") for kernel in ("draw_states", "draw_mixtures")
    }
    under |= {(f"{head}_samples", "", "anywhere", "1-32") for head in ("binary", "mse", "l1", "huber")}
    targets = {row["target"] for row in report["measured"]}
    expected = {(kernel, what, dtype, *rest, at) for kernel, what, *rest in under for dtype in DTYPES for at in targets}
    expected |= {(kernel, "", "", "", lanes, at) for kernel, lanes in WITHOUT_LOGITS for at in targets}
    found = [key(row) for row in report["measured"]]
    assert targets and sorted(found) == sorted(expected)


def test_no_local_memory_no_atomics_no_double_precision(report):
    """Neither spills nor arrays that are indexed at run time, sums in a fixed order, and nothing at 1/64 the speed."""
    assert [f"{of(row)}: {', '.join(row['faults'])}" for row in report["measured"] if row["faults"]] == []


def test_aligned_rows_are_loaded_by_16_bytes(report):
    """As many at once as the source says: a lane's row, two spans of four vectors, one span, a vector."""
    for row in report["measured"]:
        at_once = {"short_rows": 8 if row["dtype"] == "fp32" else 4, "long_rows": 8, "row_spans": 4}
        if row["dtype"] and row["unit"] in ("16", ""):
            assert row["wide loads"] >= at_once.get(row["kernel"], 1), of(row)


def test_no_barrier_in_the_hot_loops(report):
    assert [of(row) for row in report["measured"] if row["barriers in the loop"]] == []


def test_registers_and_instructions_are_those_of_the_committed_table(report):
    """Regenerate the table with static.py --write where a change is meant. Another nvcc may differ by a fifth."""
    same = report["release"] == report["committed release"]
    committed = {key(row): row for row in report["committed"]}
    known = [row for row in report["measured"] if row["target"] in {target for *_, target in committed}]
    worse = []
    for row in known:
        before = committed[key(row)]
        if row["registers"] > before["registers"] + (8 if same else 24):
            worse.append(f"{of(row)}: {row['registers']} registers, committed {before['registers']:g}")
        for column in ("an element", "C = 100"):
            assert (row[column] is None) == (before[column] is None), of(row)
            if before[column] and row[column] > before[column] * (1.1 if same else 1.2):
                worse.append(f"{of(row)}: {row[column]} instructions, {column}, committed {before[column]}")
    assert worse == []


def test_long_rows_fit_the_budget_of_a_hopper(report):
    """13.5 warp instructions for 32 bf16 logits are what 4.4 TB/s leave time for, twice that in float32."""
    hot = [row for row in report["measured"] if row["kernel"] == "long_rows"]
    for row in hot:
        half = 11.5 if row["unit"] == "16" else 13.5
        assert row["an element"] <= (24 if row["dtype"] == "fp32" else half), of(row)


def test_noise_costs_what_random_numbers_cost(report):
    """Philox's 70 instructions for four columns, 26 for a normal, then the softmax: compute-bound, and no more."""
    for row in report["measured"]:
        if row["kernel"] in ("draw_states", "draw_mixtures"):
            assert row["an element"] <= (64 if row["unit"] == "noise" else 24), of(row)


# ---- the guards themselves

PLANTED = """
extern "C" __global__ void indexed(const float* x, const int* at, float* out) {
    float a[32];
    for (int i = 0; i < 32; ++i) a[at[i] & 31] = x[i];
    out[threadIdx.x] = a[at[threadIdx.x] & 31];
}
extern "C" __global__ void spilled(const float* x, float* out) {
    float a[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) a[i] = x[i * 32 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; ++i) out[i * 32 + threadIdx.x] = a[i] * a[63 - i];
}
extern "C" __global__ void added(const float* x, float* out) { atomicAdd(out, x[threadIdx.x]); }
extern "C" __global__ void doubled(const double* x, double* out) { out[threadIdx.x] = x[threadIdx.x] * 3.0; }
extern "C" __global__ void fine(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x] * 3.0f; }
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.skipif(CUOBJDUMP is None, reason="no cuobjdump")
def test_planted_faults_are_found(tmp_path):
    source, cubin = tmp_path / "planted.cu", tmp_path / "planted.cubin"
    source.write_text(PLANTED)
    subprocess.run(["nvcc", "-cubin", "-arch=sm_80", "-maxrregcount=32", "-o", cubin, source], check=True)
    kernels = {kernel.name: kernel for kernel in sass.read(CUOBJDUMP, cubin)}
    assert {kernel.target for kernel in kernels.values()} == {"sm_80"}
    faults = {name: " ".join(kernel.faults()) for name, kernel in kernels.items()}
    assert kernels["indexed"].local >= 128 and "bytes of local memory" in faults["indexed"]
    assert kernels["spilled"].local > 0 and "instructions: local memory" in faults["spilled"]
    assert "atomics" in faults["added"] and "double precision" in faults["doubled"]
    assert faults["fine"] == ""


def listing(*lines: str) -> str:
    """Instructions as cuobjdump prints them, at 0x00, 0x10, ..."""
    return "".join(
        f"        /*{i * 16:04x}*/                   {line} ;     /* 0x000000ff00017624 */\n"
        "                                                   /* 0x000fe400078e00ff */\n"
        for i, line in enumerate(lines)
    )


# A loop over rows [0x10, 0xe0], in it one over vectors [0x40, 0x60] of which a part may be skipped, a guarded
# reduction [0x90, 0xa0] and a slow way around [0xc0]; behind it an end and what cannot be reached.
LOOPS = listing(
    "MOV R1, c[0x0][0x28]",  # 00
    "LDG.E.128 R4, desc[UR4][R2.64]",  # 10
    "@P0 BRA 0x40",  # 20
    "CALL.REL.NOINC 0x110",  # 30
    "MUFU.EX2 R5, R4",  # 40
    "FADD R6, R6, R5",  # 50
    "@!P1 BRA P2, 0x40",  # 60
    "NOP",  # 70
    "BRA.U !UP0, 0xb0",  # 80
    "SHFL.BFLY PT, R7, R6, R8, 0x1f",  # 90
    "@P4 BRA 0x90",  # a0
    "@P5 BRA 0xe0",  # b0
    "FADD R6, R6, R7",  # c0
    "NOP",  # d0
    "@P3 BRA 0x10",  # e0
    "@!P0 EXIT",  # f0
    "EXIT",  # 100
    "RET.REL.NODEC R16 0x0",  # 110
    "BRA 0x120",  # 120
)


def test_loops_of_a_known_listing():
    flow = sass.Flow(sass.instructions(LOOPS))
    assert flow.loops.keys() == {0x10, 0x40, 0x90}
    assert flow.loops[0x40] == {0x40} and flow.loops[0x90] == {0x90}
    assert 0x30 in flow.loops[0x10] and 0xE0 in flow.loops[0x10]
    assert not {0xF0, 0x110, 0x120} & flow.loops[0x10]
    assert {0x110, 0x120}.isdisjoint(flow.blocks)


def test_the_passes_of_a_known_listing():
    """One way for each number of shuffles, without the call."""
    flow = sass.Flow(sass.instructions(LOOPS))
    ways = sass.passes(flow, flow.loops[0x10], 0x10, lambda line: (-("CALL" in line),))
    assert {key: (way.rank, way.instructions) for key, way in ways.items()} == {(1, 0): ((0,), 8), (1, 1): ((0,), 10)}
    assert 0x90 not in ways[1, 0].blocks and 0xC0 not in ways[1, 0].blocks
    longest = sass.passes(flow, flow.loops[0x10], 0x10, lambda line: ("CALL" in line or "FADD" in line,))
    assert longest[1, 1].rank == (3,) and longest[1, 1].instructions == 12


def test_jumps_that_are_not_looked_through_are_refused():
    with pytest.raises(ValueError, match="BRX"):
        sass.Flow(sass.instructions(listing("BRX R4 -0x150", "EXIT")))


def test_a_library_for_two_architectures():
    parts = [
        f"\nFatbin elf code:\n================\narch = {target}\n\nResource usage:\n Common:\n  GLOBAL:0\n"
        f" Function k:\n  REG:{registers} STACK:8 SHARED:16 LOCAL:4 CONSTANT[0]:512 TEXTURE:0 SURFACE:0 SAMPLER:0\n\n"
        f'\tcode for {target}\n\t.target\t{target}\n\n\t\tFunction : k\n\t.headerflags\t@"EF_CUDA_SM80"\n{body}'
        for target, registers, body in (("sm_80", 20, LOOPS), ("sm_90", 30, listing("EXIT", "NOP")))
    ]
    first, second = sass.kernels("".join(parts))
    assert (first.target, first.registers, first.local, first.shared) == ("sm_80", 20, 12, 16)
    assert (second.target, second.registers, len(second.code)) == ("sm_90", 30, 1)
    assert first.count("LDG") == 1 and first.faults() == ["12 bytes of local memory"]
