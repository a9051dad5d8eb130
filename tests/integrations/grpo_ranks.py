"""A GRPO training on two processes: ``torchrun --nproc-per-node=2 grpo_ranks.py FOLDER``.

Each rank trains to the end with checkpoints, goes on from the third, and writes the prompts and losses of both and what
its sampler knows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torchassay as ta
from torchassay.integrations.trl import OneReadMixin, PromptSamplerMixin
from trl import GRPOTrainer

sys.path.append(str(Path(__file__).parent.parent))
torch.set_num_threads(1)


class Trainer(PromptSamplerMixin, OneReadMixin, GRPOTrainer):
    pass


def main(folder: Path) -> None:
    from integrations import tiny_grpo

    found = {}
    for name, options in (("whole", {"save_strategy": "steps", "save_steps": 1}), ("resumed", {})):
        reward = tiny_grpo.Odd()
        sampler = ta.samplers.OnlineImportance(
            8, batch_size=4, drop_last=True, signal="loss", eps=0.1, rank=0, num_replicas=1
        )
        options |= {"max_steps": 5, "top_entropy_quantile": 0.4}
        trainer = tiny_grpo.trainer(Trainer, folder, reward, sampler=sampler, **options)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if name == "resumed" else None)
        found[name] = {"rows": reward.rows, "loss": tiny_grpo.curve(trainer)["loss"]}
        found[name]["importance"] = sampler.memory["importance"].clone()
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
