"""csrc/philox.h, and the CUDA kernel of the uniforms, run on the host."""

import struct
import subprocess

import pytest
import random123
import torch


@pytest.fixture(scope="module")
def draw(host_program):
    """draw(rows, seed, step) -> (uniforms of the step [N], words of the draw [N, 4])."""
    program = host_program("run_philox.cpp")

    def run(rows, seed, step, tag=random123.PICKS, n=0, by_address=False):
        numbers = [seed, by_address, tag, step, n, len(rows), *rows]
        done = subprocess.run([program], input=struct.pack(f"={len(numbers)}q", *numbers), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        found = bytearray(done.stdout)
        words = torch.frombuffer(found[4 * len(rows) :], dtype=torch.int32).reshape(-1, 4)
        return torch.frombuffer(found[: 4 * len(rows)], dtype=torch.float32), words.long() & 0xFFFFFFFF

    return run


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
