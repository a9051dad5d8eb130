"""`linear_cross_entropy` and `linear_log_prob_entropy` against materialised logits in float64: values and gradients."""

import functools

import linear_heads
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from linear_heads import OPTIONS, SHAPES, Head, given, gradients, head, loss_of, upstream_of
from option_oracle import Case
from torchassay.scores import ROW_SIGNALS

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float64, *HALF]
REDUCTIONS = ["none", "mean", "sum"]


# ---- how near to float64


def eager(h: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and entropy of the rows, as one computes them of materialised logits."""
    logits = F.linear(*h[:3])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p = F.log_softmax(logits, 1)
    return -log_p.gather(1, h.target[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


@functools.cache
def materialised(shape, dtype) -> tuple[Head, list[torch.Tensor], list[torch.Tensor]]:
    """A head; its losses, entropies and gradients in float64; and the errors of the same in its own dtype."""
    h = head(*shape, dtype, ignored=False)

    def everything(h):
        h = h.leaves()
        found = eager(h)
        up = [upstream_of(shape[0], found[0].dtype, seed) for seed in (5, 6)]
        return [*(rows.detach() for rows in found), *gradients(found, h, up)]

    exact = everything(h.to(torch.float64))
    return h, exact, [distance(*both) for both in zip(everything(h), exact, strict=True)]


def distance(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    return (found.double() - exact).norm() / exact.norm()


@pytest.mark.parametrize("shape", [(257, 33, 3001), (64, 252, 1000), (65, 33, 10007), (257, 64, 300)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_at_least_as_near_to_float64_as_materialised_logits(dtype, shape, fast_place):
    """Of the same dtype: loss, entropy, and the gradients by hidden states, weight and bias."""
    h, exact, errors = materialised(shape, dtype)
    h = h.to(fast_place.device).leaves()
    how = {"linear_bias": h.bias, "max_workspace_bytes": h.least(), "backend": fast_place.backend}
    log_prob, entropy = ta.linear_log_prob_entropy(h.input, h.weight, h.target, **how)
    up = [upstream_of(shape[0], torch.float32, seed).to(fast_place.device) for seed in (5, 6)]
    found = [-log_prob.detach().cpu(), entropy.detach().cpu(), *gradients((-log_prob, entropy), h, up)]
    for ours, truth, theirs, what in zip(found, exact, errors, ("loss", "entropy", "dH", "dW", "db"), strict=True):
        error = distance(ours, truth)
        assert error <= 1.2 * theirs + 1e-8, f"{what}: {error:.2e}, materialised {theirs:.2e}"


@pytest.mark.parametrize("chunks", ["one segment at a time", "default"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_in_float64(shape, chunks, double_place):
    """Of every row's loss with an upstream of its own: to the last digits."""
    h, loss, expected = in_float64(shape)
    h = h.to(double_place.device).leaves()
    found = loss_of(h, double_place, reduction="none", max_workspace_bytes=h.least() if chunks != "default" else None)
    torch.testing.assert_close(found.detach().cpu(), loss, rtol=1e-11, atol=1e-13)
    for ours, exact in zip(gradients(found, h, upstream_of(shape[0]).to(found.device)), expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)


@functools.cache
def in_float64(shape):
    h = head(*shape, torch.float64)
    exact = linear_heads.truth(h, Case())
    return h, exact.signals["loss"], linear_heads.pulled_back(upstream_of(shape[0])[:, None] * exact.grad_loss, h)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", [(8, 5, 3), (23, 17, 2100)], ids=str)
def test_options(shape, name, bias, fast_place):
    for dtype in (torch.float64, torch.float32):
        if dtype not in fast_place.dtypes:
            continue
        h = head(*shape, dtype, bias=bias, place=fast_place).leaves()
        options = given(name, h)
        exact = linear_heads.truth(h, Case(**options))
        up = upstream_of(shape[0])
        how = {"reduction": "none", "max_workspace_bytes": h.least(), **options}
        found = loss_of(h, fast_place, **how)
        expected = linear_heads.pulled_back(up[:, None] * exact.grad_loss, h)
        close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found.detach().cpu().double(), exact.signals["loss"], **close)
        for ours, truth in zip(gradients(found, h, up.to(found)), expected, strict=True):
            torch.testing.assert_close(ours.double(), truth, **close)


# ---- as torch has it


IGNORED = ["some at -100", "class 2", "class 0", "none", "all"]


@pytest.mark.parametrize("ignored", IGNORED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", ["plain", "weight", "smoothing", "both"])
def test_ignored_rows_reductions_and_weights(options, reduction, ignored, double_place):
    """Values and gradients are those of F.cross_entropy on F.linear; of no counted row nan, and for a sum 0."""
    h = head(10, 5, 7, torch.float64, ignored=False, place=double_place)
    h.target[:5] = torch.tensor([0, 2, 2, 5, 0])
    how = {"reduction": reduction}
    if ignored == "some at -100":
        h.target[[1, 5]] = -100
    elif ignored == "all":
        h.target[:] = -100
    else:
        how["ignore_index"] = {"class 2": 2, "class 0": 0, "none": -1}[ignored]
    if options in ("weight", "both"):
        how["weight"] = given("weight", h)["weight"]
    if options in ("smoothing", "both"):
        how["label_smoothing"] = 0.1
    ours, theirs = h.leaves(), h.leaves()
    found = loss_of(ours, double_place, **how)
    expected = F.cross_entropy(F.linear(*theirs[:3]), theirs.target, **how)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14, equal_nan=True)
    up = upstream_of(10).to(found.device) if reduction == "none" else None
    for one, other in zip(gradients(found, ours, up), gradients(expected, theirs, up), strict=True):
        if ignored == "all" and reduction == "mean":
            continue  # theirs are nan or 0, as it happens
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)
    if ignored == "all":
        assert found.isnan() if reduction == "mean" else (found == 0).all()


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no F.linear_cross_entropy")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (9,)], ids=["[D]", "[N, D]"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_torch(dtype, shape, reduction, fast_place):
    """Names, shapes, dtypes, results and gradients of ``torch.nn.functional.linear_cross_entropy``."""
    if dtype not in fast_place.dtypes:
        pytest.skip(f"{fast_place}: no {dtype}")
    count = torch.Size(shape).numel()
    h = head(count, 6, 40, dtype, place=fast_place)
    h = h._replace(input=h.input.view(*shape, 6), target=h.target.view(shape).clamp(min=3))
    eps = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for how in ({}, {"weight": given("weight", h)["weight"].to(dtype), "label_smoothing": 0.1, "ignore_index": 3}):
        ours, theirs = h.leaves(), h.leaves()
        found = loss_of(ours, fast_place, reduction=reduction, **how)
        expected = F.linear_cross_entropy(
            theirs.input, theirs.weight, theirs.target, linear_bias=theirs.bias, reduction=reduction, **how
        )
        assert found.dtype == expected.dtype and found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=eps, atol=eps)
        pairs = zip(gradients(found.sum(), ours), gradients(expected.sum(), theirs), strict=True)
        for one, other in pairs:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=eps, atol=2 * eps)


def test_no_rows(fast_place):
    for shape in ((0, 5), (2, 0, 5)):
        h = head(0, 5, 9, place=fast_place)
        h = h._replace(input=h.input.view(shape), target=h.target.view(shape[:-1])).leaves()
        for reduction in REDUCTIONS:
            found = loss_of(h, fast_place, reduction=reduction)
            expected = F.cross_entropy(F.linear(*h[:3]).flatten(0, -2), h.target.flatten(), reduction=reduction)
            torch.testing.assert_close(found.reshape(expected.shape), expected, equal_nan=True)
        for grad, operand in zip(gradients(loss_of(h, fast_place, reduction="sum"), h), h.operands, strict=True):
            assert grad.shape == operand.shape and (grad == 0).all()


# ---- signals


SIGNALS = (*ROW_SIGNALS, "weight_grad_norm")


def test_signals_come_unreduced_and_detached(fast_place):
    h = head(23, 6, 1500, place=fast_place)
    for names in (SIGNALS, ("margin", "entropy"), ("grad_norm", "loss"), "weight_grad_norm", ("target_margin",)):
        for reduction in REDUCTIONS:
            leaves = h.leaves()
            loss, found = loss_of(leaves, fast_place, signals=names, reduction=reduction)
            expected = ta.linear_score(
                h.input, h.weight, h.target, linear_bias=h.bias, signals=names, backend=fast_place.backend
            )
            assert found.signals == expected.signals and not any(v.requires_grad for v in found.as_dict().values())
            for name in found.signals:
                close = {"rtol": 2e-6, "atol": 2e-6}  # without the ignored rows a product may round otherwise
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), **close)
            alone = loss_of(h.leaves(), fast_place, reduction=reduction)
            torch.testing.assert_close(loss, alone, rtol=2e-6, atol=2e-6)
            assert loss.requires_grad and all(grad.isfinite().all() for grad in gradients(loss.sum(), leaves))


def test_no_signals_is_no_pair(fast_place):
    h = head(4, 5, 6, place=fast_place)
    for names in ((), []):
        assert isinstance(loss_of(h, fast_place, signals=names), torch.Tensor)


def test_leading_dimensions(fast_place):
    h = head(6, 5, 1100, place=fast_place).leaves()
    T = torch.linspace(0.5, 2, 6, device=fast_place.device)
    options = {"weight": given("weight", h)["weight"], "signals": SIGNALS}
    expected, scores = loss_of(h, fast_place, reduction="none", temperature=T, **options)
    grads = gradients(expected.sum(), h)
    for shape in ((2, 3), (6, 1), (1, 3, 2)):
        shaped = h._replace(input=h.input.view(*shape, 5), target=h.target.view(shape))
        found, of_rows = loss_of(shaped, fast_place, reduction="none", temperature=T.view(shape), **options)
        assert torch.equal(found, expected.view(shape))
        assert all(torch.equal(getattr(of_rows, name), getattr(scores, name).view(shape)) for name in SIGNALS)
        assert all(map(torch.equal, gradients(found.sum(), h), grads))
        log_prob, entropy = ta.linear_log_prob_entropy(
            shaped.input, h.weight, shaped.target, backend=fast_place.backend
        )
        assert log_prob.shape == entropy.shape == shape
    one = h._replace(input=h.input[0], target=h.target[0])
    found, scores = loss_of(one, fast_place, signals="entropy")
    assert found.shape == scores.entropy.shape == () and torch.equal(gradients(found, h)[0][1:], torch.zeros(5, 5))


def test_strides(fast_place):
    """Operands in other memory: the same numbers, and gradients of the same shape."""
    h = head(12, 9, 1500, place=fast_place)
    leaves = h.leaves()
    expected = loss_of(leaves, fast_place, reduction="none")
    grads = gradients(expected.sum(), leaves)
    for name, view in linear_heads.strided(h):
        for operand in view.operands:
            operand.requires_grad_()
        found = loss_of(view, fast_place, reduction="none")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
        for ours, theirs in zip(gradients(found.sum(), view), grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
