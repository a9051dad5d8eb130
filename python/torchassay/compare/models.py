"""Models sized for the data, and the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchassay import checks, named_objects
from torchassay.compare.data import Data

MODELS = ("mlp", "cnn", "resnet")
_FEATURES = 128
_SMALL_IMAGE = 28 * 28  # values; larger ones get a residual network


class Network(nn.Module):
    """Features and a linear head."""

    def __init__(self, features: nn.Module, width: int, classes: int):
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class LateFusion(nn.Module):
    """Several modalities: features of each, a linear head on each, and one on all of them side by side.

    ``model(x_0, x_1, ...)`` gives the list of the modalities' logits and the fused logits.
    """

    def __init__(self, encoders: list[nn.Module], width: int, classes: int):
        super().__init__()
        self.features = SideBySide(encoders)
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in encoders)
        self.fused = nn.Linear(width * len(encoders), classes)

    def forward(self, *inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.features(*inputs)
        parts = features.chunk(len(self.heads), 1)
        return [head(part) for head, part in zip(self.heads, parts, strict=True)], self.fused(features)


class SideBySide(nn.Module):
    """An encoder's features for each input, concatenated."""

    def __init__(self, encoders: list[nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)], 1)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm around which the input goes (He et al. 2016)."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.around = nn.Identity()
        if stride > 1 or inner != outer:
            self.around = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.around(x))


def _mlp(shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    inputs = torch.Size(shape).numel()
    layers = (nn.Flatten(), nn.Linear(inputs, _FEATURES), nn.ReLU(), nn.Linear(_FEATURES, _FEATURES), nn.ReLU())
    return nn.Sequential(*layers), _FEATURES


def _cnn(shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Three convolutions of stride 2, so that any size of image will do, and the mean over what is left."""
    layers, inner = [], shape[0]
    for outer in (32, 64, _FEATURES):
        layers += [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), _FEATURES


def _resnet(shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """ResNet-18 with the 3 x 3 stem that small images need: four stages of two blocks, 64 to 512 channels wide."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inner = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(inner, outer, stride), Residual(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), inner


_FEATURES_OF = {"mlp": _mlp, "cnn": _cnn, "resnet": _resnet}


def maker(model: str | Callable | None, data: Data) -> tuple[str, Callable[[], nn.Module]]:
    """A model's name and what makes a new one for each run.

    Args:
        model: "mlp", "cnn" or "resnet"; for the user's own "package.module:name", "path.py:name" or a callable, called
            with (shape, classes), or without arguments if it takes none. None: by the data, see `fitting`.
        data: what it is to be trained on.
    """
    name = fitting(data) if model is None else model
    if name in MODELS:
        return name, _built_in(name, data)
    if isinstance(name, str):
        make = _imported(name)
    elif isinstance(name, nn.Module):
        expected = "a callable that makes a model, since each run begins with its own"
        raise checks.InputTypeError(f"compare: model must be {expected}, got a {type(name).__name__}")
    elif callable(name):
        make, name = name, getattr(name, "__name__", type(name).__name__)
    else:
        expected = f"one of {', '.join(MODELS)}, 'package.module:name' or a callable"
        raise checks.InputTypeError(f"compare: model must be {expected}, got {type(name).__name__}")
    return name, _own(name, make, data)


def fitting(data: Data) -> str:
    """A residual network for images of more than 784 values, such as CIFAR-10's, and an MLP for everything else."""
    images = all(len(shape) == 3 for shape in data.shapes)
    return "resnet" if images and max(torch.Size(shape).numel() for shape in data.shapes) > _SMALL_IMAGE else "mlp"


def check_output(model: nn.Module, inputs: tuple[Tensor, ...], classes: int) -> None:
    """Raise unless the model gives logits for a batch, as `outputs` wants them."""
    n = len(inputs[0])
    try:
        with torch.no_grad():
            found = model(*inputs)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        shapes = " and ".join(str(tuple(part.shape)) for part in inputs)
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise checks.InputValueError(f"compare: model must take inputs of shape {shapes}, got: {line}") from error
    logits = [found]
    if len(inputs) > 1:
        pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], (list, tuple))
        if not pair or len(found[0]) != len(inputs):
            expected = f"a list of {len(inputs)} modalities' logits and the fused logits"
            raise checks.InputValueError(f"compare: model must give {expected}, got {_described(found)}")
        logits = [*found[0], found[1]]
    for part in logits:
        fits = isinstance(part, Tensor) and part.is_floating_point() and tuple(part.shape) == (n, classes)
        if not fits:
            expected = f"logits of shape ({n}, {classes}) for {n} samples"
            raise checks.InputValueError(f"compare: model must give {expected}, got {_described(part)}")


def _described(found) -> str:
    if isinstance(found, Tensor):
        return f"{checks.dtype_name(found.dtype)} of shape {tuple(found.shape)}"
    return type(found).__name__


def _built_in(name: str, data: Data) -> Callable[[], nn.Module]:
    if name != "mlp" and any(len(shape) != 3 for shape in data.shapes):
        got = f"samples of shape {data.shape}"
        raise checks.InputValueError(f"compare: model must be mlp for data that are no images, got {name} and {got}")

    def make() -> nn.Module:
        encoders, widths = zip(*(_FEATURES_OF[name](shape) for shape in data.shapes), strict=True)
        kind = Network if len(encoders) == 1 else LateFusion
        return kind(encoders[0] if len(encoders) == 1 else list(encoders), widths[0], data.classes)

    return make


def _imported(path: str) -> Callable:
    if ":" not in path:
        expected = f"one of {', '.join(MODELS)}, package.module:name or path.py:name"
        raise checks.InputValueError(f"compare: model must be {expected}, got '{path}'")
    make = named_objects.imported("compare", "model", path)
    if not callable(make):
        raise checks.InputValueError(f"compare: model must be a callable, got '{path}' ({type(make).__name__})")
    return make


def _own(name: str, make: Callable, data: Data) -> Callable[[], nn.Module]:
    signature = inspect.signature(make)
    arguments: tuple = (data.shape, data.classes)
    try:
        signature.bind(*arguments)
    except TypeError:
        arguments = ()
        try:
            signature.bind()
        except TypeError:
            expected = "a callable that takes (shape, classes) or nothing"
            raise checks.InputValueError(f"compare: model must be {expected}, got {name}{signature}") from None

    def made() -> nn.Module:
        found = make(*arguments)
        if not isinstance(found, nn.Module):
            raise checks.InputTypeError(f"compare: model must make an nn.Module, got {type(found).__name__}")
        return found

    return made
