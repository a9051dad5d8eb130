"""csrc/philox.h, and the CUDA kernels of the random numbers, run on the host."""

import struct
import subprocess

import numpy as np
import pytest
import random123
import torch


@pytest.fixture(scope="module")
def run(host_program):
    """run(rows, seed, draw) -> (uniforms of the step [N], words of the draw [N, 4], its numbers [N, columns])."""
    program = host_program("run_philox.cpp")

    def call(rows, seed, draw, tag=random123.PICKS, n=0, by_address=False, columns=1, uniform=True):
        numbers = [seed, by_address, draw, n, columns, tag, uniform, len(rows), *rows]
        done = subprocess.run([program], input=struct.pack(f"={len(numbers)}q", *numbers), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        found = bytearray(done.stdout)
        count = len(rows)
        words = torch.frombuffer(found, dtype=torch.int32, offset=4 * count, count=4 * count).reshape(-1, 4)
        table = torch.frombuffer(found, dtype=torch.float32, offset=20 * count).reshape(count, columns)
        return torch.frombuffer(found, dtype=torch.float32, count=count), words.long() & 0xFFFFFFFF, table

    return call


@pytest.fixture(scope="module")
def draw(run):
    """draw(rows, seed, step) -> (uniforms of the step [N], words of the draw [N, 4])."""
    return lambda *given, **named: run(*given, **named)[:2]


@pytest.mark.parametrize(("counter", "key", "words"), random123.VECTORS.values(), ids=random123.VECTORS)
def test_published_words(counter, key, words, draw):
    seed, tag, row, step, n = random123.place(counter, key)
    assert draw([row], seed, step, tag, n)[1].tolist() == [list(words)]


@pytest.mark.parametrize("seed", random123.SEEDS)
@pytest.mark.parametrize("step", random123.STEPS)
def test_words_and_uniforms(step, seed, draw):
    uniforms, words = draw(random123.ROWS, seed, step)
    assert words.tolist() == [list(random123.words(seed, random123.PICKS, row, step, 0)) for row in random123.ROWS]
    assert torch.equal(uniforms, random123.uniforms(random123.ROWS, seed, step))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 700])
def test_every_row_of_every_block(count, draw):
    rows = range(2**33, 2**33 + count)
    expected = random123.uniforms(rows, -7, 3)
    assert torch.equal(draw(rows, -7, 3)[0], expected)
    assert torch.equal(draw(rows, -7, 3, by_address=True)[0], expected)


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 32, 33, 1000])
@pytest.mark.parametrize("seed", [12345, 2**63 - 5])
def test_numbers_of_columns(seed, columns, run):
    """Of every tag, the columns before and after each seam of the blocks and of the threads."""
    for tag, step in ((0, 0), (1, 2**32 - 1)):
        given = [2**33 + 7, -3, *range(5)], seed, step, tag
        uniforms = np.stack([random123.column_uniforms(seed, tag, row, step, columns) for row in given[0]])
        assert torch.equal(run(*given, columns=columns)[2], torch.from_numpy(uniforms).float())
        normals = run(*given, columns=columns, uniform=False, by_address=True)[2]
        exact = np.stack([random123.normals(seed, tag, row, step, columns) for row in given[0]])
        assert np.abs(normals.numpy() - exact).max() <= 1e-6


def test_normals_are_normal(run):
    count = 100_000
    found = run([2**33 + 1], 2**40 + 5, 3, tag=0, columns=count, uniform=False)[2].double().flatten()
    exact = random123.normals(2**40 + 5, 0, 2**33 + 1, 3, count)
    assert np.abs(found.numpy() - exact).max() <= 1e-6
    assert abs(found.mean()) < 3 / count**0.5 and abs(found.var() - 1) < 3 * (2 / count) ** 0.5
    below = torch.special.ndtr(found.sort().values)  # Kolmogorov and Smirnov: 1.36 is their 5 % point
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    assert torch.maximum(below - steps[:-1], steps[1:] - below).max() < 1.36 / count**0.5
