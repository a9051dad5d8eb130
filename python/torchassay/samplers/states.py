"""States of samplers on disk: whole or not there, however the process ends."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, ItemsView, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchassay import checks
from torchassay.whole_files import meant_for, replacing

INLINE_BYTES = 1_000_000  # tensors of more bytes in all go to a file beside
_DIGEST = hashlib.sha256().digest_size  # of the checksum at the end of a file
_ZIP_END = 22  # bytes of what ends torch's files, which are zip archives


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

    Both are written under other names first: a process that is killed leaves the old state or the new one. The file
    ends with its own checksum: torch does not look at those inside.
    """
    path, beside = Path(path), None
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    small = _taken_out(state, tensors)
    if sum(tensor.nbytes for tensor in tensors.values()) <= INLINE_BYTES:
        data = _bytes({"state": small, "tensors": tensors})
    else:
        large = _bytes(tensors)
        checksum = hashlib.sha256(large).hexdigest()
        beside = path.with_name(f"{path.name}.{checksum[:16]}")
        with replacing(beside) as fresh:
            fresh.write_bytes(large)
        data = _bytes({"state": small, "beside": beside.name, "checksum": checksum})
    with replacing(path) as fresh, fresh.open("wb") as file:
        file.writelines((data, hashlib.sha256(data).digest()))
    of_saves_before = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{16})?")
    for other in path.parent.iterdir():
        if of_saves_before.fullmatch(meant_for(other) or other.name) and other not in (path, beside):
            other.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> dict:
    """What `save` wrote.

    Raises:
        ValueError: not a file of `save`'s, or one that has changed since; or the file beside it is missing or is not
            the one that was written. Nothing in either is executed.
    """
    path = Path(path)
    data = path.read_bytes()
    if data[-_ZIP_END:][:4] != b"PK\5\6":  # else of a version that wrote no checksum
        data, digest = data[:-_DIGEST], data[-_DIGEST:]
        if hashlib.sha256(data).digest() != digest:
            raise _refused(path, "another file (checksum)")
    saved = _unpickled(path, data)
    if saved.get("beside"):
        beside = path.with_name(Path(f"{saved['beside']}").name)  # here, whatever else it may say
        if not beside.is_file():
            raise checks.InputValueError(f"load: {path} must have {beside.name} beside it, got no such file")
        data = beside.read_bytes()
        checksum, expected = hashlib.sha256(data).hexdigest(), saved.get("checksum")
        if checksum != expected:
            raise checks.InputValueError(f"load: {beside} must have the checksum {expected}, got {checksum}")
        saved["tensors"] = _unpickled(beside, data)
    try:
        return _put_back(saved["state"], saved["tensors"], {})
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(path, f"another state ({type(error).__name__})") from None


class Saved:
    """What has a `state_dict` and a `load_state_dict`, on disk."""

    state_dict: Callable[[], dict]
    load_state_dict: Callable[[dict], None]

    def save(self, path: str | os.PathLike) -> None:
        """Write the `state_dict` to ``path``; large arrays into a file beside it, with a checksum."""
        save(path, self.state_dict())

    def load(self, path: str | os.PathLike) -> None:
        """Go on from what `save` wrote."""
        state = load(path)
        try:
            self.load_state_dict(state)
        except (checks.InputValueError, checks.InputTypeError):
            raise
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            name, got = type(self).__name__, f"another state ({type(error).__name__}: {error})"
            raise checks.InputValueError(f"{name}: {path} must hold a state of {name}, got {got}") from error


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


def _put_back(value: Any, tensors: dict[str, Tensor], done: dict[int, Any]) -> Any:
    """``done`` is what was put back already: a file may say the same list a million times."""
    if id(value) in done:
        return done[id(value)]
    found = value
    if isinstance(value, dict):
        if value.keys() == {None}:
            return _whole(tensors[value[None]])
        found = {key: _put_back(item, tensors, done) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(_put_back(item, tensors, done) for item in value)
    done[id(value)] = found
    return found


def _unpickled(path: Path, data: bytes) -> dict:
    """What torch.load finds in bytes that may be anything: tensors and plain Python, which take no more than the bytes
    do, since nothing may be compressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile
        found = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # whatever the bytes made of torch's reader
        raise _refused(path, f"another file ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise _refused(path, f"another file ({type(found).__name__})")
    return found


def _whole(tensor: Tensor) -> Tensor:
    """A tensor as `save` writes it, and none that says it is larger than its memory."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.untyped_storage().nbytes() != tensor.nbytes:
        raise TypeError
    return tensor


def _refused(path: Path, got: str) -> checks.InputValueError:
    return checks.InputValueError(f"load: {path} must be what save wrote, got {got}")


def _bytes(value: Any) -> memoryview:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()
