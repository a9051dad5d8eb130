"""Several processes on this machine, joined by gloo."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing


def _rank(rank: int, world: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        torch.save(function(rank, *arguments), f"{folder}/{rank}")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        torch.distributed.destroy_process_group()


def on_ranks(world: int, folder: Path, function: Callable, *arguments) -> list:
    """What ``function(rank, *arguments)`` returns on every rank, a tensor or a dict or list of such."""
    torch.multiprocessing.spawn(_rank, (world, str(folder), function, arguments), nprocs=world)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(world)]
