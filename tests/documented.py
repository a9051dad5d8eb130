"""What the page on scoring talks of, in a folder: models by name, data in files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "scoring.md"
_NETWORK = """
import torch

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
"""
_LM = """
import torch

class LM(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50)

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids))

model = LM()
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def prepare(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    random = np.random.default_rng(0)
    (folder / "my").mkdir()
    (folder / "my" / "__init__.py").touch()
    (folder / "my" / "models.py").write_text(_NETWORK)
    (folder / "lm.py").write_text(_LM)
    x, y = random.normal(size=(96, 4)).astype(np.float32), random.integers(10, size=96)
    np.savez(folder / "data.npz", x=x, y=y)
    parquet.write_table(pyarrow.table({"index": np.arange(96), "x": list(x), "y": y}), folder / "data.parquet")
    ids = [random.integers(50, size=random.integers(1, 9)) for _ in range(40)]
    (folder / "tokens").mkdir()
    parquet.write_table(pyarrow.table({"input_ids": ids}), folder / "tokens" / "0.parquet")
