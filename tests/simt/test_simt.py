"""simt.h itself: right kernels give what CUDA gives, and every kind of mistake that it watches for is caught."""

import re
import subprocess

import numpy as np
import pytest
import torch

RACE = r"thread \d+: race on shared memory \(.*shim_cases.cpp:\d+\), which thread \d+ has "
CAUGHT = {
    "race_between_warps": RACE + "read",
    "race_in_a_warp": RACE + "written",
    "write_after_read": RACE + "read",
    "write_after_read_by_another_warp": RACE + "(read|written)",  # the order of the warps decides
    "two_writers": RACE + "written",
    "read_before_write": r"thread 9: read of shared memory before a write \(.*shim_cases.cpp:\d+\)",
    "read_of_another_block": "block 0, thread .*: read of shared memory before a write",
    "index_too_high": "thread 63: index 64 of 64 in shared memory",
    "divergent_barriers": r"divergent threads: 0 stands at sync_block \(.*\), 3 at sync_warp|"
    r"divergent threads: 32 stands at sync_block \(.*\), 35 at sync_warp",
    "divergent_places": r"divergent threads: \d+ stands at shuffle_xor \(.*\), \d+ at shuffle_xor \(",
    "divergent_warps": r"divergent threads: 0 stands at sync_block \(.*\), 32 at its end",
    "lane_that_left": r"divergent threads: 0 stands at shuffle_xor \(.*\), 3 at its end",
    "shuffle_mask": r"shuffle_xor by 32 \(.*shim_cases.cpp:\d+\)",
    "funnel_bits": "funnel_right by 32",
    "threads": "a launch of 48 threads a block",
    "blocks": "a launch of 0 blocks",
}
TOUCHES = {"load_16": 16, "load_16_once": 16, "load_16_written": 16, "load_8": 8, "load": 4, "store_16": 16}
ORDERS = ("ascending", "descending")


@pytest.fixture(scope="module")
def program(host_program):
    return host_program("shim_cases.cpp")


@pytest.fixture
def run(program):
    """run(case, "right" or "wrong", order, ...) -> the ended process."""
    return lambda *words: subprocess.run([program, *words], capture_output=True, text=True)


@pytest.fixture
def printed(run):
    """printed(case, order) -> the numbers that a right kernel wrote."""

    def lines(case, order):
        done = run(case, "right", order)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return lines


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CAUGHT)
def test_a_mistake_is_caught_and_its_right_twin_is_not(run, case, order):
    right, wrong = run(case, "right", order), run(case, "wrong", order)
    assert (right.returncode, right.stderr) == (0, "")
    assert wrong.returncode == 3
    assert re.search(CAUGHT[case], wrong.stderr), wrong.stderr
    assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize("access", TOUCHES)
def test_an_access_with_one_byte_outside_is_caught(run, access):
    right, wrong = (run("outside", which, "ascending", access) for which in ("right", "wrong"))
    assert (right.returncode, right.stderr) == (0, "")
    assert wrong.returncode == 1
    assert "AddressSanitizer: heap-buffer-overflow" in wrong.stderr


@pytest.mark.parametrize("access", TOUCHES)
def test_a_misaligned_access_is_caught(run, access):
    right, wrong = (run("misaligned", which, "ascending", access) for which in ("right", "wrong"))
    assert (right.returncode, right.stderr) == (0, "")
    assert wrong.returncode == 3
    assert re.match(rf"block 0, thread 5: misaligned access of {TOUCHES[access]} bytes", wrong.stderr)


def test_a_thread_s_own_arrays_keep_their_redzones_over_a_collective(run):
    right, wrong = run("local_array", "right", "ascending"), run("local_array", "wrong", "ascending")
    assert (right.returncode, right.stderr) == (0, "")
    assert wrong.returncode == 1
    assert "AddressSanitizer: stack-buffer-overflow" in wrong.stderr
    assert "in local_array" in wrong.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_a_reduction_over_shared_memory(printed, order):
    rows = np.arange(3 * 128, dtype=np.float32).reshape(3, 128)
    assert [float(line) for line in printed("block_sums", order)] == rows.sum(1).tolist()


def test_threads_and_blocks_take_turns_in_the_order_asked_for(printed):
    turns = [str(turn) for turn in range(3 * 64)]
    assert printed("turns", "ascending") == turns
    assert printed("turns", "descending") == turns[::-1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float", "int", "uint32", "int64", "uint64"])
def test_shuffles(printed, dtype, order):
    thread = np.arange(64)
    value = (thread + 1) * 0x100000001
    value = value.astype({"float": np.float32, "int": np.int32}.get(dtype, dtype))
    found = np.array([float(line) if dtype == "float" else int(line) for line in printed(dtype, order)])
    np.testing.assert_array_equal(found.reshape(32, 64), value[thread ^ np.arange(32)[:, None]])


# ---- arithmetic

HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture
def apply(program):
    """apply(function, a, b, c) -> words, of words."""

    def words(function, a, b=0, c=0):
        triples = np.stack(np.broadcast_arrays(a, b, c), axis=-1).astype(np.uint32)
        done = subprocess.run([program, function], input=triples.tobytes(), capture_output=True, check=True)
        return np.frombuffer(done.stdout, np.uint32)

    return words


def widened(patterns, half) -> np.ndarray:
    return torch.from_numpy(patterns.astype(np.uint16)).view(HALVES[half]).float().numpy()


def narrowed(values, half) -> np.ndarray:
    """Patterns; the hardware has one for every NaN."""
    patterns = torch.from_numpy(values).to(HALVES[half]).view(torch.uint16).numpy()
    return np.where(np.isnan(values), 0x7FFF, patterns)


def bits(values) -> np.ndarray:
    return np.asarray(values, np.float32).view(np.uint32)


def to_round(half) -> np.ndarray:
    """Every value of a half type, the middles between them with both neighbours, and random numbers of all sizes."""
    values = np.sort(widened(np.arange(1 << 16), half))
    values = values[np.isfinite(values)].astype(np.float64)
    beyond = 2 * values[-1] - values[-2]  # where the next finite value would be
    values = np.concatenate([[-beyond], values, [beyond]])
    with np.errstate(over="ignore", invalid="ignore"):
        middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
        near = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
        random = np.random.default_rng(5).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
        ends = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
        return np.concatenate([values.astype(np.float32), middles, *near, random, ends])


def test_every_float16_widens(apply):
    patterns = np.arange(1 << 16)
    found, exact = apply("widen_f16", patterns).view(np.float32), widened(patterns, "f16")
    number = ~np.isnan(exact)
    assert (np.isnan(found) == ~number).all()
    np.testing.assert_array_equal(bits(found)[number], bits(exact)[number])
    np.testing.assert_array_equal(apply("narrow_f16x2", bits(found))[number], patterns[number])


def test_narrowing_rounds_to_nearest_even(apply):
    for half in HALVES:
        low = to_round(half)
        high = low[::-1].copy()
        expected = narrowed(low, half) | narrowed(high, half) << np.uint32(16)
        np.testing.assert_array_equal(apply(f"narrow_{half}x2", bits(low), bits(high)), expected)


# NumPy's fmax and fmin pass over NaN, its maximum and minimum let it through
CHOICES = {"larger": np.fmax, "smaller": np.fmin, "larger_or_nan": np.maximum, "smaller_or_nan": np.minimum}


@pytest.mark.parametrize("name", CHOICES)
def test_larger_and_smaller(apply, name):
    some = np.array([np.nan, -np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 1e-42, -1e-42, 3e38, -3e38, 7, 7.5], np.float32)
    a, b = np.repeat(some, len(some)), np.tile(some, len(some))
    found = apply(name, bits(a), bits(b)).view(np.float32)
    np.testing.assert_array_equal(found, CHOICES[name](a, b))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ["larger", "smaller", "smaller_or_nan"])
def test_packed_larger_and_smaller(apply, name, half):
    some = np.concatenate([np.arange(0, 1 << 16, 1021), [0x7FFF, 0x7C00, 0xFC00, 0x7F80, 0xFF80, 0x8000]])
    a, b = np.repeat(some, len(some)), np.tile(some, len(some))
    found = apply(f"{name}_{half}x2", a | b[::-1] << 16, b | a[::-1] << 16)
    for half_found, low, high in ((found & 0xFFFF, a, b), (found >> 16, b[::-1], a[::-1])):
        assert ((half_found == low) | (half_found == high)).all()
        expected = CHOICES[name](widened(low, half), widened(high, half))
        np.testing.assert_array_equal(widened(half_found, half), expected)


def test_exp2_errs_by_at_most_two_ulp_and_flushes(apply):
    x = np.concatenate([np.linspace(-200, 129, 100_001), np.linspace(-1e-3, 1e-3, 10_001)]).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        nearest = np.exp2(x.astype(np.float64)).astype(np.float32)
    found = apply("exp2_fast", bits(x)).view(np.float32)
    tiny = np.float32(2.0**-126)
    off = found.view(np.int32).astype(np.int64) - nearest.view(np.int32)
    assert set(off[(nearest > 1.001 * tiny) & np.isfinite(nearest) & (x != 0)]) == {-2, -1, 0, 1, 2}
    assert (found[nearest < tiny] == 0).all()
    assert ((found == 0) | (found >= tiny)).all()
    assert (found[np.isinf(nearest)] == np.inf).all()

    ends = np.array([0.0, -0.0, 1e-40, -1e-40, -np.inf, np.inf, np.nan, -127, -1e30, 128, 1e30], np.float32)
    exact = np.array([1, 1, 1, 1, 0, np.inf, np.nan, 0, 0, np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(apply("exp2_fast", bits(ends)).view(np.float32), exact)


def test_reciprocals_err_by_at_most_one_ulp(apply):
    x = np.concatenate([np.linspace(1, 4, 10_001), np.logspace(-30, 30, 1001)]).astype(np.float32)
    off = apply("reciprocal_fast", bits(x)).astype(np.int64) - bits(np.float32(1) / x)
    assert set(off) == {-1, 0, 1}
    assert np.isnan(apply("reciprocal_fast", bits(np.float32(np.nan))).view(np.float32)).all()


def test_fused_rounds_once_and_square_root_to_nearest(apply):
    a = np.float32(1 + 2.0**-12)
    assert apply("fused", bits(a), bits(a), bits(-(1 + 2.0**-11))).view(np.float32) == 2.0**-24
    x = np.random.default_rng(6).random(10_000, np.float32)
    np.testing.assert_array_equal(apply("square_root", bits(x)).view(np.float32), np.sqrt(x))


def test_integer_arithmetic(apply):
    a, b, c = np.random.default_rng(7).integers(0, 1 << 32, (3, 1000), dtype=np.uint32)
    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    funnel = [((high << 32 | low) >> (shift % 32)) % (1 << 32) for low, high, shift in triples]
    np.testing.assert_array_equal(apply("funnel_right", a, b, c % 32), np.array(funnel))
    # the program multiplies a:b by c 2^17 and gives the low word of the high half
    product = [((x << 32 | y) * (z << 17) >> 64) % (1 << 32) for x, y, z in triples]
    np.testing.assert_array_equal(apply("multiply_high", a, b, c), np.array(product))
