"""What docs/scoring.md shows is what happens; its blocks on Ray run in tests/integrations/test_ray.py."""

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from documented import blocks, prepare
from torch.utils.data import TensorDataset
from torchassay.cli import main

pytest.importorskip("pyarrow")


def test_commands_and_code_on_scoring_run(tmp_path, monkeypatch):
    """Block after block, as a reader would go on."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    commands = [line.split()[1:] for line in blocks("")[0].splitlines() if line.startswith("torchassay ")]
    assert len(commands) == 2
    for command in commands:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    names = {
        "torch": torch,
        "model": torch.nn.Linear(4, 10),
        "dataset": TensorDataset(torch.randn(64, 4), torch.randint(10, (64,))),
    }
    code = [block for block in blocks("python") if "ray" not in block]
    assert len(code) == 4
    for block in code:
        exec(block, names)
        if "hardest" in block:
            losses = names["hardest"]["loss"].to_numpy()
            assert len(losses) == 10 and (np.diff(losses) <= 0).all()
            assert losses[0] == names["table"]["loss"].to_numpy().max()
        if "list_flatten" in block:
            table, tokens = names["table"], names["tokens"]
            assert len(tokens) == sum(table["tokens"].to_pylist()) > 40
            assert tokens["index"].to_pylist() == np.repeat(table["index"], table["tokens"]).tolist()
    assert names["done"].rows == 64
    assert names["table"].column_names == ["index", "given", "loss", "margin"]
