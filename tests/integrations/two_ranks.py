"""Trainings on two processes, for the tests beside: ``torchrun --nproc-per-node=2 two_ranks.py LIBRARY FOLDER``.

Each rank trains to the end with checkpoints, goes on from one of them in mid-epoch, and checks that it gets its batches
of the uninterrupted training and the same parameters. Then it writes what it was trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
torch.set_num_threads(1)


def of_lightning(folder: Path) -> list:
    import test_lightning as case

    def fit(where: str, **options):
        several = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
        return case.fit(folder / where, case.METHODS["MixedOrder"], **several, **options)[0]

    whole = fit("whole")
    resumed = fit("resumed", ckpt=min((folder / "whole").glob("epoch=1*.ckpt"), key=case.step_of))
    return [whole.seen, resumed.seen, whole, resumed]


def of_transformers(folder: Path) -> list:
    import test_transformers as case

    def trainer(where: str, **options):
        sampler = case.Shuffle(case.N, batch_size=4, seed=7)
        return case.trainer_of(folder / where, sampler, per_device_train_batch_size=4, **case.PLAIN, **options)

    whole = trainer("whole", save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-8"))
    return [whole.seen, resumed.seen, whole.model, resumed.model]


def of_accelerate(folder: Path) -> list:
    import test_accelerate as case

    whole = case.Training().run(folder, (7,))
    resumed = case.Training()
    resumed.accelerator.load_state(str(folder / "7"))
    return [whole.seen, resumed.run().seen, whole.model, resumed.model]


if __name__ == "__main__":
    library, folder = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    seen, again, whole, resumed = globals()[f"of_{library}"](folder)
    assert 0 < len(again) < len(seen) and seen[-len(again) :] == again, (seen, again)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    state = {name.removeprefix("module."): value for name, value in whole.state_dict().items()}
    torch.save({"seen": seen, "model": state}, folder / f"final.{dist.get_rank()}")
    dist.destroy_process_group()
