"""The share of a window that lies below each value."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import reference
from torchassay.backends import choose, native
from torchassay.ops.memory import current, place

torch.library.define(
    "torchassay::cdf", "(Tensor window, Tensor total, Tensor values, bool midrank, str backend) -> Tensor"
)


def _cdf(window: Tensor, total: Tensor, values: Tensor, midrank: bool, backend: str) -> Tensor:
    backend = choose("History", values.device.type, torch.float32, 1, backend)
    if backend == "reference":
        return reference.cdf(window, total, values, midrank)
    out = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    if out.numel() == 0:
        return out
    if backend == "triton":
        from torchassay.triton_kernels.cdf import cdf

        with current(values):
            cdf(window, total, values, midrank, out)
        return out
    if window.is_cuda and window.data_ptr() % 16:
        window = window.clone()  # its kernel reads 16 bytes at a time
    call = (
        *(window.data_ptr(), window.numel(), total.data_ptr()),
        *(values.data_ptr(), values.stride(0), values.numel(), midrank, out.data_ptr()),
    )
    if values.is_cuda:
        with current(values):
            native.cuda_cdf(*call, *place(values))
    else:
        native.cdf(*call, torch.get_num_threads())
    return out


torch.library.impl("torchassay::cdf", "CompositeExplicitAutograd", _cdf)


@torch.library.register_fake("torchassay::cdf")
def _(window, total, values, midrank, backend):
    return torch.empty(values.shape, dtype=torch.float32, device=values.device)


cdf = torch.ops.torchassay.cdf.default
