"""Properties of scores and losses from hidden states and a linear head."""

from __future__ import annotations

import math

import linear_heads
import oracle
import torch
import torchassay as ta
from hypothesis import strategies as st
from linear_heads import Head
from strategies import LAYOUTS, SEEDS, examples, held, noise, unchanged
from torchassay.scores import ROW_SIGNALS


@st.composite
def heads(draw) -> tuple[Head, list[torch.Tensor]]:
    """Operands in any layout, now and then more classes than are taken at a time; and the memory that they lie in."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    rows, features = draw(st.integers(1, 5)), draw(st.integers(1, 33))
    classes = draw(st.integers(1, 60) | st.sampled_from([1024, 1025, 2051]))
    generator = noise(draw(SEEDS))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    scale = draw(st.sampled_from([0.1, 2.0, 20.0]))
    plain = normal(rows, features), normal(classes, features) * scale / math.sqrt(features)
    operands, memories = zip(*(held(x.to(dtype), draw(st.sampled_from(LAYOUTS))) for x in plain), strict=True)
    bias = normal(classes).to(dtype) if draw(st.booleans()) else None
    target = torch.randint(classes, (rows,), generator=generator)
    target[1::3] = -100
    return Head(*operands, bias, target), list(memories)


def near(found: torch.Tensor, exact: torch.Tensor, off: torch.Tensor, relative: float) -> None:
    """Within a relative error, and what an error of the logits can make of it."""
    error = (found.double() - exact).abs()
    assert (error <= relative * exact.abs() + 6 * off + 1e-30).all(), (error, off)


@examples(12, heads())
def test_scores_and_losses_are_those_of_the_logits(fast_place, made):
    head, memories = made
    if head.input.dtype == torch.float64 and not fast_place.double:
        return
    before = [memory.clone() for memory in memories]
    x = linear_heads.logits(head)
    exact = oracle.signals(x, head.target)
    # an error d of the logits moves a loss by 2 d, an entropy by d times its spread; products round as F.linear's do
    d = linear_heads.logit_errors(head) + x.abs().amax(1) * torch.finfo(head.input.dtype).eps * head.input.shape[1]
    off = {"loss": d, "lse": d, "entropy": d * (2 + x.abs().amax(1)), "grad_norm": d}
    on = head.to(fast_place.device)
    how = {"linear_bias": on.bias, "backend": fast_place.backend}
    s = ta.linear_score(on.input, on.weight, on.target, signals=(*ROW_SIGNALS, "weight_grad_norm"), **how).cpu()
    loss = ta.linear_cross_entropy(on.input, on.weight, on.target, reduction="none", **how).cpu()
    logp, entropy = ta.linear_log_prob_entropy(on.input, on.weight, on.target, **how)
    for name in off:
        near(getattr(s, name), exact[name], off[name], 2e-6)
    rounding = torch.finfo(loss.dtype).eps
    near(loss, exact["loss"], off["loss"], 2 * rounding + 2e-6)
    near(-logp.cpu(), exact["loss"], off["loss"], 2e-6)
    near(entropy.cpu(), exact["entropy"], off["entropy"], 2e-6)
    norm = (head.input.double().square().sum(1) + (head.bias is not None)).sqrt()
    near(s.weight_grad_norm, s.grad_norm.double() * norm, torch.zeros(()), 2e-6)
    assert (s.loss >= 0).all() and (s.entropy >= 0).all() and (loss >= 0).all()
    assert (s.entropy <= math.log(x.shape[1]) * (1 + 1e-6) + 1e-30).all()
    assert (s.grad_norm <= math.sqrt(2) * (1 + 1e-6)).all()
    for memory, kept in zip(memories, before, strict=True):
        unchanged(memory, kept)


@examples(8, heads(), SEEDS)
def test_gradients_are_those_of_the_logits(fast_place, made, seed):
    head, _ = made
    if head.input.dtype == torch.float64 and not fast_place.double:
        return
    up = torch.randint(-8, 9, (len(head.input),), generator=noise(seed)) / 4
    leaves, wide = head.to(fast_place.device).leaves(), head.to(torch.float64).leaves()
    how = {"linear_bias": leaves.bias, "reduction": "none", "backend": fast_place.backend}
    loss = ta.linear_cross_entropy(leaves.input, leaves.weight, leaves.target, **how)
    loss.backward(up.to(loss))
    plain = torch.nn.functional.cross_entropy(linear_heads.logits(wide), head.target, reduction="none")
    plain.backward(up.double())
    d = linear_heads.logit_errors(head).max() + linear_heads.logits(head).abs().max() * torch.finfo(loss.dtype).eps * 33
    for ours, theirs, other in zip(leaves.operands, wide.operands, (head.weight, head.input, head.input), strict=False):
        assert ours.grad.isfinite().all()
        size = up.abs().sum() * (1 + other.double().abs().max())
        error = (ours.grad.cpu().double() - theirs.grad).abs().max()
        assert error <= (3 * torch.finfo(head.input.dtype).eps + 8 * min(d, 1.0)) * size, (error, size)
