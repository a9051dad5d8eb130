"""Every option of a loss, and their combinations, on every backend: values, gradients, rows that hold no number."""

import itertools
import sys
import warnings

import option_oracle
import oracle
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from torchassay import BackendFallback
from torchassay.backends import native
from torchassay.scores import ROW_SIGNALS

SIGNALS = tuple(name for name in ROW_SIGNALS if name != "target_margin")  # what probabilities have too
CLASSES = [1, 2, 17, 100, 257, 1000]

# weight, smoothing, temperature, softcap, z_loss, probabilities
module = sys.modules["torchassay.backends"]  # the name torchassay.backends is the function

ALONE = {
    "temperature": (False, 0.0, 0.7, None, 0.0, False),
    "a temperature a row": (False, 0.0, "rows", None, 0.0, False),
    "weight": (True, 0.0, 1.0, None, 0.0, False),
    "smoothing": (False, 0.1, 1.0, None, 0.0, False),
    "only smoothing": (False, 1.0, 1.0, None, 0.0, False),
    "probabilities": (False, 0.0, 1.0, None, 0.0, True),
    "softcap": (False, 0.0, 1.0, 20.0, 0.0, False),
    "z_loss": (False, 0.0, 1.0, None, 1e-3, False),
    "weight and smoothing": (True, 0.1, 1.0, None, 0.0, False),
    "all for labels": (True, 0.2, "rows", 20.0, 1e-3, False),
    "all for probabilities": (True, 0.2, "rows", 20.0, 1e-3, True),
}
PRODUCT = list(itertools.product([False, True], [0.0, 0.1], [1.0, "rows"], [None, 20.0], [0.0, 1e-3], [False, True]))


class Case:
    """Rows [N, C], their target and options, on a device."""

    def __init__(self, kind, classes: int, dtype: torch.dtype, device: str = "cpu", rows: int = 12):
        weighted, smoothing, temperature, softcap, z_loss, probabilities = kind
        generator = torch.Generator().manual_seed(classes)
        most = 80 if temperature == 1.0 else 40  # over the least temperature, 1/2, again 80
        gap = torch.linspace(-40, most, rows, dtype=torch.float64)
        x = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 2
        y = torch.randint(classes, (rows,), generator=generator)
        if not softcap:  # the target's logit from far below the others to far above them
            x = x.scatter_add(1, y[:, None], gap[:, None])
        self.x = x.to(dtype).to(device)
        if probabilities:
            near = torch.softmax(x + torch.randn(x.shape, generator=generator) * 0.1, 1)
            target = torch.where(torch.arange(rows)[:, None] % 2 == 0, near, torch.softmax(x.flip(1) / 9, 1)).float()
        else:
            target = y.clone()
            target[rows // 3] = -100
        self.target = target.to(device)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        weight = torch.rand(classes, generator=generator, dtype=wide) + 0.1 if weighted else None
        if weighted and classes > 2:
            weight[1] = 0
        by_row = torch.rand(rows, generator=generator, dtype=wide) + 0.5
        self.softcap, self.smoothing = softcap, smoothing
        temperature = by_row if temperature == "rows" else temperature
        self.exact = option_oracle.Case(weight, smoothing, temperature, softcap, z_loss)
        self.options = {
            "weight": None if weight is None else weight.to(device),
            "label_smoothing": smoothing,
            "temperature": by_row.to(device) if isinstance(temperature, torch.Tensor) else temperature,
            "softcap": softcap,
            "z_loss": z_loss,
        }

    def loss(self, x, place, **more):
        return ta.cross_entropy(x, self.target, dim=-1, backend=place.backend, **self.options, **more)

    def check(self, place, found: ta.Scores):
        """Against the truth: the contract, with the wider ones of a softcap and of the norm under smoothing."""
        exact = option_oracle.truth(self.x, self.target, self.exact).signals
        double = self.x.dtype == torch.float64
        unit = 1e-8 if double else 1.0
        tolerance = 1e-13 if double else place.tolerance
        if self.softcap:
            tolerance += self.softcap * (2**-52 if double else 2**-23)
        classes = self.x.shape[1]
        for name in found.signals:
            if name == "prediction":
                assert torch.equal(found.prediction.cpu(), exact["prediction"])
                continue
            value = getattr(found, name).cpu().double()
            error = oracle.relative_errors(name, getattr(found, name), exact[name], self.x)
            if name == "grad_norm" and (self.smoothing or self.target.is_floating_point()):
                allowed = unit * (1e-6 + 4e-4 / max(1, classes - 1) ** 0.5 * exact["least_confidence"])
                close = (value - exact[name]).abs() <= allowed * self.most()
                error = torch.where(close, 0, error)
            if name == "margin" and self.softcap:  # a difference of capped logits: as good as they are
                error = (value - exact[name]).abs() / exact["confidence"]
            assert error.max() <= tolerance, f"{name}: {error.max():.2e} of {exact[name][error.argmax()]:.9g}"

    def most(self) -> torch.Tensor:
        """The size that the gradient's absolute error is relative to: that of its parts."""
        weight = 1.0 if self.exact.weight is None else float(self.exact.weight.max())
        return torch.as_tensor(weight / torch.as_tensor(self.exact.temperature)).clamp(min=1.0)


@pytest.mark.parametrize("kind", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_each_option(dtype, classes, kind, place):
    if dtype not in place.dtypes:
        pytest.skip(f"{place}: no {dtype}")
    if place.slow and (classes not in (17, 257) or dtype == torch.float16):
        pytest.skip("the interpreter is slow: two sizes, two dtypes")
    case = Case(kind, classes, dtype, place.device, rows=6 if place.slow else 12)
    _, found = case.loss(case.x, place, signals=SIGNALS, reduction="none")
    case.check(place, found)


@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize("kind", PRODUCT, ids=str)
def test_every_combination(kind, classes, fast_place):
    case = Case(kind, classes, torch.float32, fast_place.device)
    _, found = case.loss(case.x, fast_place, signals=SIGNALS, reduction="none")
    case.check(fast_place, found)


@pytest.mark.parametrize("kind", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("classes", [1, 2, 17, 300, 1000])
def test_gradients(classes, kind, place):
    if place.slow and classes != 17:
        pytest.skip("the interpreter is slow: one size")
    for dtype in place.dtypes[:1] if place.slow else place.dtypes:
        case = Case(kind, classes, dtype, place.device)
        x = case.x.clone().requires_grad_()
        up = torch.randn(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        loss = case.loss(x, place, reduction="none")
        (found,) = torch.autograd.grad(loss, x, up.to(x.device, loss.dtype))
        exact = option_oracle.truth(case.x, case.target, case.exact).gradient(up.to(loss.dtype), None)
        if dtype == torch.float64:
            torch.testing.assert_close(found.cpu(), exact, rtol=1e-12, atol=1e-13)
        else:
            scale = (case.most() * (1 + case.exact.z_loss)).max()
            floor = exact.norm(dim=1, keepdim=True) + 0.05 * float(scale) * up.abs()[:, None]
            eps = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
            allowed = (place.tolerance + (case.softcap or 0) * 2**-23) * floor + eps * exact.abs() + 1e-37
            if dtype == torch.float16:
                allowed = allowed + 2**-24
            error = (found.cpu().double() - exact).abs() / allowed
            assert error.max() <= 1, f"{error.max():.2f} of what is allowed"


@pytest.mark.parametrize("kind", PRODUCT[::3], ids=str)
def test_second_derivatives(kind, double_place):
    case = Case(kind, 5, torch.float64, double_place.device, rows=3)
    if not case.target.is_floating_point():
        case.target[1] = 2
    case.x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(double_place.device)

    def loss(x):
        return case.loss(x, double_place, reduction="none")

    x = case.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_probabilities_have_a_gradient(smoothing, double_place):
    x = torch.randn(4, 6, dtype=torch.float64, device=double_place.device, requires_grad=True)
    t = torch.softmax(torch.randn(4, 6, dtype=torch.float64, device=double_place.device), 1).requires_grad_()
    weight = torch.rand(6, dtype=torch.float64, device=double_place.device)
    options = {"label_smoothing": smoothing}
    ours = ta.cross_entropy(x, t, weight, backend=double_place.backend, **options)
    theirs = F.cross_entropy(x, t, weight, **options)
    for found, exact in zip(torch.autograd.grad(ours, (x, t)), torch.autograd.grad(theirs, (x, t)), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)
    ours = ta.cross_entropy(x.detach(), t, weight, backend=double_place.backend, **options)
    theirs = F.cross_entropy(x.detach(), t, weight, **options)
    torch.testing.assert_close(torch.autograd.grad(ours, t), torch.autograd.grad(theirs, t), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [*ALONE.values()], ids=ALONE)
def test_a_row_without_a_number_harms_no_other(kind, place):
    """NaN, +inf and only -inf: NaN in this row alone; an ignored one is 0 in what needs the target."""
    case = Case(kind, 17, torch.float32, place.device, rows=8)
    x = case.x.clone()
    x[1, 3], x[3, 16], x[5] = torch.nan, torch.inf, -torch.inf
    labelled = not case.target.is_floating_point()
    if labelled:
        case.target[6] = -100
        x[6, 0] = torch.nan
    x.requires_grad_()
    loss, found = case.loss(x, place, signals=("loss", "entropy", "grad_norm"), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    poisoned = [1, 3, 5]
    for value in found.as_dict().values():
        assert value[poisoned].isnan().all()
    assert grad[poisoned].isnan().all(1).all()
    rest = [i for i in range(8) if i not in (1, 3, 5, 6)]
    clean = Case(kind, 17, torch.float32, place.device, rows=8)
    if labelled:
        clean.target[6] = -100
    _, expected = clean.loss(clean.x, place, signals=("loss", "entropy", "grad_norm"), reduction="none")
    for name, value in found.as_dict().items():
        assert torch.equal(value[rest], getattr(expected, name)[rest]), name
    if labelled:
        assert found.loss[6] == 0
        assert found.grad_norm[6] == 0
        assert found.entropy[6].isnan()
        assert (grad[6] == 0).all()


@pytest.mark.parametrize("kind", [ALONE["smoothing"], ALONE["temperature"], ALONE["all for labels"]], ids=str)
def test_a_label_out_of_range(kind, place):
    case = Case(kind, 17, torch.float32, place.device, rows=6)
    case.target[4] = 17
    if place.device == "cpu":
        with pytest.raises(ValueError, match="0 <= class < 17 or ignore_index=-100, got class 17 at row 4"):
            case.loss(case.x, place)
        return
    x = case.x.clone().requires_grad_()
    loss, found = case.loss(x, place, signals=("entropy", "grad_norm"), reduction="none")
    assert loss[4].isnan()
    assert found.grad_norm[4].isnan()
    assert found.entropy.isfinite().all()
    assert torch.autograd.grad(loss.sum(), x)[0][4].isnan().all()


@pytest.mark.parametrize("masked", ["weight", "smoothing", "probabilities"])
def test_classes_at_minus_infinity(masked, place):
    """Their part of a target is infinitely bad, if it has one."""
    x = torch.tensor([[0.5, 1.0, -torch.inf, 0.0], [3.0, -torch.inf, 1.0, 2.0]], device=place.device)
    options = {"weight": torch.tensor([1.0, 2.0, 0.0, 1.0], device=place.device)} if masked == "weight" else {}
    target = torch.tensor([0, 3], device=place.device)
    if masked == "smoothing":
        options["label_smoothing"] = 0.1
    if masked == "probabilities":
        target = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.5, 0.25, 0.25, 0.0]], device=place.device)
    found = ta.cross_entropy(x, target, reduction="none", backend=place.backend, **options)
    exact = F.cross_entropy(
        x.double().cpu(), target.cpu(), reduction="none", **{k: v for k, v in options.items() if k != "weight"}
    )
    if masked == "weight":
        exact = exact * torch.tensor([1.0, 1.0])
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("classes", [9, 1100])
def test_classes_masked_with_the_lowest_number(classes, fast_place):
    """Over a temperature below 1 their distance is infinite: as classes at -inf, also where one class is left."""
    for dtype in (torch.float32, torch.float64) if fast_place.double else (torch.float32,):
        x = torch.full((2, classes), torch.finfo(dtype).min, dtype=dtype, device=fast_place.device)
        x[0, 3], x[1, 3], x[1, classes - 2] = 5.0, 5.0, 4.0
        target, gone = torch.tensor([3, 3], device=fast_place.device), torch.where(x < -1e30, -torch.inf, x)
        options = {"signals": SIGNALS, "temperature": 0.5, "backend": fast_place.backend}
        found, exact = (ta.score(masked, target, **options) for masked in (x, gone))
        for name, value in exact.as_dict().items():
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-6, atol=0, msg=name)


def test_ties_after_capping_go_to_the_larger_logit(place):
    """tanh rounds 60 / 1 and 70 / 1 alike; the prediction is that of the logits."""
    x = torch.tensor([[60.0, 70.0, 65.0], [70.0, 70.0, 60.0]], device=place.device)
    found = ta.score(x, signals=("prediction", "entropy", "margin"), softcap=1.0, backend=place.backend)
    assert found.prediction.tolist() == [1, 0]
    torch.testing.assert_close(found.entropy.cpu(), torch.log(torch.tensor([3.0, 3.0])), rtol=1e-6, atol=0)
    assert (found.margin.abs() < 1e-6).all()


@pytest.mark.parametrize("temperature", [0.3, 2.5, "rows"])
def test_temperature_of_log_prob_and_entropy(temperature, place):
    case = Case((False, 0.0, temperature, None, 0.0, False), 40, torch.float32, place.device)
    target = case.target.clamp(min=0)
    truth = option_oracle.truth(case.x, target, case.exact)
    T = case.options["temperature"]
    x = case.x.clone().requires_grad_()
    log_prob, entropy = ta.log_prob_entropy(x, target, temperature=T, backend=place.backend)
    for found, name in ((-log_prob, "loss"), (entropy, "entropy")):
        assert oracle.relative_errors(name, found, truth.signals[name]).max() <= place.tolerance
    assert torch.equal(ta.log_prob(x, target, temperature=T, backend=place.backend), log_prob)
    assert torch.equal(ta.entropy(x, temperature=T, backend=place.backend), entropy)
    up = torch.linspace(-1, 2, len(x), device=place.device)
    (grad,) = torch.autograd.grad([log_prob, entropy], x, [up, up.flip(0)])
    torch.testing.assert_close(grad.cpu().double(), truth.gradient(-up, up.flip(0)), rtol=1e-5, atol=4e-6)

    several = torch.stack([target, (target + 1) % 40, target], -1)
    (one, *_), both = ta.log_prob(x, several, temperature=T, backend=place.backend).unbind(-1), None
    torch.testing.assert_close(one, log_prob, rtol=1e-6, atol=0)
    both = ta.log_prob(x, several, temperature=T, backend=place.backend)
    (grad,) = torch.autograd.grad(both, x, torch.ones_like(both))
    wide = case.x.double().cpu().requires_grad_()
    by_row = T.double().cpu()[:, None] if isinstance(T, torch.Tensor) else T
    picked = torch.log_softmax(wide / by_row, -1).gather(-1, several.cpu())
    (expected,) = torch.autograd.grad(picked.sum(), wide)
    torch.testing.assert_close(grad.cpu().double(), expected, rtol=1e-5, atol=4e-6)


@pytest.mark.skipif(native is None, reason="the C++ extension is not built")
def test_nothing_falls_back(monkeypatch):
    """Whatever F.cross_entropy takes runs on a fast backend."""
    monkeypatch.delenv("TORCHASSAY_BACKEND", raising=False)
    monkeypatch.setattr(module, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", BackendFallback)
        for kind in ALONE.values():
            case = Case(kind, 9, torch.float32)
            assert ta.explain(case.x, case.target, weight=case.options["weight"]).startswith("native")
            ta.cross_entropy(case.x.requires_grad_(), case.target, dim=-1, **case.options).backward()


def test_a_row_has_the_same_bits_in_any_batch(fast_place):
    for kind in ALONE.values():
        case = Case(kind, 300, torch.float32, fast_place.device)
        _, whole = case.loss(case.x, fast_place, signals=SIGNALS, reduction="none")
        part = slice(3, 10)
        options = dict(case.options)
        if isinstance(options["temperature"], torch.Tensor):
            options["temperature"] = options["temperature"][part]
        _, found = ta.cross_entropy(
            case.x[part], case.target[part], signals=SIGNALS, reduction="none", backend=fast_place.backend, **options
        )
        for name, value in found.as_dict().items():
            assert torch.equal(value, getattr(whole, name)[part]), name


def test_options_of_the_modules(fast_place):
    case = Case(ALONE["all for labels"], 12, torch.float32, fast_place.device)
    expected = case.loss(case.x, fast_place)
    module = ta.CrossEntropyLoss(**case.options, backend=fast_place.backend)
    assert torch.equal(module(case.x, case.target), expected)
    scorer = ta.Scorer("entropy", temperature=2.0, softcap=5.0, backend=fast_place.backend)
    expected = ta.score(case.x, signals="entropy", temperature=2.0, softcap=5.0, backend=fast_place.backend).entropy
    assert torch.equal(scorer(case.x), expected)


def test_the_margin_of_a_target_of_weight_0(place):
    """Weights scale the loss and the norm of its gradient; the margin is that of the probabilities."""
    x, y = torch.tensor([[0.5, 2.0, -1.0], [3.0, 0.0, 1.0]]).to(place.device), torch.tensor([2, 0]).to(place.device)
    weight = torch.tensor([0.0, 1.0, 0.0]).to(place.device)
    found = ta.score(x, y, weight=weight, signals=("loss", "target_margin"), backend=place.backend)
    exact = oracle.signals(x, y)["target_margin"]
    torch.testing.assert_close(found.target_margin.cpu().double(), exact, rtol=2e-6, atol=0)
    assert found.loss.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("classes", [6, 40, 3000])
def test_gradients_beside_masks_that_a_temperature_makes_infinite(classes, fast_place):
    """Classes at the lowest number, which over a temperature below 1 overflows, are as if they were at -inf."""
    lowest = torch.finfo(torch.float32).min
    x = torch.full((3, classes), lowest)
    x[0, 2], x[1, 2], x[1, 4], x[2, 0], x[2, 5] = 1.0, 3.0, 2.5, 0.0, -3e38
    y = torch.tensor([2, 2, 0], device=fast_place.device)
    found = []
    for masked in (x, x.masked_fill(x < -1e38, -torch.inf)):
        leaf = masked.to(fast_place.device).requires_grad_()
        log_prob, entropy = ta.log_prob_entropy(leaf, y, temperature=0.5, backend=fast_place.backend)
        found.append(torch.autograd.grad([log_prob.sum(), entropy.sum()], leaf)[0])
    assert torch.equal(*found) and not found[0].isnan().any()
