"""Label reports against rankings, counts and files made by hand."""

import builtins
import csv
import doctest
import math
import os
import sys
import types

import numpy as np
import pytest
import torch
import torchassay as ta
from click.testing import CliRunner
from torchassay import labels, quick_training
from torchassay.checks import InputTypeError, InputValueError
from torchassay.cli import main

# Six samples, of which 1, 4 and 5 have wrong labels.
LOSS = [0.1, 2.0, 0.3, 1.0, 4.0, 0.2]
MARGIN = [0.9, -0.2, 0.5, -0.6, -0.9, 0.7]
GIVEN = [0, 1, 2, 0, 1, 2]
TRUE = [0, 2, 2, 0, 0, 1]
COLUMNS = {"loss": np.float32(LOSS), "target_margin": np.float32(MARGIN), "given": np.array(GIVEN)}
BY_LOSS = [4, 1, 3, 2, 5, 0]


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def without(monkeypatch, *missing):
    """As if these packages were not installed."""
    real = builtins.__import__

    def imported(name, *rest):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", imported)


@pytest.fixture(autouse=True)
def no_cleanlab(monkeypatch):
    """Whether cleanlab is installed must not matter, but to the tests that want it."""
    for name in ("cleanlab", "cleanlab.filter", "cleanlab.rank"):
        monkeypatch.setitem(sys.modules, name, None)


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_docstring_example():
    result = doctest.testmod(labels)
    assert result.attempted >= 4 and result.failed == 0


def test_ranking_by_each_signal():
    assert labels.report(COLUMNS).order.tolist() == BY_LOSS
    assert labels.report(COLUMNS, by="target_margin").order.tolist() == [4, 3, 1, 2, 5, 0]
    found = labels.report(COLUMNS, by="self_confidence")
    assert found.order.tolist() == BY_LOSS
    np.testing.assert_allclose(found.table["self_confidence"], np.exp(-np.float32(LOSS)[BY_LOSS]), rtol=1e-6)
    assert found.table["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found.table["given"].tolist() == [1, 1, 0, 2, 2, 0]
    assert list(found.table) == ["rank", "index", "loss", "self_confidence", "target_margin", "given"]


def test_equal_losses_keep_the_order_and_unseen_samples_are_left_out():
    found = labels.report({"loss": torch.tensor([1.0, torch.nan, 2.0, 1.0, torch.inf, 2.0])})
    assert found.order.tolist() == [4, 2, 5, 0, 3]
    assert "1 samples without a value of 'loss' are left out." in found.notes
    assert not any("left out" in note for note in labels.report(COLUMNS).notes)


def test_a_loss_far_below_zero_is_ranked_without_a_warning():
    """A density's -log p; found by tests/properties."""
    found = labels.report({"loss": np.array([3.0, -710.0, 1.0])})
    assert found.order.tolist() == [0, 2, 1] and found.table["self_confidence"][2] == math.inf


def test_self_confidence_is_the_best_there_is():
    probabilities = np.array([[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    every = {"loss": [1.0, 2.0, 3.0], "loss_last": [0.5, 0.0, 0.7], "given": np.array([0, 0, 1])}

    def ranked(**columns):
        found = labels.report(every | columns, by="self_confidence")
        return found.order.tolist(), sorted(found.table["self_confidence"].tolist())

    order, values = ranked()
    assert order == [2, 0, 1] and values == pytest.approx([math.exp(-0.7), math.exp(-0.5), 1.0])
    assert ranked(pred_probs=probabilities) == ([0, 2, 1], [0.2, 0.6, 0.7])
    assert ranked(pred_probs=probabilities, self_confidence=[0.3, 0.2, 0.1]) == ([2, 1, 0], [0.1, 0.2, 0.3])


def test_precision_by_hand():
    """Of 4, 1, 3, 2, 5, 0 the samples 4, 1 and 5 are wrong."""
    found = labels.report(COLUMNS, true=TRUE, k=(1, 4, 5, 6, 7))
    assert found.table["wrong"].tolist() == [1, 1, 0, 0, 1, 0]
    assert found.precision == {1: 1.0, 3: 2 / 3, 4: 0.5, 5: 0.6, 6: 0.5}  # 3: as many as are wrong; of 7 there are none
    assert labels.report(COLUMNS, true=torch.tensor(TRUE), k=2).precision == {2: 1.0, 3: 2 / 3}
    assert labels.report(COLUMNS, true=GIVEN, k=2).precision == {2: 0.0}
    assert labels.report(COLUMNS, k=2).precision == {}
    lines = found.text(rows=2).splitlines()
    assert lines[0].split() == list(found.table)
    assert lines[1].split() == ["1", "4", "4", "0.01832", "-0.9", "1", "0", "1"]
    assert lines[3:6] == [
        "",
        "wrong labels: 3 of 6 (50.0%), which is the precision of blind picks",
        "precision at 1: 100.0%",
    ]


def test_the_warning_is_there_unless_the_scores_are_out_of_sample():
    assert labels.IN_SAMPLE in labels.report(COLUMNS).text()
    assert labels.IN_SAMPLE not in labels.report(COLUMNS, in_sample=False).text()
    assert "flatter" in labels.IN_SAMPLE and "--folds 5" in labels.IN_SAMPLE


def test_rows_are_named_by_their_index():
    """A table in an order of its own, of some of the samples: labels and images are those of the index."""
    images = np.zeros((6, 2, 2), np.uint8)
    every = {"index": np.array([5, 1, 4]), "loss": [0.2, 2.0, 4.0]}
    found = labels.report(every, given=GIVEN, true=torch.tensor(TRUE, dtype=torch.int32), images=images)
    assert found.order.tolist() == [4, 1, 5]
    assert found.table["given"].tolist() == [1, 1, 2]
    assert found.table["true"].tolist() == [0, 2, 1]


@pytest.fixture
def memory():
    found = ta.SampleMemory(6, {"loss": "mean", "target_margin": "last"})
    for step, scale in enumerate((0.5, 1.5)):
        scores = {"loss": scale * torch.tensor(LOSS), "target_margin": torch.tensor(MARGIN)}
        found.update(torch.arange(6), scores, step)
    return found


@pytest.mark.parametrize("kind", ["memory", "scores", "parquet", "npz", "csv"])
def test_every_kind_of_scores_gives_the_same_report(memory, tmp_path, kind):
    columns = {"loss": torch.tensor(LOSS), "target_margin": torch.tensor(MARGIN)}
    path = tmp_path / f"scores.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        memory.to_parquet(path)
    elif kind == "npz":
        np.savez(path, **columns, seed=3)
    elif kind == "csv":
        rows = [f"{i},{loss},{margin},b{i}.png" for i, (loss, margin) in enumerate(zip(LOSS, MARGIN, strict=True))]
        path.write_text("\n".join(["index,loss,target_margin,file", *reversed(rows)]) + "\n")
    else:
        path = {"memory": memory, "scores": ta.Scores(columns)}[kind]
    found = labels.report(path, given=GIVEN, true=TRUE, k=4)
    expected = labels.report(COLUMNS, true=TRUE, k=4)
    assert list(found.table) == list(expected.table)
    for name, values in expected.table.items():
        np.testing.assert_allclose(found.table[name], values, rtol=1e-6)
    assert found.precision == expected.precision


def test_a_run_of_a_comparison_has_its_labels_and_images(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "runs").mkdir()
    extra = {"picks": np.arange(6, dtype=np.int32), "true": np.array(TRUE), "corrupted": np.array(GIVEN) != TRUE}
    np.savez(tmp_path / "runs" / "sgd.npz", **COLUMNS, **extra)
    np.savez(tmp_path / "data.npz", images=np.zeros((3, 2, 2), np.uint8))  # of the first samples only
    found = labels.report(tmp_path / "runs" / "sgd.npz", out=tmp_path / "out")
    assert found.precision == {3: 2 / 3}
    assert [path.name for path in found.written][-1] == "worst.png"


def test_what_is_written_reads_back_the_same(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("matplotlib")
    columns = COLUMNS | {"target_margin": np.float32([0.9, np.nan, *MARGIN[2:]])}
    before = {name: values.copy() for name, values in columns.items()}
    images = np.arange(6 * 4, dtype=np.float32).reshape(6, 1, 2, 2)
    found = labels.report(columns, true=TRUE, images=images, out=tmp_path / "new" / "out", k=2)
    assert [path.name for path in found.written] == ["labels.csv", "labels.parquet", "worst.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [path.name for path in found.written]
    rows = table(found.written[0])
    assert list(rows[0]) == list(found.table)
    assert [int(row["index"]) for row in rows] == BY_LOSS
    assert np.float32([row["loss"] for row in rows]).tolist() == found.table["loss"].tolist()
    assert rows[1]["target_margin"] == ""
    for path in found.written[:2]:
        again = labels.report(path, k=2)
        assert again.precision == found.precision
        assert list(again.table) == list(found.table)
        for name, values in found.table.items():
            np.testing.assert_allclose(again.table[name], values, rtol=1e-8)
    for name, values in before.items():
        np.testing.assert_array_equal(columns[name], values)


def test_thumbnails_stand_in_the_order_of_suspicion(tmp_path, monkeypatch):
    """Tiles of one grey each: their greys on the page, read in reading order, are those of the ranking."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    pages = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (pages.append(figure), path.write_bytes(b"")))
    grey = np.uint8([0, 50, 100, 150, 200, 250])
    labels.report(COLUMNS, true=TRUE, images=np.repeat(grey, 4).reshape(6, 2, 2), out=tmp_path)
    colored = np.zeros((6, 3, 2, 2), np.uint8)
    colored[:, 1] = grey[:, None, None]
    labels.report({"loss": LOSS}, images=torch.from_numpy(colored), out=tmp_path)
    (greys, labelled), (colors, numbered) = [(page.axes[0].images, page.axes[0].texts) for page in pages]
    assert [int(image.get_array()[0, 0] * 255 + 0.5) for image in greys] == grey[BY_LOSS].tolist()
    assert [text.get_text() for text in labelled] == [
        *("1:  1 → 0", "2:  1 → 2", "3:  0 → 0", "4:  2 → 2", "5:  2 → 1", "6:  0 → 0")
    ]
    wrong, right = labelled[0].get_color(), labelled[2].get_color()
    assert wrong != right
    assert [text.get_color() for text in labelled] == [wrong, wrong, right, right, wrong, right]
    assert [image.get_array()[0, 0].tolist() for image in colors] == [[0, g / 255, 0] for g in grey[BY_LOSS]]
    assert [text.get_text() for text in numbered] == [f"{rank}:  {i}" for rank, i in enumerate(BY_LOSS, 1)]
    lefts, tops = zip(*[(image.get_extent()[0], image.get_extent()[3]) for image in greys], strict=True)
    assert sorted(lefts) == list(lefts) and len(set(lefts)) == 6 and set(tops) == {0}
    assert all(text.get_position()[1] < top for text, top in zip(labelled, tops, strict=True))  # y grows downwards
    assert "given → true label" in pages[0].get_suptitle() and "number of the sample" in pages[1].get_suptitle()


def test_missing_extras_leave_their_file_out(tmp_path, monkeypatch):
    without(monkeypatch, "pyarrow", "matplotlib")
    found = labels.report(COLUMNS, images=np.zeros((6, 2, 2)), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
    assert found.notes[-2:] == [
        'labels.parquet needs pyarrow: pip install "torchassay[io]"',
        'worst.png needs matplotlib: pip install "torchassay[plot]"',
    ]
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ImportError) as error:
        labels.report(tmp_path / "a.parquet")
    expected = f"labels.report: '{tmp_path / 'a.parquet'}' needs pyarrow: pip install \"torchassay[io]\""
    assert str(error.value) == expected


PROBABILITIES = np.array([[0.9, 0.1, 0], [0, 0.2, 0.8], [0, 0, 1], [0.5, 0.4, 0.1], [0.6, 0.4, 0], [0.1, 0.3, 0.6]])


def test_cleanlab_gets_labels_and_probabilities_in_the_order_of_the_table(monkeypatch):
    def quality(labels, pred_probs):
        return pred_probs[np.arange(len(labels)), labels]

    def issues(labels, pred_probs, *, n_jobs):
        assert n_jobs == 1
        return pred_probs.argmax(1) != labels

    modules = {name: types.ModuleType(name) for name in ("cleanlab", "cleanlab.filter", "cleanlab.rank")}
    modules["cleanlab.filter"].find_label_issues = issues
    modules["cleanlab.rank"].get_label_quality_scores = quality
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    found = labels.report(COLUMNS | {"pred_probs": PROBABILITIES})
    assert found.table["label_quality"].tolist() == [0.4, 0.2, 0.5, 1.0, 0.6, 0.9]
    assert found.table["label_issue"].tolist() == [1, 1, 0, 0, 0, 0]
    assert found.table["belief"].tolist() == [0, 2, 0, 2, 2, 0]
    assert found.notes[-1] == "cleanlab takes 2 labels for wrong: column label_issue."


def test_without_cleanlab_or_probabilities_the_report_says_what_is_missing():
    assert labels.report(COLUMNS | {"pred_probs": PROBABILITIES}).notes[-1] == (
        'cleanlab can say how many labels are wrong: pip install "torchassay[clean]"'
    )
    assert labels.report(COLUMNS).notes[-1] == (
        "self_confidence is cleanlab's label quality; its find_label_issues needs given and pred_probs."
    )


def test_with_cleanlab_itself(monkeypatch):
    for name in ("cleanlab", "cleanlab.filter", "cleanlab.rank"):
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("cleanlab")
    true = np.arange(300) % 3
    given = np.where(np.arange(300) < 30, (true + 1) % 3, true)
    probabilities = np.eye(3)[true] * 0.94 + 0.02
    found = labels.report({"loss": np.arange(300.0), "pred_probs": probabilities}, given=given, true=true)
    assert found.table["label_issue"].tolist() == found.table["wrong"].tolist()
    np.testing.assert_allclose(found.table["label_quality"], np.where(found.table["wrong"] == 1, 0.02, 0.96))


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (COLUMNS, {"by": "entropy"}, "by must be one of loss, self_confidence, target_margin, got 'entropy'"),
        (COLUMNS, {"k": 0}, "k must be at least 1, got 0"),
        ({"entropy": [1.0]}, {}, "scores must have a column 'loss', got entropy"),
        ({"loss": [1.0]}, {"by": "target_margin"}, "scores must have a column 'target_margin', got loss"),
        (
            {"entropy": [1.0]},
            {"by": "self_confidence"},
            "scores must have a column 'self_confidence', 'loss_last' or 'loss', got entropy",
        ),
        ({"loss": [np.nan]}, {}, "scores: column 'loss' must hold a number for some sample, got NaN only"),
        ({}, {}, "scores must have columns of a value a sample, got none"),
        ({"loss": []}, {}, "scores must have at least one sample, got none"),
        (
            {"loss": [1.0], "given": [1, 2]},
            {},
            "scores must have columns of one length, got loss 1, given 2",
        ),
        (
            {"loss": [[1.0]]},
            {},
            "scores: column 'loss' must hold a number a sample, got float64 of shape (1, 1)",
        ),
        ({"loss": ["1", "x"]}, {}, "scores: column 'loss' must hold a number a sample, got 'x'"),
        (
            {"loss": [1.0, 2.0], "index": [3, 3]},
            {},
            "scores: column 'index' must name each sample once, got one twice",
        ),
        (
            {"loss": [1.0, 2.0], "index": [-1, 3]},
            {},
            "scores: column 'index' must hold integers of at least 0, got -1",
        ),
        (
            {"loss": [1.0], "given": [0.5]},
            {},
            "scores: column 'given' must hold integers of at least 0, got float64 of shape (1,)",
        ),
        ({"loss": [1.0]}, {"given": [0.5]}, "given must be integers of shape (n,), got float64 of shape (1,)"),
        ({"loss": [1.0]}, {"true": [0]}, "true must come with given labels, got none in scores"),
        ({"loss": [1.0]}, {"given": [0, 1]}, "given must have 1 samples, as scores has, got 2"),
        ({"loss": [1.0], "index": [3]}, {"given": [0, 1]}, "given must have at least 4 samples, got 2"),
        (
            {"loss": [1.0]},
            {"images": np.zeros((1, 4))},
            "images must be numbers of shape (n, H, W), (n, H, W, 3) or (n, 3, H, W), got float64 of shape (1, 4)",
        ),
        ({"loss": [1.0]}, {"images": np.zeros((2, 4, 4))}, "images must have 1 samples, as scores has, got 2"),
        (
            {"loss": [1.0], "given": [0], "pred_probs": [0.5]},
            {},
            "scores: pred_probs must hold floats of shape (1, classes), got float64 of shape (1,)",
        ),
        (
            {"loss": [1.0], "given": [0], "pred_probs": [[0.5, 0.6]]},
            {},
            "scores: pred_probs must be at least 0 and sum to 1 in every row, got others",
        ),
        (
            {"loss": [1.0], "given": [2], "pred_probs": [[0.5, 0.5]]},
            {},
            "given must be in [0, 2), the classes of pred_probs, got 2",
        ),
    ],
)
def test_bad_arguments(scores, arguments, message):
    with pytest.raises(InputValueError) as error:
        labels.report(scores, **arguments)
    assert str(error.value) == f"labels.report: {message}"


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (3, {}, "scores must be a file, a SampleMemory, Scores or a mapping, got int"),
        (COLUMNS, {"k": True}, "k must be an int or a sequence of ints, got True"),
        (COLUMNS, {"k": 1.5}, "k must be an int or a sequence of ints, got 1.5"),
    ],
)
def test_bad_types(scores, arguments, message):
    with pytest.raises(InputTypeError) as error:
        labels.report(scores, **arguments)
    assert str(error.value) == f"labels.report: {message}"


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
