"""On the hardware: a linear head at the sizes of language models, against float64 of some rows."""

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from torchassay import reference

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SIGNALS = ("loss", "entropy", "grad_norm", "lse", "margin", "prediction")


def made(rows: int, features: int, classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator("cuda").manual_seed(rows)
    hidden = torch.randn(rows, features, generator=generator, device="cuda").to(dtype)
    weight = (torch.randn(classes, features, generator=generator, device="cuda") * 3 / features**0.5).to(dtype)
    return hidden, weight, torch.randint(classes, (rows,), generator=generator, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(300, 512, 50257), (1030, 1000, 128256), (1, 2048, 151936)], ids=str)
def test_scores(shape, dtype, backend, room):
    """TF32 would miss the bound of float32 by far; half precision may round the logits, as a head does."""
    room(4)
    hidden, weight, target = made(*shape, dtype)
    found = ta.linear_score(hidden, weight, target, signals=SIGNALS, backend=backend)
    at = torch.linspace(0, shape[0] - 1, 8, device="cuda").long()
    logits = F.linear(hidden[at].double(), weight.double())
    exact = reference.score(logits, target[at], signals=SIGNALS)
    rounded = dtype != torch.float32 and backend != "triton"
    near = 2 * torch.finfo(dtype).eps * logits.abs().max().item() if rounded else 1e-5
    for name in SIGNALS[:-1]:
        torch.testing.assert_close(
            getattr(found, name)[at].double(), getattr(exact, name), rtol=near, atol=near, msg=name
        )
    chosen = logits.gather(1, found.prediction[at][:, None])[:, 0]
    assert (chosen >= logits.amax(1) - near * logits.abs().amax(1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_triton_a_rows_bits_are_its_own(dtype, bits):
    hidden, weight, target = made(700, 256, 32000, dtype)

    def scored(at):
        return bits(ta.linear_score(hidden[at], weight, target[at], signals=SIGNALS, backend="triton"))

    whole = scored(slice(None))
    for at in (slice(0, 1), slice(130, 147), slice(699, None)):
        for one, other in zip(scored(at), whole, strict=True):
            assert torch.equal(one, other[at])
