"""What went wrong with rows in other libraries' kernels of the same kind, with the public report of it.

Each is a short test of the case itself; the numbers go on in test_peers_bugs_training.py. More of the same, on more
shapes, stands in the tests of each function, of the layouts and of the GPU (tests/gpu).
"""

from __future__ import annotations

import math

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from option_oracle import Case, truth
from torchassay.scores import ROW_SIGNALS

INF = math.inf
SIZES = (2, 17, 257, 1000, 8193)  # around the ends of lanes, blocks and segments


def scored(place, x, y, **options) -> ta.Scores:
    here = {"signals": ROW_SIGNALS, "backend": place.backend, **options}
    return ta.score(x.to(place.device), y.to(place.device), **here).cpu()


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", SIZES)
def test_01_lanes_beyond_the_row_counted_as_logits_of_zero(classes, fast_place):
    """verl#2656, verl#2899, verl#5349: seen only where the row's own logits are far below 0."""
    x = torch.full((2, classes), -15.0)
    x[:, classes // 2] = torch.tensor([3.0, -12.0])
    y = torch.tensor([classes // 2, 0])
    oracle.check(fast_place, scored(fast_place, x, y), oracle.signals(x, y), x)


@pytest.mark.parametrize(("softcap", "level"), [(1.0, -0.5), (30.0, -60.0)])
@pytest.mark.parametrize("classes", SIZES)
def test_02_lanes_beyond_the_row_came_to_life_under_a_softcap(classes, softcap, level, fast_place):
    """unsloth#10616: softcap tanh(-inf / softcap) is -softcap, a class like any other."""
    x = torch.full((2, classes), level) + randn(2, classes) / 8
    y = torch.tensor([0, classes - 1])
    found = scored(fast_place, x, y, softcap=softcap)
    exact = truth(x, y, Case(softcap=softcap)).signals
    for name in ("loss", "entropy"):
        torch.testing.assert_close(getattr(found, name).double(), exact[name], rtol=1e-5, atol=1e-6)


def test_03_a_maximum_that_began_at_zero(fast_place):
    """verl#7439, SkyRL#2141: with no logit above -100 every exponential was 0, and its logarithm no number."""
    x = randn(4, 300) - 5000
    y = torch.arange(4)
    oracle.check(fast_place, scored(fast_place, x, y), oracle.signals(x, y), x)


@pytest.mark.parametrize("shift", [1e3, 1e4, -1e4])
def test_04_an_entropy_that_depended_on_a_common_offset(shift, fast_place):
    """lse - sum p x with raw logits loses as many digits as the offset has."""
    x, y = (randn(4, 300) * 4).round(), torch.arange(4)
    near, far = scored(fast_place, x, y), scored(fast_place, x + shift, y)
    for name in set(ROW_SIGNALS) - {"lse"}:
        assert torch.equal(getattr(near, name), getattr(far, name)), name


@pytest.mark.parametrize("classes", SIZES)
def test_05_one_class_left_and_all_others_masked(classes, fast_place):
    """flash-attention#1930, flashinfer#1178: -inf - (-inf) in a block that holds none but masked classes."""
    at = torch.tensor([0, min(255, classes - 1), classes // 2, classes - 1])
    x = torch.full((4, classes), -INF).scatter(1, at[:, None], 2.0)
    s = scored(fast_place, x, at)
    for name in ("loss", "entropy", "grad_norm", "least_confidence"):
        assert (getattr(s, name) == 0).all(), name
    assert (s.confidence == 1).all() and (s.lse == 2).all() and torch.equal(s.prediction, at)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_06_a_masked_tail_made_the_entropys_gradient_nan(dtype, fast_place):
    """SkyRL#2259, trl#7221, FastDeploy#5941: 0 times -inf. In float16 the mask may be its lowest number, too."""
    for mask in (-INF, torch.finfo(dtype).min):
        x = (randn(3, 100) * 3).to(dtype)
        x[:, 60:] = mask
        leaf = x.to(fast_place.device).requires_grad_()
        entropy = ta.entropy(leaf, backend=fast_place.backend)
        entropy.sum().backward()
        exact = oracle.signals(x[:, :60])["entropy"]
        torch.testing.assert_close(entropy.detach().cpu().double(), exact, rtol=1e-6, atol=0)
        assert leaf.grad.isfinite().all() and (leaf.grad[:, 60:] == 0).all()


def test_07_one_bad_logit_spoilt_other_rows(fast_place):
    """pytorch#195829: and a target at -inf is an infinite loss, no NaN; a row of -inf alone is NaN, as torch has it."""
    x, y = randn(6, 40), torch.arange(6)
    whole = scored(fast_place, x, y)
    x[0, 3], x[1, 3], x[2], x[3, 3] = math.nan, INF, -INF, -INF
    s = scored(fast_place, x, y)
    eager = F.cross_entropy(x, y, reduction="none")
    assert torch.equal(s.loss.isnan(), eager.isnan()) and s.loss[3] == INF == eager[3]
    assert s.entropy[:3].isnan().all() and s.entropy[3:].isfinite().all()
    for name in ROW_SIGNALS:
        assert torch.equal(getattr(s, name)[4:], getattr(whole, name)[4:]), name


def test_08_offsets_beyond_two_to_the_31(fast_place):
    """Liger-Kernel#47, pytorch#85786, pytorch#90793, vllm#46560: int32 offsets; the last rows are the wrong ones.

    By a stride; so many elements of a row each in tests/test_row_scores_edges.py and tests/gpu/test_gpu_sizes.py.
    """
    rows, classes = 3, 1000
    memory = torch.empty(2**31 + 4096, dtype=torch.bfloat16, device=fast_place.device)  # pages nobody touches are none
    x = memory.as_strided((rows, classes), (2**30, 1))
    plain, y = randn(rows, classes).bfloat16(), torch.arange(rows)
    x.copy_(plain)
    found, expected = scored(fast_place, x, y), scored(fast_place, plain, y)
    for name in ROW_SIGNALS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_09_too_many_rows_one_class_or_no_row(fast_place):
    """Liger-Kernel#1294: 65,536 rows are more than a grid's second dimension. quack: an empty batch. pytorch#182867."""
    x, y = randn(70_000, 3), torch.arange(70_000) % 3
    s = scored(fast_place, x, y)
    last = scored(fast_place, x[-3:], y[-3:])
    assert torch.equal(s.loss[-3:], last.loss) and torch.equal(s.entropy[-3:], last.entropy)
    one = scored(fast_place, randn(4, 1), torch.zeros(4, dtype=torch.int64))
    assert (one.loss == 0).all() and (one.entropy == 0).all() and (one.confidence == 1).all()
    none = scored(fast_place, randn(0, 5), torch.zeros(0, dtype=torch.int64))
    assert none.loss.shape == (0,) and none.prediction.shape == (0,)


def test_10_rows_that_are_not_side_by_side(fast_place):
    """TransformerEngine#2734: a last stride of 1 said nothing of the others."""
    cube = randn(4, 5, 39)
    flat = randn(1 + 8 * 33)
    views = {
        "transposed": cube.transpose(0, 1),
        "sliced": cube[:, 1:-1, :],
        "classes apart": cube[..., ::2],
        "expanded": cube[0, 0].expand(4, 39),
        "misaligned": flat[1:].view(8, 33)[:, 1:],
    }
    for name, x in views.items():
        y = torch.arange(x[..., 0].numel()).view(x.shape[:-1]) % x.shape[-1]
        found, expected = scored(fast_place, x, y), scored(fast_place, x.contiguous(), y)
        for signal in ROW_SIGNALS:
            assert torch.equal(getattr(found, signal), getattr(expected, signal)), (name, signal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_14_the_true_classs_gradient_was_rounded_before_it_was_subtracted(dtype, fast_place):
    """Liger-Kernel#1329, Liger-Kernel#1419: p_y - 1 is 0 in half precision where p_y rounds to 1."""
    x, y = torch.tensor([[9.0, 0.0, 0.0], [12.0, 0.0, -1.0]]).to(dtype), torch.zeros(2, dtype=torch.int64)
    leaf = x.to(fast_place.device).requires_grad_()
    loss = ta.cross_entropy(leaf, y.to(fast_place.device), reduction="none", backend=fast_place.backend)
    loss.backward(torch.full_like(loss, 64.0))  # as loss scaling has it: before the rounding
    exact = oracle.grads(x, y, torch.full((2,), 64.0), None)
    assert (exact[:, 0] != 0).all()
    torch.testing.assert_close(leaf.grad.cpu().double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


def test_15_easy_rows_tied_at_zero(fast_place):
    """Through lse - x_y in float32 every sample whose target leads by more than 17 has the same loss."""
    lead = torch.arange(5, 80.25, 0.25)
    x = torch.stack([lead, torch.zeros_like(lead), torch.full_like(lead, -1)], 1)
    y = torch.zeros(len(lead), dtype=torch.int64)
    s = scored(fast_place, x, y)
    oracle.check(fast_place, s, oracle.signals(x, y), x)
    for name in ("loss", "grad_norm"):
        assert (getattr(s, name) > 0).all() and (getattr(s, name).diff() < 0).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_results_came_in_the_precision_of_the_logits(dtype, fast_place):
    """Scores of half-precision logits are float32, and those of the same values upcast."""
    x, y = (randn(5, 300) * 3).to(dtype), torch.arange(5)
    low, high = scored(fast_place, x, y), scored(fast_place, x.float(), y)
    for name in oracle.FLOAT_SIGNALS:
        assert getattr(low, name).dtype == torch.float32
        torch.testing.assert_close(getattr(low, name), getattr(high, name), rtol=2**-22, atol=0)


def test_20_ties_between_blocks(fast_place):
    """The first of equal tops is the prediction and there is no margin; a class's number may not pass float32."""
    x = torch.zeros(3, 20_000)
    x[0, [7, 19_999]], x[1, [8191, 8192]], x[2, [300, 9000, 19_998]] = 2.0, 30.0, 1.0
    s = scored(fast_place, x, torch.tensor([7, 8191, 300]))
    assert s.prediction.tolist() == [7, 8191, 300] and (s.margin == 0).all() and (s.target_margin == 0).all()
    if fast_place.backend == "native":
        wide = torch.zeros(1, 2**24 + 4, dtype=torch.bfloat16)
        wide[0, 2**24 + 1] = 1.0
        assert scored(fast_place, wide, torch.tensor([0])).prediction.item() == 2**24 + 1


@pytest.mark.parametrize("classes", [1000, 8193, 20_001])
def test_21_rescaling_from_block_to_block(classes, fast_place):
    """Maxima that swing by 40, ramps of 88 and 104 up and down, where e^x underflows relative to a later maximum."""
    j = torch.arange(classes)
    rows = [20.0 * (1 - 2 * (j // size % 2)) for size in (8, 64, 1024)]
    up = torch.linspace(0, 1, classes)
    x = torch.stack([*rows, *(span * side for span in (88.0, 104.0, 300.0) for side in (up, 1 - up))])
    y = torch.arange(len(x)) * 77 % classes
    oracle.check(fast_place, scored(fast_place, x, y), oracle.signals(x, y), x)


@pytest.mark.parametrize("classes", [10, 300, 9000])
def test_22_a_rows_result_depended_on_its_batch(classes, fast_place):
    """RL-Kernel#96, RL-Kernel#148, vllm#49367. Alone, among three, among many, turned around, and again."""
    x, y = randn(130 if classes > 1000 else 4097, classes), None
    y = torch.arange(len(x)) % classes
    whole = scored(fast_place, x, y)
    few = scored(fast_place, x[:3], y[:3])
    alone = ta.Scores.cat([scored(fast_place, x[i : i + 1], y[i : i + 1]) for i in range(3)])
    turned = scored(fast_place, x.flip(0), y.flip(0))
    for name in ROW_SIGNALS:
        value = getattr(whole, name)
        assert torch.equal(getattr(few, name), value[:3]) and torch.equal(getattr(alone, name), value[:3]), name
        assert torch.equal(getattr(turned, name).flip(0), value), name
