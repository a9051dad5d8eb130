"""Files that are whole or not there, however the process ends."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

_PARTIAL = re.compile(r"\.partial-[0-9a-f]{32}-(.+)")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file under. Once that is on the disk it takes the place of ``path`` at once; if
    writing failed it goes. A process that is killed leaves it behind: `meant_for`."""
    fresh = path.with_name(f".partial-{uuid.uuid4().hex}-{path.name}")  # writers look at how a name ends
    try:
        yield fresh
        _sync(fresh)
        fresh.replace(path)
        _sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def meant_for(path: Path) -> str | None:
    """The name of the file that a process was writing in ``path``, or None if it is not one of `replacing`'s."""
    found = _PARTIAL.fullmatch(path.name)
    return None if found is None else found[1]


def clear(folder: Path) -> None:
    """What killed processes left half written goes."""
    for path in folder.iterdir():
        if meant_for(path) is not None:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
