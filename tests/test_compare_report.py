"""From the command to the page: real trainings, the real report."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner
from torchassay.cli import main

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.parametrize("corrupt", [None, "labels:0.5"])
def test_a_comparison_ends_with_its_page(tmp_path, corrupt):
    arguments = ["compare", "--data", "digits", "--methods", "sgd,sb,mombs:pivot=0", "--epochs", "3", "--seeds", "2"]
    arguments += ["--corrupt", corrupt] if corrupt else []
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"6 runs in {tmp_path}: results.json, report.md, report.html" in result.output
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert ("corrupted picks" in text) == (corrupt is not None)
    assert "SB" in text and "MoMBS" in text and page.rstrip().endswith("</html>")
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    share = {run["method"]: run["counters"].get("noise_share") for run in runs}
    assert share["sb"] > 0.55 if corrupt else share["sb"] in (None, 0.0)


def test_pictures_are_asked_for_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("torchassay.compare.report", "torchassay.plots"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    result = CliRunner().invoke(
        main, ["compare", "--data", "digits", "--methods", "sgd", "--out", str(tmp_path / "out")]
    )
    message = 'torchassay compare: torchassay.plots needs matplotlib: pip install "torchassay[plot]"\n'
    assert result.exit_code == 2 and result.stderr == message
    assert not (tmp_path / "out").exists()
