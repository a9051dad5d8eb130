"""First and second derivatives against finite differences in float64, and what backward must leave alone."""

import pytest
import torch
import torchassay as ta
from torch.autograd import gradcheck, gradgradcheck
from torchassay.scores import ROW_SIGNALS


@pytest.fixture
def logits(double_place):
    """Seven rows: plain ones, a tie at the top, a masked class, a confident row, an unlikely target."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(50), dtype=torch.float64)
    x[2, 1] = x[2, 3] = 2.0
    x[4, 0] = 6.0
    x[5, 2] = -6.0
    return x.to(double_place.device).requires_grad_()


@pytest.fixture
def target(double_place):
    return torch.tensor([0, 4, 1, -100, 0, 2, 3], device=double_place.device)


def both(function, *inputs):
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy(reduction, logits, target, double_place):
    both(lambda x: ta.cross_entropy(x, target, reduction=reduction, backend=double_place.backend), logits)


def test_cross_entropy_with_signals(logits, target, double_place):
    options = {"signals": ("entropy", "margin"), "backend": double_place.backend}
    both(lambda x: ta.cross_entropy(x, target, **options)[0], logits)


def test_cross_entropy_with_the_class_dimension_in_the_middle(logits, target, double_place):
    x = logits.detach()[:6].view(2, 3, 5).movedim(-1, 1).requires_grad_()
    both(lambda x: ta.cross_entropy(x, target[:6].view(2, 3), backend=double_place.backend), x)


@pytest.mark.parametrize(
    "options", [{"weight": True}, {"label_smoothing": 0.2}, {"weight": True, "label_smoothing": 0.2}]
)
def test_cross_entropy_with_options(options, logits, target, double_place):
    if double_place.backend != "reference":
        pytest.skip("class weights and label smoothing are in the reference only")
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5], dtype=torch.float64, device=logits.device)
    options = options | ({"weight": weight} if "weight" in options else {})
    both(lambda x: ta.cross_entropy(x, target, **options, backend="reference"), logits)


def test_cross_entropy_with_class_probabilities(logits, double_place):
    if double_place.backend != "reference":
        pytest.skip("class probabilities are in the reference only")
    p = torch.rand(7, 5, generator=torch.Generator().manual_seed(51), dtype=torch.float64).to(logits.device)
    both(lambda x: ta.cross_entropy(x, p / p.sum(1, keepdim=True), backend="reference"), logits)


def test_entropy(logits, double_place):
    both(lambda x: ta.entropy(x, backend=double_place.backend), logits)


def test_log_prob(logits, target, double_place):
    both(lambda x: ta.log_prob(x, target, backend=double_place.backend), logits)


def test_log_prob_of_several_classes(logits, target, double_place):
    """Among them the same class twice, an ignored one, and the top beside its rival."""
    several = torch.stack([target, target, target.roll(1), (target + 1).clamp(0, 4)], 1)
    both(lambda x: ta.log_prob(x, several, backend=double_place.backend), logits)


@pytest.mark.parametrize("which", [0, 1, slice(None)], ids=["log_prob alone", "entropy alone", "both"])
def test_log_prob_entropy(which, logits, target, double_place):
    both(lambda x: ta.log_prob_entropy(x, target, backend=double_place.backend)[which], logits)


def test_a_gradient_penalty_mixes_both_upstreams(logits, target, double_place):
    """The derivative of a squared gradient norm: second order through the loss and the entropy at once."""

    def penalty(x):
        logp, entropy = ta.log_prob_entropy(x, target, backend=double_place.backend)
        return torch.autograd.grad((0.3 * entropy - logp * entropy).sum(), x, create_graph=True)[0].square().sum()

    assert gradcheck(penalty, (logits,))


def test_no_gradient_asked_none_computed(place):
    x = torch.zeros(2, 3, device=place.device)
    y = torch.zeros(2, dtype=torch.long, device=place.device)
    assert not ta.cross_entropy(x, y, backend=place.backend).requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not ta.cross_entropy(x, y, backend=place.backend).requires_grad
    loss, scores = ta.cross_entropy(x, y, signals=("loss", "entropy", "margin"), backend=place.backend)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in scores.as_dict().values())
    assert not any(
        v.requires_grad for v in ta.score(x, y, signals=ROW_SIGNALS, backend=place.backend).as_dict().values()
    )


def test_case_12_input_is_bitwise_unchanged(place):
    """After forward, backward, retained and double backward, and two losses on one tensor."""
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(52)).to(place.device)
    y = torch.arange(6, device=place.device)
    before_x, before_y = x.clone(), y.clone()
    x.requires_grad_()
    ta.score(x, y, signals=ROW_SIGNALS, backend=place.backend)
    first = ta.cross_entropy(x, y, backend=place.backend)
    second = ta.log_prob_entropy(x, y, backend=place.backend)[1].sum()
    first.backward(retain_graph=True)
    once = x.grad.clone()
    first.backward(retain_graph=True)
    assert torch.equal(x.grad, 2 * once)
    (grad,) = torch.autograd.grad(first + second, x, create_graph=True)
    grad.square().sum().backward()
    assert torch.equal(x.detach(), before_x) and torch.equal(y, before_y)


def test_case_13_mutating_what_was_returned_does_not_corrupt_the_backward(place):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(53)).to(place.device)
    y = torch.arange(6, device=place.device)
    grads = []
    for spoil in (False, True):
        logits = x.clone().requires_grad_()
        loss, scores = ta.cross_entropy(logits, y, reduction="none", signals=ROW_SIGNALS, backend=place.backend)
        total = loss.sum()
        if spoil:
            for value in scores.as_dict().values():
                value.fill_(77)
            with torch.no_grad():
                loss.fill_(77)
        total.backward()
        grads.append(logits.grad)
        logp, entropy = ta.log_prob_entropy(logits, y, backend=place.backend)
        total = (logp + entropy).sum()
        if spoil:
            with torch.no_grad():
                logp.zero_()
                entropy.zero_()
        logits.grad = None
        total.backward()
        grads.append(logits.grad)
    assert torch.equal(grads[0], grads[2]) and torch.equal(grads[1], grads[3])


def test_changing_the_logits_between_forward_and_backward_is_noticed(place):
    x = torch.zeros(2, 3, device=place.device, requires_grad=True)
    h = x * 1
    loss = ta.cross_entropy(h, torch.tensor([0, 1], device=place.device), backend=place.backend)
    h.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
