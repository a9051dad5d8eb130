"""What this card's memory gives: the most that any kernel here can reach, measured and not read off a datasheet."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from clock import milliseconds
from torch import Tensor

READERS = ((4096, 4, 4), (8192, 1, 8), (8192, 8, 8), (16384, 1, 16))  # columns of a block, blocks of a program, warps


@triton.jit
def _largest(x_ptr, out_ptr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The largest number of each stretch of BLOCK * BLOCKS: nothing but loads."""
    program = tl.program_id(0)
    start = x_ptr + program.to(tl.int64) * BLOCK * BLOCKS + tl.arange(0, BLOCK)
    largest = tl.load(start)
    for i in tl.static_range(1, BLOCKS):
        largest = tl.maximum(largest, tl.load(start + i * BLOCK))
    tl.store(out_ptr + program, tl.max(largest, 0))


def read(x: Tensor, block: int, blocks: int, warps: int) -> Tensor:
    """Read x, a multiple of block * blocks numbers."""
    out = torch.empty(x.numel() // (block * blocks), dtype=x.dtype, device=x.device)
    _largest[(out.numel(),)](x, out, block, blocks, num_warps=warps)
    return out


def measure(device: str, count: int, rounds: int = 15) -> dict[str, float]:
    """GB/s of copying ``count`` float32 numbers (bytes read and written) and of several ways to read them."""
    x = torch.randn(count, device=device)
    y = torch.empty_like(x)
    ways: dict[str, Callable[[], object]] = {
        "copy": lambda: y.copy_(x),
        "read, torch.sum": lambda: x.sum(),
        "read, torch.amax": lambda: x.amax(),
    }
    for block, blocks, warps in READERS:
        name = f"read, Triton, {block} x {blocks} numbers a program, {warps} warps"
        ways[name] = lambda block=block, blocks=blocks, warps=warps: read(x, block, blocks, warps)
        found = ways[name]().amax()
        assert found == x.amax(), f"{name}: {found}"
    speeds = {}
    for name, way in ways.items():
        way()
        ms = statistics.median(milliseconds(way) for _ in range(rounds))
        speeds[name] = (2 if name == "copy" else 1) * x.nbytes / ms / 1e6
    return speeds


def best_read(speeds: dict[str, float]) -> float:
    return max(speed for name, speed in speeds.items() if name.startswith("read"))
