"""log_prob, entropy and log_prob_entropy: values, several classes a row, gradients."""

import oracle
import pytest
import rows
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("family", ["gaps", "offsets", "masked", "blocks"])
def test_values_and_digits(family, classes, place):
    x, y, exact = rows.case(family, classes, torch.float32)
    at = place.some(x, 3)
    x, y = x[at].to(place.device), y[at].to(place.device)
    logp, entropy = ta.log_prob_entropy(x, y, backend=place.backend)
    found = ta.Scores({"loss": -logp, "entropy": entropy})
    oracle.check(place, found, {name: value[at] for name, value in exact.items()}, x)
    assert torch.equal(ta.log_prob(x, y, backend=place.backend), logp)
    assert torch.equal(ta.entropy(x, backend=place.backend), entropy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_several_classes_a_row_are_what_one_class_is(dtype, place):
    if dtype not in place.dtypes:
        pytest.skip(f"{place}: no {dtype}")
    x, _, _ = rows.case("gaps", 30, dtype)
    x = x[place.some(x, 4)].to(place.device)
    several = torch.stack([(torch.arange(len(x)) * step) % 30 for step in (1, 7, 11)], 1).to(x.device)
    several[1, 2] = -100
    found = ta.log_prob(x, several, backend=place.backend)
    one = torch.stack([ta.log_prob(x, several[:, i], backend=place.backend) for i in range(3)], 1)
    assert found.dtype == one.dtype
    torch.testing.assert_close(found, one, rtol=1e-14 if dtype == torch.float64 else 1e-6, atol=0)


def test_gradients_of_several_classes_against_the_oracle(place):
    """The sum of what each class alone has, also for a class asked twice and for the confident top."""
    x, _, _ = rows.case("gaps", 30, torch.float32)
    x = x[place.some(x, 4)]
    top = x.argmax(1)
    several = torch.stack([top, (top + 5) % 30, top], 1)
    up = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(61))
    exact = sum(oracle.grads(x, several[:, i], -up[:, i], None) for i in range(3))
    logits = x.to(place.device).requires_grad_()
    ta.log_prob(logits, several.to(place.device), backend=place.backend).backward(up.to(place.device))
    error = (logits.grad.cpu().double() - exact).norm(dim=1) / exact.norm(dim=1)
    # an upstream of one class may nearly cancel another's in a row: then relative to the parts
    assert (error <= 10 * place.tolerance).all(), error.max()


def test_gradients_of_a_confident_class_asked_twice_keep_their_digits(place):
    """Where every class asked is the top, the whole gradient is as small as 1 - p: no larger part hides its error."""
    x, _, _ = rows.case("gaps", 30, torch.float32)
    x = x[place.some(x, 4)]
    top = x.argmax(1)
    several = torch.stack([top, top], 1)
    exact = oracle.grads(x, top, torch.full((len(x),), -3.0), None)
    logits = x.to(place.device).requires_grad_()
    found = ta.log_prob(logits, several.to(place.device), backend=place.backend)
    found.backward(torch.tensor([1.0, 2.0], device=found.device).expand_as(found))
    error = (logits.grad.cpu().double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert (error <= 2 * place.tolerance).all(), error.max()


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_several_classes_with_any_class_dimension(dim, place):
    x = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(62), dtype=torch.float32).to(place.device)
    rows_shape = x.movedim(dim, -1).shape[:-1]
    several = torch.randint(0, x.shape[dim], (*rows_shape, 2), generator=torch.Generator().manual_seed(63)).to(x.device)
    x.requires_grad_()
    found = ta.log_prob(x, several, dim=dim, backend=place.backend)
    expected = x.double().log_softmax(dim).movedim(dim, -1).gather(-1, several)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    up = torch.randn(found.shape, generator=torch.Generator().manual_seed(64)).to(x.device)
    ours = torch.autograd.grad(found, x, up)[0]
    theirs = torch.autograd.grad(expected, x, up.double())[0]
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-6)


def test_ignored_targets_have_log_prob_zero_and_no_gradient_but_an_entropy(place):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(65)).to(place.device).requires_grad_()
    y = torch.tensor([1, -100, 2], device=x.device)
    logp, entropy = ta.log_prob_entropy(x, y, backend=place.backend)
    assert logp[1] == 0 and (entropy > 0).all()
    (grad,) = torch.autograd.grad(logp.sum(), x, retain_graph=True)
    assert (grad[1] == 0).all() and (grad[[0, 2]] != 0).all()
    (grad,) = torch.autograd.grad(entropy.sum(), x)
    assert (grad != 0).all()


def test_ignored_targets_among_several_classes(place):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(66)).to(place.device).requires_grad_()
    several = torch.tensor([[1, 9], [9, 9], [2, 3]], device=x.device)
    found = ta.log_prob(x, several, ignore_index=9, backend=place.backend)
    assert found[0, 1] == 0 and (found[1] == 0).all() and (found[2] < 0).all()
    found.sum().backward()
    assert (x.grad[1] == 0).all()
    exact = oracle.grads(x.detach()[:1], torch.tensor([1]), torch.tensor([-1.0]), None)
    torch.testing.assert_close(x.grad[:1].cpu().double(), exact, rtol=1e-5, atol=1e-7)


def test_an_ignored_row_of_several_classes_has_no_gradient_even_when_poisoned(place):
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(67))
    x[1, 3] = torch.nan
    x = x.to(place.device).requires_grad_()
    several = torch.tensor([[1, 2], [-100, -100]], device=x.device)
    found = ta.log_prob(x, several, backend=place.backend)
    assert (found[1] == 0).all()
    found.sum().backward()
    assert (x.grad[1] == 0).all() and x.grad[0].isfinite().all()


def test_no_rows_and_no_classes_asked(place):
    empty = torch.zeros(0, 5, device=place.device)
    none = torch.zeros(0, dtype=torch.long, device=place.device)
    logp, entropy = ta.log_prob_entropy(empty, none, backend=place.backend)
    assert logp.shape == entropy.shape == (0,)
    assert ta.log_prob(empty, none.view(0, 1), backend=place.backend).shape == (0, 1)
    x = torch.zeros(2, 5, device=place.device, requires_grad=True)
    found = ta.log_prob(x, torch.zeros(2, 0, dtype=torch.long, device=place.device), backend=place.backend)
    assert found.shape == (2, 0)
    found.sum().backward()
    assert (x.grad == 0).all()


def test_half_precision_gives_float32_and_gradients_in_half_precision(place):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(68)).to(place.device, torch.bfloat16).requires_grad_()
    logp, entropy = ta.log_prob_entropy(x, torch.tensor([1, 2, 3], device=x.device), backend=place.backend)
    assert logp.dtype == entropy.dtype == torch.float32
    (logp + entropy).sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_functions_of_the_reference_module_agree():
    x, y, _ = rows.case("random", 10, torch.float32)
    several = torch.stack([y, (y + 1) % 10], 1)
    assert torch.equal(ta.reference.log_prob(x, y), ta.log_prob(x, y, backend="reference"))
    torch.testing.assert_close(
        ta.reference.log_prob(x, several), ta.log_prob(x, several, backend="reference"), rtol=1e-6, atol=0
    )
    assert torch.equal(ta.reference.entropy(x), ta.entropy(x, backend="reference"))
    for ours, theirs in zip(ta.reference.log_prob_entropy(x, y), ta.log_prob_entropy(x, y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    found = ta.reference.score(x, y, signals=ROW_SIGNALS).as_dict()
    expected = ta.score(x, y, signals=ROW_SIGNALS, backend="reference").as_dict()
    assert all(torch.equal(found[name], expected[name]) for name in ROW_SIGNALS)
    assert torch.equal(ta.reference.cross_entropy(x, y), ta.cross_entropy(x, y, backend="reference"))
