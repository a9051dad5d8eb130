"""The kernels compiled ahead of time for GPUs that need not be there, by aot.py in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AOT = Path(__file__).with_name("aot.py")


@pytest.fixture(scope="module")
def report():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(AOT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def of(entry) -> str:
    return f"{entry['kernel']} {entry['dtype']} {entry['target']}"


def test_every_kernel_compiles_for_every_target(report):
    combinations = {(entry["dtype"], entry["target"]) for entry in report["measured"]}
    assert len(combinations) == 12
    kernels = {entry["kernel"].split(": ")[1] for entry in report["measured"]}
    scores = {"narrow_rows", "short_rows", "long_rows", "row_segments", "option_rows"}
    draws = {"_draw_states", "_mixtures", "_normals"}
    states = {"option_states", "_merge_states", "_finish_states"}
    assert kernels == scores | draws | states | {
        "_linear_states",
        "_row_grads",
        "_option_grads",
        "_head_scores",
        "_cdf",
    }


def test_nothing_spills(report):
    assert [of(entry) for entry in report["measured"] if entry["spills"]] == []


def test_linear_heads_use_the_matrix_units(report):
    """In half precision, and in float32 where a GPU has such that do not round it to TF32."""
    heads = [entry for entry in report["measured"] if entry["kernel"].endswith("_linear_states")]
    assert len(heads) == 31
    for entry in heads:
        wide = entry["dtype"] == "fp32" and entry["target"] != "gfx942"
        assert (entry["products"] == 0) == wide, of(entry)


def test_aligned_rows_are_loaded_by_16_bytes(report):
    """All but the merge of segments, which reads states and one lane of each row, and tiles of a product, of which a
    lane may load less."""
    others = [entry for entry in report["measured"] if "_linear_states" not in entry["kernel"] and not entry["merges"]]
    aligned = [entry for entry in others if entry["aligned"]]
    assert len(aligned) > 40
    assert [of(entry) for entry in aligned if not entry["wide loads"]] == []


def test_registers_and_instructions_are_those_of_the_committed_table(report):
    """Regenerate the table with aot.py --write where a change is meant. Another compiler may differ by a fifth."""
    same = report["version"] == report["committed version"]
    committed = {tuple(row.pop(key) for key in ("kernel", "dtype", "target")): row for row in report["committed"]}
    worse = []
    for entry in report["measured"]:
        row = committed[entry["kernel"], entry["dtype"], entry["target"]]
        registers = row["registers"] + (8 if same else 24)
        if entry["registers"] > registers:
            worse.append(f"{of(entry)}: {entry['registers']} registers, committed {row['registers']:g}")
        if row["an element"] and entry["an element"] > row["an element"] * (1.1 if same else 1.2):
            worse.append(f"{of(entry)}: {entry['an element']} instructions an element, committed {row['an element']}")
    assert worse == []
    assert len(committed) == len(report["measured"])


def test_long_rows_fit_the_budget_of_a_hopper(report):
    """13.5 warp instructions for 32 bf16 logits are what 4.4 TB/s leave time for, twice that in float32."""
    hot = [
        entry
        for entry in report["measured"]
        if entry["target"] in ("sm_90", "sm_100") and "long_rows" in entry["kernel"] and not entry["merges"]
    ]
    assert len(hot) >= 12
    for entry in hot:
        assert entry["an element"] <= (27 if entry["dtype"] == "fp32" else 13.5), of(entry)


def test_both_ways_to_finish_short_rows_reduce_alike(report):
    """The layout of the sums decides their order: with 32 rows a program and with one it must be the same."""
    layouts = report["layouts"]
    assert layouts["scores 1000"] == layouts["scores 1000, few rows"]
    assert layouts["scores 1000"]
