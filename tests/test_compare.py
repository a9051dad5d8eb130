"""`compare` from end to end on small problems: budgets, what is written, and what is told in place of a training."""

from __future__ import annotations

import json
import re
import sys
import types

import comparing
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from comparing import CLASSES, TEST, TRAIN
from torch import nn
from torch.nn import functional as F
from torchassay import samplers
from torchassay.cli import main
from torchassay.compare import compare, methods, run

ONE = [name for name, kind in methods.KINDS.items() if kind.modalities == 1]


@pytest.fixture(autouse=True)
def reports(monkeypatch):
    """What has been asked for in the place of reports, which have tests of their own."""
    asked = []
    module = types.ModuleType("torchassay.compare.report")
    module.write = asked.append
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("torchassay.compare.report", module, raising=False)
    return asked


def mine(data, chosen, out, **options):
    return compare(data, chosen, out=out, progress=False, **({"batch_size": 16} | options))


def command(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def every_name():
    """All methods of one modality; MoMBS with its plan from the second epoch on."""
    return ",".join("mombs:pivot=0" if name == "mombs" else name for name in ONE)


def test_every_method_learns_within_the_budget(tmp_path, reports):
    found = mine(comparing.data(), every_name(), tmp_path, epochs=4, corrupt="labels:0.2")
    assert reports == [tmp_path] and [entry["seed"] for entry in found["runs"]] == [0] * len(ONE)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    about = found["about"]
    assert about["corrupted"] == TRAIN // 5 and about["changed"] < TRAIN // 5
    shape = {"name": "blobs", "train": TRAIN, "test": TEST, "classes": CLASSES, "shape": [1, 4, 4], "modalities": 1}
    assert about["data"] == shape
    for entry in found["runs"]:
        last, name = entry["epochs"][-1], entry["method"]
        assert entry["done"] and min(record["test_error"] for record in entry["epochs"]) < 0.25, name  # blindly: 0.75
        assert 4 * TRAIN <= last["backward"] < 4 * TRAIN + 16, name
        assert all(record["backward"] < 4 * TRAIN for record in entry["epochs"][:-1])
        arrays = np.load(tmp_path / entry["arrays"])
        picks = arrays["picks"]
        if name != "low":  # which gives some of what is back-propagated weight 0
            assert last["backward"] - len(entry["epochs"]) <= picks.sum() <= last["backward"], name
        share = picks[arrays["corrupted"]].sum() / picks.sum()
        assert share == pytest.approx(entry["counters"]["noise_share"]), name
        spent = np.diff([0, *(record["backward"] for record in entry["epochs"])])
        by_epoch = np.dot(spent, [record["noise_share"] or 0 for record in entry["epochs"]]) / spent.sum()
        assert share == pytest.approx(by_epoch, abs=0.02), name
        assert entry["counters"]["reuse"] == np.bincount(picks.clip(max=10), minlength=11).tolist()
        assert 0 <= last["noise_share"] <= 1 and 0 < last["ess"] <= 1 + 1e-6
        for array in ("loss", "entropy", "target_margin", "loss_last"):
            np.testing.assert_array_equal(np.isnan(arrays[array]), picks == 0)
        np.testing.assert_array_equal(arrays["changed"], arrays["given"] != arrays["true"])
        assert ("uncertainty" in arrays) == (name == "mombs:pivot=0")


def test_several_modalities(tmp_path):
    found = mine(comparing.data(modalities=2), "sgd,sbe,bss-h,bss-l,mombs:pivot=0,rho", tmp_path, epochs=4)
    assert found["about"]["data"]["shape"] == [[1, 4, 4], [1, 4, 4]] and found["about"]["data"]["modalities"] == 2
    for entry in found["runs"]:
        assert min(record["test_error"] for record in entry["epochs"]) < 0.15, entry["method"]
        assert entry["epochs"][-1]["noise_share"] is None and "noise_share" not in entry["counters"]
    sgd, bss = found["runs"][0]["epochs"], found["runs"][2]["epochs"]
    assert bss[0]["backward"] < TRAIN == sgd[0]["backward"]  # a growing share of the balanced ones
    assert bss[0]["forward"] == TRAIN + bss[0]["backward"]  # all are measured first


def test_sgd_is_the_plain_loop(tmp_path):
    """The same network, order and optimizer, written out."""
    data = comparing.data()
    found = mine(data, "sgd", tmp_path, epochs=3, seeds=[5], lr=0.05, schedule="cosine")
    assert (np.load(tmp_path / found["runs"][0]["arrays"])["picks"] == 3).all()
    torch.manual_seed(5)
    layers = (nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    model = nn.Sequential(nn.Flatten(), *layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    pixels = data.inputs[0].double()
    scaled = lambda x: ((x - pixels.mean()) / pixels.std(correction=0)).float()  # noqa: E731
    order, step, losses = samplers.Shuffle(TRAIN, batch_size=16, seed=5), 0, np.zeros(TRAIN)
    for record in found["runs"][0]["epochs"]:
        order.set_epoch(record["epoch"])
        seen = []
        for rows in torch.from_numpy(order.plan().astype(np.int64)).split(16):
            optimizer.param_groups[0]["lr"] = 0.025 * (1 + np.cos(np.pi * step * 16 / (3 * TRAIN)))
            loss = F.cross_entropy(model(scaled(data.inputs[0][rows])), data.labels[rows], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            step += 1
            losses[rows] += loss.detach().numpy() / 3
            seen += loss.tolist()
        with torch.no_grad():
            logits = model(scaled(data.test_inputs[0]))
        assert record["test_error"] == (logits.argmax(1) != data.test_labels).double().mean()
        assert record["test_loss"] == pytest.approx(float(F.cross_entropy(logits, data.test_labels)), rel=1e-4)
        assert record["train_loss"] == pytest.approx(np.mean(seen), rel=1e-4)
        assert record["backward"] == record["forward"] == (record["epoch"] + 1) * TRAIN and record["ess"] == 1
    np.testing.assert_allclose(np.load(tmp_path / found["runs"][0]["arrays"])["loss"], losses, rtol=2e-3, atol=1e-6)


def test_forwards_are_counted(tmp_path):
    chosen = "sb:beta=0,vr-hu:gate=false,mombs:pivot=0,stale-sb:beta=0"
    found = mine(comparing.data(), chosen, tmp_path, epochs=2, budget="epochs")
    forward = [[record["forward"] / TRAIN for record in entry["epochs"]] for entry in found["runs"]]
    assert forward == [
        [2, 4],  # scored and trained on
        [1.5, 3],  # half is drawn
        [3, 6],  # two noisy forwards beside
        [2, 3],  # what the training forward of the first epoch told is still good
    ]


def test_budget_of_epochs(tmp_path):
    found = mine(comparing.data(), "sgd,sb:beta=3,ohem:p=0.25,rho:fraction=0.25", tmp_path, epochs=3, budget="epochs")
    assert [len(entry["epochs"]) for entry in found["runs"]] == [3] * 4
    spent = [entry["epochs"][-1]["backward"] / (3 * TRAIN) for entry in found["runs"]]
    assert spent[0] == 1 and spent[2:] == pytest.approx([0.25, 0.25], abs=0.02)
    assert 0.05 < spent[1] < 0.3  # a quarter of steady losses; of falling ones fewer are above the window's


def test_budget_of_seconds(tmp_path):
    found = mine(comparing.data(), "sbe,sgd", tmp_path, epochs=3, budget="seconds", seeds=2)
    assert [entry["method"] for entry in found["runs"]] == ["sgd", "sbe"] * 2
    for sgd, sbe in (found["runs"][:2], found["runs"][2:]):
        assert sgd["epochs"][-1]["backward"] == 3 * TRAIN
        limit = sgd["epochs"][-1]["seconds"]
        assert sbe["epochs"][-1]["seconds"] >= limit
        assert all(record["seconds"] < limit for record in sbe["epochs"][:-1])


def test_a_method_that_picks_nothing_comes_to_an_end(tmp_path):
    class Constant(nn.Module):
        """All losses are equal, so none is above another."""

        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(CLASSES))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    entry, *_ = mine(comparing.data(), "sb", tmp_path, epochs=1, model=Constant)["runs"]
    assert len(entry["epochs"]) == 20 and entry["epochs"][-1]["backward"] == 0
    assert entry["epochs"][-1]["train_loss"] is None and entry["epochs"][-1]["noise_share"] is None


def test_a_single_last_sample_and_batchnorm(tmp_path, threads):
    threads(1)
    data = comparing.data()
    rest = comparing.Data("odd", (data.inputs[0][:33],), data.labels[:33], data.test_inputs, data.test_labels)
    found = mine(rest, "sgd,ohem,low", tmp_path, epochs=1, model="cnn", budget="epochs")
    assert found["runs"][0]["epochs"][0]["forward"] == 33


def test_a_loss_that_is_none_is_null(tmp_path):
    found = mine(comparing.data(), "sgd,low", tmp_path, epochs=2, lr=1e30)
    assert found["runs"][0]["epochs"][-1]["test_loss"] is None
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_the_callers_random_numbers_and_threads_stay(tmp_path, threads):
    threads(2)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    mine(comparing.data(), "sgd,rho", tmp_path, epochs=1)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2


def test_seeds_differ_and_repeat(tmp_path):
    first = mine(comparing.data(), "sb", tmp_path / "a", epochs=2, seeds=2)
    again = mine(comparing.data(), "sb", tmp_path / "b", epochs=2, seeds=[1, 0])
    one, other = ([entry["epochs"][-1]["train_loss"] for entry in part["runs"]] for part in (first, again))
    assert one == other[::-1] and one[0] != one[1]


def test_parquet_has_the_epochs(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = mine(comparing.data(), "sgd,ohem", tmp_path, epochs=2)
    rows = parquet.read_table(tmp_path / "epochs.parquet").to_pylist()
    assert len(rows) == sum(len(entry["epochs"]) for entry in found["runs"])
    assert (rows[0]["method"], rows[0]["version_torch"], rows[1]["backward"]) == ("sgd", torch.__version__, 2 * TRAIN)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The command of the documentation, shorter."""
    out = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType("torchassay.compare.report")
        module.write = lambda out: None
        patch.setitem(sys.modules, module.__name__, module)
        patch.setattr("torchassay.compare.report", module, raising=False)
        arguments = [
            "--data",
            "digits",
            "--methods",
            "sgd,sb,sbe,random",
            "--corrupt",
            "labels:0.5",
            "--epochs",
            "8",
            "--seeds",
            "0,",
        ]
        return command(*arguments, "--out", out), out


def test_the_command(digits):
    result, out = digits
    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 runs in {out}: results.json, report.md, report.html\n"
    about = json.loads((out / "results.json").read_text())["about"]
    assert about["command"] == (
        "torchassay compare --data digits --methods sgd,sb,sbe,random --corrupt labels:0.5 --model mlp --epochs 8 "
        f"--budget backprops --batch-size 64 --lr 0.02 --schedule constant --device {about['device']} --seeds 0,"
    )
    assert {path.name for path in out.iterdir()} >= {"results.json", "data.npz", "runs"}
    assert np.load(out / "data.npz")["images"].shape == (1397, 8, 8)


def test_the_loss_picks_wrong_labels_and_the_entropy_does_not(digits):
    runs = json.loads((digits[1] / "results.json").read_text())["runs"]
    share = {entry["method"]: entry["counters"]["noise_share"] for entry in runs}
    assert share["sgd"] == pytest.approx(0.5, abs=0.01) and share["random"] == pytest.approx(0.5, abs=0.02)
    assert share["sb"] > 0.6 and abs(share["sbe"] - 0.5) < 0.1
    assert all(min(record["test_error"] for record in entry["epochs"]) < 0.25 for entry in runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods foo", r"methods must be among sgd, subset, .*, infobatch.*, got 'foo'"),
        ("--methods sgd --corrupt x:1", r"corrupt must be KIND:SHARE, KIND one of labels, shuffle, gauss, got 'x:1'"),
        ("--methods bss-h", r"bss-h needs data of several modalities \(.*\), got data of 1"),
        ("--methods sgd --model math:pi", r"model must be a callable, got 'math:pi' \(float\)"),
        (
            "--methods sgd --model torch.nn:ReLU",
            r"model must give logits of shape \(64, 10\) for 64 samples, got .*",
        ),
        ("--methods sgd --data 7.npz", r"data must be a file that exists, got '7\.npz'"),
        ("--methods sgd --device cuda:99", r"device must be one that is here, got 'cuda:99' with \d+ NVIDIA GPUs"),
        ("--methods sgd --device tpu", r"device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("--methods sgd --lr 0", r"lr must be above 0 and finite, got 0\.0"),
        ("--methods sgd --seeds 0", r"seeds must be different ints of at least 0, at least one, got \[\]"),
        ("--methods sgd --seeds 1,1", r"seeds must be different ints of at least 0, at least one, got \[1, 1\]"),
        ("--methods sgd --seeds x", r"Invalid value for '--seeds': 'x' is neither a number of seeds nor a list .*"),
        ("--methods sb --budget seconds", r"methods must have sgd for budget seconds, whose time is the budget"),
        ("--methods sb:beta=-1", r"History: beta must be .*, got -1"),
        ("--methods mombs:layers=x", r"layers must be the name of a layer of the model .* features, .*, got 'x'"),
        ("--methods vr:pool=1", r"VarianceReduction: pool must be at least 2, got 1"),
    ],
)
def test_one_line_before_any_training(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Training", None)  # which would be an error of another kind
    given = arguments.split() if "--data" in arguments else ["--data", "digits", *arguments.split()]
    result = command(*given, "--out", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert re.fullmatch(rf"torchassay compare: {message}\n", result.stderr), result.stderr


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("--data", "digits", "--methods", "sgd", "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"torchassay compare: could not write to '{tmp_path / 'file'}': ")


def test_arguments_of_the_function(tmp_path):
    for options, message in (
        ({"epochs": 0}, "epochs must be an int of at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an int of at least 1, got 1.5"),
        ({"budget": "steps"}, "budget must be one of backprops, seconds, epochs, got 'steps'"),
        ({"schedule": "linear"}, "schedule must be one of constant, cosine, got 'linear'"),
        ({"seeds": 1.5}, "seeds must be an int or a list of ints, got float"),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            mine(comparing.data(), "sgd", tmp_path / "out", **options)
        assert str(error.value) == f"compare: {message}"
