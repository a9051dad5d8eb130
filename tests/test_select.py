"""``torchassay select`` against sorting by hand."""

import numpy as np
import pytest
import torch
import torchassay as ta
from click.testing import CliRunner
from torchassay.cli import main

VALUES = np.float32([0.3, 5.0, 0.1, 2.0, 0.7, 1.0, 4.0, 0.2])
ORDER = [1, 6, 3, 5, 4, 0, 7, 2]  # the largest first


def run(*arguments):
    return CliRunner().invoke(main, ["select", *map(str, arguments)])


def kept(path):
    found = np.load(path)
    assert found.dtype == np.int64
    return found.tolist()


@pytest.fixture
def one(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, grad_norm=VALUES, loss=-VALUES, given=np.arange(8) % 2)
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--keep", 0.5), ORDER[:4]),
        (("--keep", 0.5, "--offset", 0.25), ORDER[2:6]),
        (("--keep", 0.5, "--smallest"), ORDER[4:]),
        (("--keep", 0.25, "--offset", 0.125, "--smallest"), ORDER[::-1][1:3]),
        (("--keep", 1), ORDER),
        (("--keep", 0.5, "--by", "loss"), ORDER[4:]),
        # Of the even ones 6, 4, 0, 2 in this order, of the odd ones 1, 3, 5, 7.
        (("--keep", 0.5, "--per-class"), [6, 4, 1, 3]),
        (("--keep", 0.25, "--offset", 0.25, "--per-class"), [4, 3]),
    ],
)
def test_windows(one, tmp_path, arguments, expected):
    out = tmp_path / "keep.npy"
    result = run(one, "--by", "grad_norm", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    assert kept(out) == sorted(expected)
    values = -VALUES[expected] if "loss" in arguments else VALUES[expected]
    name = "loss" if "loss" in arguments else "grad_norm"
    spread = f"({name} {values.min():.4g} to {values.max():.4g})"
    assert result.output == f"kept {len(expected)} of 8 samples {spread}\nwritten: {out}\n"


def test_nothing_kept_is_an_empty_file(one, tmp_path):
    result = run(one, "--by", "loss", "--keep", 0, "--out", tmp_path / "keep.npy")
    assert result.output.startswith("kept 0 of 8 samples\n")
    assert kept(tmp_path / "keep.npy") == []


def test_the_mean_of_files_of_every_kind_each_in_its_own_order(tmp_path):
    """Their means are 3, 2, 1, 4 for the samples 10, 20, 30, 40, which no single file says."""
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    first = {"index": [40, 10, 20, 30], "el2n": [0.0, 9.0, 0.0, 3.0]}
    pyarrow.parquet.write_table(pyarrow.table(first), tmp_path / "a.parquet")
    np.savez(tmp_path / "b.npz", index=np.array([10, 20, 30, 40]), el2n=np.array([0.0, 0.0, 0.0, 3.0]))
    (tmp_path / "c.csv").write_text("el2n,index,name\n6,20,x\n9,40,y\n0,30,z\n0,10,w\n")
    files = [tmp_path / name for name in ("a.parquet", "b.npz", "c.csv")]
    for share, expected in ((0.25, [40]), (0.5, [10, 40]), (0.75, [10, 20, 40])):
        result = run(*files, "--by", "el2n", "--keep", share, "--out", tmp_path / "keep.npy")
        assert result.exit_code == 0, result.output
        assert kept(tmp_path / "keep.npy") == expected
    assert "(el2n 2 to 4)" in result.output


def test_memories_of_several_seeds(tmp_path):
    """The mean of the EL2N of three trainings, as a data diet takes it, then the window of `ta.keep`."""
    pytest.importorskip("pyarrow")
    generator = torch.Generator().manual_seed(0)
    norms = torch.rand(3, 200, generator=generator)
    for seed, values in enumerate(norms):
        memory = ta.SampleMemory(200, {"el2n": "last of grad_norm"})
        memory.update(torch.arange(200), {"grad_norm": values}, 0)
        memory.to_parquet(tmp_path / f"{seed}.parquet")
    files = [tmp_path / f"{seed}.parquet" for seed in range(3)]
    run(*files, "--by", "el2n", "--keep", 0.5, "--offset", 0.05, "--out", tmp_path / "keep.npy")
    order = np.argsort(-norms.double().mean(0).numpy(), kind="stable")
    assert kept(tmp_path / "keep.npy") == sorted(order[10:110])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"grad_norm": VALUES[:5], "given": np.arange(5) % 2}, "{b} must have the 8 samples of {a}, got 5"),
        ({"loss": VALUES}, "{b} must have a column 'grad_norm', got loss"),
        (
            {"grad_norm": np.where(np.arange(8) > 5, np.nan, VALUES)},
            "{b}: column 'grad_norm' must hold no NaN, got 2, the first of sample 6",
        ),
        (
            {"grad_norm": VALUES, "given": np.arange(8) % 2, "index": np.arange(8) + 1},
            "{b}: column 'index' must be that of {a}, got 1 in place of 0",
        ),
        ({"grad_norm": VALUES}, "{b} must have a column 'given', got grad_norm"),
        (
            {"grad_norm": VALUES, "given": np.arange(8) // 4},
            "{b}: column 'given' must be that of {a}, got 0 in place of 1",
        ),
        ({"grad_norm": np.array(["a"] * 8)}, "{b}: column 'grad_norm' must hold a number a sample, got 'a'"),
        ({"grad_norm": VALUES, "rest": VALUES[:3]}, "{b} must have columns of one length, got grad_norm 8, rest 3"),
    ],
)
def test_files_that_do_not_fit(one, tmp_path, other, message):
    path = tmp_path / "b.npz"
    np.savez(path, **other)
    result = run(one, path, "--by", "grad_norm", "--keep", 0.5, "--per-class", "--out", tmp_path / "keep.npy")
    names = {"a": f"'{one}'", "b": f"'{path}'"}
    assert result.output == f"torchassay select: {message.format(**names)}\n"
    assert result.exit_code == 1
    assert not (tmp_path / "keep.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--by", "loss", "--keep", 0.5), 2, "Missing argument 'SCORES...'."),
        (("a.npz", "--keep", 0.5), 2, "Missing option '--by'."),
        (("a.npz", "--by", "loss"), 2, "Missing option '--keep'."),
        (
            ("a.npz", "--by", "loss", "--keep", 1.5),
            2,
            "Invalid value for '--keep': 1.5 is not in the range 0<=x<=1.",
        ),
        (
            ("a.npz", "--by", "loss", "--keep", 0.9, "--offset", 0.2),
            1,
            "offset must be in [0, 1 - fraction], got 0.2 with 0.9",
        ),
        (("none.csv", "--by", "loss", "--keep", 0.5), 1, "'none.csv' must be a file, got none of that name"),
        (
            ("a.npz", "--by", "loss", "--keep", 0.5, "--out", "no/keep.npy"),
            1,
            "could not write to 'no/keep.npy': No such file or directory",
        ),
    ],
)
def test_bad_command_lines(one, monkeypatch, arguments, code, message):
    monkeypatch.chdir(one.parent)
    result = run(*arguments)
    assert (result.output, result.exit_code) == (f"torchassay select: {message}\n", code)
    assert [path.name for path in one.parent.iterdir()] == ["a.npz"]
