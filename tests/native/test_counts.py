"""counts.py: its table says what was counted, and a change beyond the tolerance is told."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("native_counts", Path(__file__).with_name("counts.py"))
counts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(counts)
BEFORE = {"cdf [9]": (1000, 900), "row_scores fp32 [40, 1000]": (2_000_000, 700_123)}


def test_the_table_is_read_as_it_was_written():
    assert counts.committed(counts.table("GNU 12.2.0", BEFORE)) == ("GNU 12.2.0", BEFORE)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ((1030, 873), []),
        ((1031, 900), ["cdf [9], baseline: 1,000 before, 1,031 now (+3.1%)"]),
        ((1000, 800), ["cdf [9], avx2: 900 before, 800 now (-11.1%)"]),
        (None, ["cdf [9]: only in the table"]),
    ],
)
def test_changes(now, told):
    found = {**BEFORE, "cdf [9]": now} if now else {name: BEFORE[name] for name in BEFORE if name != "cdf [9]"}
    assert counts.changes(BEFORE, found) == told


def test_the_committed_table_has_every_kernel():
    _, table = counts.committed(counts.TABLE.read_text())
    kernels = {name.split()[0] for name in table}
    assert kernels == {
        *("row_scores", "row_grads", "option_scores", "option_grads", "row_states", "merge_states", "finish_states"),
        *("head_scores", "draw_scores", "uniforms", "normals", "cdf", "select_probability"),
        *("sum_tree_build", "sum_tree_update", "sum_tree_sample"),
    }
    assert all(count > 1000 for of_call in table.values() for count in of_call)
