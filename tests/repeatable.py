"""Every operation of the CPU kernels on inputs large enough for several threads; a module that workers can import."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torchassay as ta
from torch import Tensor
from torchassay import ops
from torchassay.options import Options
from torchassay.philox import Purpose, uniforms
from torchassay.scores import ROW_BITS, ROW_SIGNALS, STATS

SHAPES = {"short rows": (4000, 10), "rows": (400, 127), "long rows": (3, 20_000)}
APART = "classes apart"
ALL = {"label_smoothing": 0.1, "temperature": 0.7, "softcap": 9.0, "z_loss": 1e-4}
MEMBERS = torch.randn(3, 400, 127, generator=torch.Generator().manual_seed(3))


def batch(name: str) -> tuple[Tensor, Tensor]:
    """Logits and labels; of `APART` the classes are the second of four dimensions."""
    random = torch.Generator().manual_seed(20)
    if name == APART:
        return 3 * torch.randn(2, 20, 40, 40, generator=random), torch.randint(20, (2, 40, 40), generator=random)
    rows, classes = SHAPES[name]
    return 3 * torch.randn(rows, classes, generator=random), torch.arange(rows) % classes


def scored(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Signals, and the gradient of a loss and an entropy."""
    x, y = batch(name)
    dim = 1 if name == APART else -1
    leaf = x.to(dtype).requires_grad_()
    found = ta.score(leaf, y, signals=ROW_SIGNALS, dim=dim)
    if name == APART:
        ta.cross_entropy(leaf, y).backward()
    else:
        ta.log_prob_entropy(leaf, y)[1].mean().add(ta.cross_entropy(leaf, y)).backward()
    return [*found.as_dict().values(), leaf.grad]


def optioned(name: str, weighted: bool) -> list[Tensor]:
    x, y = batch(name)
    leaf = x.clone().requires_grad_()
    weight = torch.linspace(0.5, 2, x.shape[1]) if weighted else None
    loss, found = ta.cross_entropy(leaf, y, weight, **ALL, signals=("entropy", "grad_norm"))
    loss.backward()
    return [loss.detach(), *found.as_dict().values(), leaf.grad]


def probable() -> list[Tensor]:
    """Class probabilities for labels."""
    leaf = batch("rows")[0].requires_grad_()
    loss = ta.cross_entropy(leaf, torch.softmax(MEMBERS[0], 1), reduction="none")
    loss.sum().backward()
    return [loss.detach(), leaf.grad]


def sliced() -> list[Tensor]:
    """States of two slices of the classes, merged, and finished."""
    x, y = batch("short rows")
    flat, how = Options(label_smoothing=0.1).flat(), (10, -100, "test", "native")
    parts = [ops.row_states(part, y, *flat, 1, first, *how) for part, first in ((x[:, :4], 0), (x[:, 4:], 4))]
    states = [torch.stack(of_parts) for of_parts in zip(*parts, strict=True)]
    merged = ops.merge_states(*states, *flat, 10, "test", "native")
    finished = ops.finish_states(*states, y, *flat, 10, -100, ROW_BITS | STATS, "test", "native")
    return [*states, *merged, *finished]


def noisy() -> list[Tensor]:
    found = ta.score(batch("rows")[0], signals=("noisy_entropy", "mutual_information"), noise_std=0.5, noise_draws=3)
    normals = ops.normals(torch.arange(500), None, 5, Purpose.LOGIT_NOISE, 0, 99, False, "native")
    return [*found.as_dict().values(), normals]


def headed() -> list[Tensor]:
    labels = (MEMBERS[0] > 0).float()
    found = ta.score_binary(batch("rows")[0], labels), ta.score_regression(batch("rows")[0], MEMBERS[1], loss="huber")
    return [value for scores in found for value in scores.as_dict().values()]


def picked() -> list[Tensor]:
    """The window of a history, the probabilities it gives, and the picks."""
    history, values = ta.History(1000, beta=2), torch.linspace(0, 9, 40_000).sin()
    chances = [history.probability(part) for part in values.split(35_000)]
    return [
        *chances,
        uniforms(torch.arange(1000), seed=1, step=2),
        *map(torch.as_tensor, history.state_dict().values()),
    ]


def drawn() -> list[Tensor]:
    tree = ta.SumTree(np.random.default_rng(1).random(600_000))
    first = tree.sample(20_000, seed=1)
    tree.update(first[:500], np.ones(500))
    return [first, tree.sample(20_000, seed=2), tree.sample(100, seed=3, replacement=False), torch.tensor(tree.total)]


OPERATIONS: dict[str, Callable[[], list[Tensor]]] = {
    **{f"score, {name}": lambda name=name: scored(name, torch.float32) for name in (*SHAPES, APART)},
    **{f"score, {name}, bf16": lambda name=name: scored(name, torch.bfloat16) for name in SHAPES},
    "score, rows, fp64": lambda: scored("rows", torch.float64),
    **{f"options, {name}": lambda name=name: optioned(name, False) for name in (*SHAPES, APART)},
    **{f"options and weights, {name}": lambda name=name: optioned(name, True) for name in (*SHAPES, APART)},
    "probabilities": probable,
    "slices": sliced,
    "noise": noisy,
    "ensemble": lambda: list(ta.ensemble_score(MEMBERS, batch("rows")[1]).as_dict().values()),
    "heads": headed,
    "history": picked,
    "weighted draws": drawn,
}


def bits(values: list[Tensor]) -> list[bytes]:
    return [value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() for value in values]


class Repeated(torch.utils.data.Dataset):
    """The bits of each operation, wherever an item is fetched."""

    def __len__(self):
        return len(OPERATIONS)

    def __getitem__(self, i):
        return bits(list(OPERATIONS.values())[i]())
