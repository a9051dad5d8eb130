"""What the documentation shows is what happens."""

import collections
import doctest
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from torch.utils.data import DataLoader, TensorDataset
from torchassay import data, ensemble, functional, heads, history, linear, memory, noise, selection, sum_tree
from torchassay.samplers import (
    balance_aware,
    cross_epoch,
    info_batch,
    low,
    mixed_order,
    modalities,
    online_importance,
    rho_loss,
    selective_backprop,
    variance_reduction,
    weighted,
)

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


class CausalLM(torch.nn.Module):
    """As much of a Hugging Face causal LM as the README uses."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50, bias=False)

    def base_model(self, input_ids):
        return SimpleNamespace(last_hidden_state=self.embeddings(input_ids).tanh())

    def get_output_embeddings(self):
        return self.head


def test_docstring_examples():
    least = {functional: 6, heads: 7, history: 3, ensemble: 5, noise: 5, memory: 8, data: 9, selection: 4, linear: 3}
    least |= {sum_tree: 5}
    for module, examples in least.items():
        result = doctest.testmod(module)
        assert result.attempted >= examples and result.failed == 0


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_code_runs(block, capsys):
    names = {
        "torch": torch,
        "F": F,
        "ta": ta,
        "logits": torch.randn(128, 10, requires_grad=True),
        "target": torch.randint(10, (128,)),
        "tokens": torch.randint(10, (128,)),
        "weight": torch.rand(10),
        "labels": torch.rand(128, 10) < 0.3,
        "x": torch.randn(128, 4),
        "lm": CausalLM(),
        "input_ids": torch.randint(50, (4, 9)),
        "loader": DataLoader(TensorDataset(torch.randn(64, 4), torch.randint(10, (64,))), batch_size=16),
        "dataset": TensorDataset(torch.randn(64, 4), torch.randint(10, (64,))),
        "DataLoader": DataLoader,
        "model": torch.nn.Sequential(
            collections.OrderedDict(encoder=torch.nn.Linear(4, 8), head=torch.nn.Linear(8, 10))
        ),
    }
    exec(block, names)
    if "hard" in names:
        assert names["hard"].shape == (64,) and names["s"].signals == ("loss", "entropy", "grad_norm")
        assert names["logits"].grad is not None
    if "cool" in names:
        exact = F.log_softmax(names["logits"] / 0.7, -1).gather(1, names["tokens"][:, None])[:, 0]
        torch.testing.assert_close(names["cool"], exact)
    if "draws" in names:
        assert (names["s"].mutual_information > 0).all()
    if "forks" in names:
        logits = names["head"](names["hidden"])
        torch.testing.assert_close(names["loss"], F.cross_entropy(logits.flatten(0, 1), names["tokens"].flatten()))
        torch.testing.assert_close(names["ent"], ta.entropy(logits))
        assert names["forks"].sum() == round(0.2 * names["tokens"].numel())
    elif "logp" in names:
        torch.testing.assert_close(
            names["logp"], F.log_softmax(names["logits"], -1).gather(1, names["tokens"][:, None])[:, 0]
        )


def test_readme_lists_every_signal():
    text = (ROOT / "README.md").read_text()
    for name in ta.LINEAR_SIGNALS:
        assert f"`{name}`" in text, name


def test_docstring_examples_of_samplers():
    for module, least in (
        (selective_backprop, 5),
        (variance_reduction, 4),
        (low, 2),
        (rho_loss, 9),
        (mixed_order, 6),
        (balance_aware, 0),
        (info_batch, 5),
        (online_importance, 8),
        (modalities, 4),
        (weighted, 4),
        (cross_epoch, 0),
    ):
        result = doctest.testmod(module)
        assert result.attempted >= least and result.failed == 0, module


def test_code_on_samplers_runs():
    """Block after block, as a reader would go on."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "samplers.md").read_text(), re.DOTALL)
    assert len(blocks) >= 7
    torch.manual_seed(0)
    model = torch.nn.Sequential(collections.OrderedDict(encoder=torch.nn.Linear(4, 8), head=torch.nn.Linear(8, 10)))
    clean = TensorDataset(torch.randn(96, 4), torch.randint(10, (96,)))
    names = {
        "torch": torch,
        "F": F,
        "ta": ta,
        "DataLoader": DataLoader,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "clean": clean,
        "dataset": clean,
        "loader": DataLoader(clean, batch_size=32),
    }
    for block in blocks:
        exec(block, names)
        if "kinds" in block:
            assert sum(map(len, names["kinds"].values())) == 96
    assert len(names["kept"]) == 48 and names["memory"].visits.tolist() == [1] * 96
    assert 0 < names["picker"].counters()["noise_share"] < 1


def test_code_on_vocabulary_parallel_runs():
    """With a group of this process alone, whose slice is everything."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "vocabulary_parallel.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    generator = torch.Generator().manual_seed(1)
    names = {
        "torch": torch,
        "ta": ta,
        "logits": torch.randn(6, 10, generator=generator).requires_grad_(),
        "tokens": torch.randint(10, (6,), generator=generator),
        "hidden": torch.randn(6, 4, generator=generator).requires_grad_(),
        "head": torch.nn.Linear(4, 10, bias=False),
        "advantage": torch.randn(6, generator=generator),
    }
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for block in blocks:
            exec(block, names)
        assert torch.equal(names["s"].entropy, ta.score(names["logits"], signals="entropy").entropy)
        assert names["hidden"].grad.shape == (6, 4) and names["head"].weight.grad.shape == (10, 4)
        whole = F.cross_entropy(F.linear(names["hidden"], names["head"].weight), names["tokens"])
        torch.testing.assert_close(names["loss"], whole.detach())
        assert names["weight"].grad.placements == (names["Shard"](0),)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("default")  # others' code warns
@pytest.mark.parametrize("section", ["Lightning", "Hugging Face's Trainer", "Accelerate"])
def test_code_on_trainers_runs(section, tmp_path, monkeypatch, threads):
    """Block after block, where the section's library is installed."""
    threads(1)
    text = (ROOT / "docs" / "trainers.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for library in re.findall(r"^(?:import|from) (\w+)", "".join(blocks), re.MULTILINE):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(4, 10)
    words = torch.randint(17, (24, 6))
    names = {
        "torch": torch,
        "ta": ta,
        "DataLoader": DataLoader,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "dataset": TensorDataset(torch.randn(96, 4), torch.randint(10, (96,))),
        "texts": [{"input_ids": row, "labels": row} for row in words],
    }
    if section == "Hugging Face's Trainer":
        import transformers

        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
        names["language_model"] = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=17, **sizes))
    steps = []
    for block in blocks:
        exec(block, names)
        steps.append((names["sampler"].epoch, names["sampler"].position))
    assert steps == {"L": [(1, 3), (0, 3)], "H": [(1, 6), (1, 6)], "A": [(1, 3)]}[section[0]]


def test_code_on_getting_started_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "getting_started.md").read_text(), re.DOTALL)
    names = {
        "logits": torch.randn(64, 10, requires_grad=True),
        "target": torch.randint(10, (64,)),
        "loader": DataLoader(TensorDataset(torch.randn(64, 4), torch.randint(10, (64,))), batch_size=16),
        "model": torch.nn.Linear(4, 10),
    }
    for block in blocks[:2]:
        exec(block, names)
    assert names["s"].signals == ("entropy", "grad_norm") and names["logits"].grad is not None
    assert len(names["hard"]) == 8 and len(names["everything"]) == 128
    for block in blocks[2:]:
        exec(block, names)
    assert names["model"].weight.grad is not None


def test_every_page_with_code_is_run_by_a_test():
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if "```python" in page.read_text()}
    here = {"getting_started.md", "samplers.md", "trainers.md", "vocabulary_parallel.md"}
    assert pages == here | {"scoring.md", "trl.md"}  # test_scoring_docs.py, integrations/test_trl.py
