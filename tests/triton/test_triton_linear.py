"""The linear head whose logits stay on the chip, in Triton: against logits that are known exactly, and float64."""

import linear_heads
import oracle
import pytest
import rows
import torch
import torchassay as ta
from linear_heads import Head, given, gradients, head, upstream_of
from option_oracle import Case
from test_linear_cross_entropy import distance, materialised
from torch import Tensor
from torchassay.reference.states import NUMBERS
from torchassay.scores import ROW_SIGNALS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILES = {  # dtype and options that take each
    "64 x 64": (torch.float32, {}),
    "32 x 32": (torch.float32, {"label_smoothing": 0.1}),
    "128 x 256, by halves": (torch.bfloat16, {}),
    "128 x 64": (torch.bfloat16, {"softcap": 30.0}),
    "64 x 64 of halves": (torch.float16, {"label_smoothing": 0.1}),
}


def scored(h: Head, **how) -> dict[str, Tensor]:
    h = h.to(DEVICE)
    how = {"linear_bias": h.bias, "signals": ROW_SIGNALS, "backend": "triton", **how}
    return {name: value.cpu() for name, value in ta.linear_score(h.input, h.weight, h.target, **how).as_dict().items()}


def of_logits(x: Tensor, y: Tensor, dtype: torch.dtype) -> Head:
    """A head whose logits are x [N, C], not rounded: row n of the hidden states picks column n of the weight."""
    return Head(torch.eye(len(x), dtype=dtype), x.t().to(dtype).contiguous(), None, y)


def some(x: Tensor, y: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
    at = torch.linspace(0, len(x) - 1, min(count, len(x))).round().long()
    return x[at], y[at]


def check(found: dict[str, Tensor], exact: dict[str, Tensor], what: str, tolerance: float = 2e-6):
    for name, value in found.items():
        if name == "prediction":
            assert torch.equal(value, exact[name]), what
        else:
            size = 1.0 if name in ("margin", "target_margin") else 0.0
            error = (value.double() - exact[name]).abs()
            assert (error <= tolerance * (exact[name].abs() + size) + 1e-30).all(), f"{what}, {name}: {error.max():.1e}"


@pytest.mark.parametrize("family", ["gaps", "offsets", "random", "peaked", "blocks", "ramps", "ties"])
@pytest.mark.parametrize("classes", [3, 300, 2300])  # of one tile; of two; of three segments
def test_signals_of_exact_logits(family, classes):
    x, y = some(*rows.FAMILIES[family](classes))
    h = of_logits(x, y, torch.float32)
    check(scored(h), oracle.signals(h.weight.t(), y), family)


@pytest.mark.parametrize("tile", TILES)
def test_every_tile(tile):
    dtype, options = TILES[tile]
    for classes in (1100, 65):
        x, y = some(*rows.random(classes))
        h = of_logits(x, y, dtype)
        check(scored(h, **options), linear_heads.truth(h, Case(**options)).signals, f"{tile}, {classes}", 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_classes(dtype):
    """By a bias of -inf: some, all of a segment, all but one, and the first."""
    x, y = some(*rows.random(2300))
    for keep in (slice(None, None, 97), slice(1024, 2048), slice(7, 8), slice(1, None)):
        bias = torch.full((2300,), -torch.inf, dtype=dtype)
        bias[keep] = 0
        kept = torch.arange(2300)[keep]
        y = kept[y % len(kept)]
        h = of_logits(x, y, dtype)._replace(bias=bias)
        check(scored(h), oracle.signals(h.weight.t().double() + bias.double(), y), str(keep))


def test_rows_without_a_number():
    """A NaN or +inf in any segment poisons its row and no other; the first NaN is predicted. All classes at -inf."""
    nan, inf = float("nan"), float("inf")
    for bad in (nan, inf):
        bias = torch.zeros(2300)
        bias[[700, 1500]] = bad
        h = head(3, 4, 2300, ignored=False)._replace(bias=bias)
        found = scored(h)
        assert (found.pop("prediction") == 700).all()
        confident = {"lse"} if bad == inf else set()
        assert all(value.isnan().all() for name, value in found.items() if name not in confident), found
    nothing = h._replace(bias=torch.full((2300,), -inf))
    found = scored(nothing)
    assert (found["prediction"] == 0).all() and found["entropy"].isnan().all()
    h.input[1] = nan
    found, without = (
        scored(h._replace(bias=None)),
        scored(h._replace(bias=None, input=h.input[[0, 2]], target=h.target[[0, 2]])),
    )
    for name in without:
        assert torch.equal(found[name][[0, 2]], without[name]), name
    assert found["loss"][1].isnan()


@pytest.mark.parametrize("name", linear_heads.OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_options_and_gradients(dtype, name):
    """Of loss and all three operands; half precision rounds the chunks' logits and gradients in the backward."""
    h = head(9, 17, 1300, dtype)
    leaves, options = h.to(DEVICE).leaves(), given(name, h.to(DEVICE))
    exact = linear_heads.truth(h, Case(**{key: on_cpu(value) for key, value in options.items()}))
    up = upstream_of(9)
    how = {"linear_bias": leaves.bias, "reduction": "none", "backend": "triton", "max_workspace_bytes": h.least()}
    loss = ta.linear_cross_entropy(leaves.input, leaves.weight, leaves.target, **how, **options)
    near = 2e-5 if dtype == torch.float32 else 2.0**-8  # the loss has the operands' dtype
    torch.testing.assert_close(loss.detach().cpu().double(), exact.signals["loss"], rtol=near, atol=2e-5)
    expected = linear_heads.pulled_back(up[:, None] * exact.grad_loss, h)
    near *= 1 if dtype == torch.float32 else 2.5
    for ours, truth in zip(gradients(loss, leaves, up.to(loss)), expected, strict=True):
        assert (ours.double() - truth).norm() <= near * truth.norm()


def on_cpu(value):
    return value.cpu().double() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nearer_to_float64_than_materialised_logits(dtype):
    """Which are rounded to half precision: these are not, but where the backward makes them anew."""
    h, exact, errors = materialised((33, 64, 1100), dtype)
    h = h.to(DEVICE).leaves()
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        how = {"linear_bias": h.bias, "backend": "triton"}
        log_prob, entropy = ta.linear_log_prob_entropy(h.input, h.weight, h.target, **how)
    assert linear_heads.products(profile) == []  # in memory
    up = [upstream_of(33, torch.float32, seed).to(DEVICE) for seed in (5, 6)]
    found = [-log_prob.detach().cpu(), entropy.detach().cpu(), *gradients((-log_prob, entropy), h, up)]
    for ours, truth, theirs, what in zip(found, exact, errors, ("loss", "entropy", "dH", "dW", "db"), strict=True):
        share = distance(ours, truth) / theirs
        assert share < (0.01 if what in ("loss", "entropy") else 1.0), f"{what}: {share:.3f} of the materialised error"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_bits_are_its_own(dtype):
    """Whatever rows stand beside it, and wherever: more than a block of them."""
    h = head(150, 33, 1030, dtype)
    if DEVICE == "cpu":  # where the product is NumPy's, whose order of sums depends on the place: exact in any order
        h = h._replace(input=(4 * h.input).round() / 4, weight=(16 * h.weight).round() / 16)
    whole = scored(h)
    for at in (slice(0, 1), slice(140, 147), slice(149, None, None)):
        part = scored(h._replace(input=h.input[at], target=h.target[at]))
        for name, value in part.items():
            assert torch.equal(value, whole[name][at]), name


def test_layouts(only_own_addresses):
    """Strides, offsets and alignment change no bit where features lie side by side; ragged ends read nothing else."""
    h = head(5, 24, 1030)
    expected = scored(h)
    for what, same in linear_heads.strided(h):
        for name, value in scored(same).items():
            if what in ("features apart", "column-major", "transposed weight"):  # these go by chunks
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=what)
            else:
                assert torch.equal(value, expected[name]), f"{what}: {name}"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"label_smoothing": 0.1}], ids=str)
def test_with_the_errors_of_the_hardware(options, hardware_exp2):
    x, y = some(*rows.random(1100))
    h = of_logits(x, y, torch.float32)
    exact = linear_heads.truth(h, Case(**options)).signals
    found = scored(h, signals=("loss", "entropy", "lse"), **options)
    check(found, exact, str(options), 3e-6)


def test_no_rows_and_a_slice_of_the_classes():
    """Labels elsewhere and their flag; a slice's states are those of its own classes."""
    from torchassay import ops
    from torchassay.options import Options

    h = head(6, 5, 40, ignored=False).to(DEVICE)
    how = 100, 200, -100, 4096, "test", "triton"
    target = h.target + 100
    target[::2] = 5
    numbers, k = ops.linear_states(h.input, h.weight, h.bias, target, *Options().flat(), *how)
    x = linear_heads.logits(h)
    assert torch.equal((k < 0).cpu(), torch.arange(6) % 2 == 1)
    assert torch.equal(torch.where(k < 0, ~k, k).cpu() - 100, x.argmax(1))
    torch.testing.assert_close(numbers[0].cpu().double(), x.amax(1), rtol=1e-5, atol=1e-5)
    here = target >= 100
    x_y = x[here.cpu()].gather(1, h.target[here].cpu()[:, None])[:, 0]
    torch.testing.assert_close(numbers[NUMBERS.index("x_y")][here].cpu().double(), x_y, rtol=1e-5, atol=1e-5)
    empty = scored(head(0, 5, 40))
    assert all(len(value) == 0 for value in empty.values())
