"""What is compared on: a data set as tensors in memory, by name, from a file, or the user's own."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from torchassay import checks, npz
from torchassay.data import KINDS, Indexed, corrupt

NAMES = ("digits", "mnist", "cifar10")
_TEST_DIGITS = 400  # of 1,797
_CHANNELS = (1, 3, 4)  # a last dimension of so many values is one of channels
_THUMBNAILS = 20_000


@dataclasses.dataclass(frozen=True)
class Data:
    """A classification problem, split.

    Args:
        name: for reports.
        inputs: of the training set, a tensor [N, ...] for each modality: uint8, which is standardised by channel, or
            float32, which is taken as it is. Images are [N, C, H, W].
        labels: [N] int64 in 0..C-1, which are trained on; each class occurs.
        test_inputs, test_labels: the same for [M] test samples.
        true: [N] int64, the right labels, where some of ``labels`` are known to be wrong.
        corrupted: bool [N], which samples are corrupted. Default: those whose label is not the right one.
        changed: bool [N], which of them are another thing than before. Default: ``corrupted``.

    Raises:
        ValueError: tensors that do not fit together; one line that names them.
    """

    name: str
    inputs: tuple[Tensor, ...]
    labels: Tensor
    test_inputs: tuple[Tensor, ...]
    test_labels: Tensor
    true: Tensor | None = None
    corrupted: Tensor | None = None
    changed: Tensor | None = None

    def __post_init__(self):
        _check(self)
        if self.true is not None and self.corrupted is None:
            object.__setattr__(self, "corrupted", self.labels != self.true)
        if self.corrupted is not None and self.changed is None:
            object.__setattr__(self, "changed", self.corrupted)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return int(self.labels.max() if self.true is None else torch.maximum(self.labels, self.true).max()) + 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one sample, a shape for each modality."""
        return tuple(tuple(part.shape[1:]) for part in self.inputs)

    @property
    def shape(self):
        """Of one sample; with several modalities, a tuple of shapes."""
        return self.shapes[0] if len(self.shapes) == 1 else self.shapes

    def thumbnails(self) -> np.ndarray | None:
        """The first 20,000 training images, uint8 [n, H, W] or [n, H, W, 3], modalities side by side; None if they are
        no images."""
        first, *_ = self.shapes
        if any(len(shape) != 3 or shape[0] not in _CHANNELS or shape[:2] != first[:2] for shape in self.shapes):
            return None
        images = torch.cat([part[:_THUMBNAILS] for part in self.inputs], -1)[:, :3]
        if images.dtype != torch.uint8:
            low, high = images.min(), images.max()
            images = ((images - low) * (255 / (high - low).clamp(min=1e-12))).round().to(torch.uint8)
        return (images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)).numpy()


class Batches(Indexed):
    """An `Indexed` whose ``__getitems__`` gives a whole batch of tensors, ((input, ...), label, index[, weight]), which
    is many times as fast as item by item; a DataLoader's ``collate_fn`` is to leave it as it is."""

    def __init__(self, data: Data):
        super().__init__(TensorDataset(*data.inputs, data.labels))

    def __getitems__(self, keys: Sequence) -> tuple:
        weighted = isinstance(keys[0], tuple)
        index = torch.tensor([key[0] for key in keys] if weighted else keys)
        *inputs, labels = (column[index] for column in self.dataset.tensors)
        weight = (torch.tensor([key[1] for key in keys]),) if weighted else ()
        return tuple(inputs), labels, index, *weight


def load(source: str | os.PathLike | Data | Sequence[Dataset]) -> Data:
    """The data of a comparison.

    Args:
        source: "digits" (scikit-learn's, 400 of them to test with), "mnist" or "cifar10" (torchvision's, downloaded to
            ~/.cache/torchassay), a path to an .npz, a `Data`, or a pair of map-style data sets (training, test) of
            items (input, label), each read once.

    An .npz holds ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or with several modalities ``x_train_0``,
    ``x_train_1``, ... and ``x_test_0``, ..., and may hold ``y_train_true``, the right labels where y_train has wrong
    ones. Inputs are numbers [N, ...]; [N, H, W] are images of one channel, and a last dimension of 1, 3 or 4 of four is
    that of channels. Labels are integers 0..C-1.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, (list, tuple)):
        if len(source) != 2:
            raise checks.InputValueError(f"compare: data must be a pair (training, test), got {len(source)} data sets")
        return _from_datasets(*source)
    if not isinstance(source, (str, os.PathLike)):
        expected = f"one of {', '.join(NAMES)}, a path to an .npz, a Data or a pair of data sets"
        raise checks.InputTypeError(f"compare: data must be {expected}, got {type(source).__name__}")
    if source == "digits":
        return _digits()
    if source in NAMES:
        return _from_torchvision(str(source))
    if not str(source).endswith(".npz"):
        raise checks.InputValueError(f"compare: data must be one of {', '.join(NAMES)} or PATH.npz, got '{source}'")
    return _from_file(Path(source))


def corrupted(data: Data, spec: str) -> Data:
    """The data with a share of the training set corrupted as `torchassay.data.corrupt` does it, with its seed 0.

    Args:
        data: without wrong labels of its own.
        spec: "KIND:SHARE", such as "labels:0.25". Of several modalities all are corrupted, of the same samples.
    """
    kind, _, share = spec.partition(":")
    if kind not in KINDS:
        raise checks.InputValueError(
            f"compare: corrupt must be KIND:SHARE, KIND one of {', '.join(KINDS)}, got '{spec}'"
        )
    try:
        fraction = float(share)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction <= 1:
        raise checks.InputValueError(f"compare: corrupt must be {kind}:SHARE, SHARE in (0, 1], got '{spec}'")
    if data.true is not None:
        raise checks.InputValueError(f"compare: corrupt must be None for data with wrong labels known, got '{spec}'")
    if kind == "labels":
        clean = TensorDataset(data.labels, data.labels)
        noisy = corrupt(clean, kind, fraction, num_classes=data.classes, targets=data.labels)
        labels = data.labels.clone()
        rows = noisy.mask.nonzero()[:, 0]
        labels[rows] = torch.stack([label for _, label in noisy.__getitems__(rows.tolist())])
        return dataclasses.replace(data, labels=labels, true=data.labels, corrupted=noisy.mask, changed=noisy.changed)
    inputs, changed = [], torch.zeros(len(data), dtype=torch.bool)
    for part in data.inputs:
        noisy = corrupt(TensorDataset(part, data.labels), kind, fraction)
        rows, new = noisy.mask.nonzero()[:, 0], part.clone()
        new[rows] = torch.stack([image for image, _ in noisy.__getitems__(rows.tolist())])
        changed |= (new != part).flatten(1).any(1)
        inputs.append(new)
    return dataclasses.replace(data, inputs=tuple(inputs), true=data.labels, corrupted=noisy.mask, changed=changed)


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        expected = 'an .npz where scikit-learn is not installed (pip install "torchassay[demo]")'
        raise checks.InputValueError(f"compare: data must be {expected}, got 'digits'") from None
    bunch = load_digits()
    images = torch.tensor(bunch.images * 15).round().to(torch.uint8)[:, None]  # of 0 to 16
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([_TEST_DIGITS])
    return Data("digits", (images[train],), labels[train], (images[test],), labels[test])


def _from_torchvision(name: str) -> Data:
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        expected = f"a path to an .npz where torchvision is not installed (--data {name}.npz)"
        raise checks.InputValueError(f"compare: data must be {expected}, got '{name}'") from None
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    folder = Path.home() / ".cache" / "torchassay"
    arrays = {}
    for part in ("train", "test"):
        try:
            found = kind(folder, train=part == "train", download=True)
        except (OSError, RuntimeError) as error:
            expected = f"one that torchvision can get into '{folder}', or a path to an .npz"
            raise checks.InputValueError(f"compare: data must be {expected}, got '{name}' ({error})") from error
        arrays |= {f"x_{part}": np.asarray(found.data), f"y_{part}": np.asarray(found.targets)}
    return _from_arrays(name, arrays)


def _from_datasets(train: Dataset, test: Dataset) -> Data:
    arrays = {}
    for part, dataset in (("train", train), ("test", test)):
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            expected = "map-style data sets with a length"
            raise checks.InputTypeError(f"compare: data must hold {expected}, got {type(dataset).__name__}")
        items = [dataset[i] for i in range(len(dataset))]
        inputs, labels = zip(*((np.asarray(item[0]), np.asarray(item[1])) for item in items), strict=True)
        shapes = {values.shape for values in inputs}
        if len(shapes) > 1:
            got = " and ".join(sorted(map(str, shapes)))
            raise checks.InputValueError(f"compare: data must hold inputs of one shape, got {got}")
        arrays |= {f"x_{part}": np.stack(inputs), f"y_{part}": np.stack(labels)}
    return _from_arrays(type(train).__name__, arrays)


def _from_file(path: Path) -> Data:
    try:
        arrays = npz.arrays(path, re.compile(r"[xy]_(train|test)(_\w+)?").fullmatch)
    except FileNotFoundError:
        raise checks.InputValueError(f"compare: data must be a file that exists, got '{path}'") from None
    except Exception as error:  # whatever the bytes made of the reader
        raise checks.InputValueError(
            f"compare: data must be an .npz of plain arrays, got '{path}' ({error})"
        ) from error
    return _from_arrays(path.stem, arrays)


def _from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> Data:
    names = _modalities(arrays)
    missing = [array for array in (*(f"x_train{end}" for end in names), "y_train", "y_test") if array not in arrays]
    missing += [f"x_test{end}" for end in names if f"x_test{end}" not in arrays]
    if missing:
        got = ", ".join(arrays) or "none of them"
        raise checks.InputValueError(f"compare: data must have the arrays {', '.join(missing)}, got {got}")
    true = arrays.get("y_train_true")
    return Data(
        name,
        tuple(_inputs(f"x_train{end}", arrays[f"x_train{end}"]) for end in names),
        _labels("y_train", arrays["y_train"]),
        tuple(_inputs(f"x_test{end}", arrays[f"x_test{end}"]) for end in names),
        _labels("y_test", arrays["y_test"]),
        None if true is None else _labels("y_train_true", true),
    )


def _modalities(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """What the names of inputs end with: nothing, or the number of a modality."""
    if "x_train_0" not in arrays:
        return [""]
    return [f"_{i}" for i in range(sum(bool(re.fullmatch(r"x_train_\d+", name)) for name in arrays))]


def _inputs(name: str, values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "biuf" or values.ndim < 2:
        got = f"{values.dtype} of shape {values.shape}"
        raise checks.InputValueError(f"compare: {name} must be numbers of shape (N, ...), got {got}")
    found = torch.from_numpy(np.ascontiguousarray(values if values.dtype == np.uint8 else values.astype(np.float32)))
    if found.dim() == 3:
        return found[:, None]
    if found.dim() == 4 and found.shape[3] in _CHANNELS and found.shape[1] not in _CHANNELS:
        return found.permute(0, 3, 1, 2).contiguous()
    return found


def _labels(name: str, values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "iu" or values.ndim != 1:
        got = f"{values.dtype} of shape {values.shape}"
        raise checks.InputValueError(f"compare: {name} must be integers of shape (N,), got {got}")
    return torch.from_numpy(values.astype(np.int64))


def _check(data: Data) -> None:
    """Everything that training relies on."""
    if len(data.inputs) != len(data.test_inputs) or not data.inputs:
        got = f"{len(data.inputs)} and {len(data.test_inputs)}"
        raise checks.InputValueError(f"compare: training and test inputs must be of the same modalities, got {got}")
    for part, inputs, labels in (("train", data.inputs, data.labels), ("test", data.test_inputs, data.test_labels)):
        for i, (values, like) in enumerate(zip(inputs, data.inputs, strict=True)):
            name = f"x_{part}" if len(inputs) == 1 else f"x_{part}_{i}"
            if values.dtype not in (torch.uint8, torch.float32) or values.dim() < 2:
                got = f"{checks.dtype_name(values.dtype)} of shape {tuple(values.shape)}"
                raise checks.InputValueError(f"compare: {name} must be uint8 or float32 of shape (N, ...), got {got}")
            if len(values) != len(labels) or len(values) < 2:
                got = f"{len(values)} and {len(labels)}"
                expected = f"as many samples as y_{part}, at least 2"
                raise checks.InputValueError(f"compare: {name} must have {expected}, got {got}")
            if values.shape[1:] != like.shape[1:]:
                got = f"{tuple(values.shape[1:])} and {tuple(like.shape[1:])}"
                raise checks.InputValueError(f"compare: {name} must have samples of the training shape, got {got}")
            if values.is_floating_point() and not values.isfinite().all():
                raise checks.InputValueError(f"compare: {name} must be finite, got NaN or inf")
    if data.true is not None and data.true.shape != data.labels.shape:
        got = f"{len(data.true)} and {len(data.labels)}"
        raise checks.InputValueError(f"compare: y_train_true must have as many labels as y_train, got {got}")
    every = data.labels if data.true is None else torch.cat([data.labels, data.true])
    found = every.unique()
    expected = "labels 0..C-1, each class among them"
    if found[0] != 0 or found[-1] != len(found) - 1:
        got = f"{len(found)} different ones from {int(found[0])} to {int(found[-1])}"
        raise checks.InputValueError(f"compare: y_train must have {expected}, got {got}")
    if len(found) < 2:
        raise checks.InputValueError(f"compare: y_train must have at least two classes, got {len(found)}")
    low, high = int(data.test_labels.min()), int(data.test_labels.max())
    if low < 0 or high >= len(found):
        raise checks.InputValueError(
            f"compare: y_test must have labels 0..{len(found) - 1} as y_train has, got {low} to {high}"
        )
