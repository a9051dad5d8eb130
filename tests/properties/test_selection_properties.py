"""Properties of what picks samples and remembers them, against the plainest code that does the same."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import torch
import torchassay as ta
from hypothesis import strategies as st
from strategies import FLOATS, LAYOUTS, SEEDS, examples, held, noise, unchanged

NUMBERS = st.floats(-10, 10, width=16) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-8, 65504.0])
SHARES = st.sampled_from([0.0, 0.145, 0.2, 0.5, 1 / 3, 0.999, 1.0]) | st.floats(0, 1)


def rounded(n: int, share: float) -> int:
    """Halves upwards, and what is less than 5e-7 below one."""
    return min(n, math.floor(Fraction(n) * Fraction(share) + Fraction(1, 2) + Fraction(5, 10**7)))


@examples(24, st.lists(NUMBERS, min_size=1, max_size=60), SHARES, st.sampled_from(FLOATS), st.data())
def test_the_top_fraction_is_that_of_a_sort(values, share, dtype, data):
    x, memory = held(torch.tensor(values, dtype=torch.float64).to(dtype), data.draw(st.sampled_from(LAYOUTS[2:])))
    before = memory.clone()
    mask = torch.rand(len(x), generator=noise(data.draw(SEEDS))) < 0.7 if data.draw(st.booleans()) else None
    found = ta.top_fraction(x, share, mask)
    counts = (x == x) if mask is None else mask & (x == x)
    at = counts.nonzero()[:, 0].tolist()
    order = sorted(at, key=lambda i: (-float(x[i]), i))  # both zeros are equal, earlier ones come first
    exact = Fraction(len(at)) * Fraction(share)
    chosen = found.nonzero()[:, 0].tolist()
    assert len(chosen) in {rounded(len(at), share), min(len(at), math.floor(exact + Fraction(1, 2)))}
    assert chosen == sorted(order[: len(chosen)])
    unchanged(memory, before)


@examples(20, st.lists(NUMBERS, min_size=1, max_size=60), SHARES, SHARES, st.booleans(), st.booleans())
def test_a_window_of_values_is_that_of_a_sort(values, share, offset, largest, classed):
    """In every class on its own; windows side by side share nothing and leave nothing out."""
    x = torch.tensor(values)
    offset = min(offset, 1 - share)
    by = torch.arange(len(x)) % 3 if classed else None
    kept = ta.keep(x, share, offset, largest=largest, by=by)
    before, after = ta.keep(x, offset, largest=largest, by=by), ta.keep(x, 1.0, largest=largest, by=by)
    assert kept.tolist() == sorted(kept.tolist()) and after.tolist() == list(range(len(x)))
    assert not set(kept.tolist()) & set(before.tolist())
    key = torch.where(x == x, x, -math.inf)
    for group in [torch.arange(len(x))] if by is None else [(by == c).nonzero()[:, 0] for c in range(3)]:
        order = sorted(group.tolist(), key=lambda i: (-float(key[i]) if largest else float(key[i]), i))
        mine = [i for i in order if i in set(kept.tolist())]
        first = order.index(mine[0]) if mine else 0
        assert mine == order[first : first + len(mine)]
        assert abs(len(mine) - share * len(group)) < 1 + 1e-5 and (not mine or abs(first - offset * len(group)) < 1)


@examples(20, st.integers(1, 9), st.lists(st.lists(NUMBERS, max_size=12), max_size=6), st.booleans(), SEEDS)
def test_a_history_is_the_latest_values(capacity, batches, midrank, seed):
    history = ta.History(capacity, beta=2.0, p_min=0.05, ties="midrank" if midrank else "strict")
    known: list[float] = []
    generator = noise(seed)
    for values in batches:
        x = torch.tensor(values)
        mask = torch.rand(len(x), generator=generator) < 0.8
        chance = history.probability(x, mask=mask)
        known = [*known, *x[mask & (x == x)].tolist()][-capacity:]
        for value, counted, found in zip(x.tolist(), mask.tolist(), chance.tolist(), strict=True):
            below = sum(k < value for k in known) + midrank * sum(k == value for k in known) / 2
            share = below / len(known) if known else 1.0
            expected = 0.0 if not counted else 0.05 if value != value else max(0.05, share**2)
            assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-7)
    again = ta.History(capacity, beta=2.0, p_min=0.05, ties="midrank" if midrank else "strict")
    again.load_state_dict(history.state_dict())
    x = torch.linspace(-11, 11, 7)
    assert torch.equal(again.probability(x), history.probability(x))


@examples(20, st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=1, max_size=300), SEEDS)
def test_a_tree_is_a_function_of_its_weights(weights, seed):
    """Weights set one by one, or some of them twice, draw what the same weights set at once do."""
    rng = np.random.default_rng(seed)
    tree, final = ta.SumTree(len(weights)), np.array(weights)
    index = rng.permutation(np.repeat(np.arange(len(weights)), 2))
    for part in np.array_split(index, 4):
        tree.update(part, rng.random(len(part)))
    for part in np.array_split(rng.permutation(len(weights)), 3):
        tree.update(part, final[part])
    at_once = ta.SumTree(final)
    assert tree.total == at_once.total and tree.positive == int((final > 0).sum())
    assert math.isclose(tree.total, math.fsum(weights), rel_tol=1e-13)
    assert torch.equal(tree.weights(), torch.tensor(weights, dtype=torch.float64))
    if not tree.positive:
        return
    drawn = tree.sample(50, seed=seed)
    assert torch.equal(drawn, at_once.sample(50, seed=seed)) and (final[drawn.numpy()] > 0).all()
    assert torch.equal(tree.sample(20, seed=seed), drawn[:20])
    different = tree.sample(min(40, tree.positive), seed=(seed, 1), replacement=False)
    assert len(different.unique()) == len(different) and (final[different.numpy()] > 0).all()
    assert torch.equal(tree.weights(), at_once.weights())


RULES = {"last": "last of loss", "mean": "mean of loss", "max": "max of loss", "ema": "ema:0.5 of loss"}
RULES["forgotten"] = "forgetting of target_margin"


@examples(20, st.integers(1, 8), st.lists(st.tuples(SEEDS, st.integers(0, 6)), max_size=6), st.sampled_from(FLOATS))
def test_a_memory_is_what_one_visit_after_the_other_makes_of_it(n, visits, dtype):
    memory = ta.SampleMemory(n, RULES)
    seen: list[list[float]] = [[] for _ in range(n)]
    margins: list[list[float]] = [[] for _ in range(n)]
    last = [-1] * n
    for step, (seed, size) in enumerate(visits):
        generator = noise(seed)
        index = torch.randperm(n, generator=generator)[:size]
        loss, margin = (torch.randn(len(index), generator=generator).to(dtype) for _ in range(2))
        memory.update(index, {"loss": loss, "target_margin": margin}, step)
        for i, a, b in zip(index.tolist(), loss.float().tolist(), margin.float().tolist(), strict=True):
            seen[i].append(a), margins[i].append(b)
            last[i] = step
    assert memory.visits.int().tolist() == [len(values) for values in seen] and memory.last_step.tolist() == last
    for i, values in enumerate(seen):
        if not values:
            assert all(math.isnan(float(memory[name][i])) for name in RULES)
            continue
        ema = values[0]
        for value in values[1:]:
            ema = (ema + value) / 2
        expected = {"last": values[-1], "mean": math.fsum(values) / len(values), "max": max(values), "ema": ema}
        for name, value in expected.items():
            assert math.isclose(float(memory[name][i]), value, rel_tol=1e-5, abs_tol=1e-6), (name, values)
        right = [value > 0 for value in margins[i]]
        forgotten = sum(a and not b for a, b in itertools.pairwise(right)) if any(right) else math.inf
        assert float(memory["forgotten"][i]) == forgotten
    again = ta.SampleMemory(n, RULES)
    again.load_state_dict(memory.state_dict())
    for name in RULES:
        assert torch.equal(again[name].nan_to_num(nan=-7.0), memory[name].nan_to_num(nan=-7.0))
