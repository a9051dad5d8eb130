"""For tests that only a GPU can fail: sizes, streams, graphs, the hardware's own rounding. Skipped without one."""

import pytest
import torch
import torchassay as ta
from torchassay.backends import why_not


def _backend(name: str):
    reason = why_not(name, "cuda", torch.float32)
    return pytest.param(name, id=f"{name}-cuda", marks=[pytest.mark.skip(reason=f"{name}: {reason}")] if reason else [])


@pytest.fixture(params=[_backend("native"), _backend("triton")])
def backend(request) -> str:
    """Each backend whose kernels run on the GPU."""
    return request.param


@pytest.fixture
def room():
    """room(GiB): skip where the GPU has less free memory; what the test took is given back."""

    def need(gibibytes: float) -> None:
        if torch.cuda.mem_get_info()[0] < gibibytes * 2**30:
            pytest.skip(f"needs {gibibytes:g} GiB of free device memory")

    yield need
    torch.cuda.empty_cache()


@pytest.fixture
def batch():
    """batch(rows, classes, dtype) -> logits and targets on the GPU, the same in every run."""

    def make(rows: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cuda"):
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.empty(rows, classes, dtype=dtype, device=device)
        for part in x.split(max(1, (1 << 28) // classes)):  # float32 of a part at a time
            part.copy_(torch.randn(part.shape, generator=generator, device=device) * 4)
        return x, torch.randint(classes, (rows,), generator=generator, device=device)

    return make


@pytest.fixture
def bits():
    """bits(Scores or tensor) -> what to compare: every value's bit pattern, so that NaN equals NaN."""
    kinds = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

    def pattern(value: torch.Tensor) -> torch.Tensor:
        return value if value.dtype == torch.int64 else value.contiguous().view(kinds[value.dtype])

    def of(result):
        if isinstance(result, ta.Scores):
            return torch.stack([pattern(value).long() for value in result.as_dict().values()])
        return pattern(result)

    return of


@pytest.fixture
def gradient(backend):
    """gradient(x, y) -> that of log-probability plus half the entropy, summed over rows."""

    def of(x, y):
        x = x.detach().requires_grad_()
        logp, entropy = ta.log_prob_entropy(x, y, backend=backend)
        return torch.autograd.grad([logp, entropy], x, [torch.ones_like(logp), torch.full_like(entropy, 0.5)])[0]

    return of
