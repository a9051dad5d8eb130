"""States of samplers on disk: whole or not there, however the process ends."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch
from torch import Tensor

from torchassay import checks

INLINE_BYTES = 1_000_000  # tensors of more bytes in all go to a file beside


def save(path: str | os.PathLike, state: dict) -> None:
    """Write ``state`` to ``path``; where its tensors take over 1 MB, they go to ``path.<checksum>`` beside it.

    Both are written under other names first: a process that is killed leaves the old state or the new one.
    """
    path, tensors = Path(path), {}
    small = _taken_out(state, tensors)
    if sum(tensor.nbytes for tensor in tensors.values()) <= INLINE_BYTES:
        _write(path, _bytes({"state": small, "tensors": tensors}))
        return
    data = _bytes(tensors)
    checksum = hashlib.sha256(data).hexdigest()
    beside = path.with_name(f"{path.name}.{checksum[:16]}")
    _write(beside, data)
    _write(path, _bytes({"state": small, "beside": beside.name, "checksum": checksum}))
    for old in path.parent.glob(f"{path.name}.{'[0-9a-f]' * 16}"):
        if old != beside:
            old.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> dict:
    """What `save` wrote.

    Raises:
        ValueError: the file beside is missing or is not the one that was written.
    """
    path = Path(path)
    saved = torch.load(path, weights_only=True)
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


def expect(function: str, state: dict, **mine) -> None:
    """Raise unless the state was made by an object with the same arguments."""
    for name, value in mine.items():
        if state.get(name) != value:
            expected = f"{name}={value!r}"
            raise checks.InputValueError(f"{function}: the state must have {expected}, got {state.get(name)!r}")


def _taken_out(value, tensors: dict[str, Tensor]):
    """The same nest of dicts, lists and numbers with a number in the place of each tensor."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        whole = value.untyped_storage().nbytes() == value.nbytes
        tensors[name] = value if whole else value.clone()  # a part would take all it is a part of along
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _taken_out(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_out(item, tensors) for item in value]
    return value


def _put_back(value, tensors: dict[str, Tensor]):
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_back(item, tensors) for item in value]
    return value


def _bytes(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
