"""A report of labels whose every number is known, and the command that makes one."""

import csv
import sys

import numpy as np
from click.testing import CliRunner
from torchassay.cli import main

# Six samples, of which 1, 4 and 5 have wrong labels.
LOSS = [0.1, 2.0, 0.3, 1.0, 4.0, 0.2]
MARGIN = [0.9, -0.2, 0.5, -0.6, -0.9, 0.7]
GIVEN = [0, 1, 2, 0, 1, 2]
TRUE = [0, 2, 2, 0, 0, 1]
COLUMNS = {"loss": np.float32(LOSS), "target_margin": np.float32(MARGIN), "given": np.array(GIVEN)}
BY_LOSS = [4, 1, 3, 2, 5, 0]


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hide_cleanlab(monkeypatch):
    """Whether cleanlab is installed must not matter, but to the tests that want it."""
    for name in ("cleanlab", "cleanlab.filter", "cleanlab.rank"):
        monkeypatch.setitem(sys.modules, name, None)
