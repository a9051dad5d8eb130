"""Signals over several draws, in every backend: values, poison, layouts, and what the result may depend on."""

import drawn
import numpy as np
import pytest
import torch
from places import Place
from torchassay import ops
from torchassay.backends import native
from torchassay.scores import BIT, LINEAR_SIGNALS, NOISY_SIGNALS, ROW_SIGNALS, SIGNALS, STATS

CLASSES = [1, 2, 3, 10, 33, 100, 257, 1000, 9000]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ISAS = native.cpu_isas().split(",") if native else []
ROWS = 19  # more than the lanes of any instruction set, and no multiple of them


def hard_rows(classes: int, dtype: torch.dtype, rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    """Gaps from 0 to 80; every third row has classes at -inf, the last one all but one; the last but one is flat."""
    random = torch.Generator().manual_seed(classes + seed)
    x = torch.randn(rows, classes, generator=random, dtype=torch.float64) * 2
    i = torch.arange(rows)
    at = i * 7919 % classes
    x[i, at] = x.amax(1) + torch.linspace(0, 80, rows, dtype=torch.float64)[torch.randperm(rows, generator=random)]
    masked = torch.rand(rows, classes, generator=random) < 0.3
    masked[i % 3 != 0] = False
    masked[-1] = True
    masked[i, at] = False
    x[-2] = 0.25
    return x.masked_fill(masked, -torch.inf).to(dtype)


def per_row(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linspace(low, high, len(x)).to(wide)


def noises(x: torch.Tensor) -> dict[str, dict]:
    return {
        "one draw": {"draws": 1},
        "numbers": {"draws": 5, "std": 2.0, "scale": 0.5},
        "per row": {"draws": 2, "std": per_row(x, 0, 1.5), "scale": per_row(x, 0.25, 1)},
    }


def some(place, x: torch.Tensor) -> torch.Tensor:
    if place.slow and x.shape[-1] > 1000:
        pytest.skip("slow")
    return x[place.some(x, 3)]


KINDS = [("one draw", torch.float32), ("numbers", torch.float32), *(("per row", dtype) for dtype in DTYPES)]


@pytest.mark.parametrize(("noise", "dtype"), KINDS, ids=[f"{noise}-{dtype}" for noise, dtype in KINDS])
@pytest.mark.parametrize("classes", CLASSES)
def test_noise(noise, classes, dtype, place):
    if dtype not in place.dtypes:
        pytest.skip("no float64")
    x = some(place, hard_rows(classes, dtype, 5 if classes == 9000 else ROWS))
    row_id = torch.arange(len(x)) * 3 + 2**33
    options = noises(x)[noise]
    found = drawn.draw_scores(place, x, row_id=row_id, **options)
    eps = drawn.exact_normals(5, tuple(row_id.tolist()), options["draws"], classes)
    y = drawn.noisy(x, eps, options.get("std", 0.5), options.get("scale", 1.0))
    drawn.check(place, found, y, dtype)


@pytest.mark.parametrize("classes", [1, 10, 257, 9000])
def test_double_to_its_last_digits(classes, double_place):
    """Given the very normals, which are float32."""
    x = hard_rows(classes, torch.float64, 5)
    ids = torch.arange(5, device=double_place.device)
    eps = [ops.normals(ids, None, 5, 0, t, classes, False, double_place.backend) for t in range(3)]
    y = drawn.noisy(x, torch.stack(eps).double().cpu().numpy(), 0.5, 1.0)
    drawn.check(double_place, drawn.draw_scores(double_place, x, draws=3), y, torch.float64, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_ensemble(classes, dtype, place):
    """Members that differ in what they are sure of; also one member alone."""
    if dtype not in place.dtypes:
        pytest.skip("no float64")
    count = 5 if classes < 9000 else 2
    x = torch.stack([hard_rows(classes, dtype, 5, seed=t)[torch.randperm(5)] for t in range(count)])
    x = x[:, place.some(x[0], 3)]
    if place.slow and classes > 1000:
        pytest.skip("slow")
    for members in (x, x[:1]):
        found = drawn.draw_scores(place, members)
        drawn.check(place, found, members.double().numpy(), dtype, 1e-13 if dtype == torch.float64 else 1e-5)


def test_no_noise(place):
    """Every draw is the row itself: its entropy, and nothing to be learnt from the others."""
    x = hard_rows(33, torch.float32)[:6]
    found = drawn.draw_scores(place, x, std=0.0, draws=3)
    entropy = ops.row_scores(x, None, 1, -100, BIT["entropy"], "test", "reference")[0]
    torch.testing.assert_close(found["noisy_entropy"], entropy, rtol=2e-6, atol=1e-36)
    torch.testing.assert_close(found["predictive_entropy"], entropy, rtol=1e-5, atol=1e-34)
    assert (found["mutual_information"] <= 1e-5 * entropy + 1e-34).all()


@pytest.mark.parametrize("classes", [5, 100, 300])
@pytest.mark.parametrize("draws", [4, None], ids=["noise", "ensemble"])
def test_a_poisoned_row_is_nan_alone(draws, classes, place):
    clean = torch.randn(6, classes, generator=torch.Generator().manual_seed(1))
    if draws is None:
        clean = torch.stack([clean, clean.flip(0), clean * 2])
    found = drawn.draw_scores(place, clean, draws=draws)
    dirty = clean.clone()
    dirty[..., 1, classes - 1] = torch.nan
    dirty[..., 2, 0] = torch.inf
    dirty[..., 4, :] = -torch.inf
    if draws is None:
        dirty[1:] = clean[1:]  # in one member only
    tops = [None] if draws is None else [drawn.top_of(dirty), drawn.top_of(dirty.nan_to_num(nan=-9.0))]
    for top in tops:
        poisoned = drawn.draw_scores(place, dirty, draws=draws, top=top)
        for name in NOISY_SIGNALS:
            assert poisoned[name][[1, 2, 4]].isnan().all(), name
            assert torch.equal(poisoned[name][[0, 3, 5]], found[name][[0, 3, 5]]), name


@pytest.mark.parametrize("classes", [10, 100, 300, 9000])
def test_the_bits_of_a_row_depend_on_the_row_alone(classes, place, threads):
    if place.slow and classes > 300:
        pytest.skip("slow")
    count = 5 if place.slow else max(12, 12_000 // classes)  # enough to be shared out
    x = torch.randn(count, classes, generator=torch.Generator().manual_seed(2)).bfloat16()
    row_id, std, scale = torch.arange(count) * 5 - 9, per_row(x, 0.1, 2), per_row(x, 0.5, 2)

    def found(part, **options):
        here = drawn.draw_scores(
            place, x[part], std=std[part], scale=scale[part], row_id=row_id[part], draws=3, **options
        )
        return torch.stack(list(here.values()))

    whole = found(slice(None))
    split = (slice(0, 1), slice(1, 3), slice(3, count))
    assert torch.equal(torch.cat([found(part) for part in split], 1), whole)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found(order), whole[:, order])
    assert torch.equal(found(slice(None), seed=torch.tensor(5)), whole)
    for count in (1, 2):
        threads(count)
        assert torch.equal(found(slice(None)), whole)


def test_ids_are_the_places_by_default(place):
    x = hard_rows(20, torch.float32)[:4]
    first = drawn.draw_scores(place, x, draws=2)
    second = drawn.draw_scores(place, x, draws=2, row_id=torch.arange(4))
    other = drawn.draw_scores(place, x, draws=2, row_id=torch.arange(4) + 1)
    assert torch.equal(first["noisy_entropy"], second["noisy_entropy"])
    assert not torch.equal(first["noisy_entropy"], other["noisy_entropy"])


@pytest.mark.parametrize("draws", [3, None], ids=["noise", "ensemble"])
@pytest.mark.parametrize("classes", [12, 300])
def test_any_strides(classes, draws, place):
    random = torch.Generator().manual_seed(4)
    x = torch.randn(2, 2, 3, classes, generator=random)  # an ensemble of 2, or rows [2, 2, 3]
    lead = 1 if draws is None else 0
    plain = drawn.draw_scores(place, x, draws=draws)
    before = x.clone()
    wider = torch.full((2, 2, 3, classes + 2), torch.nan)
    wider[..., 1:-1] = x
    views = {
        "classes in the middle": (x.movedim(-1, 1 + lead).contiguous(), 1 + lead),
        "a view with them in the middle": (x.movedim(-1, 1 + lead), 1 + lead),
        "between other columns": (wider[..., 1:-1], 3),
        "draws last": (x.movedim(0, -1).contiguous().movedim(-1, 0), 3),
        "backwards in memory": (x.transpose(1, 2).contiguous().transpose(1, 2), 3),
    }
    for name, (view, dim) in views.items():
        found = drawn.draw_scores(place, view, draws=draws, dim=dim)
        assert all(torch.equal(found[signal], plain[signal]) for signal in NOISY_SIGNALS), name
        assert found["noisy_entropy"].shape == x.shape[lead:-1]
    assert torch.equal(x, before)
    one = drawn.draw_scores(place, x[:, :1, :1].expand(2, 2, 3, classes), row_id=torch.zeros(12).long(), draws=draws)
    entropy = one["noisy_entropy"] if draws is None else one["noisy_entropy"][0]
    assert (entropy == entropy.flatten()[0]).all()


@pytest.mark.parametrize("draws", [3, None], ids=["noise", "ensemble"])
def test_an_offset_changes_nothing(draws, place):
    for classes in (10, 300):
        x = hard_rows(classes, torch.float32)[:8].mul(64).round() / 64
        x = x if draws else torch.stack([x, x.flip(0), x / 2])
        plain = drawn.draw_scores(place, x, draws=draws)
        for offset in (1e4, -1e4):
            found = drawn.draw_scores(place, x + offset, draws=draws)
            for name in NOISY_SIGNALS:
                assert torch.equal(found[name], plain[name]), name


def test_what_is_not_asked_for_changes_nothing(place):
    for classes in (20, 300):
        x = hard_rows(classes, torch.float32)[:4]
        whole = drawn.draw_scores(place, x, draws=2)
        for names in (*((name,) for name in NOISY_SIGNALS), NOISY_SIGNALS[::2]):
            found = drawn.draw_scores(place, x, draws=2, names=names)
            assert tuple(found) == names
            assert all(torch.equal(found[name], whole[name]) for name in names)


@pytest.mark.parametrize("draws", [3, None], ids=["noise", "ensemble"])
def test_no_rows_and_one(draws, place):
    empty = torch.zeros(2, 0, 5)
    found = drawn.draw_scores(place, empty, draws=draws)
    assert all(value.shape == ((0,) if draws is None else (2, 0)) for value in found.values())
    row = torch.randn(2, 5, generator=torch.Generator().manual_seed(6))
    row = row if draws is None else row[0]
    found = drawn.draw_scores(place, row, draws=draws)
    assert all(value.shape == () and value >= 0 for value in found.values())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", [3, 33, 256, 257, 9000])
def test_every_instruction_set(isa, classes, threads):
    before = native.cpu_isa()
    native.set_cpu_isa(isa)
    try:
        place = Place(isa, "native", "cpu")
        for dtype in DTYPES:
            x = hard_rows(classes, dtype, 5 if classes == 9000 else ROWS)
            options = noises(x)["per row"]
            found = drawn.draw_scores(place, x, **options)
            eps = drawn.exact_normals(5, tuple(range(len(x))), 2, classes)
            drawn.check(place, found, drawn.noisy(x, eps, options["std"], options["scale"]), dtype)
            members = torch.stack([x, x.flip(0)])
            drawn.check(place, drawn.draw_scores(place, members), members.double().numpy(), dtype)
        threads(1)
        alone = drawn.draw_scores(place, x, **options)
        assert all(torch.equal(alone[name], found[name]) for name in NOISY_SIGNALS)
    finally:
        native.set_cpu_isa(before)


@pytest.mark.filterwarnings("ignore::UserWarning")  # opcheck compiles through every deprecated corner of torch
def test_op():
    x, ids, bits = torch.randn(4, 3, 7), torch.arange(12), sum(BIT[name] for name in NOISY_SIGNALS)
    std = torch.rand(12)
    for backend in ("native", "reference"):
        noise = (x, drawn.top_of(x), std, 0.0, None, 0.5, ids, None, 3, 2, 2, bits, "test", backend)
        torch.library.opcheck(ops.draw_scores, noise)
        ensemble = (x, None, None, 0.0, None, 1.0, None, None, 0, 4, 2, bits & ~BIT["noisy_entropy"], "test", backend)
        torch.library.opcheck(ops.draw_scores, ensemble)


def test_the_names():
    """In the order of the bits; the statistics after them."""
    assert SIGNALS == ROW_SIGNALS + NOISY_SIGNALS
    assert [*(BIT[name] for name in LINEAR_SIGNALS), STATS] == [1 << i for i in range(len(LINEAR_SIGNALS) + 1)]
    assert LINEAR_SIGNALS[:-1] == SIGNALS
    assert np.all([name not in ROW_SIGNALS for name in NOISY_SIGNALS])
