"""States of slices of the classes against the truth of whole rows: values, merging, gradients of a slice, edges."""

import functools
import itertools

import option_oracle
import oracle
import pytest
import rows
import torch
import torchassay as ta
from option_contract import batch, cases, check, check_gradient, steps, tolerance, wide
from option_oracle import Case
from torchassay import ops, reference
from torchassay.options import Options
from torchassay.reference.states import PLAIN
from torchassay.scores import BIT, ROW_BITS, ROW_SIGNALS, STATS, TARGET_BITS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CUTS = [(5, []), (5, [2]), (5, [1, 2, 3, 4]), (300, [1]), (300, [100, 101, 250]), (4100, [1025, 4000])]


class Slices:
    """Rows of logits cut into slices of their classes, each given to the ops as if the others were elsewhere."""

    def __init__(self, x, target, options: Options, cuts, place, ignore_index=-100, dim=1):
        self.options, self.target, self.place = options, target, place
        self.total, self.ignore_index, self.dim = x.shape[dim], ignore_index, dim
        edges = [0, *cuts, self.total]
        self.parts = [
            (x.narrow(dim, first, end - first), first, self.of_slice(first, end))
            for first, end in itertools.pairwise(edges)
        ]

    def of_slice(self, first, end) -> tuple:
        weight = self.options.weight
        return self.options._replace(weight=None if weight is None else weight[first:end]).flat()

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        how = self.total, self.ignore_index, "test", self.place.backend
        found = [ops.row_states(x, self.target, *flat, self.dim, first, *how) for x, first, flat in self.parts]
        return tuple(torch.stack(of_parts) for of_parts in zip(*found, strict=True))

    def of_rows(self) -> tuple:
        """The options as rows have them: the weights of the targets' classes."""
        weight = self.options.weight
        if weight is not None and self.target is not None:
            weight = weight[self.target.reshape(-1).clamp(0, self.total - 1)]
        return self.options._replace(weight=weight).flat()

    def merged(self, numbers, k) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.merge_states(numbers, k, *self.of_rows(), self.total, "test", self.place.backend)

    def finished(self, numbers, k, signals=ROW_BITS | STATS) -> list[torch.Tensor]:
        flat = None if self.target is None else self.target.reshape(-1)
        how = self.total, self.ignore_index, signals, "test", self.place.backend
        return ops.finish_states(numbers, k, flat, *self.of_rows(), *how)

    def grads(self, stats, grad_loss, grad_entropy) -> torch.Tensor:
        how = self.dim, self.ignore_index, "test", self.place.backend
        upstream = stats, grad_loss, grad_entropy
        return torch.cat(
            [ops.option_grads(x, self.target, *flat, *upstream, *how, at, self.total) for x, at, flat in self.parts],
            self.dim,
        )


def on(place, case: Case) -> Options:
    return Options(*(value.to(place.device) if isinstance(value, torch.Tensor) else value for value in case))


def scores(outputs) -> ta.Scores:
    return ta.Scores(dict(zip(ROW_SIGNALS, (output.cpu() for output in outputs[: len(ROW_SIGNALS)]), strict=True)))


def same(found, expected):
    """Bit for bit, NaN where NaN."""
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.nan_to_num(nan=12345.0), theirs.nan_to_num(nan=12345.0))


@functools.cache
def exact(family, classes, dtype):
    """Rows, targets, their signals; upstreams of loss and entropy, the gradient, and the size it is relative to."""
    x, y, signals = rows.case(family, classes, dtype)
    up = torch.linspace(-1, 2, len(x), dtype=wide(dtype)), torch.linspace(2, -1, len(x), dtype=wide(dtype))
    grads = oracle.grads(x, y, *up)
    return x, y, signals, up, grads, grads.norm(dim=1) + oracle.subtracted_norm(x) * up[1].abs()


@pytest.mark.parametrize(("classes", "cuts"), CUTS, ids=str)
@pytest.mark.parametrize("family", rows.FAMILIES)
def test_values_and_gradients(family, classes, cuts, fast_place):
    for dtype in fast_place.dtypes if classes < 1000 else fast_place.dtypes[:1]:
        x, y, signals, up, grads, parts = exact(family, classes, dtype)
        slices = Slices(x.to(fast_place.device), y.to(fast_place.device), Options(), cuts, fast_place)
        states = slices.states()
        *outputs, stats = slices.finished(*states)
        oracle.check(fast_place, scores(outputs), signals, x)
        one = tuple(of_all.unsqueeze(0) for of_all in slices.merged(*states))
        same(slices.finished(*one), [*outputs, stats])
        found = slices.grads(stats, *(g.to(fast_place.device) for g in up)).cpu()
        check_gradient(family, found, grads, parts, 1e-13 if dtype == torch.float64 else 2 * fast_place.tolerance)


@functools.cache
def option_truth(name, classes, dtype):
    x, y = batch(classes, dtype)
    return option_oracle.truth(x, y, cases(classes, len(x), dtype)[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("classes", "cuts"), [(1, []), (2, [1]), (17, [5, 9, 10]), (257, [256]), (1000, [1, 100, 999])]
)
def test_options(classes, cuts, dtype, fast_place):
    if dtype not in fast_place.dtypes:
        pytest.skip(f"{fast_place}: no {dtype}")
    x, y = batch(classes, dtype)
    upstream = steps(len(x)).to(wide(dtype))
    for name, case in cases(classes, len(x), dtype).items():
        if dtype in (torch.bfloat16, torch.float16) and name.count(",") == 1:
            continue  # half precision differs in how it is loaded
        truth = option_truth(name, classes, dtype)
        given = on(fast_place, case)
        slices = Slices(x.to(fast_place.device), y.to(fast_place.device), given, cuts, fast_place)
        states = slices.states()
        *outputs, stats = slices.finished(*states)
        found = scores(outputs).as_dict()
        if reference.needs_sweep(given):
            assert found["grad_norm"][y != -100].isnan().all()
            found.pop("grad_norm")
        allowed = tolerance(case, dtype)
        check(name, ta.Scores(found), truth, case, x, allowed)
        one = tuple(of_all.unsqueeze(0) for of_all in slices.merged(*states))
        same(slices.finished(*one), [*outputs, stats])

        up = upstream.to(fast_place.device)
        found = slices.grads(stats, up, None).cpu()
        exact = upstream.double()[:, None] * truth.grad_loss
        check_gradient(name, found, exact, truth.parts * upstream.double().abs(), 2 * allowed)
        if case.softcap:  # no function differentiates an entropy of capped logits
            continue
        found = slices.grads(stats, None, up).cpu()
        exact = upstream.double()[:, None] * truth.grad_entropy
        check_gradient(name, found, exact, truth.mixed * upstream.double().abs(), 3 * allowed)


def test_states_merge_in_any_grouping(fast_place):
    """Chunks of a rank's slice are merged before the ranks' slices are."""
    x, y = batch(300, torch.float32)
    case = cases(300, len(x), torch.float32)["temperature, weight, smoothing"]
    truth = option_oracle.truth(x, y, case)
    given = on(fast_place, case)
    slices = Slices(x.to(fast_place.device), y.to(fast_place.device), given, [3, 100, 101, 250], fast_place)
    numbers, k = slices.states()
    for at in (1, 2, 3, 4):
        halves = slices.merged(numbers[:at], k[:at]), slices.merged(numbers[at:], k[at:])
        *outputs, _ = slices.finished(*(torch.stack(of_both) for of_both in zip(*halves, strict=True)))
        found = {name: value for name, value in scores(outputs).as_dict().items() if name != "grad_norm"}
        check(at, ta.Scores(found), truth, case, x, tolerance(case, torch.float32))


def plain(x, y, cuts, place, **how) -> tuple[ta.Scores, torch.Tensor, Slices]:
    slices = Slices(x.to(place.device), None if y is None else y.to(place.device), Options(), cuts, place, **how)
    signals = ROW_BITS | STATS if y is not None else ROW_BITS & ~TARGET_BITS | STATS
    *outputs, stats = slices.finished(*slices.states(), signals)
    names = [name for name in ROW_SIGNALS if signals & BIT[name]]
    return ta.Scores(dict(zip(names, (output.cpu() for output in outputs), strict=True))), stats, slices


NAN, INF = torch.nan, torch.inf


@pytest.mark.parametrize("cuts", [[], [1], [3], [1, 2, 4]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_hold_no_number(dtype, cuts, fast_place):
    """NaN, +inf or nothing but -inf in any slice: NaN in every float signal of this row and of no other."""
    if dtype not in fast_place.dtypes:
        pytest.skip(f"{fast_place}: no {dtype}")
    clean = torch.tensor([0.5, -1.0, 2.0, 0.25, -3.0])
    bad = [clean.clone().index_fill_(0, torch.tensor(at), value) for value in (NAN, INF) for at in range(5)]
    bad += [torch.full((5,), -INF), torch.tensor([INF, 1.0, INF, 0.0, -INF]), torch.tensor([-INF, NAN, 1.0, NAN, INF])]
    x = torch.stack([*bad, clean]).to(dtype)
    y = torch.arange(len(x)) % 5
    found, stats, slices = plain(x, y, cuts, fast_place)
    one = torch.ones(len(x), dtype=stats.dtype, device=fast_place.device)
    grad = slices.grads(stats, one, None).cpu()
    for name in found.signals:
        if name != "prediction":
            assert getattr(found, name)[:-1].isnan().all() and getattr(found, name)[-1].isfinite(), name
    assert torch.equal(found.prediction, x.argmax(1))
    assert grad[:-1].isnan().all() and grad[-1].isfinite().all()


@pytest.mark.parametrize("cuts", [[2], [1, 2, 3], [2, 4]], ids=str)
def test_slices_that_are_masked_throughout(cuts, fast_place):
    """They change nothing, wherever they stand; and a row of which one class is left is sure of it."""
    x = torch.tensor([[-INF, -INF, 1.0, 3.0, -INF, -INF], [0.5, 2.0, -INF, -INF, -INF, -INF], [-INF, 7.0, *[-INF] * 4]])
    y = torch.tensor([2, 1, 1])
    found, stats, slices = plain(x, y, cuts, fast_place)
    oracle.check(fast_place, found, oracle.signals(x, y), x)
    assert found.loss[2] == found.entropy[2] == found.grad_norm[2] == 0 and found.confidence[2] == found.margin[2] == 1
    up = torch.tensor([1.0, -2.0, 3.0], device=fast_place.device)
    grad = slices.grads(stats, up, up).cpu()
    torch.testing.assert_close(grad.double(), oracle.grads(x, y, up, up), rtol=1e-6, atol=1e-7)
    lost, stats, slices = plain(x, torch.tensor([0, 5, 0]), cuts, fast_place)  # the target is masked
    assert lost.loss.isposinf().all()


def test_among_equals_the_first_class_of_all_slices_wins(fast_place):
    x = torch.tensor([[0.0, 4.0, 1.0, 4.0, 4.0, 0.0], [2.0] * 6, [-1.0, 0.0, 5.0, 2.0, 5.0, 5.0]])
    for cuts in ([], [1], [2], [3], [4], [1, 2, 3, 4, 5]):
        found, _, _ = plain(x, torch.tensor([3, 5, 4]), cuts, fast_place)
        assert found.prediction.tolist() == [1, 0, 2]
        assert (found.margin == 0).all() and (found.target_margin == 0).all()
        oracle.check(fast_place, found, oracle.signals(x, torch.tensor([3, 5, 4])), x)


@pytest.mark.parametrize("ignore_index", [-100, 3], ids=str)
def test_labels_that_are_ignored(ignore_index, fast_place):
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1)) * 3
    y = torch.tensor([0, ignore_index, 6, 2, ignore_index, 5])
    x[4, 1] = NAN
    found, stats, slices = plain(x, y, [3, 4], fast_place, ignore_index=ignore_index)
    kept = [0, 1, 2, 3, 5]
    expected = oracle.signals(x[kept], y[kept], ignore_index)
    oracle.check(fast_place, found[kept], expected, x[kept])
    assert found.loss[4] == found.grad_norm[4] == found.target_margin[4] == 0 and found.entropy[4].isnan()
    grad = slices.grads(stats, torch.ones(6, device=fast_place.device), None).cpu()
    assert not grad[[1, 4]].any() and grad[[0, 2, 3, 5]].isfinite().all()


def test_labels_out_of_range_and_in_no_slice(fast_place):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)).to(fast_place.device)
    y = torch.tensor([0, 3, 7, -2, 6])
    if fast_place.device == "cpu":
        with pytest.raises(ValueError) as error:
            plain(x, y, [3], fast_place)
        expected = "test: target must hold 0 <= class < 7 or ignore_index=-100, got class 7 at row 2"
        assert str(error.value) == expected
    else:
        found, stats, slices = plain(x, y, [3], fast_place)
        assert found.loss.isnan().tolist() == [False, False, True, True, False] and found.entropy.isfinite().all()
        assert slices.grads(stats, torch.ones(5, device=x.device), None)[2:4].isnan().all()
    y = y.clamp(0, 6).to(fast_place.device)
    slices = Slices(x, y, Options(), [3, 5], fast_place)
    numbers, k = slices.states()
    outputs = slices.finished(numbers[[0, 2]], k[[0, 2]])  # of the class 3 no state is given
    found = scores(outputs)
    for name in ("loss", "grad_norm", "target_margin"):
        assert getattr(found, name).isnan().tolist() == [False, True, False, False, False]
    assert found.entropy.isfinite().all()


def test_a_label_elsewhere_gives_its_row_the_softmax(fast_place):
    """In the gradient of a slice a class of another slice is neither ignored nor out of range."""
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(3)).to(fast_place.device)
    y = torch.tensor([0, 4, 8, 3], device=fast_place.device)
    slices = Slices(x, y, Options(), [4], fast_place)
    stats = slices.finished(*slices.states())[-1]
    one = torch.ones(4, device=fast_place.device)
    at = x[:, 4:], y, *Options().flat(), stats, one, None, 1, -100, "test", fast_place.backend
    torch.testing.assert_close(ops.option_grads(*at, 4, 9)[[0, 3]], x.softmax(1)[[0, 3], 4:], rtol=2e-6, atol=0)


def test_logits_that_are_computed_anew_may_be_rounded_otherwise(fast_place):
    """A product of another shape: the top and the second are still told apart, also of a confident row."""
    for gap in (0.0, 0.3, 5.0, 30.0):
        x = torch.randn(6, 40, generator=torch.Generator().manual_seed(8))
        top = torch.arange(6) * 6
        x.scatter_(1, top[:, None], x.amax(1, keepdim=True) + gap)
        y = torch.where(torch.arange(6) % 2 == 0, top, top + 1)
        up = torch.linspace(1, 2, 6)
        expected = oracle.grads(x, y, up, up)
        moved = x.to(fast_place.device), y.to(fast_place.device)
        slices = Slices(*moved, Options(), [17], fast_place)
        stats = slices.finished(*slices.states())[-1]
        for infinity in (INF, -INF):
            near = torch.nextafter(moved[0], torch.full_like(moved[0], infinity))
            other = Slices(near, moved[1], Options(), [17], fast_place)
            found = other.grads(stats, *[up.to(fast_place.device)] * 2).cpu().double()
            error = (found - expected).norm(dim=1) / (expected.norm(dim=1) + oracle.subtracted_norm(x))
            assert error.max() <= 2e-5, f"gap {gap}: {error.max():.1e}"


SHAPES = {
    "classes first": ((40, 6), 0),
    "in the middle": ((2, 40, 3), 1),
    "last": ((2, 3, 40), 2),
    "one row": ((40,), 0),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_strides_and_class_dimensions(shape, fast_place):
    shape, dim = shape
    x = torch.randn([2 * size for size in shape], generator=torch.Generator().manual_seed(4)).to(fast_place.device)
    views = [x[tuple(slice(0, size) for size in shape)], x[tuple(slice(None, None, 2) for _ in shape)]]
    views.append(views[0].contiguous().transpose(0, -1).contiguous().transpose(0, -1))
    for view in views:
        last = view.movedim(dim, -1).reshape(-1, 40)
        y = torch.arange(len(last), device=fast_place.device) * 7 % 40
        by_row = torch.linspace(0.5, 2, len(last), device=fast_place.device)
        rows_shape = view.movedim(dim, -1).shape[:-1]
        options = Options(temperature=by_row.view(rows_shape), label_smoothing=0.1)
        apart = Slices(view, y.view(rows_shape), options, [1, 17], fast_place, dim=dim)
        dense = Slices(last, y, options._replace(temperature=by_row), [1, 17], fast_place)
        *found, stats = apart.finished(*apart.states())
        *expected, expected_stats = dense.finished(*dense.states())
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        up = torch.linspace(-1, 1, len(last), device=fast_place.device)
        grad = apart.grads(stats.view(-1, *rows_shape), up.view(rows_shape), None)
        expected = dense.grads(expected_stats, up, None)
        torch.testing.assert_close(grad.movedim(dim, -1).reshape(-1, 40), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_and_one(count, fast_place):
    x, y = torch.linspace(-1, 2, count * 11).view(count, 11), torch.full((count,), 8)
    found, stats, slices = plain(x, y, [4, 10], fast_place)
    assert found.loss.shape == (count,) and stats.shape == (7, count)
    oracle.check(fast_place, found, oracle.signals(x, y), x) if count else None
    grad = slices.grads(stats, torch.ones(count, device=fast_place.device), None)
    assert grad.shape == (count, 11)
    numbers, k = slices.states()
    assert numbers.shape == (3, PLAIN, count) and slices.merged(numbers, k)[0].shape == (PLAIN, count)


def test_every_integer_dtype_of_labels(fast_place):
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(5))
    expected, _, _ = plain(x, torch.tensor([0, 8, 3, 4]), [4], fast_place)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        found, _, _ = plain(x, torch.tensor([0, 8, 3, 4], dtype=dtype), [4], fast_place)
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in found.signals)


def test_a_state_has_the_same_bits_in_any_batch(fast_place):
    x, y = batch(300, torch.float32)
    y = y.clamp(min=0)
    case = cases(300, len(x), torch.float32)["all"]
    few = slice(5, 9)
    by_row = case.temperature

    def states(at):
        given = on(fast_place, Case(*case)._replace(temperature=by_row[at]))
        return Slices(x[at].to(fast_place.device), y[at].to(fast_place.device), given, [77], fast_place).states()

    for part, whole in zip(states(few), states(slice(None)), strict=True):
        same([part], [whole[..., few]])


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("options", ["nothing", "all", "no target", "no rows"])
def test_opcheck(options, fast_place):
    """Schemas, fakes and dynamic shapes of the ops of slices."""
    count = 0 if options == "no rows" else 5
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(6)).to(fast_place.device)
    y = None if options == "no target" else torch.arange(count, device=fast_place.device)
    given = Options()
    if options == "all":
        weight = torch.linspace(0.5, 2, 12, device=fast_place.device)
        given = Options(weight, 0.1, torch.linspace(0.5, 2, count, device=fast_place.device), 9.0, 1e-3)
    slices = Slices(x, y, given, [7], fast_place)
    (part, first, flat), how = slices.parts[1], ("test", fast_place.backend)
    utils = {"test_utils": OPCHECKS}
    torch.library.opcheck(ops.row_states, (part, y, *flat, 1, first, 12, -100, *how), **utils)
    numbers, k = slices.states()
    torch.library.opcheck(ops.merge_states, (numbers, k, *slices.of_rows(), 12, *how), **utils)
    signals = (ROW_BITS & ~TARGET_BITS if y is None else ROW_BITS) | STATS
    if options == "all":
        signals &= ~BIT["grad_norm"]  # NaN, which opcheck calls different from NaN
    torch.library.opcheck(ops.finish_states, (numbers, k, y, *slices.of_rows(), 12, -100, signals, *how), **utils)
    stats = slices.finished(numbers, k, signals)[-1]
    up = torch.ones(count, device=fast_place.device)
    upstream = None if y is None else up, up
    torch.library.opcheck(ops.option_grads, (part, y, *flat, stats, *upstream, 1, -100, *how, first, 12), **utils)
