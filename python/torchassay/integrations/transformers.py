"""Samplers in Hugging Face's Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, default_collate

from torchassay import checks
from torchassay.data import Indexed
from torchassay.functional import cross_entropy
from torchassay.integrations import traps
from torchassay.samplers import CrossEpoch, InStep
from torchassay.scores import SIGNALS, Scores

try:
    from transformers import Trainer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.trainer_utils import seed_worker
    from transformers.utils import is_datasets_available
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('SamplerMixin needs Transformers: pip install "transformers[torch]>=5.23"') from error

_NAME = "SamplerMixin"
if TYPE_CHECKING:
    from transformers import Trainer as _Behind
else:
    _Behind = object  # what stands behind a mixin


class SamplerMixin(_Behind):
    """Before `transformers.Trainer` among a class's bases: it takes its batches from a sampler, or picks from them.

    ::

        class SelectiveTrainer(SamplerMixin, Trainer):
            pass

        sampler = ta.samplers.OnlineImportance(len(dataset), batch_size=args.per_device_train_batch_size)
        SelectiveTrainer(model, args, train_dataset=dataset, sampler=sampler).train()

    The index and weight of each sample go beside ``remove_unused_columns`` and the data collator, and the model does
    not see them. The loss is a cross-entropy of the model's logits, for labels [N] with logits [N, C], or labels [N, T]
    with logits [N, T, C], those of a causal language model moved by one token; ``label_smoothing_factor`` counts.
    Tokens labelled -100 do not. A sample's loss, and each of its signals, is the mean over its tokens, and samples
    count alike: Trainer's own loss of language models is a mean over all tokens instead.

    With a sampler the weighted losses of all samples of a step, in all processes and in all batches whose gradients are
    accumulated, are divided by their number. With a picker each batch's are divided by how many were picked in all
    processes, and the mean over the accumulated batches is taken.

    A checkpoint folder also holds ``torchassay_sampler_RANK`` and ``torchassay_picker_RANK``, one a process, and
    ``train(resume_from_checkpoint=...)`` with as many processes goes on with the batches of the uninterrupted training,
    in mid-epoch too; skipping what was trained on costs nothing.

    Args:
        sampler: a `CrossEpoch` with the batch size of one device and the length of the training set; or None.
        picker: an `InStep`, whose ``pick`` each batch goes through; or None. Without either all is Trainer's own.
        others: of `transformers.Trainer`.

    `check` looks for traps when the trainer is made: what would make the training wrong is a ``ValueError``, the rest a
    warning.

    Raises:
        TypeError: the sampler or the picker is of another type.
    """

    def __init__(self, *args: Any, sampler: CrossEpoch | None = None, picker: InStep | None = None, **kwargs: Any):
        for argument, value, kind in (("sampler", sampler, CrossEpoch), ("picker", picker, InStep)):
            if value is not None and not isinstance(value, kind):
                expected = f"a torchassay.samplers.{kind.__name__}"
                raise checks.InputTypeError(f"{_NAME}: {argument} must be {expected}, got {type(value).__name__}")
        self.sampler, self.picker = sampler, picker
        super().__init__(*args, **kwargs)
        if sampler is not None or picker is not None:
            self.loss_is_scaled_for_ga = picker is None
            traps.heed(_NAME, check(self))

    # ---- batches

    def get_train_dataloader(self) -> DataLoader:
        """Our own loader: Accelerate's would take each process's share of what the sampler has shared out already."""
        if self.sampler is None:
            return super().get_train_dataloader()
        dataset, collate, args = self.train_dataset, self.data_collator, self.args
        dataset = dataset.dataset if isinstance(dataset, Indexed) else dataset
        if _of_datasets(dataset):
            dataset = self._remove_unused_columns(dataset, description="Training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="Training")
        return DataLoader(
            Indexed(dataset),
            batch_sampler=_Batches(self.sampler),
            collate_fn=_Collate(collate),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )

    def _run_epoch(
        self, *, epoch: int, train_dataloader: Any, steps_in_epoch: Any, num_update_steps_per_epoch: Any, **others: Any
    ) -> None:
        """With as many steps as this epoch has; Trainer counts those of the first one."""
        for part in (self.sampler, self.picker):
            if part is not None:
                part.set_epoch(epoch)
        if self.sampler is not None:
            steps_in_epoch = len(train_dataloader)
            num_update_steps_per_epoch = math.ceil(steps_in_epoch / self.args.gradient_accumulation_steps)
        super()._run_epoch(
            epoch=epoch,
            train_dataloader=train_dataloader,
            steps_in_epoch=steps_in_epoch,
            num_update_steps_per_epoch=num_update_steps_per_epoch,
            **others,
        )

    # ---- loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if (self.sampler is None and self.picker is None) or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels, index, weight = (inputs.pop(name, None) for name in ("labels", "index", "weight"))
        outputs = model(**inputs)
        loss, scores = self._of_samples(outputs["logits"] if isinstance(outputs, Mapping) else outputs[0], labels)
        loss = loss if weight is None else weight * loss
        if self.sampler is not None:
            self.sampler.observe(index, scores)
        if self.picker is not None:
            loss = self.picker.pick(scores, index=index).mean(loss)
        else:  # gradients are averaged over processes
            loss = loss.sum() / num_items_in_batch * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Of a step with a sampler, the number of its samples in all processes."""
        if self.sampler is None or not batch_samples or "index" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        count = torch.tensor(sum(len(batch["index"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def _of_samples(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Scores]:
        """The loss [N] and the signals, each [N], of the samples of a batch."""
        needs = tuple(dict.fromkeys(name for part in self._parts().values() for name in part.needs))
        if labels.dim() > 1 and self._is_causal():
            logits, labels = logits[:, :-1], labels[:, 1:]
        smoothing = self.args.label_smoothing_factor
        loss, scores = cross_entropy(
            logits, labels, dim=-1, reduction="none", label_smoothing=smoothing, signals=needs or ("loss",)
        )
        if labels.dim() == 1:
            return loss, scores
        counts = labels != -100
        return loss.sum(1) / counts.sum(1).clamp(min=1), scores.per_sample(counts)

    def _is_causal(self) -> bool:
        """Whether logits are of the next token. Trainer knows it of the models that name their kind of loss."""
        model = self.accelerator.unwrap_model(self.model)
        return self._loss_shifts_labels or type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    # ---- checkpoints

    def _save_rng_state(self, output_dir: str) -> None:
        """Each process's part of a checkpoint, written before Trainer's own state makes it a whole one."""
        super()._save_rng_state(output_dir)
        for name, part in self._parts().items():
            part.save(self._path(output_dir, name))

    def _init_training_state(
        self,
        max_steps: Any,
        num_update_steps_per_epoch: Any,
        num_train_epochs: Any,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        """The epoch to go on with, and how many of its batches to skip: the sampler knows."""
        found = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            for name, part in self._parts().items():
                path = self._path(resume_from_checkpoint, name)
                if not path.exists():
                    expected = f"the state of the {name}, {path.name}, as without save_only_model"
                    raise checks.InputValueError(f"{_NAME}: {path.parent} must hold {expected}, got none")
                part.load(path)
        sampler = self.sampler
        if sampler is None:
            return found
        if resume_from_checkpoint is None and (sampler.epoch or sampler.position):
            got = f"one at batch {sampler.position} of epoch {sampler.epoch}"
            expected = "a new one, or resume_from_checkpoint be given"
            raise checks.InputValueError(f"{_NAME}: sampler must be {expected}, got {got}")
        through = sampler.position > 0 and sampler.position >= sampler._batches()
        return (sampler.epoch + 1, 0) if through else (sampler.epoch, sampler.position)

    def _parts(self) -> dict[str, CrossEpoch | InStep]:
        parts = {"sampler": self.sampler, "picker": self.picker}
        return {name: part for name, part in parts.items() if part is not None}

    def _path(self, folder: str, name: str) -> Path:
        return Path(folder) / f"torchassay_{name}_{self.args.process_index}"


class _Batches(BatchSampler):
    """A sampler's batches, behind an empty one for each that was trained on before: Trainer skips as many."""

    def __init__(self, sampler: CrossEpoch):
        super().__init__(sampler, sampler.batch_size, drop_last=False)

    def __iter__(self) -> Iterator[list]:
        yield from ([] for _ in range(self.sampler.position))
        yield from super().__iter__()


class _Collate:
    """A data collator that hands on the index and weight of samples beside what the user's makes of the rest."""

    def __init__(self, collate: Callable):
        self._collate = collate

    def __call__(self, items: list[dict]) -> Any:
        if not isinstance(items[0], Mapping):
            expected = "dicts, as those of datasets.Dataset are"
            raise checks.InputTypeError(f"{_NAME}: items of train_dataset must be {expected}, got another type")
        columns = {
            name: default_collate([item.pop(name) for item in items])
            for name in ("index", "weight")
            if name in items[0]
        }
        batch = self._collate(items)
        batch.update(columns)
        return batch


def _of_datasets(dataset: Any) -> bool:
    if not is_datasets_available():
        return False
    import datasets

    return isinstance(dataset, datasets.Dataset)


def check(trainer: Trainer, loader: Any = None) -> Iterator[traps.Finding]:
    """The traps between a Trainer and its samplers.

    Args:
        trainer: of a class with `SamplerMixin` or without.
        loader: not needed, as the Trainer makes it.
    """
    args = trainer.args
    if not isinstance(trainer, SamplerMixin):
        if isinstance(trainer.train_dataset, Indexed):
            fix = "class SelectiveTrainer(SamplerMixin, Trainer), or remove_unused_columns=False"
            if args.remove_unused_columns:
                yield traps.Finding(f"remove_unused_columns takes the index out of the batches: {fix}", True)
        return
    sampler, picker = trainer.sampler, trainer.picker
    if sampler is None and picker is None:
        return
    if trainer.compute_loss_func is not None:
        yield traps.Finding("compute_loss_func is not called with a sampler or picker: leave it away", True)
    if args.n_gpu > 1:
        fix = "one process a GPU, as torchrun starts them"
        yield traps.Finding(f"DataParallel over {args.n_gpu} GPUs has one sampler for all of them: {fix}", True)
    if args.auto_find_batch_size:
        yield traps.Finding("the batch size must be the sampler's: auto_find_batch_size=False", True)
    for part in (sampler, picker):
        missing = [name for name in getattr(part, "needs", ()) if name not in SIGNALS]
        if missing:
            fix = "a Trainer gives signals of the logits alone"
            yield traps.Finding(f"{type(part).__name__} needs {', '.join(missing)}: {fix}", True)
    if picker is not None:
        yield from traps.of_picker(picker, args.world_size)
    if sampler is not None:
        yield from _of_sampler(trainer, sampler)


def _of_sampler(trainer: Trainer, sampler: CrossEpoch) -> Iterator[traps.Finding]:
    args, name = trainer.args, type(sampler).__name__
    if trainer.train_dataset is not None and len(trainer.train_dataset) != sampler.n:
        got = f"train_dataset has {len(trainer.train_dataset)} samples, the sampler {sampler.n}"
        yield traps.Finding(f"{got}: {name}(len(train_dataset), ...)", True)
    if args.train_batch_size != sampler.batch_size:
        got = f"per_device_train_batch_size is {args.train_batch_size}, the sampler's batch_size {sampler.batch_size}"
        yield traps.Finding(f"{got}: {name}(batch_size={args.train_batch_size})", True)
    if args.dataloader_drop_last and not sampler.drop_last:
        yield traps.Finding(f"the sampler says which batch is the last: {name}(drop_last=True)", False)
    if args.ignore_data_skip:
        fix = "ignore_data_skip=False, at no cost with a sampler"
        yield traps.Finding(f"a resumed training would count the steps of its epoch anew: {fix}", True)
    yield from traps.of_ranks(sampler, args.world_size)
    yield from traps.of_prefetching(sampler, args.dataloader_num_workers, args.dataloader_prefetch_factor)
    yield from traps.of_model(trainer.model, sampler)
    if args.lr_scheduler_type != "constant":
        yield from traps.of_schedule(sampler, "TrainingArguments(max_steps=...)")
