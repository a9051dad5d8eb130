"""What stands in files that a command wrote before, or somebody else."""

from __future__ import annotations

import json
from pathlib import Path

from torchassay.checks.arguments import InputValueError


def json_object(function: str, path: Path, **fields: type) -> dict:
    """The object in a JSON file, which has at least these fields, of these types."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no UTF-8, no JSON, too many digits, or too deep
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in fields.items()):
        raise InputValueError(f"{function}: '{path}' must be JSON with {' and '.join(fields)}, got another file")
    return found
