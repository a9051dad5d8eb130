"""The studies of papers: claims go by the numbers, both ways; pages come of results alone; data are as described."""

from __future__ import annotations

import importlib
import io
import json
import math
import statistics

import numpy as np
import pytest
import torch
from papers import bss, cifar10n, diabetes, evidence, hu2021, mombs, ois, pages, run, study, trimming
from papers.evidence import Claim
from torchassay.compare import Data

EPOCHS = 4
# By method: best error in percent, samples an epoch, share of corrupted ones over the base rate.
PAPERLIKE = {
    "sgd": (4.0, 400, 1.0),
    "sb:beta=1": (4.5, 200, 1.6),
    "sb:beta=2": (9.0, 133, 1.8),
    "sbe": (3.9, 200, 1.02),
    "vr-hu:pool=2": (4.1, 380, 1.1),
    "vr-hu:pool=3": (4.2, 380, 1.1),
}


def results(numbers, *, base=0.0, seeds=3, columns=()):
    """A comparison: each run's error is 0.9 until it is at its best in the last two epochs."""
    data = {"name": "mnist", "train": 400, "test": 500, "classes": 10, "shape": [1, 28, 28], "modalities": 1}
    about = {"version": "0.1.0", "torch": "2.13.0", "machine": "a machine", "date": "2026-11-21", "data": data}
    about |= {"corrupted": round(400 * base), "epochs": EPOCHS, "seeds": list(range(seeds))}
    runs = []
    for method, (best, backward, noise) in numbers.items():
        for seed in range(seeds):
            error = (best + 0.1 * seed) / 100
            epochs = [
                {"epoch": e, "backward": backward * (e + 1), "seconds": 60.0 * (e + 1), "noise_share": base * noise}
                | {"test_error": error if e > 1 else 0.9, "test_loss": error, "train_loss": error}
                | dict.fromkeys(columns, error)
                for e in range(EPOCHS)
            ]
            runs.append({"method": method, "title": method, "seed": seed, "done": True, "epochs": epochs})
    return {"about": about, "runs": runs}


def hu(labels=PAPERLIKE, gauss=None):
    """Hu et al.'s study; with Gaussian images SBE is worse than SB-50, as in the paper."""
    gauss = gauss or PAPERLIKE | {"sbe": (5.0, 200, 1.02)}
    found = {"none": results(PAPERLIKE | {"sb:beta=1": (4.0, 200, 1.0), "sb:beta=2": (4.1, 133, 1.0)})}
    for kind in ("labels", "shuffle", "gauss"):
        for share in (0.25, 0.5):
            found[f"{kind}-{share}"] = results(gauss if kind == "gauss" else labels, base=share)
    return found


def verdict(found, words):
    (claim,) = [claim for claim in hu2021.page(found).claims if words in claim.text]
    return claim


def test_claims_hold_where_numbers_are_as_in_the_paper():
    claims = hu2021.page(hu()).claims
    assert len(claims) == 22
    assert [claim.text for claim in claims if not claim.holds] == []


@pytest.mark.parametrize(
    ("method", "numbers", "words"),
    [
        ("sb:beta=1", (4.5, 200, 1.2), "SB-50's noise share is at least 0.65"),
        ("sb:beta=1", (3.8, 200, 1.6), "Under each corruption SB-50 ends at a higher best error"),
        ("sb:beta=2", (4.4, 133, 1.8), "SBE <= SB-50 < SB-33"),
        ("sb:beta=2", (4.4, 133, 1.8), "Under each corruption SB-33 is worse than SB-50"),
        ("sb:beta=2", (9.0, 133, 1.5), "50 %: SB-33's noise share is above SB-50's"),
        ("sbe", (3.9, 200, 1.11), "50 %: SBE's noise share stays within 0.05"),
        ("sbe", (4.6, 200, 1.02), "SBE <= SB-50 < SB-33"),
        ("sbe", (4.6, 200, 1.02), "With 50 % random labels SBE's best error is below SB-50's"),
        ("sbe", (3.9, 500, 1.02), "With 50 % random labels SBE needs fewer back-propagations"),
        ("sbe", (5.9, 200, 1.02), "With 50 % random labels SBE needs fewer back-propagations"),
        ("vr-hu:pool=3", (9.5, 380, 1.1), "VR degrades less than SB"),
        ("vr-hu:pool=3", (4.2, 380, 0.9), "Under each corruption VR-33 trains on more corrupted samples"),
    ],
)
def test_a_claim_does_not_hold_where_numbers_say_otherwise(method, numbers, words):
    assert verdict(hu(), words).verdict == "holds"
    claim = verdict(hu(PAPERLIKE | {method: numbers}), words)
    assert claim.verdict == "does not reproduce here"
    assert pages.line(claim).startswith(f"- **does not reproduce here**: {claim.text}. Here: ")


def test_what_was_not_run_is_said():
    found = hu()
    del found["labels-0.5"]
    assert verdict(found, "SBE <= SB-50").verdict == "not measured here"
    assert verdict(found, "Under each corruption SB-33 is worse").evidence == "no numbers for random labels, 50 %"
    assert all(
        claim.holds is None for claim in hu2021.page({"none": hu()["none"]}).claims if "corruption" in claim.text
    )


def test_a_difference_is_taken_seed_by_seed():
    ours, others = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.2, 1: 2.1, 2: 3.3, 7: -90.0}
    claim = evidence.lower("x", ("A", ours), ("B", others))
    half = 4.302653 * statistics.stdev([0.2, 0.1, 0.3]) / math.sqrt(3)  # Student's t of two degrees, 97.5 %
    assert claim.holds and claim.evidence.endswith(f"difference -0.20 ± {half:.2f}, an interval that includes 0")
    assert claim.verdict == "holds within chance"
    assert claim.unsure == (half >= 0.2)
    assert not evidence.higher("x", ("A", ours), ("B", others)).holds
    assert evidence.not_above("x", ("A", ours), ("B", ours)).holds
    assert not evidence.lower("x", ("A", ours), ("B", ours)).holds


def test_bounds_include_themselves():
    assert evidence.at_least("x", ("A", {0: 0.4, 1: 0.2}), 0.3).holds
    assert not evidence.at_least("x", ("A", {0: 0.4, 1: 0.2}), 0.31).holds
    assert evidence.near("x", ("A", {0: 0.25}), 0.5, 0.25).holds
    assert not evidence.near("x", ("A", {0: 0.2}), 0.5, 0.25).holds
    assert evidence.at_least("x", ("A", {}), 0.0).verdict == "not measured here"


def test_a_claim_about_all_settings_names_the_exceptions():
    right, close, wrong = Claim("", True, "fine"), Claim("", True, "fine", True), Claim("", False, "1, 2")
    found = evidence.everywhere("x", {"a": right, "b": wrong, "c": close})
    assert not found.holds
    assert found.evidence == "in 2 of 3; not with b (1, 2); within what chance explains with c"
    assert evidence.everywhere("x", {"a": right, "c": close}).holds
    assert evidence.everywhere("x", {"a": right, "b": Claim("", None, "")}).holds is None


def studies():
    """Results of every study, as if they had been run."""
    arms = [f"{name}:keep={share},interval=2" for share in (0.9, 0.8) for name in ("ois", "random-pruning")]
    lots = dict(zip(("sgd", "ois", "ais", *arms), ((2.0 + i / 10, 400, 1.0) for i in range(7)), strict=True))
    two = {"sgd": (5.0, 400, 1.0), "mombs": (4.0, 400, 1.0)}
    columns = [name for name in bss.COLUMNS if name != "test_error"]
    modal = {"sgd": (5.0, 400, 1.0), "bss-h": (4.0, 300, 1.0), "bss-l": (3.0, 400, 1.0)}
    plain = {"sgd": (5.0, 400, 1.0), "trim": (6.0, 240, 1.0)}
    people = {name: PAPERLIKE[name] for name in cifar10n.METHODS}
    return {
        "hu2021": hu(),
        "cifar10n": {kind: results(people, base=0.25) for kind in cifar10n.LABELS},
        "ois": {"mnist": results(lots), "diabetes": results({"sgd": (5.0, 1, 1.0), "ois": (4.0, 1, 1.0)})},
        "mombs": {f"{kind}-{b}": results(two, base=0.25) for kind in mombs.KINDS for b in mombs.BATCHES},
        "bss": {"halves": results(modal, columns=columns)},
        "trimming": {"mnist": results(plain), "cifar10": results(plain)},
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """All pages, from results that are on disk."""
    out, folder = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("pages")
    for paper, found in studies().items():
        for name, part in found.items():
            (out / paper / name).mkdir(parents=True)
            (out / paper / name / "results.json").write_text(json.dumps(part))
    run.main(["all", "--out", str(out), "--render"], folder)
    return folder


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("hu2021", ["33.73", "17.92"], "| SB-33 | 9.10 ± 0.25 | 33.73 |"),
        ("cifar10n", ["12.28, 33.73"], "| SB-50 | 4.60 ± 0.25 |"),
        ("ois", ["2407.15525"], "| OIS | 2.20 ± 0.25 |"),
        ("mombs", ["up to 6.7"], "| 2 | 5.10 ± 0.25 | 4.10 ± 0.25 | 1.00 ± 0.00 |"),
        ("bss", ["27.33", "26.05"], "| BSS-L | 3.10 ± 0.25 |"),
        ("trimming", ["| paper: CIFAR-10, DenseNet-121 | 10.10 | 10.19 |"], "| 5.10 ± 0.25 | 6.10 ± 0.25 |"),
    ],
)
def test_a_page_has_our_numbers_beside_the_papers(rendered, name, theirs, ours):
    text = (rendered / f"{name}.md").read_text()
    assert ours in text and all(number in text for number in theirs)
    for part in ("2026-11-21; a machine; torchassay 0.1.0; seeds 0, 1, 2;", "run.py " + name, "**Data.**", "## Claims"):
        assert part in text
    page = importlib.import_module(f"papers.{name}").page(studies()[name])
    for verdict in ("holds", "holds within chance"):
        unsure = verdict != "holds"
        expected = sum(claim.holds is True and claim.unsure is unsure for claim in page.claims)
        assert text.count(f"\n- **{verdict}**: ") == expected
    assert text.count("\n- **does not reproduce here**: ") == sum(claim.holds is False for claim in page.claims)
    for table in page.tables:
        assert all(len(row) == len(table.head) for row in table.rows)


def test_smaller_claims_go_both_ways():
    def claims(paper, found):
        return [claim.holds for claim in importlib.import_module(f"papers.{paper}").page(found).claims]

    assert claims("trimming", studies()["trimming"]) == [False, False]
    better = results({"sgd": (5.0, 400, 1.0), "trim": (4.0, 240, 1.0)})
    assert claims("trimming", {"mnist": better, "cifar10": studies()["trimming"]["cifar10"]}) == [True, False]
    assert claims("bss", studies()["bss"]) == [True, True, True]
    found = studies()["mombs"]
    assert claims("mombs", found) == [True, False, True, False]
    found["tail-64"] = results({"sgd": (5.0, 400, 1.0), "mombs": (4.9, 400, 1.0)})
    assert claims("mombs", found) == [True, True, True, False]
    assert claims("cifar10n", studies()["cifar10n"]) == [True] * 6
    assert claims("ois", studies()["ois"])[-2:] == [True, True]


def test_the_index_counts(rendered, tmp_path):
    text = (rendered / "README.md").read_text()
    assert "| [Mini-batch trimming](trimming.md) | 2 do not reproduce here | 2026-11-21 |" in text
    run.main(["bss", "--out", str(tmp_path), "--render"], tmp_path / "pages")
    assert "| Mini-batch trimming | not run |  |" in (tmp_path / "pages" / "README.md").read_text()
    assert not (tmp_path / "pages" / "bss.md").exists()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Something like MNIST."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    y = np.arange(400, dtype=np.uint8) % 10
    x = (rng.integers(0, 60, (400, 28, 28)) + 19 * y[:, None, None]).astype(np.uint8)
    np.savez(folder / "mnist.npz", x_train=x[:320], y_train=y[:320], x_test=x[320:], y_test=y[320:])
    return folder


def test_a_study_trains_once_and_is_rendered_again(digits, tmp_path):
    arguments = ["bss", "--data", str(digits), "--out", str(tmp_path), "--quick"]
    run.main(arguments, tmp_path / "pages")
    written = tmp_path / "quick" / "bss" / "halves" / "results.json"
    before, page = written.read_text(), (tmp_path / "quick" / "bss.md").read_text()
    found = json.loads(before)
    assert len(found["runs"]) == 6
    assert {"error_fused", "error_0", "error_1"} <= set(found["runs"][0]["epochs"][0])
    assert "its numbers say nothing" in page
    run.main(arguments, tmp_path / "pages")
    assert written.read_text() == before  # seconds and all: nothing was trained again
    (tmp_path / "quick" / "bss.md").unlink()
    run.main(["bss", "--out", str(tmp_path), "--quick", "--render"], tmp_path / "pages")
    assert (tmp_path / "quick" / "bss.md").read_text() == page


def test_training_needs_data(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["bss", "--out", str(tmp_path)])
    assert "--data is needed to train" in capsys.readouterr().err


def data(n=60):
    labels = torch.arange(n) % 10
    images = torch.arange(n * 28 * 28).view(n, 1, 28, 28).remainder(251).to(torch.uint8)
    return Data("d", (images,), labels, (images[:20],), labels[:20])


def test_the_rate_is_halved_twice_and_weights_decay():
    plan = study.running.check(data(), "sgd", epochs=6, budget="epochs", device="cpu", batch_size=32, lr=1e-3)
    training, rates = trimming.Fassold(plan.methods[0], 0, plan.settings), []
    training.begin()
    while not training.done:
        training.epoch(lambda share: None)
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4]
    assert isinstance(training.optimizer, torch.optim.Adam)
    assert training.optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_random_pruning_drops_as_many_and_not_by_importance():
    lengths, left = {}, {}
    for kind in (ois.samplers.OnlineImportance, ois.RandomPruning):
        sampler = kind(1000, batch_size=100, seed=1, keep=0.8, interval=2)
        lengths[kind] = []
        for epoch in range(5):
            sampler.set_epoch(epoch)
            index = torch.tensor([i for i, _ in sampler])
            lengths[kind].append(len(index))
            for part in index.split(100):
                sampler.observe(part, {"grad_norm": (part + 1.0) / 1000})
        left[kind] = index
    own, chance = lengths.values()
    assert own == chance == [1000, 1000, 800, 800, 640]
    own, chance = left.values()
    assert own.min() >= 350  # 360, but for those that stay by what they were in the epochs before
    assert chance.min() < 200


def test_the_tail_is_a_hundredth_of_the_head():
    n = 5_000
    labels = torch.arange(n) % 10
    kept = mombs.long_tailed(
        Data("d", (labels[:, None].float(),), labels, (labels[:20, None].float(),), labels[:20]), 400
    )
    counts = kept.labels.bincount().tolist()
    assert counts == [round(400 / 100 ** (c / 9)) for c in range(10)]
    assert counts[0] == 400 and counts[9] == 4
    assert torch.equal(kept.inputs[0][:, 0].long(), kept.labels)


def test_one_half_is_left_as_it_is():
    whole = data()
    left, right = bss.halves(whole).inputs
    assert torch.equal(left, whole.inputs[0][..., :14]) and right.shape == left.shape
    error = (right.float() - whole.inputs[0][..., 14:].float()).abs().mean()
    assert error > 30  # noise alone, clamped: about 40


def test_jpeg_files_are_read_with_their_own_labels(tmp_path):
    image = pytest.importorskip("PIL.Image")

    def packed(labels):
        """Plain images as bright as their labels."""
        pieces = []
        for label in labels:
            file = io.BytesIO()
            image.fromarray(np.full((32, 32, 3), 20 * label, np.uint8)).save(file, "JPEG", quality=95)
            pieces.append(np.frombuffer(file.getvalue(), np.uint8))
        return np.concatenate(pieces), np.cumsum([0, *map(len, pieces)])

    y = np.arange(40, dtype=np.uint8) % 10
    (train, ends), (test, test_ends) = packed(y), packed(y[::-1])
    files = {"train_jpeg": train, "train_offset": ends, "y_train": y}
    np.savez(tmp_path / "cifar10_jpeg.npz", **files, test_jpeg=test, test_offset=test_ends, y_test=y[::-1])
    given = (y + (np.arange(40) % 4 == 0)) % 10
    np.savez(tmp_path / "cifar10n_human_labels.npz", **dict.fromkeys(cifar10n.LABELS, given.astype(np.uint8)))
    for comparison in cifar10n.comparisons(study.Place(tmp_path, tmp_path)):
        found = comparison.data
        assert torch.equal((found.inputs[0].float().mean((1, 2, 3)) / 20).round().long(), found.true)
        assert torch.equal((found.test_inputs[0].float().mean((1, 2, 3)) / 20).round().long(), found.test_labels)
        assert found.corrupted.sum() == 10 and torch.equal(found.corrupted, found.labels != found.true)


def test_the_regression_is_the_same_until_importances_are_known(tmp_path):
    pytest.importorskip("sklearn")
    diabetes.train(tmp_path, 3, [0, 1])
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    losses = {(run["method"], run["seed"]): [epoch["train_loss"] for epoch in run["epochs"]] for run in runs}
    assert losses["sgd", 0][0] == losses["ois", 0][0] != losses["sgd", 1][0]
    assert losses["sgd", 0][1] != losses["ois", 0][1]
    assert all(values[2] < values[0] for values in losses.values())  # it learns
