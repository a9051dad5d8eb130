"""The traps that `torchassay doctor` knows, where none of the trainers is installed."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
import torchassay as ta
from click.testing import CliRunner
from torch.utils.data import DataLoader, TensorDataset
from torchassay.cli import main
from torchassay.integrations import traps
from torchassay.samplers import BalanceAware, InfoBatch, OnlineImportance, SelectiveBackprop, Shuffle

DATA = ta.Indexed(TensorDataset(torch.arange(43.0)))


def texts(findings) -> list[str]:
    return [finding.text for finding in findings]


def test_a_loader_that_fits_has_no_finding():
    sampler = Shuffle(DATA, batch_size=5)
    loader = DataLoader(DATA, batch_size=5, sampler=sampler, num_workers=2)
    assert texts(traps.of_loader(loader, sampler)) == []


def test_loaders():
    sampler = OnlineImportance(DATA, batch_size=5)
    assert texts(traps.of_loader([1], sampler)) == ["loader must be a torch.utils.data.DataLoader, got list"]
    loader = DataLoader(DATA.dataset, batch_size=4, shuffle=True, num_workers=2, in_order=False)
    found = list(traps.of_loader(loader, sampler))
    assert texts(found) == [
        "the loader draws from a RandomSampler: DataLoader(..., sampler=sampler) with the OnlineImportance itself, and "
        "without shuffle=True",
        "the loader's batch_size is 4, the sampler's 5: DataLoader(batch_size=5)",
        "batches do not say which samples they hold: torchassay.Indexed(dataset) for the loader and the sampler",
        "batches may come in another order than they were drawn in: DataLoader(in_order=True)",
        "OnlineImportance's batches are drawn 4 batches ahead, from scores that old: num_workers=0 draws from the "
        "latest, fewer workers or a smaller prefetch_factor from later ones",
    ]
    assert [finding.wrong for finding in found] == [True, True, True, True, False]


def test_batches_are_as_old_as_the_finding_says():
    """What the loader draws ahead, counted."""
    sampler = OnlineImportance(DATA, batch_size=5)
    loader = DataLoader(DATA, batch_size=5, sampler=sampler, num_workers=1, prefetch_factor=3)
    next(iter(loader))
    (finding,) = traps.of_loader(loader, sampler)
    assert "drawn 3 batches ahead" in finding.text and len(sampler.state_dict()["own"]["queue"]) == 3 + 1


def test_whose_epochs_change_their_length():
    changing = [
        InfoBatch(43, batch_size=5, epochs=3),
        OnlineImportance(43, batch_size=5, keep=0.9),
        BalanceAware(43, batch_size=5, scheduler="heuristic"),
    ]
    assert all(map(traps.changes_length, changing))
    fixed = [Shuffle(43, batch_size=5), OnlineImportance(43, batch_size=5), BalanceAware(43, batch_size=5)]
    assert not any(map(traps.changes_length, fixed))


def test_batch_norm():
    plain, normed = torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    weighted, lone = OnlineImportance(43, batch_size=5), Shuffle(43, batch_size=6)
    assert texts(traps.of_model(plain, weighted)) == texts(traps.of_model(plain, lone)) == []
    assert [finding.wrong for finding in traps.of_model(normed, weighted)] == [False]
    assert [finding.wrong for finding in traps.of_model(normed, lone)] == [True]
    assert texts(traps.of_model(normed, Shuffle(43, batch_size=6, drop_last=True))) == []


def test_a_picker_alone_among_several():
    assert texts(traps.of_picker(SelectiveBackprop(), 1)) == []
    fix = "SelectiveBackprop(group=torch.distributed.group.WORLD)"
    assert texts(traps.of_picker(SelectiveBackprop(), 2)) == [f"each process divides by what it picked alone: {fix}"]


@pytest.mark.parametrize(
    "library, line",
    [
        ("lightning", 'SamplerCallback needs Lightning: pip install "lightning>=2.6"'),
        ("transformers", 'SamplerMixin needs Transformers: pip install "transformers[torch]>=5.23"'),
        ("accelerate", 'register needs Accelerate: pip install "accelerate>=1.15"'),
    ],
)
def test_a_missing_library_is_named(monkeypatch, library, line):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"torchassay.integrations.{library}", raising=False)
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(f"torchassay.integrations.{library}")
    assert str(error.value) == line


def test_what_is_to_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training_of_mine.py").write_text("number = 3\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for path, got in (
        ("trainer", "must be package.module:name or path.py:name, got 'trainer'"),
        ("training_of_mine.py:t", "must be a name in 'training_of_mine.py', got 't'"),
    ):
        result = CliRunner().invoke(main, ["doctor", path])
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"torchassay doctor: trainer {got}\n")
    result = CliRunner().invoke(main, ["doctor", "training_of_mine.py:number"])
    expected = "a trainer of Lightning, Transformers or Accelerate"
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"torchassay doctor: check: trainer must be {expected}, got int\n"
