"""Selective-Backprop against the authors' rule, its control, and its stale and per-batch forms."""

from __future__ import annotations

from collections import deque

import pytest
import torch
import torchassay as ta
from small import B, N, dataset, loader, network
from torchassay.philox import uniforms
from torchassay.samplers import SelectiveBackprop


@pytest.mark.parametrize("beta, share", [(0, 1.0), (1, 0.498), (2, 0.334), (3, 0.245)])
def test_the_share_picked_is_that_of_beta(beta, share, random):
    picker = SelectiveBackprop(beta, seed=1)
    picked = [picker.pick({"loss": torch.rand(128, generator=random)}).count for _ in range(200)]
    assert float(torch.stack(picked[8:]).mean()) / 128 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("signal", ["loss", "entropy"])
def test_the_authors_rule(signal, random):
    picker = SelectiveBackprop(2.0, signal=signal, capacity=50, p_min=0.1, seed=3)
    window: deque[float] = deque(maxlen=50)
    for step in range(12):
        values = torch.rand(16, generator=random)
        window.extend(values.tolist())
        chance = [max(0.1, (sum(old < v for old in window) / len(window)) ** 2) for v in values.tolist()]
        draws = uniforms(torch.arange(16), seed=3, step=step).tolist()
        expected = [draw < p for draw, p in zip(draws, chance, strict=True)]
        assert picker.pick({signal: values}).mask.tolist() == expected


@pytest.mark.parametrize("signal", ["loss", "entropy"])
def test_picks_are_harder_than_chance(signal, random):
    picker = SelectiveBackprop(1.0, signal=signal, seed=2)
    picked = torch.zeros(10)
    for _ in range(100):
        values = torch.rand(100, generator=random)
        mask = picker.pick({signal: values}).mask
        picked += torch.bincount((values[mask] * 10).long(), minlength=10)
    expected = picked.sum() / 10
    assert float(((picked - expected) ** 2 / expected).sum()) > 100  # 9 degrees of freedom: 33.7 is 1 in 10,000
    assert (picked.diff() > 0).sum() >= 8


def test_everything_is_picked_in_the_first_epochs_and_the_window_stays_empty():
    picker = SelectiveBackprop(3.0, warmup_epochs=1)
    with pytest.raises(RuntimeError, match=r"call set_epoch\(epoch\) at the start of each epoch"):
        picker.pick({"loss": torch.rand(8)})
    picker.set_epoch(0)
    assert picker.pick({"loss": torch.rand(8)}).mask.all() and "total" not in picker.history.state_dict()
    picker.set_epoch(1)
    picker.pick({"loss": torch.rand(8)})
    assert picker.history.state_dict()["total"] == 8


def test_the_control_knows_nothing_of_the_scores(random):
    picker = SelectiveBackprop(1.0, signal="random", seed=5)
    loss = torch.rand(200, 64, generator=random)
    masks = torch.stack([picker.pick({"loss": row}).mask for row in loss])
    assert float(masks.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(loss[masks].mean()) == pytest.approx(float(loss.mean()), abs=0.01)
    came = list(SelectiveBackprop(1.0, signal="random").batches(loader(), None))  # nothing is scored: no model
    assert 70 < sum(len(weight) for _, weight in came) < 140


def test_masked_rows_neither_enter_nor_come():
    picker = SelectiveBackprop(1.0, p_min=1.0)
    mask = torch.arange(8) % 2 == 0
    assert picker.pick({"loss": torch.rand(8)}, mask=mask).mask.tolist() == mask.tolist()
    assert picker.history.state_dict()["total"] == 4


class TestShareOfBatch:
    def test_a_fixed_share_is_drawn_by_percentile(self):
        picker = SelectiveBackprop(keep=0.5, start=0, end=1, interrupt=0, seed=1)
        values = torch.tensor([3.0, 1.0, 4.0, 2.0])
        count = torch.zeros(4)
        for _ in range(4000):
            mask = picker.pick({"loss": values}).mask
            assert mask.sum() == 2
            count += mask
        # weights 1/8, 3/8, 5/8, 7/8 by rank: of drawing two in turn, the chance that a sample is among them
        weight = torch.tensor([5, 1, 7, 3], dtype=torch.float64) / 16
        expected = weight.clone()
        for i in range(4):
            expected[i] += sum(weight[j] * weight[i] / (1 - weight[j]) for j in range(4) if j != i)
        assert (count / 4000 - expected).abs().max() < 0.03

    def test_it_is_on_between_start_and_end_and_interrupted(self):
        picker = SelectiveBackprop(keep=0.5, start=0.25, end=0.75, interrupt=2, steps=20)
        picked = [int(picker.pick({"loss": torch.rand(10)}).count) for _ in range(20)]
        active = [5 <= step < 15 and (step + 1) % 2 for step in range(20)]
        assert picked == [5 if on else 10 for on in active]

    def test_masked_rows(self):
        picker = SelectiveBackprop(keep=0.5, start=0, end=1, interrupt=0)
        mask = torch.tensor([True, False, True, True, False, True])
        for _ in range(20):
            found = picker.pick({"loss": torch.rand(6)}, mask=mask).mask
            assert found.sum() == 2 and not (found & ~mask).any()


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.rows = network(), 0

    def forward(self, x):
        self.rows += 0 if torch.is_grad_enabled() else len(x)
        return self.inner(x)


def test_stale_scores_are_used_until_they_are_old():
    model, picker = Counting(), SelectiveBackprop(1.0, stale=2, seed=1)
    fresh = SelectiveBackprop(1.0, seed=1)
    scored = []
    for _ in range(5):
        before = model.rows
        stale = [batch[2] for batch, _ in picker.batches(loader(index=True), model)]
        scored.append(model.rows - before)
        assert torch.equal(
            torch.cat(stale), torch.cat([b[2] for b, _ in fresh.batches(loader(index=True), model.inner)])
        )
    assert scored == [N, 0, N, 0, N]
    assert picker.counters()["forward_items"] == 3 * N
    assert picker.counters()["staleness"] == pytest.approx(2 / 5)


def test_the_training_forward_refreshes_stale_scores():
    model, picker = Counting(), SelectiveBackprop(1.0, stale=1, seed=1)
    list(picker.batches(loader(index=True), model))
    x, y = dataset().tensors
    picker.set_epoch(1)
    picker.observe(torch.arange(50), ta.score(model.inner.eval()(x[:50]), y[:50]))
    before = model.rows
    list(picker.batches(loader(index=True), model))
    assert model.rows - before == N - 50


def test_stale_scores_need_an_index():
    with pytest.raises(TypeError, match=r"loader must be one whose data set is a torchassay.Indexed, for stale scores"):
        next(SelectiveBackprop(stale=2).batches(loader(), network()))


def test_a_state_brings_the_window_and_the_scores_along(tmp_path):
    model = network()
    first, second = (SelectiveBackprop(1.0, stale=2, seed=1) for _ in range(2))
    list(first.batches(loader(index=True), model))
    first.save(tmp_path / "state")
    second.load(tmp_path / "state")
    one, two = ([b[2].tolist() for b, _ in p.batches(loader(index=True), model)] for p in (first, second))
    assert one == two and second.counters()["forward_items"] == N == first.counters()["forward_items"]


def test_bad_arguments():
    for arguments, message in (
        ({"warmup_epochs": -1}, "SelectiveBackprop: warmup_epochs must be at least 0, got -1"),
        ({"stale": 0.5}, "SelectiveBackprop: stale must be an int, got float"),
        ({"keep": 0}, "SelectiveBackprop: keep must be in (0, 1], got 0"),
        (
            {"keep": 0.5, "start": 0.9, "end": 0.5},
            "SelectiveBackprop: start and end must be 0 <= start <= end <= 1, got 0.9 and 0.5",
        ),
        (
            {"keep": 0.5},
            "SelectiveBackprop: steps must be the number of steps of the whole training, of which start and end are "
            "shares, got None",
        ),
        ({"beta": -1.0}, "History: beta must be at least 0 and finite, got -1.0"),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            SelectiveBackprop(**arguments)
        assert str(error.value) == message
    with pytest.raises(ValueError, match=r"signal must be one of loss, .*, random, got 'hardness'"):
        SelectiveBackprop(signal="hardness")


def test_regroups_at_the_loaders_size():
    assert all(len(weight) <= B for _, weight in SelectiveBackprop(0.5, seed=1).batches(loader(), network()))
