"""Every kernel once, on small inputs, verified: a smoke test, and what compute-sanitizer watches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch
import torchassay as ta
from torchassay import ops
from torchassay.backends import why_not
from torchassay.philox import uniforms
from torchassay.scores import ROW_SIGNALS

BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16
SHAPES = (  # rows, classes, elements that the first row stands off an address that is a multiple of 16
    (5, 1, 0),
    (40, 10, 1),
    (300, 100, 0),  # rows share a warp
    (16400, 36, 0),  # enough short rows that programs finish them together
    (300, 127, 1),
    (7, 1000, 0),
    (3, 1020, 0),  # a multiple of 8 bytes in half precision, not of 16
    (9, 4097, 3),
    (300, 8208, 0),  # more rows than multiprocessors: none is cut
    (3, 33000, 0),  # few long rows: each is cut
    (3, 33001, 5),
)
CASES = [(*shape, dtype) for dtype in (BF16, FP32) for shape in SHAPES] + [(*shape, FP16) for shape in SHAPES[1::4]]


def ending_at_its_memory(x: torch.Tensor, offset: int, device: str) -> torch.Tensor:
    """x on the device, ``offset`` elements into memory that ends with it, up to a multiple of 16 bytes.

    PyTorch's allocations are multiples of 512 bytes, and kernels may read whole aligned vectors that hold a logit.
    """
    unit = 16 // x.element_size()
    store = torch.empty(-(-(offset + x.numel()) // unit) * unit, dtype=x.dtype, device=device)
    view = store[offset : offset + x.numel()].view(x.shape)
    view.copy_(x)
    return view


def worst(backend: str, device: str, rows: int, classes: int, offset: int, dtype: torch.dtype) -> float:
    """Run one case; the worst relative error of its signals, and of its gradients as a share of a row's norm."""
    generator = torch.Generator().manual_seed(classes)
    x = (torch.randn(rows, classes, generator=generator) * 3).to(dtype)
    y = torch.arange(rows) * 7 % classes
    there, target = ending_at_its_memory(x, offset, device), y.to(device)
    found = ta.score(there, target, signals=ROW_SIGNALS, backend=backend).cpu()
    leaf = there.detach().requires_grad_()
    outputs = ta.log_prob_entropy(leaf, target, backend=backend)
    upstream = [torch.ones(rows).to(device)] * 2
    gradient = torch.autograd.grad(outputs, leaf, upstream)[0].cpu().double()

    wide = x.double()
    exact = ta.reference.score(wide, y, signals=ROW_SIGNALS).as_dict()
    errors = [((getattr(found, name) - true).abs() / true.abs().clamp(min=1e-30)).max() for name, true in exact.items()]
    wide.requires_grad_()
    expected = torch.autograd.grad(sum(out.sum() for out in ta.reference.log_prob_entropy(wide, y)), wide)[0]
    slack = 1.0 if dtype == FP32 else 1e-3  # of the tolerance: half precision rounds the gradient
    errors.append(slack * ((gradient - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-30)).max())
    return float(torch.stack(errors).max())


def picks(backend: str, device: str) -> float:
    """The same of the kernels behind `History`: shares of a window, and the draws."""
    generator, worst = torch.Generator().manual_seed(5), 0.0
    for capacity, total, count in ((1, 1, 3), (1000, 700, 33), (5000, 9999, 300)):
        window, values = (torch.randn(size, generator=generator) for size in (capacity, count))
        for midrank in (False, True):
            call = window, torch.tensor(total), values
            found = ops.cdf(*(tensor.to(device) for tensor in call), midrank, backend).cpu()
            worst = max(worst, float((found - ta.reference.cdf(*call, midrank)).abs().max()))
    ids = torch.arange(1000) << 31
    found = uniforms(ids.to(device), seed=-5, step=7, backend=backend).cpu()
    return max(worst, float((found - uniforms(ids, seed=-5, step=7, backend="reference")).abs().max()))


def check(device: str, backends: Sequence[str], cases: Sequence[tuple] = CASES, tolerance: float = 1e-5) -> list[str]:
    """What is wrong, a line a case."""
    wrong = []
    for backend in backends:
        checks = {f"{backend}: picks": partial(picks, backend, device)}
        for case in cases:
            rows, classes, offset, dtype = case
            name = f"{backend}: {rows} x {classes} {str(dtype).removeprefix('torch.')}, off by {offset}"
            checks[name] = partial(worst, backend, device, *case)
        for name, error_of in checks.items():
            try:
                error = error_of()
                if not error <= tolerance:
                    wrong.append(f"{name}: error {error:.1e}")
            except Exception as failure:  # the other cases still say something
                wrong.append(f"{name}: {type(failure).__name__}: {failure}")
    return wrong


def main() -> int:
    print(ta.backends())
    backends = [name for name in ("native", "triton") if not why_not(name, "cuda", FP32)]
    wrong = check("cuda", backends)
    print("\n".join(wrong))
    print(f"{len(CASES) * len(backends)} cases of {' and '.join(backends) or 'no backend'}, {len(wrong)} wrong")
    return 1 if wrong or not backends else 0


if __name__ == "__main__":
    sys.exit(main())
