"""The model that is to score: made, placed, named, and called with what its forward takes."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchassay import checks
from torchassay.named_objects import imported

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_SELF = "DatasetScorer"


def made(model: Any) -> nn.Module:
    found = imported(_SELF, "model", model) if isinstance(model, str) else model
    if not isinstance(found, nn.Module):
        if not callable(found):
            expected = "an nn.Module, a callable that makes one, or the name of either"
            raise checks.InputTypeError(f"{_SELF}: model must be {expected}, got {type(found).__name__}")
        found = found()
    if not isinstance(found, nn.Module):
        raise checks.InputTypeError(f"{_SELF}: model must make an nn.Module, got {type(found).__name__}")
    return found


def placed(model: nn.Module, theirs: bool, device: Any, dtype: str | None) -> nn.Module:
    """On its device and in its dtype; a module of the caller's is never changed."""
    values = [*model.parameters(), *model.buffers()]
    device = values[0].device if theirs and device is None and values else device_of(device)
    wanted = DTYPES[dtype] if dtype else None
    if theirs and all(
        value.device == device and (wanted in (None, value.dtype) or not value.is_floating_point()) for value in values
    ):
        return model
    return (copy.deepcopy(model) if theirs else model).to(device, wanted)


def device_of(device: Any) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise checks.InputValueError(f"{_SELF}: device must be cpu, cuda or cuda:N, got '{device}'") from None
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise checks.InputValueError(f"{_SELF}: device must be there, got '{device}', but torch sees no GPU")
        number = (
            int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count() if found.index is None else found.index
        )
        found = torch.device("cuda", number)
    return found


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers that a state dict holds."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def taken(model: nn.Module, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that the model's forward takes by name."""
    names = inspect.signature(model.forward).parameters
    return {name: column for name, column in columns.items() if name in names}


def uncached(model: nn.Module) -> dict[str, bool]:
    """What keeps a model from holding keys and values that nobody reads."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
