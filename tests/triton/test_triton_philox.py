"""triton_kernels/philox.py: the words themselves, whose uniforms tests/test_philox.py compares."""

import pytest
import random123
import torch
import triton
import triton.language as tl
from torchassay.triton_kernels import philox

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit(do_not_specialize=["seed", "draw", "n"])
def store_words(row_ptr, seed: tl.int64, draw: tl.int64, n: tl.int64, out_ptr, N, PURPOSE: tl.constexpr):
    at = tl.arange(0, 16)
    row = tl.load(row_ptr + at, mask=at < N, other=0)
    draw = tl.full((16,), draw, tl.int64)
    n = tl.full((16,), n, tl.int64)
    w0, w1, w2, w3 = philox.random_words(seed, PURPOSE, row, draw, n)
    tl.store(out_ptr + 4 * at, w0.to(tl.int64), mask=at < N)
    tl.store(out_ptr + 4 * at + 1, w1.to(tl.int64), mask=at < N)
    tl.store(out_ptr + 4 * at + 2, w2.to(tl.int64), mask=at < N)
    tl.store(out_ptr + 4 * at + 3, w3.to(tl.int64), mask=at < N)


def words(rows, seed, draw, tag=random123.PICKS, n=0) -> list[list[int]]:
    out = torch.full((len(rows), 4), -1, device=DEVICE)
    store_words[(1,)](torch.tensor(rows, device=DEVICE), seed, draw, n, out, len(rows), tag)
    return out.tolist()


@pytest.mark.parametrize(("counter", "key", "expected"), random123.VECTORS.values(), ids=random123.VECTORS)
def test_published_words(counter, key, expected):
    seed, tag, row, draw, n = random123.place(counter, key)
    assert words([row], seed, draw, tag, n) == [list(expected)]


@pytest.mark.parametrize("seed", random123.SEEDS)
def test_words(seed):
    for step in random123.STEPS:
        expected = [list(random123.words(seed, random123.PICKS, row, step, 0)) for row in random123.ROWS]
        assert words(random123.ROWS, seed, step) == expected


def test_nothing_outside_is_touched(only_own_addresses):
    rows = torch.arange(2**33, 2**33 + 300)
    out = torch.full((300,), -1.0)
    philox.uniforms(rows, torch.tensor(5), 0, 8, out)
    assert torch.equal(out, random123.uniforms(rows.tolist(), 5, 8))
