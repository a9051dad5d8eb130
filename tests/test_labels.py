"""Label reports against rankings and counts made by hand."""

import doctest
import math
import sys
import types

import numpy as np
import pytest
import torch
import torchassay as ta
from labelled import BY_LOSS, COLUMNS, GIVEN, LOSS, MARGIN, TRUE, hide_cleanlab, table
from missing import without
from torchassay import labels


@pytest.fixture(autouse=True)
def no_cleanlab(monkeypatch):
    hide_cleanlab(monkeypatch)


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
