"""Sampling methods on digits, at an equal budget of back-propagated samples: accuracy, picks, and time."""

from __future__ import annotations

import digits
import pytest

SEEDS = 5
TOPIC = "Sampling methods on digits, {}, mean of 5 seeds"


@pytest.mark.parametrize(("noise", "what"), [(0.0, "right labels"), (0.25, "a quarter of the labels drawn anew")])
def test_on_digits(record, noise, what):
    for row in digits.compare(SEEDS, noise):
        record(TOPIC.format(what), row)
        if noise == 0 and "subset" not in row["method"]:  # half of the digits, ever
            assert float(row["points over sgd"].split()[0]) > -1, row
