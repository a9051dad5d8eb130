"""Groups of NCCL: the exchange before a call over the GPU or beside it, and a call in a CUDA graph."""

import pytest
import torch
import torch.distributed as dist
import torchassay as ta

if not torch.cuda.is_available() or not dist.is_nccl_available():
    pytest.skip("no CUDA device, or no NCCL", allow_module_level=True)


@pytest.fixture(params=["nccl", "cpu:gloo,cuda:nccl"])
def group(request):
    """This process alone: NCCL joins no two of them on one GPU."""
    dist.init_process_group(request.param, store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def tensors():
    generator = torch.Generator("cuda").manual_seed(4)
    hidden, head = (torch.randn(n, 64, generator=generator, device="cuda") for n in (300, 5000))
    target = torch.randint(5000, (300,), generator=generator, device="cuda")
    target[7] = -100
    return hidden, head, target


def test_what_a_call_without_a_group_gives(group, backend, tensors):
    hidden, head, target = tensors

    def found(**how):
        h, w = (t.clone().requires_grad_() for t in (hidden, head))
        x = torch.nn.functional.linear(hidden, head).requires_grad_()
        losses = [ta.cross_entropy(x, target, backend=backend, **how)]
        losses.append(ta.linear_cross_entropy(h, w, target, backend=backend, **how))
        return [*torch.stack(losses), *torch.autograd.grad(sum(losses), (x, h, w))]

    for value, exact in zip(found(group=group), found(), strict=True):
        assert (value - exact).norm() <= 1e-5 * exact.norm()
    with pytest.raises(ValueError, match=r"^score: dim must be in"):
        ta.score(hidden, dim=5, group=group, backend=backend)


def test_a_dtensor_in_a_graph(group, backend, tensors):
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    hidden, head, target = tensors
    logits, mesh = torch.nn.functional.linear(hidden, head), init_device_mesh("cuda", (1,))

    def loss():
        of_mesh = DTensor.from_local(logits, mesh, [Shard(1)], run_check=False)
        return ta.cross_entropy(of_mesh, target, backend=backend)

    loss()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL has threads that ask for events
        captured = loss()
    logits.mul_(0.5)
    graph.replay()
    torch.testing.assert_close(captured, ta.cross_entropy(logits, target, backend=backend), rtol=1e-5, atol=0)
