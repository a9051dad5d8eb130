"""``torchassay labels``: from a file or a training to the files it writes, and one line where it cannot."""

import os

import numpy as np
import pytest
import torch
import torchassay as ta
from labelled import hide_cleanlab, run, table
from torchassay import quick_training


@pytest.fixture(autouse=True)
def no_cleanlab(monkeypatch):
    hide_cleanlab(monkeypatch)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "scores must be a file .parquet, .npz, .csv, got '{}'"),
        ("a.npz", None, "'{}' must be a file, got none of that name"),
        ("a.csv", b"", "'{}' must have columns of a value a sample, got none"),
        ("a.csv", b"loss\n", "'{}' must have at least one sample, got none"),
        ("a.csv", b"loss,loss\n1,2\n", "'{}' must be a .csv file that can be read, got: a column twice in line 1"),
        ("a.csv", b"index,loss\n1\n", "'{}' must be a .csv file that can be read, got: 1 values in line 2, not 2"),
        ("a.csv", b"loss\n1\nmuch\n", "'{}': column 'loss' must hold a number a sample, got 'much'"),
        ("a.csv", b"index\n1\n", "'{}' must have a column 'loss', got index"),
        ("a.npz", b"", "'{}' must be a .npz file that can be read, got: No data left in file"),
    ],
)
def test_bad_files_are_one_line_of_the_command(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = run("labels", path, "--out", tmp_path / "out")
    assert result.output == f"torchassay labels: {message.format(path)}\n"
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_files_of_another_kind_than_their_name(tmp_path):
    pytest.importorskip("pyarrow")
    good, start = tmp_path / "good.npz", "torchassay labels: '{}' must be a {} file that can be read, got: "
    np.savez_compressed(good, loss=np.random.default_rng(0).random(1000))
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", loss=np.array([{}], object))
    damaged = bytearray(good.read_bytes())
    damaged[2000:3000] = bytes(1000)
    contents = {
        "cut.npz": good.read_bytes()[:2000],
        "damaged.npz": bytes(damaged),
        "one.npz": (tmp_path / "one.npy").read_bytes(),
        "text.npz": b"loss\n1\n",
        "objects.npz": (tmp_path / "objects.npz").read_bytes(),
        "a.parquet": good.read_bytes(),
        "a.csv": good.read_bytes(),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        result = run("labels", path, "--out", tmp_path / "out")
        assert result.output.startswith(start.format(path, path.suffix)), result.output
        assert result.output.count("\n") == 1 and result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "SCORES or --data must be given, got neither"),
        (("a.csv", "--epochs", 3), 2, "--epochs is for training on --data, but the scores are there: 'a.csv'"),
        (
            ("a.csv", "--corrupt", "labels:0.1"),
            2,
            "--corrupt is for training on --data, but the scores are there: 'a.csv'",
        ),
        (
            ("--data", "digits", "--corrupt", "gauss:0.1"),
            2,
            "--corrupt must be labels:SHARE with SHARE in [0, 1], got 'gauss:0.1'",
        ),
        (
            ("--data", "digits", "--corrupt", "labels:1.5"),
            2,
            "--corrupt must be labels:SHARE with SHARE in [0, 1], got 'labels:1.5'",
        ),
        (
            ("--data", "digits", "--by", "luck"),
            2,
            "Invalid value for '--by': 'luck' is not one of 'loss', 'self_confidence', 'target_margin'.",
        ),
        (("--data", "digitz"), 1, "data must be digits or a .npz file, got 'digitz'"),
        (("--data", "none.npz"), 1, "'none.npz' must be a file, got none of that name"),
    ],
)
def test_bad_command_lines(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = run("labels", *arguments)
    assert (result.output, result.exit_code) == (f"torchassay labels: {message}\n", code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((3, 2))}, "'{}' must have a column 'y_train', got x_train"),
        (
            {"x_train": np.zeros((3, 2)), "y_train": [0, 1]},
            "'{}' must have columns of one length, got x_train 3, y_train 2",
        ),
        (
            {"x_train": np.zeros(3), "y_train": [0, 1, 0]},
            "'{}': x_train must hold numbers of shape (N, ...), got float64 of shape (3,)",
        ),
        ({"x_train": np.full((3, 2), np.nan), "y_train": [0, 1, 0]}, "'{}': x_train must be finite, got nan"),
        (
            {"x_train": np.zeros((3, 2)), "y_train": [0, -1, 0]},
            "'{}': column 'y_train' must hold integers of at least 0, got -1",
        ),
        (
            {"x_train": np.zeros((3, 2)), "y_train": [0, 3, 0]},
            "'{}': y_train must hold classes 0, 1, ..., of which there are no more than samples (3), got 3",
        ),
    ],
)
def test_bad_data(tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    result = run("labels", "--data", path, "--out", tmp_path / "out")
    assert (result.output, result.exit_code) == (f"torchassay labels: {message.format(path)}\n", 1)


def test_a_place_that_cannot_be_written_to(tmp_path):
    np.savez(tmp_path / "a.npz", loss=[1.0])
    result = run("labels", tmp_path / "a.npz", "--out", tmp_path / "a.npz")
    assert result.output == f"torchassay labels: could not write to '{tmp_path / 'a.npz'}': File exists\n"
    assert result.exit_code == 1
    more = run("labels", "--data", "digits", "--folds", 9999, "--out", tmp_path / "out")
    assert more.output == "torchassay labels: folds must be from 1 to the samples' number, got 9999\n"


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", loss=[1.0, 2.0])
    (tmp_path / "labels.csv").write_text("mine")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run("labels", tmp_path / "a.npz", "--out", tmp_path)
    assert result.output == f"torchassay labels: could not write to '{tmp_path}': No space left on device\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "labels.csv"]
    assert (tmp_path / "labels.csv").read_text() == "mine"


def test_digits_with_a_fifth_of_the_labels_flipped(tmp_path):
    """The command finds them, and what it writes says the same as what it prints; labels.csv is counted by hand."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread
    from sklearn.datasets import load_digits

    arguments = ("labels", "--data", "digits", "--corrupt", "labels:0.2", "--epochs", 5)
    result = run(*arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = table(tmp_path / "labels.csv")
    target = load_digits().target
    assert sorted(int(row["index"]) for row in rows) == list(range(1797))
    assert all(int(row["true"]) == target[int(row["index"])] for row in rows)
    wrong = [row["given"] != row["true"] for row in rows]
    assert 0.15 < sum(wrong) / 1797 < 0.21  # a tenth of what is drawn is the old label
    assert sum(wrong[:50]) / 50 > 0.8
    for k in (10, 50, 100, sum(wrong)):
        assert f"precision at {k:>3}: {sum(wrong[:k]) / k:.1%}\n" in result.output
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert "flatter" in result.output
    page = imread(tmp_path / "worst.png")
    assert page[..., :3].min() == 0 and page[..., :3].max() == 1 and 0.2 < page[..., :3].mean() < 0.8
    again = run(*arguments, "--out", tmp_path / "again")
    assert table(tmp_path / "again" / "labels.csv") == rows
    assert again.stdout.partition("\nwritten: ")[0] == result.stdout.partition("\nwritten: ")[0]


def test_folds_score_samples_by_models_that_have_not_seen_them(tmp_path):
    """Random labels of random vectors: who has seen them learns them, who has not stays at the level of chance."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((120, 400)).astype(np.float32), np.arange(120) % 3
    data = quick_training.Data(x, y, None)
    seen = quick_training.train(data, epochs=12, seed=0)
    unseen = quick_training.train(data, epochs=12, seed=0, folds=4)
    assert seen["loss_last"].mean() < 0.3
    assert unseen["loss_last"].mean() > 1.0
    for found in (seen, unseen):
        probabilities = found["pred_probs"].double()
        torch.testing.assert_close(probabilities.sum(1), torch.ones(120, dtype=torch.float64), rtol=0, atol=1e-6)
        assert all(values.isfinite().all() for values in found.values())
    hits = [(found["pred_probs"].argmax(1).numpy() == y).mean() for found in (seen, unseen)]
    assert hits[0] > 0.95 and hits[1] < 0.6


def test_own_data_from_a_file_with_and_without_scores(tmp_path):
    rng = np.random.default_rng(0)
    true = np.arange(90) % 3
    given = np.where(np.arange(90) % 10 == 0, (true + 1) % 3, true)
    x = (rng.standard_normal((90, 4, 4)) + 5 * np.eye(16)[true].reshape(90, 4, 4)).astype(np.float32)
    path = tmp_path / "data.npz"
    np.savez(path, x_train=x, y_train=given, y_train_true=true, x_test=x[:5], y_test=true[:5])
    state = torch.get_rng_state()
    result = run("labels", "--data", path, "--epochs", 20, "--folds", 3, "--out", tmp_path / "trained")
    assert result.exit_code == 0, result.output
    assert torch.equal(torch.get_rng_state(), state)
    assert "wrong labels: 9 of 90 (10.0%)" in result.output
    assert sum(row["wrong"] == "1" for row in table(tmp_path / "trained" / "labels.csv")[:9]) >= 8
    assert "flatter" not in result.output
    np.savez(tmp_path / "scores.npz", loss=np.arange(90.0))
    result = run("labels", tmp_path / "scores.npz", "--data", path, "--out", tmp_path / "scored")
    assert result.exit_code == 0, result.output
    rows = table(tmp_path / "scored" / "labels.csv")
    assert [int(row["given"]) for row in rows] == given[::-1].tolist()
    assert [int(row["true"]) for row in rows] == true[::-1].tolist()
    np.savez(tmp_path / "own.npz", loss=np.arange(90.0), given=(true + 2) % 3)
    assert run("labels", tmp_path / "own.npz", "--data", path, "--out", tmp_path / "own").exit_code == 0
    rows = table(tmp_path / "own" / "labels.csv")
    assert [int(row["given"]) for row in rows] == ((true + 2) % 3)[::-1].tolist()  # as those scores were made


def test_flipping_is_that_of_corrupt():
    data = quick_training.Data(np.zeros((1000, 1)), np.arange(1000) % 5, None)
    found = quick_training.flip(data, 0.3, seed=4)
    given = torch.from_numpy(data.given)
    corrupted = ta.data.corrupt(torch.utils.data.TensorDataset(given, given), "labels", 0.3, seed=4, targets=given)
    assert found.true.tolist() == data.given.tolist()
    assert (found.given != found.true).tolist() == corrupted.changed.tolist()
    known = quick_training.flip(data._replace(true=data.given * 0), 0.3, seed=4)
    assert not known.true.any() and known.given.tolist() == found.given.tolist()
