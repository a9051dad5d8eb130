"""FeatureNoise: the numbers it adds, what they depend on, what flows through them, and that nothing stays behind."""

import collections
import contextlib
import copy
import importlib
import itertools
import math

import pytest
import random123
import torch
import torchassay as ta
from torch import nn
from torchassay.checks import InputTypeError, InputValueError

FEATURE_NOISE = 1  # the tag in the counter's top byte
KINDS = ("gaussian", "uniform", "clipped")
DEFAULTS = {"gaussian": 0.1, "uniform": 0.3, "clipped": 0.1}


def numbers(seed: int, row: int, draw: int, columns: int, uniform: bool) -> list[float]:
    """eps ~ N(0, 1) or u ~ U(-1, 1) of a sample, column by column, from the published generator."""
    found = []
    for j in range(columns):
        words = random123.words(seed, FEATURE_NOISE, row, draw, j // 32 * 8 + j % 8)
        q = j // 8 % 4
        even, odd = words[q // 2 * 2], words[q // 2 * 2 + 1]
        if uniform:
            found.append(2 * (words[q] >> 8) / 2**24 - 1)
        else:
            radius = math.sqrt(-2 * math.log(((even >> 9) + 0.5) / 2**23))
            angle = 2 * math.pi * odd / 2**32
            found.append(radius * (math.sin(angle) if q % 2 else math.cos(angle)))
    return found


def noisy(h: torch.Tensor, draw: int, kind: str, std: float, relative: bool, seed: int) -> torch.Tensor:
    """The features [N, ...] with their noise, in float64."""
    h = h.double()
    rows = []
    for i, row in enumerate(h.reshape(len(h), -1)):
        eps = torch.tensor(numbers(seed, i, draw, len(row), kind == "uniform"), dtype=torch.float64)
        if kind == "uniform":
            rows.append(row * (1 + std * eps))
            continue
        eps = eps.clamp(-2, 2) if kind == "clipped" else eps
        rows.append(row + std * eps * (row.std(correction=0) if relative else 1))
    return torch.stack(rows).view(h.shape)


class Passed(nn.Module):
    """A layer that gives what it was told to, however it is called."""

    def __init__(self, output=None):
        super().__init__()
        self.output = output

    def forward(self, x):
        return x if self.output is None else self.output


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)), nn.Linear(16, 3)
    )


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def features(shape, dtype=torch.float32, scale=3.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(7)) * scale + 1).to(dtype)


# ---- the numbers


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_every_kind(kind, relative, place, monkeypatch):
    """Two forwards of a batch; the layer is the second of two modules, and has both their draws in a row."""
    if place.backend == "triton":
        kernels = importlib.import_module("torchassay.triton_kernels.philox")
        if not hasattr(kernels, "normals"):
            pytest.skip("torchassay.triton_kernels.philox has no normals")
    monkeypatch.setenv("TORCHASSAY_BACKEND", place.backend)
    model, seed = nn.Sequential(Passed()), 2**63 + 11
    h = features((2, 3, 4, 5))
    with ta.FeatureNoise(model, "0", 0.25, kind, relative, seed):
        found = [model(h.to(place.device)).cpu() for _ in range(2)]
    for call in range(2):
        expected = noisy(h, 2 * call + 1, kind, 0.25, relative, seed)
        torch.testing.assert_close(found[call].double(), expected, rtol=1e-6, atol=1e-5)


def test_moments_of_the_kinds():
    """20,000 numbers each: mean within 5 standard errors, variance within 3 %, no bound passed."""
    h = torch.full((40, 500), 2.0)
    clipped = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) + 3 * math.erfc(math.sqrt(2))  # of clamp(eps, -2, 2)
    for kind, variance, bound in (("gaussian", 1, 6), ("uniform", 4 / 3, 2), ("clipped", clipped, 2)):
        model = Passed()
        with ta.FeatureNoise(model, "", 0.5, kind, relative=False, seed=1):
            added = (model(h).double() - 2) / 0.5
        assert abs(added.mean()) < 5 * math.sqrt(variance / added.numel())
        assert added.var().item() == pytest.approx(variance, rel=0.03)
        assert added.abs().max() <= bound + 1e-5
        assert (added.abs() > 0.95 * bound).any() or kind == "gaussian"


def test_relative_noise_has_the_size_of_the_samples_features():
    h = features((3, 5000)) * torch.tensor([[1e-3], [1.0], [1e3]])
    model = Passed()
    with ta.FeatureNoise(model, "", seed=2):
        added = model(h) - h
    torch.testing.assert_close(added.std(1), 0.1 * h.std(1), rtol=0.05, atol=0)
    with ta.FeatureNoise(model, ""):  # nothing to be relative to, or to add to
        assert model(torch.zeros(0, 3)).shape == (0, 3) and model(torch.zeros(3, 0)).shape == (3, 0)
        assert torch.equal(model(torch.full((4, 1), 3.0)), torch.full((4, 1), 3.0))
        assert torch.equal(model(features((4,))), features((4,)))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64], ids=["float16", "bfloat16", "float64"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_features_keep_their_dtype(kind, dtype):
    """The default std of each kind; the sum is rounded once; squares of these float16 features would overflow."""
    h, model = features((2, 48), dtype, scale=3000.0), Passed()
    with ta.FeatureNoise(model, "", kind=kind, seed=4):
        found = model(h)
    assert found.dtype == dtype
    expected = noisy(h, 0, kind, DEFAULTS[kind], True, 4)
    exact = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=0.51 * exact, atol=2e-3)
    assert not torch.equal(found, h)


# ---- what they depend on


def runs(model, x, layers, forwards=2, **options) -> list[torch.Tensor]:
    with torch.no_grad(), ta.FeatureNoise(model, layers, **options):
        return [model(x) for _ in range(forwards)]


def test_entered_again_it_repeats_itself():
    model, x = network().eval(), features((5, 6))
    noise = ta.FeatureNoise(model, ("0", "2"), seed=9)
    passes = []
    for _ in range(2):
        with noise as entered:
            assert entered is noise
            passes.append(torch.stack([model(x) for _ in range(3)]))
    assert torch.equal(passes[0], passes[1])
    assert torch.equal(passes[0][:2], torch.stack(runs(copy.deepcopy(model), x, ["0", "2"], seed=9)))
    assert not torch.equal(passes[0], torch.stack(runs(model, x, ["0", "2"], forwards=3, seed=10)))
    negative, same = (runs(model, x, "2", seed=seed) for seed in (-5, 2**64 - 5))
    assert torch.equal(torch.stack(negative), torch.stack(same))


def test_no_two_forwards_layers_samples_or_seeds_share_noise():
    """Correlations of 2,000 numbers: below 5 / sqrt(2000) in every pair."""
    model = nn.Sequential(Passed(), nn.Sequential(Passed()), Passed())
    given = collections.defaultdict(list)
    for name, layer in model.named_modules():
        layer.register_forward_hook(lambda module, args, output, name=name: given[name].append(args[0]))
    zeros = torch.zeros(2, 2000)
    noises = []
    for seed in (0, 1):
        given.clear()
        with ta.FeatureNoise(model, ["0", "1.0", "2"], 1.0, relative=False, seed=seed):
            outputs = [model(zeros), model(zeros)]
        for call in range(2):
            values = [given["0"][call], given["1"][call], given["2"][call], outputs[call]]
            noises += [after - before for before, after in itertools.pairwise(values)]
    correlations = torch.corrcoef(torch.cat(noises).double())
    assert correlations.shape == (24, 24)  # 2 seeds x 2 forwards x 3 layers x 2 samples
    assert correlations.fill_diagonal_(0).abs().max() < 5 / math.sqrt(2000)


def test_a_layer_called_twice_in_a_forward_gets_two_noises():
    layer = Passed()
    model, x = nn.Sequential(layer, layer), torch.zeros(1, 64)
    with ta.FeatureNoise(model, "0", 1.0, relative=False, seed=5):
        found = model(x)
    first, second = (noisy(x, draw, "gaussian", 1.0, False, 5) for draw in (1, 3))
    torch.testing.assert_close(found.double(), first + second, rtol=1e-6, atol=1e-5)


def test_noise_of_a_layer_does_not_depend_on_which_others_get_some():
    model, x = nn.ModuleDict({"a": Passed(), "b": Passed()}), torch.zeros(2, 50)
    with ta.FeatureNoise(model, ["a", "b"], 1.0, relative=False), torch.no_grad():
        both = model["b"](x)
    with ta.FeatureNoise(model, "b", 1.0, relative=False):
        assert torch.equal(model["b"](x), both)
    with ta.FeatureNoise(model, "a", 1.0, relative=False), ta.FeatureNoise(model, "b", 1.0, relative=False):
        assert torch.equal(model["b"](x), both)
        assert not torch.equal(model["a"](x), both)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_depends_on_its_position_not_on_its_batch(kind):
    """Bit by bit: with other samples behind it or before it, even poisoned ones; and in any memory format."""
    model, h = Passed(), features((6, 4, 3, 5))
    whole = runs(model, h, "", kind=kind)[1]
    assert torch.equal(runs(model, h[:1], "", kind=kind)[1], whole[:1])
    assert torch.equal(runs(model, h[:4], "", kind=kind)[1], whole[:4])
    others = h.clone()
    others[:3] = torch.tensor([0.0, torch.nan, torch.inf]).view(3, 1, 1, 1)
    assert torch.equal(runs(model, others, "", kind=kind)[1][3:], whole[3:])
    moved = runs(model, h.roll(1, 0), "", kind=kind)[1].roll(-1, 0)
    assert not torch.isclose(moved, whole).all(dim=(1, 2, 3)).any()
    last = runs(model, h.contiguous(memory_format=torch.channels_last), "", kind=kind)[1]
    torch.testing.assert_close(last, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_constant_noise(kind):
    model, x = network().eval(), features((5, 6))
    with ta.FeatureNoise(model, "2", 0.5, kind, seed=6):
        model(x).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    h = model[:3](x)
    place = [*model.modules()].index(model[2])
    with torch.no_grad():
        target = noisy(h, place, kind, 0.5, True, 6).float()
        factor, added = (target / h, torch.zeros(())) if kind == "uniform" else (torch.ones(()), target - h)
    model[3](h * factor + added).square().sum().backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_modes_and_grad_stay_as_they_are(training):
    model, x = network().train(training), features((5, 6))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with ta.FeatureNoise(model, ["0", "2"]):
        assert model(x).requires_grad
        with torch.no_grad():
            assert not model(x).requires_grad
        with torch.inference_mode():
            assert model(x).is_inference()
    assert [module.training for module in model.modules()] == modes


def test_a_model_compiled_in_place_is_noisy_too():
    model, x = network().eval(), features((5, 6))
    expected, clean = runs(model, x, "2", forwards=3), model(x)
    model.compile(backend="eager")
    model(x)
    assert torch.equal(torch.stack(runs(model, x, "2", forwards=3)), torch.stack(expected))
    assert torch.equal(model(x), clean)


# ---- what layers return


def test_the_first_of_a_tuple_gets_the_noise():
    pair = collections.namedtuple("pair", ["features", "state"])
    h, state = features((2, 8)), object()
    for given in ((h, state), pair(h, state), (h,)):
        model = Passed(given)
        with ta.FeatureNoise(model, "", seed=8):
            found = model(None)
        assert type(found) is type(given) and len(found) == len(given) and found[1:] == tuple(given[1:])
        torch.testing.assert_close(found[0].double(), noisy(h, 0, "gaussian", 0.1, True, 8), rtol=1e-6, atol=1e-6)
    lstm = nn.LSTM(4, 3, batch_first=True)
    with ta.FeatureNoise(nn.Sequential(lstm), "0"):
        output, (hidden, _) = lstm(features((2, 5, 4)))
    assert not torch.equal(output[:, -1], hidden[0])


OUTPUTS = {
    "a dict": ({"h": features((1,))}, InputTypeError, "return a Tensor or a tuple that begins with one, got dict"),
    "a list": ([features((1,))], InputTypeError, "return a Tensor or a tuple that begins with one, got list"),
    "an empty tuple": ((), InputTypeError, "return a Tensor or a tuple that begins with one, got tuple"),
    "a tuple of others": (
        (None, features((1,))),
        InputTypeError,
        "return a Tensor or a tuple that begins with one, got tuple of NoneType",
    ),
    "integers": (torch.ones(3).long(), InputTypeError, "return float16, bfloat16, float32 or float64, got int64"),
    "a number": (torch.tensor(1.0), InputValueError, "return a batch dimension, got a 0-d tensor"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_layers_that_return_something_else(case):
    output, kind, message = OUTPUTS[case]
    model = nn.Sequential(Passed(), Passed(output))
    with pytest.raises(kind) as error, ta.FeatureNoise(model, ["0", "1"]):
        model(features((2, 3)))
    assert str(error.value) == f"FeatureNoise: layer '1' must {message}"
    assert hooks(model) == 0


# ---- the context


def test_no_hook_stays_behind():
    model, x = network().eval(), features((2, 6))
    clean = model(x)
    model[0].register_forward_hook(lambda module, args, output: None)
    noise = ta.FeatureNoise(model, ["0", "2", "2.0"])
    assert hooks(model) == 1
    with noise:
        assert hooks(model) == 4
    assert hooks(model) == 1
    with pytest.raises(ZeroDivisionError), noise:
        1 / 0  # noqa: B018
    assert hooks(model) == 1
    with contextlib.suppress(RuntimeError), noise:
        model(features((2, 5)))
    assert hooks(model) == 1
    assert torch.equal(model(x), clean)


def test_no_hook_stays_behind_when_entering_fails(monkeypatch):
    model = network()

    def refuse(hook):
        raise RuntimeError("no hook here")

    monkeypatch.setattr(model[2], "register_forward_hook", refuse)
    noise = ta.FeatureNoise(model, ["0", "1", "2"])
    with pytest.raises(RuntimeError, match="no hook here"), noise:
        pass
    assert hooks(model) == 0
    monkeypatch.undo()
    with noise:
        assert hooks(model) == 3
    assert hooks(model) == 0


def test_nested():
    """Both noises are added, and an object is not nested in itself."""
    model, x = Passed(), torch.zeros(2, 40)
    outer, inner = (ta.FeatureNoise(model, "", 1.0, relative=False, seed=seed) for seed in (2, 1))
    with outer:
        with inner:
            both = model(x)
        assert hooks(model) == 1
        with pytest.raises(RuntimeError, match="FeatureNoise: this context is entered already; nest another one"):
            outer.__enter__()
        assert hooks(model) == 1
    assert hooks(model) == 0
    expected = sum(noisy(x, 0, "gaussian", 1.0, False, seed) for seed in (1, 2))
    torch.testing.assert_close(both.double(), expected, rtol=1e-6, atol=1e-5)


def test_with_ensemble_score():
    """The uncertainty grows with the noise, and there is none without."""
    model, x = network().eval(), features((20, 6))
    found = []
    for std in (0.0, 0.1, 1.0):
        logits = torch.stack(runs(model, x, "2", forwards=8, std=std))
        found.append(ta.ensemble_score(logits).mutual_information.mean().item())
    assert found[0] < 1e-6 < found[1] / 2 < found[2] / 8


MODEL = network()
LAYERS = nn.ModuleDict({"layer3": Passed(), "layer4": Passed(), "head": Passed()})
WRONG = {
    "model": ((len, "0"), InputTypeError, "model must be a torch.nn.Module, got builtin_function_or_method"),
    "kind": ((MODEL, "0", 1, "x"), InputValueError, "kind must be one of gaussian, uniform, clipped, got 'x'"),
    "negative std": ((MODEL, "0", -0.1), InputValueError, "std must be at least 0 and finite, got -0.1"),
    "std NaN": ((MODEL, "0", math.nan), InputValueError, "std must be at least 0 and finite, got nan"),
    "seed": ((MODEL, "0", 1, "gaussian", True, 1.0), InputTypeError, "seed must be an int, got float"),
    "a long seed": ((MODEL, "0", 1, "gaussian", True, 2**64), InputValueError, f"seed must have 64 bits, got {2**64}"),
    "no layers": ((MODEL, ()), InputValueError, "layers must hold at least one name, got none"),
    "a number": ((MODEL, 0), InputTypeError, "layers must be a name or a sequence of names, got 0"),
    "close names": (
        (LAYERS, "layr4"),
        InputValueError,
        "layers must be names of model.named_modules(), got 'layr4'; did you mean 'layer4', 'layer3'?",
    ),
    "no close name": ((MODEL, "x"), InputValueError, "layers must be names of model.named_modules(), got 'x'"),
    "twice": ((MODEL, ["0", "2", "0"]), InputValueError, "layers must be different modules, got '0' twice"),
    "compiled": (
        (torch.compile(MODEL, backend="eager"), "_orig_mod.0"),
        InputValueError,
        "layers must be outside of compiled modules, which run without hooks (give the model from before"
        " torch.compile), got '_orig_mod.0'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_messages(case):
    arguments, kind, message = WRONG[case]
    with pytest.raises(kind) as error:
        ta.FeatureNoise(*arguments)
    assert str(error.value) == f"FeatureNoise: {message}"
