"""torch.compile, opcheck, inference mode: the functions are ordinary torch operators.

Tracing is what is tested, so most cases compile with a backend that generates no code; one uses the default one.
"""

import shutil

import pytest
import torch
import torchassay as ta
from torch._dynamo.testing import CompileCounterWithBackend
from torchassay import ops
from torchassay.scores import BIT, ROW_SIGNALS, STATS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def example(rows, place, classes=11, seed=120):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, classes, generator=generator).to(place.device)
    y = torch.randint(0, classes, (rows,), generator=generator).to(place.device)
    return x, y


def functions(place):
    backend = {"backend": place.backend}
    options = {"signals": ("entropy", "grad_norm", "prediction"), **backend}
    loss_module, scorer = ta.CrossEntropyLoss(**options), ta.Scorer(("loss", "margin"), **backend)
    plain_module, single = ta.CrossEntropyLoss(**backend), ta.Scorer("entropy", **backend)
    several = torch.tensor([0, 3, 3], device=place.device)
    return {
        "score": lambda x, y: ta.score(x, y, signals=ROW_SIGNALS, **backend),
        "score without target": lambda x, y: ta.score(x, **backend),
        "cross_entropy": lambda x, y: ta.cross_entropy(x, y, **backend),
        "cross_entropy none": lambda x, y: ta.cross_entropy(x, y, reduction="none", **backend),
        "cross_entropy with signals": lambda x, y: ta.cross_entropy(x, y, **options),
        "log_prob": lambda x, y: ta.log_prob(x, y, **backend),
        "log_prob several": lambda x, y: ta.log_prob(x, several.expand(x.shape[0], 3), **backend),
        "log_prob_entropy": lambda x, y: ta.log_prob_entropy(x, y, **backend),
        "entropy": lambda x, y: ta.entropy(x, **backend),
        "CrossEntropyLoss": lambda x, y: plain_module(x, y),
        "CrossEntropyLoss with signals": lambda x, y: loss_module(x, y),
        "Scorer": lambda x, y: scorer(x, y),
        "Scorer single": lambda x, y: single(x),
    }


NAMES = [*functions(type("", (), {"backend": "reference", "device": "cpu"}))]


def tensors(result):
    return torch.utils._pytree.tree_leaves(result)


def differentiate(function, x, y):
    """Leaves of the result, and the gradient of a weighted sum of the leaves that have one."""
    x = x.clone().requires_grad_()
    result = function(x, y)
    leaves = tensors(result)
    total = sum((i + 1) * leaf.sum() for i, leaf in enumerate(leaves) if leaf.requires_grad)
    if isinstance(total, torch.Tensor):
        total.backward()
    return result, leaves, x.grad


@pytest.mark.parametrize("name", NAMES)
def test_compiled_as_eager_for_any_number_of_rows_from_one_compilation(name, place):
    function = functions(place)[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for rows in (5, 8, 64 if not place.slow else 9, 3):
        x, y = example(rows, place)
        result, leaves, grad = differentiate(compiled, x, y)
        expected, expected_leaves, expected_grad = differentiate(function, x, y)
        assert type(result) is type(expected)
        assert all(map(torch.equal, leaves, expected_leaves)) and len(leaves) == len(expected_leaves)
        assert (grad is None) == (expected_grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-9)
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 4  # the first call may trace more than once, no other does


@pytest.mark.parametrize("name", ["score", "cross_entropy with signals", "log_prob_entropy"])
def test_static_shapes_become_dynamic_after_one_recompilation(name, fast_place):
    """torch.compile's default: the second number of rows recompiles with a symbol, the third does not."""
    function = functions(fast_place)[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    graphs = []
    for rows in (5, 8, 21, 34):
        x, y = example(rows, fast_place)
        assert all(map(torch.equal, tensors(compiled(x, y)), tensors(function(x, y))))
        graphs.append(counter.frame_count)
    assert graphs[1:] == graphs[1:2] * 3


def test_the_number_of_classes_is_dynamic_too(fast_place):
    function = functions(fast_place)["cross_entropy with signals"]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for classes in (7, 11, 300):
        x, y = example(6, fast_place, classes)
        result, expected = differentiate(compiled, x, y), differentiate(function, x, y)
        assert all(map(torch.equal, result[1], expected[1]))
        torch.testing.assert_close(result[2], expected[2], rtol=1e-6, atol=1e-9)
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 3


def test_scores_come_out_of_and_go_into_compiled_code(fast_place):
    @torch.compile(backend="aot_eager", fullgraph=True)
    def produce(x, y):
        return {"scores": ta.score(x, y, signals=("loss", "entropy"), backend=fast_place.backend)}

    @torch.compile(backend="aot_eager", fullgraph=True)
    def consume(scores, mask):
        return scores.per_sample(mask).loss + scores.entropy.mean()

    x, y = example(12, fast_place)
    scores = produce(x.view(3, 4, 11), y.view(3, 4))["scores"]
    assert isinstance(scores, ta.Scores) and scores.signals == ("loss", "entropy")
    with pytest.raises(AttributeError, match="was not asked for"):
        scores.margin  # noqa: B018
    mask = torch.ones(3, 4, dtype=torch.bool, device=x.device)
    torch.testing.assert_close(consume(scores, mask), scores.loss.mean(1) + scores.entropy.mean())


OPTIONS = {
    "weight": {"weight": torch.linspace(0.5, 2, 11)},
    "smoothing": {"label_smoothing": 0.1},
    "probabilities": {},
    "temperature and z_loss": {"temperature": 0.7, "z_loss": 1e-3},
    "softcap": {"softcap": 5.0},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_compile(kind, fast_place):
    options = {name: n.to(fast_place.device) if name == "weight" else n for name, n in OPTIONS[kind].items()}

    def function(x, y):
        target = x.detach().softmax(1).flip(1) if kind == "probabilities" else y
        return ta.cross_entropy(x, target, signals=("loss", "grad_norm"), backend=fast_place.backend, **options)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (5, 8):
        x, y = example(rows, fast_place)
        result, expected = differentiate(compiled, x, y), differentiate(function, x, y)
        for ours, eager in zip(result[1], expected[1], strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-6, atol=0)
        torch.testing.assert_close(result[2], expected[2], rtol=1e-5, atol=1e-7)


def test_a_temperature_a_row_and_noise_compile(fast_place):
    def function(x, y, T, seed):
        log_prob, entropy = ta.log_prob_entropy(x, y, temperature=T, backend=fast_place.backend)
        noisy = ta.score(x, noise_std=T, noise_draws=2, seed=seed, signals="noisy_entropy", backend=fast_place.backend)
        return log_prob, entropy, noisy.noisy_entropy

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (5, 8):
        x, y = example(rows, fast_place)
        T, seed = torch.linspace(0.5, 1.5, rows, device=x.device), torch.tensor(rows, device=x.device)
        for ours, eager in zip(compiled(x, y, T, seed), function(x, y, T, seed), strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-6, atol=0)


def test_a_training_step_under_autocast_compiles(fast_place):
    layer = torch.nn.Linear(5, 11).to(fast_place.device)

    def step(x, y):
        with torch.autocast(fast_place.device, torch.bfloat16):
            return ta.cross_entropy(layer(x), y, signals=("entropy",), backend=fast_place.backend)

    x, y = torch.randn(6, 5, device=fast_place.device), torch.arange(6, device=fast_place.device)
    loss, scores = torch.compile(step, backend="aot_eager", fullgraph=True)(x, y)
    loss.backward()
    grad, layer.weight.grad = layer.weight.grad, None
    expected, expected_scores = step(x, y)
    expected.backward()
    assert loss.dtype == expected.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.equal(scores.entropy, expected_scores.entropy)
    torch.testing.assert_close(grad, layer.weight.grad, rtol=1e-2, atol=1e-5)  # bfloat16 matmul


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler for torch.compile")
def test_the_default_compiler(fast_place):
    if fast_place.backend == "reference":
        pytest.skip("one backend is enough for the code generator")
    function = functions(fast_place)["cross_entropy with signals"]
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for rows in (5, 9):
        x, y = example(rows, fast_place)
        result, expected = differentiate(compiled, x, y), differentiate(function, x, y)
        for ours, eager in zip(result[1], expected[1], strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-6, atol=0)
        torch.testing.assert_close(result[2], expected[2], rtol=1e-6, atol=1e-9)


def test_a_compiled_call_still_names_a_class_out_of_range(fast_place):
    if fast_place.device != "cpu":
        pytest.skip("a GPU call can't look; its row is NaN")
    compiled = torch.compile(functions(fast_place)["cross_entropy"], backend="aot_eager", fullgraph=True, dynamic=True)
    x, y = example(6, fast_place)
    y[4] = 11
    with pytest.raises(ValueError) as error:
        compiled(x, y)
    expected = "cross_entropy: target must hold 0 <= class < 11 or ignore_index=-100, got class 11 at row 4"
    assert str(error.value) == expected


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
LAYOUTS = {
    "rows": ((6, 11), 1),
    "one row": ((11,), 0),
    "no rows": ((0, 11), 1),
    "classes in the middle": ((2, 11, 3), 1),
    "three row dimensions": ((2, 3, 2, 11), 3),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # opcheck compiles through every deprecated corner of torch
@pytest.mark.parametrize("signals", [STATS - 1, BIT["entropy"] | BIT["lse"], BIT["loss"] | STATS], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_row_scores(layout, signals, place):
    shape, dim = LAYOUTS[layout]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(121)).to(place.device)
    y = torch.zeros(shape[:dim] + shape[dim + 1 :], dtype=torch.long, device=place.device)
    for target in (y, None):
        if target is None and signals != BIT["entropy"] | BIT["lse"]:
            continue
        arguments = (x, target, dim, -100, signals, "test", place.backend)
        torch.library.opcheck(ops.row_scores, arguments, test_utils=OPCHECKS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("which", ["loss", "entropy", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_row_grads(layout, which, place):
    shape, dim = LAYOUTS[layout]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(122)).to(place.device)
    rows = shape[:dim] + shape[dim + 1 :]
    y = torch.zeros(rows, dtype=torch.long, device=place.device)
    stats = ops.row_scores(x, y, dim, -100, BIT["entropy"] | STATS, "test", place.backend)[-1]
    up = torch.ones((), device=place.device).expand(rows)
    gL, gH = up if which != "entropy" else None, up if which != "loss" else None
    arguments = (x, y if which != "entropy" else None, stats, gL, gH, dim, -100, "test", place.backend)
    torch.library.opcheck(ops.row_grads, arguments, test_utils=OPCHECKS)


def test_inference_mode_and_no_grad(place):
    x, y = example(6, place)
    expected = ta.score(x, y, signals=ROW_SIGNALS, backend=place.backend)
    loss = ta.cross_entropy(x, y, backend=place.backend)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            inside = x * 1  # an inference tensor under inference_mode
            found = ta.score(inside, y, signals=ROW_SIGNALS, backend=place.backend)
            assert torch.equal(ta.cross_entropy(inside, y, backend=place.backend), loss)
            assert ta.log_prob_entropy(inside, y, backend=place.backend)[1].isfinite().all()
            several = ta.log_prob(inside, torch.stack([y, y], 1), backend=place.backend)
            assert several.shape == (6, 2)
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ROW_SIGNALS)


def test_fake_tensors_have_the_shapes_dtypes_and_strides_of_real_ones(place):
    x, y = example(6, place)
    for logits, dim, target in ((x, 1, y), (x.view(2, 3, 11).movedim(-1, 1), 1, y.view(2, 3)), (x.t(), 0, y)):
        real = ops.row_scores(logits, target, dim, -100, 2 * STATS - 1, "test", place.backend)
        with torch._subclasses.FakeTensorMode() as mode:
            fake_logits, fake_target = mode.from_tensor(logits), mode.from_tensor(target)
            fake = ops.row_scores(fake_logits, fake_target, dim, -100, 2 * STATS - 1, "test", place.backend)
        described = [[(t.shape, t.dtype, t.stride(), t.device) for t in outputs] for outputs in (real, fake)]
        assert described[0] == described[1]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at what is between graphs
def test_a_group_leaves_the_graph():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    weight, y = x.new_ones(9, 7).cumsum(0) / 9, torch.tensor([0, 8, -100, 3, 4])

    def run(call):
        leaf = x.clone().requires_grad_()
        loss = call(leaf)
        loss.backward()
        return loss.detach(), leaf.grad

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        for call in (
            lambda x: 3 * ta.cross_entropy(2 * x, y.clamp(max=6), group=group),
            lambda x: 3 * ta.linear_cross_entropy(2 * x, weight, y, group=group),
        ):
            found, exact = run(torch.compile(call, backend="aot_eager")), run(call)
            assert all(map(torch.equal, found, exact))
    finally:
        torch.distributed.destroy_process_group()
