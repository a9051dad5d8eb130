"""What hypothesis makes up: logits in any dtype and layout of memory, targets, options; and how many examples."""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from option_oracle import Case
from torch import Tensor

FUZZ = bool(os.environ.get("TORCHASSAY_FUZZ"))
MORE = 20  # times as many examples under TORCHASSAY_FUZZ, other ones in every run: over 20,000 in all
RUN = Counter()  # examples run in this session, by test
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EXTREMES = (0.0, 1.0, -1.0, 80.0, -80.0, 1e4, -1e4, -300.0, 0.125, 104.0)
VALUES = st.floats(-300, 300, width=32) | st.sampled_from(EXTREMES)
SEEDS = st.integers(0, 2**32 - 1)


def examples(few: int, *strategies, **named):
    """`hypothesis.given`, with so many examples in a plain run, which are the same in every one."""
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    how = settings(
        max_examples=few * MORE if FUZZ else few,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        print_blob=FUZZ,
        suppress_health_check=unhealthy,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )

    def decorate(test):
        @functools.wraps(test)
        def counted(*args, **kwargs):
            RUN[test.__name__] += 1
            return test(*args, **kwargs)

        return how(given(*strategies, **named)(counted))

    return decorate


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def logits(draw, rows: int = 4, classes: int = 70, dtypes=(torch.float32,), values=VALUES, dead: bool = True) -> Tensor:
    """[N, C] with at least one finite logit a row; of few values, so that ties are common, and some classes at -inf."""
    n, c = draw(st.integers(1, rows)), draw(st.integers(1, classes))
    pool = torch.tensor(draw(st.lists(values, min_size=1, max_size=12)), dtype=torch.float64)
    generator = noise(draw(SEEDS))
    x = pool[torch.randint(len(pool), (n, c), generator=generator)]
    if draw(st.booleans()):
        x = x + torch.randint(-64, 65, (n, c), generator=generator) / 16
    if dead and draw(st.booleans()):
        gone = torch.rand(n, c, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.95]))
        gone[torch.arange(n), torch.randint(c, (n,), generator=generator)] = False
        x = x.masked_fill(gone, -math.inf)
    return x.clamp(max=6e4).to(draw(st.sampled_from(dtypes)))


def classes_of(draw, x: Tensor, alive: bool = False) -> Tensor:
    """A class for each row; with ``alive`` none at -inf."""
    n, c = x.shape
    y = torch.randint(c, (n,), generator=noise(draw(SEEDS)))
    return torch.where(x[torch.arange(n), y] == -math.inf, x.float().argmax(1), y) if alive else y


LAYOUTS = ("dense", "classes outermost", "padded rows", "odd offset", "every other", "from the middle")


class Batch(NamedTuple):
    """The same rows twice: plain, and as a user might hold them."""

    rows: Tensor  # [N, C]
    classes: Tensor  # [N] int64
    input: Tensor  # [..., C, ...], classes at dim
    target: Tensor  # [...]
    dim: int
    memory: Tensor  # all that the input is a view of

    def flat(self, value: Tensor) -> Tensor:
        """What has a number a row, as [N]."""
        return value.reshape(len(self.rows))


def held(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """A view of other memory with the same values, and that memory; what is between the values is NaN."""
    if layout == "dense":
        memory = x.clone()
        return memory, memory
    if layout == "classes outermost":
        memory = x.movedim(-1, 0).contiguous()
        return memory.movedim(0, -1), memory
    *lead, last = x.shape
    size = {"padded rows": last + 3, "odd offset": last, "every other": 2 * last, "from the middle": last + 4}[layout]
    if layout == "odd offset":
        memory = x.new_full((x.numel() + 1,), math.nan)
        view = memory[1:].view(x.shape)
    else:
        memory = x.new_full((*lead, size), math.nan)
        inside = {"padded rows": slice(last), "every other": slice(None, None, 2), "from the middle": slice(3, -1)}
        view = memory[..., inside[layout]]
    view.copy_(x)
    return view, memory


@st.composite
def batches(draw, rows: int = 4, classes: int = 70, dtypes=FLOATS, alive: bool = False, dead: bool = True) -> Batch:
    x = draw(logits(rows, classes, dtypes, dead=dead))
    n, c = x.shape
    y = classes_of(draw, x, alive)
    lead = draw(st.sampled_from([(n,), (1, n), (n, 1)] + [(2, n // 2)] * (n % 2 == 0) + [()] * (n == 1)))
    view, memory = held(x.view(*lead, c), draw(st.sampled_from(LAYOUTS)))
    dim = draw(st.integers(0, len(lead)))
    kinds = (torch.int64, torch.int32, torch.int16) if c > 127 else (torch.int64, torch.int32, torch.int16, torch.uint8)
    target = y.view(lead).to(draw(st.sampled_from(kinds)))
    return Batch(x, y, view.movedim(-1, dim), target, draw(st.sampled_from([dim, dim - len(lead) - 1])), memory)


def unchanged(memory: Tensor, before: Tensor) -> None:
    """Bit for bit."""
    assert torch.equal(memory.reshape(-1).view(torch.uint8), before.reshape(-1).view(torch.uint8))


@st.composite
def option_cases(draw, x: Tensor, smoothing: bool = True, softcap: bool = True) -> Case:
    """Options for rows [N, C], each of them in about half of all cases."""
    n, c = x.shape
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    generator = noise(draw(SEEDS))

    def maybe(values, default):
        return draw(st.sampled_from(values)) if draw(st.booleans()) else default

    weight = None
    if draw(st.booleans()):
        weight = (torch.rand(c, generator=generator, dtype=torch.float64) * 3).to(wide)
        weight[torch.rand(c, generator=generator) < draw(st.sampled_from([0.0, 0.3]))] = 0
    temperature = maybe([0.25, 0.7, 1.3, 8.0], 1.0)
    if draw(st.booleans()):
        temperature = torch.exp(torch.randn(n, generator=generator, dtype=torch.float64)).clamp(0.2, 8).to(wide)
    return Case(
        weight,
        maybe([0.1, 0.5, 1.0], 0.0) if smoothing else 0.0,
        temperature,
        maybe([2.0, 30.0, 100.0], None) if softcap else None,
        maybe([1e-4, 0.1], 0.0),
    )


def within_cap(x: Tensor, case: Case) -> Tensor:
    """Logits of at most eight caps: far beyond, the squares of slopes underflow, and so does the norm of a gradient."""
    return x if case.softcap is None else x.clamp(-8 * case.softcap, 8 * case.softcap)


def keywords(case: Case, place) -> dict:
    """As a call takes them, on the device of a place."""
    given_here = case._replace(z_loss=case.z_loss or Case._field_defaults["z_loss"]).given()
    return {name: put(value, place.device) for name, value in given_here.items()}


def put(value, device: str):
    return value.to(device) if isinstance(value, Tensor) else value


@st.composite
def damages(draw):
    """A function from bytes to other bytes: some changed, some gone, some more; each place a share of the whole."""
    places = draw(st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=4))
    kind = draw(st.sampled_from(["flip", "flip", "head", "cut", "more", "zeros"]))

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        share, value = places[0]
        if kind == "cut":
            return bytes(changed[: int(share * len(data))])
        if kind == "more":
            at = int(share * len(data))
            return bytes(changed[:at] + bytes([value]) * len(places) + changed[at:])
        if kind == "zeros":
            at = int(share * len(data))
            return bytes(changed[:at] + bytes(len(data) - at)) if any(data[at:]) else bytes(changed[:at])
        within = len(data) if kind == "flip" else min(len(data), 128)
        for share, value in places:
            changed[int(share * within)] ^= value
        return bytes(changed) if changed != data else bytes(changed) + b"\0"

    return damaged
