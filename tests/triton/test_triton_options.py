"""The launchers of options called directly, against the truth in extended precision.

A temperature, a class weight and a z-loss are for the plain kernels (one lane a row up to 32 columns, registers up to
4096, segments above), all else for one kernel (one tile up to 4096 columns, several above).
"""

import oracle
import pytest
import torch
from option_oracle import Case, Truth, truth
from torch import Tensor
from torchassay.options import Options
from torchassay.triton_kernels import row_scores

NEED_TARGET = ("loss", "grad_norm", "target_margin")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = 4


def exact(x: Tensor, target: Tensor | None, options: Options) -> Truth:
    """Of finite rows; classes at -inf are allowed."""
    return truth(x, target, Case(*(getattr(options, name) for name in Case._fields)))


def tolerance_of(options: Options, base: float) -> float:
    """A cap rounds v by up to its 2^-23rd part, which the temperature divides."""
    coldest = float(torch.as_tensor(options.temperature).min())
    return base + 2.0**-22 * (options.softcap or 0) / min(1.0, coldest)


def check(found, x, target, options, base=2e-6):
    tolerance = tolerance_of(options, base)
    largest = (x.float() / torch.as_tensor(options.temperature).reshape(-1, 1)).amax(1).abs().double()
    expected = exact(x, target, options).signals
    for name, value in found.items():
        if name == "prediction":
            assert torch.equal(value, expected[name])
        elif name != "stats":
            scale = expected[name].abs()
            if name == "lse":
                scale = torch.maximum(scale, largest)
            elif name == "grad_norm":  # the rounding of the lse in 2 z_loss lse
                scale = scale + options.z_loss * largest
            error = (value.double() - expected[name]).abs()
            same = (value == expected[name]) | (error < 1e-37)
            assert (same | (error <= tolerance * scale)).all(), f"{name}: {value}, exact {expected[name]}"


def check_gradient(found, x, target, options, upstream, base=2e-6):
    expected = exact(x, target, options).gradient(*upstream)
    oracle.check_gradient(found, expected, tolerance_of(options, base))


def logits(classes, dtype, seed=0, offset=0.0) -> Tensor:
    """Gaps of the first class to the rest from -80 to 80."""
    x = torch.randn(ROWS, classes, generator=torch.Generator().manual_seed(classes + seed)) * 2 + offset
    x[:, 0] = x.amax(1) + torch.tensor([-80.0, 3.0, 80.0, 0.5])
    return x.to(dtype)


def labels(classes) -> Tensor:
    return torch.tensor([0, classes - 1, 0, classes // 2])


def probabilities(classes) -> Tensor:
    t = torch.randn(ROWS, classes, generator=torch.Generator().manual_seed(classes)).mul(3).softmax(1)
    t[0] = 0
    t[0, classes - 1] = 1
    return t


def weight(classes) -> Tensor:
    w = torch.rand(classes, generator=torch.Generator().manual_seed(classes)) + 0.1
    w[classes - 1] = 0
    return w


BY_ROW = torch.tensor([0.7, 1.9, 3.0, 0.31])
OPTIONS = {  # the first five in one read
    "temperature": lambda classes: Options(temperature=0.6),
    "temperatures of the rows": lambda classes: Options(temperature=BY_ROW),
    "weight": lambda classes: Options(weight(classes)),
    "z-loss": lambda classes: Options(z_loss=1e-2),
    "weight, temperatures, z-loss": lambda classes: Options(weight(classes), temperature=BY_ROW, z_loss=1e-3),
    "smoothing": lambda classes: Options(label_smoothing=0.1),
    "weight, smoothing": lambda classes: Options(weight(classes), 0.3, 1.7),
    "softcap": lambda classes: Options(softcap=30.0),
    "all": lambda classes: Options(weight(classes), 0.2, BY_ROW, 20.0, 1e-3),
}
UPSTREAM = torch.tensor([0.7, -1.2, 0.4, 2.0]), torch.tensor([-0.3, 0.8, 1.5, 0.1])
UPSTREAMS = UPSTREAM, (UPSTREAM[0], None), (None, UPSTREAM[1])


@pytest.mark.parametrize("kind", [labels, probabilities])
@pytest.mark.parametrize("classes", [1, 2, 5, 17, 33, 100, 1000])
def test_against_the_formulas(classes, kind, option_scores, option_grads):
    target = kind(classes)
    for turn, make in enumerate(OPTIONS.values()):
        if (turn + classes + (kind is labels)) % 2:  # half of them for either kind of target
            continue
        x, options = logits(classes, DTYPES[(turn + classes) % 3], turn), make(classes)
        check(option_scores(x, target, options), x, target, options)
        upstream = UPSTREAMS[turn % 3]
        check_gradient(option_grads(x, target, options, *upstream), x, target, options, upstream)


@pytest.mark.parametrize("name", ["weight, temperatures, z-loss", "smoothing", "all"])
def test_long_rows(name, option_scores, option_grads):
    """Over several tiles."""
    for classes, kind in ((5000, labels), (5001, probabilities)):
        x, target, options = logits(classes, torch.bfloat16), kind(classes), OPTIONS[name](classes)
        check(option_scores(x, target, options), x, target, options)
        check_gradient(option_grads(x, target, options, *UPSTREAM), x, target, options, UPSTREAM)


def test_segments_give_the_bits_of_a_walk(option_scores, monkeypatch):
    classes = 33001
    x, y, options = logits(classes, torch.bfloat16)[1:3], labels(classes)[1:3], OPTIONS["z-loss"](classes)
    options = options._replace(temperature=BY_ROW[1:3])
    cut = option_scores(x, y, options)
    check(cut, x, y, options)
    monkeypatch.setattr(row_scores, "FEW", 0)
    for name, value in option_scores(x, y, options).items():
        assert torch.equal(value, cut[name]), name


@pytest.mark.parametrize("name", ["temperatures of the rows", "weight, smoothing", "all"])
def test_with_the_errors_of_the_hardware(name, option_scores, option_grads, hardware_exp2):
    for classes, offset in ((3, 0.0), (100, 1e4 if name != "all" else 0.0)):
        for dtype in (torch.float32, torch.bfloat16)[: 1 if offset else 2]:
            x, options = logits(classes, dtype, offset=offset), OPTIONS[name](classes)
            check(option_scores(x, labels(classes), options), x, labels(classes), options, 3e-6)
            found = option_grads(x, labels(classes), options, *UPSTREAM)
            check_gradient(found, x, labels(classes), options, UPSTREAM, 3e-6)


def test_offsets_and_spread_rows(option_scores, option_grads):
    """Common offsets of +-1e4; nearly uniform rows and rows spread over hundreds."""
    x = torch.randn(ROWS, 100, generator=torch.Generator().manual_seed(1))
    x = x * torch.tensor([1.0, 1.0, 1e-3, 30.0])[:, None] + torch.tensor([1e4, -1e4, 0.0, 0.0])[:, None]
    y = torch.tensor([3, 99, 0, int(x[3].argmax())])
    for name in ("weight, temperatures, z-loss", "smoothing", "weight, smoothing"):
        options = OPTIONS[name](100)._replace(z_loss=0.0)
        check(option_scores(x, y, options), x, y, options)
        check_gradient(option_grads(x, y, options, *UPSTREAM), x, y, options, UPSTREAM)


@pytest.mark.parametrize("classes", [20, 100, 4104])
def test_a_temperature_of_one_changes_no_bit(classes, scores, option_scores):
    x, y = logits(classes, torch.float32)[:2], labels(classes)[:2]
    plain = scores(x, y)
    for options in (Options(), Options(torch.ones(classes)), Options(temperature=torch.ones(2))):
        for name, value in option_scores(x, y, options).items():
            if name != "stats":
                assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("name", ["weight, temperatures, z-loss", "softcap", "weight, smoothing"])
def test_masked_classes(name, option_scores, option_grads):
    """-inf adds nothing where the target has no share: not even a NaN from 0 inf; and inf where it has one."""
    classes = 40
    options = OPTIONS[name](classes)
    x = torch.randn(ROWS, classes, generator=torch.Generator().manual_seed(2)) * 3
    x[:, 30:] = -torch.inf
    x[3, 1:] = -torch.inf
    y = torch.tensor([3, 39, 35, 0])  # the weight of class 39 is 0
    found, expected = option_scores(x, y, options), exact(x, y, options).signals
    if name == "weight, smoothing":
        assert torch.equal(found["loss"], torch.full((ROWS,), torch.inf))
    else:
        assert found["loss"].isinf().tolist() == [False, name == "softcap", True, False]
    finite = {name: value for name, value in found.items() if name not in ("stats", "loss")}
    check(finite, x, y, options)
    at = expected["loss"].isfinite()
    torch.testing.assert_close(found["loss"][at].double(), expected["loss"][at], rtol=1e-5, atol=1e-37)
    check_gradient(option_grads(x, y, options, *UPSTREAM), x, y, options, UPSTREAM)


def test_probabilities_at_masked_classes_are_as_in_torch(option_scores):
    """0 inf is NaN, a share of an impossible class costs infinitely much."""
    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(3))
    x[:, 7] = -torch.inf
    t = torch.full((2, 40), 1 / 40)
    t[0, 7] = 0
    found = option_scores(x, t, Options())["loss"]
    assert torch.equal(found.isnan(), torch.tensor([True, False]))
    assert found[1] == torch.inf
    assert torch.equal(torch.nn.functional.cross_entropy(x, t, reduction="none").isnan(), found.isnan())


@pytest.mark.parametrize(
    ("name", "classes"),
    [("weight, temperatures, z-loss", 6), ("weight, smoothing", 50), ("softcap", 50), ("softcap", 4100)],
)
def test_poison_ignored_and_out_of_range(name, classes, option_scores, option_grads):
    options = OPTIONS[name](classes)
    options = options._replace(temperature=options.temperature if isinstance(options.temperature, float) else 0.9)
    x = torch.randn(7, classes, generator=torch.Generator().manual_seed(4))
    y = torch.tensor([0, 1, 2, 3, -1, classes, 1])
    upstream = torch.ones(7), torch.ones(7)
    clean = option_scores(x, torch.tensor([0, 1, 2, 3, 3, 3, 1]), options)
    gradient = option_grads(x, y, options, *upstream, ignore_index=3)
    x[0, classes - 1] = torch.nan
    x[1, classes // 2] = torch.inf
    x[2] = -torch.inf
    x[3, 0] = torch.nan
    found = option_scores(x, y, options, ignore_index=3)
    assert found["prediction"].tolist() == x.argmax(1).tolist()
    for name, value in found.items():
        if name in NEED_TARGET:
            assert value.isnan().tolist() == [True, True, True, False, True, True, False], name
            assert value[3] == 0
        elif name not in ("stats", "prediction"):
            assert value[:4].isnan().all(), name
            assert torch.equal(value[4:], clean[name][4:]), name
    rest, beta = found["stats"][[4, 6]]
    assert [rest[3], beta[3]] == [0, 0]
    assert rest[4:6].isnan().all()
    assert beta[4:6].isnan().all()
    both, loss = (option_grads(x, y, options, torch.ones(7), gH, ignore_index=3) for gH in (upstream[1], None))
    assert both[:6].isnan().all()
    assert torch.equal(both[6], gradient[6])
    assert torch.equal(loss[3], torch.zeros(classes))
    assert loss[[0, 1, 2, 4, 5]].isnan().all()


@pytest.mark.parametrize("classes", [17, 300, 5000])
def test_ties_give_the_lowest_class_of_the_raw_logits(classes, option_scores, option_grads):
    """In one tile and in two; and capped, 400 and 500 are one."""
    x = torch.randn(3, classes, generator=torch.Generator().manual_seed(5)).clamp(max=4)
    for row, pair in enumerate([(3, 4), (0, classes - 1), (classes - 2, classes - 1)]):
        x[row, list(pair)] = torch.tensor([9.0, 9.0]) if row < 2 else torch.tensor([400.0, 500.0])
    y = torch.tensor([4, 0, classes - 2])
    for options in (Options(label_smoothing=0.1), Options(softcap=10.0)):
        found = option_scores(x, y, options)
        assert found["prediction"].tolist() == [3, 0, classes - 1]
        if options.softcap:
            assert torch.equal(found["margin"], torch.zeros(3))
        check(found, x, y, options)
        upstream = UPSTREAM[0][:3], UPSTREAM[1][:3]
        check_gradient(option_grads(x, y, options, *upstream), x, y, options, upstream)


def test_a_student_that_has_learnt(option_scores, option_grads):
    """softmax(x) = t: the norm and the gradient are what rounding leaves, not the square root of it."""
    t = torch.softmax(torch.randn(2, 100, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 3, 1)
    x, t = t.log().float(), t.float()
    assert option_scores(x, t, Options(), names=("grad_norm",))["grad_norm"].max() < 5e-7
    assert option_grads(x, t, Options(), torch.ones(2), None).abs().max() < 5e-7


@pytest.mark.parametrize(
    ("name", "classes"),
    [("weight, temperatures, z-loss", 7), ("weight, temperatures, z-loss", 72), ("all", 7), ("all", 4104)],
)
def test_strides_and_places_of_rows(name, classes, option_scores, option_grads, only_own_addresses):
    """Two strides, targets anywhere: nothing else is read, and a row's bits are its own."""
    memory = torch.randn(2, 4, classes + 3, generator=torch.Generator().manual_seed(7)).bfloat16()
    x, before = memory[:, 1:3, :classes], memory.clone()
    options = OPTIONS[name](classes)
    for target in (torch.tensor([0, classes, -1, 2**62]), probabilities(classes)):
        found = option_scores(x, target, options)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = options._replace(temperature=options.temperature[order])
        plain = x.reshape(4, classes).clone()
        expected = option_scores(plain, target, options)
        for name, value in option_scores(plain[order], target[order], shuffled).items():
            assert torch.equal(value.nan_to_num(-5), expected[name][..., order].nan_to_num(-5)), name
            torch.testing.assert_close(found[name], expected[name], rtol=2e-6, atol=0, equal_nan=True)
        spread = torch.empty(4, 3)[:, 1].copy_(UPSTREAM[0])
        gradient = option_grads(x, target, options, spread, UPSTREAM[1][:1].expand(4))
        alone = options._replace(temperature=options.temperature[:1])
        one = option_grads(plain[:1], target[:1], alone, UPSTREAM[0][:1], UPSTREAM[1][:1])
        torch.testing.assert_close(gradient[:1].float(), one.float(), rtol=1e-2, atol=1e-6)
    assert torch.equal(memory, before)


@pytest.mark.parametrize(("name", "classes"), [("z-loss", 20), ("z-loss", 100), ("smoothing", 20), ("softcap", 4104)])
def test_each_signal_alone_has_the_bits_it_has_with_all(name, classes, option_scores):
    x, y = logits(classes, torch.bfloat16)[:2], labels(classes)[:2]
    options = OPTIONS[name](classes)._replace(temperature=0.8)
    together = option_scores(x, y, options)
    for signal in together:
        asked = ("stats", "entropy") if signal == "stats" else (signal,)  # mu is 0 without the entropy
        assert torch.equal(option_scores(x, y, options, names=asked)[signal], together[signal]), signal
    bare = option_scores(x, None, options)
    for signal in ("entropy", "lse", "margin", "prediction"):
        assert torch.equal(bare[signal], together[signal]), signal
    assert torch.equal(bare["stats"][[0, 1, 2, 3, 5]], together["stats"][[0, 1, 2, 3, 5]])
    assert torch.equal(bare["stats"][[4, 6]], torch.zeros(2, 2))
