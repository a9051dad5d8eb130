"""What the ranks of a group do with a `History`: in a module of its own, which their processes can import."""

import torch
import torchassay as ta

WORLD, CAPACITY, STEPS = 3, 16, 4


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of another size on every rank and in every step, one of them empty, some longer than the window."""
    size = [5, 0, 7, 40][(rank + step) % 4]
    generator = torch.Generator().manual_seed(10 * step + rank)
    values = torch.rand(size, generator=generator)
    values[1::6] = torch.nan
    return values, torch.rand(size, generator=generator) < 0.8


def walk(rank: int, bins: bool | None) -> dict[str, torch.Tensor]:
    history = ta.History(CAPACITY, bins=bins, group=torch.distributed.group.WORLD)
    found = {}
    for step in range(STEPS):
        values, mask = batch(rank, step)
        found[f"chance {step}"] = history.probability(values, mask=mask)
        found[f"again {step}"] = history.probability(values, mask=mask, update=False)
    values = torch.arange(64.0)
    history.update(values if rank == 1 else values[:0])
    found["select"] = history.frozen().select(values, seed=3, step=1)
    return found | {name: value for name, value in history.state_dict().items() if isinstance(value, torch.Tensor)}
