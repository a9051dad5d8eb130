"""``SumTree``: weights that entries are drawn by, and that change, however many there are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchassay import checks
from torchassay.backends import native
from torchassay.reference import sum_tree as reference
from torchassay.whole_files import replacing

AT_ONCE = 1 << 20  # weights that are copied or written at a time
Numbers = Tensor | np.ndarray | Sequence[float]


class SumTree:
    """Weights of n entries, from which entries are drawn in proportion, and which change, in O(log n).

    Above every 16 weights stands their sum in float64, above every 16 sums theirs, and so on: 8.54 bytes a weight in
    all, of which 8 are the weight itself as float64, so that float32 and float64 come back as they were given. A change
    takes the sums above it anew from what is below them: nothing drifts, and weights set one by one draw exactly what
    the same weights set at once do. n may be anything; PyTorch's multinomial ends at 2^24.

    Args:
        weights: [n] floats or integers, finite and at least 0, copied; or n itself, for weights of 0 that `update` is
            to set. Their sum must be finite.
        path: a new file for the weights, mapped into memory: `open` takes it up again. It is a .npy file of float64;
            the sums, half a byte a weight, stay in RAM.

    A process that is killed, at whatever moment, leaves in the file each weight that was being set as it was or as it
    is to be, and `open` takes all sums anew. What the machine itself must not lose needs a `flush`. A file belongs to
    one process at a time. `sample` may run in several threads at once; `update` only alone.

    Raises:
        ValueError: weights that are none, a file that exists, an argument out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch, torchassay as ta
        >>> tree = ta.SumTree(torch.tensor([0.5, 0.0, 1.5, 2.0]))
        >>> tree.sample(6, seed=0)
        tensor([2, 2, 3, 0, 2, 3])
        >>> tree.update(torch.tensor([3, 1]), torch.tensor([0.0, 0.25]))
        >>> tree.total, tree.sample(3, seed=(0, 1), replacement=False)
        (2.25, tensor([0, 2, 1]))
    """

    def __init__(self, weights: Numbers | int, path: str | os.PathLike | None = None):
        if isinstance(weights, int):
            checks.integer("SumTree", "weights", weights, 1)
            source = np.broadcast_to(0.0, weights)
        else:
            source = _numbers("SumTree", "weights", weights)
        if not len(source):
            raise checks.InputValueError("SumTree: weights must hold at least one, got none")
        self._file: np.memmap | None = None
        if path is None:
            self._leaves = _copied(source)
            self._build("SumTree", "weights must be")
        else:
            self._create(Path(path), source)

    @classmethod
    def open(cls, path: str | os.PathLike) -> SumTree:
        """The weights in a file that a tree was made with, or in any .npy file of float64 [n].

        Everything is read once, to check it and to take the sums.

        Raises:
            ValueError: another file, one that was cut off, or one that holds what is no weight.
        """
        tree = cls.__new__(cls)
        tree._map(Path(path))
        tree._build("SumTree.open", f"{path} must hold weights")
        return tree

    def __len__(self) -> int:
        return len(self._leaves)

    def __repr__(self) -> str:
        return f"SumTree({len(self)} weights, total {self.total})"

    @property
    def total(self) -> float:
        """The sum of all weights."""
        with np.errstate(over="ignore"):
            return float(reference.added(self._sums[-reference.CHILDREN :]))

    @property
    def positive(self) -> int:
        """How many weights are above 0."""
        return self._positive

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and the sums."""
        return self._leaves.nbytes + self._sums.nbytes

    def weights(self, index: Tensor | np.ndarray | Sequence[int] | None = None) -> Tensor:
        """The weights at ``index`` (integers [k], in [0, n)), or all of them: float64 [k], a copy."""
        found = self._leaves if index is None else self._leaves[self._index("SumTree.weights", index)]
        return torch.from_numpy(np.array(found))

    def sample(self, n: int, *, seed: int | Sequence[int], replacement: bool = True) -> Tensor:
        """Draw ``n`` entries, each in proportion to its weight.

        At every node of the way down a new 53-bit random number decides, so that a chance is right to 1e-15 of that of
        the 16 entries around it, however small a share of the whole these are. An entry of weight 0 is never drawn.

        Args:
            n: how many, at least 0.
            seed: an int in [0, 2^64), or several, such as (seed, epoch, step). Draws depend on them and on the weights
                alone: the same on every machine, with any number of threads, and with replacement the first n of
                n + 1 draws are these.
            replacement: False: successive sampling, every next one in proportion to its weight among those not yet
                drawn; all are different. The tree is not touched.

        Returns:
            int64 [n], in the order in which they were drawn.

        Raises:
            ValueError: no weight is above 0, or without replacement fewer than n are.
        """
        name = "SumTree.sample"
        checks.integer(name, "n", n, 0)
        key = key_of(name, seed)
        if n and not self.positive:
            raise checks.InputValueError(f"{name}: there must be a weight above 0, got none")
        if replacement:
            return torch.from_numpy(self._draw(key, 0, n))
        if n > self.positive:
            expected = f"at most {self.positive}, the number of weights above 0"
            raise checks.InputValueError(f"{name}: n must be {expected}, got {n}")
        return torch.from_numpy(self._draw_different(key, n))

    def update(self, index: Tensor | np.ndarray | Sequence[int], weights: Numbers) -> None:
        """Set the weights at ``index``; of an index that comes twice the last weight counts.

        Args:
            index: integers [k], in [0, n).
            weights: floats or integers [k], finite and at least 0.

        Raises:
            ValueError: an index out of range, weights that are none, or whose sum with the others would be infinite.
                Then nothing has changed.
        """
        name = "SumTree.update"
        place, value = self._index(name, index), _numbers(name, "weights", weights).astype(np.float64)
        if place.shape != value.shape:
            expected = f"index's shape {place.shape}"
            raise checks.InputValueError(f"{name}: weights must have {expected}, got {value.shape}")
        wrong = ~((value >= 0) & (value < np.inf))
        if wrong.any():
            at = int(np.argmax(wrong))
            got = f"{value[at]} at {place[at]}"
            raise checks.InputValueError(f"{name}: weights must be finite and at least 0, got {got}")
        with np.errstate(over="ignore"):
            large = not self.total + value.sum() < 1e308
        before = self._leaves[place] if large else None
        self._set(place, value)
        if before is not None and not self.total < np.inf:
            self._set(place, before)
            raise checks.InputValueError(f"{name}: weights must have a finite sum with all others, got inf")
        self.changes += 1

    def flush(self) -> None:
        """Write what has changed to the file, if there is one, and wait until it is on the disk."""
        if self._file is not None:
            self._file.flush()

    # ---- inside

    def _create(self, path: Path, weights: np.ndarray) -> None:
        """Make the file under another name first, and give it its own once it is whole and right."""
        if path.exists():
            raise checks.InputValueError(f"SumTree: path must be a new file, got {path}, for SumTree.open")
        with replacing(path) as fresh:
            with open(fresh, "xb") as file:
                described = {"descr": np.dtype(np.float64).str, "fortran_order": False, "shape": weights.shape}
                np.lib.format.write_array_header_1_0(file, described)
                for first in range(0, len(weights), AT_ONCE):
                    file.write(weights[first : first + AT_ONCE].astype(np.float64).data)
            self._map(fresh)
            self._build("SumTree", "weights must be")

    def _map(self, path: Path) -> None:
        self._file = _mapped(path)
        self._leaves = np.asarray(self._file)

    def _build(self, function: str, expected: str) -> None:
        """All sums anew, after a look at every weight."""
        leaves = self._leaves
        self._sums = _aligned(sum(reference.sizes(len(leaves))))
        if native is None:
            with np.errstate(over="ignore", invalid="ignore"):  # of what is no weight
                wrong, self._positive = reference.build(leaves, self._sums)
        else:
            wrong, self._positive = native.sum_tree_build(*self._place(), torch.get_num_threads())
        if wrong >= 0:
            got = f"{leaves[wrong]} at {wrong}"
            raise checks.InputValueError(f"{function}: {expected} finite and at least 0, got {got}")
        if not self.total < np.inf:
            raise checks.InputValueError(f"{function}: {expected} of a finite sum, got inf")
        self.changes = 0  # updates since then

    def _place(self) -> tuple[int, int, int]:
        return self._leaves.ctypes.data, self._sums.ctypes.data, len(self._leaves)

    def _set(self, place: np.ndarray, value: np.ndarray) -> None:
        if native is None:
            with np.errstate(over="ignore"):
                self._positive += reference.update(self._leaves, self._sums, place, value)
        else:
            where = place.ctypes.data, value.ctypes.data, len(place)
            self._positive += native.sum_tree_update(*self._place(), *where)

    def _draw(self, key: int, first: int, count: int) -> np.ndarray:
        if native is None:
            return reference.sample(self._leaves, self._sums, key, first, count)
        found = np.empty(count, np.int64)
        threads = torch.get_num_threads()
        native.sum_tree_sample(*self._place(), key, first, count, found.ctypes.data, threads)
        return found

    def _draw_different(self, key: int, n: int) -> np.ndarray:
        """Draws with replacement, of which those that come again do not count, are successive sampling. Where what has
        been drawn is more than half of the whole, the others are drawn from a tree without it."""
        found, draws, changed = np.empty(0, np.int64), 0, None
        while len(found) < n:
            missing = n - len(found)
            if changed is None:
                more = self._draw(key, draws, missing)
            else:
                more = reference.sample(self._leaves, self._sums, key, draws, missing, changed)
            draws += missing
            found = np.concatenate([found, more])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
            if 2 * np.cumsum(self._leaves[found])[-1] > self.total:  # in order: the same on every machine
                changed = reference.without(self._leaves, self._sums, found)
        return found

    def _index(self, function: str, index: Tensor | np.ndarray | Sequence[int]) -> np.ndarray:
        found = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
        if found.size and found.dtype.kind not in "iu":
            raise checks.InputTypeError(f"{function}: index must be integers, got {found.dtype}")
        if found.ndim != 1:
            raise checks.InputValueError(f"{function}: index must have shape (k,), got {found.shape}")
        if found.size and not 0 <= found.min() <= found.max() < len(self):
            got = found.min() if found.min() < 0 else found.max()
            raise checks.InputValueError(f"{function}: index must be in [0, {len(self)}), got {got}")
        return np.ascontiguousarray(found, np.int64)


def _numbers(function: str, argument: str, value: Numbers) -> np.ndarray:
    """One dimension of floats or integers on the CPU, in whatever type NumPy has for them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        found = (value if value.dtype in (torch.float32, torch.float64) else value.double()).numpy()
    else:
        found = np.asarray(value)
    if found.size and found.dtype.kind not in "fiub":
        raise checks.InputTypeError(f"{function}: {argument} must be floats or integers, got {found.dtype}")
    if found.ndim != 1:
        raise checks.InputValueError(f"{function}: {argument} must have one dimension, got shape {found.shape}")
    return found


def key_of(function: str, seed: int | Sequence[int]) -> int:
    """64 bits for the random numbers of a seed."""
    parts = (seed,) if isinstance(seed, int) else tuple(seed) if isinstance(seed, Sequence) else (None,)
    if not all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
        raise checks.InputTypeError(f"{function}: seed must be an int or a sequence of ints, got {seed!r}")
    if not all(0 <= part < 1 << 64 for part in parts):
        raise checks.InputValueError(f"{function}: seed must be in [0, 2^64), got {seed!r}")
    words = np.array([len(parts), *parts], "<u8").view("<u4")
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def _aligned(n: int) -> np.ndarray:
    """n doubles that begin on 128 bytes, as nodes do."""
    room = np.empty(n + 16)
    first = -room.ctypes.data // 8 % 16
    return room[first : first + n]


def _copied(source: np.ndarray) -> np.ndarray:
    """As float64, by several threads: memory that is written for the first time costs more than what is written."""
    found = _aligned(len(source))

    def copy(first: int) -> None:
        found[first : first + AT_ONCE] = source[first : first + AT_ONCE]

    if len(source) <= AT_ONCE:
        copy(0)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(copy, range(0, len(source), AT_ONCE)))
    return found


def _mapped(path: Path) -> np.memmap:
    """The numbers in a .npy file of float64 [n]; np.memmap alone would lengthen a file that was cut off."""
    expected = f"SumTree.open: {path} must be a .npy file of float64 [n]"
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception:  # whatever the bytes made of NumPy's reader
            raise checks.InputValueError(f"{expected}, got another file") from None
        first, size = file.tell(), os.fstat(file.fileno()).st_size
    if version != (1, 0) or dtype != np.float64 or len(shape) != 1 or shape[0] < 1:
        raise checks.InputValueError(f"{expected}, got {dtype} {list(shape)}")
    if size != first + 8 * shape[0]:
        raise checks.InputValueError(f"{expected}, got {size} bytes for {shape[0]} numbers")
    return np.memmap(path, np.float64, "r+", first, shape)
