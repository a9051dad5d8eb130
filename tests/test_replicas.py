"""Cross-epoch samplers on several processes and machines: the union of indices and the memory of one process."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from ranks import on_ranks
from replicas import EPOCHS, FAR, LEAVES_OUT_OTHERS, METHODS, SIZES, ByLoss, known, loss, of_four, of_two, walk
from torchassay.samplers import Shuffle


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    return on_ranks(2, folder, of_two, folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> list[dict]:
    return on_ranks(4, tmp_path_factory.mktemp("four"), of_four)


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name].float(), value.float(), rtol=0, atol=0, equal_nan=True, msg=name)


def check(found: list[dict], name: str, size: str) -> None:
    """Compare with one process, whose batches the ranks take in turn, and whose rest they share."""
    n, batch_size, drop_last = SIZES[size]
    world, whole, done = len(found), METHODS[name](n, batch_size=batch_size), 0
    for epoch in range(EPOCHS):
        whole.set_epoch(epoch)
        plan = whole.plan().tolist()
        rounds = len(plan) // (batch_size * world)
        rest = len(plan) - rounds * batch_size * world
        a_rank = rounds + (rest > 0 and not drop_last)  # batches
        planned, left = plan[: rounds * batch_size * world], plan[rounds * batch_size * world :]
        batches = [part["seen"][done : done + a_rank] for part in found]
        assert list(chain(*(batches[k % world][k // world] for k in range(rounds * world)))) == planned
        if not drop_last:
            last = list(chain(*(part[rounds] for part in batches)))
            again = plan[:1] * max(0, world - rest)  # so that every rank has a batch
            assert sorted(last) == sorted(left + again)
        index = torch.tensor(planned if drop_last else plan)
        whole.memory.update(index, {"loss": loss(index, epoch)}, 0)
        done += a_rank
    for part in found:
        assert len(part["seen"]) == done
        same(part["known"], {name: value for name, value in known(whole).items() if name != "last_step"})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_ranks_do_together_what_one_process_does(two, four, name, size):
    assert [part["machines"] for part in (*two, *four)] == [2] * 6
    if (name, size) == LEAVES_OUT_OTHERS:
        pytest.skip("leaves out as many as fill no batch for every rank")
    for found in ([part["shared"] for part in two], [part["apart"] for part in two], [part["apart"] for part in four]):
        check([part[f"{name}, {size}"] for part in found], name, size)


def test_steps_are_those_of_one_process(two, four):
    whole = ByLoss(103, batch_size=10)
    walk(whole)
    for part in (*[part["shared"] for part in two], *[part["apart"] for part in (*two, *four)]):
        same(part["ByLoss, uneven"]["known"], known(whole))


def test_a_rank_that_is_late_counts_the_same_steps(two):
    """It would count those of the next plan, which is in the place of its own by then."""
    whole = METHODS["InfoBatch"](103, batch_size=10)
    walk(whole)
    for part in two:
        same(part["late"], known(whole))


def test_the_newest_row_counts(two):
    steps = {1: 9, 2: 9, 3: 5, 5: 8, 7: 8, 8: 9, 10: 9, 11: 9, FAR: 7, FAR + 1: 7, FAR + 2: 9}
    of = {1: 0, 2: 1, 5: 1, 7: 0, 8: 1, 10: 1, 11: 1, FAR: 0, FAR + 1: 1, FAR + 2: 1}
    for rank, part in enumerate(two):
        merged = part["merged"]
        assert dict(zip(merged["index"].tolist(), merged["last_step"].tolist(), strict=True)) == steps
        losses = {index: float(100 * of[index] + steps[index]) for index in of} | {3: float(rank)}
        assert dict(zip(merged["index"].tolist(), merged["loss"].tolist(), strict=True)) == losses


@pytest.mark.parametrize("when", ["ahead", "behind"])
def test_states_are_of_one_step_even_where_a_rank_was_further(two, when):
    for part in two:
        assert part[when]["seen"] == part["shared"]["ByLoss, uneven"]["seen"]
        same(part[when]["known"], part["shared"]["ByLoss, uneven"]["known"])


def test_states_can_be_loaded_on_fewer_machines(two):
    for part in two:
        assert part["moved"]["two to one"]["seen"] == part["shared"]["ByLoss, uneven"]["seen"]
        same(part["moved"]["two to one"]["known"], part["shared"]["ByLoss, uneven"]["known"])


def test_states_that_do_not_fit_are_refused_by_all_ranks(two):
    for part in two:
        moments = "ByLoss: the states of all ranks must be of one epoch, got [3, 4]"
        assert part["moved"]["moments"] == moments
        machines = "ByLoss: each machine must have the arrays of its machine in the state of its lowest rank"
        assert part["moved"]["one to two"] == f"{machines}, got ranks placed otherwise"


def test_another_number_of_processes_is_refused():
    state = Shuffle(103, batch_size=10, rank=0, num_replicas=2).state_dict()
    with pytest.raises(ValueError, match=r"^Shuffle: the state must have num_replicas=4, got 2$"):
        Shuffle(103, batch_size=10, rank=0, num_replicas=4).load_state_dict(state)


def test_processes_that_do_not_talk_cannot_plan_from_their_own_values():
    sampler = ByLoss(103, batch_size=10, rank=1, num_replicas=2)
    with pytest.raises(RuntimeError) as error:
        walk(sampler)
    assert str(error.value) == (
        "ByLoss: epoch 1 can't be planned from what rank 1 of 2 has observed alone; "
        "initialise torch.distributed, with as many processes, before making the sampler"
    )
    parts = [Shuffle(103, batch_size=10, rank=rank, num_replicas=2) for rank in range(2)]
    seen = [walk(part) for part in parts]
    for epoch in range(EPOCHS):
        union = chain(*(batch for part in seen for batch in part[6 * epoch : 6 * epoch + 6]))
        assert sorted(union) == list(range(103))
