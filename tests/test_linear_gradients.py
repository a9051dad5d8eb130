"""Gradients of linear heads: which are computed, second derivatives, what backward must leave alone, autocast."""

import functools

import linear_heads
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from linear_heads import OPTIONS, Head, given, gradients, head, loss_of, upstream_of
from option_oracle import Case
from torch.autograd import gradcheck, gradgradcheck
from torchassay.scores import ROW_SIGNALS

SIGNALS = (*ROW_SIGNALS, "weight_grad_norm")


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1)], ids=str)
def test_frozen_operands(wanted, fast_place):
    """What wants no gradient gets none, and costs no product; the others are as ever."""
    h = head(9, 5, 2100, place=fast_place)
    leaves = h.leaves()
    expected = gradients(loss_of(leaves, fast_place, max_workspace_bytes=h.least()), leaves)
    some = h.leaves()
    for at, operand in enumerate(some.operands):
        operand.requires_grad_(at in wanted)
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        loss_of(some, fast_place, max_workspace_bytes=h.least()).backward()
    for at, operand in enumerate(some.operands):
        assert operand.grad is None if at not in wanted else torch.equal(operand.grad.cpu(), expected[at])
    # Of three chunks: the logits in the forward, where Triton has them on the chip, and again in the backward.
    forward = 0 if fast_place.backend == "triton" else 1
    assert len(linear_heads.products(profile)) == 3 * (forward + 1 + (0 in wanted) + (1 in wanted))
    with torch.no_grad():
        assert not loss_of(leaves, fast_place).requires_grad
    frozen = loss_of(h, fast_place, reduction="none")
    assert not frozen.requires_grad and frozen.grad_fn is None


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_one_gradient_of_log_prob_and_entropy_at_a_time(double_place, softcap):
    """Each output alone and both: against those of the logits, in float64."""
    h = head(11, 7, 1300, torch.float64, place=double_place)
    T = torch.linspace(0.5, 2, 11, dtype=torch.float64)
    exact = linear_heads.truth(h, Case(temperature=T, softcap=softcap))
    up = [upstream_of(11, seed=seed).to(h.input.device) for seed in (5, 6)]
    for of_loss, of_entropy in ((1, 0), (0, 1), (1, 1)):
        leaves = h.leaves()
        how = {"linear_bias": leaves.bias, "temperature": T.to(h.input.device), "max_workspace_bytes": h.least()}
        log_prob, entropy = ta.linear_log_prob_entropy(
            leaves.input, leaves.weight, leaves.target, softcap=softcap, backend=double_place.backend, **how
        )
        torch.testing.assert_close(-log_prob.detach().cpu(), exact.signals["loss"], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(entropy.detach().cpu(), exact.signals["entropy"], rtol=1e-11, atol=1e-13)
        outputs = [log_prob] * of_loss + [entropy] * of_entropy
        found = gradients(outputs, leaves, [up[0]] * of_loss + [up[1]] * of_entropy)
        logits = -of_loss * up[0].cpu()[:, None] * exact.grad_loss
        logits = logits + of_entropy * up[1].cpu()[:, None] * exact.grad_entropy
        for ours, truth in zip(found, linear_heads.pulled_back(logits, h), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


def test_the_entropy_of_an_ignored_row_has_a_gradient(double_place):
    h = head(5, 3, 4, torch.float64, place=double_place).leaves()
    log_prob, entropy = ta.linear_log_prob_entropy(h.input, h.weight, h.target, backend=double_place.backend)
    assert log_prob[4] == 0 and entropy[4] > 0
    (of_log_prob,) = torch.autograd.grad(log_prob.sum(), h.input, retain_graph=True)
    (of_entropy,) = torch.autograd.grad(entropy.sum(), h.input)
    assert not of_log_prob[4].any() and of_entropy[4].abs().sum() > 1e-3


def small(place, ignored=True) -> Head:
    h = head(5, 3, 4, torch.float64, ignored=ignored, place=place)
    return h.leaves()


def both(function, h: Head):
    assert gradcheck(function, h.operands, fast_mode=True)
    assert gradgradcheck(function, h.operands, fast_mode=True)


@pytest.mark.parametrize("name", ["plain", *OPTIONS])
def test_first_and_second_derivatives(name, double_place):
    """By hidden states, weight and bias at once, against finite differences."""
    h = small(double_place)
    options = {} if name == "plain" else given(name, h)
    reduction = "none" if name in ("plain", "all") else "mean"

    def loss(input, weight, bias):
        return loss_of(Head(input, weight, bias, h.target), double_place, reduction=reduction, **options)

    both(loss, h)


def test_second_derivatives_of_log_prob_and_entropy(double_place):
    h = small(double_place)

    def outputs(input, weight, bias):
        how = {"linear_bias": bias, "temperature": 0.8, "backend": double_place.backend}
        return ta.linear_log_prob_entropy(input, weight, h.target, **how)

    for which in (0, 1, slice(None)):
        both(lambda *operands, which=which: outputs(*operands)[which], h)


def test_a_gradient_penalty(double_place):
    """Through create_graph, of a weighted mean with signals, and rows that are left out: as autograd has it."""
    grads = []
    for function in (functools.partial(ta.linear_cross_entropy, backend=double_place.backend), materialised_loss):
        h = small(double_place)
        how = {"linear_bias": h.bias, "weight": given("weight", h)["weight"]}
        loss = function(h.input, h.weight, h.target, **how)
        first = torch.autograd.grad(loss, h.operands, create_graph=True)
        (loss + sum((grad * grad).sum() for grad in first)).backward()
        grads.append([operand.grad for operand in h.operands])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def materialised_loss(input, linear_weight, target, *, linear_bias, weight):
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, weight)


def test_what_backward_leaves_alone(fast_place):
    """Operands stay as they are, whatever is done; a graph that is kept can be walked again."""
    h = head(9, 5, 2100, place=fast_place).leaves()
    before = [operand.detach().clone() for operand in (*h.operands, h.target)]
    first, _ = loss_of(h, fast_place, signals=SIGNALS)
    log_prob, entropy = ta.linear_log_prob_entropy(h.input, h.weight, h.target, backend=fast_place.backend)
    first.backward(retain_graph=True)
    once = [operand.grad.clone() for operand in h.operands]
    first.backward(retain_graph=True)
    assert all(torch.equal(operand.grad, 2 * grad) for operand, grad in zip(h.operands, once, strict=True))
    found = torch.autograd.grad(first + (log_prob * entropy).sum(), h.operands[:2], create_graph=True)
    sum(grad.square().sum() for grad in found).backward()
    assert all(torch.equal(now, then) for now, then in zip((*h.operands, h.target), before, strict=True))


def test_mutating_what_was_returned_does_not_corrupt_the_backward(fast_place):
    h = head(9, 5, 2100, place=fast_place)
    grads = []
    for spoil in (False, True):
        leaves = h.leaves()
        loss, scores = loss_of(leaves, fast_place, signals=SIGNALS, reduction="none")
        log_prob, entropy = ta.linear_log_prob_entropy(
            leaves.input, leaves.weight, leaves.target, backend=fast_place.backend
        )
        total = loss.sum() + (2 * log_prob + 3 * entropy).sum()
        if spoil:
            with torch.no_grad():
                for value in (*scores.as_dict().values(), loss, log_prob, entropy):
                    value.fill_(77)
        grads.append(gradients(total, leaves))
    assert all(map(torch.equal, *grads))


def test_changing_an_operand_before_the_backward_is_noticed(fast_place):
    for at in (0, 1):
        h = head(4, 5, 6, place=fast_place).leaves()
        copies = [operand * 1 for operand in h.operands]
        loss = loss_of(Head(*copies, h.target), fast_place)
        copies[at].detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_upstreams_of_any_stride(fast_place):
    """A scalar that is spread out, and every second number of a vector."""
    h = head(12, 5, 2100, place=fast_place)
    wide = upstream_of(24, torch.float32).to(fast_place.device)
    one = torch.ones((), device=fast_place.device).expand(12)
    for up in (one, wide[::2], wide.view(2, 12).t()[:, 0]):
        grads = []
        for g in (up, up.contiguous()):
            leaves = h.leaves()
            log_prob, entropy = ta.linear_log_prob_entropy(
                leaves.input, leaves.weight, leaves.target, backend=fast_place.backend
            )
            both = gradients((log_prob, entropy), leaves._replace(bias=None), (g, g))
            grads.append([*both, *gradients(loss_of(leaves, fast_place, reduction="none"), leaves, g)])
        assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_autocast(reduction, fast_place):
    """As F.linear and F.cross_entropy: bfloat16 products, a float32 loss, gradients in the operands' dtypes."""
    h = head(33, 12, 1100, place=fast_place)
    for half in ((), (0,), (1, 2)):
        results = []
        for materialise in (True, False):
            leaves = h.leaves()
            some = [t.detach().bfloat16().requires_grad_() if at in half else t for at, t in enumerate(leaves.operands)]
            leaves = Head(*some, h.target)
            with torch.autocast(fast_place.device, torch.bfloat16):
                if materialise:
                    loss = F.cross_entropy(F.linear(*leaves[:3]), leaves.target, reduction=reduction)
                else:
                    loss, scores = loss_of(leaves, fast_place, reduction=reduction, signals="loss")
                    assert scores.loss.dtype == torch.float32
            results.append((loss.detach(), gradients(loss.sum(), leaves)))
        (expected, theirs), (found, ours) = results
        assert found.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


def test_confident_rows_keep_their_digits(fast_place):
    """Losses down to e^-80 and the gradients by their hidden states, to the digits that the logits have."""
    h = head(40, 12, 1500, scale=0.05, bias=False, ignored=False, place=fast_place)
    target, gap = torch.arange(40, device=fast_place.device) % 12, torch.linspace(2, 90, 40, device=fast_place.device)
    h.weight[:12] = torch.eye(12, device=fast_place.device)
    h = h._replace(input=0.01 * h.input + gap[:, None] * h.weight[target], target=target)
    exact = linear_heads.truth(h, Case())
    errors = 4 * linear_heads.logit_errors(h) + 1e-6
    (expected,) = linear_heads.pulled_back(exact.grad_loss, h)[:1]
    leaves = h.leaves()
    loss = loss_of(leaves, fast_place, reduction="none", max_workspace_bytes=h.least())
    found, _ = gradients(loss.sum(), leaves)
    assert exact.signals["loss"].min() < 1e-30 and (loss > 0).all()
    assert ((loss.detach().cpu() - exact.signals["loss"]).abs() <= errors * exact.signals["loss"]).all()
    assert ((found - expected).norm(dim=1) <= 2 * errors * expected.norm(dim=1)).all()


def test_masked_classes_have_no_gradient(fast_place):
    """A bias of -inf: the vocabulary's padding."""
    h = head(10, 6, 1500, place=fast_place)
    h.target[h.target > 0] %= 1400
    h.bias[1400:] = -torch.inf
    fewer = h._replace(weight=h.weight[:1400], bias=h.bias[:1400])
    results = []
    for operands in (h, fewer):
        leaves = operands.leaves()
        log_prob, entropy = ta.linear_log_prob_entropy(
            leaves.input, leaves.weight, leaves.target, linear_bias=leaves.bias, backend=fast_place.backend
        )
        results.append(gradients((2 * log_prob + entropy).sum(), leaves))
    for masked, whole in zip(*results, strict=True):
        torch.testing.assert_close(masked if masked.shape == whole.shape else masked[:1400], whole)
        assert masked.shape == whole.shape or not masked[1400:].any()


def test_inference_mode_and_no_grad(fast_place):
    h = head(9, 5, 1100, place=fast_place).leaves()
    expected = loss_of(h, fast_place, signals=SIGNALS)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            inside = Head(*(operand * 1 for operand in h.operands), h.target)
            loss, scores = loss_of(inside, fast_place, signals=SIGNALS)
        assert torch.equal(loss, expected[0]) and not loss.requires_grad
        assert all(torch.equal(getattr(scores, name), getattr(expected[1], name)) for name in SIGNALS)
