"""score_binary and score_regression on every backend, against many digits and against torch in float64."""

import inspect

import head_oracle
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from places import Place
from torchassay import ops
from torchassay.backends import native

SIZES = [1, 2, 7, 8, 9, 16, 17, 33, 100, 1030]  # rows in lanes and along memory, one lane and many, a tile and its tail
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LOSSES = pytest.mark.parametrize("loss", head_oracle.LOSSES)


def noise(*shape, seed=1, scale=4.0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def labels(*shape, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).round()


def everything(x, y, place, w=None):
    """All signals of all heads as one tensor."""
    binary = ta.score_binary(x, y, pos_weight=w, backend=place.backend)
    parts = [ta.score_regression(x, y, loss=loss, delta=0.5, backend=place.backend) for loss in head_oracle.LOSSES]
    return torch.stack([value for scores in (binary, *parts) for value in scores.as_dict().values()]).cpu()


def check_values(place, labels_or_size, dtype):
    x, y, w, exact = head_oracle.binary_case(labels_or_size, dtype)
    x, y, w = x.to(place.device), y.to(place.device), w.to(place.device)
    oracle.check(place, ta.score_binary(x, y, pos_weight=w, backend=place.backend), exact, x)
    for loss in head_oracle.LOSSES:
        x, y, exact = head_oracle.regression_case(labels_or_size, dtype, loss)
        x, y = x.to(place.device), y.to(place.device)
        found = ta.score_regression(x, y, loss=loss, delta=0.75, backend=place.backend)
        oracle.check(place, found, exact, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_values(size, dtype, place):
    if dtype in place.dtypes:
        check_values(place, size, dtype)


@pytest.mark.parametrize("name", native.cpu_isas().split(",") if native else [])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_every_instruction_set(name, dtype):
    before = native.cpu_isa()
    native.set_cpu_isa(name)
    try:
        for size in (1, 3, 17, 100):
            check_values(Place(name, "native", "cpu"), size, dtype)
    finally:
        native.set_cpu_isa(before)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(9,), (9, 5), (9, 40)])
def test_as_torch_in_float64(shape, weighted, double_place):
    """Its losses, and the norms of its gradients; probabilities as targets too."""
    x = noise(*shape, dtype=torch.float64).to(double_place.device).requires_grad_()
    w = torch.rand(shape[1:], generator=torch.Generator().manual_seed(3)).double().to(double_place.device) * 4
    for target in (labels(*shape), torch.rand(shape, generator=torch.Generator().manual_seed(4))):
        y = target.double().to(double_place.device)
        option = w if weighted else None
        rows = F.binary_cross_entropy_with_logits(x, y, pos_weight=option, reduction="none").view(9, -1).sum(1)
        check_torch(x, rows, ta.score_binary(x, y, pos_weight=option, backend=double_place.backend))
    y = noise(*shape, seed=5, dtype=torch.float64).to(double_place.device)
    for loss in (F.mse_loss, F.l1_loss, F.huber_loss):
        name = loss.__name__.removesuffix("_loss")
        option = {"delta": 2.5} if name == "huber" else {}
        rows = loss(x, y, reduction="none", **option).view(9, -1).sum(1)
        check_torch(x, rows, ta.score_regression(x, y, loss=name, **option, backend=double_place.backend))


def check_torch(x, rows, found):
    (grad,) = torch.autograd.grad(rows.sum(), x)
    torch.testing.assert_close(found.loss, rows.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.grad_norm, grad.view(9, -1).norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 40])
def test_probabilities_as_targets(size, place):
    """Loss and entropy keep their digits; the slope is a difference, as precise as what is subtracted."""
    x, y = noise(8, size), torch.rand(8, size, generator=torch.Generator().manual_seed(6))
    exact = head_oracle.binary(x, y)
    found = ta.score_binary(x.to(place.device), y.to(place.device), backend=place.backend)
    for name in ("loss", "entropy"):
        assert oracle.relative_errors(name, getattr(found, name), exact[name]).max() <= place.tolerance
    assert (found.grad_norm.cpu().double() - exact["grad_norm"]).abs().max() <= 1e-6


def test_the_surest_labels_are_not_0(place):
    """At +-100 the loss is a subnormal number of float32; it rises with every step towards 0."""
    a = torch.linspace(100, 60, 81)
    for x, y in ((a, 1), (-a, 0)):
        found = ta.score_binary(x.to(place.device), torch.full((81,), y).to(place.device), backend=place.backend)
        for value in found.as_dict().values():
            assert value[0] > 0 and (value.diff() > 0).all()
    if place.double:
        x, y = torch.tensor([[100.0, -100.0], [700.0, -650.0]]).double(), torch.tensor([[1.0, 0], [1, 0]])
        found = ta.score_binary(x.to(place.device), y.to(place.device), backend=place.backend)
        oracle.check(place, found, head_oracle.binary(x, y), x)


@pytest.mark.parametrize("size", [1, 6, 100])
def test_norms_whose_squares_underflow_or_overflow(size, place):
    sizes = torch.tensor([1e-37, 1e-30, 1e-25, 1e-20, 1e-13, 1e-12, 1e-11, 1.0, 1e17, 1e18, 1e19, 1e25, 1e30, 1e37])
    x = torch.rand(len(sizes), size, generator=torch.Generator().manual_seed(7)) * sizes[:, None]
    for part in (slice(None), slice(3)):  # also alone
        for loss, option in (("mse", 1.0), ("huber", 1e38)):
            exact = head_oracle.regression(x[part], torch.zeros_like(x[part]), loss, option)["grad_norm"]
            here = x[part].to(place.device)
            with np.errstate(over="ignore"):  # the interpreter's losses: 1e60
                found = ta.score_regression(here, here * 0, loss=loss, delta=option, backend=place.backend)
            assert oracle.relative_errors("grad_norm", found.grad_norm, exact).max() <= place.tolerance
    y = labels(4, size)
    x = (2 * y - 1) * torch.tensor([[58.0], [43], [80], [30]])  # 1e-25, 2e-19, 2e-35 and 1e-13
    exact = head_oracle.binary(x, y)["grad_norm"]
    found = ta.score_binary(x.to(place.device), y.to(place.device), backend=place.backend).grad_norm
    assert oracle.relative_errors("grad_norm", found, exact).max() <= place.tolerance


def test_norms_in_float64_whose_squares_underflow_or_overflow(double_place):
    x = torch.rand(5, 20, generator=torch.Generator().manual_seed(8)).double()
    x *= torch.tensor([1e-300, 1e-170, 1.0, 1e160, 1e300], dtype=torch.float64)[:, None]
    exact = head_oracle.regression(x, torch.zeros_like(x), "mse")["grad_norm"]
    found = ta.score_regression(x.to(double_place.device), 0 * x.to(double_place.device), backend=double_place.backend)
    assert oracle.relative_errors("grad_norm", found.grad_norm, exact).max() <= 1e-14


@pytest.mark.parametrize("size", [1, 5, 70])
def test_poison_stays_in_its_sample(size, place):
    x, y, w = noise(9, size), labels(9, size), torch.full((size,), 2.0)
    clean = everything(x.to(place.device), y.to(place.device), place, w.to(place.device))
    x[1, size // 2], x[3, 0], x[4, size - 1], y[6, 0] = torch.nan, torch.inf, -torch.inf, torch.nan
    found = everything(x.to(place.device), y.to(place.device), place, w.to(place.device))
    rest = [0, 2, 5, 7, 8]
    assert torch.equal(found[:, rest], clean[:, rest])
    assert found[:, 1].isnan().all() and found[:3, 3:5].isnan().all()
    assert found[[0, 2, *range(3, 9)], 6].isnan().all() and torch.equal(found[1, 6], clean[1, 6])
    losses, norms = found[[3, 5, 7], 3:5], found[[4, 6, 8], 3:5]
    assert (losses == torch.inf).all() and (norms[0] == torch.inf).all()  # of d = inf, the limits
    assert norms[1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1, 5, 70])
def test_half_precision_is_what_the_upcast_values_give(size, dtype, place):
    x, y = noise(6, size).to(place.device, dtype), labels(6, size).to(place.device)
    assert torch.equal(everything(x, y, place), everything(x.float(), y, place))
    assert torch.equal(everything(x, y.to(dtype), place), everything(x, y, place))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64], ids=str)
def test_targets_of_any_dtype(dtype, place):
    x, y = noise(4, 11).to(place.device), labels(4, 11).to(place.device)
    w = torch.linspace(1, 2, 11, dtype=torch.float64, device=place.device)
    found = ta.score_binary(x, y.to(dtype), pos_weight=w, backend=place.backend)
    expected = ta.score_binary(x, y, pos_weight=w.float(), backend=place.backend)
    for name in expected.signals:
        assert getattr(found, name).dtype == torch.float32
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_one_weight_for_all_labels(place):
    x, y = noise(4, 11).to(place.device), labels(4, 11).to(place.device)
    one = torch.tensor(2.5, device=place.device)
    for given, each in ((x, one.expand(11)), (x[:, 0], one.view(1))):
        target = y if given.dim() == 2 else y[:, 0]
        found = ta.score_binary(given, target, pos_weight=one, backend=place.backend)
        expected = ta.score_binary(given, target, pos_weight=each, backend=place.backend)
        assert torch.equal(found.loss, expected.loss) and torch.equal(found.grad_norm, expected.grad_norm)
        assert (found.loss >= ta.score_binary(given, target, backend=place.backend).loss).all()


@pytest.mark.parametrize("size", [1, 5, 8, 9, 1030])
def test_a_sample_has_the_same_bits_alone_and_in_a_batch(size, place):
    if place.backend == "reference":
        pytest.skip("torch's own functions differ in the tail of a vector")
    x, y = noise(9, size).to(place.device), labels(9, size).to(place.device)
    whole = everything(x, y, place)
    for at in (0, 4, 8):
        assert torch.equal(everything(x[at : at + 1], y[at : at + 1], place), whole[:, at : at + 1])
    order = torch.tensor([3, 8, 0, 5])
    assert torch.equal(everything(x[order], y[order], place), whole[:, order])
    if size == 1:
        assert torch.equal(everything(x[:, 0], y[:, 0], place), whole)


@pytest.mark.skipif(native is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("size", [1, 5, 100])
def test_threads_change_nothing(size, threads):
    x, y = noise(80_000 // size, size), labels(80_000 // size, size)
    place, found = Place("native-cpu", "native", "cpu"), []
    for count in (1, 2, 5):
        threads(count)
        found.append(everything(x, y, place))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_any_strides(place):
    """Views of the logits and of the target, each in its own way; nothing that was given is written to."""
    cube = noise(6, 9, 40).to(place.device, torch.bfloat16)
    views = {
        "row stride": (cube[:, 3], cube[1:, 0]),
        "misaligned": (cube[0, :, 1:30], cube[2, :, 3:32]),
        "transposed": (cube[0].T, cube[1].T),
        "every second": (cube[0, :, ::2], cube[1, :, 1::2]),
        "expanded samples": (cube[0, 0].expand(9, 40), cube[1]),
        "expanded labels": (cube[0, :, :1].expand(9, 40), cube[1]),
        "a column": (cube[0, :, 5], cube[1, :, 7]),
        "a column of two dimensions": (cube[0, :, 5:6], cube[1, :, 7:8]),
        "windows": (cube.view(-1).unfold(0, 7, 1)[:30], cube.view(-1).unfold(0, 7, 3)[:30]),
        "a number for all": (cube[0, 0, 0].expand(9), cube[1, :, 0]),
    }
    before = cube.clone()
    for name, (x, y) in views.items():
        x, y = (x, y[: len(x)]) if len(y) >= len(x) else (x[: len(y)], y)
        found = everything(x, y, place)
        expected = everything(x.contiguous(), y.contiguous(), place)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=name)
        assert place.backend == "reference" or torch.equal(found, expected), name
    assert torch.equal(cube, before)


def test_many_labels(fast_place):
    """Long sums keep their digits, of equal terms too, whose roundings all go one way."""
    x, y = noise(2, 60_000), labels(2, 60_000)
    x[1], y[1] = 0.3, 1.0
    wide = ta.score_binary(x.double(), y, backend="reference")
    found = ta.score_binary(x.to(fast_place.device), y.to(fast_place.device), backend=fast_place.backend)
    oracle.check(fast_place, found, wide.as_dict(), x)


def test_only_what_is_asked_in_the_order_asked(place):
    x, y = noise(3, 4).to(place.device).requires_grad_(), labels(3, 4).to(place.device)
    whole = ta.score_binary(x, y, backend=place.backend)
    assert whole.signals == ("loss", "entropy", "grad_norm") and not whole.loss.requires_grad
    some = ta.score_binary(x, y, signals=("grad_norm", "loss"), backend=place.backend)
    assert some.signals == ("grad_norm", "loss")
    assert torch.equal(some.loss, whole.loss) and torch.equal(some.grad_norm, whole.grad_norm)
    alone = ta.score_binary(x, y, signals="entropy", backend=place.backend)
    assert alone.signals == ("entropy",) and torch.equal(alone.entropy, whole.entropy)
    with pytest.raises(AttributeError, match="it was not asked for"):
        _ = alone.loss
    whole = ta.score_regression(x, y, backend=place.backend)
    assert whole.signals == ("loss", "grad_norm")
    alone = ta.score_regression(x, y, signals="grad_norm", backend=place.backend)
    assert alone.signals == ("grad_norm",) and torch.equal(alone.grad_norm, whole.grad_norm)
    for shape in ((0,), (0, 4)):
        empty = torch.empty(shape, device=place.device)
        assert everything(empty, empty, place).shape == (9, 0)


@LOSSES
def test_the_reference_has_the_same_functions(loss):
    x, y, w = noise(5, 6), labels(5, 6), torch.rand(6)
    for ours, twin in ((ta.score_binary, ta.reference.score_binary), (ta.score_regression, None)):
        twin = twin or ta.reference.score_regression
        names = [name for name in inspect.signature(ours).parameters if name != "backend"]
        assert names == list(inspect.signature(twin).parameters)
    found, expected = ta.reference.score_binary(x, y, pos_weight=w), ta.score_binary(x, y, pos_weight=w)
    torch.testing.assert_close(found.as_dict(), expected.as_dict(), rtol=2e-6, atol=0)
    found = ta.reference.score_regression(x, y, loss=loss, delta=0.5)
    torch.testing.assert_close(found.loss, ta.score_regression(x, y, loss=loss, delta=0.5).loss, rtol=2e-6, atol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # opcheck compiles through every deprecated corner of torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_opcheck(place):
    x, y = noise(3, 4).to(place.device), labels(3, 4).to(place.device)
    for head, w in (("binary", torch.ones(4, device=place.device)), ("huber", None)):
        names = ["grad_norm", "loss"]
        torch.library.opcheck(ops.head_scores, (x[:, 0], y[:, 0], None, head, 1.0, names, place.backend))
        torch.library.opcheck(ops.head_scores, (x, y, w, head, 1.0, names, place.backend))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_compiled_as_one_graph(fast_place):
    def step(x, y, w):
        binary = ta.score_binary(2 * x, y, pos_weight=w, backend=fast_place.backend)
        return binary, ta.score_regression(x, y, loss="huber", backend=fast_place.backend).loss

    torch._dynamo.reset()
    x, y, w = (t.to(fast_place.device) for t in (noise(3, 4), labels(3, 4), torch.rand(4)))
    found, loss = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y, w)
    expected, expected_loss = step(x, y, w)
    assert found.signals == expected.signals and torch.equal(loss, expected_loss)
    assert all(map(torch.equal, found.as_dict().values(), expected.as_dict().values()))


ROWS, LABELS = torch.zeros(4, 5), torch.zeros(4, 5)
BINARY, REGRESSION = ta.score_binary, ta.score_regression
FLOATS = "float16, bfloat16, float32 or float64"
ERRORS = {
    "input not a tensor": (BINARY, [1.0], LABELS, {}, TypeError, "input must be a Tensor, got list"),
    "target not a tensor": (REGRESSION, ROWS, 1.0, {}, TypeError, "target must be a Tensor, got float"),
    "integer input": (BINARY, ROWS.long(), LABELS, {}, TypeError, f"input must be {FLOATS}, got int64"),
    "bool input": (REGRESSION, ROWS > 0, LABELS, {}, TypeError, f"input must be {FLOATS}, got bool"),
    "complex target": (BINARY, ROWS, LABELS.cfloat(), {}, TypeError, "target must be real, got complex64"),
    "integer target of a regression": (
        *(REGRESSION, ROWS, LABELS.int(), {}, TypeError),
        "target must have a float dtype, got int32; did you mean target.float()?",
    ),
    "other devices": (
        *(BINARY, ROWS, LABELS.to("meta"), {}, ValueError),
        "target must be on input's device, cpu, got meta",
    ),
    "0-d": (BINARY, ROWS[0, 0], LABELS[0, 0], {}, ValueError, "input must have shape (N,) or (N, L), got ()"),
    "three dimensions": (
        *(REGRESSION, ROWS.view(2, 2, 5), LABELS.view(2, 2, 5), {}, ValueError),
        "input must have shape (N,) or (N, L), got (2, 2, 5); did you mean input.flatten(1) and target.flatten(1)?",
    ),
    "no outputs": (
        *(BINARY, ROWS[:, :0], LABELS[:, :0], {}, ValueError),
        "input must have at least one output, got shape (4, 0)",
    ),
    "another shape": (
        *(REGRESSION, ROWS, LABELS[:3], {}, ValueError),
        "target must have input's shape (4, 5), got (3, 5)",
    ),
    "a column for a vector": (
        *(REGRESSION, ROWS[:, 0], LABELS[:, :1], {}, ValueError),
        "target must have input's shape (4,), got (4, 1); did you mean target.view_as(input)?",
    ),
    "classes": (
        *(BINARY, ROWS, torch.tensor([0, 1, 2, 3]), {}, ValueError),
        "target must have input's shape (4, 5), got (4,); classes, one a sample, are for score",
    ),
    "unknown signal": (
        *(BINARY, ROWS, LABELS, {"signals": ("loss", "margin")}, ValueError),
        "signals must be among loss, entropy, grad_norm; got 'margin'",
    ),
    "entropy of a regression": (
        *(REGRESSION, ROWS, LABELS, {"signals": "entropy"}, ValueError),
        "signals must be among loss, grad_norm; got 'entropy'",
    ),
    "weight not a tensor": (
        *(BINARY, ROWS, LABELS, {"pos_weight": 2.0}, TypeError),
        "pos_weight must be a Tensor, got float",
    ),
    "integer weight": (
        *(BINARY, ROWS, LABELS, {"pos_weight": torch.ones(5, dtype=torch.int64)}, TypeError),
        "pos_weight must have a float dtype, got int64",
    ),
    "weight elsewhere": (
        *(BINARY, ROWS, LABELS, {"pos_weight": torch.ones(5, device="meta")}, ValueError),
        "pos_weight must be on input's device, cpu, got meta",
    ),
    "weight of another length": (
        *(BINARY, ROWS, LABELS, {"pos_weight": torch.ones(4)}, ValueError),
        "pos_weight must have shape (5,), one number a label, or (), got (4,)",
    ),
    "weight for every sample": (
        *(BINARY, ROWS[:, 0], LABELS[:, 0], {"pos_weight": torch.ones(4)}, ValueError),
        "pos_weight must have shape (1,), one number a label, or (), got (4,)",
    ),
    "unknown loss": (
        *(REGRESSION, ROWS, LABELS, {"loss": "mae"}, ValueError),
        "loss must be 'mse', 'l1' or 'huber', got 'mae'",
    ),
    "delta of 0": (REGRESSION, ROWS, LABELS, {"delta": 0.0}, ValueError, "delta must be > 0, got 0.0"),
    "delta of NaN": (REGRESSION, ROWS, LABELS, {"delta": torch.nan}, ValueError, "delta must be > 0, got nan"),
    "delta not a number": (REGRESSION, ROWS, LABELS, {"delta": "1"}, TypeError, "delta must be a float, got str"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    function, x, y, options, kind, message = ERRORS[case]
    for called in (function, getattr(ta.reference, function.__name__)):
        with pytest.raises(kind) as error:
            called(x, y, **options)
        assert str(error.value) == f"{function.__name__}: {message}"


def test_a_backend_that_cannot():
    with pytest.raises(RuntimeError) as error:
        ta.score_binary(ROWS.double(), LABELS, backend="triton")
    expected = "backend 'triton' is not available for this call: the GPU kernels have no float64"
    assert str(error.value) == f"score_binary: {expected}"
