"""SumTree in a file: reopened, killed at any moment, and given what is no such file."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchassay as ta
from torchassay.checks import InputValueError

KILLS = 3 * int(os.environ.get("TORCHASSAY_KILLS", "1"))  # 6 in `make stress`
N = 30_000
UPDATES = """
import sys
import numpy as np
import torchassay as ta

tree = ta.SumTree.open(sys.argv[1])
for step in range(int(sys.argv[2]), 1 << 40):
    tree.update(np.random.default_rng(step).integers(0, len(tree), 2000), np.full(2000, float(step)))
    print(step, flush=True)
"""


def test_a_tree_goes_on_from_its_file(tmp_path):
    weights = np.random.default_rng(1).gamma(0.5, size=N)
    tree, alone = ta.SumTree(weights, path=tmp_path / "tree.npy"), ta.SumTree(weights)
    assert np.array_equal(np.load(tmp_path / "tree.npy"), weights)
    for step in range(3):
        drawn = tree.sample(500, seed=(1, step))
        assert torch.equal(drawn, alone.sample(500, seed=(1, step)))
        assert torch.equal(
            tree.sample(50, seed=step, replacement=False), alone.sample(50, seed=step, replacement=False)
        )
        for each in (tree, alone):
            each.update(drawn, np.arange(500.0))
        tree.flush()
        tree = ta.SumTree.open(tmp_path / "tree.npy")
        assert tree.total == alone.total and tree.positive == alone.positive and tree.nbytes == alone.nbytes
    assert [path.name for path in tmp_path.iterdir()] == ["tree.npy"]
    with pytest.raises(InputValueError) as error:
        ta.SumTree(weights, path=tmp_path / "tree.npy")
    expected = f"a new file, got {tmp_path / 'tree.npy'}, for SumTree.open"
    assert str(error.value) == f"SumTree: path must be {expected}"


def test_a_tree_of_zeros_in_a_file(tmp_path):
    tree = ta.SumTree(5, path=tmp_path / "tree.npy")
    tree.update([3], [2.5])
    assert ta.SumTree.open(str(tmp_path / "tree.npy")).weights().tolist() == [0, 0, 0, 2.5, 0]


def test_what_was_drawn_without_replacement_stays_in_the_file(tmp_path):
    weights = 2.0 ** np.arange(-30, 30)
    tree = ta.SumTree(weights, path=tmp_path / "tree.npy")
    before = (tmp_path / "tree.npy").read_bytes()
    assert len(tree.sample(60, seed=1, replacement=False)) == 60
    assert (tmp_path / "tree.npy").read_bytes() == before


def test_killed_at_any_moment(tmp_path, record_property):
    """Every weight is that of one of its updates: of the last that was through, or of one that was not yet."""
    path, last = tmp_path / "tree.npy", np.zeros(N)
    ta.SumTree(N, path=path)
    known = 0
    for pause in np.random.default_rng(1).uniform(0, 0.04, KILLS):
        command = [sys.executable, "-c", UPDATES, str(path), str(known + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            through = int(process.stdout.readline())
            time.sleep(pause)
            process.kill()
            through = max([through, *map(int, process.stdout)])
        for step in range(known + 1, through + 1):
            last[np.random.default_rng(step).integers(0, N, 2000)] = step
        tree = ta.SumTree.open(path)
        found = tree.weights().numpy()
        under_way = np.zeros(N, bool)
        under_way[np.random.default_rng(through + 1).integers(0, N, 2000)] = True
        later = found == through + 1
        assert np.array_equal(found[~later], last[~later]) and under_way[later].all()
        again = ta.SumTree(found)
        assert tree.total == again.total and np.array_equal(tree._sums, again._sums)
        assert torch.equal(tree.sample(1000, seed=1), again.sample(1000, seed=1))
        last, known = found.copy(), through + 1
    assert known > 5
    record_property("kills", KILLS)


# ---- files that are none


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE = npy(np.ones(100))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "another file"),
        (b"weights\n" * 40, "another file"),
        (WHOLE[:60], "another file"),
        (npy(np.array([{}, {}], object)), "object [2]"),
        (npy(np.ones(4, np.float32)), "float32 [4]"),
        (npy(np.ones(4, np.int64)), "int64 [4]"),
        (npy(np.ones(4, ">f8")), ">f8 [4]"),
        (npy(np.ones((4, 2))), "float64 [4, 2]"),
        (npy(np.ones(0)), "float64 [0]"),
        (WHOLE[:-1], "927 bytes for 100 numbers"),
        (WHOLE[:-800], "128 bytes for 100 numbers"),
        (WHOLE + b"\0", "929 bytes for 100 numbers"),
        (WHOLE.replace(b"(100,)", b"(-10,)"), "float64 [-10]"),
    ],
)
def test_another_file(tmp_path, content, got):
    path = tmp_path / "tree.npy"
    path.write_bytes(content)
    with pytest.raises(InputValueError) as error:
        ta.SumTree.open(path)
    assert str(error.value) == f"SumTree.open: {path} must be a .npy file of float64 [n], got {got}"
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, math.nan, -1], "finite and at least 0, got nan at 2"),
        ([1, -2, 3], "finite and at least 0, got -2.0 at 1"),
        ([math.inf], "finite and at least 0, got inf at 0"),
        ([1e308, 1e308], "of a finite sum, got inf"),
    ],
)
def test_a_file_of_what_is_no_weight(tmp_path, values, message):
    path = tmp_path / "tree.npy"
    path.write_bytes(npy(np.array(values, np.float64)))
    with pytest.raises(InputValueError) as error:
        ta.SumTree.open(path)
    assert str(error.value) == f"SumTree.open: {path} must hold weights {message}"
    with pytest.raises(InputValueError) as error:
        ta.SumTree(values, path=tmp_path / "other.npy")
    assert str(error.value).startswith(f"SumTree: weights must be {message}")
    assert [each.name for each in tmp_path.iterdir()] == ["tree.npy"]  # nothing is left of the other


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ta.SumTree.open(tmp_path / "tree.npy")
    with pytest.raises(FileNotFoundError):
        ta.SumTree(3, path=Path(tmp_path, "none", "tree.npy"))
