"""What the launchers of the kernels would launch, for tensors without memory: every kernel, aligned and not."""

from collections.abc import Callable

import torch
import triton
from torchassay.reference.states import NUMBERS, PLAIN
from torchassay.triton_kernels import (
    cdf,
    draw_scores,
    head_scores,
    linear_scores,
    option_grads,
    option_scores,
    philox,
    row_grads,
    row_scores,
    row_states,
)
from torchassay.triton_kernels.row_output import SLOTS

FIVE = ("loss", "entropy", "grad_norm", "confidence", "margin")
SEED = 2**63 - 5  # of 64 bits


def launch(module, function: Callable[[], None]) -> list[tuple]:
    """The kernels that ``function`` would launch: (kernel, arguments by name, launch options)."""
    kernels = {name: value for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    calls = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def record(*args, **options):
                calls.append((self.kernel, dict(zip(self.kernel.arg_names, args, strict=True)), options))

            return record

    try:
        for name, kernel in kernels.items():
            setattr(module, name, Recorder(kernel))
        function()
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
    return calls


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory, at address 0, which is a multiple of 16."""
    return torch.empty(shape, dtype=dtype, device="meta")


def outputs(N: int, signals: tuple[str, ...], stats: int) -> list:
    """The slots of these signals; ``stats`` numbers a row for the backward."""
    found = {name: empty(N) for name in SLOTS}
    found |= {"prediction": empty(N, dtype=torch.int64), "stats": empty(stats, N)}
    return [found[name] if name in signals else None for name in SLOTS]


def scores(dtype: torch.dtype, C: int, N: int, signals: tuple[str, ...] = FIVE) -> list[tuple]:
    """The launches of `row_scores`."""
    target, out = empty(N, dtype=torch.int64), outputs(N, signals, 6)
    return launch(row_scores, lambda: row_scores.row_scores(empty(1, N, C, dtype=dtype), target, -100, out))


def asked(options: str, C: int, N: int) -> tuple:
    """Labels, probabilities, weight, label_smoothing, temperature and softcap of N rows."""
    return (
        *((None, empty(N, C)) if "probabilities" in options else (empty(N, dtype=torch.int64), None)),
        empty(C) if "weight" in options else None,
        0.1 if "smoothing" in options else 0.0,
        empty(N) if "of rows" in options else 0.7,
        30.0 if "softcap" in options else 0.0,
    )


def option_launches(dtype: torch.dtype, C: int, options: str, N: int = 65536) -> list[tuple]:
    """The launches of `option_scores`; under a temperature, a weight and a z-loss alone they are `row_scores`'."""
    rows, given, z_loss = empty(1, N, C, dtype=dtype), asked(options, C, N), 1e-4 if "z-loss" in options else 0.0
    swept = any(name in options for name in ("smoothing", "probabilities", "softcap"))
    call = (rows, *given, z_loss, -100, outputs(N, FIVE, 7))
    return launch(option_scores if swept else row_scores, lambda: option_scores.option_scores(*call))


def option_grad_launch(dtype: torch.dtype, C: int, options: str, N: int = 65536) -> list[tuple]:
    """The launch of `option_grads`."""
    rows, out, stats, upstream = empty(1, N, C, dtype=dtype), empty(N, C, dtype=dtype), empty(7, N), empty(N)
    call = (rows, *asked(options, C, N), stats, upstream, upstream, -100, 0, C, out)
    return launch(option_grads, lambda: option_grads.option_grads(*call))


def states(dtype: torch.dtype, C: int, options: str, N: int = 65536) -> list[tuple]:
    """The launches of `row_states` for a slice; without options they are `row_scores`'."""
    smoothing, softcap = 0.1 if "smoothing" in options else 0.0, 30.0 if "softcap" in options else 0.0
    numbers = empty(len(NUMBERS) if smoothing else PLAIN, N)
    k, target = empty(N, dtype=torch.int64), empty(N, dtype=torch.int64)
    rows, weight = empty(1, N, C, dtype=dtype), empty(C) if "weight" in options else None
    call = (rows, target, -100, C, 4 * C, weight, smoothing, 0.7, softcap, numbers, k)
    module = row_states if smoothing or softcap else row_scores
    return launch(module, lambda: row_states.row_states(*call))


def merged(fields: int) -> list[tuple]:
    """The launch of `merge_states`."""
    N = 8192
    parts = empty(4, fields, N), empty(4, N, dtype=torch.int64)
    out = empty(fields, N), empty(N, dtype=torch.int64)
    return launch(row_states, lambda: row_states.merge_states(*parts, 0.7, 0.0, *out))


def finished(fields: int) -> list[tuple]:
    """The launch of `finish_states`."""
    N = 8192
    parts, target = (empty(4, fields, N), empty(4, N, dtype=torch.int64)), empty(N, dtype=torch.int64)
    call = (*parts, target, -100, 151936, None, 0.1 if fields > PLAIN else 0.0, 0.7, 0.0, 0.0, outputs(N, FIVE, 7))
    return launch(row_states, lambda: row_states.finish_states(*call))


def linear(dtype: torch.dtype, large: bool, options: str = "") -> list[tuple]:
    """The launch of `linear_states`, for a GPU that takes the large tiles or not."""
    N, D, V = 8192, 4096, 151936
    head = empty(N, D, dtype=dtype), empty(V, D, dtype=dtype), empty(V, dtype=dtype) if "bias" in options else None
    weight, smoothing = empty(V) if "weight" in options else None, 0.1 if "smoothing" in options else 0.0
    call = (*head, empty(N, dtype=torch.int64), -100, 0, V, weight, smoothing, 0.7, 30.0 if "softcap" in options else 0)
    asked, linear_scores.is_large = linear_scores.is_large, lambda _: large
    try:
        return launch(linear_scores, lambda: linear_scores.linear_states(*call))
    finally:
        linear_scores.is_large = asked


def grads(dtype: torch.dtype, C: int) -> list[tuple]:
    """The launches of `row_grads`."""
    rows, out, stats, upstream = empty(1, 2, C, dtype=dtype), empty(2, C, dtype=dtype), empty(6, 2), empty(2)
    target = empty(2, dtype=torch.int64)
    return launch(row_grads, lambda: row_grads.row_grads(rows, target, stats, upstream, upstream, -100, out))


def shares(midrank: bool) -> list[tuple]:
    """The launch of `cdf`."""
    window, total, values, out = empty(1024), empty(dtype=torch.int64), empty(8192), empty(8192)
    return launch(cdf, lambda: cdf.cdf(window, total, values, midrank, out))


def heads(head: str, dtype: torch.dtype, C: int) -> list[tuple]:
    """The launch of `head_scores`."""
    rows, target, weight = empty(8192, C, dtype=dtype), empty(8192, C), empty(C)
    out = [empty(8192), empty(8192), empty(8192)]
    if head != "binary":
        weight = out[1] = None
    return launch(head_scores, lambda: head_scores.head_scores(rows, target, weight, head, 1.0, out))


def noisy(dtype: torch.dtype, C: int) -> list[tuple]:
    """The launches of `draw_scores` for noise: numbers and ids of each row, everything asked for."""
    N = 128
    row_id, out = empty(N, dtype=torch.int64), [empty(N) for _ in range(3)]
    rows = empty(1, N, C, dtype=dtype)
    return launch(
        draw_scores,
        lambda: draw_scores.draw_scores(rows, empty(N), empty(N), empty(N), row_id, None, SEED, 4, out),
    )


def members(dtype: torch.dtype, C: int) -> list[tuple]:
    """The launches of `draw_scores` for an ensemble."""
    rows, out = empty(4, 1, 128, C, dtype=dtype), [empty(128) for _ in range(3)]
    return launch(draw_scores, lambda: draw_scores.draw_scores(rows, None, 0.0, 1.0, None, None, 0, 4, out))


def numbers(uniform: bool) -> list[tuple]:
    """The launch of `normals`."""
    row_id, out = empty(128, dtype=torch.int64), empty(128, 1024)
    return launch(philox, lambda: philox.normals(row_id, None, SEED, philox.FEATURE_NOISE.value, 1, uniform, out))


EVERY = ("fp16", "bf16", "fp32")
# Every kernel, aligned and not, in these dtypes; five signals unless it says all.
VARIANTS: dict[str, tuple[tuple[str, ...], Callable[[torch.dtype], list[tuple]]]] = {
    "scores 10": (EVERY, lambda dtype: scores(dtype, 10, 65536)),
    "scores 100": (("bf16",), lambda dtype: scores(dtype, 100, 65536)),
    "scores 1000": (EVERY, lambda dtype: scores(dtype, 1000, 65536)),
    "scores 1000, few rows": (("bf16",), lambda dtype: scores(dtype, 1000, 128)),
    "scores 4096": (("bf16",), lambda dtype: scores(dtype, 4096, 65536)),
    "scores 50257": (EVERY, lambda dtype: scores(dtype, 50257, 65536)),
    "scores 151936": (EVERY, lambda dtype: scores(dtype, 151936, 65536)),
    "scores 151936, all": (("bf16",), lambda dtype: scores(dtype, 151936, 65536, SLOTS)),
    "scores 151936, few rows": (("bf16", "fp32"), lambda dtype: scores(dtype, 151936, 16)),
    "grads 100": (("bf16",), lambda dtype: grads(dtype, 100)),
    "grads 50257": (("bf16",), lambda dtype: grads(dtype, 50257)),
    "grads 151936": (EVERY, lambda dtype: grads(dtype, 151936)),
    "temperature 10": (("bf16",), lambda dtype: option_launches(dtype, 10, "temperature")),
    "temperature 1000": (("bf16",), lambda dtype: option_launches(dtype, 1000, "temperature")),
    "temperature 151936": (("bf16", "fp32"), lambda dtype: option_launches(dtype, 151936, "temperature")),
    "temperature 151936, few rows": (("bf16",), lambda dtype: option_launches(dtype, 151936, "temperature", 16)),
    "temperatures of rows, weight, z-loss 151936": (
        ("bf16",),
        lambda dtype: option_launches(dtype, 151936, "temperatures of rows, weight, z-loss"),
    ),
    "weight, smoothing 100": (("bf16",), lambda dtype: option_launches(dtype, 100, "weight, smoothing")),
    "smoothing 151936": (("bf16",), lambda dtype: option_launches(dtype, 151936, "smoothing")),
    "probabilities 1000": (("bf16",), lambda dtype: option_launches(dtype, 1000, "probabilities")),
    "softcap 1000": (("bf16",), lambda dtype: option_launches(dtype, 1000, "softcap")),
    "softcap 151936": (("fp32",), lambda dtype: option_launches(dtype, 151936, "softcap")),
    "temperature grads 151936": (("bf16",), lambda dtype: option_grad_launch(dtype, 151936, "temperature")),
    "probabilities, weight, softcap grads 1000": (
        ("fp32",),
        lambda dtype: option_grad_launch(dtype, 1000, "probabilities, weight, softcap"),
    ),
    "states 10": (("bf16",), lambda dtype: states(dtype, 10, "")),
    "states 1000": (("bf16",), lambda dtype: states(dtype, 1000, "")),
    "states 37984": (("bf16", "fp32"), lambda dtype: states(dtype, 37984, "")),
    "states 37984, weight, smoothing": (("bf16",), lambda dtype: states(dtype, 37984, "weight, smoothing")),
    "states 37984, softcap": (("bf16",), lambda dtype: states(dtype, 37984, "softcap")),
    "states of 4 parts": (("fp32",), lambda _: merged(PLAIN)),
    "states of 4 parts, smoothing": (("fp32",), lambda _: merged(len(NUMBERS))),
    "signals of 4 parts": (("fp32",), lambda _: finished(PLAIN)),
    "signals of 4 parts, smoothing": (("fp32",), lambda _: finished(len(NUMBERS))),
    "linear": (EVERY, lambda dtype: linear(dtype, True)),
    "linear, bias": (("bf16",), lambda dtype: linear(dtype, True, "bias")),
    "linear on Ampere": (("bf16", "fp32"), lambda dtype: linear(dtype, False)),
    "linear on Ampere, bias": (("bf16",), lambda dtype: linear(dtype, False, "bias")),
    "linear, bias, weight, smoothing": (("bf16",), lambda dtype: linear(dtype, True, "bias, weight, smoothing")),
    "linear, bias, softcap": (("bf16",), lambda dtype: linear(dtype, True, "bias, softcap")),
    "linear, all": (("bf16", "fp32"), lambda dtype: linear(dtype, True, "bias, weight, smoothing, softcap")),
    "binary 1": (("fp32",), lambda dtype: heads("binary", dtype, 1)),
    "binary 100": (EVERY, lambda dtype: heads("binary", dtype, 100)),
    "binary 5000": (("bf16",), lambda dtype: heads("binary", dtype, 5000)),
    "mse 100": (("fp32",), lambda dtype: heads("mse", dtype, 100)),
    "l1 100": (("fp32",), lambda dtype: heads("l1", dtype, 100)),
    "huber 100": (("fp32",), lambda dtype: heads("huber", dtype, 100)),
    "noise 10": (("bf16",), lambda dtype: noisy(dtype, 10)),
    "noise 1000": (("bf16",), lambda dtype: noisy(dtype, 1000)),
    "noise 151936": (("bf16", "fp32"), lambda dtype: noisy(dtype, 151936)),
    "ensemble 1000": (("bf16",), lambda dtype: members(dtype, 1000)),
    "ensemble 151936": (("bf16", "fp32"), lambda dtype: members(dtype, 151936)),
    "normals 1024": (("fp32",), lambda _: numbers(False)),
    "uniforms 1024": (("fp32",), lambda _: numbers(True)),
    "cdf 1024": (("fp32",), lambda _: shares(False)),
    "cdf 1024, midrank": (("fp32",), lambda _: shares(True)),
}
