"""Two processes of `two_ranks.py`, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch


def two_ranks(library: str, folder: Path) -> list[dict]:
    """What each rank was trained on, and the model it ended with."""
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([*command, script, library, folder], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [torch.load(folder / f"final.{rank}", weights_only=True) for rank in range(2)]
