"""TRL: its log-softmax and entropy helpers, and trainers that score, mask and sample by torchassay. Made for trl 1.16.

The functions need no TRL. The classes are mixins, which come before one of TRL's trainers::

    class Trainer(OneReadMixin, PromptSamplerMixin, GRPOTrainer):
        pass
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler

from torchassay import checks
from torchassay.backends import BackendFallback
from torchassay.functional import entropy, log_prob, log_prob_entropy
from torchassay.linear import linear_log_prob_entropy
from torchassay.samplers import states
from torchassay.samplers.cross_epoch import CrossEpoch
from torchassay.selection import top_fraction

if TYPE_CHECKING:
    from trl import GRPOTrainer as _Behind
else:
    _Behind = object  # what stands behind a mixin

SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")  # of logits, in configs
STATE = "torchassay_sampler"  # in a checkpoint
_IGNORED = -100


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    """TRL's ``selective_log_softmax``: log-probabilities of the classes ``index``, from one read of the logits.

    Args:
        logits: [..., C], any float dtype and strides.
        index: [...], or [..., K] for K classes a row. Where it is -100 the result is 0, without a gradient.
        temperature: > 0; the logits are divided by it.
        row_mask: shaped like ``index``: where it is 0 the result is 0, without a gradient, and what ``index`` holds
            does not matter.

    Returns:
        Shaped like ``index``, of the dtype of ``logits`` as TRL's on a CPU. It is rounded to it once, from float32, in
        which everything is summed; no log-softmax is held. `torchassay.log_prob` gives that float32.

    Raises:
        ValueError, TypeError: as `torchassay.log_prob`, for a mask of another shape, and for a class out of range.

    Example:
        >>> import torch
        >>> from torchassay.integrations.trl import selective_log_softmax
        >>> selective_log_softmax(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[1, 2]]))
        tensor([[-0.4076, -1.4076]])
    """
    index = _masked("selective_log_softmax", index, row_mask)
    return log_prob(logits, index, temperature=temperature).to(logits.dtype)


def entropy_from_logits(logits: Tensor, chunk_size: int = 128) -> Tensor:
    """TRL's ``entropy_from_logits``: the entropy of each row in nats, [...], of the dtype of ``logits``.

    ``chunk_size`` is there for the sake of calls that give it: nothing of the size of the logits is held, so there is
    nothing to do by chunks.

    Raises:
        ValueError, TypeError: as `torchassay.entropy`.
    """
    return entropy(logits).to(logits.dtype)


def selective_log_softmax_and_entropy(
    logits: Tensor,
    index: Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """TRL's function of this name: both of the above from one read, for one class a row.

    Args and errors as in `selective_log_softmax`. Where ``row_mask`` is 0 the entropy is 0 too.
    """
    kept = _masked("selective_log_softmax_and_entropy", index, row_mask)
    log_probs, entropies = log_prob_entropy(logits, kept, temperature=temperature)
    if not entropy_requires_grad:
        entropies = entropies.detach()
    if row_mask is not None:
        entropies = entropies.masked_fill(row_mask == 0, 0.0)
    return log_probs.to(logits.dtype), entropies.to(logits.dtype)


def _masked(function: str, index: Tensor, row_mask: Tensor | None) -> Tensor:
    checks.tensor(function, "index", index)
    if row_mask is None:
        return index
    checks.tensor(function, "row_mask", row_mask)
    if row_mask.shape != index.shape:
        expected = f"index's shape, {tuple(index.shape)}"
        raise checks.InputValueError(f"{function}: row_mask must have {expected}, got {tuple(row_mask.shape)}")
    return index.masked_fill(row_mask == 0, _IGNORED)


class OneReadMixin(_Behind):
    """Mixin for TRL's GRPOTrainer and RLOOTrainer: log-probabilities and entropies by
    `torchassay.linear_log_prob_entropy`, and the mask of `top_entropy_quantile` by `torchassay.top_fraction`.

    ::

        class Trainer(OneReadMixin, GRPOTrainer):
            pass

    TRL gives its models a forward that goes from hidden states to log-probabilities by tiles of the vocabulary; this
    one takes its place, for the tokens of the completions alone. It honours the temperature, autocast,
    ``cast_lm_head_to_fp32``, a bias of the head and a softcap of the config; everything around it is TRL's.

    TRL's own head goes on where this one does not fit: models that multiply their logits and mixtures of experts that
    ask for their balancing loss (a `BackendFallback` warning says so at the start), sharded heads of ZeRO-3, and labels
    shifted beforehand.

    The mask keeps exactly round(``top_entropy_quantile`` * N) of the N tokens of all ranks; of equal entropies the
    first ones. TRL's keeps all that reach an interpolated quantile, which may be one more or one fewer; of entropies
    equal to it all, as the first tokens of one prompt's completions are. There is no limit to N, where `torch.quantile`
    raises above 2^24, and entropies are not gathered.

    Raises:
        TypeError: no trainer that takes log-probabilities and entropies from such a forward comes behind it.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        if not hasattr(super(), "_get_per_token_logps_and_entropies"):
            expected = "GRPOTrainer or RLOOTrainer behind it"
            raise checks.InputTypeError(f"OneReadMixin: {type(self).__name__} must have {expected}, got neither")
        super().__init__(*args, **kwargs)
        for model in (self.model, self.ref_model):
            if model is not None:
                model = self.accelerator.unwrap_model(model)
                model = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside PEFT's
                _replace_head(model, self.temperature, getattr(self.args, "cast_lm_head_to_fp32", False))

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """The tokens of highest entropy, bool [B, T]: the share 1 - ``threshold`` of those of all ranks that ``mask``
        counts."""
        group = dist.group.WORLD if self.accelerator.num_processes > 1 else None
        return top_fraction(entropies, 1 - threshold, mask.bool(), group=group)


def _replace_head(model: nn.Module, temperature: float, wide: bool) -> None:
    """Answer calls with ``fused_lm_head=True``, which TRL's trainers make, in the place of TRL's forward."""
    from trl.trainer.utils import FusedCausalLMOutput

    given: Any = model.config
    config, theirs = given.get_text_config(), model.forward
    scales = [name for name in SCALES if getattr(config, name, None) not in (None, 1)]
    if scales:
        what = f"multiplies its logits ({scales[0]}={getattr(config, scales[0])})"
    elif getattr(config, "output_router_logits", False):
        what = "asks for its balancing loss (output_router_logits=True)"
    else:
        what = None
    if what is not None:
        reason = f"OneReadMixin: {type(model).__name__} {what}; TRL's own head goes on"
        warnings.warn(reason, BackendFallback, stacklevel=3)
        return

    @functools.wraps(type(model).forward)  # `generate` looks at the signature
    def forward(self: Any, *args: Any, fused_lm_head: Any = False, labels: Any = None, **kwargs: Any) -> Any:
        head = self.get_output_embeddings()
        unfit = kwargs.get("shift_labels") is not None or kwargs.get("output_router_logits")
        if not fused_lm_head or unfit or hasattr(head.weight, "ds_id"):  # which ZeRO-3 has taken apart
            return theirs(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        kwargs.pop("num_items_in_batch", None)  # of a loss, which nobody asks for
        hidden = self.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        hidden = hidden.to(head.weight.device)
        labels = labels[:, 1:].to(hidden.device)
        counted = labels != _IGNORED
        softcap = getattr(config, "final_logit_softcapping", None)
        log_probs, entropies = _scores(hidden[counted], head, labels[counted], temperature, softcap, wide)
        # connected to the model even where nothing counts, so that every rank has a backward
        rows = (values.new_zeros(counted.shape).masked_scatter(counted, values) for values in (log_probs, entropies))
        return FusedCausalLMOutput(**dict(zip(("log_probs", "entropy"), rows, strict=True)), label_mask=counted)

    model.forward = types.MethodType(forward, model)


def _scores(
    hidden: Tensor, head: nn.Linear, target: Tensor, temperature: float, softcap: float | None, wide: bool
) -> tuple[Tensor, Tensor]:
    # FSDP's shards are of the parameters alone, and each rank has tokens of its own
    weight, bias = (value.full_tensor() if isinstance(value, DTensor) else value for value in (head.weight, head.bias))
    with torch.autocast(hidden.device.type, enabled=False) if wide else contextlib.nullcontext():
        hidden = hidden.float() if wide else hidden
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        how: dict[str, Any] = {"linear_bias": bias, "temperature": temperature, "softcap": softcap}
        return linear_log_prob_entropy(hidden, weight, target, **how)


class PromptSamplerMixin(_Behind):
    """Mixin for TRL's GRPOTrainer: a cross-epoch sampler of torchassay chooses the prompts.

    ::

        class Trainer(PromptSamplerMixin, GRPOTrainer):
            pass

        sampler = ta.samplers.OnlineImportance(len(dataset), batch_size=8, drop_last=True, signal="loss")
        trainer = Trainer(model, rewards, args, dataset, sampler=sampler)

    Each of the sampler's batches is what one generation takes: ``generation_batch_size / num_generations`` prompts,
    each for ``num_generations`` completions. It is observed when it has been trained on. A weight of the sampler
    multiplies the advantages of its prompt. What is observed says `prompt_scores`.

    Checkpoints hold the sampler's state as ``torchassay_sampler``; ``train(resume_from_checkpoint=...)`` goes on from
    it, with the prompts that an uninterrupted run would take. A checkpoint in the middle of a generation's steps
    generates anew for the same prompts, as TRL does.

    Args:
        sampler: a `CrossEpoch` of the training set's length, with ``drop_last=True``, and of several processes
            the same on each, ``rank=0, num_replicas=1``: all see all rewards. None: TRL's own sampler.

    Raises:
        ValueError: a sampler, or an argument of the trainer, that does not fit.
        TypeError: a sampler of another type.
    """

    def __init__(self, *args: Any, sampler: CrossEpoch | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self._prompts: _Repeated | None = None
        if sampler is not None:
            _check_sampler(sampler, self)

    def prompt_scores(self, rewards: Tensor) -> dict[str, Tensor]:
        """What the sampler is told of a batch of prompts.

        Args:
            rewards: [P, G], the weighted sums of the rewards of their completions; NaN where none was given.

        Returns:
            For each of the sampler's signals the standard deviation of the rewards, [P]: where all completions get the
            same, GRPO has nothing to learn from the prompt. That this stands for what the sampler's method calls loss
            or gradient norm is our assumption: override the method for another value.
        """
        return dict.fromkeys(self.sampler.needs, rewards.std(1))

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        if self.sampler is None:
            return super()._get_train_sampler(dataset)
        self._prompts = _Repeated(self.sampler, self.num_generations, self._steps_per_prompts())
        return self._prompts

    def _steps_per_prompts(self) -> int:
        return self.args.steps_per_generation * self.num_iterations

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        by_function = super()._calculate_rewards(*args, **kwargs)  # of all processes
        if self.sampler is not None and self.model.training:
            rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
            rewards = rewards.masked_fill(by_function.isnan().all(1), torch.nan)
            self._observed = self.prompt_scores(rewards.view(-1, self.num_generations))
        return by_function

    def _generate_and_score_completions(self, inputs: list) -> dict:
        batch = super()._generate_and_score_completions(inputs)
        if self.sampler is not None and self.model.training:
            _, weight = self.sampler._batch(self.sampler.position)
            if weight is not None:
                first = self.accelerator.process_index * len(inputs)
                by_row = torch.from_numpy(weight).repeat_interleave(self.num_generations)[first : first + len(inputs)]
                batch["advantages"] = batch["advantages"] * by_row.to(batch["advantages"])
        return batch

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.sampler is not None and self._step % self._steps_per_prompts() == 0:
            index, _ = self.sampler._batch(self.sampler.position)
            self.sampler.observe(torch.from_numpy(index).long(), self._observed)
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.sampler is not None and self.args.should_save:
            state = {"sampler": self.sampler.state_dict(), "step": self._step}
            states.save(Path(output_dir) / STATE, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.sampler is None or checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if not path.exists():
            expected = f"the sampler's state, {STATE}, as without save_only_model"
            raise checks.InputValueError(f"PromptSamplerMixin: {path.parent} must hold {expected}, got none")
        state = states.load(path)
        self.sampler.load_state_dict(state["sampler"])
        self._step = state["step"]  # so that generations stay with their prompts
        self._prompts.skipped = self.sampler.position


class _Repeated(Sampler):
    """The stream of keys that GRPO takes: ``times`` times each batch, each prompt in it for every completion."""

    def __init__(self, sampler: CrossEpoch, completions: int, times: int):
        self.sampler, self.completions, self.times = sampler, completions, times
        self.skipped = 0  # batches that the trainer will skip, having trained on them before it was stopped

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.sampler.epoch:
            self.skipped = 0
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler) * self.completions * self.times

    def __iter__(self) -> Iterator[int]:
        sampler, skipped, self.skipped = self.sampler, self.skipped, 0
        if sampler.position > skipped:  # a second training with this sampler
            sampler.set_epoch(sampler.epoch + 1)
        for k in range(len(sampler) // sampler.batch_size):
            index = [0] * sampler.batch_size if k < skipped else sampler._batch(k)[0].tolist()
            for _ in range(self.times):
                for i in index:
                    yield from [i] * self.completions


def _check_sampler(sampler: CrossEpoch, trainer: Any) -> None:
    name = "PromptSamplerMixin"
    if not isinstance(sampler, CrossEpoch):
        got = type(sampler).__name__
        raise checks.InputTypeError(f"{name}: sampler must be a cross-epoch sampler of torchassay, got {got}")
    prompts, args = len(trainer.train_dataset), trainer.args
    batch = args.generation_batch_size // trainer.num_generations
    replicas = sampler._replicas
    for what, expected, got in (  # type: ignore[assignment]  # numbers, a bool and a pair
        (f"be of the training set's length, {prompts}", prompts, sampler.n),
        (f"have batch_size={batch}, generation_batch_size / num_generations", batch, sampler.batch_size),
        ("have drop_last=True", True, sampler.drop_last),
        ("have rank=0 and num_replicas=1 on every process", (0, 1), (replicas.rank, replicas.world)),
    ):
        if got != expected:
            raise checks.InputValueError(f"{name}: sampler must {what}, got {got}")
    if args.ignore_data_skip:
        raise checks.InputValueError(f"{name}: ignore_data_skip must be False with a sampler, got True")
