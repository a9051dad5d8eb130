"""What is asked for beside logits and labels: the options of a loss, and noise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Options(NamedTuple):
    """With v = softcap tanh(x / softcap) of the logits x, l = v / temperature and p = softmax(l),

        loss = sum_j b_j (lse - l_j) + z_loss lse^2

    An infinite logit stays as it is under a softcap: -inf is a masked class, +inf no number.

    b_j = w_j (label_smoothing / C + (1 - label_smoothing) t_j) for class probabilities t; for a label y with
    (1 - label_smoothing) w_y [j = y] instead of the second part.
    """

    weight: Tensor | None = None  # [C], w; 1 if None
    label_smoothing: float = 0.0
    temperature: float | Tensor = 1.0  # or one a row
    softcap: float | None = None
    z_loss: float = 0.0

    def flat(self) -> tuple[Tensor | None, float, Tensor | None, float, float, float]:
        """As the ops take them: the temperatures of the rows apart from one for all, a softcap of 0 for none."""
        rows = self.temperature if isinstance(self.temperature, Tensor) else None
        number = 1.0 if isinstance(self.temperature, Tensor) else self.temperature
        return self.weight, self.label_smoothing, rows, number, self.softcap or 0.0, self.z_loss

    @classmethod
    def of(
        cls,
        weight: Tensor | None,
        label_smoothing: float,
        temperatures: Tensor | None,
        temperature: float,
        softcap: float,
        z_loss: float,
    ) -> Options:
        """The options that `flat` gave."""
        by_row = temperature if temperatures is None else temperatures
        return cls(weight, label_smoothing, by_row, softcap or None, z_loss)


def given(
    weight: Tensor | None,
    label_smoothing: float,
    temperature: float | Tensor,
    softcap: float | None,
    z_loss: float = 0.0,
) -> Options | None:
    """The options of a call, None if all are at their defaults."""
    plain = weight is None and label_smoothing == 0.0 and softcap is None and z_loss == 0.0
    if plain and isinstance(temperature, (int, float)) and temperature == 1.0:
        return None
    return Options(weight, label_smoothing, temperature, softcap, z_loss)


class Noise(NamedTuple):
    """Draws of logits + std eps, eps normal, by the row's id: see `torchassay.philox`."""

    std: float | Tensor  # or one a row
    draws: int = 1
    seed: int | Tensor = 0
    row_id: Tensor | None = None  # int64, one a row; 0, 1, 2, ... if None


def noise_given(std: float | Tensor, draws: int, seed: int | Tensor, row_id: Tensor | None) -> Noise | None:
    """The noise of a call, None if there is none."""
    return None if isinstance(std, (int, float)) and std == 0.0 else Noise(std, draws, seed, row_id)
