"""States of samplers on disk: whole or not there, however the process ends."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, ItemsView, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchassay import checks

INLINE_BYTES = 1_000_000  # tensors of more bytes in all go to a file beside
_LEFT_OVER = re.compile(r"\.[0-9a-f]{16}|(\.[0-9a-f]{16})?\.\d+\.partial")  # behind the name: of saves before


class Live(Mapping):
    """A part of a state that is worked out when somebody reads or writes it, and costs nothing before.

    So a loader that takes the state with every batch does not wait for a GPU. What is written is a plain dict.
    """

    def __init__(self, make: Callable[[], dict]):
        self._make = make

    def __getitem__(self, key: str) -> Any:
        return self._make()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())

    def __len__(self) -> int:
        return len(self._make())

    def items(self) -> ItemsView:
        return self._make().items()  # all at once

    def __reduce__(self) -> tuple:
        return OrderedDict, (list(self.items()),)  # which torch.load takes with weights_only


def save(path: str | os.PathLike, state: dict) -> None:
    """Write ``state`` to ``path``; where its tensors take over 1 MB, they go to ``path.<checksum>`` beside it.

    Both are written under other names first: a process that is killed leaves the old state or the new one.
    """
    path, beside = Path(path), None
    tensors: dict[str, Tensor] = {}
    small = _taken_out(state, tensors)
    if sum(tensor.nbytes for tensor in tensors.values()) <= INLINE_BYTES:
        _write(path, _bytes({"state": small, "tensors": tensors}))
    else:
        data = _bytes(tensors)
        checksum = hashlib.sha256(data).hexdigest()
        beside = path.with_name(f"{path.name}.{checksum[:16]}")
        _write(beside, data)
        _write(path, _bytes({"state": small, "beside": beside.name, "checksum": checksum}))
    for other in path.parent.iterdir():
        if _LEFT_OVER.fullmatch(other.name.removeprefix(path.name)) and other != beside:
            other.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> dict:
    """What `save` wrote.

    Raises:
        ValueError: not a file of `save`'s, or the file beside it is missing or is not the one that was written.
    """
    path = Path(path)
    try:
        saved = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, EOFError, LookupError, RuntimeError) as error:  # whatever its bytes look like
        got = f"another file ({type(error).__name__})"
        raise checks.InputValueError(f"load: {path} must be what save wrote, got {got}") from None
    tensors = saved.get("tensors")
    if tensors is None:
        beside = path.with_name(saved["beside"])
        if not beside.exists():
            raise checks.InputValueError(f"load: {path} must have {saved['beside']} beside it, got no such file")
        data = beside.read_bytes()
        checksum = hashlib.sha256(data).hexdigest()
        if checksum != saved["checksum"]:
            raise checks.InputValueError(f"load: {beside} must have the checksum {saved['checksum']}, got {checksum}")
        tensors = torch.load(io.BytesIO(data), weights_only=True)
    return _put_back(saved["state"], tensors)


class Saved:
    """What has a `state_dict` and a `load_state_dict`, on disk."""

    state_dict: Callable[[], dict]
    load_state_dict: Callable[[dict], None]

    def save(self, path: str | os.PathLike) -> None:
        """Write the `state_dict` to ``path``; large arrays into a file beside it, with a checksum."""
        save(path, self.state_dict())

    def load(self, path: str | os.PathLike) -> None:
        """Go on from what `save` wrote."""
        self.load_state_dict(load(path))


def expect(function: str, state: dict, **mine: Any) -> None:
    """Raise unless the state was made by an object with the same arguments."""
    for name, value in mine.items():
        if state.get(name) != value:
            expected = f"{name}={value!r}"
            raise checks.InputValueError(f"{function}: the state must have {expected}, got {state.get(name)!r}")


def _taken_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The same nest of dicts, lists and numbers with a number in the place of each tensor."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        whole = value.untyped_storage().nbytes() == value.nbytes
        tensors[name] = value if whole else value.clone()  # a part would take all it is a part of along
        return {None: name}  # a key that no dict of ours has, nor a batch
    if isinstance(value, Mapping):
        return {key: _taken_out(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_taken_out(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {None}:
            return tensors[value[None]]
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_back(item, tensors) for item in value)
    return value


def _bytes(value: Any) -> memoryview:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def _write(path: Path, data: memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
