"""Variance reduction: draw a batch by importance from a larger one, where that is worth its forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchassay import checks, data
from torchassay.distributed import messages_of
from torchassay.philox import uniforms
from torchassay.samplers.forwards import Forward, device_of, index_of, rows_of
from torchassay.samplers.in_step import SECOND_DRAW, Chosen, InStep, checked_signal
from torchassay.scores import Scores

_LARGEST = torch.finfo(torch.float32).max  # of a score, so that sums of squares are finite in float64


class VarianceReduction(InStep):
    """Draw batches of b by importance from pools of B = pool * b, while the estimated gain in variance pays for it.

    Importance sampling of Katharopoulos and Fleuret (2018, arXiv 1803.00942): from a pool with scores G, b samples are
    drawn with replacement, each with probability g = G / sum(G), and weigh w = 1 / (B g) = mean(G) / G, so that the
    mean of w * loss has the expectation of the pool's mean loss. The default score, the norm of the loss's gradient
    with respect to the logits, is their upper bound of a sample's gradient norm.

    The gate is theirs too: `tau` says how uneven scores are, and importance is on while its moving average (before the
    scores at hand enter it) is above ``tau_threshold``. Otherwise training is the plain one.

    The loss-based form without weights of Hu et al. (2021, "When does loss-based prioritization fail?") is
    ``VarianceReduction(pool=2, signal="loss", weighted=False, warmup=False)``, and with ``pool=3``. Wrong labels have
    large losses, so on noisy data it draws them.

    Args:
        pool: how many batches make a pool, an int >= 2. The authors' library has 3; Hu et al. have, as we read their
            "max selectivity" of 50 and 33 % (an assumption), 2 and 3.
        signal: the score, a name among `torchassay.SIGNALS`. A score that is NaN or negative counts as 0, and its
            sample is never drawn; if all are 0, all are equally likely.
        tau_threshold: default (pool + 3) / 3, that is (B + 3b) / (3b): from there on a step gains if a backward costs
            two forwards (the paper's equation 29).
        momentum: of the moving average, the share of the old value, in [0, 1).
        weighted: False leaves the weights out: the mean is then biased towards large scores.
        gate: False draws from the first step on, whatever tau is.
        warmup: True: the moving average begins with 0, as in the authors' code, which keeps the gate shut at first.
            False: with the first value of tau (an assumption: Hu et al. say "no warm-up" and not how), so that the gate
            can open in the second step.
        seed, group: as in `InStep`. A draw depends on the seed, the step and its number in the batch. With a group each
            rank draws from its own part, tau is that of all scores, and the gate is the same on all ranks. Ranks count
            by their pools' sizes.

    `pick` takes the scored batch as the pool: with the gate open it draws b = max(1, round(n / pool)) of its n samples;
    ``weight`` is w times how often a sample was drawn, and ``count`` is b. With the gate shut everything is picked with
    weight 1. Every batch's scores enter tau.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch, torchassay as ta
        >>> picker = ta.samplers.VarianceReduction(pool=2, gate=False, seed=3)
        >>> picker.pick({"grad_norm": torch.tensor([0.0, 1.0, 1.0, 4.0])}).weight
        tensor([0.0000, 0.0000, 0.0000, 0.7500])
        >>> round(picker.tau, 3)  # 0.1 * sqrt(2): one step from 0
        0.141
    """

    def __init__(
        self,
        pool: int = 3,
        *,
        signal: str = "grad_norm",
        tau_threshold: float | None = None,
        momentum: float = 0.9,
        weighted: bool = True,
        gate: bool = True,
        warmup: bool = True,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ):
        name = "VarianceReduction"
        checks.integer(name, "pool", pool, 2)
        if tau_threshold is not None and not 0.0 <= tau_threshold < float("inf"):
            raise checks.InputValueError(f"{name}: tau_threshold must be at least 0 and finite, got {tau_threshold}")
        if not 0.0 <= momentum < 1.0:
            raise checks.InputValueError(f"{name}: momentum must be in [0, 1), got {momentum}")
        checked_signal(name, signal)
        super().__init__((signal,), seed=seed, group=group)
        self.pool, self.signal, self.momentum, self.weighted, self.gate = pool, signal, momentum, weighted, gate
        self.tau_threshold = (pool + 3) / 3 if tau_threshold is None else tau_threshold
        self._tau = torch.tensor(0.0 if warmup else torch.nan, dtype=torch.float64)  # NaN: no value yet
        self._out: tuple[Any, Tensor] | None = None  # a batch that came out whole, whose scores tau still waits for

    # ---- for users

    @property
    def tau(self) -> float:
        """The moving average of `tau`; NaN before the first value, if there is no warm-up."""
        return float(self._tau)

    def observe(self, scores: Scores | dict[str, Tensor]) -> None:
        """What the training forward of a batch found out: for tau, which else needs a forward of its own.

        To be called after each batch of `batches`, before the next one comes, on all ranks or on none. Only batches
        that came out whole are looked at: of drawn ones, tau knows the pool.

        Args:
            scores: a `Scores`, or a dict of tensors [n], with the signal in ``self.needs``.
        """
        values, shape = self._values(scores)
        if self._out is not None:
            self._counters.scored(shape.numel())
            self._take_in(values[self.signal])

    def batches(self, loader: Any, model: nn.Module, forward: Forward | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Batches to train on: ``for batch, weight in picker.batches(loader, model): ...``.

        With the gate shut the loader's batch comes out as it is, with weights 1. Tau needs its scores; give those of
        the training forward to `observe`, or the batch is scored anew after the step. With the gate open ``pool``
        batches of the loader are scored, and b samples drawn from them come out, as often as they were drawn. At the
        end of the loader the pool may be smaller, and b in proportion: max(1, round(B / pool)).

        Scoring, ``loader``, ``model``, ``forward``, ranks and what comes out are as in `InStep.batches`. ::

            for (x, y), weight in picker.batches(loader, model):
                loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=picker.needs)
                (weight * loss).mean().backward()
                picker.observe(s)
                ...
        """
        self._begin()
        self._measure(loader, model, forward)  # what was out when the state was saved
        incoming = self._incoming(loader)
        while True:
            opened = bool(self._open())
            while len(self._left) < (self.pool if opened else 1) and (batch := next(incoming, None)) is not None:
                every = torch.ones(rows_of(batch), dtype=torch.float64)
                self._left.append((batch, self._score_of(loader, model, batch, forward) if opened else every))
            more = bool(self._left)
            if not (more if self.group is None else self._agreed(True, more)[1]):
                break
            with self._counters.scoring():
                batch, weight = self._formed(opened)
            weight = weight.to(device_of(batch))
            self._counters.picked(weight, index_of(loader, batch))
            self.step += 1
            self._out = None if opened else (batch, weight)
            yield batch, weight
            self._measure(loader, model, forward)
        self._end()

    # ---- inside

    def _choose(self, scores: dict[str, Tensor], index: Tensor | None, mask: Tensor | None) -> Chosen:
        score = _usable(scores[self.signal], mask)
        valid = torch.ones_like(score) if mask is None else mask.double()
        n = valid.sum()
        most = _size(len(score), self.pool)
        b = (n / self.pool).round().clamp(min=1).minimum(n)  # how many of them count: n is not known to the host
        rows, of_draw = self._drawn(score, valid, most)
        counts = torch.arange(most, device=score.device) < b
        weight = torch.zeros_like(score).index_add_(0, rows, torch.where(counts, of_draw, 0.0))
        sums = self._over_ranks(_sums(score, n, b))
        if self.group is not None:
            weight = weight * (n / b.clamp(min=1) * sums[3] / sums[2].clamp(min=1))
        opened = self._open().to(score.device)
        self._learn(sums)
        return Chosen(torch.where(opened, weight, valid).float(), torch.where(opened, b, n))

    def _formed(self, opened: bool) -> tuple[Any, Tensor]:
        """The next batch, of what is collected, and its weights; with weight 0 where that is too little."""
        parts, self._left = self._left, []
        score = torch.cat([score for _, score in parts]) if parts else torch.zeros(0, dtype=torch.float64)
        if parts and not opened:
            batch, weight = parts[0][0], torch.ones(len(score))
        else:
            count = _size(len(score), self.pool)
            if parts:
                rows, of_draw = self._drawn(score, torch.ones_like(score), count)
                drawn = data.take(data.join([batch for batch, _ in parts]), rows.cpu())
                self._left = [(drawn, of_draw.float().cpu())]
            batch, weight = self._taken(count)
            weight = weight * (len(weight) / max(1, count))
        sums = self._over_ranks(_sums(score, score.new_tensor(len(score))))
        if self.group is not None:
            weight = weight * (self.group.size() * len(score) / float(sums[2]))
        if opened:
            self._learn(sums)
        return batch, weight

    def _drawn(self, score: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """``count`` rows, independently of each other, and the weight of each draw."""
        likely = torch.where(score.sum() > 0, score, valid)
        upto = likely.cumsum(0)
        draw = self._row_ids(count, score.device)
        high, low = (uniforms(draw + half, seed=self.seed, step=self.step).double() for half in (0, SECOND_DRAW))
        rows = torch.searchsorted(upto, (high + low * 2.0**-24) * upto[-1:], right=True).clamp(max=len(score) - 1)
        return rows, upto[-1:] / valid.sum() / likely[rows] if self.weighted else torch.ones_like(high)

    def _open(self) -> Tensor:
        return (self._tau > self.tau_threshold) | (not self.gate)

    def _learn(self, sums: Tensor) -> None:
        """Scores' tau enters the average."""
        new = _tau_of(sums)
        self._tau = self._tau.to(new.device)
        average = self.momentum * self._tau + (1 - self.momentum) * new
        self._tau.copy_(torch.where(self._tau.isnan(), new, average))

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if self.group is None:
            return sums
        total = sums.to(messages_of(self.group), copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(sums.device)

    def _score_of(self, loader: Any, model: nn.Module, batch: Any, forward: Forward | None) -> Tensor:
        values, _ = self._values(self._scored(model, batch, index_of(loader, batch), forward))
        return _usable(values[self.signal])

    def _measure(self, loader: Any, model: nn.Module, forward: Forward | None) -> None:
        """Score the batch that came out whole, if nobody has told its scores."""
        if self._out is not None:
            self._take_in(self._score_of(loader, model, self._out[0], forward))

    def _take_in(self, values: Tensor) -> None:
        _, weight = self._out  # type: ignore[misc]  # both callers have looked
        if len(values) != len(weight):
            expected = f"one value for each of the batch's {len(weight)} samples"
            raise checks.InputValueError(f"VarianceReduction: scores must have {expected}, got {len(values)}")
        here = (weight > 0).to(values.device)  # not the sample that stands in for none
        score = _usable(values, here)
        self._learn(self._over_ranks(_sums(score, here.double().sum())))
        self._out = None

    def _state(self) -> dict:
        out = None if self._out is None else {"batch": self._out[0], "weight": self._out[1]}
        return {"tau": self._tau, "out": out}

    def _load(self, state: dict) -> None:
        self._tau, out = state["tau"].clone(), state["out"]
        self._out = None if out is None else (out["batch"], out["weight"])


def tau(scores: Tensor) -> Tensor:
    """How uneven scores G of a pool are: sqrt(mean(G^2)) / mean(G), from 1 (all equal) to sqrt(B) (one of B, 0 others).

    The statistic of Katharopoulos and Fleuret (2018, arXiv 1803.00942): with g = G / sum(G) they write it
    (1 - sum((g - 1/B)^2) / sum(g^2))^(-1/2), and read it as what a batch would have to grow by, without importance
    sampling, to reduce the variance as much. If all scores are 0, all count as equal. Float64, 0-d, on their device.

    Args:
        scores: float, of any shape; NaN and negative ones count as 0.

    Example:
        >>> import torch
        >>> from torchassay.samplers.variance_reduction import tau
        >>> tau(torch.tensor([0.0, 0.0, 3.0, 0.0])), tau(torch.ones(5))
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    checks.tensor("tau", "scores", scores)
    if not scores.is_floating_point():
        raise checks.InputTypeError(f"tau: scores must be floating-point, got {checks.dtype_name(scores.dtype)}")
    score = _usable(scores.detach())
    return _tau_of(_sums(score, score.new_tensor(score.numel())))


def _tau_of(sums: Tensor) -> Tensor:
    first, second, n = sums[0], sums[1], sums[2]
    return torch.where(first > 0, (n * second).sqrt() / first, 1.0)


def _sums(score: Tensor, *counts: Tensor) -> Tensor:
    """Of scores and of their squares, and counts beside them."""
    return torch.stack([score.sum(), score.square().sum(), *counts])


def _usable(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scores that one can draw by, float64."""
    score = values.double().nan_to_num(nan=0.0).clamp(0.0, _LARGEST)
    return score if mask is None else score.masked_fill(~mask, 0.0)


def _size(n: int, pool: int) -> int:
    """How many are drawn from n."""
    return min(n, max(1, round(n / pool)))
