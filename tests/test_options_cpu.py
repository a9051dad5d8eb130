"""Options in the native CPU kernels, every build of them, and rows whose classes stand apart, read in place."""

import option_oracle
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from option_contract import batch, cases, check, check_gradient, steps, tolerance, wide
from option_oracle import Case
from torchassay import ops
from torchassay.backends import native
from torchassay.options import Options
from torchassay.scores import BIT, ROW_SIGNALS, STATS

ISAS = native.cpu_isas().split(",") if native else []
pytestmark = pytest.mark.skipif(native is None, reason="the C++ extension is not built")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CLASSES = [1, 2, 5, 17, 100, 256, 257, 1000, 9000]  # in lanes, along memory, in one segment and in two
SIGNALS = tuple(name for name in ROW_SIGNALS if name != "target_margin")  # what probabilities have too


@pytest.fixture
def each_isa():
    before = native.cpu_isa()

    def run():
        for isa in ISAS:
            native.set_cpu_isa(isa)
            yield isa

    yield run
    native.set_cpu_isa(before)


def gradients(x, target, case, upstream, **how):
    """The gradient by the logits of sum upstream loss + entropy / 3, and the scores."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    options = case.given()
    loss, scores = ta.cross_entropy(x, target, reduction="none", signals=SIGNALS, **options, **how)
    loss.backward(upstream.to(loss.dtype))
    return x.grad, scores


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_against_the_oracle(classes, dtype, each_isa, threads):
    threads(1)
    x, y = batch(classes, dtype)
    upstream = steps(len(x))
    for name, case in cases(classes, len(x), dtype).items():
        if dtype in (torch.bfloat16, torch.float16) and name.count(",") == 1:
            continue  # the kernels of half precision differ in how they load
        truth = option_oracle.truth(x, y, case)
        allowed = tolerance(case, dtype)
        for isa in each_isa():
            found = ta.score(x, y, signals=ROW_SIGNALS, **{k: v for k, v in case.given().items() if k != "z_loss"})
            if not case.z_loss:
                check((name, isa), found, truth, case, x, allowed)
            grad, scores = gradients(x, y, case, upstream)
            check((name, isa), scores, truth, case, x, allowed)
            exact = upstream.double()[:, None] * truth.grad_loss
            check_gradient((name, isa), grad, exact, truth.parts * upstream.double().abs(), 2 * allowed)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities_against_the_oracle(classes, dtype, each_isa, threads):
    threads(1)
    x, y = batch(classes, dtype)
    keep = (x > -torch.inf).all(1)
    x, y = x[keep], y[keep].clamp(min=0)
    generator = torch.Generator().manual_seed(classes)
    t = torch.softmax(torch.randn(x.shape, generator=generator, dtype=torch.float64) * 3, 1)
    t[::3] = F.one_hot(y[::3], classes).double()
    t[1::3] = torch.softmax(x[1::3].double(), 1)  # what a student is to reach
    t = t.to(wide(dtype))
    upstream = steps(len(x))
    for name, case in cases(classes, len(x), dtype).items():
        if name not in ("temperature", "softcap", "weight, smoothing", "temperature, smoothing, z_loss", "all"):
            continue
        truth = option_oracle.truth(x, t, case)
        allowed = tolerance(case, dtype)
        for isa in each_isa():
            grad, scores = gradients(x, t.to(dtype) if dtype == torch.float64 else t, case, upstream)
            check((name, isa), scores, truth, case._replace(label_smoothing=0.0), x, allowed)
            exact = upstream.double()[:, None] * truth.grad_loss
            check_gradient((name, isa), grad, exact, truth.parts * upstream.double().abs(), 2 * allowed)


@pytest.mark.parametrize("classes", [1, 5, 100, 300, 9000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_the_entropy_against_the_oracle(classes, dtype, each_isa):
    x, _ = batch(classes, dtype)
    temperature = torch.linspace(0.4, 3.0, len(x), dtype=wide(dtype))
    case = Case(temperature=temperature)
    truth = option_oracle.truth(x, None, case)
    upstream = -steps(len(x))
    for isa in each_isa():
        leaf = x.clone().requires_grad_()
        ta.entropy(leaf, temperature=temperature).backward(upstream.to(wide(dtype)))
        exact = upstream.double()[:, None] * truth.grad_entropy
        check_gradient(isa, leaf.grad, exact, truth.mixed * upstream.double().abs(), 2 * tolerance(case, dtype))


@pytest.mark.parametrize("classes", [5, 300, 4500])
@pytest.mark.parametrize(
    "options",
    [{"softcap": 4.0}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "weight": True}, {"temperature": 2.0}],
    ids=str,
)
def test_loss_and_entropy_together(options, classes):
    """Both upstreams in one sweep of the gradient: the sum of the two alone."""
    options = {**options, "weight": torch.linspace(0.5, 2, classes)} if "weight" in options else options
    x = torch.randn(6, classes, generator=torch.Generator().manual_seed(classes)) * 4
    y = torch.tensor([0, classes - 1, 2, -100, 1, 3])

    def gradient(of_loss, of_entropy, backend):
        asked = BIT["loss"] | BIT["entropy"] | STATS
        values = ops.option_scores(x, y, *Options(**options).flat(), 1, -100, asked, "score", backend)
        up = [torch.linspace(-1, 2, 6) if of_loss else None, torch.linspace(1, -1, 6) if of_entropy else None]
        call = x, y, *Options(**options).flat(), values[-1], *up
        return ops.option_grads(*call, 1, -100, "score", backend)

    both = gradient(True, True, "native")
    torch.testing.assert_close(
        both, gradient(True, False, "native") + gradient(False, True, "native"), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(both, gradient(True, True, "reference"), rtol=1e-4, atol=2e-6)


SOME = ["temperature of each row", "smoothing", "softcap", "weight, smoothing", "all"]


@pytest.mark.parametrize("classes", [10, 127, 300, 9000])
@pytest.mark.parametrize("name", [*SOME, "probabilities"])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads(name, classes, each_isa, threads):
    count = 40
    x = (torch.randn(count, classes, generator=torch.Generator().manual_seed(classes)) * 3).bfloat16()
    y = torch.arange(count) % classes
    case = cases(classes, count, x.dtype)["all" if name == "probabilities" else name]
    if name == "probabilities":
        y = torch.softmax(x.float().flip(0), 1)

    def part(at):
        T = case.temperature
        some = case._replace(temperature=T[at] if isinstance(T, torch.Tensor) else T)
        grad, scores = gradients(x[at], y[at], some, torch.ones(len(x[at])))
        return {**scores.as_dict(), "grad": grad}

    for _ in each_isa():
        threads(1)
        alone = [part(slice(i, i + 1)) for i in (0, 3, 5, 17, count - 1)]
        for number in (1, 2):
            threads(number)
            whole, few = part(slice(0, count)), part(slice(3, 6))
            for row, i in zip(alone, (0, 3, 5, 17, count - 1), strict=True):
                for signal, value in row.items():
                    assert torch.equal(whole[signal][i], value[0]), (signal, i, number)
                    if 3 <= i < 6:
                        assert torch.equal(few[signal][i - 3], value[0]), (signal, i, number)


@pytest.mark.parametrize("classes", [2, 17, 300, 9000])
@pytest.mark.parametrize("name", SOME)
def test_poison_stays_in_its_row(name, classes, each_isa):
    """NaN, +inf, and -inf throughout, also under a softcap."""
    x = torch.randn(40, classes, generator=torch.Generator().manual_seed(1)) * 2
    y = torch.arange(40) % classes
    case = cases(classes, 40, x.dtype)[name]
    bad = x.clone()
    bad[5, classes // 2], bad[6, 0], bad[7] = torch.nan, torch.inf, -torch.inf
    bad[20, classes - 1] = torch.nan
    ignored = y.clone()
    ignored[20] = -100
    poisoned = [5, 6, 7]
    clean = [i for i in range(40) if i not in (5, 6, 7, 20)]
    for _ in each_isa():
        expected_grad, expected = gradients(x, y, case, torch.ones(40))
        grad, found = gradients(bad, ignored, case, torch.ones(40))
        for signal in SIGNALS:
            value = getattr(found, signal)
            assert torch.equal(value[clean], getattr(expected, signal)[clean]), signal
            if signal != "prediction":
                assert value[poisoned].isnan().all(), signal
        assert torch.equal(grad[clean], expected_grad[clean]) and grad[poisoned].isnan().all()
        assert found.loss[20] == 0 and found.grad_norm[20] == 0 and not grad[20].any()
        assert found.entropy[20].isnan()
        assert torch.equal(found.prediction, bad.argmax(1))


def test_classes_at_minus_infinity_and_no_weight():
    """As PyTorch: b = 0 at -inf is 0 for a label and NaN for probabilities, b > 0 there is infinite."""
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    x[:, 7] = -torch.inf
    w = torch.ones(300).index_fill_(0, torch.tensor([7]), 0.0)
    y = torch.tensor([1, 2, 3])
    kept = [j for j in range(300) if j != 7]
    for part in (slice(0, 300), slice(0, 20)):
        columns = [j for j in kept if j < part.stop]
        masked = ta.cross_entropy(x[:, part], y, w[part], label_smoothing=0.1, reduction="none")
        share = 0.1 * len(columns) / part.stop
        uniform = -torch.log_softmax(x[:, columns].double(), 1).mean(1)
        own = F.cross_entropy(x[:, columns].double(), y, reduction="none")
        torch.testing.assert_close(masked.double(), 0.9 * own + share * uniform, rtol=1e-6, atol=0)
        assert ta.cross_entropy(x[:, part], y, label_smoothing=0.1, reduction="none").isposinf().all()
        t = F.one_hot(y, 300).float()[:, part]
        assert ta.cross_entropy(x[:, part], t, reduction="none").isnan().all()
        t[:, 7] = 0.5
        assert ta.cross_entropy(x[:, part], t, reduction="none").isposinf().all()


def test_among_equals_after_capping_the_prediction_is_the_raw_top():
    for classes in (20, 300):
        x = torch.zeros(2, classes)
        x[0, 3], x[0, 11], x[1, 2] = 500.0, 800.0, 1e30
        found = ta.score(x, signals=("prediction", "margin"), softcap=5.0)
        assert found.prediction.tolist() == [11, 2]
        assert found.margin[0] == 0


@pytest.mark.parametrize("options", [{"temperature": 2.0}, {"softcap": 9.0}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("classes", [20, 300])
def test_a_target_out_of_range_is_named(classes, options):
    y = torch.tensor([0, 1, classes, 3, -7])
    with pytest.raises(ValueError) as error:
        ta.score(torch.zeros(5, classes), y, **options)
    expected = f"0 <= class < {classes} or ignore_index=-100, got class {classes} at row 2"
    assert str(error.value).endswith(expected)


# ---- classes that stand apart

APART = {
    "image": (2, 21, 5, 7),
    "odd, two of sixteen": (3, 21, 17),
    "sequence": (2, 300, 33),
    "column-major": (33, 40),
    "many classes": (1, 1200, 16),
    "more than fit": (1, 4100, 20),
    "few neighbours": (4, 21, 3, 5),
}


def apart_views(shape, dtype):
    """The same rows with their classes apart (dimension 1): dense, sliced, offset, strided, permuted."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).mul(4).to(dtype)
    if len(shape) == 2:
        yield "dense", x.t().contiguous().t()
        return
    store = torch.zeros(shape[0] + 1, shape[1] + 2, *shape[2:], dtype=dtype)
    store[1:, 1:-1] = x
    wide = torch.zeros(*shape[:-1], shape[-1] + 3, dtype=dtype)
    wide[..., 2:-1] = x
    yield "dense", x
    yield "sliced", store[1:, 1:-1]
    yield "offset", wide[..., 2:-1]
    yield "outermost", x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "every second", torch.stack([x, x], 1).flatten(1, 2)[:, ::2]


@pytest.mark.parametrize("options", ["plain", "temperature of each row", "smoothing", "weight, smoothing", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", APART.values(), ids=APART)
def test_classes_apart_give_what_classes_last_give(shape, dtype, options, each_isa, threads):
    classes, count = shape[1], 1
    if classes > 256 and (dtype == torch.float64 or options not in ("plain", "all")):
        pytest.skip("long rows take their time: what they do differently is tried once")
    for size in (shape[0], *shape[2:]):
        count *= size
    case = Case() if options == "plain" else cases(classes, count, dtype)[options]
    row_shape = (shape[0], *shape[2:])
    y = torch.arange(count) * 13 % classes
    y[1], y[-1] = -100, 0
    upstream = steps(count)
    t = torch.softmax(torch.randn(count, classes, generator=torch.Generator().manual_seed(3)), 1).to(wide(dtype))
    by_row = case.temperature
    shaped = case._replace(temperature=by_row.view(row_shape)) if isinstance(by_row, torch.Tensor) else case
    for name, x in apart_views(shape, dtype):
        last = x.movedim(1, -1).reshape(-1, classes)
        for target, there in ((y, y.view(row_shape)), (t, t.view(*row_shape, classes).movedim(-1, 1))):
            if target is t and options == "plain":
                continue
            for number, _ in zip((2, 1, 1), each_isa(), strict=False):
                threads(number)
                grad, found = gradients(x, there, shaped, upstream.view(row_shape))
                expected_grad, expected = gradients(last, target, case, upstream)
                for signal in SIGNALS:
                    value, wanted = getattr(found, signal), getattr(expected, signal)
                    assert value.shape == row_shape and value.is_contiguous()
                    if classes <= 256 or signal == "prediction":
                        assert torch.equal(value.view(-1), wanted), (name, signal)
                    else:
                        close = {"rtol": 1e-6, "atol": 2e-6 if signal in ("margin", "grad_norm") else 0}
                        torch.testing.assert_close(value.view(-1), wanted, **close, msg=f"{name} {signal}")
                value = grad.movedim(1, -1).reshape(-1, classes)
                if classes <= 256:
                    assert torch.equal(value, expected_grad), name
                else:
                    eps = 2.0**-7 if dtype == torch.bfloat16 else 2e-6
                    torch.testing.assert_close(value, expected_grad, rtol=eps, atol=1e-7)


@pytest.mark.parametrize("case", [Case(), Case(label_smoothing=0.1), Case(softcap=9.0)], ids=["plain", "smooth", "cap"])
def test_the_gradient_lies_in_memory_as_its_input_does(case):
    y = torch.randint(0, 21, (2, 8, 9), generator=torch.Generator().manual_seed(4))
    x = torch.randn(2, 21, 8, 9)
    for logits in (x, x.contiguous(memory_format=torch.channels_last)):
        grad, _ = gradients(logits, y, case, torch.ones(2, 8, 9))
        assert grad.stride() == logits.stride()


def test_the_fakes_of_classes_apart_know_their_memory():
    x, y = torch.randn(2, 21, 5, 7), torch.zeros(2, 5, 7, dtype=torch.int64)
    up = torch.ones(2, 5, 7)
    stats = ops.row_scores(x, y, 1, -100, STATS, "score", "")[0]
    torch.library.opcheck(ops.row_grads, (x, y, stats, up, None, 1, -100, "score", ""))
    options = Options(label_smoothing=0.1).flat()
    stats = ops.option_scores(x, y, *options, 1, -100, STATS, "score", "")[0]
    torch.library.opcheck(ops.option_grads, (x, y, *options, stats, up, None, 1, -100, "score", ""))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_a_compiled_loss_of_images_agrees():
    def step(x, y):
        return ta.cross_entropy(x.relu(), y, label_smoothing=0.1)

    x, y = torch.randn(2, 21, 8, 8, requires_grad=True), torch.zeros(2, 8, 8, dtype=torch.int64)
    expected = torch.autograd.grad(step(x, y), x)[0]
    found = torch.autograd.grad(torch.compile(step, backend="aot_eager")(x, y), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
