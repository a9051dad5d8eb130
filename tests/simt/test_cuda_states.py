"""The CUDA kernels for slices of the classes, on the host: states against the reference in float64, and what is made
of them against the definition of the loss in extended precision."""

import host_kernels
import pytest
import torch
from option_cases import DTYPES, OF_LABELS, Exact, batch, case, check, labelled, noise, weights
from option_oracle import Case, truth
from torchassay import reference
from torchassay.options import Options
from torchassay.reference.states import NUMBERS

# By kernel: 1 to 32 lanes a row, a warp a row, a block a row, rows cut into spans (and a block a row again).
WIDTHS = (1, 7, 31, 300, 1000, 1032, 5000, 9000)
NAMES = ("nothing", "temperature", "temperatures", "z_loss", "smoothing", "smoothing, z_loss", "smoothing and all")
NAMES += ("softcap", "softcap and all")
SLOTS = host_kernels.SLOTS
LABEL = NUMBERS.index("x_y")  # behind what is of the logits alone


@pytest.fixture(scope="session")
def kernels(host_program):
    return host_kernels.StateKernels(host_program("run_states.cpp"))


def turn(width: int, dtype: torch.dtype) -> list[str]:
    """All options in float32 for a row of each kind, else a third of them."""
    if dtype == torch.float32 and width in (31, 1032):
        return list(NAMES)
    at = WIDTHS.index(width) + DTYPES.index(dtype)
    return [name for i, name in enumerate(NAMES) if (i + at) % 3 == 0]


def part_of(options: dict, part: slice) -> dict:
    """The options of a slice of the classes."""
    return options | ({"weight": options["weight"][part]} if "weight" in options else {})


def of_targets(options: dict, y: torch.Tensor) -> dict:
    """The options with the weight of each target's class."""
    return options | ({"weight": options["weight"][y]} if "weight" in options else {})


def edges(classes: int, parts: int) -> list[slice]:
    """Slices of unequal sizes, the first of a single class."""
    cuts = [0, 1, classes // 3, classes // 3 + 2, classes - classes // 4][:parts]
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], classes], strict=True)]


def states_of(kernels, x, y, options: dict, slices: list[slice], **more) -> tuple[torch.Tensor, torch.Tensor]:
    total = slices[-1].stop
    found = [kernels.under(**part_of(options, s)).states(x[:, s], y, s.start, total, **more) for s in slices]
    return tuple(torch.stack(each) for each in zip(*found, strict=True))


# ---- the states


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_states_are_those_of_the_reference(width, dtype, kernels):
    """Of rows far apart, with ties and classes at -inf; the target in the slice, before, behind it, or ignored."""
    for name in turn(width, dtype):
        x, y = batch(width, dtype)
        options, first, total = case(name, width, len(x)), 40, 40 + width + 9
        y = y + first
        y[4], y[5], y[3], y[-1] = 39, first + width, -100, total + 5
        given = Options(**options)
        numbers, k = kernels.under(**options).states(x, y, first, total)
        wide = given._replace(weight=None if given.weight is None else given.weight.double())
        expected, expected_k = reference.row_states(x.double(), y, wide, 1, first, total, -100)
        assert torch.equal(k, expected_k), name
        assert torch.equal(numbers[:2].double(), expected[:2]), name
        assert torch.equal(numbers[LABEL, k < 0].double(), expected[LABEL, k < 0]), name
        softcap = 0 if given.softcap is None else 2.0**-22 * given.softcap / torch.as_tensor(given.temperature).min()
        for i, number in enumerate(NUMBERS[: len(numbers)]):
            if number not in ("m", "u", "x_y"):
                close = torch.isclose(numbers[i].double(), expected[i], rtol=2e-6 + float(softcap), atol=1e-30)
                assert close.all(), (name, number, numbers[i][~close], expected[i][~close])


def test_no_target_and_a_target_of_32_bits(kernels):
    x, y = noise(3, 50), torch.tensor([2, 49, 50])
    numbers, k = kernels.states(x, None, 7, 70)
    again, with_target = kernels.states(x, (y + 7).int(), 7, 70)
    assert torch.equal(k, x.argmax(1) + 7) and torch.equal(numbers[:LABEL], again[:LABEL])
    assert torch.equal(with_target, torch.where(torch.tensor([True, True, False]), ~k, k))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("width", [7, 5000, 9000])
def test_a_state_has_the_same_bits_anywhere(width, dtype, kernels):
    """At any address and stride, alone, cut into spans or not."""
    x, y = noise(4, width).to(dtype), torch.tensor([width, 1, 4, width + 1])
    for name in ("temperatures", "smoothing and all"):
        options = case(name, width, 4)
        under = kernels.under(**options)
        expected = under.states(x, y, 1, width + 1)
        found = [(under.states(x, y, 1, width + 1, multiprocessors=1), slice(None))]
        for offset, gap in ((1, 0), (8, 24)):
            view = torch.zeros(4 * (width + gap) + 32, dtype=dtype)[offset:].as_strided((4, width), (width + gap, 1))
            found.append((under.states(view.copy_(x), y, 1, width + 1), slice(None)))
        alone = options | {"temperature": options["temperature"][2:3]}
        found.append((kernels.under(**alone).states(x[2:3], y[2:3], 1, width + 1), slice(2, 3)))
        for (numbers, k), at in found:
            here = k < 0
            assert torch.equal(k, expected[1][at]) and torch.equal(numbers[:LABEL], expected[0][:LABEL, at]), name
            assert torch.equal(numbers[LABEL:, here], expected[0][LABEL:, at][:, here]), name


# ---- what is made of them


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize(("classes", "dtype"), [(33, torch.float32), (300, torch.bfloat16), (9000, torch.float16)])
def test_signals_from_states(classes, dtype, parts, kernels):
    """Merged in one go, and first to one state; targets in every slice."""
    for name in NAMES[parts % 3 :: 3]:
        x, y, options = labelled(name, classes, dtype)
        numbers, k = states_of(kernels, x, y, options, edges(classes, parts))
        under = kernels.under(**of_targets(options, y))
        at_once = under.finish(numbers, k, y, classes)
        merged = under.merge(numbers, k)
        found = under.finish(*(each[None] for each in merged), y, classes)
        for signal in SLOTS:
            assert torch.equal(found[signal].nan_to_num(), at_once[signal].nan_to_num()), (name, signal)
        stats = found.pop("stats")
        if options.get("label_smoothing") and ("weight" in options or "softcap" in options):
            assert found.pop("grad_norm").isnan().all()
        check(found, x, y, options)
        exact = Exact(x, y, **options)
        for row, value in ((0, exact.m * exact.t.ravel()), (3, exact.r), (5, exact.mu), (6, exact.beta)):
            rtol = 4e-6 if options.get("softcap") is None else 2e-5
            true = torch.from_numpy(value.astype(float))
            torch.testing.assert_close(stats[row].double(), true, rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("row", [[18.0, 19.0], [18.0, 20.0, 19.0]])
def test_a_norm_where_the_cap_makes_tops_of_others(row, kernels):
    """Logits beyond nine caps have one capped value, but slopes of their own; found by tests/properties."""
    x, y, options = torch.tensor(row).repeat(len(row), 1), torch.arange(len(row)), {"softcap": 2.0}
    numbers, k = states_of(kernels, x, y, options, [slice(0, 1), slice(1, len(row))])
    found = kernels.under(**options).finish(numbers, k, y, len(row))["grad_norm"].double()
    torch.testing.assert_close(found, truth(x, y, Case(**options)).signals["grad_norm"], rtol=4e-6, atol=0)


@pytest.mark.parametrize("name", ["temperatures", "softcap"])
def test_merging_states_of_merged_states(name, kernels):
    """Those of the reference in float64, part by part."""
    x, y, options = labelled(name, 300, torch.float32)
    slices = edges(300, 5)
    numbers, k = states_of(kernels, x, y, options, slices)
    under = kernels.under(**options)
    pairs = [under.merge(numbers[i : i + 2], k[i : i + 2]) for i in (0, 2)]
    found, found_k = under.merge(
        torch.stack([*(pair[0] for pair in pairs), numbers[4]]), torch.stack([*(pair[1] for pair in pairs), k[4]])
    )
    parts = [reference.row_states(x[:, s].double(), y, Options(**options), 1, s.start, 300, -100) for s in slices]
    expected, expected_k = reference.merge_states(
        torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts]), Options(**options)
    )
    assert torch.equal(found_k, expected_k)
    rtol = 4e-6 if name == "temperatures" else 4e-5
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=1e-30)


def test_ties_take_the_lowest_class(kernels):
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    y = torch.tensor([4, 2])
    for slices in ([slice(0, 2), slice(2, 5)], [slice(0, 1), slice(1, 4), slice(4, 5)]):
        found = kernels.finish(*states_of(kernels, x, y, {}, slices), y, 5, OF_LABELS)
        assert found["prediction"].tolist() == [1, 0] and (found["margin"] == 0).all()
        check(found, x, y, {})


# ---- rows that are poisoned, masked, ignored


@pytest.mark.parametrize("name", ["nothing", "temperature", "softcap", "smoothing and all"])
@pytest.mark.parametrize("classes", [12, 2600])
def test_poison_stays_in_its_row(classes, name, kernels):
    """NaN in the first, a middle and the last slice, +inf, all -inf; the prediction is torch's."""
    x, y = noise(8, classes), torch.arange(8)
    options = case(name, classes, 8)
    slices = [slice(0, 1), slice(1, classes // 2), slice(classes // 2, classes)]
    under = kernels.under(**of_targets(options, y))
    clean = under.finish(*states_of(kernels, x, y, options, slices), y, classes)
    x[0, 0] = x[1, 3] = x[2, classes - 1] = torch.nan
    x[3, 2], x[3, 5] = torch.inf, 50.0
    x[4] = -torch.inf
    x[5, 2] = x[5, 8] = torch.nan
    found = under.finish(*states_of(kernels, x, y, options, slices), y, classes)
    assert torch.equal(found["prediction"], x.argmax(1))
    for signal, value in found.items():
        if signal != "prediction":
            swept = signal == "grad_norm" and name == "smoothing and all"
            assert value[..., 6:].isfinite().all() != swept, signal
            assert torch.equal(value[..., 6:].nan_to_num(), clean[signal][..., 6:].nan_to_num()), signal
            rows = value[3:, :6] if signal == "stats" else value[:6]  # m and u of the stats are what there is
            assert rows.isnan().all() if signal != "stats" else rows[0].isnan().all(), signal


@pytest.mark.parametrize("width", [1, 300, 1100, 8200])
@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min], ids=str)
def test_masked_slices_take_no_part(lowest, width, kernels):
    """All of a slice at -inf, or at the lowest finite number, whose distance times a count is no number any more."""
    x = torch.cat([torch.full((3, width), lowest), noise(3, 40), torch.full((3, width), lowest)], 1)
    x[1, width + 1 : width + 40] = lowest  # a lone top
    total = 2 * width + 40
    y = torch.tensor([width + 3, width, width + 9])
    slices = [slice(0, width), slice(width, width + 40), slice(width + 40, total)]
    for options in ({"temperature": 0.5}, {"weight": weights(total).add(0.5), "z_loss": 0.1}):
        numbers, k = states_of(kernels, x, y, options, slices)
        if lowest == -torch.inf:
            assert (numbers[::2, 2:LABEL] == 0).all() and (numbers[::2, :2] == lowest).all()
        found = kernels.under(**of_targets(options, y)).finish(numbers, k, y, total, OF_LABELS)
        check(found, x.clamp(min=-1e30) if lowest > -torch.inf else x, y, options)


@pytest.mark.parametrize("slices", [[slice(0, 1), slice(1, 2)], [slice(0, 1), slice(1, 3)], [slice(0, 2), slice(2, 3)]])
def test_a_masked_class_with_a_share_of_the_target_makes_the_loss_infinite(slices, kernels):
    x = torch.tensor([[5.0, -torch.inf, -torch.inf]])[:, : slices[-1].stop]
    y, options = torch.tensor([0]), {"label_smoothing": 0.1}
    numbers, k = states_of(kernels, x, y, options, slices)
    found = kernels.under(**options).finish(numbers, k, y, x.shape[1])
    assert found["loss"].tolist() == [torch.inf] and found["confidence"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["nothing", "z_loss", "smoothing", "softcap"])
def test_targets_ignored_out_of_range_and_in_no_slice(name, kernels):
    """A label that the slices at hand do not hold, as one out of range: NaN in what needs a target."""
    x, y = noise(6, 40), torch.tensor([3, -100, 40, -1, 25, -(2**62)])
    options, held = case(name, 40, 6), [slice(0, 20), slice(20, 40)]
    numbers, k = states_of(kernels, x, y, options, held)
    assert (k < 0).nonzero().tolist() == [[0, 0], [1, 4]]
    k[1, 4] = ~k[1, 4]  # as if no slice had it
    own = y.clamp(0, 39)
    found = kernels.under(**of_targets(options, own)).finish(numbers, k, y, 40)
    stats = found.pop("stats")
    for signal, value in found.items():
        if signal in host_kernels.NEED_TARGET:
            assert value[[2, 3, 4, 5]].isnan().all() and value[1] == 0 and value[0].isfinite(), signal
        else:
            assert value.isfinite().all(), signal
    assert stats[[4, 6]][:, 2:].isnan().all() and (stats[[4, 6], 1] == 0).all() and stats[:4].isfinite().all()
    free = kernels.under(**of_targets(options, own)).finish(numbers, k, None, 40, ("entropy", "stats"))
    assert torch.equal(free["entropy"], found["entropy"]) and (free["stats"][[4, 6]] == 0).all()
