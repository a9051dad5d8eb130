"""``SampleMemory`` against loops over samples."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchassay as ta
from missing import without
from torchassay import memory as module

FIELDS = {
    "loss": "last",
    "mean_loss": "mean of loss",
    "worst": "max of loss",
    "slow": "ema:0.9 of loss",
    "newest": "ema:0 of loss",
    "forgetting": "forgetting of target_margin",
}


def batches(count: int, n: int, size: int, nan: float = 0.1):
    """Batches of different samples with values of both signs, some NaN or infinite, and some margins of exactly 0."""
    generator = torch.Generator().manual_seed(3)
    for step in range(count):
        index = torch.randperm(n, generator=generator)[:size]
        loss, margin = torch.randn(2, size, generator=generator)
        draws = torch.rand(size, generator=generator)
        loss[draws < nan] = torch.nan
        margin[draws > 1 - nan] = torch.nan
        margin[(draws > 0.4) & (draws < 0.5)] = 0.0
        loss[(draws > 0.5) & (draws < 0.51)] = torch.inf
        yield index, {"loss": loss, "target_margin": margin, "entropy": torch.full((size,), torch.nan)}, 3 * step


def by_hand(seen: list[float], rule: str, decay: float = 0.0) -> float:
    """What a rule makes of all values that a sample had, in order, with NaN where there was none."""
    found, learnt, before = math.nan, False, False
    for visit, value in enumerate(seen, 1):
        if math.isnan(value):
            continue
        if rule == "forgetting":
            correct = value > 0
            forgotten = before and not correct
            found = (found if learnt else 0.0) + forgotten if learnt or correct else math.inf
            learnt, before = learnt or correct, correct
        elif math.isnan(found) or rule == "last":
            found = value
        elif rule == "max":
            found = max(found, value)
        elif rule == "mean":
            found = (found * (visit - 1) + value) / visit
        else:
            found = decay * found + (1 - decay) * value if decay else value
    return found


def test_the_rules_are_those_of_a_loop_over_samples():
    n = 50
    memory = ta.SampleMemory(n, FIELDS)
    seen = {"loss": [[] for _ in range(n)], "target_margin": [[] for _ in range(n)]}
    last = [-1] * n
    for index, scores, step in batches(60, n, 20):
        memory.update(index, ta.Scores(scores), step)
        for at, i in enumerate(index.tolist()):
            last[i] = step
            for signal, values in seen.items():
                values[i].append(scores[signal][at].item())
    expected = {
        "loss": [by_hand(values, "last") for values in seen["loss"]],
        "mean_loss": [by_hand(values, "mean") for values in seen["loss"]],
        "worst": [by_hand(values, "max") for values in seen["loss"]],
        "slow": [by_hand(values, "ema", 0.9) for values in seen["loss"]],
        "newest": [by_hand(values, "ema", 0.0) for values in seen["loss"]],
        "forgetting": [by_hand(values, "forgetting") for values in seen["target_margin"]],
    }
    for name, values in expected.items():
        torch.testing.assert_close(memory[name], torch.tensor(values), rtol=2e-6, atol=2e-6, equal_nan=True)
        assert memory[name].dtype == torch.float32
    assert memory.visits.tolist() == [len(values) for values in seen["loss"]]
    assert memory.last_step.tolist() == last
    assert max(expected["forgetting"]) > 3 and math.inf in expected["worst"]


def test_the_mean_is_that_of_all_visits():
    memory = ta.SampleMemory(1, {"loss": "mean"})
    values = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    for step, value in enumerate(values):
        memory.update(torch.tensor([0]), {"loss": value[None]}, step)
    assert memory["loss"].item() == pytest.approx(values.double().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("visits", "events"),
    [
        ([False, False], math.inf),
        ([True, True], 0),
        ([False, True], 0),
        ([True, False], 1),
        ([True, False, False, True], 1),
        ([False, True, False, True, False], 2),
    ],
)
def test_forgetting_events(visits, events):
    """Toneva et al.: transitions from correct to incorrect; what was never learnt is forgotten most."""
    memory = ta.SampleMemory(1, {"correct": "forgetting"})
    for step, correct in enumerate(visits):
        memory.update(torch.tensor([0]), {"correct": torch.tensor([correct])}, step)
    assert memory["correct"].item() == events


def test_nan_never_enters_and_its_visit_counts():
    rules = {"a": "last of x", "b": "mean of x", "c": "max of x", "d": "ema:0.5 of x", "e": "forgetting of x"}
    memory = ta.SampleMemory(2, rules)
    for step, value in enumerate([torch.nan, 4.0, torch.nan, 1.0]):
        memory.update(torch.tensor([1]), {"x": torch.tensor([value])}, step)
        if step == 0:
            assert all(memory[name].isnan().all() for name in rules)
    assert [memory[name][1].item() for name in rules] == [1.0, (3 * 4.0 + 1.0) / 4, 4.0, 2.5, 0.0]
    assert memory.visits.tolist() == [0, 4] and memory.last_step.tolist() == [-1, 3]
    memory.update(torch.tensor([0]), {"x": torch.tensor([torch.inf])}, 4)
    memory.update(torch.tensor([0]), {"x": torch.tensor([-torch.inf])}, 5)
    assert memory["b"][0] == torch.inf and memory["d"][0] == torch.inf  # of inf and -inf there is no mean


def test_of_a_sample_that_stands_twice_in_a_batch_the_last_place_counts():
    memory = ta.SampleMemory(3, {"loss": "last", "mean": "mean of loss"})
    memory.update(torch.tensor([2, 2, 0]), {"loss": torch.tensor([1.0, 5.0, 7.0])}, torch.tensor([4, 6, 8]))
    assert memory.visits.tolist() == [1, 0, 1] and memory.last_step.tolist() == [8, -1, 6]
    torch.testing.assert_close(memory["mean"], torch.tensor([7.0, torch.nan, 5.0]), equal_nan=True)


def test_visits_stay_at_their_largest_number():
    memory = ta.SampleMemory(1, {"loss": "mean"})
    memory.visits.numpy()[0] = 65533
    memory.state_dict()["loss"][0] = 0.0
    for step in range(4):
        memory.update(torch.tensor([0]), {"loss": torch.ones(1)}, step)
        assert memory.visits.item() == min(65534 + step, 65535)
    share = 65533 / 65534 * (65534 / 65535) ** 3  # of the old mean
    assert memory["loss"].item() == pytest.approx(1 - share, rel=1e-3)


def test_half_precision_bool_and_whole_numbers_are_taken_as_float32():
    memory = ta.SampleMemory(2, {"loss": "last"})
    for dtype in (torch.float64, torch.bfloat16, torch.bool, torch.int64):
        values = torch.tensor([1.0, 0.0]).to(dtype)
        memory.update(torch.arange(2), {"loss": values}, 0)
        assert memory["loss"].tolist() == [1.0, 0.0]


def test_values_with_a_graph_are_detached():
    memory = ta.SampleMemory(2)
    loss = torch.tensor([1.0, 2.0], requires_grad=True)
    memory.update(torch.arange(2), {"loss": loss}, 0)
    assert not memory["loss"].requires_grad
    loss.data[0] = 9.0
    assert memory["loss"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("fields", [{"loss": "last"}, FIELDS])
@pytest.mark.parametrize("mapped", [False, True])
def test_bytes_a_sample(fields, mapped, tmp_path):
    n = 1000
    memory = ta.SampleMemory(n, fields, path=tmp_path / "memory" if mapped else None)
    assert memory.nbytes == n * (4 * len(fields) + 6)
    assert memory.nbytes == sum(memory.state_dict()[name].nbytes for name in (*fields, "visits", "last_step"))
    if mapped:
        files = [file for file in (tmp_path / "memory").iterdir() if file.suffix != ".json"]
        assert sum(file.stat().st_size for file in files) == memory.nbytes


def test_fields_are_read_without_a_copy():
    memory = ta.SampleMemory(3, FIELDS)
    loss = memory["loss"]
    memory.update(torch.tensor([1]), {"loss": torch.tensor([2.0]), "target_margin": torch.tensor([1.0])}, 7)
    assert loss[1] == 2.0 and loss.data_ptr() == memory["loss"].data_ptr()
    assert memory.visits.data_ptr() == memory.visits.data_ptr()


class LateCopies:
    """In the place of copies from a GPU: host tensors that hold nonsense until one waits for their event."""

    def __init__(self):
        self.waited = 0

    def __call__(self, tensors):
        copies = [torch.zeros_like(value) for value in tensors]
        originals = [value.clone() for value in tensors]
        late = self

        class Event:
            def synchronize(self):
                late.waited += 1
                for copy, original in zip(copies, originals, strict=True):
                    copy.copy_(original)

        return copies, [Event()]


def test_updates_from_a_gpu_wait_until_they_are_read(monkeypatch):
    late = LateCopies()
    monkeypatch.setattr(module, "_on_host", late)
    memory, expected = ta.SampleMemory(40, FIELDS), ta.SampleMemory(40, FIELDS)
    updates = list(batches(80, 40, 10))
    for done, (index, scores, step) in enumerate(updates, 1):
        memory.update(index, scores, step)
        assert late.waited == max(0, done - 32)  # a step waits for one that is 32 steps old, and only for it
    monkeypatch.undo()
    for index, scores, step in updates:
        expected.update(index, scores, step)
    for name in FIELDS:
        torch.testing.assert_close(memory[name], expected[name], rtol=0, atol=0, equal_nan=True)
    assert late.waited == 80 and torch.equal(memory.visits, expected.visits)

    monkeypatch.setattr(module, "_on_host", late)
    memory.update(torch.tensor([40]), updates[0][1] | dict.fromkeys(("loss", "target_margin"), torch.ones(1)), 0)
    with pytest.raises(ValueError, match=r"^SampleMemory.update: index must be in \[0, 40\), got 40$"):
        memory.visits.tolist()
    assert torch.equal(memory.visits, expected.visits)
    for read in (memory.state_dict, lambda: memory.top("loss", 1), lambda: memory.last_step, memory.clear):
        memory.update(*updates[0])
        assert len(memory._pending) == 1
        read()
        assert not memory._pending


def test_host_tensors_that_wait_beside_those_of_a_gpu_are_copies():
    index = torch.arange(3)
    (copied,), events = module._on_host([index])
    index.zero_()
    assert copied.tolist() == [0, 1, 2] and not events


def test_a_loaded_state_is_not_changed_by_updates_from_before(monkeypatch):
    memory = ta.SampleMemory(2)
    state = ta.SampleMemory(2).state_dict()
    monkeypatch.setattr(module, "_on_host", LateCopies())
    memory.update(torch.arange(2), {"loss": torch.ones(2)}, 0)
    memory.load_state_dict(state)
    assert memory["loss"].isnan().all() and memory.last_step.tolist() == [-1, -1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_updates_from_a_gpu():
    memory, expected = ta.SampleMemory(40, FIELDS), ta.SampleMemory(40, FIELDS)
    for at, (index, scores, step) in enumerate(batches(80, 40, 10)):
        expected.update(index, scores, step)
        on_gpu = {name: value.cuda() for name, value in scores.items()}
        memory.update(index.cuda() if at % 2 else index, on_gpu, step)
        for value in on_gpu.values():
            value.zero_()  # after the copy, in the order of the stream
    for name in FIELDS:
        torch.testing.assert_close(memory[name], expected[name], rtol=0, atol=0, equal_nan=True)


PROCESS = """
import sys, torch, torchassay as ta
rank = int(sys.argv[2])
memory = ta.SampleMemory(1000, {"loss": "last", "worst": "max of loss"}, path=sys.argv[1])
mine = torch.arange(rank, 1000, 2)
for step in range(5):
    memory.update(mine, {"loss": 1000.0 * rank + mine - step}, step + 10 * rank)
"""


def test_two_processes_map_one_folder(tmp_path):
    path = tmp_path / "new" / "memory"
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(path), str(rank)]) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    memory = ta.SampleMemory(1000, {"loss": "last", "worst": "max of loss"}, path=path)
    index = torch.arange(1000)
    assert torch.equal(memory["worst"], 1000.0 * (index % 2) + index)
    assert torch.equal(memory["loss"], memory["worst"] - 4)
    assert torch.equal(memory.last_step, (4 + 10 * (index % 2)).int())
    assert set(memory.visits.tolist()) == {5}
    assert [file.name for file in path.parent.iterdir()] == ["memory"]  # the slower one cleaned up
    other = ta.SampleMemory(1000, {"loss": "last", "worst": "max of loss"}, path=path)
    memory.clear()
    assert other["loss"].isnan().all() and other.last_step.max() == -1 and not other.visits.numpy().any()


def test_the_faster_of_two_processes_makes_the_folder(tmp_path, monkeypatch):
    """Between the look at the folder and its renaming another process has made and filled it."""
    path, rename = tmp_path / "memory", module.Path.rename

    def late(self, target):
        monkeypatch.setattr(module.Path, "rename", rename)
        ta.SampleMemory(2, path=path).update(torch.tensor([1]), {"loss": torch.tensor([3.0])}, 5)
        return rename(self, target)

    monkeypatch.setattr(module.Path, "rename", late)
    assert ta.SampleMemory(2, path=path)["loss"][1] == 3.0
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OSError):
        ta.SampleMemory(3, path=tmp_path / "full")
    assert [file.name for file in tmp_path.iterdir()] == ["full"]
    ta.SampleMemory(3, path=tmp_path / "memory")
    for n, fields in ((4, None), (3, {"loss": "mean"})):
        asked = {"n": n, "fields": fields or {"loss": "last"}}
        with pytest.raises(ValueError) as error:
            ta.SampleMemory(n, fields, path=tmp_path / "memory")
        got = "{'n': 3, 'fields': {'loss': 'last'}}"
        assert str(error.value) == f"SampleMemory: path must hold a memory of {asked}, got {got}"
    with open(tmp_path / "memory" / "visits.uint16", "ab") as file:
        file.truncate(4)
    with pytest.raises(ValueError, match=r"^SampleMemory: visits.uint16 must have 6 bytes, got 4$"):
        ta.SampleMemory(3, path=tmp_path / "memory")


def test_the_largest_and_the_smallest_values():
    memory = ta.SampleMemory(9, {"loss": "last"})
    memory.update(torch.tensor([1, 2, 3, 5, 7, 8]), {"loss": torch.tensor([2.0, -1.0, 2.0, 7.0, torch.inf, 2.0])}, 0)
    values, index = memory.top("loss", 4)
    assert values.tolist() == [torch.inf, 7.0, 2.0, 2.0] and index.tolist() == [7, 5, 1, 3]
    values, index = memory.top("loss", 2, largest=False)
    assert values.tolist() == [-1.0, 2.0] and index.tolist() == [2, 1]
    assert memory.top("loss", 100)[1].tolist() == [7, 5, 1, 3, 8, 2]  # only those with a value
    assert memory.top("loss", 0)[1].tolist() == []


def test_the_state_is_taken_up_where_it_was_left(tmp_path):
    updates = list(batches(30, 40, 10))
    straight, first, second = (ta.SampleMemory(40, FIELDS) for _ in range(3))
    for update in updates[:15]:
        straight.update(*update)
        first.update(*update)
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for update in updates[15:]:
        straight.update(*update)
        second.update(*update)
    for mine, theirs in zip(straight.state_dict().values(), second.state_dict().values(), strict=True):
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    state = first.state_dict()
    first.update(*updates[20])
    assert torch.equal(state["visits"].int(), first.visits.int())  # by reference
    assert not torch.equal(first.visits, second.visits)  # and loaded as a copy


def test_a_table_in_a_file(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    memory = ta.SampleMemory(40, FIELDS)
    for update in batches(5, 40, 10):
        memory.update(*update)
    memory.to_parquet(tmp_path / "memory.parquet")
    table = parquet.read_table(tmp_path / "memory.parquet")
    assert table.column_names == ["index", *FIELDS, "visits", "last_step"]
    assert table["index"].to_pylist() == list(range(40))
    for name in FIELDS:
        np.testing.assert_array_equal(table[name].to_numpy(), memory[name].numpy())
    assert table["visits"].to_pylist() == memory.visits.tolist()
    assert table["last_step"].to_pylist() == memory.last_step.tolist()


def test_a_table_needs_pyarrow(tmp_path, monkeypatch):
    without(monkeypatch, "pyarrow")
    with pytest.raises(ImportError, match=r'^SampleMemory.to_parquet needs pyarrow: pip install "torchassay\[io\]"$'):
        ta.SampleMemory(1).to_parquet(tmp_path / "memory.parquet")
