"""Python objects by name: ``package.module:name`` or ``path.py:name``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torchassay import checks


def is_name(text: str) -> bool:
    """Whether a text names an object in a module, rather than a file of data."""
    return ":" in text and not Path(text).exists()


def imported(function: str, argument: str, text: str):
    """The object of that name. The working directory, or the folder of ``path.py``, is searched first.

    Raises:
        ValueError: a module that cannot be imported, or one without that name.
    """
    module, _, name = text.rpartition(":")
    if not module or not name:
        raise checks.InputValueError(
            f"{function}: {argument} must be package.module:name or path.py:name, got '{text}'"
        )
    path = Path(module).resolve() if module.endswith(".py") else None
    folder = str(path.parent if path else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(path.stem if path else module)
    except Exception as error:  # the module is the user's: anything may happen in it
        expected = "one that can be imported"
        raise checks.InputValueError(
            f"{function}: {argument} must be {expected}, got '{text}' ({type(error).__name__}: {error})"
        ) from error
    if path and Path(found.__file__ or "").resolve() != path:
        got = f"'{text}', but '{path.stem}' is {found.__file__}"
        raise checks.InputValueError(f"{function}: {argument} must have a module name that is not taken, got {got}")
    if not hasattr(found, name):
        raise checks.InputValueError(f"{function}: {argument} must be a name in '{module}', got '{name}'")
    return getattr(found, name)
