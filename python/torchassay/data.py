"""Data sets whose items say which sample they are, corrupted ones, and rows of batches of any structure."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from torchassay import checks, ops
from torchassay.backends import for_op
from torchassay.memory import keep
from torchassay.philox import Purpose, seed_parts

KINDS = ("labels", "shuffle", "gauss")


class Draw(IntEnum):
    """What a corruption draws."""

    SAMPLES = 0
    LABELS = 1
    ORDER = 2
    PIXELS = 3


class Indexed(Dataset):
    """A data set whose items end with their index, so that a batch says which samples it holds.

    Args:
        dataset: map-style, with a length.

    A key is an index in [0, len), or a pair of it and a weight, as samplers that weight their draws give them. The
    index (int), and with a pair the weight (float32), come last: a tuple, list or named tuple becomes a tuple that goes
    on with them, a dict a copy with "index" (and "weight"), and any other item the tuple ``(item, index)``. PyTorch's
    collate function makes int64 and float32 tensors of them.

    Raises:
        TypeError: a data set without a length or without keys, or a key of another type.
        IndexError: a key out of range.
        ValueError: an item that has "index" or "weight" already.

    Example:
        >>> import torch, torchassay as ta
        >>> data = ta.Indexed(torch.utils.data.TensorDataset(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([0, 1, 0])))
        >>> data[2], data[1, 0.5]
        ((tensor(7.), tensor(0), 2), (tensor(6.), tensor(1), 1, np.float32(0.5)))
    """

    def __init__(self, dataset: Dataset):
        _map_style("Indexed", dataset)
        self.dataset: Any = dataset  # whose length torch's Dataset does not declare

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, float]) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, float]]) -> list:
        """The items of a batch, through the inner data set's own ``__getitems__`` where it has one."""
        last = [self._last(key) for key in keys]
        items = _items(self.dataset, [index for index, *_ in last])
        return [_with_last(item, values) for item, values in zip(items, last, strict=True)]

    def _last(self, key: int | tuple[int, float]) -> tuple:
        """What an item is to end with: index, or index and weight."""
        if not isinstance(key, tuple):
            return (_index("Indexed", key, len(self)),)
        if len(key) != 2:
            raise TypeError(f"Indexed: a key must be an index or a pair (index, weight), got {key}")
        return _index("Indexed", key[0], len(self)), np.float32(key[1])


def corrupt(
    dataset: Dataset,
    kind: str,
    fraction: float,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    targets: Tensor | Sequence[int] | None = None,
) -> Corrupted:
    """A data set with a share of its samples corrupted, as Hu et al. (2021), "When does loss-based prioritization
    fail?", do it.

    Args:
        dataset: map-style, with a length, of items (input, label, ...): tuples, named tuples or lists. "labels" needs
            a label that is an int or a 0-d integer tensor, the other kinds an input that is a tensor. They are to be as
            the data set stores them: what augments them belongs behind this.
        kind: "labels": a label uniform over all classes, the old one included. "shuffle": the pixels in another order,
            the same for all samples. "gauss": normal pixels with the image's own mean and variance.
        fraction: of the samples to corrupt, in [0, 1]; round(fraction * N), halves upwards.
        num_classes: for "labels": of the classes 0, 1, ... Default: as many as there are in ``targets``.
        seed: a 64-bit int. What becomes of a sample depends on the seed and its index, however and in whichever worker
            it is read; with a larger fraction the same samples and others are corrupted.
        targets: for "labels": all labels [N], as the items have them, so that ``changed`` need not read the items.

    Returns:
        A `Corrupted` data set: ``mask`` says what is corrupted, and ``changed`` what is another thing than before.

    Assumptions where the paper is silent: the pixels of an image are those of its last two dimensions, and channels
    move together (an input of one dimension is shuffled along it); mean and variance are taken over all pixels and
    channels of an image together; integer images are rounded and clamped to the range of their dtype.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type, or while reading an item that is none of the above.

    Example:
        >>> import torch, torchassay as ta
        >>> clean = [(torch.rand(1, 8, 8), label % 10) for label in range(100)]
        >>> noisy = ta.data.corrupt(clean, "labels", 0.25, num_classes=10)
        >>> int(noisy.mask.sum()), all((noisy[i][1] != clean[i][1]) == noisy.changed[i] for i in range(100))
        (25, True)
    """
    return Corrupted(dataset, kind, fraction, num_classes=num_classes, seed=seed, targets=targets)


class Corrupted(Dataset):
    """What `corrupt` returns.

    Attributes:
        mask: bool [N], which samples are corrupted.
        dataset: the data set as it was.
    """

    def __init__(
        self,
        dataset: Dataset,
        kind: str,
        fraction: float,
        *,
        num_classes: int | None = None,
        seed: int = 0,
        targets: Tensor | Sequence[int] | None = None,
    ):
        _map_style("corrupt", dataset)
        if kind not in KINDS:
            raise checks.InputValueError(f"corrupt: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if not 0.0 <= fraction <= 1.0:
            raise checks.InputValueError(f"corrupt: fraction must be in [0, 1], got {fraction}")
        checks.seed("corrupt", seed)
        if kind != "labels" and (num_classes is not None or targets is not None):
            raise checks.InputValueError(f"corrupt: num_classes and targets belong to kind 'labels', got {kind!r}")
        self.dataset: Any = dataset  # whose length torch's Dataset does not declare
        self.kind, self.seed = kind, seed
        n = len(self)
        self._targets = None if targets is None else torch.as_tensor(targets).cpu()
        samples = torch.arange(n)
        self.mask = torch.zeros(n, dtype=torch.bool)
        self.mask[keep(_draws(seed, Draw.SAMPLES, samples, 1)[:, 0], fraction, largest=False)] = True
        if kind == "labels":
            classes = self._classes(num_classes, n)
            self._labels = (_draws(seed, Draw.LABELS, samples, 1)[:, 0].double() * classes).long()

    def _classes(self, num_classes: int | None, n: int) -> int:
        targets = self._targets
        if targets is not None and (targets.dtype not in checks.INTEGERS or tuple(targets.shape) != (n,)):
            got = f"{checks.dtype_name(targets.dtype)} of shape {tuple(targets.shape)}"
            raise checks.InputValueError(f"corrupt: targets must be integers of shape ({n},), got {got}")
        if num_classes is None and targets is not None and n:
            return int(targets.max()) + 1
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            expected = "an int for kind 'labels' without targets"
            raise checks.InputTypeError(f"corrupt: num_classes must be {expected}, got {type(num_classes).__name__}")
        if not 1 <= num_classes <= 1 << 20:
            raise checks.InputValueError(f"corrupt: num_classes must be in [1, 2^20], got {num_classes}")
        return num_classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list:
        """The items of a batch, through the inner data set's own ``__getitems__`` where it has one."""
        indices = [_index("Corrupted", index, len(self)) for index in indices]
        items = _items(self.dataset, indices)
        return [
            self._corrupted(index, item) if self.mask[index] else item
            for index, item in zip(indices, items, strict=True)
        ]

    @functools.cached_property
    def changed(self) -> Tensor:
        """bool [N]: which samples are not what they were. A new label may be the old one, and a picture of one colour
        stays as it is. All corrupted items are read for it, once, unless the labels came as ``targets``."""
        if self._targets is not None:
            return self.mask & (self._labels != self._targets)
        part = 1 if self.kind == "labels" else 0
        changed = self.mask.clone()
        for index in self.mask.nonzero()[:, 0].tolist():
            item = self.dataset[index]
            new, old = self._corrupted(index, item)[part], item[part]
            changed[index] = not torch.equal(torch.as_tensor(new), torch.as_tensor(old))
        return changed

    def _corrupted(self, index: int, item: Any) -> Any:
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            expected = "a tuple or list (input, label, ...)"
            raise TypeError(f"Corrupted: an item must be {expected}, got {type(item).__name__}")
        image, label, *others = item
        if self.kind == "labels":
            label = _like(label, int(self._labels[index]))
        elif not isinstance(image, Tensor) or image.dim() == 0 or image.dtype not in checks.FLOATS + checks.INTEGERS:
            raise TypeError(f"Corrupted: an input must be a tensor of numbers with dimensions, got {_named(image)}")
        elif self.kind == "shuffle":
            pixels = image.flatten(-2) if image.dim() > 1 else image
            image = pixels[..., _order(self.seed, pixels.shape[-1])].view(image.shape)
        else:
            image = self._noise(index, image)
        return getattr(type(item), "_make", type(item))((image, label, *others))

    def _noise(self, index: int, image: Tensor) -> Tensor:
        """Normal numbers with the mean and the variance of an image."""
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        noise = _draws(self.seed, Draw.PIXELS, torch.tensor([index]), image.numel(), uniform=False).view(image.shape)
        noise = wide.mean() + wide.std(correction=0) * noise.to(wide)
        if image.is_floating_point():
            return noise.to(image.dtype)
        limits = torch.iinfo(image.dtype)
        return noise.round().clamp(limits.min, limits.max).to(image.dtype)


def take(batch: Any, rows: Tensor) -> Any:
    """Rows of a collated batch, in a batch of the same structure.

    Args:
        batch: columns in tuples, lists, named tuples and dicts, however deep. A column is a tensor [B, ...], or a list
            or tuple of B Python objects that are neither tensors nor containers, such as strings.
        rows: [M] int64 on the CPU, in [0, B), in any order.

    Raises:
        ValueError: rows that do not fit, or columns of different lengths.
        TypeError: a batch that holds something else.

    Example:
        >>> import torch, torchassay as ta
        >>> ta.data.take({"x": torch.tensor([[1.0], [2.0], [3.0]]), "name": ["a", "b", "c"]}, torch.tensor([2, 0]))
        {'x': tensor([[3.],
                [1.]]), 'name': ['c', 'a']}
    """
    checks.tensor("take", "rows", rows)
    if rows.dtype != torch.int64 or rows.dim() != 1 or rows.device.type != "cpu":
        got = f"{checks.dtype_name(rows.dtype)} of shape {tuple(rows.shape)} on {rows.device}"
        raise checks.InputValueError(f"take: rows must be int64 of shape (M,) on cpu, got {got}")
    lengths: set[int] = set()
    _mapped("take", lambda column: lengths.add(len(column)), [batch])
    if len(lengths) > 1:
        got = " and ".join(str(length) for length in sorted(lengths))
        raise checks.InputValueError(f"take: batch must hold columns of one length, got {got}")
    size = max(lengths, default=0)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
        outside = int(rows.min()) if rows.min() < 0 else int(rows.max())
        raise checks.InputValueError(f"take: rows must be in [0, {size}), got {outside}")
    chosen = rows.tolist()

    def picked(column: Any) -> Any:
        if isinstance(column, Tensor):
            return column.index_select(0, rows.to(column.device))
        return type(column)(column[row] for row in chosen)

    return _mapped("take", picked, [batch])


def join(batches: Sequence) -> Any:
    """One batch of the rows of several, which have one structure: what `take` took, side by side.

    Raises:
        ValueError: no batches, batches of different structures, or tensors that differ in more than their rows.
        TypeError: batches that hold something else than `take` knows.

    Example:
        >>> import torch, torchassay as ta
        >>> ta.data.join([(torch.tensor([1, 2]), ["a", "b"]), (torch.tensor([3]), ["c"])])
        (tensor([1, 2, 3]), ['a', 'b', 'c'])
    """
    batches = list(batches)
    if not batches:
        raise checks.InputValueError("join: batches must hold at least one batch, got none")

    def joined(*columns: Any) -> Any:
        if not isinstance(columns[0], Tensor):
            return type(columns[0])(value for column in columns for value in column)
        for column in columns[1:]:
            if column.shape[1:] != columns[0].shape[1:]:
                shapes = f"{tuple(columns[0].shape)} and {tuple(column.shape)}"
                raise checks.InputValueError(f"join: tensors must have one shape but for their rows, got {shapes}")
        return torch.cat(columns)

    return _mapped("join", joined, batches)


def _mapped(function: str, of_columns: Callable, batches: Sequence) -> Any:
    """The structure of the batches, with what ``of_columns`` makes of the columns that stand in one place."""
    first = batches[0]
    if isinstance(first, Tensor) and first.dim() > 0:
        same = all(isinstance(batch, Tensor) and batch.dim() > 0 for batch in batches)
    elif isinstance(first, Mapping):
        same = all(isinstance(batch, Mapping) and batch.keys() == first.keys() for batch in batches)
    elif isinstance(first, (list, tuple)):
        same = all(isinstance(batch, type(first)) for batch in batches)
        column = same and any(batches) and all(_is_column(batch) for batch in batches)
        same = same and (column or all(len(batch) == len(first) for batch in batches))
    else:
        expected = "tensors with rows, lists, tuples and dicts"
        raise checks.InputTypeError(f"{function}: a batch must hold {expected}, got {_named(first)}")
    if not same:
        got = " and ".join(sorted({_named(batch) for batch in batches}))
        raise checks.InputValueError(f"{function}: batches must have one structure, got {got}")
    if isinstance(first, Mapping):
        found: Any = copy.copy(first)
        found.update({key: _mapped(function, of_columns, [batch[key] for batch in batches]) for key in first})
        return found
    if isinstance(first, Tensor) or column:
        return of_columns(*batches)
    make = getattr(type(first), "_make", type(first))
    return make(_mapped(function, of_columns, parts) for parts in zip(*batches, strict=True))


def _is_column(value: list | tuple) -> bool:
    """Whether a list or tuple is a column of Python objects, not one of columns."""
    return not hasattr(value, "_make") and not any(isinstance(part, (Tensor, Mapping, list, tuple)) for part in value)


def _named(value: Any) -> str:
    """A batch's kind for messages: its type, and what tells its structure from others."""
    if isinstance(value, Tensor):
        return f"{checks.dtype_name(value.dtype)} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(str, value))}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__


def _map_style(function: str, dataset: Any) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        expected = "a map-style data set with a length"
        raise checks.InputTypeError(f"{function}: dataset must be {expected}, got {type(dataset).__name__}")


def _index(function: str, key: Any, n: int) -> int:
    try:
        index = operator.index(key)
    except TypeError:
        raise TypeError(f"{function}: an index must be an int, got {type(key).__name__}") from None
    if not 0 <= index < n:
        raise IndexError(f"{function}: an index must be in [0, {n}), got {index}")
    return index


def _items(dataset: Dataset, indices: list[int]) -> Sequence:
    together = getattr(dataset, "__getitems__", None)
    return together(indices) if together else [dataset[index] for index in indices]


def _with_last(item: Any, values: tuple) -> Any:
    if isinstance(item, Mapping):
        added = dict(zip(("index", "weight"), values, strict=False))
        taken = [name for name in added if name in item]
        if taken:
            raise ValueError(f"Indexed: an item must not have '{taken[0]}', which is added here")
        return {**item, **added}
    return (*item, *values) if isinstance(item, (tuple, list)) else (item, *values)


def _like(label: Any, value: int) -> Any:
    """A new label in the type of the old one."""
    if isinstance(label, Tensor) and label.dim() == 0 and label.dtype in checks.INTEGERS:
        return torch.full_like(label, value)
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        return type(label)(value)
    raise TypeError(f"Corrupted: a label must be an int or a 0-d integer tensor, got {_named(label)}")


def _draws(seed: int, draw: Draw, samples: Tensor, columns: int, uniform: bool = True) -> Tensor:
    """Numbers of each sample's own, float32 [N, columns]: uniform in [0, 1), or normal."""
    return ops.normals(samples, *seed_parts(seed), Purpose.CORRUPTIONS, draw, columns, uniform, for_op(None))


@functools.lru_cache(maxsize=8)
def _order(seed: int, pixels: int) -> Tensor:
    """One permutation for all images of so many pixels."""
    return _draws(seed, Draw.ORDER, torch.tensor([0]), pixels)[0].argsort(stable=True)
