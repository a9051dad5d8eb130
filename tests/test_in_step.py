"""The in-step protocol: what a pick's mean is, and what comes out of `batches`."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from small import B, D, N, dataset, loader, network, plain, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchassay.samplers import BatchTrimming, SelectiveBackprop
from torchassay.samplers.in_step import Chosen, InStep, Pick


class Every(InStep):
    """Picks each k-th sample with weight 2."""

    def __init__(self, k: int, **common):
        super().__init__(("loss",), **common)
        self.k = k

    def _choose(self, scores, index, mask):
        weight = torch.zeros(len(scores["loss"]))
        weight[:: self.k] = 2.0
        return Chosen(weight, (weight > 0).sum())


@pytest.mark.parametrize("form", ["pick", "batches"])
@pytest.mark.parametrize("method", ["sb", "trimming"])
def test_with_selection_off_training_is_the_plain_loop_to_the_bit(form, method):
    picker = SelectiveBackprop(beta=0.0) if method == "sb" else BatchTrimming(p=1.0)

    def picked(model):
        for x, y in loader():
            loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=picker.needs)
            yield picker.pick(s).mean(loss)

    def compacted(model):
        for (x, y), weight in picker.batches(loader(), model):
            yield (weight * ta.cross_entropy(model(x), y, reduction="none")).mean()

    expected = train(plain, network())
    found = train(picked if form == "pick" else compacted, network())
    assert picker.step == 55
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_a_mean_is_over_what_was_picked():
    loss = torch.tensor([1.0, float("nan"), 3.0, 7.0], requires_grad=True)
    mask = torch.tensor([True, False, True, True])
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    found = Pick(weight, mask, torch.tensor(3.0)).mean(loss)
    found.backward()
    assert found.item() == pytest.approx((1 + 6 + 3.5) / 3)
    assert loss.grad.tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0.5 / 3])
    assert Pick(weight, mask, torch.tensor(6.0), world=2).mean(loss).item() == pytest.approx(10.5 / 3)


def test_nothing_picked_is_zero_with_a_graph():
    loss = torch.tensor([float("inf"), 2.0], requires_grad=True)
    found = Pick(torch.zeros(2), torch.zeros(2, dtype=torch.bool), torch.tensor(0.0)).mean(loss)
    found.backward()
    assert found.item() == 0 and loss.grad.tolist() == [0, 0]


def test_dropped_samples_have_no_gradient():
    model = network().eval()
    x, y = dataset(B).tensors
    x.requires_grad_()
    loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=("loss",))
    pick = Every(3).pick(s)
    pick.mean(loss).backward()
    assert (x.grad[~pick.mask] == 0).all() and (x.grad[pick.mask] != 0).any(1).all()


def test_tokens_are_picked_as_rows_are():
    loss = torch.rand(4, 5)
    pick = Every(2).pick({"loss": loss})
    assert pick.weight.shape == (4, 5) and torch.equal(pick.weight.reshape(-1), torch.tensor([2.0, 0.0] * 10))
    assert pick.mean(loss).item() == pytest.approx(float((loss * pick.weight).sum() / 10))


def test_batches_regroup_what_is_picked():
    model = network()
    picker = Every(3)
    before = copy.deepcopy(model.state_dict())
    came = list(picker.batches(loader(index=True), model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # scored in eval mode
    assert all(module.training for module in model.modules())
    expected = [i for first in range(0, N, B) for i in range(first, min(first + B, N), 3)]
    assert torch.cat([batch[2] for batch, _ in came]).tolist() == expected
    assert [len(weight) for _, weight in came] == [B] * (len(expected) // B) + [len(expected) % B]
    x, y = dataset().tensors
    for (some, labels, index), weight in came:
        assert torch.equal(some, x[index]) and torch.equal(labels, y[index]) and (weight == 2).all()
    assert picker.epoch == 1 and picker.step == 11


def test_modes_are_restored_one_by_one():
    model = network()
    model[1].eval()
    next(Every(3).batches(loader(), model))
    assert [module.training for module in model] == [True, False, True, True, True] and model.training


def test_batches_of_dicts_take_a_forward():
    rows = [{"pixels": x, "label": y, "name": f"sample {i}"} for i, (x, y) in enumerate(dataset(52))]
    model = network()
    picker = Every(2)
    with pytest.raises(TypeError) as error:
        next(picker.batches(DataLoader(rows, batch_size=8), model))
    message = "batches: forward must be given for batches that are not (input, target, ...), got None and a dict"
    assert str(error.value) == message

    def forward(model, batch):
        return model(batch["pixels"]), batch["label"]

    came = list(picker.batches(DataLoader(rows, batch_size=8), model, forward))
    assert [name for batch, _ in came for name in batch["name"]] == [f"sample {i}" for i in range(0, 52, 2)]


def test_a_forward_may_give_scores():
    model = nn.Linear(D, 1)
    data = TensorDataset(torch.randn(40, D), torch.randn(40, 1))
    picker = BatchTrimming(p=0.25)
    came = list(picker.batches(DataLoader(data, batch_size=8), model, lambda m, b: ta.score_regression(m(b[0]), b[1])))
    loss = F.mse_loss(model(data.tensors[0]), data.tensors[1], reduction="none")[:, 0].detach()
    expected = torch.cat(
        [
            data.tensors[0][first : first + 8][loss[first : first + 8].topk(2).indices.sort().values]
            for first in range(0, 40, 8)
        ]
    )
    assert torch.equal(torch.cat([x for (x, _), _ in came]), expected)


def test_goes_on_in_the_middle_of_batches(tmp_path):
    model = network()
    picker = SelectiveBackprop(beta=1, seed=7)
    whole = [(batch[2].tolist(), weight.tolist()) for batch, weight in picker.batches(loader(index=True), model)]
    for at in range(1, len(whole)):
        first, second = SelectiveBackprop(beta=1, seed=7), SelectiveBackprop(beta=1, seed=7)
        scored = []
        data = loader(index=True)
        batches = first.batches((scored.append(1) or batch for batch in data), model)
        begun = [(batch[2].tolist(), weight.tolist()) for batch, weight in (next(batches) for _ in range(at))]
        first.save(tmp_path / "state")
        second.load(tmp_path / "state")
        rest = (batch for i, batch in enumerate(data) if i >= len(scored))
        again = [(batch[2].tolist(), weight.tolist()) for batch, weight in second.batches(rest, model)]
        # without the loader's own batch_size the first batch scored tells it
        assert [i for indices, _ in begun + again for i in indices] == [i for indices, _ in whole for i in indices]


def test_counters():
    picker = Every(2)
    corrupted = torch.arange(N) % 4 == 0
    picker.track(corrupted)
    list(picker.batches(loader(index=True), network()))
    counters = picker.counters()
    picks = [i for first in range(0, N, B) for i in range(first, min(first + B, N), 2)]
    assert counters["forward_items"] == N and counters["backward_items"] == len(picks)
    assert counters["noise_share"] == pytest.approx(sum(i % 4 == 0 for i in picks) / len(picks))
    assert counters["reuse"][:2] == [N - len(picks), len(picks)] and counters["effective_sample_size"] == 1
    assert counters["scoring_ms"] > 0 and counters["staleness"] == 0
    assert repr(picker) == f"Every(step 11: {N} forward, {len(picks)} backward, ESS 1.00, noise 50.0%)"


def test_effective_sample_size():
    class Weighted(InStep):
        def _choose(self, scores, index, mask):
            return Chosen(torch.tensor([1.0, 3.0, 0.0]), 2)

    picker = Weighted(("loss",))
    picker.pick({"loss": torch.zeros(3)})
    assert picker.counters()["effective_sample_size"] == pytest.approx(16 / 10 / 2)


def test_bad_calls():
    picker = Every(2)
    loss = torch.zeros(4)
    for call, message in (
        (lambda: picker.pick({"entropy": loss}), "Every.pick: scores must have loss, got entropy"),
        (lambda: picker.pick(loss), "Every.pick: scores must be Scores or a dict, got Tensor"),
        (
            lambda: picker.pick({"loss": loss}, index=torch.zeros(3, dtype=torch.int64)),
            "Every.pick: index must be int64 of shape (4,), got int64 of shape (3,)",
        ),
        (
            lambda: picker.pick({"loss": loss}, mask=torch.zeros(4)),
            "Every.pick: mask must be bool of shape (4,), got float32 of shape (4,)",
        ),
        (
            lambda: picker.pick({"loss": loss}).mean(loss.sum()),
            "Pick.mean: loss must have the shape of the scores, (4,) (reduction='none'), got ()",
        ),
        (lambda: picker.set_epoch(-1), "Every: epoch must be at least 0, got -1"),
        (lambda: Every(2, seed="x"), "Every: seed must be an int, got str"),
        (lambda: Every(2, seed=1 << 64), f"Every: seed must have 64 bits, got {1 << 64}"),
        (lambda: Every(2, group="x"), "Every: group must be a torch.distributed.ProcessGroup, got str"),
        (
            lambda: picker.load_state_dict(BatchTrimming(p=0.5).state_dict()),
            "Every: the state must have method='Every', got 'BatchTrimming'",
        ),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            call()
        assert str(error.value) == message


def test_a_single_sample_that_is_left_has_company():
    came = list(Every(B).batches(loader(index=True, n=B), network()))
    (_, _, index), weight = came[0]
    assert len(came) == 1 and index.tolist() == [0, 0] and weight.tolist() == [4.0, 0.0]
    assert list(Every(B).batches(loader(n=0), network())) == []


def test_scores_of_batches_are_one_a_row():
    def tokens(model, batch):
        return {"loss": torch.zeros(len(batch[0]), 3)}

    with pytest.raises(ValueError) as error:
        next(Every(2).batches(loader(), network(), tokens))
    assert str(error.value) == f"Every.batches: scores must be one a sample, shape ({B},), got ({B}, 3)"
