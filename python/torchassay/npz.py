"""Arrays in .npz files that may be anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def arrays(path: Path, wanted: Callable[[str], object] = bool) -> dict[str, np.ndarray]:
    """Those whose names are ``wanted``; any exception at all where NumPy stumbles over the bytes.

    Nothing is unpickled, and the file is closed, which NumPy leaves open where it finds no archive in it.
    """
    with path.open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with stored:
            found = {name: stored[name] for name in stored.files if wanted(name)}
    others = [name for name, values in found.items() if not isinstance(values, np.ndarray)]
    if others:
        raise ValueError(f"{others[0]!r} is no array")
    return found
