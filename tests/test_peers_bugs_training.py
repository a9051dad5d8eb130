"""What went wrong with losses, gradients and calls in other libraries' kernels: see test_peers_bugs.py."""

from __future__ import annotations

import itertools
import math

import linear_heads
import oracle
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from option_oracle import Case, truth
from strategies import unchanged
from torch._dynamo.testing import CompileCounterWithBackend
from torchassay import ops
from torchassay.options import Options
from torchassay.scores import BIT, ROW_SIGNALS

INF = math.inf


def scored(place, x, y, **options) -> ta.Scores:
    here = {"signals": ROW_SIGNALS, "backend": place.backend, **options}
    return ta.score(x.to(place.device), y.to(place.device), **here).cpu()


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_11_an_upstream_gradient_that_is_one_number_for_all_rows(fast_place):
    """TransformerEngine#2402: loss.sum() sends a tensor of stride 0, and a transpose one of another stride."""
    x, y = randn(3, 4, 20), torch.arange(12).view(3, 4)
    plain = x.clone().requires_grad_()
    ta.cross_entropy(plain, y, dim=-1, reduction="none", backend=fast_place.backend).backward(torch.ones(3, 4))
    for upstream in (torch.ones(()).expand(3, 4), torch.ones(4, 3).T):
        leaf = x.clone().requires_grad_()
        ta.cross_entropy(leaf, y, dim=-1, reduction="none", backend=fast_place.backend).backward(upstream)
        assert torch.equal(leaf.grad, plain.grad)


def test_12_logits_overwritten_by_their_gradient(double_place):
    """unsloth#5002, ms-swift#10129, Megatron-LM#1594: a second loss of the same logits read the gradient of the first.

    Forward, backward, a second backward of the same graph, two losses, and second derivatives.
    """
    x, y = randn(4, 30, seed=3).double().to(double_place.device), torch.arange(4, device=double_place.device)
    leaf = x.clone().requires_grad_()
    first = ta.cross_entropy(leaf, y, backend=double_place.backend)
    second = ta.entropy(leaf, backend=double_place.backend).sum()
    first.backward(retain_graph=True)
    once = leaf.grad.clone()
    first.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 2 * once, rtol=1e-15, atol=0)
    (grad,) = torch.autograd.grad(second, leaf, create_graph=True)
    grad.square().sum().backward()
    unchanged(leaf.detach().cpu(), x.cpu())


def test_13_writing_to_a_result_changed_the_gradient(fast_place):
    """What the backward needs must not be what was handed out."""
    x, y = randn(4, 30), torch.arange(4)

    def gradient(write: bool) -> torch.Tensor:
        leaf = x.clone().to(fast_place.device).requires_grad_()
        here = {"reduction": "none", "signals": ROW_SIGNALS, "backend": fast_place.backend}
        loss, s = ta.cross_entropy(leaf, y.to(fast_place.device), **here)
        total = loss.sum()
        if write:
            loss.detach().fill_(7)
            for value in s.as_dict().values():
                value.fill_(7)
        total.backward()
        return leaf.grad

    assert torch.equal(gradient(True), gradient(False))


def test_17_the_heads_gradient_ignored_the_upstreams_of_the_rows(fast_place):
    """Liger-Kernel#1298: rows were summed before their own weights were applied."""
    head = linear_heads.head(7, 12, 50, torch.float32, ignored=False).to(fast_place.device)
    up = torch.arange(7.0, device=fast_place.device) - 2
    leaves, plain = head.leaves(), head.to(torch.float64).leaves()
    here = {"linear_bias": leaves.bias, "reduction": "none", "backend": fast_place.backend}
    (ta.linear_cross_entropy(leaves.input, leaves.weight, leaves.target, **here) * up).sum().backward()
    logits = F.linear(plain.input, plain.weight, plain.bias)
    (F.cross_entropy(logits, plain.target, reduction="none") * up).sum().backward()
    for ours, theirs in zip(leaves.operands, plain.operands, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"weight": torch.rand(33)}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("ignored", [[], [1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("index", [-100, 0])
def test_18_ignored_rows(index, ignored, options, fast_place):
    """pytorch#73205, pytorch#69339 (smoothing), quack (a weight read at -100), cut-cross-entropy#59 (the last tile),
    TransformerEngine: none but ignored rows is a mean of 0 / 0, which torch has as NaN."""
    x, y = randn(4, 33), torch.tensor([5, 6, 32, 7])
    y[ignored] = index
    leaf, eager = x.clone().requires_grad_(), x.clone().requires_grad_()
    for reduction in ("mean", "sum"):
        here = {"ignore_index": index, "reduction": reduction, **options}
        ours, theirs = ta.cross_entropy(leaf, y, backend=fast_place.backend, **here), F.cross_entropy(eager, y, **here)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    ours.backward(), theirs.backward()
    torch.testing.assert_close(leaf.grad, eager.grad, rtol=1e-5, atol=1e-6)
    assert (leaf.grad[ignored] == 0).all()


def test_19_a_target_out_of_range_was_a_wild_read(fast_place):
    """On a CPU an error; on a GPU a NaN in its row (tests/gpu/test_gpu_streams.py). Labels of any integer dtype and
    from any address."""
    x, y = randn(4, 10).to(fast_place.device), torch.tensor([0, 9, 3, 4])
    for bad in (10, -1, -101, 2**31 - 1, -(2**62)):
        wrong = y.clone()
        wrong[2] = bad
        if fast_place.device == "cpu":
            with pytest.raises(ValueError, match=rf"0 <= class < 10 or ignore_index=-100, got class {bad} at row 2$"):
                ta.score(x, wrong, backend=fast_place.backend)
        else:
            assert ta.score(x, wrong.to(x.device), backend=fast_place.backend).loss[2].isnan()
    expected = scored(fast_place, x, y).loss
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(scored(fast_place, x, y.to(dtype)).loss, expected)
    shifted = torch.cat([torch.tensor([7]), y])[1:]
    assert torch.equal(scored(fast_place, x, shifted).loss, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_23_compiled_again_for_every_batch_or_temperature(fast_place):
    """tritonbench#477 and Liger-Kernel#1401 (graphs, streams, other devices) need a GPU: tests/gpu/test_gpu_streams.py.

    Here: one graph for any number of rows and classes and for any temperatures, without a break.
    """
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    call = torch.compile(
        lambda x, y, t: ta.log_prob_entropy(x, y, temperature=t, backend=fast_place.backend),
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    for rows, classes, number in ((5, 11, 0.7), (8, 30, 1.0), (3, 500, 9.0)):
        x, y = randn(rows, classes), torch.arange(rows)
        for ours, theirs in zip(call(x, y, torch.full((rows,), number)), _eager(x, y, number), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def _eager(x: torch.Tensor, y: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = torch.log_softmax(x / temperature, -1)
    return log_p.gather(1, y[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("cuts", [[], [40], [3, 50], [1, 2, 3, 40, 41, 90, 99]], ids=len)
def test_24_shards_of_the_vocabulary(cuts, fast_place):
    """Of any size, a target on each of them, one of them masked throughout; smoothing by the whole vocabulary."""
    x = randn(100, 100)
    edges = [0, *cuts, 100]
    if len(cuts) > 1:
        x[:50, edges[1] : edges[2]] = -INF
    y = torch.arange(100).where(x[torch.arange(100), torch.arange(100)] > -INF, 99)
    for smoothing in (0.0, 0.1) if len(cuts) < 2 else (0.0,):
        flat = Options(label_smoothing=smoothing).flat()
        states = [
            ops.row_states(x[:, a:b], y, *flat, 1, a, 100, -100, "test", fast_place.backend)
            for a, b in itertools.pairwise(edges)
        ]
        numbers, k = (torch.stack(parts) for parts in zip(*states, strict=True))
        bits = BIT["loss"] | BIT["entropy"]
        loss, entropy = ops.finish_states(numbers, k, y, *flat, 100, -100, bits, "test", fast_place.backend)
        exact = truth(x, y, Case(label_smoothing=smoothing)).signals
        torch.testing.assert_close(loss.double(), exact["loss"], rtol=2e-6, atol=0)
        torch.testing.assert_close(entropy.double(), exact["entropy"], rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", [(252, 507, 123), (5, 33, 1025)], ids=str)
def test_25_a_linear_head_of_odd_sizes_gave_negative_losses(shape, fast_place):
    """cut-cross-entropy#52: with a bias. Sizes that are no multiple of a tile, hidden states with a stride; in float32,
    which is not TF32 unless torch was told so; a dead class more changes nothing, and neither does their order."""
    rows, classes, features = shape
    head = linear_heads.head(rows, features, classes, ignored=False)
    hidden = head.input.repeat_interleave(2, 1)[:, ::2]
    y = head.target

    def losses(weight, bias, target) -> ta.Scores:
        here = {"linear_bias": bias, "signals": ("loss", "entropy", "grad_norm"), "backend": fast_place.backend}
        return ta.linear_score(hidden, weight, target, **here)

    s = losses(head.weight, head.bias, y)
    x = linear_heads.logits(head)
    exact = oracle.signals(x, y)
    assert (s.loss >= 0).all() and (s.entropy >= 0).all() and (s.entropy <= math.log(classes) * (1 + 1e-6)).all()
    torch.testing.assert_close(s.loss.double(), exact["loss"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(s.entropy.double(), exact["entropy"], rtol=1e-4, atol=1e-5)
    more = torch.cat([head.weight, head.weight[:1]]), torch.cat([head.bias, torch.tensor([-INF])])
    turned = torch.arange(classes - 1, -1, -1)
    others = losses(*more, y), losses(head.weight[turned], head.bias[turned], classes - 1 - y)
    for other in others:
        torch.testing.assert_close(other.loss, s.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.entropy, s.entropy, rtol=1e-4, atol=1e-5)
