"""Indexed items through loaders, and corruptions by their statistics."""

import math
import pickle

import numpy as np
import pytest
import torch
import torchassay as ta
from items import Batched, Items, Pair
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torchassay.checks import InputTypeError, InputValueError
from torchassay.data import corrupt


def test_the_index_comes_last():
    for kind in ("tuple", "list", "namedtuple"):
        image, label, index = ta.Indexed(Items(9, kind))[7]
        assert image[0, 0] == 7 and label == 7 and index == 7 and type(index) is int
        item = ta.Indexed(Items(9, kind))[7, 0.25]
        assert type(item) is tuple and item[2] == 7 and item[3] == 0.25 and item[3].dtype == np.float32
    item = ta.Indexed(Items(9, "dict"))[np.int64(3)]
    assert list(item) == ["image", "label", "index"] and item["index"] == 3 and type(item["index"]) is int
    item = ta.Indexed(Items(9, "dict"))[torch.tensor(3), 2]
    assert list(item) == ["image", "label", "index", "weight"] and item["weight"] == 2.0
    image, index = ta.Indexed(Items(9, "tensor"))[4]
    assert image[0, 0] == 4 and index == 4
    image, index, weight = ta.Indexed(Items(9, "tensor"))[4, 1.5]
    assert (index, weight) == (4, 1.5)
    assert ta.Indexed(["a", "b"])[1] == ("b", 1)
    assert len(ta.Indexed(Items(9))) == 9 and len(list(ta.Indexed(Items(9)))) == 9


def test_a_batch_is_fetched_as_one():
    inner = Batched(9)
    items = ta.Indexed(inner).__getitems__([(5, 0.5), 2])
    assert inner.fetched == [5, 2]
    assert [item[2:] for item in items] == [(5, 0.5), (2,)]
    part = ta.Indexed(Subset(Items(9), [8, 6, 4]))
    assert part[1][0][0, 0] == 6 and part[1][2] == 1  # the index is that of the data set it was given


@pytest.mark.parametrize("kind", ["tuple", "dict", "namedtuple"])
@pytest.mark.parametrize("workers", [0, 2])
def test_keys_with_weights_through_a_loader(kind, workers):
    """The sampler gives pairs: the weight of a draw arrives with its sample, as float32."""
    keys = [(i % 12, 1.0 / (1 + i)) for i in range(0, 70, 3)]
    loader = DataLoader(ta.Indexed(Items(12, kind)), batch_size=5, sampler=keys, num_workers=workers)
    arrived = []
    for batch in loader:
        image, label, index, weight = batch.values() if kind == "dict" else batch
        assert index.dtype == torch.int64 and weight.dtype == torch.float32 and label.dtype == torch.int64
        assert torch.equal(image[:, 0, 0], index.float()) and torch.equal(label, index % 10)
        arrived += zip(index.tolist(), weight.tolist(), strict=True)
    assert arrived == [(i, np.float32(weight)) for i, weight in keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_keys_through_a_loader_and_into_a_memory(workers):
    memory = ta.SampleMemory(23)
    loader = DataLoader(ta.Indexed(Items(23)), batch_size=4, shuffle=True, num_workers=workers)
    for step, (image, _, index) in enumerate(loader):
        memory.update(index, {"loss": image[:, 1, 2] * 2}, step)
    assert memory["loss"].tolist() == [2.0 * i for i in range(23)] and set(memory.visits.tolist()) == {1}


def images(n: int, shape: tuple = (3, 4, 5), dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(9)
    values = torch.rand(n, *shape, generator=generator) * 200 + torch.arange(n).view(-1, *(1,) * len(shape)) % 50
    return TensorDataset(values.to(dtype), torch.arange(n) % 10)


def test_random_labels():
    """Hu et al.: uniform over all classes, so that a share of (C - 1) / C of the corrupted really changes."""
    n, classes = 20_000, 7
    clean = [(None, i % classes) for i in range(n)]
    noisy = corrupt(clean, "labels", 0.25, num_classes=classes, seed=5)
    new = torch.tensor([label for _, label in noisy])
    old = torch.arange(n) % classes
    assert noisy.mask.sum() == n // 4
    assert torch.equal(new[~noisy.mask], old[~noisy.mask])
    assert torch.equal(noisy.changed, new != old)
    expected = 0.25 * (classes - 1) / classes
    deviation = math.sqrt(n / 4 * (classes - 1) / classes / classes) / n
    assert abs(noisy.changed.float().mean() - expected) < 3 * deviation
    count = torch.bincount(new[noisy.mask], minlength=classes)
    assert ((count - n / 4 / classes) ** 2 / (n / 4 / classes)).sum() < 22.5  # chi-square, 6 degrees: 0.1 %
    joint = torch.bincount(new[noisy.mask] * classes + old[noisy.mask], minlength=classes**2)
    by_old = joint.view(classes, classes).sum(0) / classes
    assert ((joint.view(classes, classes) - by_old) ** 2 / by_old).sum() < 76.1  # whatever the old one; 42 degrees
    places = noisy.mask.nonzero()[:, 0].double() / n
    assert abs(places.mean() - 0.5) < 3 / math.sqrt(12 * n / 4)


def test_known_targets_spare_reading_the_items():
    class Unread(Items):
        def __getitem__(self, i):
            raise AssertionError("read")

    targets = [i % 10 for i in range(500)]
    expected = corrupt(Items(500), "labels", 0.5, num_classes=10, seed=1)
    for given in (targets, torch.tensor(targets, dtype=torch.uint8)):
        noisy = corrupt(Unread(500), "labels", 0.5, seed=1, targets=given)
        assert torch.equal(noisy.changed, expected.changed) and torch.equal(noisy.mask, expected.mask)
    assert 0 < expected.changed.sum() < expected.mask.sum()


@pytest.mark.parametrize(("kind", "fraction", "count"), [("labels", 0.0, 0), ("gauss", 1.0, 25), ("shuffle", 0.5, 13)])
def test_the_share_that_is_corrupted(kind, fraction, count):
    classes = 10 if kind == "labels" else None
    noisy = corrupt(images(25), kind, fraction, num_classes=classes)
    assert noisy.mask.sum() == count and len(noisy) == 25
    more = corrupt(images(25), kind, 1 - (1 - fraction) / 2, num_classes=classes).mask
    assert more[noisy.mask].all()


def test_no_samples():
    assert corrupt([], "labels", 0.5, num_classes=3).changed.shape == (0,)


def test_one_permutation_of_the_pixels_for_all():
    clean = TensorDataset(torch.arange(60.0).view(1, 3, 4, 5).repeat(40, 1, 1, 1) + torch.arange(40).view(-1, 1, 1, 1))
    clean = TensorDataset(clean.tensors[0], torch.arange(40))
    noisy = corrupt(clean, "shuffle", 0.5, seed=3)
    orders = set()
    for i, (image, label) in enumerate(noisy):
        assert label == i and image.shape == (3, 4, 5)
        order = image.flatten(1) - torch.arange(3)[:, None] * 20 - i  # which pixel of its channel stands there
        assert torch.equal(order, order[:1].expand(3, 20))  # channels move together
        orders.add((bool(noisy.mask[i]), tuple(order[0].tolist())))
    plain = tuple(map(float, range(20)))
    assert (False, plain) in orders and len(orders) == 2
    ((_, moved),) = (pair for pair in orders if pair[0])
    assert sorted(moved) == list(plain) and moved != plain
    assert torch.equal(noisy.changed, noisy.mask)


def test_permutations_are_uniform():
    """Where the first of 5 pixels goes, over 2,000 seeds: chi-square with 4 degrees of freedom, 0.1 %."""
    clean = [(torch.arange(5.0), 0)]
    count = torch.zeros(5)
    for seed in range(2000):
        count[int(corrupt(clean, "shuffle", 1.0, seed=seed)[0][0].argmin())] += 1
    assert ((count - 400) ** 2 / 400).sum() < 18.5


def test_a_picture_of_one_colour_does_not_change():
    clean = TensorDataset(torch.stack([torch.full((2, 2), 3.0), torch.arange(4.0).view(2, 2)] * 8), torch.zeros(16))
    for kind in ("shuffle", "gauss"):
        noisy = corrupt(clean, kind, 1.0, seed=1)
        assert noisy.mask.all() and noisy.changed.tolist() == [False, True] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_gaussian_images_have_the_mean_and_the_variance_of_their_own(dtype):
    generator = torch.Generator().manual_seed(4)
    middle = torch.linspace(90, 160, 8).view(-1, 1, 1, 1)
    clean = (middle + 15 * torch.rand(8, 3, 64, 64, generator=generator)).to(dtype)
    noisy = corrupt(TensorDataset(clean, torch.arange(8)), "gauss", 0.5, seed=2)
    n = clean[0].numel()
    scaled = []
    for i, (image, label) in enumerate(noisy):
        assert image.dtype == dtype and image.shape == (3, 64, 64) and label == i
        if not noisy.mask[i]:
            assert torch.equal(image, clean[i])
            continue
        old = clean[i].double()
        z = (image.double() - old.mean()) / old.std(correction=0)
        rounding = 0.02 if dtype in (torch.bfloat16, torch.uint8) else 0.0
        assert abs(z.mean()) < 4 / math.sqrt(n) + rounding
        assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / n) + rounding
        assert abs((z**3).mean()) < 4 * math.sqrt(15 / n) + rounding
        assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n) + 6 * rounding
        scaled.append(z.flatten())
    assert len(scaled) == 4
    apart = torch.corrcoef(torch.stack(scaled)) - torch.eye(4)
    assert apart.abs().max() < 4 / math.sqrt(n)  # each image has numbers of its own


def test_gaussian_bytes_are_rounded_and_clamped():
    """Black and white: mean and standard deviation 127.5, so that many pixels lie beyond 0 and 255."""
    clean = (torch.arange(100 * 100) % 2 * 255).to(torch.uint8).view(1, 100, 100)
    image, _ = corrupt([(clean, 0)], "gauss", 1.0)[0]
    share = 0.5 * math.erfc(127 / 127.5 / math.sqrt(2))
    for edge in (0, 255):
        assert abs((image == edge).double().mean() - share) < 4 * math.sqrt(share / 10_000)


@pytest.mark.parametrize("kind", ["labels", "shuffle", "gauss"])
def test_a_corruption_belongs_to_seed_and_index(kind):
    """Not to the order of reading, to the process, to how batches are fetched, or to what else was corrupted."""
    options = {"num_classes": 10} if kind == "labels" else {}
    clean = images(24)
    noisy = corrupt(clean, kind, 0.5, seed=-7, **options)
    expected = [noisy[i] for i in reversed(range(24))][::-1]
    full = corrupt(clean, kind, 1.0, seed=-7, **options)
    copied = pickle.loads(pickle.dumps(noisy))
    loaded = {}
    for workers in (0, 2):
        loader = DataLoader(ta.Indexed(noisy), batch_size=5, shuffle=True, num_workers=workers)
        loaded[workers] = {int(i): item for *batch, index in loader for *item, i in zip(*batch, index, strict=True)}
    for i, (image, label) in enumerate(expected):
        others = [copied[i], noisy.__getitems__([3, i])[1], loaded[0][i], loaded[2][i]]
        others += [full[i]] if noisy.mask[i] else [clean[i]]
        assert all(torch.equal(image, other) and label == same for other, same in others)
    other = corrupt(clean, kind, 0.5, seed=-6, **options)
    assert not torch.equal(other.mask, noisy.mask)
    everywhere = corrupt(clean, kind, 1.0, seed=-6, **options)
    part = 1 if kind == "labels" else 0
    assert any(not torch.equal(torch.as_tensor(full[i][part]), torch.as_tensor(everywhere[i][part])) for i in range(24))


def test_items_keep_their_types_and_what_else_they_hold():
    image = torch.ones(2, 2)
    labels = [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor(3, dtype=torch.int32)]
    for label in labels:
        for item in ((image, label, "name"), [image, label, "name"]):
            found = corrupt([item], "labels", 1.0, num_classes=1)[0]
            assert type(found) is type(item) and found[0] is image and found[2] == "name"
            assert found[1] == 0 and type(found[1]) is type(label)
            assert getattr(found[1], "dtype", None) == getattr(label, "dtype", None)
            assert item[1] == 3  # is not written to
    found = corrupt([Pair(image, 3)], "labels", 1.0, num_classes=1)[0]
    assert isinstance(found, Pair) and found.label == 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


X = torch.ones(3, 2)
ROWS = torch.tensor([0])
IMAGE = torch.ones(2, 2)
BAD = {
    "stream": (
        lambda: ta.Indexed(Stream()),
        TypeError,
        "Indexed: dataset must be a map-style data set with a length, got Stream",
    ),
    "no data set": (
        lambda: corrupt(iter([]), "labels", 0.5),
        TypeError,
        "corrupt: dataset must be a map-style data set with a length, got list_iterator",
    ),
    "key": (lambda: ta.Indexed(Items(3))["a"], TypeError, "Indexed: an index must be an int, got str"),
    "key 1.0": (lambda: ta.Indexed(Items(3))[1.0, 1.0], TypeError, "Indexed: an index must be an int, got float"),
    "three": (
        lambda: ta.Indexed(Items(3))[1, 2, 3],
        TypeError,
        "Indexed: a key must be an index or a pair (index, weight), got (1, 2, 3)",
    ),
    "index": (lambda: ta.Indexed(Items(3))[3], IndexError, "Indexed: an index must be in [0, 3), got 3"),
    "negative": (lambda: ta.Indexed(Items(3))[-1, 1.0], IndexError, "Indexed: an index must be in [0, 3), got -1"),
    "taken": (
        lambda: ta.Indexed([{"index": 5}])[0],
        ValueError,
        "Indexed: an item must not have 'index', which is added here",
    ),
    "kind": (
        lambda: corrupt([], "blur", 0.5),
        ValueError,
        "corrupt: kind must be one of labels, shuffle, gauss, got 'blur'",
    ),
    "fraction": (lambda: corrupt([], "gauss", -0.1), ValueError, "corrupt: fraction must be in [0, 1], got -0.1"),
    "seed": (lambda: corrupt([], "gauss", 0.5, seed=0.5), TypeError, "corrupt: seed must be an int, got float"),
    "large seed": (
        lambda: corrupt([], "gauss", 0.5, seed=1 << 64),
        ValueError,
        "corrupt: seed must have 64 bits, got 18446744073709551616",
    ),
    "other kind": (
        lambda: corrupt([], "gauss", 0.5, num_classes=3),
        ValueError,
        "corrupt: num_classes and targets belong to kind 'labels', got 'gauss'",
    ),
    "no classes": (
        lambda: corrupt([], "labels", 0.5),
        TypeError,
        "corrupt: num_classes must be an int for kind 'labels' without targets, got NoneType",
    ),
    "0 classes": (
        lambda: corrupt([], "labels", 0.5, num_classes=0),
        ValueError,
        "corrupt: num_classes must be in [1, 2^20], got 0",
    ),
    "targets": (
        lambda: corrupt(Items(3), "labels", 0.5, targets=[1, 2]),
        ValueError,
        "corrupt: targets must be integers of shape (3,), got int64 of shape (2,)",
    ),
    "corrupted index": (
        lambda: corrupt(Items(3), "shuffle", 0.5)[-1],
        IndexError,
        "Corrupted: an index must be in [0, 3), got -1",
    ),
    "item": (
        lambda: corrupt(Items(3, "dict"), "shuffle", 1.0)[0],
        TypeError,
        "Corrupted: an item must be a tuple or list (input, label, ...), got dict",
    ),
    "image": (
        lambda: corrupt([("image", 0)], "gauss", 1.0)[0],
        TypeError,
        "Corrupted: an input must be a tensor of numbers with dimensions, got str",
    ),
    "label": (
        lambda: corrupt([(IMAGE, IMAGE)], "labels", 1.0, num_classes=2)[0],
        TypeError,
        "Corrupted: a label must be an int or a 0-d integer tensor, got float32 tensor of shape (2, 2)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == message
    if message.startswith("corrupt"):
        assert isinstance(error.value, (InputValueError, InputTypeError))
    else:  # while reading an item: no IndexError but the one that ends an iteration
        assert type(error.value) is kind or message.startswith("Indexed: dataset")
