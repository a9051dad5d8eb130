"""Every method of the table of digits trains a network; `make bench` has the accuracies of five seeds."""

from __future__ import annotations

import digits
import pytest


@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_networks_learn_to_read(halves, monkeypatch):
    monkeypatch.setattr(digits, "EPOCHS", 6)
    rows = digits.table_of(*((digits.halves(), digits.OF_HALVES) if halves else ("digits", digits.METHODS)), 1, 0.0)
    assert len(rows) == (3 if halves else 19) and rows[0]["points over sgd"] == "+0.00 ± 0.00"
    for row in rows:
        assert float(row["best accuracy, %"]) > 80, row  # blindly: 10
        assert row["corrupted among them"] == "0.000"


def test_the_loss_picks_wrong_labels_and_the_control_does_not():
    runs = digits.trained("digits", "random,sb,ohem,infobatch", 1, 0.25, epochs=8)
    random, sb, ohem, infobatch = (entry["counters"]["noise_share"] for entry in runs)
    assert random == pytest.approx(0.25, abs=0.01)
    assert sb > 0.32 and ohem > 0.38 and 0.25 < infobatch < 0.35
