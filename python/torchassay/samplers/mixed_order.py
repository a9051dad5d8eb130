"""``MixedOrder``: easy and hard samples side by side in every batch (MoMBS)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from torchassay import checks
from torchassay.ensemble import ensemble_score
from torchassay.noise import FeatureNoise
from torchassay.samplers.forwards import evaluating, unwrapped
from torchassay.samplers.planned import Planned

LARGEST = 1 << 31  # samples: the sum of two ranks and an index share 64 bits
FIELDS = {"both": ("loss", "uncertainty"), "loss": ("loss",), "uncertainty": ("uncertainty",)}
_NOISE = 1  # the purpose of random numbers


class MixedOrder(Planned):
    """Batches that mix easy and hard samples: MoMBS, mixed-order minibatch sampling (arXiv 2505.18741).

    Every sample comes once an epoch and with weight 1; what changes is which samples share a batch. A sample's
    difficulty is its rank by loss plus its rank by uncertainty. From the easiest, the hardest, the second easiest, the
    second hardest and so on batches are cut, which come in random order: of an even batch size each holds the easiest
    and the hardest that are left, and all are about equally difficult. So samples of high loss and high uncertainty
    meet those that are low in both, and lead the gradient. The authors see most benefit at batch sizes of 2 to 8.

    ::

        loss, s = ta.cross_entropy(model(x), y, signals="loss")
        loss.backward()
        optimizer.step()
        sampler.observe(index, {"loss": s.loss, "uncertainty": sampler.uncertainty(model, x)})

    Args:
        data, batch_size, seed, drop_last, rank, num_replicas, plan_dir: as in `CrossEpoch`.
        pivot: epochs, from 0 on, up to this one are plain shuffles; later ones take the latest values, usually those of
            the epoch before. The authors' run on CIFAR-100N has 20 (of 300); they find that it depends on the data set,
            and that values are unstable if it is too small.
        order: "mixed", or "easy_to_hard": the epoch in the order of difficulty, batches too, as their code offers.
        by: "both", or "loss" or "uncertainty" alone, the ablations; `observe` needs no more than that.
        layers: names of ``model.named_modules()`` whose features `uncertainty` makes noisy. Where noise goes, its kind
            and its size are not published, so these are assumptions: noise after the last stage, of a tenth of the
            features' standard deviation, is a start.
        std, kind: of the noise, as in `FeatureNoise`; assumptions, as ``layers``.
        draws: noisy forwards of each batch; 2 in the authors' run, whose code has 4 and 8 as alternatives.

    Where this differs from the authors' code:
        An odd number's middle sample comes once, not twice. Samples that fill no batch (of middle difficulty, from easy
        to hard the hardest) come as a smaller last one; with ``drop_last`` other ones, at random, sit out in each epoch
        and keep their values, where the code drops the middle ones for the rest of the training. The uncertainty is
        that of the paper's description, see there.
    Assumptions of ours:
        Equal values rank in the order of the data set. A sample without a value, as nothing is known of it, ranks above
        all that have one, so it counts as hard. From easy to hard batches are not shuffled.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type.
        RuntimeError: an epoch beyond the pivot begins, and nothing has been observed.

    Example:
        >>> import torch, torchassay as ta
        >>> sampler = ta.samplers.MixedOrder(8, batch_size=2, pivot=0, by="loss")
        >>> loss = torch.tensor([0.8, 0.1, 0.7, 0.2, 0.6, 0.3, 0.5, 0.4])
        >>> for index in torch.tensor(list(sampler)).split(2):
        ...     sampler.observe(index, {"loss": loss[index]})
        >>> sampler.set_epoch(1)
        >>> sorted(sampler.plan().reshape(4, 2).tolist())
        [[1, 0], [3, 2], [5, 4], [7, 6]]
    """

    fields: Mapping[str, str] = dict.fromkeys(FIELDS["both"], "last")

    def __init__(
        self,
        data: Dataset | int,
        *,
        batch_size: int,
        pivot: int = 20,
        order: str = "mixed",
        by: str = "both",
        layers: str | Sequence[str] | None = None,
        std: float | None = None,
        kind: str = "gaussian",
        draws: int = 2,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        num_replicas: int | None = None,
        plan_dir: str | os.PathLike | None = None,
    ):
        for argument, value, least in (("pivot", pivot, 0), ("draws", draws, 1)):
            checks.integer("MixedOrder", argument, value, least)
        if order not in ("mixed", "easy_to_hard"):
            raise checks.InputValueError(f"MixedOrder: order must be 'mixed' or 'easy_to_hard', got {order!r}")
        if by not in FIELDS:
            raise checks.InputValueError(f"MixedOrder: by must be one of {', '.join(FIELDS)}, got {by!r}")
        n = self._samples(data)
        if n > LARGEST:
            raise checks.InputValueError(f"MixedOrder: data must have at most {LARGEST} samples, got {n}")
        self.pivot, self.order, self.by = pivot, order, by
        self.layers, self.std, self.kind, self.draws = layers, std, kind, draws
        self.fields = dict.fromkeys(FIELDS[by], "last")
        super().__init__(
            data,
            batch_size=batch_size,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            num_replicas=num_replicas,
            plan_dir=plan_dir,
        )

    def uncertainty(
        self, model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Tensor] | None = None
    ) -> Tensor:
        """How unsure the model is of the batch that was just trained on: the entropy under feature noise.

        To be called after the optimizer's step and before `observe`, with the same augmented batch. It is the entropy
        of the mean of the softmax over noisy forwards, in eval mode without gradient; the modes of all modules are as
        before afterwards. The noise is another one in each step and depends on the seed, the epoch and the batch's
        place in it alone. What is observed before epoch ``pivot`` is replaced before a plan reads it, but for samples
        that sit out then: until then NaN in its place saves the forwards.

        That the entropy is one over all classes is an assumption. The authors' published code has another form, of the
        target's logit, normalised over the batch, so that a sample's value depends on the others; it is not offered.
        Any other uncertainty may be given to `observe`.

        Args:
            model: under DistributedDataParallel its module is run, which needs no other rank.
            batch: what the model takes, on its device.
            forward: ``forward(model, batch)`` gives the logits, [N, C]. Default: ``model(batch)``.

        Returns:
            [N] float32 (float64 for float64 logits), nats.

        Raises:
            ValueError: ``layers`` was not given, or what `FeatureNoise` and `ensemble_score` raise.
        """
        if self.layers is None:
            expected = "given to MixedOrder, the names of the layers to make noisy"
            raise checks.InputValueError(f"MixedOrder.uncertainty: layers must be {expected}, got None")
        model = unwrapped(model)
        place = self.position * self._replicas.world + self._replicas.rank
        seed = int(self._random(_NOISE, place).integers(1 << 63))
        noise = FeatureNoise(model, self.layers, self.std, self.kind, seed=seed)
        with self._counters.scoring(), evaluating(model), noise, torch.no_grad():
            logits = torch.stack([forward(model, batch) if forward else model(batch) for _ in range(self.draws)])
        found = ensemble_score(logits, signals="predictive_entropy").predictive_entropy
        self._counters.scored(self.draws * len(found))
        return found

    def categories(self) -> dict[str, Tensor]:
        """The samples by the four kinds that the paper tells apart, int64 indices; for reports, no plan reads them.

        "well_represented": low loss, low uncertainty; "overfitted": low loss, high uncertainty; "poorly_labeled": high
        loss, low uncertainty; "under_represented": high in both. Which is which follows from the paper's names. That
        high means the upper half of the ranks (without the middle one of an odd number) is an assumption. Samples that
        lack a value are in none.

        Raises:
            ValueError: the sampler has one of the two values alone.
        """
        if self.by != "both":
            raise checks.InputValueError(f"MixedOrder.categories: by must be 'both', got {self.by!r}")
        loss, uncertainty = self._values()
        known = np.flatnonzero(~(np.isnan(loss) | np.isnan(uncertainty)))
        high_loss, high_uncertainty = _upper_half(loss[known]), _upper_half(uncertainty[known])
        found = {
            "well_represented": ~high_loss & ~high_uncertainty,
            "overfitted": ~high_loss & high_uncertainty,
            "poorly_labeled": high_loss & ~high_uncertainty,
            "under_represented": high_loss & high_uncertainty,
        }
        return {name: torch.from_numpy(known[chosen]) for name, chosen in found.items()}

    def _values(self) -> list[np.ndarray]:
        return [self.memory[name].numpy() for name in self.fields]

    def _ready(self, epoch: int) -> bool:
        return epoch <= self.pivot or not any(np.isnan(np.fmin.reduce(values)) for values in self._values())

    def _missing(self) -> str:
        needed = f"{' and '.join(self.fields)} of samples have been observed"
        return f"MixedOrder: epoch {self.epoch}, after the pivot, can't be planned before {needed}"

    def _plan(self, epoch: int) -> tuple[np.ndarray, None]:
        if epoch <= self.pivot:
            return self._shuffled(), None
        order = ascending(rank_sum(*self._values())).astype(self._index_type)
        spare = self.n % (self.batch_size * self._replicas.world) if self.drop_last else 0
        return in_batches(order, self.batch_size, self.order == "mixed", spare, self._random()), None

    def _arguments(self) -> dict:
        return super()._arguments() | {"pivot": self.pivot, "order": self.order, "by": self.by}


def ascending(values: np.ndarray) -> np.ndarray:
    """The indices that sort float32 or uint32 ``values`` from small to large, int64; stable, NaN last.

    Sorting words with a value above its index is stable however they are sorted. In place it takes 8 bytes a value,
    less than an argsort, and a fifth of the time of a stable one.
    """
    if values.dtype == np.float32:
        bits = (values + np.float32(0)).view(np.uint32)  # the sum makes -0 a 0, so that the two tie
        bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)  # unsigned, in the order of values
        bits[np.isnan(values)] = 0xFFFFFFFF
        values = bits
        del bits
    words = values.astype(np.uint64)
    del values
    words <<= 32
    words |= np.arange(len(words), dtype=np.uint32)
    words.sort()
    words &= 0xFFFFFFFF
    return words.view(np.int64)


def rank_sum(*signals: np.ndarray) -> np.ndarray:
    """The difficulty of each sample: the sum of its ranks in the signals, from 0 for the smallest; uint32."""
    total = np.zeros(len(signals[0]), dtype=np.uint32)
    for values in signals:
        np.add.at(total, ascending(values), np.arange(len(total), dtype=np.uint32))
    return total


def interleave(order: np.ndarray) -> np.ndarray:
    """First, last, second, last but one, ...; each once, the middle one of an odd number at the end."""
    found = np.empty_like(order)
    half = (len(order) + 1) // 2
    found[0::2] = order[:half]
    found[1::2] = order[half:][::-1]
    return found


def in_batches(order: np.ndarray, batch_size: int, mixed: bool, spare: int, rng: np.random.Generator) -> np.ndarray:
    """The samples in the order of batches, from ``order``, which runs from easy to hard.

    Mixed batches come in random order, and behind them what fills none. ``spare`` random samples take part in none and
    come at the very end.
    """
    left_out = rng.choice(len(order), spare, replace=False)
    order, last = np.delete(order, left_out), order[left_out]
    if mixed:
        order = interleave(order)
        full = len(order) // batch_size
        batches = order[: full * batch_size].reshape(full, batch_size)
        batches[:] = batches[rng.permutation(full)]
    return np.concatenate([order, last])


def _upper_half(values: np.ndarray) -> np.ndarray:
    """Which values, as bool, rank in the upper half."""
    high = np.zeros(len(values), dtype=bool)
    high[ascending(values)[(len(values) + 1) // 2 :]] = True
    return high
