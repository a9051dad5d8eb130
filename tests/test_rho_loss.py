"""RHO-Loss against its rule: the largest loss - irreducible loss of each pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from ranks import on_ranks
from small import B, N, dataset, loader, network, plain, train
from test_low import by_bisection
from torchassay.samplers import LOW, RHOLoss

IRREDUCIBLE = torch.rand(N, generator=torch.Generator().manual_seed(9))


def largest(reducible: list[float], fraction: float) -> list[int]:
    """The places of what is to be picked."""
    count = min(len(reducible), max(1, round(fraction * len(reducible))))
    return sorted(sorted(range(len(reducible)), key=lambda i: -reducible[i])[:count])


@pytest.mark.parametrize("n, fraction, kept", [(40, 0.1, 4), (45, 0.1, 4), (3, 0.1, 1), (8, 0.55, 4), (5, 1.0, 5)])
def test_the_largest_reducible_losses_are_picked(n, fraction, kept, random):
    loss = torch.rand(n, generator=random)
    index = torch.randperm(N, generator=random)[:n]
    pick = RHOLoss(IRREDUCIBLE, fraction).pick({"loss": loss}, index=index)
    expected = largest([float(loss[i]) - float(IRREDUCIBLE[index[i]]) for i in range(n)], fraction)
    assert pick.mask.nonzero()[:, 0].tolist() == expected and len(expected) == kept == pick.count
    assert float(pick.mean(loss)) == pytest.approx(sum(float(loss[i]) for i in expected) / kept)


def test_what_cannot_be_learnt_is_left_out():
    loss = torch.tensor([2.0, 5.0, 1.0, 4.0])
    pick = RHOLoss(torch.tensor([0.1, 4.9, 0.9, 0.5]), 0.5).pick({"loss": loss}, index=torch.arange(4))
    assert pick.mask.tolist() == [True, False, False, True] and (pick.weight[pick.mask] == 1).all()


def test_masked_rows_neither_count_nor_come(random):
    loss = torch.rand(20, generator=random)
    mask = torch.arange(20) % 2 == 0
    index = torch.where(mask, torch.arange(20), -1)  # what stands there does not matter
    pick = RHOLoss(IRREDUCIBLE, 0.3).pick({"loss": loss}, index=index, mask=mask)
    rows = mask.nonzero()[:, 0]
    expected = rows[largest((loss - IRREDUCIBLE[:20])[mask].tolist(), 0.3)]
    assert torch.equal(pick.mask.nonzero()[:, 0], expected) and pick.count == 3
    nothing = RHOLoss(IRREDUCIBLE).pick({"loss": loss}, index=index, mask=torch.zeros(20, dtype=torch.bool))
    assert not nothing.mask.any() and nothing.count == 0
    empty = RHOLoss(IRREDUCIBLE).pick({"loss": loss[:0]}, index=index[:0])
    assert empty.weight.shape == (0,) and empty.count == 0


def test_nan_comes_last_and_the_first_of_equals_is_picked():
    irreducible = torch.tensor([float("nan"), 0.0, 0.0, 0.0])
    picker = RHOLoss(irreducible, 0.5)
    loss = torch.tensor([9.0, 1.0, 1.0, 1.0])
    assert picker.pick({"loss": loss}, index=torch.arange(4)).mask.tolist() == [False, True, True, False]
    equal = RHOLoss(torch.zeros(1000), 0.5).pick({"loss": torch.ones(1000)}, index=torch.arange(1000))
    assert equal.mask[:500].all() and equal.count == 500
    loss = torch.tensor([0.0, float("nan"), -3.0, float("nan")])
    mask = torch.tensor([False, True, True, True])
    assert picker.pick({"loss": loss}, index=torch.arange(4), mask=mask).mask.tolist() == [False, True, True, False]


def test_nothing_waits_for_a_gpu():
    """Tensors without values: whoever asked for one would be told so."""
    picker = RHOLoss(torch.empty(90, device="meta"))
    scores, index = {"loss": torch.empty(30, device="meta")}, torch.empty(30, dtype=torch.int64, device="meta")
    mask = torch.empty(30, dtype=torch.bool, device="meta")
    assert picker.pick(scores, index=index).weight.is_meta
    assert picker.pick(scores, index=index, mask=mask).count.is_meta


def test_a_memorys_field_is_read_where_it_stands():
    memory = ta.SampleMemory(6)
    picker = RHOLoss(memory["loss"], 0.5)
    memory.update(torch.arange(6), {"loss": torch.tensor([0.0, 3.0, 0.0, 3.0, 0.0, 3.0])}, step=0)
    assert picker.pick({"loss": torch.ones(6)}, index=torch.arange(6)).mask.tolist() == [True, False] * 3


def test_each_batch_of_the_loader_is_a_pool():
    picker, model = RHOLoss(IRREDUCIBLE, 0.25), network()
    came = list(picker.batches(loader(index=True), model))
    x, y = dataset().tensors
    model.eval()
    assert len(came) == -(-N // B)
    for k, ((some, labels, index), weight) in enumerate(came):
        rows = slice(k * B, min((k + 1) * B, N))
        loss = F.cross_entropy(model(x[rows]), y[rows], reduction="none").detach()
        expected = [k * B + i for i in largest((loss - IRREDUCIBLE[rows]).tolist(), 0.25)]
        assert torch.equal(some, x[index]) and torch.equal(labels, y[index])
        if len(expected) == 1:  # beside it one that does not count
            assert index.tolist() == [*expected, 0] and weight.tolist() == [2, 0]
            assert k == N // B
        else:
            assert index.tolist() == expected and (weight == 1).all()
    counters = picker.counters()
    assert counters["forward_items"] == N and counters["backward_items"] == 10 * 5 + 1
    assert counters["reuse"][:2] == [N - 51, 51]


@pytest.mark.parametrize("form", ["pick", "batches"])
def test_with_everything_picked_training_is_the_plain_loop_to_the_bit(form):
    picker = RHOLoss(IRREDUCIBLE, 1.0)

    def picked(model):
        for x, y, index in loader(index=True):
            loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=picker.needs)
            yield picker.pick(s, index=index).mean(loss)

    def compacted(model):
        for (x, y, _), weight in picker.batches(loader(index=True), model):
            yield (weight * ta.cross_entropy(model(x), y, reduction="none")).mean()

    found = train(picked if form == "pick" else compacted, network())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, train(plain, network()), strict=True))


def picked(came) -> list[tuple[list[int], list[float]]]:
    """Indices and weights; what stands in where there are too few, differs after a resume."""
    return [(batch[2][weight > 0].tolist(), weight.tolist()) for batch, weight in came]


def test_goes_on_in_the_middle_of_batches(tmp_path):
    model, batches = network(), loader(index=True)
    whole = picked(RHOLoss(IRREDUCIBLE).batches(batches, model))
    for at in (1, 4, 10):
        first, second = RHOLoss(IRREDUCIBLE), RHOLoss(IRREDUCIBLE)
        begun = first.batches(batches, model)
        for _ in range(at):
            next(begun)
        first.save(tmp_path / "state")
        second.load(tmp_path / "state")

        class Rest:  # of the loader
            dataset = batches.dataset

            def __iter__(self, at=at):
                return (batch for k, batch in enumerate(batches) if k >= at)

        assert picked(second.batches(Rest(), model)) == whole[at:]
        assert second.step == len(whole) and second.epoch == 1


# ---- several processes


def part(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradients' norms of 20 and of 6 samples."""
    return torch.rand(2, (20, 6)[rank], generator=torch.Generator().manual_seed(rank)).unbind()


def on_rank(rank: int) -> dict:
    group = torch.distributed.group.WORLD
    loss, gamma = part(rank)
    index = torch.arange(len(loss)) + 20 * rank
    rho = RHOLoss(IRREDUCIBLE, 0.25, group=group)
    picked = rho.pick({"loss": loss}, index=index)
    low = LOW(0.05, group=group)
    weighed = low.pick({"grad_norm": gamma})
    data = ta.Indexed(torch.utils.data.TensorDataset(loss, gamma))
    batches = torch.utils.data.DataLoader(data, batch_size=8)
    columns = {"loss": loss, "grad_norm": gamma}

    def given(model, batch):
        return {name: column[batch[2]] for name, column in columns.items()}

    found = {"rho": picked.mask, "rho mean": picked.mean(loss), "low": weighed.weight, "low mean": weighed.mean(loss)}
    for name, picker in (("rho", RHOLoss(IRREDUCIBLE, 0.25, group=group)), ("low", LOW(0.05, group=group))):
        came = list(picker.batches(batches, torch.nn.Identity(), given))
        found[f"{name} came"] = [[batch[2], weight] for batch, weight in came]
    return found


def test_ranks_pick_and_weigh_their_own_parts(tmp_path):
    """Of RHOLoss and LOW at once, since processes take long to start."""
    ranks = on_ranks(2, tmp_path, on_rank)
    total = weighed = 0.0
    for rank, found in enumerate(ranks):
        loss, gamma = part(rank)
        expected = largest((loss - IRREDUCIBLE[20 * rank : 20 * rank + len(loss)]).tolist(), 0.25)
        assert found["rho"].nonzero()[:, 0].tolist() == expected
        total += sum(float(loss[i]) for i in expected)
        weights = by_bisection(gamma.tolist(), 0.05)
        assert found["low"].tolist() == pytest.approx(weights, rel=1e-4, abs=1e-6)
        weighed += sum(w * float(each) for w, each in zip(weights, loss, strict=True))
        for k, (index, weight) in enumerate(found["rho came"]):
            pool = slice(8 * k, 8 * k + 8)
            if len(loss[pool]):
                expected = [8 * k + i for i in largest((loss - IRREDUCIBLE[: len(loss)])[pool].tolist(), 0.25)]
                assert index[weight > 0].tolist() == expected
            else:  # it has nothing left to pick from
                assert weight.tolist() == [0.0, 0.0]
    assert float(sum(found["rho mean"] for found in ranks)) / 2 == pytest.approx(total / (5 + 2), rel=1e-5)
    assert float(sum(found["low mean"] for found in ranks)) / 2 == pytest.approx(weighed / 26, rel=1e-4)
    for name in ("rho came", "low came"):
        one, two = (found[name] for found in ranks)
        assert len(one) == len(two) and (name != "rho came" or len(one) == 3)
    # 2 and 2, 2 and none, 1 and none: the mean over ranks of their means is that over samples
    weights = [weight.tolist() for _, weight in ranks[0]["rho came"]]
    assert weights == [[1, 1], [2, 2], [4, 0]]


def test_bad_arguments():
    loss, index = {"loss": torch.rand(4)}, torch.tensor([0, 1, 7, 2])
    for call, message in (
        (lambda: RHOLoss([0.5]), "RHOLoss: irreducible must be a Tensor, got list"),
        (
            lambda: RHOLoss(torch.arange(5)),
            "RHOLoss: irreducible must be floating-point of shape (N,), got int64 of shape (5,)",
        ),
        (
            lambda: RHOLoss(torch.rand(5, 1)),
            "RHOLoss: irreducible must be floating-point of shape (N,), got float32 of shape (5, 1)",
        ),
        (lambda: RHOLoss(torch.rand(5), 0.0), "RHOLoss: fraction must be in (0, 1], got 0.0"),
        (lambda: RHOLoss(torch.rand(5)).pick(loss, index=index), "RHOLoss: index must be in [0, 5), got 7"),
        (lambda: RHOLoss(torch.rand(9)).pick(loss, index=index - 1), "RHOLoss: index must be in [0, 9), got -1"),
        (
            lambda: RHOLoss(torch.rand(5)).pick(loss),
            "RHOLoss: index must be given to pick, and come from a torchassay.Indexed in batches, got None",
        ),
        (
            lambda: next(RHOLoss(IRREDUCIBLE).batches(loader(), network())),
            "RHOLoss: index must be given to pick, and come from a torchassay.Indexed in batches, got None",
        ),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            call()
        assert str(error.value) == message
