"""``FeatureNoise``: noise on feature maps, so that forwards of one batch differ by what the model is unsure about."""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchassay import checks, ops
from torchassay.backends import for_op
from torchassay.philox import Purpose, seed_parts
from torchassay.reference.rows import row_sum

STD = {"gaussian": 0.1, "uniform": 0.3, "clipped": 0.1}  # the kinds, and the default std of each


class FeatureNoise:
    """A context in which named layers of a model give noisy features.

    `ensemble_score` of several forwards then tells how sure the model is of each sample. MoMBS (arXiv 2505.18741) takes
    its uncertainty from noise on feature maps; the part of its code that makes the noise is not published, so where it
    goes is yours to say, and the kinds and their default sizes are our choice.

    Args:
        model: a module, in any mode, which stays as it is.
        layers: a name of ``model.named_modules()``, or several; "" is the model itself. A layer must return a float
            tensor [N, ...], or a tuple that begins with one, of which only that one gets noise.
        std: how much, at least 0. None: 0.1, for uniform noise 0.3.
        kind: with eps ~ N(0, 1) and u ~ U(-1, 1) for each sample and feature,
            "gaussian": h + std * s * eps;  "clipped": h + std * s * clamp(eps, -2, 2);  "uniform": h * (1 + std * u).
        relative: True: s is the standard deviation of the sample's own features in h, over all but the first dimension
            (0 where there is a single one); False: s = 1. Uniform noise is relative by nature.
        seed: a 64-bit int.

    The numbers are counter-based (Philox): each depends on the seed, the layer, how often the layer has been called in
    this context, the sample's position in the batch and the feature's, and on nothing else. So no two forwards and no
    two layers share noise, the context entered anew repeats it, on any device, and what stands elsewhere in the batch
    or which other layers get noise does not matter; but the same sample at another position gets other noise. Give
    nested contexts on one layer different seeds.

    Gradients flow through the layer as if the noise, s included, were a constant. Features keep their dtype; with the
    noise they are rounded to it once. A layer that is read without being called gets no noise (`out_proj` of
    `torch.nn.MultiheadAttention`), and activation checkpointing calls a layer twice, with two different noises.

    Raises:
        ValueError: an argument out of range, no such layer, a layer inside a compiled module (which would not
            notice), or while running a layer without a batch dimension.
        TypeError: an argument of another type, or while running a layer that returns something else.
        RuntimeError: the object is entered while it is entered.

    Example:
        >>> import torch, torchassay as ta
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> x = torch.tensor([[0.5, -1.0], [3.0, 2.0]])
        >>> with torch.no_grad(), ta.FeatureNoise(model, "1", std=0.5, seed=7):
        ...     logits = torch.stack([model(x) for _ in range(4)])
        >>> ta.ensemble_score(logits).mutual_information > 0
        tensor([True, True])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: str | Sequence[str],
        std: float | None = None,
        kind: str = "gaussian",
        relative: bool = True,
        seed: int = 0,
    ):
        if not isinstance(model, torch.nn.Module):
            raise checks.InputTypeError(f"FeatureNoise: model must be a torch.nn.Module, got {type(model).__name__}")
        if kind not in STD:
            raise checks.InputValueError(f"FeatureNoise: kind must be one of {', '.join(STD)}, got {kind!r}")
        std = STD[kind] if std is None else std
        if not 0.0 <= std < math.inf:
            raise checks.InputValueError(f"FeatureNoise: std must be at least 0 and finite, got {std}")
        checks.seed("FeatureNoise", seed)
        self.std, self.kind, self.relative, self.seed = float(std), kind, relative, seed
        self._modules = _find(model, layers)
        places = {module: place for place, module in enumerate(model.modules())}
        self._places = {name: places[module] for name, module in self._modules.items()}
        self._draws_per_call = len(places)
        self._calls: dict[str, int] = {}
        self._hooks: contextlib.ExitStack | None = None

    def __enter__(self) -> FeatureNoise:
        if self._hooks is not None:
            raise RuntimeError("FeatureNoise: this context is entered already; nest another one")
        with contextlib.ExitStack() as hooks:
            for name, module in self._modules.items():
                hooks.enter_context(module.register_forward_hook(functools.partial(self._hook, name)))
            self._hooks = hooks.pop_all()
        self._calls = dict.fromkeys(self._modules, 0)
        return self

    def __exit__(self, *error: Any) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    def _hook(self, name: str, module: torch.nn.Module, args: tuple, output: Any) -> Any:
        draw = (self._calls[name] * self._draws_per_call + self._places[name]) % (1 << 32)
        self._calls[name] += 1
        if isinstance(output, tuple) and output:
            make = getattr(type(output), "_make", type(output))  # a named tuple's
            return make((self._noisy(_features(name, output[0], "tuple of "), draw), *output[1:]))
        return self._noisy(_features(name, output), draw)

    def _noisy(self, h: Tensor, draw: int) -> Tensor:
        if h.numel() == 0:
            return h
        row_id = torch.arange(len(h), device=h.device)
        uniform = self.kind == "uniform"
        columns = h.numel() // len(h)
        noise = ops.normals(row_id, *seed_parts(self.seed), Purpose.FEATURE_NOISE, draw, columns, uniform, for_op(None))
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        noise = noise.view(h.shape).to(wide.dtype)
        if uniform:
            return (wide * (1 + self.std * (2 * noise - 1))).to(h.dtype)
        if self.kind == "clipped":
            noise = noise.clamp(-2, 2)
        size = self.std * _spread(wide.detach()) if self.relative else self.std
        return (wide + size * noise).to(h.dtype)


def _find(model: torch.nn.Module, layers: str | Sequence[str]) -> dict[str, torch.nn.Module]:
    """The layers by name."""
    names = [layers] if isinstance(layers, str) else layers
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise checks.InputTypeError(f"FeatureNoise: layers must be a name or a sequence of names, got {layers!r}")
    if not names:
        raise checks.InputValueError("FeatureNoise: layers must hold at least one name, got none")
    known = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, torch.nn.Module] = {}
    for name in names:
        if name not in known:
            close = ", ".join(repr(other) for other in difflib.get_close_matches(name, known))
            hint = f"; did you mean {close}?" if close else ""
            raise checks.InputValueError(
                f"FeatureNoise: layers must be names of model.named_modules(), got {name!r}{hint}"
            )
        if "_orig_mod" in name.split("."):
            expected = "outside of compiled modules, which run without hooks (give the model from before torch.compile)"
            raise checks.InputValueError(f"FeatureNoise: layers must be {expected}, got {name!r}")
        if known[name] in found.values():
            raise checks.InputValueError(f"FeatureNoise: layers must be different modules, got {name!r} twice")
        found[name] = known[name]
    return found


def _features(name: str, output: Any, before: str = "") -> Tensor:
    """What a layer gave, if noise can be added to it."""
    function, what = "FeatureNoise", f"layer {name!r}"
    if not isinstance(output, Tensor):
        expected = "a Tensor or a tuple that begins with one"
        raise checks.InputTypeError(f"{function}: {what} must return {expected}, got {before}{type(output).__name__}")
    if output.dtype not in checks.FLOATS:
        expected = "float16, bfloat16, float32 or float64"
        raise checks.InputTypeError(f"{function}: {what} must return {expected}, got {checks.dtype_name(output.dtype)}")
    if output.dim() == 0:
        raise checks.InputValueError(f"{function}: {what} must return a batch dimension, got a 0-d tensor")
    return output


def _spread(h: Tensor) -> Tensor:
    """The standard deviation of each sample, [N, 1, ...], from sums whose order does not depend on the batch."""
    rows = h.reshape(len(h), -1)
    count = rows.shape[1]
    mean = row_sum(rows) / count
    variance = row_sum((rows - mean.unsqueeze(-1)) ** 2) / count
    return torch.sqrt(variance).view(-1, *(1,) * (h.dim() - 1))
