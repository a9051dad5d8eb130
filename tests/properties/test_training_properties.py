"""Properties of what stands around the scores: modules, noise in layers, batches by rows, samplers, label reports."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torchassay as ta
from hypothesis import strategies as st
from strategies import FLOATS, SEEDS, batches, examples, noise, option_cases, unchanged
from torch import nn
from torchassay.samplers import InfoBatch, MixedOrder, OnlineImportance, Shuffle, WeightedSampler
from torchassay.scores import ROW_SIGNALS


@examples(8, batches(dtypes=FLOATS[:3], dead=False), st.data(), st.sampled_from(["mean", "sum", "none"]))
def test_a_module_is_its_function(batch, data, reduction):
    """The same bits, with whatever options; and the gradient changes no logit."""
    options = data.draw(option_cases(batch.rows)).given()
    if isinstance(options.get("temperature"), torch.Tensor):
        options["temperature"] = options["temperature"].view(batch.target.shape)
    how = {"dim": batch.dim, "reduction": reduction, **options}
    before, leaf, other = batch.memory.clone(), batch.input.detach(), batch.input.detach()
    target = batch.target.long()
    loss = ta.CrossEntropyLoss(**how)(leaf.requires_grad_(), target)
    expected = ta.cross_entropy(other.requires_grad_(), target, **how)
    for value in (loss, expected):
        value.sum().backward()
    for mine, theirs in ((loss, expected), (leaf.grad, other.grad)):  # NaN: the mean over weights of 0
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    unchanged(batch.memory, before)
    how = {"dim": batch.dim, **{name: value for name, value in options.items() if name != "z_loss"}}
    ours, theirs = ta.Scorer(ROW_SIGNALS, **how)(leaf, target), ta.score(leaf, target, signals=ROW_SIGNALS, **how)
    for name in ROW_SIGNALS:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


KINDS = st.sampled_from(["gaussian", "clipped", "uniform"])


@examples(8, st.sampled_from(FLOATS), st.integers(1, 6), st.integers(1, 20), KINDS, st.booleans(), SEEDS)
def test_noise_in_a_layer_belongs_to_the_sample_and_the_call(dtype, rows, features, kind, relative, seed):
    x = torch.randn(rows, features, generator=noise(seed), dtype=torch.float64).to(dtype)
    before, layer = x.clone(), nn.Sequential(nn.Identity())
    how = {"kind": kind, "relative": relative or kind == "uniform", "seed": seed}
    with ta.FeatureNoise(layer, "0", **how):
        first, second = layer(x), layer(x)
    with ta.FeatureNoise(layer, "0", **how):
        assert torch.equal(layer(x), first)
    with ta.FeatureNoise(layer, "0", **how):
        assert torch.equal(layer(x[: rows // 2 + 1]), first[: rows // 2 + 1])
    with ta.FeatureNoise(layer, "0", std=0.0, **how):
        assert torch.equal(layer(x), x)
    assert first.dtype == dtype and first.isfinite().all() and torch.equal(layer(x), x)
    silent = features == 1 and how["relative"] and kind != "uniform"  # a single feature has no spread
    assert torch.equal(first, second) == silent or x.numel() < 3 or dtype in FLOATS[2:]
    unchanged(x, before)


@examples(15, st.integers(1, 9), st.lists(st.integers(0, 9), max_size=4), SEEDS)
def test_rows_taken_apart_and_joined_are_the_batch(rows, cuts, seed):
    x = torch.randn(rows, 2, 3, generator=noise(seed)).transpose(1, 2)
    batch = {"x": x, "rest": (torch.arange(rows), [f"{i}" for i in range(rows)])}
    order = torch.randperm(rows, generator=noise(seed))
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [ta.data.take(batch, order[a:b]) for a, b in itertools.pairwise(edges)]
    back = ta.data.take(ta.data.join(parts), order.argsort())
    assert torch.equal(back["x"], x) and torch.equal(back["rest"][0], batch["rest"][0])
    assert back["rest"][1] == batch["rest"][1]


WEIGHTS = st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=1, max_size=60).filter(any)


@examples(15, WEIGHTS, st.integers(1, 70), st.integers(1, 3), st.booleans(), st.integers(0, 80), SEEDS)
def test_weighted_draws_go_on_where_they_were(weights, count, world, replacement, stop, seed):
    """On every rank; the ranks' shares are those of one draw, and nobody draws a sample of weight 0."""
    positive = sum(weight > 0 for weight in weights)
    count = count if replacement else min(count, positive)
    whole = ta.SumTree(weights).sample(count, seed=(seed, 0), replacement=replacement).tolist()
    for rank in range(world):
        how = {"replacement": replacement, "num_replicas": world, "rank": rank, "seed": seed}
        sampler = WeightedSampler(weights, count, **how)
        expected = [whole[i % count] for i in range(rank, len(sampler) * world, world)]
        keys = iter(sampler)
        given = [next(keys) for _ in range(min(stop, len(sampler)))]
        state = sampler.state_dict()
        again = WeightedSampler(weights, count, **how)
        again.load_state_dict(state)
        again.set_epoch(0)
        assert given + list(again) == expected == given + list(keys)
        assert all(weights[key] > 0 for key in expected)


SAMPLERS = {
    "Shuffle": lambda n, **how: Shuffle(n, **how),
    "InfoBatch": lambda n, **how: InfoBatch(n, epochs=5, **how),
    "MixedOrder": lambda n, **how: MixedOrder(n, **how),
    "OnlineImportance": lambda n, **how: OnlineImportance(n, **how),
}


@pytest.mark.parametrize("name", [*SAMPLERS])
@examples(4, st.integers(1, 40), st.integers(1, 12), st.integers(0, 12), st.booleans(), SEEDS)
def test_a_sampler_goes_on_where_it_was(name, n, batch_size, stop, drop_last, seed):
    """After any number of batches, over three epochs; it gives keys of its own samples, and weights that are finite."""
    how = {"batch_size": batch_size, "seed": seed, "drop_last": drop_last and batch_size <= n}

    def trained(sampler, left: int | None) -> list:
        """The batches of a training, or the first of them."""
        found = []
        for epoch in range(sampler.epoch, 3):
            sampler.set_epoch(epoch)
            keys = iter(sampler)
            while left is None or len(found) < left:
                batch = [key for _, key in zip(range(batch_size), keys, strict=False)]
                if not batch:
                    break
                found.append((epoch, batch))
                index = torch.tensor([key[0] if isinstance(key, tuple) else key for key in batch])
                values = (index * 37 % 11 + epoch).float() + 1
                sampler.observe(index, dict.fromkeys((*sampler.needs, "loss", "uncertainty"), values))
            if left is not None and len(found) >= left:
                break
        return found

    whole, first = trained(SAMPLERS[name](n, **how), None), SAMPLERS[name](n, **how)
    begun = trained(first, stop)
    rest = SAMPLERS[name](n, **how)
    rest.load_state_dict(first.state_dict())
    assert begun + trained(rest, None) == whole
    for _, batch in whole:
        for key in batch:
            index, weight = key if isinstance(key, tuple) else (key, 1.0)
            assert 0 <= index < n and 0 <= weight < math.inf


@examples(12, st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, math.nan]), min_size=1, max_size=40), SEEDS)
def test_a_report_of_labels_is_a_sort(losses, seed):
    rng = np.random.default_rng(seed)
    values, index = np.array(losses, np.float32), rng.permutation(len(losses))
    given, true = rng.integers(0, 3, len(losses)), rng.integers(0, 3, len(losses))
    before, scores = values.copy(), {"loss": values, "index": index}
    known = [i for i in range(len(losses)) if losses[i] == losses[i]]
    if not known:
        with pytest.raises(ValueError, match="must hold a number for some sample, got NaN only"):
            ta.labels.report(scores)
        return
    found = ta.labels.report(scores, given=given, true=true, k=len(known))
    order = sorted(known, key=lambda i: -float(values[i]))
    assert found.order.tolist() == index[order].tolist()
    wrong = (given != true)[index[order]]
    assert math.isclose(found.precision[len(known)], wrong.mean())
    assert np.array_equal(values, before, equal_nan=True)
