"""ensemble_score against the textbook definitions with 80 digits, in any layout, and on rows that are not numbers."""

import importlib.util
import inspect

import mpmath
import oracle
import pytest
import torch
import torchassay as ta
from torchassay.checks import InputTypeError, InputValueError

OVER_DRAWS = ("noisy_entropy", "predictive_entropy", "mutual_information")
OF_THE_MEAN = tuple(name for name in oracle.FLOAT_SIGNALS if name not in ("entropy", "lse"))
ALL = (*OF_THE_MEAN, *OVER_DRAWS, "entropy", "prediction")
TOLERANCE = 1e-5  # of float32, relative


@pytest.fixture(autouse=True)
def _skip_without_the_kernel(request):
    if "place" in request.fixturenames and request.getfixturevalue("place").backend == "triton":
        found = importlib.util.find_spec("torchassay.triton_kernels.draw_scores")
        if not found:
            pytest.skip("torchassay.triton_kernels.draw_scores is not there")


def exact(members: torch.Tensor, y: int) -> dict[str, mpmath.mpf]:
    """The signals of one row [T, C] by their definitions."""
    with mpmath.workdps(80):
        predictions = []
        for member in members.double().tolist():
            e = [mpmath.exp(value) for value in member]
            predictions.append([value / mpmath.fsum(e) for value in e])
        mean = [mpmath.fsum(p) / len(predictions) for p in zip(*predictions, strict=True)]
        noisy = mpmath.fsum(oracle.of_probabilities(p, y)["entropy"] for p in predictions) / len(predictions)
        found = oracle.of_probabilities(mean, y)
        of_both = {"predictive_entropy": found["entropy"], "mutual_information": found["entropy"] - noisy}
        return found | {"noisy_entropy": noisy} | of_both


def ensemble(dtype: torch.dtype, draws: int = 3, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, N, C] and targets: members that agree, less and less, on a top up to 75 above the rest, or on nothing."""
    generator = torch.Generator().manual_seed(draws)
    rows = []
    for gap in (0.0, 2.0, 9.0, 20.0, 40.0, 75.0):
        for disagreement in (0.0, 0.3, 4.0):
            x = torch.randn(classes, generator=generator, dtype=torch.float64)
            x[len(rows) % classes] += gap
            rows.append(x + disagreement * torch.randn(draws, classes, generator=generator, dtype=torch.float64))
    for top in (12.0, 60.0):  # each member is sure of another class
        rows.append(torch.eye(classes, dtype=torch.float64)[torch.arange(draws) % classes] * top + 100)
    x = torch.stack(rows, 1)
    tops = x.mean(0).argmax(1)
    i = torch.arange(len(rows))
    return x.to(dtype), torch.where(i % 2 == 0, tops, i % classes)


def assert_exact(found: ta.Scores, members: torch.Tensor, y: torch.Tensor, tolerance: float) -> None:
    """Each signal of [T, N, C] within the tolerance, relative to itself or, of a difference, to what it is taken of."""
    for row in range(members.shape[1]):
        truth = exact(members[:, row], int(y[row]))
        scale = {name: abs(value) for name, value in truth.items()}
        scale["mutual_information"] = truth["predictive_entropy"]
        scale["margin"] = truth["confidence"]
        scale["target_margin"] = truth["confidence"]
        for name in found.signals:
            if name == "prediction":
                continue
            value = getattr(found, name)[row].item()
            error = abs(value - truth[name])
            assert error <= tolerance * scale[name], f"{name} of row {row}: {value}, exact {float(truth[name])}"


@pytest.mark.parametrize("draws", [1, 2, 3, 7])
def test_float32(draws, place):
    x, y = ensemble(torch.float32, draws)
    at = place.some(y)
    x, y = x[:, at], y[at]
    found = ta.ensemble_score(x.to(place.device), y.to(place.device), signals=ALL, backend=place.backend).cpu()
    assert found.signals == ALL
    assert_exact(found, x, y, TOLERANCE)
    assert all(getattr(found, name).dtype == torch.float32 for name in ALL if name != "prediction")
    assert torch.equal(found.entropy, found.predictive_entropy)
    assert (found.mutual_information >= 0).all()


def test_float64(double_place):
    x, y = ensemble(torch.float64)
    found = ta.ensemble_score(x, y, signals=ALL, backend=double_place.backend)
    assert found.loss.dtype == found.noisy_entropy.dtype == torch.float64
    assert_exact(found, x, y, 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_exact_for_the_values_it_holds(dtype, place):
    x, y = ensemble(dtype)
    at = place.some(y, 3)
    x, y = x[:, at], y[at]
    found = ta.ensemble_score(x.to(place.device), y.to(place.device), signals=ALL, backend=place.backend).cpu()
    assert found.loss.dtype == found.predictive_entropy.dtype == torch.float32
    assert_exact(found, x, y, TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=["float16", "float32", "float64"])
def test_a_large_common_number_costs_no_digits(dtype, fast_place):
    """In half precision too: the softmax of nearly the largest float16."""
    if dtype not in fast_place.dtypes:
        pytest.skip("no float64 here")
    x = torch.tensor([[[0.0, 1.0, -30.0]], [[32.0, 0.0, 32.0]]], dtype=torch.float64) * 32 + 60000
    x, y = x.to(fast_place.device, dtype), torch.tensor([0], device=fast_place.device)
    found = ta.ensemble_score(x, y, signals=(*OVER_DRAWS, "loss"), backend=fast_place.backend).cpu()
    assert_exact(found, x.cpu(), y.cpu(), TOLERANCE)


def test_many_draws_of_many_classes(fast_place):
    """Against plain float64: the rows are spread out, so nothing cancels there."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, 9, 1000, generator=generator) * 2
    y = torch.arange(9) * 111
    found = ta.ensemble_score(
        x.to(fast_place.device), y.to(fast_place.device), signals=ALL, backend=fast_place.backend
    ).cpu()
    p = x.double().exp()
    p = p / p.sum(-1, keepdim=True)
    mean = p.mean(0)
    expected = oracle.signals(mean.log(), y)
    for name in OF_THE_MEAN[:4]:
        torch.testing.assert_close(getattr(found, name).double(), expected[name], rtol=TOLERANCE, atol=0)
    for name in OF_THE_MEAN[4:]:
        torch.testing.assert_close(getattr(found, name).double(), expected[name], rtol=0, atol=1e-6)
    assert torch.equal(found.prediction, mean.argmax(-1))
    noisy = -(p * p.log()).sum(-1).mean(0)
    predictive = -(mean * mean.log()).sum(-1)
    torch.testing.assert_close(found.noisy_entropy.double(), noisy, rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(found.predictive_entropy.double(), predictive, rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(found.mutual_information.double(), predictive - noisy, rtol=0, atol=TOLERANCE * 7)


def test_one_draw_is_the_score_of_it(place):
    x, y = ensemble(torch.float32, 1)
    at = place.some(y)
    x, y = x[:, at].to(place.device), y[at].to(place.device)
    found = ta.ensemble_score(x, y, signals=ALL, backend=place.backend)
    names = (*OF_THE_MEAN, "entropy", "prediction")
    expected = ta.score(x[0], y, signals=names, backend=place.backend)
    for name in names:
        atol = TOLERANCE if "margin" in name else 0
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=TOLERANCE, atol=atol)
    torch.testing.assert_close(found.noisy_entropy, expected.entropy, rtol=TOLERANCE, atol=0)
    assert (found.mutual_information <= TOLERANCE * expected.entropy).all()


LAYOUTS = {  # of a base [T, N, C]: the view, draws_dim, dim
    "classes first": (lambda x: x.permute(2, 0, 1), 1, 0),
    "draws last": (lambda x: x.permute(1, 2, 0), -1, -2),
    "draws between": (lambda x: x.transpose(0, 1), 1, 2),
    "a copy with draws last": (lambda x: x.permute(1, 2, 0).contiguous(), 2, 1),
    "a copy with draws last and classes first": (lambda x: x.permute(2, 1, 0).contiguous(), -1, -3),
    "images": (lambda x: x.unflatten(1, (2, -1)).permute(1, 0, 3, 2).contiguous(), 1, 2),
    "every other row": (lambda x: x.repeat_interleave(2, 1)[:, ::2], 0, -1),
    "every other class": (lambda x: x.repeat_interleave(2, 2)[..., ::2], 0, -1),
    "members far apart": (lambda x: x.repeat_interleave(3, 0)[::3], 0, -1),
    "a draw of its own": (lambda x: x.flip(0).flip(0)[:, :, None], 0, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_members_in_any_dimension(layout, place):
    x, y = ensemble(torch.float32, 4, 45)
    some = slice(6, 8 if place.slow else 12)
    x, y = x[:, some].to(place.device), y[some].to(place.device)
    expected = ta.ensemble_score(x, y, signals=ALL, backend=place.backend)
    view, draws_dim, dim = LAYOUTS[layout]
    given = view(x)
    rows = tuple(size for at, size in enumerate(given.shape) if at not in (draws_dim % given.dim(), dim % given.dim()))
    before = given.clone()
    found = ta.ensemble_score(given, y.view(rows), signals=ALL, draws_dim=draws_dim, dim=dim, backend=place.backend)
    assert torch.equal(given, before)
    for name in ALL:
        value = getattr(found, name)
        assert value.shape == rows
        if name in OF_THE_MEAN or place.backend != "reference":
            assert torch.equal(value.reshape(-1), getattr(expected, name)), name
        else:  # it may add a row up in another order in another layout
            torch.testing.assert_close(value.reshape(-1), getattr(expected, name), rtol=2e-6, atol=1e-7, msg=name)


def test_a_single_row_and_no_rows(place):
    x, y = ensemble(torch.float32, 3)
    x, y = x[:, 7].to(place.device), y[7].to(place.device)
    found = ta.ensemble_score(x, y, signals=ALL, backend=place.backend)
    assert found.loss.shape == found.mutual_information.shape == found.prediction.shape == ()
    assert_exact(found[None].cpu(), x[:, None].cpu(), y[None].cpu(), TOLERANCE)
    empty = torch.zeros(3, 0, 5, device=place.device)
    found = ta.ensemble_score(empty, y[None][:0], signals=ALL, backend=place.backend)
    assert all(getattr(found, name).shape == (0,) for name in ALL)


def test_masked_classes_have_no_probability(place):
    """In one draw, in all, and all but one class: as if they were not there."""
    x, y = ensemble(torch.float32, 3)
    x = x[:, :3].clone()
    x[:, 0, 3:] = -torch.inf
    x[1, 1, 2] = -torch.inf
    x[:, 2, :4] = -torch.inf
    y = torch.tensor([0, 2, 4])
    found = ta.ensemble_score(x.to(place.device), y.to(place.device), signals=ALL, backend=place.backend).cpu()
    assert_exact(found[:2], x[:, :2], y[:2], TOLERANCE)
    last = {name: getattr(found, name)[2].item() for name in ALL}
    assert last == dict.fromkeys(ALL, 0) | {"confidence": 1, "margin": 1, "target_margin": 1, "prediction": 4}


def test_a_class_that_no_draw_allows_as_target(place):
    x = torch.tensor([[[0.0, 1.0, -torch.inf]], [[2.0, 0.0, -torch.inf]]], device=place.device)
    found = ta.ensemble_score(x, torch.tensor([2], device=place.device), signals="loss", backend=place.backend)
    assert found.loss.item() == torch.inf


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_poisoned_draw_poisons_its_row_alone(bad, place):
    x, y = ensemble(torch.float32, 3)
    x, y = x[:, :4].to(place.device), y[:4].to(place.device)
    clean = ta.ensemble_score(x, y, signals=ALL, backend=place.backend)
    poisoned = x.clone()
    poisoned[1, 2] = bad if bad == -torch.inf else torch.where(torch.arange(5, device=x.device) == 3, bad, x[1, 2])
    found = ta.ensemble_score(poisoned, y, signals=ALL, backend=place.backend)
    for name in ALL:
        value, others = getattr(found, name), [0, 1, 3]
        assert name == "prediction" or value[2].isnan(), name
        assert torch.equal(value[others], getattr(clean, name)[others]), name


def test_a_row_does_not_depend_on_its_batch(place):
    """Bit by bit: alone, in parts and in another order."""
    x, y = ensemble(torch.float32, 6, 45)
    at = place.some(y, 3)
    x, y = x[:, at].to(place.device), y[at].to(place.device)

    def bits(x, y):
        found = ta.ensemble_score(x, y, signals=ALL, backend=place.backend)
        return torch.stack([getattr(found, name).double() for name in ALL], 1)

    whole, order = bits(x, y), torch.arange(len(y) - 1, -1, -1, device=y.device)
    assert torch.equal(torch.cat([bits(x[:, i : i + 1], y[i : i + 1]) for i in range(len(y))]), whole)
    assert torch.equal(bits(x[:, order], y[order]), whole[order])


def test_ignored_rows_and_what_was_asked_for(place):
    x, y = ensemble(torch.float32, 3)
    x, y = x[:, :4].to(place.device), torch.tensor([1, -7, 3, -7], dtype=torch.int16, device=place.device)
    found = ta.ensemble_score(x, y, signals=ALL, ignore_index=-7, backend=place.backend)
    kept = ta.ensemble_score(x, y.clamp(min=0), signals=ALL, backend=place.backend)
    for name in ALL:
        value, expected = getattr(found, name), getattr(kept, name)
        if name in ("loss", "grad_norm", "target_margin"):
            expected = expected.masked_fill(y < 0, 0)
        assert torch.equal(value, expected), name
    default = ta.ensemble_score(x, backend=place.backend)
    assert default.signals == ("predictive_entropy", "mutual_information")
    single = ta.ensemble_score(x, signals="noisy_entropy", backend=place.backend)
    assert single.signals == ("noisy_entropy",) and torch.equal(single.noisy_entropy, kept.noisy_entropy)


def test_detached(place):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).to(place.device).requires_grad_()
    found = ta.ensemble_score(x, signals=("confidence", "noisy_entropy"), backend=place.backend)
    assert not found.confidence.requires_grad and not found.noisy_entropy.requires_grad


def test_in_compiled_code_nothing_is_left_to_the_interpreter():
    x, y = ensemble(torch.float32, 3)
    compiled = torch.compile(ta.ensemble_score, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, y, signals=ALL), ta.ensemble_score(x, y, signals=ALL)
    assert found.signals == ALL
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ALL)


X, Y = torch.zeros(3, 4, 5), torch.tensor([0, 1, 2, 3])
NAMES = ", ".join(name for name in ta.SIGNALS if name != "lse")
CASES = {
    "no tensor": (([[0.0]],), {}, InputTypeError, "input must be a Tensor, got list"),
    "integers": (
        (X.long(),),
        {},
        InputTypeError,
        "input must be float16, bfloat16, float32 or float64, got int64",
    ),
    "one dimension": (
        (X[0, 0],),
        {},
        InputValueError,
        "input must have a dimension of draws and one of classes, got shape (5,)",
    ),
    "no draws": ((X[:0],), {}, InputValueError, "input must have at least one draw, got shape (0, 4, 5)"),
    "no classes": ((X[..., :0],), {}, InputValueError, "input must have at least one class, got shape (3, 4, 0)"),
    "draws_dim": (
        (X,),
        {"draws_dim": 3},
        InputValueError,
        "draws_dim must be in [-3, 2] for an input of shape (3, 4, 5), got 3",
    ),
    "dim": ((X,), {"dim": -4}, InputValueError, "dim must be in [-3, 2] for an input of shape (3, 4, 5), got -4"),
    "one for both": (
        (X,),
        {"draws_dim": -1, "dim": 2},
        InputValueError,
        "draws_dim must be another dimension than dim, got 2 for both",
    ),
    "lse": ((X,), {"signals": "lse"}, InputValueError, f"signals must be among {NAMES}; got 'lse'"),
    "unknown": ((X,), {"signals": ("lss",)}, InputValueError, f"signals must be among {NAMES}; got 'lss'"),
    "no target": ((X,), {"signals": "loss"}, InputValueError, "signal 'loss' needs a target, got none"),
    "target of all draws": (
        (X, Y.expand(3, 4)),
        {"signals": "loss"},
        InputValueError,
        "target has shape (3, 4) but input (3, 4, 5) without draws_dim 0 and dim 2 is (4,)",
    ),
    "float target": (
        (X, Y.float()),
        {},
        InputTypeError,
        "target must have an integer dtype (class indices), got float32",
    ),
    "out of range": (
        (X, Y + 2),
        {},
        InputValueError,
        "target must hold 0 <= class < 5 or ignore_index=-100, got class 5 at row 3",
    ),
    "ignore_index": ((X, Y), {"ignore_index": 1.0}, InputTypeError, "ignore_index must be an int, got float"),
}


@pytest.mark.parametrize("case", CASES)
def test_messages(case):
    arguments, options, kind, message = CASES[case]
    for module in (ta, ta.reference):
        with pytest.raises(kind) as error:
            module.ensemble_score(*arguments, **options)
        assert str(error.value) == f"ensemble_score: {message}"


def test_the_reference_module_has_its_twin():
    x, y = ensemble(torch.float32, 3)
    found = ta.reference.ensemble_score(x.movedim(0, -1), y, signals=ALL, draws_dim=-1, dim=1)
    expected = ta.ensemble_score(x, y, signals=ALL, backend="reference")
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ALL)
    ours = [*inspect.signature(ta.ensemble_score).parameters.items()]
    assert [*inspect.signature(ta.reference.ensemble_score).parameters.items()] == ours[:-1]
    assert ours[-1][0] == "backend"
