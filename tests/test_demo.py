"""The demo finds what it says it finds; the command as a whole is in test_cli.py."""

import csv

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from matplotlib.image import imread
from torchassay import demo, speed


@pytest.fixture(scope="module")
def digits():
    return demo.load(0)


@pytest.fixture(scope="module")
def found(digits):
    return demo.train(digits, 0, 50)


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_the_labels_is_flipped_each_to_another_class(seed):
    digits = demo.load(seed)
    assert len(digits.given) == 1437
    assert len(digits.test_labels) == 360
    assert digits.flipped.sum() == 287
    assert digits.given.min() >= 0
    assert digits.given.max() <= 9
    changes = ((digits.given - digits.true) % 10)[digits.flipped]
    assert len(changes.unique()) == 9  # every other class is hit


def test_training_and_test_samples_differ(digits):
    every = torch.cat([digits.images, digits.test_images])
    assert len(every) == 1797
    assert len(digits.index.unique()) == 1437


@pytest.mark.parametrize("seed", range(5))
def test_the_most_suspicious_are_flipped(seed):
    digits = demo.load(seed)
    found = demo.train(digits, seed, 50)
    assert found.hits(digits, 287) >= 0.85 * 287
    assert found.hits(digits, 50) >= 0.95 * 50
    assert found.test_accuracy >= 0.9


def test_the_same_seed_gives_the_same_table_and_leaves_torch_as_it_was(digits, found):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = demo.train(demo.load(0), 0, 50)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert demo.table(digits, again) == demo.table(digits, found)
    assert torch.equal(again.order, found.order)
    assert torch.equal(again.scores.grad_norm, found.scores.grad_norm)


def test_another_seed_gives_another_table(digits, found):
    other = demo.load(1)
    assert demo.table(other, demo.train(other, 1, 2)) != demo.table(digits, found)


def test_mean_scores_are_those_of_the_steps(digits, found):
    scores = found.scores
    assert scores.signals == ("loss", "entropy", "grad_norm")
    assert (scores.loss > 0).all()
    assert ((scores.entropy > 0) & (scores.entropy <= np.log(10))).all()
    assert ((scores.grad_norm > 0) & (scores.grad_norm <= 2**0.5)).all()
    assert torch.equal(scores.loss[found.order], scores.loss.sort(descending=True).values)
    assert (found.belief[~digits.flipped] == digits.true[~digits.flipped]).float().mean() > 0.9


def test_table_counts_what_is_flipped(digits, found):
    lines = demo.table(digits, found, rows=3).splitlines()
    assert lines[0] == "rank  index  given  true  belief  mean loss  mean entropy  flipped"
    i = found.order[0]
    assert lines[1].split()[:5] == [
        str(int(v)) for v in (1, digits.index[i], digits.given[i], digits.true[i], found.belief[i])
    ]
    assert len(lines) == 1 + 3 + 1 + 2
    hits = int(digits.flipped[found.order[:287]].sum())
    assert lines[-1] == f"flipped among the 287 most suspicious: {hits} ({hits / 287:.1%})"


def test_pictures_are_drawn_and_the_csv_holds_every_sample(digits, found, tmp_path):
    scatter, worst, table = demo.save(digits, found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss_vs_entropy.png", "scores.csv", "worst_16.png"]
    for path in (scatter, worst):
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) >= 600
        assert pixels.std() > 0.05
        edge = np.concatenate([pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel()])
        assert (edge == 1).all(), f"{path.name}: something is cut off at the edge"
    colours = {tuple(pixel) for pixel in (255 * imread(scatter)[..., :3]).round().astype(int).reshape(-1, 3)}
    assert len(colours) > 50
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1437
    assert sum(int(row["flipped"]) for row in rows) == 287
    assert [int(row["index"]) for row in rows[:5]] == digits.index[found.order[:5]].tolist()
    assert all(int(row["flipped"]) == (row["given"] != row["true"]) for row in rows)


def test_five_closing_lines_carry_the_figures_of_the_run(digits, found):
    measured = [
        speed.Result(8192, 10, 8192 * 40, 0.1, 1.0, 0.3, 1e-7, 0.4),
        speed.Result(8192, 1000, 8192 * 4000, 2.0, 61.0, 2.4, 2.1e-7, 0.9),
        speed.Result(1024, 50257, 1024 * 50257 * 4, 6.0, 360.0, 54.0, 1e-7, 0.5),
    ]
    lines = demo.closing(digits, found, measured)
    assert len(lines) == 5
    assert f"{found.hits(digits, 50)} had a flipped label" in lines[0]
    assert f"{found.hits(digits, 287)} (" in lines[1]
    assert lines[3] == (
        "Five scores of 8192 x 1000 logits take 2 ms, 30 times as fast as the PyTorch chain "
        "(10 to 60 times over the shapes); F.cross_entropy takes 2.4 ms for the loss alone."
    )
    assert "2e-07" in lines[4]
    assert "90%" in lines[4]


def test_one_epoch_is_enough_to_draw(digits, tmp_path):
    found = demo.train(digits, 3, 1)
    assert all(path.stat().st_size > 1000 for path in demo.save(digits, found, tmp_path))
