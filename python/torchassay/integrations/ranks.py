"""The states of all ranks in one, for trainers whose checkpoints are written by one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from torchassay import checks
from torchassay.distributed import cpu_group, joined


def of_all_ranks(state: dict) -> list[dict]:
    """The states of all ranks in the first one's hands, this rank's alone in those of the others; everybody's call."""
    mine = _plain(state)
    if not joined():
        return [mine]
    everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, everyone, dst=0, group=cpu_group())
    return everyone or [mine]


def of_this_rank(function: str, states: list[dict]) -> dict:
    """What `of_all_ranks` was given on this rank."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if joined() else (0, 1)
    if len(states) != world:
        expected = f"the states of {world} process{'es' if world > 1 else ''}, as many as there are now"
        raise checks.InputValueError(f"{function}: the checkpoint must hold {expected}, got {len(states)}")
    return states[rank]


def _plain(value: Any) -> Any:
    """A state in plain dicts: other people's checkpoints copy what is in them, type by type."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
