"""The launchers called directly, on a GPU where there is one, else in the interpreter; and models of the hardware."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchassay.options import Options
from torchassay.scores import ROW_SIGNALS
from torchassay.triton_kernels import option_grads as grads_with_options
from torchassay.triton_kernels import option_scores as scores_with_options
from torchassay.triton_kernels.draw_scores import draw_scores
from torchassay.triton_kernels.row_grads import row_grads
from torchassay.triton_kernels.row_scores import row_scores

NAMES = (*ROW_SIGNALS, "stats")
DRAW_NAMES = ("noisy_entropy", "predictive_entropy", "mutual_information")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def as_rows(x: Tensor) -> Tensor:
    """x as [..., A, B, C] on the device, in the same layout: strides and alignment are what some tests are about."""
    x = x if x.dim() >= 3 else x.unsqueeze(0)
    if x.device.type == DEVICE:
        return x
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(DEVICE)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


@pytest.fixture
def scores():
    """scores(x [N, C] or [A, B, C], target, ignore_index, names) -> {name: tensor on the CPU}."""

    def run(x, target=None, ignore_index=-100, names=NAMES) -> dict[str, Tensor]:
        rows = as_rows(x)
        N = rows.shape[0] * rows.shape[1]
        out = []
        for name in NAMES:
            size, dtype = (6, N) if name == "stats" else (N,), torch.int64 if name == "prediction" else torch.float32
            out.append(torch.full(size, -7, dtype=dtype, device=DEVICE) if name in names else None)
        target = None if target is None else target.to(DEVICE)
        row_scores(rows, target, ignore_index, out)
        return {name: value.cpu() for name, value in zip(NAMES, out, strict=True) if value is not None}

    return run


@pytest.fixture
def grads(scores):
    """grads(x, target, grad_loss, grad_entropy, ignore_index) -> [N, C] on the CPU, stats by `scores`."""

    def run(x, target, grad_loss, grad_entropy, ignore_index=-100) -> Tensor:
        rows = as_rows(x)
        stats = scores(x, target, ignore_index, ("entropy", "stats"))["stats"].to(DEVICE)
        out = torch.full((stats.shape[1], rows.shape[2]), -7, dtype=rows.dtype, device=DEVICE)
        target, grad_loss, grad_entropy = (
            None if given is None else given.to(DEVICE) for given in (target, grad_loss, grad_entropy)
        )
        row_grads(rows, target, stats, grad_loss, grad_entropy, ignore_index, out)
        return out.cpu()

    return run


def on_device(*given):
    return [value.to(DEVICE) if isinstance(value, Tensor) else value for value in given]


def target_and_options(target: Tensor | None, options: Options) -> list:
    """Labels, probabilities, and what the launchers of both directions take besides."""
    floating = target is not None and target.is_floating_point()
    return on_device(
        *((None, target) if floating else (target, None)),
        *(options.weight, options.label_smoothing, options.temperature, options.softcap or 0.0),
    )


@pytest.fixture
def option_scores():
    """option_scores(x, target, options, ignore_index, names) -> {name: tensor on the CPU}; x as for `scores`."""

    def run(x, target, options, ignore_index=-100, names=NAMES) -> dict[str, Tensor]:
        rows = as_rows(x)
        N = rows.shape[0] * rows.shape[1]
        if target is None or target.is_floating_point():
            names = [name for name in names if name != "target_margin"]
        out = []
        for name in NAMES:
            size, dtype = (7, N) if name == "stats" else (N,), torch.int64 if name == "prediction" else torch.float32
            out.append(torch.full(size, -7, dtype=dtype, device=DEVICE) if name in names else None)
        given = target_and_options(target, options)
        scores_with_options.option_scores(rows, *given, options.z_loss, ignore_index, out)
        return {name: value.cpu() for name, value in zip(NAMES, out, strict=True) if value is not None}

    return run


@pytest.fixture
def option_grads(option_scores):
    """option_grads(x, target, options, grad_loss, grad_entropy, ignore_index) -> [N, C] on the CPU."""

    def run(x, target, options, grad_loss, grad_entropy, ignore_index=-100) -> Tensor:
        rows = as_rows(x)
        stats = option_scores(x, target, options, ignore_index, ("entropy", "stats"))["stats"].to(DEVICE)
        out = torch.full((stats.shape[1], rows.shape[2]), -7, dtype=rows.dtype, device=DEVICE)
        given = target_and_options(None if grad_loss is None else target, options)
        upstream = on_device(grad_loss, grad_entropy)
        grads_with_options.option_grads(rows, *given, stats, *upstream, ignore_index, 0, out.shape[1], out)
        return out.cpu()

    return run


@pytest.fixture
def draws():
    """draws(x [N, C] or [A, B, C], count, std, scale, row_id, seed, names) -> {name: tensor on the CPU}; an ensemble
    [T, A, B, C] has no count."""

    def run(x, count=None, std=0.0, scale=1.0, row_id=None, seed=0, names=DRAW_NAMES) -> dict[str, Tensor]:
        rows = as_rows(x)
        N = rows.shape[-3] * rows.shape[-2]
        top = None if count is None else rows.float().amax(-1).reshape(N)
        out = [torch.full((N,), -7.0, device=DEVICE) if name in names else None for name in DRAW_NAMES]
        std, scale, row_id, seed = (
            given.to(DEVICE) if isinstance(given, Tensor) else given for given in (std, scale, row_id, seed)
        )
        seeds = (seed, 0) if isinstance(seed, Tensor) else (None, seed)
        draw_scores(rows, top, std, scale, row_id, *seeds, count or len(rows), out)
        return {name: value.cpu() for name, value in zip(DRAW_NAMES, out, strict=True) if value is not None}

    return run


@pytest.fixture
def interpreter():
    """The interpreter's builder, whose methods a test may replace."""
    if DEVICE != "cpu":
        pytest.skip("the kernels run on the GPU here, not in the interpreter")
    from triton.runtime.interpreter import InterpreterBuilder

    return InterpreterBuilder


def off_by_two_ulp(pattern: str):
    """exp2 as the hardware's may be: 2 ulp off, and 0 instead of subnormal numbers."""

    def exp2(x: np.ndarray) -> np.ndarray:
        exact = np.exp2(x)
        sign = {"above": 2, "below": -2, "mixed": np.where(x.view(np.int32) * -1640531527 < 0, 2, -2)}[pattern]
        moved = exact + sign * np.spacing(exact)
        moved = np.where(exact == 1, 1, moved)  # documented: exact at 0
        return np.where(np.abs(exact) < 2.0**-126, 0, moved).astype(np.float32)

    return exp2


@pytest.fixture(params=["above", "below", "mixed"])
def hardware_exp2(request, interpreter, monkeypatch):
    """exp2 with the hardware's errors, and an fma that rounds once (triton 3.6's interpreter rounds twice)."""
    from triton.runtime.interpreter import TensorHandle

    exp2 = off_by_two_ulp(request.param)
    monkeypatch.setattr(interpreter, "create_exp2", lambda self, arg: self.unary_op(arg, exp2))

    def fma(self, x, y, z):
        product = x.data.astype(np.float64) * y.data.astype(np.float64)
        return TensorHandle((product + z.data).astype(np.float32), z.dtype.scalar)

    monkeypatch.setattr(interpreter, "create_fma", fma)


def addresses(tensor: Tensor) -> np.ndarray:
    offsets = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size) * stride
    return tensor.data_ptr() + offsets.numpy().ravel() * tensor.element_size()


@pytest.fixture
def only_own_addresses(interpreter, monkeypatch):
    """A kernel that touches anything but the elements of the tensors it was given fails."""
    from triton.runtime.interpreter import GridExecutor

    allowed = []
    given = GridExecutor._init_args_hst

    def arguments_on_host(self, arguments, options):
        outputs = [member for argument in arguments if isinstance(argument, tuple) for member in argument]
        tensors = [value for value in (*arguments, *outputs, *options.values()) if isinstance(value, Tensor)]
        allowed[:] = [np.unique(np.concatenate([addresses(tensor) for tensor in tensors]))]
        return given(self, arguments, options)

    monkeypatch.setattr(GridExecutor, "_init_args_hst", arguments_on_host)

    def checked(method, mask_at):
        def call(self, *arguments):
            pointers, mask = np.broadcast_arrays(arguments[0].data, arguments[mask_at].data)
            touched = pointers[mask].astype(np.int64)
            at = np.searchsorted(allowed[0], touched).clip(max=len(allowed[0]) - 1)
            assert (allowed[0][at] == touched).all(), "an address outside the tensors"
            return method(self, *arguments)

        return call

    for name, mask_at in (("create_masked_load", 1), ("create_masked_store", 2)):
        monkeypatch.setattr(interpreter, name, checked(getattr(interpreter, name), mask_at))
