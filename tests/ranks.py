"""Several processes on this machine, joined by gloo."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.multiprocessing

multiprocessing.set_forkserver_preload(["torchassay", "pytest"])  # imported once, then ranks start at once
LONGEST = timedelta(seconds=120)  # that a rank waits for another, which may never come: then it fails


def _rank(rank: int, world: int, folder: str, file: str, name: str, arguments: tuple) -> None:
    """``file``: the function's, since pytest gives files of tests names that another process cannot import."""
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name)
    meeting = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", meeting, timeout=LONGEST, rank=rank, world_size=world)
    try:
        torch.save(function(rank, *arguments), f"{folder}/{rank}")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        torch.distributed.destroy_process_group()


def on_ranks(world: int, folder: Path, function: Callable, *arguments) -> list:
    """What ``function(rank, *arguments)``, of a module's top level, returns on every rank: tensors, dicts, lists."""
    place = inspect.getfile(function), function.__name__
    how = {"nprocs": world, "start_method": "forkserver"}
    torch.multiprocessing.start_processes(_rank, (world, str(folder), *place, arguments), **how)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(world)]
