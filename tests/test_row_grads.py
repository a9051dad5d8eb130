"""The backward against the oracle and against F.cross_entropy."""

import itertools

import oracle
import pytest
import rows
import torch
import torch.nn.functional as F
import torchassay as ta

FAMILIES = ["gaps", "offsets", "random", "peaked", "masked", "blocks", "ramps", "ties"]


def gradient(place, x, y, grad_loss, grad_entropy):
    """d (sum grad_loss loss + grad_entropy entropy) / d x by the backward of `log_prob_entropy`."""
    x = x.detach().clone().to(place.device).requires_grad_()
    logp, entropy = ta.log_prob_entropy(x, y.to(place.device), backend=place.backend)
    outputs = [(-logp, grad_loss), (entropy, grad_entropy)]
    outputs = [(out, upstream.to(out)) for out, upstream in outputs if upstream is not None]
    torch.autograd.backward(*map(list, zip(*outputs, strict=True)))
    return x.grad


def upstreams(count):
    generator = torch.Generator().manual_seed(40)
    gL, gH = torch.randn(2, count, generator=generator, dtype=torch.float64).float()
    return {"loss": (gL, None), "entropy": (None, gH), "both": (gL, gH)}


def check_rows(place, name, found, x, y, grad_loss, grad_entropy, tolerance):
    """The error of a row as a share of its norm; of the norms of the two parts where there are two upstreams.

    In the entropy's gradient p_j (a_j - mu) an ulp of mu is allowed beside: a long row of equal logits but for a few
    has nearly all its mass at one a_j, close to mu. In other rows this adds little.
    """
    parts = [oracle.grads(x, y, grad_loss, None)] if grad_loss is not None else []
    parts += [oracle.grads(x, y, None, grad_entropy)] if grad_entropy is not None else []
    exact, norm = sum(parts), sum(part.norm(dim=1) for part in parts)
    found, dtype = found.cpu().double(), found.dtype
    error = (found - exact).norm(dim=1) / norm
    allowed = torch.full_like(norm, tolerance)
    if grad_entropy is not None:
        allowed += torch.finfo(dtype).eps * grad_entropy.abs() * oracle.subtracted_norm(x) / norm
    gone = norm < oracle.TINY[dtype]  # every entry may have been flushed to 0, or come of terms next to it
    error = torch.where(gone, torch.where(found.norm(dim=1) <= 100 * oracle.TINY[dtype], 0, torch.inf), error)
    oracle.note(place, dtype, f"d {name}", float(error.max()))
    over = torch.where(gone, error, error / allowed)
    worst = int(over.argmax())
    assert over[worst] <= 1, (name, worst, float(error[worst]))


@pytest.mark.parametrize("which", ["loss", "entropy", "both"])
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 127, 1000, 1024, 4097])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_against_the_oracle(family, classes, which, place):
    x, y, _ = rows.case(family, classes, torch.float32)
    at = place.some(x, 3)
    x, y = x[at], y[at]
    up = upstreams(len(x))[which]
    check_rows(place, which, gradient(place, x, y, *up), x, y, *up, place.tolerance)


@pytest.mark.parametrize("classes", [50257, 151936])
@pytest.mark.parametrize("family", ["gaps", "blocks", "masked", "ties"])
def test_float32_of_a_vocabulary_against_the_oracle(family, classes, fast_place):
    x, y, _ = rows.case(family, classes, torch.float32)
    x, y = x[::3], y[::3]
    up = upstreams(len(x))["both"]
    check_rows(fast_place, "both", gradient(fast_place, x, y, *up), x, y, *up, fast_place.tolerance)


@pytest.mark.parametrize("which", ["loss", "entropy", "both"])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_float64_against_the_oracle(family, classes, which, double_place):
    x, y, _ = rows.case(family, classes, torch.float64)
    up = tuple(g if g is None else g.double() for g in upstreams(len(x))[which])
    check_rows(double_place, which, gradient(double_place, x, y, *up), x, y, *up, 1e-14)


@pytest.mark.parametrize("classes", [2, 10, 1000, 4097])
def test_the_true_class_keeps_its_digits(classes, place):
    """Relative to itself, at gaps of -80 to 80, where -(1 - p_y) by subtraction would be 0."""
    for family in ("gaps", "offsets", "ties"):
        x, y, _ = rows.case(family, classes, torch.float32)
        at = place.some(x, 3)
        x, y = x[at], y[at]
        ones = torch.ones(len(x))
        found = gradient(place, x, y, ones, None).cpu().gather(1, y[:, None]).double()
        exact = oracle.grads(x, y, ones, None).gather(1, y[:, None])
        error = ((found - exact).abs() / exact.abs()).max()
        oracle.note(place, torch.float32, "d loss, class y", float(error))
        assert error <= place.tolerance, (family, float(error))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("classes", [3, 127, 1000])
def test_case_14_half_precision_gradients_are_rounded_once(classes, dtype, place):
    """Every entry, the confident true class too, is the float32 gradient rounded to the input's dtype: to 1 ulp."""
    x, y, _ = rows.case("gaps", classes, dtype)
    at = place.some(x, 4)
    x, y = x[at], y[at]
    gL, gH = upstreams(len(x))["both"]
    found = gradient(place, x, y, gL, gH).cpu()
    assert found.dtype == dtype
    exact = oracle.grads(x, y, gL, gH)
    info = torch.finfo(dtype)
    slack = exact.abs() * info.eps * 0.501 + info.smallest_normal * info.eps + 1e-6 * exact.norm(dim=1, keepdim=True)
    assert ((found.double() - exact).abs() <= slack).all()
    true = gradient(place, x, y, gL, None).cpu().gather(1, y[:, None]).double()
    exact = oracle.grads(x, y, gL, None).gather(1, y[:, None])
    assert ((true - exact).abs() <= exact.abs() * info.eps * 0.501 + info.smallest_normal * info.eps * 0.501).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("upstream", ["per row", "stride 0", "transposed", "every second", "float64"])
def test_cases_11_and_17_upstreams_of_every_kind_agree_with_torch(upstream, dtype, place):
    if dtype not in place.dtypes:
        pytest.skip(f"{place}: no {dtype}")
    shape, classes = (4, 6), 37
    generator = torch.Generator().manual_seed(41)
    x = (torch.randn(*shape, classes, generator=generator) * 3).to(place.device, dtype)
    y = torch.randint(0, classes, shape, generator=generator).to(place.device)
    up = torch.randn(6, 8, generator=generator)
    up = {
        "per row": lambda: up[:4, :6].contiguous(),
        "stride 0": lambda: torch.tensor(0.7).expand(shape),
        "transposed": lambda: up[:, :4].t(),
        "every second": lambda: torch.cat([up, up], 1)[:4, ::2][:, :6],
        "float64": lambda: up[:4, :6].contiguous(),
    }[upstream]().to(place.device)

    ours = x.clone().requires_grad_()
    ta.log_prob(ours, y, backend=place.backend).backward(up if dtype != torch.float64 else up.double())
    exact = x.double().requires_grad_()
    loss = F.cross_entropy(exact.flatten(0, 1), y.flatten(), reduction="none").view(shape)
    (-loss).backward(up.double())
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cross_entropy_gradients_agree_with_torch_in_every_dtype(dtype, reduction, place):
    if dtype not in place.dtypes:
        pytest.skip(f"{place}: no {dtype}")
    generator = torch.Generator().manual_seed(42)
    x = (torch.randn(12, 50, generator=generator) * 3).to(place.device, dtype)
    y = torch.randint(0, 50, (12,), generator=generator).to(place.device)
    y[3] = -100
    up = torch.randn(12, generator=generator) if reduction == "none" else torch.tensor(1.5)
    grads = []
    for function, logits in ((F.cross_entropy, x.double()), (ta.cross_entropy, x)):
        logits = logits.clone().requires_grad_()
        options = {"backend": place.backend} if function is ta.cross_entropy else {}
        loss = function(logits, y, reduction=reduction, **options)
        loss.backward(up.to(loss))
        grads.append(logits.grad.double())
    # "none" hands the upstream over in the dtype of the loss: half precision rounds it, and the sum of the mean
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(grads[1], grads[0], rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("case", ["masked tail", "one finite", "lowest float16"])
def test_case_06_masked_classes_have_finite_gradients_and_none_themselves(case, place):
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(43))
    if case == "masked tail":
        x[:, 13:] = -torch.inf
    elif case == "one finite":
        x[:, 1:] = -torch.inf
    else:
        x = x.half()
        x[:, 13:] = -65504
    y = torch.tensor([0, 0, 0])
    gL, gH = upstreams(3)["both"]
    found = gradient(place, x, y, gL, gH).cpu()
    assert found.isfinite().all()
    dead = x == -torch.inf if x.dtype == torch.float32 else x == -65504
    assert (found[dead] == 0).all()


def test_case_18_ignored_rows_have_exactly_no_gradient_even_when_poisoned(place):
    x = torch.randn(5, 30, generator=torch.Generator().manual_seed(44))
    x[1, 4] = torch.nan
    x[2] = -torch.inf
    x[3, 0] = torch.inf
    y = torch.tensor([3, -100, -100, -100, 5], device=place.device)
    for reduction in ("mean", "sum", "none"):
        logits = x.to(place.device).requires_grad_()
        loss = ta.cross_entropy(logits, y, reduction=reduction, backend=place.backend)
        loss.sum().backward()
        assert (logits.grad[1:4] == 0).all(), reduction
        assert logits.grad[[0, 4]].isfinite().all() and (logits.grad[[0, 4]] != 0).all(), reduction


def test_a_poisoned_row_poisons_its_gradient_alone(place):
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(45))
    y = torch.tensor([3, 7, 0, 5])
    for poison, which in itertools.product((torch.nan, torch.inf), ("loss", "entropy", "both")):
        up = upstreams(4)[which]
        clean = gradient(place, x, y, *up)
        dirty = x.clone()
        dirty[1, 4], dirty[1, 9] = poison, -torch.inf
        found = gradient(place, dirty, y, *up)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2, 3]], clean[[0, 2, 3]])


def test_no_rows_have_an_empty_gradient(place):
    x = torch.zeros(0, 7, device=place.device, requires_grad=True)
    ta.cross_entropy(
        x, torch.zeros(0, dtype=torch.long, device=place.device), reduction="sum", backend=place.backend
    ).backward()
    assert x.grad.shape == (0, 7)
