"""An epoch of weighted draws: `torch.utils.data.WeightedRandomSampler` for more samples, ranks and runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from torchassay import checks
from torchassay.distributed import placed
from torchassay.samplers import states
from torchassay.sum_tree import Numbers, SumTree, key_of

AT_ONCE = 4096  # keys that are Python numbers at a time


class WeightedSampler(states.Saved, Sampler):
    """`torch.utils.data.WeightedRandomSampler` for any number of weights, several processes, and runs that go on.

    ::

        sampler = ta.WeightedSampler(weights, num_samples=len(dataset))
        loader = DataLoader(dataset, batch_size=32, sampler=sampler)
        for epoch in range(sampler.epoch, 100):
            sampler.set_epoch(epoch)
            for x, y in loader:
                ...

    Args:
        weights: [n], one a sample of the data set, as `SumTree` takes them, or a `SumTree`, perhaps in a file.
        num_samples: draws of an epoch, at least 1, over all ranks together.
        replacement: False: no sample comes twice in an epoch (`SumTree.sample`).
        generator: gives the seed, once and here, instead of ``seed``.
        num_replicas, rank: as in `torch.utils.data.DistributedSampler`. Every rank makes the same draw and takes each
            ``num_replicas``-th of it, from its own on: so all need the same weights, seed and updates, and tell each
            other nothing. All get equally many: where the draw does not divide, its head comes again at its end.
        seed: an int in [0, 2^64); an epoch depends on it, the epoch and the weights alone.

    ``sampler.tree`` is the `SumTree`: ``sampler.tree.update(index, weights)`` counts from the next epoch on.

    A loop that does not call `set_epoch` begins the next epoch whenever it has come to the end of one. The state holds
    how many samples were given; a loader with workers asks ahead of the loop, so there `advance` is to tell how many
    the loop has trained on. Under torchdata's `StatefulDataLoader` neither is needed: its own count is exact.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch, torchassay as ta
        >>> sampler = ta.WeightedSampler([0.1, 0.0, 0.7, 0.2], num_samples=8)
        >>> list(sampler)
        [2, 3, 2, 2, 2, 3, 2, 2]
        >>> [list(ta.WeightedSampler([0.1, 0.0, 0.7, 0.2], 8, num_replicas=2, rank=rank)) for rank in range(2)]
        [[2, 2, 2, 2], [3, 2, 3, 2]]
    """

    def __init__(
        self,
        weights: Numbers | SumTree,
        num_samples: int,
        replacement: bool = True,
        generator: torch.Generator | None = None,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ):
        name = "WeightedSampler"
        checks.integer(name, "num_samples", num_samples, 1)
        if not isinstance(replacement, bool):
            raise checks.InputTypeError(f"{name}: replacement must be a bool, got {type(replacement).__name__}")
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                expected = "a torch.Generator"
                raise checks.InputTypeError(f"{name}: generator must be {expected}, got {type(generator).__name__}")
            number = torch.empty((), dtype=torch.int64, device=generator.device)
            seed = int(number.random_(generator=generator))
        checks.integer(name, "seed", seed)
        key_of(name, seed)
        self.tree = weights if isinstance(weights, SumTree) else SumTree(weights)
        self.num_samples, self.replacement, self.seed = num_samples, replacement, seed
        self._rank, self._world = placed(name, rank, num_replicas)
        self._generated = generator is not None
        self._epoch, self._ended = 0, False  # the latest iteration came to its end, and no `set_epoch` since
        self._resumed = 0  # where in the epoch the next iteration begins
        self._begun, self._given = 0, 0  # where the latest one began, and how far it is
        self._told: int | None = None  # how far the loop is, if it calls `advance`
        self._order: np.ndarray | None = None  # the epoch's samples of this rank
        self._drawn_from = 0  # updates of the tree before they were drawn

    def __len__(self) -> int:
        """How many samples an epoch has for this rank."""
        return -(-self.num_samples // self._world)

    def __iter__(self) -> Given:
        return Given(self)

    def __repr__(self) -> str:
        return f"WeightedSampler({self.num_samples} of {len(self.tree)}: epoch {self.epoch}, sample {self.position})"

    @property
    def epoch(self) -> int:
        """The epoch that is under way."""
        return self._epoch

    @property
    def position(self) -> int:
        """How many samples of the epoch this rank has given, or was told of by `advance`."""
        return self._given if self._told is None else self._told

    def set_epoch(self, epoch: int) -> None:
        """Begin ``epoch``; one that a loaded state is in the midst of goes on."""
        checks.integer("WeightedSampler", "epoch", epoch, 0)
        self._ended = False
        if epoch != self._epoch:
            self._epoch, self._order = epoch, None
            self._resumed = self._begun = self._given = 0
            self._told = None

    def advance(self, count: int) -> None:
        """Take the next ``count`` samples as trained on, once a batch: where the loader has workers."""
        checks.integer("WeightedSampler.advance", "count", count, 0)
        told = self._begun if self._told is None else self._told
        if count > self._given - told:
            expected = f"at most {self._given - told}, the samples given and not told of"
            raise checks.InputValueError(f"WeightedSampler.advance: count must be {expected}, got {count}")
        self._told = told + count

    def state_dict(self) -> dict:
        """Everything that going on needs. The weights are in it by reference, and only once `update` has changed some:
        until then the sampler that loads it must be made with the same ones."""
        mine = self._arguments() | {"seed": self.seed, "total": self.tree.total}
        return mine | {"epoch": self.epoch, "position": self.position, "own": states.Live(self._state)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict` of a sampler with the same arguments, in as many processes."""
        own = dict(state["own"].items())
        same = self._arguments() if self._generated else self._arguments() | {"seed": self.seed}
        states.expect("WeightedSampler", state, **same, **({} if "weights" in own else {"total": self.tree.total}))
        order = own["order"].numpy() if "order" in own else None
        if order is not None and (order.shape != (len(self),) or not 0 <= order.min() <= order.max() < len(self.tree)):
            expected = f"{len(self)} samples of 0 to {len(self.tree) - 1}"
            raise checks.InputValueError(f"WeightedSampler: the state must have {expected}, got others")
        if not 0 <= state["position"] <= len(self):
            expected = f"a position of 0 to {len(self)}"
            raise checks.InputValueError(f"WeightedSampler: the state must have {expected}, got {state['position']}")
        if "weights" in own:
            self.tree.update(np.arange(len(self.tree)), own["weights"])
        self.seed, self._epoch = state["seed"], state["epoch"]
        self._resumed = self._begun = self._given = state["position"]
        self._told, self._ended = None, self._resumed == len(self)
        self._order = order
        self._drawn_from = -1  # other weights, if there is an order

    # ---- inside

    def _arguments(self) -> dict:
        mine = {"method": "WeightedSampler", "n": len(self.tree), "num_samples": self.num_samples}
        return mine | {"replacement": self.replacement, "rank": self._rank, "num_replicas": self._world}

    def _state(self) -> dict:
        state = {"weights": self.tree.weights()} if self.tree.changes else {}
        if self._order is not None and self._drawn_from != self.tree.changes:  # it cannot be drawn again
            state["order"] = torch.from_numpy(self._order)
        return state

    def _begin(self) -> tuple[int, int]:
        """Draw the epoch, if that has not been done; which one it is, and where in it to begin."""
        if self._ended:
            self.set_epoch(self._epoch + 1)
        if self._order is None:
            drawn = self.tree.sample(self.num_samples, seed=(self.seed, self._epoch), replacement=self.replacement)
            own = np.arange(self._rank, len(self) * self._world, self._world)
            self._order, self._drawn_from = drawn.numpy()[own % self.num_samples], self.tree.changes
        start, self._resumed = self._resumed, 0
        return self._epoch, start


class Given(Iterator):
    """The samples of an epoch. A loader that keeps a state of its own asks how many it was given."""

    def __init__(self, sampler: WeightedSampler):
        self._sampler = sampler
        self._at: tuple[int, int] | None = None  # epoch and place, known at the first key or from a state
        self._keys = self._walk()

    def __next__(self) -> int:
        return next(self._keys)

    def _walk(self) -> Iterator[int]:
        sampler = self._sampler
        begun = sampler._begin()
        epoch, given = self._at or begun
        sampler._begun = sampler._given = given
        sampler._told = None
        while given < len(sampler):
            for key in sampler._order[given : given + AT_ONCE].tolist():  # type: ignore[index]  # since _begin
                given += 1
                self._at = epoch, given
                if epoch == sampler.epoch:
                    sampler._given = given
                yield key
        if epoch == sampler.epoch:
            sampler._ended = True

    def state_dict(self) -> dict[str, int]:
        epoch, given = self._at or (self._sampler.epoch, self._sampler._resumed)
        return {"epoch": epoch, "given": given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["epoch"] == self._sampler.epoch:
            self._at = state["epoch"], state["given"]
