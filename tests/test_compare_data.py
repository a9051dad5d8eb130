"""What is compared on: read, checked and corrupted as it should be."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
import torchassay as ta
from comparing import CLASSES, TRAIN, blobs
from comparing import data as made
from torch.utils.data import TensorDataset, default_collate
from torchassay.compare import Data
from torchassay.compare.data import Batches, corrupted, load


def written(path, arrays):
    np.savez(path, **arrays)
    return path


def without(name):
    return {key: value for key, value in blobs().items() if key != name}


def test_an_npz_is_read(tmp_path):
    arrays = blobs()
    found = load(written(tmp_path / "mine.npz", arrays))
    assert (found.name, len(found), found.classes, found.shape) == ("mine", TRAIN, CLASSES, (1, 4, 4))
    np.testing.assert_array_equal(found.inputs[0][:, 0], arrays["x_train"])
    np.testing.assert_array_equal(found.test_labels, arrays["y_test"])
    np.testing.assert_array_equal(found.thumbnails(), arrays["x_train"])


def test_several_modalities_and_layouts(tmp_path):
    arrays = blobs(modalities=2)
    rng = np.random.default_rng(1)
    for part in ("train", "test"):
        n = len(arrays[f"y_{part}"])
        arrays[f"x_{part}_0"] = rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
        arrays[f"x_{part}_1"] = rng.normal(size=(n, 7))  # float64
    found = load(written(tmp_path / "two.npz", arrays))
    assert found.shapes == ((3, 6, 5), (7,)) and [part.dtype for part in found.inputs] == [torch.uint8, torch.float32]
    np.testing.assert_array_equal(found.inputs[0].permute(0, 2, 3, 1), arrays["x_train_0"])
    assert found.thumbnails() is None  # a vector is no image


def test_thumbnails_stand_side_by_side():
    found = made(modalities=2)
    np.testing.assert_array_equal(found.thumbnails(), torch.cat(found.inputs, -1)[:, 0])


def test_known_wrong_labels(tmp_path):
    arrays = blobs()
    arrays["y_train_true"] = arrays["y_train"].copy()
    arrays["y_train"][:7] = (arrays["y_train"][:7] + 1) % CLASSES
    found = load(written(tmp_path / "human.npz", arrays))
    assert found.corrupted.nonzero()[:, 0].tolist() == list(range(7)) and found.changed.sum() == 7
    with pytest.raises(
        ValueError, match=r"^compare: corrupt must be None for data with wrong labels known, got 'gauss:"
    ):
        corrupted(found, "gauss:0.5")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("y_test"), "data must have the arrays y_test, got y_train, x_train, x_test"),
        (without("x_train"), "data must have the arrays x_train, got y_train, y_test, x_test"),
        ({"a": np.zeros(3)}, "data must have the arrays x_train, y_train, y_test, x_test, got none of them"),
        (
            blobs() | {"y_train": np.zeros(5, int)},
            "x_train must have as many samples as y_train, at least 2, got 240 and 5",
        ),
        (
            blobs() | {"x_test": np.zeros((80, 4, 5), np.uint8)},
            "x_test must have samples of the training shape, got (1, 4, 5) and (1, 4, 4)",
        ),
        (blobs() | {"y_train": np.zeros(TRAIN)}, "y_train must be integers of shape (N,), got float64 of shape (240,)"),
        (
            blobs() | {"y_train": np.arange(TRAIN) % 4 - 1},
            "y_train must have labels 0..C-1, each class among them, got 4 different ones from -1 to 2",
        ),
        (
            blobs() | {"y_train": np.arange(TRAIN) % 4 + 1},
            "y_train must have labels 0..C-1, each class among them, got 4 different ones from 1 to 4",
        ),
        (blobs() | {"y_train": np.zeros(TRAIN, int)}, "y_train must have at least two classes, got 1"),
        (blobs() | {"y_test": np.arange(80) % 5}, "y_test must have labels 0..3 as y_train has, got 0 to 4"),
        (blobs() | {"x_train": np.full((TRAIN, 3), np.nan)}, "x_train must be finite, got NaN or inf"),
        (
            blobs() | {"x_train": np.zeros(TRAIN)},
            "x_train must be numbers of shape (N, ...), got float64 of shape (240,)",
        ),
        (
            blobs() | {"y_train_true": np.arange(9) % 4},
            "y_train_true must have as many labels as y_train, got 9 and 240",
        ),
        (
            {name: value for name, value in blobs(modalities=2).items() if name != "x_test_1"},
            "data must have the arrays x_test_1, got y_train, x_train_0, x_train_1, y_test, x_test_0",
        ),
    ],
)
def test_what_an_npz_lacks_is_told_in_one_line(tmp_path, arrays, message):
    with pytest.raises(ValueError) as error:
        load(written(tmp_path / "bad.npz", arrays))
    assert str(error.value) == f"compare: {message}"


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "objects.npz", x_train=np.array([{}], dtype=object))
    for name in ("text", "objects"):
        with pytest.raises(ValueError, match=r"^compare: data must be an \.npz of plain arrays, got '.*npz' \("):
            load(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"^compare: data must be a file that exists, got '.*absent\.npz'$"):
        load(tmp_path / "absent.npz")
    with pytest.raises(
        ValueError, match=r"^compare: data must be one of digits, mnist, cifar10 or PATH\.npz, got 'svhn'$"
    ):
        load("svhn")
    with pytest.raises(TypeError, match=r"^compare: data must be one of .* or a pair of data sets, got int$"):
        load(3)


def test_digits():
    found = load("digits")
    from sklearn.datasets import load_digits

    assert (len(found), len(found.test_labels), found.shape, found.classes) == (1397, 400, (1, 8, 8), 10)
    mine = torch.cat([found.inputs[0], found.test_inputs[0]])
    assert int(mine.sum()) == int(load_digits().images.sum()) * 15 and mine.dtype == torch.uint8


@pytest.mark.parametrize("module", ["torchvision", "sklearn.datasets"])
def test_without_the_package_that_has_the_data(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    name = "digits" if module == "sklearn.datasets" else "mnist"
    with pytest.raises(
        ValueError, match=rf"^compare: data must be .*\.npz where .* is not installed .*, got '{name}'$"
    ):
        load(name)


def test_torchvision_sets(monkeypatch):
    class Set:
        def __init__(self, root, train, download):
            assert download
            rng = np.random.default_rng(train)
            self.data, self.targets = rng.integers(0, 256, (20, 32, 32, 3), np.uint8), [i % 10 for i in range(20)]

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(MNIST=None, CIFAR10=Set)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    found = load("cifar10")
    assert found.shape == (3, 32, 32) and found.classes == 10
    np.testing.assert_array_equal(found.inputs[0].permute(0, 2, 3, 1), Set(None, True, True).data)


def test_a_pair_of_data_sets():
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    found = load((TensorDataset(x, y), TensorDataset(x[:6], y[:6])))
    torch.testing.assert_close(found.inputs[0], x)
    assert found.test_labels.tolist() == y[:6].tolist()
    ragged = [(torch.zeros(3), 0), (torch.zeros(4), 1)]
    with pytest.raises(ValueError, match=r"^compare: data must hold inputs of one shape, got \(3,\) and \(4,\)$"):
        load((ragged, ragged))
    with pytest.raises(ValueError, match=r"^compare: data must be a pair \(training, test\), got 1 data sets$"):
        load((ragged,))
    with pytest.raises(TypeError, match=r"^compare: data must hold map-style data sets with a length, got generator$"):
        load(((item for item in ragged), ragged))


def test_tensors_that_are_no_data():
    y = torch.arange(8) % 2
    with pytest.raises(
        ValueError, match=r"^compare: x_train must be uint8 or float32 of shape \(N, ...\), got float64 of "
    ):
        Data("x", (torch.zeros(8, 2, dtype=torch.float64),), y, (torch.zeros(8, 2),), y)
    with pytest.raises(
        ValueError, match=r"^compare: training and test inputs must be of the same modalities, got 1 and 0$"
    ):
        Data("x", (torch.zeros(8, 2),), y, (), y)


def test_batches_are_those_of_indexed():
    found = made(modalities=2)
    mine = Batches(found)
    items = ta.Indexed(TensorDataset(*found.inputs, found.labels))
    for keys in ([3, 1, 200], [(5, 0.5), (5, 2.0)]):
        *inputs, labels, index = default_collate(items.__getitems__(keys))[:4]
        theirs = (tuple(inputs), labels, index)
        (inputs, labels, index, *weight) = mine.__getitems__(keys)
        for one, other in zip((*inputs, labels, index), (*theirs[0], *theirs[1:]), strict=True):
            assert torch.equal(one, other)
        if weight:
            assert torch.equal(weight[0], torch.tensor([0.5, 2.0]))


def test_labels_are_corrupted_as_corrupt_does():
    clean = made()
    found = corrupted(clean, "labels:0.25")
    theirs = ta.data.corrupt(TensorDataset(clean.inputs[0], clean.labels), "labels", 0.25, num_classes=CLASSES)
    assert found.labels.tolist() == [int(label) for _, label in theirs]
    assert torch.equal(found.true, clean.labels) and torch.equal(found.corrupted, theirs.mask)
    assert found.corrupted.sum() == TRAIN // 4 and torch.equal(found.changed, found.labels != clean.labels)
    assert torch.equal(found.inputs[0], clean.inputs[0])


@pytest.mark.parametrize("kind", ["shuffle", "gauss"])
def test_images_are_corrupted_in_all_modalities(kind):
    clean = made(modalities=2)
    before = [part.clone() for part in clean.inputs]
    found = corrupted(clean, f"{kind}:0.5")
    assert found.corrupted.sum() == TRAIN // 2 and torch.equal(found.labels, clean.labels)
    for part, was in zip(found.inputs, before, strict=True):
        same = (part == was).flatten(1).all(1)
        assert same[~found.corrupted].all() and not same[found.corrupted].any()
        if kind == "shuffle":
            assert torch.equal(part.flatten(1).sort(1).values, was.flatten(1).sort(1).values)
    assert all(torch.equal(part, was) for part, was in zip(clean.inputs, before, strict=True))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("label:0.5", "KIND:SHARE, KIND one of labels, shuffle, gauss, got 'label:0.5'"),
        ("labels", "labels:SHARE, SHARE in (0, 1], got 'labels'"),
        ("gauss:half", "gauss:SHARE, SHARE in (0, 1], got 'gauss:half'"),
        ("shuffle:1.5", "shuffle:SHARE, SHARE in (0, 1], got 'shuffle:1.5'"),
    ],
)
def test_corruptions_that_are_none(spec, message):
    with pytest.raises(ValueError) as error:
        corrupted(made(), spec)
    assert str(error.value) == f"compare: corrupt must be {message}"
