"""What each option of a loss costs: its time over that of the plain kernel, the class dimension in the middle over the
classes last, and a training step with options against F.cross_entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from torchassay import speed

TOPIC = "Options"
SHAPES = [(8192, 1000), (512, 50257)]
BARS = {
    "temperature": 1.02,
    "a temperature a row": 1.02,
    "smoothing": 1.15,
    "weight": 1.02,
    "weight and smoothing": 1.7,
    "softcap": 2.2,
    "probabilities": 2.3,
}
APART = [(8, 21, 256, 256), (64, 1000, 7, 7)]
BAR_APART = 1.5
THREE = ("loss", "entropy", "grad_norm")


def note(record, what: str, shape: str, ms: float, against: str, other: float, bar: float) -> None:
    row = {"what": what, "logits": shape, "µs": ms * 1e3, "against": against, "µs ": other * 1e3}
    record(TOPIC, row | {"ratio": ms / other, "bar": f"<= {bar:g}", "met": "yes" if ms / other <= bar else "**no**"})


@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=[f"{n}x{c}" for n, c in SHAPES])
def test_over_the_plain_kernel(rows, classes, race, record):
    logits, target = speed.make(rows, classes, torch.float32)
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(classes, generator=generator) + 0.5
    near = torch.softmax(logits / 4, 1)
    calls = {
        "temperature": (target, {"temperature": 0.7}),
        "a temperature a row": (target, {"temperature": torch.rand(rows, generator=generator) + 0.5}),
        "smoothing": (target, {"label_smoothing": 0.1}),
        "weight": (target, {"weight": weight}),
        "weight and smoothing": (target, {"weight": weight, "label_smoothing": 0.1}),
        "softcap": (target, {"softcap": 30.0}),
        "probabilities": (near, {}),
    }
    some = slice(0, 32)
    for name, (labels, options) in calls.items():
        found = ta.score(logits, labels, signals=THREE, **options)
        if name == "a temperature a row":
            options = {"temperature": options["temperature"][some].double()}
        exact = ta.reference.score(logits[some].double(), labels[some], signals=THREE, **options)
        for signal in ("loss", "entropy"):
            torch.testing.assert_close(getattr(found, signal)[some].double(), getattr(exact, signal), rtol=1e-5, atol=0)
    ms = race(
        {"plain": lambda: ta.score(logits, target, signals=THREE)}
        | {
            name: lambda labels=labels, options=options: ta.score(logits, labels, signals=THREE, **options)
            for name, (labels, options) in calls.items()
        },
        rounds=21,
    )
    for name, bar in BARS.items():
        note(record, name, f"{rows} x {classes}", ms[name], "no option", ms["plain"], bar)


@pytest.mark.parametrize("shape", APART, ids=str)
def test_classes_in_the_middle(shape, race, record):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    last = x.movedim(1, -1).contiguous()
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    found, expected = ta.score(x, y, signals=THREE, dim=1), ta.score(last, y, signals=THREE)
    for name in THREE:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=2e-6, atol=0)
    ms = race(
        {
            "dim=1": lambda: ta.score(x, y, signals=THREE, dim=1),
            "classes last": lambda: ta.score(last, y, signals=THREE),
        }
    )
    note(record, "dim=1", " x ".join(map(str, shape)), ms["dim=1"], "classes last", ms["classes last"], BAR_APART)


@pytest.mark.parametrize(("rows", "classes"), [(8192, 1000)], ids=["8192x1000"])
@pytest.mark.parametrize("options", ["smoothing", "weight and smoothing", "probabilities"])
def test_training_step(options, rows, classes, race, record):
    logits, target = speed.make(rows, classes, torch.float32)
    given = {"label_smoothing": 0.1} if "smoothing" in options else {}
    if "weight" in options:
        given["weight"] = torch.rand(classes, generator=torch.Generator().manual_seed(0)) + 0.5
    if options == "probabilities":
        target = torch.softmax(logits / 4, 1)
    logits.requires_grad_()

    def ours():
        return torch.autograd.grad(ta.cross_entropy(logits, target, signals=THREE, **given)[0], logits)[0]

    def theirs():
        return torch.autograd.grad(F.cross_entropy(logits, target, **given), logits)[0]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-9)
    ms = race({"ours": ours, "theirs": theirs})
    what = f"training step, {options}, three signals"
    note(record, what, f"{rows} x {classes}", ms["ours"], "F.cross_entropy", ms["theirs"], 0.85)
