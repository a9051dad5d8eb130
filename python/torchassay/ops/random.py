"""Random numbers by row."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import philox
from torchassay.backends import choose, native
from torchassay.ops.memory import address, current, place

torch.library.define(  # SymInt: compiled code is not for one step alone
    "torchassay::uniforms", "(Tensor row_id, Tensor? seed_tensor, SymInt seed, SymInt step, str backend) -> Tensor"
)
torch.library.define(
    "torchassay::normals",
    "(Tensor row_id, Tensor? seed_tensor, SymInt seed, int purpose, SymInt draw, SymInt columns, bool uniform,"
    " str backend) -> Tensor",
)


def _uniforms(row_id: Tensor, seed_tensor: Tensor | None, seed: int, step: int, backend: str) -> Tensor:
    backend = choose("uniforms", row_id.device.type, torch.float32, 1, backend)
    if backend == "reference":
        return philox.pick_uniforms(row_id, seed if seed_tensor is None else seed_tensor, step)
    row_id = row_id.contiguous()
    out = torch.empty(row_id.shape, dtype=torch.float32, device=row_id.device)
    if out.numel() == 0:
        return out
    if backend == "triton":
        from torchassay.triton_kernels.philox import uniforms

        with current(row_id):
            uniforms(row_id, seed_tensor, seed, step, out)
        return out
    call = row_id.data_ptr(), row_id.numel(), address(seed_tensor), seed, step, out.data_ptr()
    if row_id.is_cuda:
        with current(row_id):
            native.cuda_uniforms(*call, *place(row_id))
    else:
        native.uniforms(*call)
    return out


def _normals(
    row_id: Tensor,  # [N] int64
    seed_tensor: Tensor | None,  # 0-d int64, instead of seed
    seed: int,
    purpose: int,
    draw: int,  # in [0, 2^32)
    columns: int,
    uniform: bool,  # the uniform numbers in [0, 1) of the columns' words
    backend: str,
) -> Tensor:
    """The normal numbers of a draw of each row, [N, columns] float32."""
    backend = choose("normals", row_id.device.type, torch.float32, 1, backend)
    if backend == "reference":
        numbers = philox.column_uniforms if uniform else philox.normals
        return numbers(row_id, seed if seed_tensor is None else seed_tensor, purpose, draw, columns)
    row_id = row_id.contiguous()
    out = torch.empty((len(row_id), columns), dtype=torch.float32, device=row_id.device)
    if out.numel() == 0:
        return out
    if backend == "triton":
        from torchassay.triton_kernels.philox import normals

        with current(row_id):
            normals(row_id, seed_tensor, seed, purpose, draw, uniform, out)
        return out
    call = (
        *(row_id.data_ptr(), row_id.numel(), address(seed_tensor), seed),
        *(purpose, draw, columns, uniform, out.data_ptr()),
    )
    if row_id.is_cuda:
        with current(row_id):
            native.cuda_normals(*call, *place(row_id))
    else:
        native.normals(*call, torch.get_num_threads())
    return out


torch.library.impl("torchassay::uniforms", "CompositeExplicitAutograd", _uniforms)
torch.library.impl("torchassay::normals", "CompositeExplicitAutograd", _normals)


@torch.library.register_fake("torchassay::uniforms")
def _(row_id, seed_tensor, seed, step, backend):
    return torch.empty(row_id.shape, dtype=torch.float32, device=row_id.device)


@torch.library.register_fake("torchassay::normals")
def _(row_id, seed_tensor, seed, purpose, draw, columns, uniform, backend):
    return torch.empty((row_id.shape[0], columns), dtype=torch.float32, device=row_id.device)


uniforms = torch.ops.torchassay.uniforms.default
normals = torch.ops.torchassay.normals.default
