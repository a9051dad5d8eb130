"""Properties of what is no softmax over classes, and of several draws of one."""

from __future__ import annotations

import math

import head_oracle
import oracle
import torch
import torchassay as ta
from hypothesis import strategies as st
from strategies import FLOATS, LAYOUTS, SEEDS, examples, held, logits, noise, unchanged

OF_DRAWS = ("noisy_entropy", "predictive_entropy", "mutual_information")
NOISE = {"signals": OF_DRAWS, "noise_draws": 3}


@st.composite
def samples(draw, values) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Outputs [N, L] in any layout, the memory they lie in, and random numbers for the rest."""
    x = draw(logits(4, 20, FLOATS, values, dead=False))
    return *held(x, draw(st.sampled_from(LAYOUTS))), noise(draw(SEEDS))


def agree(found: ta.Scores, exact: dict[str, torch.Tensor], x: torch.Tensor, size: dict[str, torch.Tensor]) -> None:
    eps = 1e-13 if x.dtype == torch.float64 else 1e-6
    tiny = 1e-290 if x.dtype == torch.float64 else 1e-36
    for name in found.signals:
        value, truth = getattr(found, name).double(), exact[name]
        allowed = eps * torch.maximum(truth.abs(), size.get(name, truth).abs()) + tiny
        # what is above the largest number of the dtype is inf
        over = value.isinf() & (truth.abs() > (1e308 if x.dtype == torch.float64 else 3.4e38))
        assert (((value - truth).abs() <= allowed) | over).all(), (name, value, truth)


@examples(8, samples(st.floats(-80, 80, width=32)), st.booleans())
def test_binary_scores_are_the_textbooks(fast_place, made, hard):
    x, memory, generator = made
    if x.dtype == torch.float64 and not fast_place.double:
        return
    before = memory.clone()
    y = torch.rand(x.shape, generator=generator)
    y, w = y.round() if hard else y, torch.rand(x.shape[1], generator=generator) * 4
    here = [value.to(fast_place.device) for value in (x, y, w)]
    s = ta.score_binary(here[0], here[1], pos_weight=here[2], backend=fast_place.backend).cpu()
    # for soft targets the norm is one of differences
    size = {} if hard else {"grad_norm": 4 * torch.full((len(x),), math.sqrt(x.shape[1]), dtype=torch.float64)}
    agree(s, head_oracle.binary(x, y, w), x, size)
    assert (s.loss >= 0).all() and (s.entropy >= 0).all()
    assert (s.entropy <= x.shape[1] * math.log(2) * (1 + 1e-6)).all()
    unchanged(memory, before)


@examples(8, samples(st.floats(-1e4, 1e4, width=32)), st.sampled_from(head_oracle.LOSSES))
def test_regression_scores_are_the_textbooks(fast_place, made, loss):
    x, memory, generator = made
    if x.dtype == torch.float64 and not fast_place.double:
        return
    before = memory.clone()
    y = torch.randn(x.shape, generator=generator) * 10
    how = {"loss": loss, "delta": 0.75, "backend": fast_place.backend}
    s = ta.score_regression(x.to(fast_place.device), y.to(fast_place.device), **how).cpu()
    agree(s, head_oracle.regression(x, y, loss, 0.75), x, {})
    assert (s.loss >= 0).all() and (s.grad_norm >= 0).all()
    unchanged(memory, before)


@examples(10, st.lists(logits(1, 30, FLOATS[:3]), min_size=1, max_size=4), st.integers(1, 4), SEEDS)
def test_ensembles_are_the_oracles(fast_place, members, rows, seed):
    """Members drawn on their own, brought to one shape; in the order that has the draws first, and last but one."""
    dtype, classes = members[0].dtype, members[0].shape[1]
    if dtype == torch.float64 and not fast_place.double:
        return
    generator = noise(seed)
    x = torch.randn(len(members), rows, classes, generator=generator).to(dtype)
    for t, member in enumerate(members):
        x[t, 0] = member[0, torch.arange(classes) % member.shape[1]].to(dtype)
        x[t, 0, 0] = x[t, 0, 0].clamp(min=-300)  # alive
    here = x.to(fast_place.device)
    s = ta.ensemble_score(here, signals=OF_DRAWS, backend=fast_place.backend).cpu()
    exact = oracle.draw_signals(x.double().numpy())
    eps = 1e-12 if dtype == torch.float64 else 1e-5
    for name in OF_DRAWS:
        scale = exact["predictive_entropy" if name == "mutual_information" else name]
        error = (getattr(s, name).double() - exact[name]).abs()
        assert (error <= eps * scale + 1e-34).all(), (name, error, scale)
        assert (getattr(s, name) >= 0).all()
    turned = ta.ensemble_score(here.movedim(0, 1), signals=OF_DRAWS, draws_dim=1, backend=fast_place.backend).cpu()
    for name in OF_DRAWS:
        torch.testing.assert_close(getattr(turned, name), getattr(s, name), rtol=2 * eps, atol=1e-6)
    y = torch.randint(classes, (rows,), generator=generator)
    pbar = ta.ensemble_score(here, y.to(fast_place.device), signals=("loss", "confidence"), backend=fast_place.backend)
    p = torch.softmax(x.double(), -1).mean(0)
    torch.testing.assert_close(pbar.confidence.cpu().double(), p.amax(-1), rtol=1e-5, atol=0)
    assert (pbar.loss >= 0).all()


@examples(8, logits(5, 40, FLOATS[:3]), st.integers(0, 5), st.integers(0, 2**63 - 1), st.floats(0.0625, 4, width=16))
def test_noise_belongs_to_the_row(fast_place, x, at, seed, std):
    """Bitwise the same however the batch is split or ordered."""
    if x.dtype == torch.float64 and not fast_place.double:
        return
    x, at = x.to(fast_place.device), min(at, len(x))
    ids = torch.arange(len(x), device=x.device) * 977 + 3

    def scored(part) -> ta.Scores:
        return ta.score(x[part], noise_std=std, seed=seed, row_id=ids[part], backend=fast_place.backend, **NOISE)

    whole = scored(slice(None))
    split = ta.Scores.cat([scored(slice(at)), scored(slice(at, None))])
    back = scored(torch.arange(len(x) - 1, -1, -1, device=x.device))
    for name in OF_DRAWS:
        assert torch.equal(getattr(split, name), getattr(whole, name)), name
        assert torch.equal(getattr(back, name).flip(0), getattr(whole, name)), name
        assert (getattr(whole, name) >= 0).all()
    assert (whole.noisy_entropy <= math.log(x.shape[1]) * (1 + 1e-5) + 1e-30).all()
    assert (whole.mutual_information <= whole.predictive_entropy * (1 + 1e-5) + 1e-30).all()
