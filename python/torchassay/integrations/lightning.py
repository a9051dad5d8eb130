"""Samplers in Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchassay import checks
from torchassay.integrations import ranks, traps
from torchassay.samplers import CrossEpoch, InStep
from torchassay.samplers.forwards import index_of

try:
    import lightning as L
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('SamplerCallback needs Lightning: pip install "lightning>=2.6"') from error

_NAME = "SamplerCallback"


class SamplerCallback(L.Callback):
    """Tells samplers what Lightning's Trainer does, and keeps their state in its checkpoints.

    ::

        class Classifier(L.LightningModule):
            def training_step(self, batch, batch_idx):
                x, y, index, weight = batch
                loss, s = ta.cross_entropy(self.model(x), y, reduction="none", signals=sampler.needs)
                return {"loss": (weight * loss).mean(), "scores": s}

        trainer = L.Trainer(use_distributed_sampler=False, callbacks=[SamplerCallback(sampler)])
        trainer.fit(Classifier(), DataLoader(dataset, batch_size=32, sampler=sampler))

    ``training_step`` returns ``"scores"`` beside the loss: `Scores`, or a dict of tensors, with the signals in
    ``sampler.needs``; they are observed when the batch ends. Which samples they are of stands in the batch, which comes
    from a `torchassay.Indexed`; a step that has them elsewhere returns ``"index"`` too. With `Shuffle`, which plans
    from no scores, they can be left out.

    A picker is used in ``training_step`` by its `pick`; here it is told the epoch, and saved.

    The epoch's length follows the sampler. A checkpoint, in mid-epoch too, holds the states of all ranks, and
    ``fit(ckpt_path=...)`` with as many processes gives the batches of the uninterrupted training.

    Args:
        sampler: the `CrossEpoch` that the training loader draws from.
        picker: an `InStep`.

    Before the first batch `check` looks for traps: what would make the training wrong is a ``ValueError``, the rest a
    warning.

    Raises:
        TypeError: neither is given, or one is of another type.
    """

    def __init__(self, sampler: CrossEpoch | None = None, picker: InStep | None = None):
        for argument, value, kind in (("sampler", sampler, CrossEpoch), ("picker", picker, InStep)):
            if value is not None and not isinstance(value, kind):
                expected = f"a torchassay.samplers.{kind.__name__}"
                raise checks.InputTypeError(f"{_NAME}: {argument} must be {expected}, got {type(value).__name__}")
        if sampler is None and picker is None:
            raise checks.InputTypeError(f"{_NAME}: sampler or picker must be given, got neither")
        self.sampler, self.picker = sampler, picker
        self._resumed = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        traps.heed(_NAME, check(trainer))
        self._begin(trainer)
        if self._resumed:  # the loader's iteration began before Lightning knew which epoch is to go on
            iter(trainer.fit_loop._data_fetcher)
            self._resumed = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.sampler is None:
            return
        said = outputs if isinstance(outputs, Mapping) else {}
        if "scores" in said:
            index = said.get("index")
            index = index_of(trainer.train_dataloader, batch) if index is None else index
            self.sampler.observe(index, said["scores"])  # type: ignore[arg-type]  # which says so where there is none
        elif getattr(self.sampler, "plans_from_memory", True):
            expected = f"a dict with 'loss' and 'scores' for {type(self.sampler).__name__}"
            got = ", ".join(map(repr, said)) or "nothing"
            raise checks.InputValueError(f"{_NAME}: training_step must return {expected}, got {got}")
        else:
            self.sampler.advance()

    def state_dict(self) -> dict:
        return {name: ranks.of_all_ranks(part.state_dict()) for name, part in self._parts()}

    def load_state_dict(self, state_dict: dict) -> None:
        for name, part in self._parts():
            if name not in state_dict:
                got = ", ".join(state_dict) or "nothing"
                raise checks.InputValueError(f"{_NAME}: the checkpoint must hold the state of a {name}, got {got}")
            part.load_state_dict(ranks.of_this_rank(_NAME, state_dict[name]))
        if self.sampler is not None:
            self.sampler.set_epoch(self.sampler.epoch)  # a loader does not go on to the next one by itself
        self._resumed = True

    def _parts(self) -> Iterator[tuple[str, CrossEpoch | InStep]]:
        for name, part in (("sampler", self.sampler), ("picker", self.picker)):
            if part is not None:
                yield name, part

    def _begin(self, trainer: L.Trainer) -> None:
        """An epoch begins or goes on. Lightning counts the batches of the first one alone."""
        for _, part in self._parts():
            part.set_epoch(trainer.current_epoch)
        if self.sampler is None or not traps.changes_length(self.sampler):
            return
        loop, limit = trainer.fit_loop, trainer.limit_train_batches
        length = len(trainer.train_dataloader)
        loop.max_batches = min(length, limit) if isinstance(limit, int) else int(length * limit)
        loop._combined_loader.limits = [loop.max_batches]
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))


def check(trainer: L.Trainer, loader: Any = None) -> Iterator[traps.Finding]:
    """The traps between a Trainer and the samplers of its `SamplerCallback`.

    Args:
        trainer: before or in ``fit``.
        loader: the training loader, which the Trainer does not know before ``fit``.
    """
    loader = trainer.train_dataloader if loader is None else loader
    callback = next((found for found in trainer.callbacks if isinstance(found, SamplerCallback)), None)
    if callback is None:
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, CrossEpoch):
            fix = "Trainer(callbacks=[SamplerCallback(sampler)])"
            yield traps.Finding(f"nobody tells the {type(sampler).__name__} what was trained on: {fix}", True)
        return
    sampler, picker = callback.sampler, callback.picker
    if picker is not None:
        yield from traps.of_picker(picker, trainer.world_size)
    if sampler is None:
        return
    yield from traps.of_ranks(sampler, trainer.world_size)
    if trainer._accelerator_connector.use_distributed_sampler and trainer.world_size > 1:
        got = f"each process takes a share of what the {type(sampler).__name__} has shared out already"
        yield traps.Finding(f"{got}: Trainer(use_distributed_sampler=False)", True)
    elif loader is not None:
        yield from traps.of_loader(loader, sampler)
    if trainer.overfit_batches:
        fix = "Trainer(limit_train_batches=...)"
        yield traps.Finding(f"overfit_batches puts another sampler in the place of this one: {fix}", True)
    if trainer.lightning_module is not None:
        yield from traps.of_model(trainer.lightning_module, sampler)
    if any(config.interval == "step" for config in trainer.lr_scheduler_configs):
        yield from traps.of_schedule(sampler, "a schedule of as many steps as will be taken")
