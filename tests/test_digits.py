"""Every method trains a network on digits; `make bench` has the accuracies of five seeds."""

from __future__ import annotations

import digits
import pytest

EPOCHS = 8


@pytest.mark.parametrize("name", digits.METHODS)
def test_a_network_learns_to_read(name, monkeypatch):
    monkeypatch.setattr(digits, "EPOCHS", EPOCHS)
    found = digits.train(name, seed=0)
    assert found.accuracy > 0.85  # blindly: 0.10
    assert found.noise == 0


def test_the_loss_picks_wrong_labels_and_the_control_does_not(monkeypatch):
    monkeypatch.setattr(digits, "EPOCHS", EPOCHS)
    share = {name: digits.train(name, seed=0, noise=0.25).noise for name in ("random half", "SB", "OHEM", "InfoBatch")}
    assert share["random half"] == pytest.approx(0.25, abs=0.01)
    assert share["SB"] > 0.32 and share["OHEM"] > 0.38 and 0.25 < share["InfoBatch"] < 0.32
