"""Names of methods and their options; models by name and the user's own."""

from __future__ import annotations

import comparing
import numpy as np
import pytest
import torch
from torch import nn
from torchassay import samplers
from torchassay.compare import methods, models
from torchassay.compare.data import Batches
from torchassay.compare.methods import Method, Setup, Subset, parse


def setup(budget="backprops", epochs=10, modalities=1):
    train = Batches(comparing.data(modalities))
    return Setup(train, 16, epochs, budget, 3, lambda: torch.zeros(len(train)))


def test_specs():
    assert parse("sgd, sb:beta=2,warmup=1,sbe") == [
        Method("sgd", {}),
        Method("sb", {"beta": 2, "warmup_epochs": 1}),
        Method("sbe", {}),
    ]
    assert parse(["vr:pool=2,signal=loss,gate=false", "rho"]) == [
        Method("vr", {"pool": 2, "signal": "loss", "gate": False}),
        Method("rho", {}),
    ]
    assert [str(method) for method in parse("sb:beta=.5,sb")] == ["sb:beta=0.5", "sb"]
    assert parse("sb:beta=1")[0].title == "SB, beta=1" and parse("bss-l")[0].title == "BSS-L"


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("sgd,svm", f"methods must be among {', '.join(methods.KINDS)}, got 'svm'"),
        ("", f"methods must be among {', '.join(methods.KINDS)}, got ''"),
        ("beta=1", f"methods must be among {', '.join(methods.KINDS)}, got 'beta=1'"),
        ("low:gamma=2", "options of low must be among lam, got 'gamma'"),
        ("low:lam", "options of low must be lam=VALUE, got 'lam'"),
        ("low:", "options of low must be among lam, got ''"),
        ("sgd:lr=1", "options of sgd must be left out: it has none, got 'lr'"),
        ("trim:p=0.5,p=0.6", "options of trim must be given once, got 'p' twice"),
        ("sb,sgd,sb", "methods must be given once, got 'sb' twice"),
    ],
)
def test_specs_that_are_none(specs, message):
    with pytest.raises(ValueError) as error:
        parse(specs)
    assert str(error.value) == f"compare: {message}"


def test_an_abbreviation_must_be_clear():
    with pytest.raises(ValueError, match=r"^compare: options of sb must be among beta, signal, .* steps, got 'st'$"):
        parse("sb:st=2")


def test_bss_wants_several_modalities():
    methods.check(Method("bss-h", {}), 2)
    with pytest.raises(ValueError, match=r"^compare: bss-l needs data of several modalities \(.*\), got data of 1$"):
        methods.check(Method("bss-l", {}), 1)


@pytest.mark.parametrize("name", methods.KINDS)
def test_every_name_makes_its_method(name):
    way = Method(name, {}).made(setup(modalities=methods.KINDS[name].modalities))
    assert type(way.method) is methods.KINDS[name].make and way.method.seed == 3


def test_what_names_stand_for():
    made = {name: Method(name, {}).made(setup()).method for name in methods.KINDS if not name.startswith("bss")}
    assert [made[name].signal for name in ("sb", "sbe", "stale-sb", "random")] == ["loss", "entropy", "loss", "random"]
    assert (made["stale-sb"].stale, made["composer-sb"].keep, made["ohem"].p) == (3, 0.5, 0.5)
    hu = made["vr-hu"]
    assert (hu.pool, hu.signal, hu.weighted, hu.tau) == (2, "loss", False, pytest.approx(float("nan"), nan_ok=True))
    assert (made["vr"].pool, made["vr"].weighted, made["vr"].tau) == (3, True, 0.0)
    assert made["ais"].weighted and not made["sgd"].weighted
    assert Method("sbe", {"signal": "margin"}).made(setup()).method.signal == "margin"  # an option beats the name


def test_schedules_fit_the_passes_that_the_budget_allows():
    assert Method("trim", {}).made(setup()).method.epochs == 17  # 10 epochs' worth of samples at 60 %
    assert Method("trim", {}).made(setup("epochs")).method.epochs == 10
    steps = Method("composer-sb", {}).made(setup()).method.steps
    assert steps == 11 * comparing.TRAIN // 16


def test_a_subset_is_the_same_in_every_epoch():
    found = {}
    for seed in (0, 1):
        sampler = Subset(100, batch_size=10, share=0.3, seed=seed)
        first = sampler.plan().copy()
        sampler.set_epoch(1)
        assert sorted(first) == sorted(sampler.plan()) and list(first) != list(sampler.plan())
        assert len(set(first.tolist())) == 30
        found[seed] = set(first.tolist())
    assert found[0] != found[1]
    with pytest.raises(ValueError, match=r"^Subset: share must be in \(0, 1\], got 0$"):
        Subset(100, batch_size=10, share=0)


class Tiny(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(int(np.prod(shape)), classes)

    def forward(self, x):
        return self.layer(x.flatten(1))


def four_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


def three_arguments(shape, classes, width):
    return None


TEXT = "a text"


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet", Tiny, four_classes, f"{__name__}:Tiny"])
def test_models(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Tiny=Tiny))
    data = comparing.data()
    name, make = models.maker(model, data)
    first, second = make(), make()
    assert first is not second and name == (model if isinstance(model, str) else model.__name__)
    models.check_output(first, (torch.rand(8, 1, 4, 4),), 4)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_late_fusion_knows_each_modality(name):
    torch.manual_seed(0)
    model = models.maker(name, comparing.data(modalities=2))[1]().eval()
    x, y = torch.rand(8, 1, 4, 4), torch.rand(8, 1, 4, 4)
    models.check_output(model, (x, y), 4)
    heads, fused = model(x, y)
    others, other = model(x, y.flip(0))
    assert torch.equal(heads[0], others[0]) and not torch.equal(heads[1], others[1]) and not torch.equal(fused, other)


def test_models_by_the_data():
    def of(shape):
        y = torch.arange(4) % 2
        x = (torch.zeros(4, *shape),)
        return models.fitting(comparing.Data("x", x, y, x, y))

    assert [of(shape) for shape in ((1, 28, 28), (3, 32, 32), (4000,))] == ["mlp", "resnet", "mlp"]


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("tree", ValueError, "one of mlp, cnn, resnet, package.module:name or path.py:name, got 'tree'"),
        (
            "no.such:Model",
            ValueError,
            "one that can be imported, got 'no.such:Model' (ModuleNotFoundError: No module named 'no')",
        ),
        ("torch.nn:Absent", ValueError, "a name in 'torch.nn', got 'Absent'"),
        ("math:pi", ValueError, "a callable, got 'math:pi' (float)"),
        (nn.Linear(2, 2), TypeError, "a callable that makes a model, since each run begins with its own, got a Linear"),
        (3, TypeError, "one of mlp, cnn, resnet, 'package.module:name' or a callable, got int"),
        (
            three_arguments,
            ValueError,
            "a callable that takes (shape, classes) or nothing, got three_arguments(shape, classes, width)",
        ),
    ],
)
def test_models_that_are_none(model, kind, message):
    with pytest.raises(kind) as error:
        models.maker(model, comparing.data())
    assert str(error.value) == f"compare: model must be {message}"


@pytest.mark.parametrize(
    ("model", "modalities", "message"),
    [
        (nn.Flatten(), 1, "give logits of shape (8, 4) for 8 samples, got float32 of shape (8, 16)"),
        (
            nn.Linear(3, 4),
            1,
            "take inputs of shape (8, 1, 4, 4), got: mat1 and mat2 shapes cannot be multiplied (32x4 and 3x4)",
        ),
        (comparing.Fused([4]), 2, "give a list of 2 modalities' logits and the fused logits, got tuple"),
        (comparing.Fused([4, 5]), 2, "give logits of shape (8, 4) for 8 samples, got float32 of shape (8, 5)"),
    ],
)
def test_outputs_that_do_not_fit(model, modalities, message):
    with pytest.raises(ValueError) as error:
        models.check_output(model, tuple(torch.rand(8, 1, 4, 4) for _ in range(modalities)), 4)
    assert str(error.value) == f"compare: model must {message}"


def test_a_maker_must_make_a_module():
    with pytest.raises(TypeError, match=r"^compare: model must make an nn\.Module, got tuple$"):
        models.maker(lambda shape, classes: shape, comparing.data())[1]()
    flat = comparing.Data("x", (torch.zeros(4, 2),), torch.arange(4) % 2, (torch.zeros(4, 2),), torch.arange(4) % 2)
    with pytest.raises(
        ValueError, match=r"^compare: model must be mlp for data that are no images, got cnn and samples "
    ):
        models.maker("cnn", flat)


def test_the_samplers_are_all_there():
    """A sampler that `torchassay.samplers` offers can be compared."""
    classes = {getattr(samplers, name) for name in samplers.__all__}
    bases = (samplers.InStep, samplers.CrossEpoch)
    wanted = {kind for kind in classes if isinstance(kind, type) and issubclass(kind, bases) and kind not in bases}
    assert wanted <= {kind.make for kind in methods.KINDS.values()}
