"""cross_entropy against F.cross_entropy: all arguments but the deprecated ones, results, dtypes, types of errors."""

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

SHAPES = {"(C)": (7,), "(N, C)": (6, 7), "(N, C, d1)": (3, 7, 4), "(N, C, d1, d2)": (2, 7, 3, 5), "(N, 1)": (4, 1)}
REDUCTIONS = ["none", "mean", "sum"]
EPS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def example(shape, dtype=torch.float64, device="cpu", seed=70):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    classes = shape[min(1, len(shape) - 1)]
    y = torch.randint(0, classes, rows, generator=generator)
    return x.to(device, dtype), y.to(device)


def agree(ours, theirs, dtype):
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=EPS[dtype], atol=0, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_every_shape_reduction_and_dtype(dtype, shape, reduction, place):
    """Values are those of float64 on the same logits; shape and dtype are those torch gives for this dtype."""
    if dtype not in place.dtypes:
        pytest.skip(f"{place}: no {dtype}")
    x, y = example(shape, dtype, place.device)
    found = ta.cross_entropy(x, y, reduction=reduction, backend=place.backend)
    assert found.dtype == F.cross_entropy(x, y, reduction=reduction).dtype
    agree(found, F.cross_entropy(x.double(), y, reduction=reduction), dtype)


# default; a class of its own, in range; 0; one that no row has; every row
@pytest.mark.parametrize("ignored", ["some at -100", "class 2", "class 0", "none", "all"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_case_18_ignore_index(reduction, ignored, double_place):
    x, y = example((8, 7), device=double_place.device)
    y[:4] = torch.tensor([0, 2, 2, 5])
    options = {}
    if ignored == "some at -100":
        y[[1, 5]] = -100
    elif ignored == "all":
        y[:] = -100
    else:
        options["ignore_index"] = {"class 2": 2, "class 0": 0, "none": -1}[ignored]
    found = ta.cross_entropy(x, y, reduction=reduction, backend=double_place.backend, **options)
    agree(found, F.cross_entropy(x, y, reduction=reduction, **options), torch.float64)
    if ignored == "all":
        assert found.isnan() if reduction == "mean" else (found == 0).all()


def test_case_18_all_ignored_has_zero_gradients_for_a_sum(double_place):
    x, y = example((4, 7), device=double_place.device)
    x.requires_grad_()
    ta.cross_entropy(x, torch.full_like(y, -100), reduction="sum", backend=double_place.backend).backward()
    assert (x.grad == 0).all()


WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.5], dtype=torch.float64)  # a class of weight 0 among them


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s != (4, 1)], ids=str)
def test_weight_label_smoothing_and_gradients(shape, weighted, smoothing, reduction):
    x, y = example(shape)
    if len(shape) > 1:
        y.view(-1)[1] = -100
    options = {"reduction": reduction, "label_smoothing": smoothing}
    weight = WEIGHT if weighted else None
    grads = []
    for function in (F.cross_entropy, ta.cross_entropy):
        logits = x.clone().requires_grad_()
        loss = function(logits, y, weight, **options)
        up = (
            torch.linspace(-1, 1, loss.numel(), dtype=loss.dtype).view(loss.shape)
            if loss.dim()
            else torch.ones_like(loss)
        )
        loss.backward(up)
        grads.append((loss.detach(), logits.grad))
    agree(grads[1][0], grads[0][0], torch.float64)
    torch.testing.assert_close(grads[1][1], grads[0][1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s != (4, 1)], ids=str)
def test_probability_targets_and_gradients(shape, weighted, smoothing, reduction):
    x, _ = example(shape)
    dim = min(1, len(shape) - 1)
    target = example(shape, seed=71)[0].softmax(dim)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    weight = WEIGHT if weighted else None
    grads = []
    for function in (F.cross_entropy, ta.cross_entropy):
        logits, b = x.clone().requires_grad_(), target.clone().requires_grad_()
        loss = function(logits, b, weight, **options)
        loss.sum().backward()
        grads.append((loss.detach(), logits.grad, b.grad))
    agree(grads[1][0], grads[0][0], torch.float64)
    for ours, theirs in zip(grads[1][1:], grads[0][1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", ["weight", "weight and ignored", "smoothing and ignored", "all ignored", "weight 0"])
def test_case_18_ignored_beside_weights_and_smoothing(case):
    x, y = example((6, 7))
    options = {}
    if "weight" in case:
        options["weight"] = WEIGHT
    if "smoothing" in case or case == "all ignored":
        options["label_smoothing"] = 0.2
    if case == "weight 0":
        y[:] = 2
    elif case == "all ignored":
        y[:] = -100
    elif "ignored" in case:
        y[[0, 3]] = -100
    for reduction in REDUCTIONS:
        found = ta.cross_entropy(x, y, reduction=reduction, **options)
        agree(found, F.cross_entropy(x, y, reduction=reduction, **options), torch.float64)


@pytest.mark.parametrize("options", [{"weight": WEIGHT}, {"label_smoothing": 0.1}], ids=["weight", "smoothing"])
def test_an_ignored_poisoned_row_stays_out_with_options_too(options):
    x, y = example((4, 7))
    x[1, 2] = torch.nan
    y[1] = -100
    x.requires_grad_()
    loss = ta.cross_entropy(x, y, **options)
    loss.backward()
    assert loss.isfinite() and (x.grad[1] == 0).all() and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["classes", "weight", "smoothing", "probabilities", "float32 probabilities"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_dtypes_of_results(autocast, kind, dtype):
    x, y = example((6, 7), dtype)
    target = y if "prob" not in kind else torch.rand(6, 7).softmax(1).to(torch.float32 if "32" in kind else dtype)
    options = (
        {"weight": WEIGHT.to(dtype)} if kind == "weight" else {"label_smoothing": 0.1} if kind == "smoothing" else {}
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for reduction in REDUCTIONS:
            theirs = F.cross_entropy(x, target, reduction=reduction, **options)
            ours = ta.cross_entropy(x, target, reduction=reduction, **options)
            assert ours.dtype == theirs.dtype, reduction
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_autocast_of_a_linear_layer(place):
    """The layer's bfloat16 output gives a float32 loss and float32 gradients of the parameters."""
    layer = torch.nn.Linear(5, 7).to(place.device)
    x, y = torch.randn(4, 5, device=place.device), torch.tensor([0, 6, 3, 1], device=place.device)
    with torch.autocast(place.device, torch.bfloat16):
        logits = layer(x)
        loss, scores = ta.cross_entropy(logits, y, signals=("loss", "entropy"), backend=place.backend)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == F.cross_entropy(logits.float(), y).dtype == torch.float32
    assert scores.loss.dtype == scores.entropy.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 7), (0, 7, 3), (2, 7, 0)], ids=str)
def test_no_rows(shape, reduction, place):
    x, y = example(shape, torch.float32, place.device)
    found = ta.cross_entropy(x, y, reduction=reduction, backend=place.backend)
    agree(found, F.cross_entropy(x, y, reduction=reduction), torch.float32)


@pytest.mark.parametrize("dim", [-1, 2])
def test_dim_takes_the_classes_last(dim, place):
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(72)).to(place.device)
    y = torch.tensor([[0, 6, 3], [1, 1, -100]], device=place.device)
    found = ta.cross_entropy(x, y, dim=dim, reduction="none", backend=place.backend)
    agree(found, F.cross_entropy(x.double().movedim(-1, 1), y, reduction="none"), torch.float32)
    agree(
        ta.cross_entropy(x, y, dim=dim, backend=place.backend),
        F.cross_entropy(x.double().movedim(-1, 1), y),
        torch.float32,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_signals_come_unreduced_and_detached_from_the_same_read(reduction, place):
    x, y = example((6, 7), torch.float32, place.device)
    y[2] = -100
    x.requires_grad_()
    loss, scores = ta.cross_entropy(x, y, reduction=reduction, signals=ROW_SIGNALS, backend=place.backend)
    alone = ta.score(x, y, signals=ROW_SIGNALS, backend=place.backend)
    assert scores.signals == ROW_SIGNALS
    assert all(torch.equal(getattr(scores, name), getattr(alone, name)) for name in ROW_SIGNALS)
    assert torch.equal(loss, ta.cross_entropy(x, y, reduction=reduction, backend=place.backend))
    oracle.check(place, scores, oracle.signals(x.detach(), y), x.detach())


def test_signals_without_the_loss_or_a_single_name(place):
    x, y = example((6, 7), torch.float32, place.device)
    _, scores = ta.cross_entropy(x, y, signals=("margin", "entropy"), backend=place.backend)
    assert scores.signals == ("margin", "entropy")
    _, scores = ta.cross_entropy(x, y, signals="entropy", backend=place.backend)
    assert scores.signals == ("entropy",)


def test_signals_with_options_are_those_of_the_weighted_loss():
    x, y = example((6, 7))
    loss, scores = ta.cross_entropy(
        x, y, WEIGHT, label_smoothing=0.1, reduction="none", signals=("loss", "grad_norm", "entropy")
    )
    logits = x.clone().requires_grad_()
    exact = F.cross_entropy(logits, y, WEIGHT, label_smoothing=0.1, reduction="none")
    (grad,) = torch.autograd.grad(exact.sum(), logits)
    agree(scores.loss, exact, torch.float64)
    agree(loss, exact, torch.float64)
    torch.testing.assert_close(scores.grad_norm, grad.norm(dim=1), rtol=1e-12, atol=0)
    agree(scores.entropy, oracle.signals(x, y)["entropy"], torch.float64)


def test_easy_samples_keep_their_digits_with_class_weights():
    """Weights of 1 are no weights: loss and grad_norm of confident rows, which float32 squares would underflow."""
    gap = torch.tensor([0.0, 10.0, 30.0, 60.0, 80.0])
    x = torch.zeros(5, 7)
    x[:, 3] = gap
    y = torch.full((5,), 3)
    found = ta.score(x, y, weight=torch.ones(7), signals=("loss", "grad_norm"))
    exact = oracle.signals(x, y)
    for name in ("loss", "grad_norm"):
        error = oracle.relative_errors(name, getattr(found, name), exact[name])
        assert (error <= 1e-6).all(), (name, error.tolist())


X, Y = torch.randn(4, 5, generator=torch.Generator().manual_seed(73)), torch.tensor([0, 1, 2, 3])
P = X.softmax(1)
BAD = {
    "target too short": (X, Y[:3], {}),
    "target of rank 2": (X, Y[:, None], {}),
    "target of rank 0": (X, Y[0], {}),
    "target of another image": (torch.zeros(2, 5, 3, 3), torch.zeros(2, 3, 4, dtype=torch.long), {}),
    "classes last": (torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long), {}),
    "integer logits": (X.long(), Y, {}),
    "bool logits": (X > 0, Y, {}),
    "complex logits": (X.cfloat(), Y, {}),
    "class too large": (X, torch.tensor([0, 1, 2, 5]), {}),
    "class negative": (X, torch.tensor([0, 1, 2, -1]), {}),
    "weight too short": (X, Y, {"weight": torch.ones(4)}),
    "weight of rank 2": (X, Y, {"weight": torch.ones(5, 1)}),
    "integer weight": (X, Y, {"weight": torch.ones(5, dtype=torch.long)}),
    "weight a list": (X, Y, {"weight": [1.0] * 5}),
    "unknown reduction": (X, Y, {"reduction": "avg"}),
    "no reduction": (X, Y, {"reduction": None}),
    "smoothing above 1": (X, Y, {"label_smoothing": 1.5}),
    "smoothing a string": (X, Y, {"label_smoothing": "a"}),
    "input of rank 0": (X[0, 0], Y[0], {}),
    "probabilities of another shape": (X, P[:3], {}),
    "float classes": (X, Y.float(), {}),
    "integer probabilities": (X, torch.ones(4, 5, dtype=torch.long), {}),
    "bool classes": (X, Y > 1, {}),
    "complex probabilities": (X, P.cfloat(), {}),
    "input a list": ([[1.0, 2.0]], Y[:1], {}),
    "target a list": (X, [0, 1, 2, 3], {}),
    "no target": (X, None, {}),
    "ignore_index a float": (X, Y, {"ignore_index": 1.5}),
    "no ignore_index": (X, Y, {"ignore_index": None}),
    "ignore_index with probabilities": (X, P, {"ignore_index": 1}),
    "no classes": (torch.zeros(3, 0), torch.zeros(3, dtype=torch.long), {}),
    "unsigned 16-bit classes": (X, Y.to(torch.uint16), {}),
    "target on another device": (X, Y.to("meta"), {}),
    "weight on another device": (X, Y, {"weight": torch.ones(5, device="meta")}),
}


@pytest.mark.parametrize("case", BAD)
def test_case_19_an_except_written_for_torch_goes_on_working(case):
    x, y, options = BAD[case]
    with pytest.raises(Exception) as theirs:
        F.cross_entropy(x, y, **options)
    with pytest.raises(type(theirs.value)) as ours:
        ta.cross_entropy(x, y, **options)
    assert isinstance(ours.value, ValueError | TypeError)


def test_arguments_after_weight_go_by_keyword():
    """F's order has two deprecated arguments in between: a silent misbinding would be worse."""
    with pytest.raises(TypeError, match="positional"):
        ta.cross_entropy(X, Y, None, None, -100)
