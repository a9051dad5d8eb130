"""CrossEntropyLoss and Scorer are their functions with the options fixed."""

import pytest
import torch
import torchassay as ta

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(100))
Y = torch.tensor([0, 1, -100, 3, 4, 0])


def test_cross_entropy_loss_is_torchs(place):
    x, y = X.to(place.device), Y.to(place.device)
    for options in ({}, {"reduction": "sum"}, {"reduction": "none", "ignore_index": 3}):
        target = y.clamp(0, 4) if "ignore_index" in options else y
        found = ta.CrossEntropyLoss(**options, backend=place.backend)(x, target)
        torch.testing.assert_close(found, torch.nn.CrossEntropyLoss(**options)(x, target), rtol=1e-5, atol=1e-7)


def test_cross_entropy_loss_with_signals(place):
    x, y = X.to(place.device).requires_grad_(), Y.to(place.device)
    module = ta.CrossEntropyLoss(signals=("entropy", "grad_norm"), backend=place.backend)
    loss, scores = module(x, y)
    loss.backward()
    assert scores.signals == ("entropy", "grad_norm") and x.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore::torchassay.BackendFallback")
def test_the_weight_is_a_buffer():
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
    module = ta.CrossEntropyLoss(weight, label_smoothing=0.1)
    assert [name for name, _ in module.named_buffers()] == ["weight"]
    assert module.double().weight.dtype == torch.float64
    expected = torch.nn.CrossEntropyLoss(weight.double(), label_smoothing=0.1)(X.double(), Y)
    torch.testing.assert_close(module(X.double(), Y), expected)
    other = ta.CrossEntropyLoss(torch.ones(5), label_smoothing=0.1)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight, weight)
    assert [*ta.CrossEntropyLoss().state_dict()] == [*torch.nn.CrossEntropyLoss().state_dict()] == []


def test_scorer(place):
    x, y = X.to(place.device), Y.to(place.device)
    scorer = ta.Scorer(("margin", "loss"), backend=place.backend)
    expected = ta.score(x, y, signals=("margin", "loss"), backend=place.backend)
    assert scorer(x, y).signals == ("margin", "loss")
    assert torch.equal(scorer(x, y).loss, expected.loss)
    single = ta.Scorer("entropy", backend=place.backend)(x)
    assert torch.equal(single, ta.entropy(x, backend=place.backend))
    middle = ta.Scorer("entropy", dim=1, backend=place.backend)(x.view(2, 3, 5).movedim(-1, 1))
    torch.testing.assert_close(middle.reshape(-1), single)


def test_reprs_say_the_options():
    expected = (
        "CrossEntropyLoss(ignore_index=-100, reduction='sum', label_smoothing=0.0, dim=None, signals=(), "
        "temperature=1.0, softcap=None, z_loss=0.0, backend=None)"
    )
    assert repr(ta.CrossEntropyLoss(reduction="sum")) == expected
    assert repr(ta.Scorer("entropy", dim=1)) == "Scorer('entropy', dim=1)"
    assert repr(ta.Scorer(("loss",))) == "Scorer(('loss',))"
