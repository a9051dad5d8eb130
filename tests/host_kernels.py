"""The CUDA kernels on tensors in CPU memory, run by the programs of run_*.cpp."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchassay.ops.memory import layout
from torchassay.options import Options
from torchassay.reference.states import NUMBERS, PLAIN
from torchassay.scores import NOISY_SIGNALS, ROW_SIGNALS

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # csrc/api.h, enum Dtype
SLOTS = (*ROW_SIGNALS, "stats")
NEED_TARGET = ("loss", "grad_norm", "target_margin")
STATE_SLOTS = (SLOTS.index("prediction"), SLOTS.index("stats"))  # where the kernels of states write k and the numbers


class Kernels:
    """The kernels as their launchers start them on a GPU with so many multiprocessors: run_kernels.cpp."""

    stats_rows = 6

    def __init__(self, program: Path):
        self.program = program

    def scores(
        self,
        input: Tensor,  # [..., C]
        target: Tensor | None = None,  # [N]
        names: tuple[str, ...] | None = None,
        ignore_index: int = -100,
        multiprocessors: int = 132,
    ) -> dict[str, Tensor]:
        """Signals by name, each [N] (stats [6, N]); default: all that the target allows."""
        if names is None:
            names = tuple(name for name in SLOTS if target is not None or name not in NEED_TARGET)
        slots = [i for i, name in enumerate(SLOTS) if name in names]
        asked = sum(1 << slot for slot in slots)
        found = self._run(_numbers(asked, multiprocessors) + _rows(input) + _targets(target, ignore_index))
        return _slots(found, slots, input[..., 0].numel(), self.stats_rows)

    def grads(
        self,
        input: Tensor,
        target: Tensor | None,
        stats: Tensor,
        grad_loss: Tensor | None,
        grad_entropy: Tensor | None,
        ignore_index: int = -100,
        first: int = 0,
        total: int = 0,
    ) -> Tensor:
        """The gradient [N, C] in the dtype of the input, whose classes are those from ``first`` on of ``total``."""
        request = _numbers(0, 132) + _rows(input) + _targets(target, ignore_index, first, total) + _bytes(stats)
        for upstream in (grad_loss, grad_entropy):
            request += _numbers(0, 0) if upstream is None else _numbers(upstream.stride(0)) + _bytes(upstream)
        found = self._run(request)
        return torch.frombuffer(found, dtype=input.dtype).reshape(-1, input.shape[-1])

    def _run(self, request: bytes) -> bytearray:
        return _run(self.program, request)


class OptionKernels(Kernels):
    """The same with options: run_options.cpp. A target in floating point, [N, C], is class probabilities."""

    stats_rows = 7

    def __init__(self, program: Path, options: Options | None = None, probabilities: Tensor | None = None):
        super().__init__(program)
        self.options = Options() if options is None else options
        self.probabilities = probabilities

    def under(self, probabilities: Tensor | None = None, **options) -> OptionKernels:
        """The kernels under these options, for these probabilities in the place of labels."""
        return OptionKernels(self.program, Options(**options), probabilities)

    def _run(self, request: bytes) -> bytearray:
        return _run(self.program, request + self._options())

    def _options(self) -> bytes:
        weight, smoothing, rows, temperature, softcap, z_loss = self.options.flat()
        tensors = weight, self.probabilities, rows
        request = b"".join(_numbers(0) if tensor is None else _bytes(tensor.float()) for tensor in tensors)
        return request + struct.pack("=4d", temperature, smoothing, softcap, z_loss)


class StateKernels(OptionKernels):
    """The kernels for slices of the classes, under options: run_states.cpp."""

    def under(self, **options) -> StateKernels:
        return StateKernels(self.program, Options(**options))

    @property
    def numbers(self) -> int:
        """Of a state."""
        return len(NUMBERS) if self.options.label_smoothing > 0 else PLAIN

    def states(
        self,
        input: Tensor,  # [..., C]
        target: Tensor | None,  # [N]
        first: int,
        total: int,
        ignore_index: int = -100,
        multiprocessors: int = 132,
    ) -> tuple[Tensor, Tensor]:
        """The state of a slice, whose weights are the options': numbers [6 or 9, N] and k [N]."""
        asked = _numbers(0, self.numbers > PLAIN, sum(1 << slot for slot in STATE_SLOTS), multiprocessors)
        found = self._run(asked + _rows(input) + _targets(target, ignore_index, first, total))
        return self._state(found, input[..., 0].numel())

    def merge(self, numbers: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The state of all slices: [P, 6 or 9, N] and [P, N]."""
        request = self._parts(1, numbers, k) + _numbers(sum(1 << slot for slot in STATE_SLOTS))
        return self._state(self._run(request + _targets(None, -100)), k.shape[1])

    def finish(
        self,
        numbers: Tensor,
        k: Tensor,
        target: Tensor | None,
        total: int,
        names: tuple[str, ...] = SLOTS,
        ignore_index: int = -100,
    ) -> dict[str, Tensor]:
        """Signals by name, as `scores`; the options' weight [N] is that of each target's class."""
        slots = [i for i, name in enumerate(SLOTS) if name in names]
        request = self._parts(2, numbers, k) + _numbers(sum(1 << slot for slot in slots))
        found = self._run(request + _targets(target, ignore_index, 0, total))
        return _slots(found, slots, k.shape[1], self.stats_rows)

    def _parts(self, asked: int, numbers: Tensor, k: Tensor) -> bytes:
        head = _numbers(asked, numbers.shape[1] > PLAIN, *k.shape)
        return head + _bytes(numbers.contiguous()) + _bytes(k.contiguous())

    def _state(self, found: bytearray, count: int) -> tuple[Tensor, Tensor]:
        outputs = _slots(found, STATE_SLOTS, count, self.numbers)
        return outputs["stats"], outputs["prediction"]


class Draws(NamedTuple):
    """The kernels that score several draws."""

    program: Path

    def __call__(
        self,
        input: Tensor,  # [..., C], or members of an ensemble [T, ..., C]
        top: Tensor | None = None,  # [N] float32; None: an ensemble
        draws: int = 1,  # of an ensemble, its members
        std: Tensor | float = 0.0,  # [N] float32, or for all
        scale: Tensor | float = 1.0,
        row_id: Tensor | None = None,
        seed: int = 0,
        seed_by_address: bool = False,
        names: tuple[str, ...] = NOISY_SIGNALS,
    ) -> dict[str, Tensor]:
        """Signals by name, each [N]."""
        rows, stride = (input, 0) if top is not None else (input[0], input.stride(0))
        asked = sum(1 << i for i, name in enumerate(NOISY_SIGNALS) if name in names)
        request = _numbers(asked) + _rows(rows) + _numbers(draws if top is not None else len(input), stride)
        request += _optional(top) + _number_or_tensor(std) + _number_or_tensor(scale) + _optional(row_id)
        found = _run(self.program, request + _numbers(seed_by_address, seed))
        table = torch.frombuffer(found, dtype=torch.float32).reshape(len(names), -1)
        return dict(zip([name for name in NOISY_SIGNALS if name in names], table, strict=True))


class Cdf(NamedTuple):
    """The kernel that counts what lies below values."""

    program: Path

    def __call__(self, window: Tensor, total: int, values: Tensor, midrank: bool) -> Tensor:
        request = _numbers(len(window), total, len(values), values.stride(0), midrank) + window.numpy().tobytes()
        last = (len(values) - 1) * values.stride(0) + 1
        found = _run(self.program, request + values.as_strided((last,), (1,)).numpy().tobytes())
        return torch.frombuffer(found, dtype=torch.float32)


class Heads(NamedTuple):
    """The kernels of heads that are no softmax."""

    program: Path

    def __call__(
        self,
        input: Tensor,  # [N, L], dense along L
        target: Tensor,  # [N, L] float32, dense along L
        pos_weight: Tensor | None = None,  # [L]
        head: str = "binary",
        delta: float = 1.0,
    ) -> dict[str, Tensor]:
        """Signals by name, each [N]."""
        request = _numbers(("binary", "mse", "l1", "huber").index(head), DTYPES[input.dtype], *input.shape)
        request += struct.pack("=d", delta)
        for tensor in (input, target):
            request += _numbers(tensor.stride(0)) + _bytes(tensor)
        request += _numbers(0) if pos_weight is None else _bytes(pos_weight)
        found = torch.frombuffer(_run(self.program, request), dtype=torch.float32).view(3, -1)
        names = ("loss", "entropy", "grad_norm") if head == "binary" else ("loss", "", "grad_norm")
        return {name: value for name, value in zip(names, found, strict=True) if name}


def _slots(found: bytearray, slots: Sequence[int], count: int, stats_rows: int) -> dict[str, Tensor]:
    """Outputs by name, in the order of the slots."""
    outputs = {}
    for slot in slots:
        name = SLOTS[slot]
        dtype = torch.int64 if name == "prediction" else torch.float32
        shape = (stats_rows, count) if name == "stats" else (count,)
        size = torch.Size(shape).numel() * dtype.itemsize
        outputs[name] = torch.frombuffer(found[:size], dtype=dtype).reshape(shape)
        found = found[size:]
    assert not found
    return outputs


def _run(program: Path, request: bytes) -> bytearray:
    done = subprocess.run([program], input=request, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return bytearray(done.stdout)


def _numbers(*values: int) -> bytes:
    return struct.pack(f"={len(values)}q", *values)


def _storage(tensor: Tensor) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage()).numpy().tobytes()


def _bytes(tensor: Tensor) -> bytes:
    """The storage from the tensor's first element on, and its length before it."""
    storage = _storage(tensor)[tensor.storage_offset() * tensor.itemsize :]
    return _numbers(len(storage)) + storage


def _optional(tensor: Tensor | None) -> bytes:
    return _numbers(0) if tensor is None else _bytes(tensor)


def _number_or_tensor(number: Tensor | float) -> bytes:
    tensor, value = (number, 0.0) if isinstance(number, Tensor) else (None, number)
    return _optional(tensor) + struct.pack("=d", value)


def _rows(input: Tensor) -> bytes:
    """The rows where they lie in their storage, of which a tensor may see a part."""
    rows, *where = layout(input.detach(), input.dim() - 1)
    storage = _storage(rows)
    offset = rows.storage_offset() * rows.itemsize
    return _numbers(DTYPES[input.dtype], *where, offset, len(storage)) + storage


def _targets(target: Tensor | None, ignore_index: int, first: int = 0, total: int = 0) -> bytes:
    wide = target is not None and target.dtype == torch.int64
    return _numbers(wide, ignore_index, first, total) + _optional(None if target is None else target.contiguous())
