"""balance_scores against BSS's formulas in many digits."""

import itertools

import mpmath
import pytest
import torch
from torchassay.samplers.modalities import balance_scores


def logits(modalities, n=12, classes=5, scale=3.0, seed=1, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(modalities + 1, n, classes, generator=random) * scale).to(dtype).unbind()


def exact_scores(modalities, fused, target, weights):
    """Similarity and loss of each sample with 60 digits, from their definitions."""
    with mpmath.workdps(60):
        similarity, loss = [], []
        for i, y in enumerate(target.tolist()):
            softmax = []
            for row in (fused[i], *(x[i] for x in modalities)):
                powers = [mpmath.exp(mpmath.mpf(z)) for z in row.tolist()]
                softmax.append([power / sum(powers) for power in powers])
            loss.append(float(sum(-w * mpmath.log(p[y]) for w, p in zip(weights, softmax, strict=True))))
            cosines = []
            for u, v in itertools.combinations(softmax[1:], 2):
                dot = sum(a * b for a, b in zip(u, v, strict=True))
                cosines.append(dot / mpmath.sqrt(sum(a * a for a in u) * sum(b * b for b in v)))
            similarity.append(float(sum(cosines) / len(cosines)))
    return torch.tensor(similarity, dtype=torch.float64), torch.tensor(loss, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.1, 3.0, 25.0])  # at 25 sure heads, in the right and in the wrong
@pytest.mark.parametrize(("modalities", "weights"), [(2, None), (2, (0.1, 0.9, 0.9)), (3, None), (4, (0, 1, 2, 3, 4))])
def test_scores_to_the_last_digits(modalities, weights, scale):
    fused, *each = logits(modalities, scale=scale)
    target = fused.argmax(1)
    target[::4] = 0
    found = balance_scores(each, fused, target, weights=weights)
    similarity, loss = exact_scores(each, fused, target, weights or [1.0] * (modalities + 1))
    assert found.signals == ("similarity", "loss") and found.loss.dtype == torch.float32
    torch.testing.assert_close(found.similarity.double(), similarity, rtol=2e-6, atol=1e-37)
    torch.testing.assert_close(found.loss.double(), loss, rtol=2e-6, atol=0)
    assert (found.similarity <= 1).all() and (found.similarity >= 0).all()


def test_losses_of_sure_samples_are_not_0():
    sure = torch.tensor([[0.0, 40.0], [0.0, 60.0], [0.0, 80.0]])
    found = balance_scores([sure, sure], sure, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(found.loss, 3 * torch.exp(-sure[:, 1]), rtol=1e-6, atol=0)
    assert torch.equal(found.similarity, torch.ones(3))
    apart = balance_scores([sure, sure.flip(1)], sure, torch.tensor([1, 1, 1])).similarity
    torch.testing.assert_close(apart, 2 * torch.exp(-sure[:, 1]), rtol=1e-6, atol=0)


def test_a_similarity_is_never_above_1():
    """Though the squares of rounded numbers can sum to more."""
    fused, audio = logits(1, n=2000)
    found = balance_scores([audio, audio.clone()], fused, fused.argmax(1)).similarity
    assert found.max() == 1 and found.min() > 1 - 1e-6


def test_a_loss_that_does_not_count_may_be_infinite():
    fused, audio, video = logits(2)
    fused = fused.masked_fill(torch.arange(5) == 2, -torch.inf)
    target = torch.full((12,), 2)
    assert balance_scores([audio, video], fused, target).loss.isinf().all()
    found = balance_scores([audio, video], fused, target, weights=(0, 1, 1)).loss
    torch.testing.assert_close(found, exact_scores([audio, video], audio, target, [0, 1, 1])[1].float())


def test_scores_of_other_dtypes_and_with_probabilities():
    fused, *each = logits(2, dtype=torch.float64)
    target = torch.arange(12) % 5
    found = balance_scores(each, fused, target)
    similarity, loss = exact_scores(each, fused, target, [1.0] * 3)
    torch.testing.assert_close(found.similarity, similarity, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.loss, loss, rtol=1e-14, atol=0)
    one_hot = torch.nn.functional.one_hot(target, 5).double()
    torch.testing.assert_close(balance_scores(each, fused, one_hot).loss, loss, rtol=1e-14, atol=0)
    half = [x.bfloat16() for x in each]
    found, same = balance_scores(half, fused, target), balance_scores([x.double() for x in half], fused, target)
    torch.testing.assert_close(found.similarity.double(), same.similarity, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.loss.double(), same.loss, rtol=2e-6, atol=0)


def test_scores_are_detached_and_poison_stays_in_its_sample():
    fused, audio, video = logits(2)
    clean = balance_scores([audio, video], fused, torch.zeros(12, dtype=torch.int64))
    audio = audio.clone()
    audio[3, 1], audio[5, 2], audio[7] = torch.nan, torch.inf, -torch.inf
    audio.requires_grad_()
    found = balance_scores([audio, video], fused, torch.zeros(12, dtype=torch.int64))
    for value, before in ((found.similarity, clean.similarity), (found.loss, clean.loss)):
        assert not value.requires_grad
        assert value.isnan().nonzero().squeeze(1).tolist() == [3, 5, 7]
        rest = [i for i in range(12) if i not in (3, 5, 7)]
        assert torch.equal(value[rest], before[rest])


def test_scores_say_what_does_not_fit():
    fused, audio, video = logits(2)
    target = torch.zeros(12, dtype=torch.int64)
    for change, message in (
        ({"each": torch.stack([audio, video])}, "logits_per_modality must be a sequence of tensors, got Tensor"),
        ({"each": [audio]}, "logits_per_modality must be those of at least two modalities, got 1"),
        ({"each": [audio, None]}, "logits_per_modality[1] must be a Tensor, got NoneType"),
        (
            {"each": [audio, video.long()]},
            "logits_per_modality[1] must be float16, bfloat16, float32 or float64, got int64",
        ),
        ({"each": [audio[:, :3], video]}, "logits_per_modality[0] must have fused_logits' shape (12, 5), got (12, 3)"),
        ({"fused": fused[0]}, "fused_logits must have shape (N, C), got (5,)"),
        (
            {"each": [audio, video.to("meta")]},
            "logits_per_modality[1] must be on fused_logits' device, cpu, got meta",
        ),
        ({"target": target[:3]}, "target has shape (3,) but input (12, 5) without dim -1 is (12,)"),
        ({"weights": (1, 1)}, "weights must be 3 numbers, the fused loss's and one a modality, got 2"),
        ({"weights": (1, -1, 1)}, "weights must be at least 0, finite and not all 0, got (1, -1, 1)"),
        ({"weights": (0, 0, 0)}, "weights must be at least 0, finite and not all 0, got (0, 0, 0)"),
    ):
        given = {"each": [audio, video], "fused": fused, "target": target, "weights": None} | change
        with pytest.raises((ValueError, TypeError)) as raised:
            balance_scores(given["each"], given["fused"], given["target"], weights=given["weights"])
        assert str(raised.value) == f"balance_scores: {message}"
