"""BalanceAware against BSS's formulas in slow loops, many digits and many draws."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from torchassay.samplers import balance_aware
from torchassay.samplers.balance_aware import BalanceAware, balance, highest, share_of_epoch, weighted_order
from torchassay.samplers.balance_scores import balance_scores


def chi_square(counts, expected):
    """How far counts are from what is expected, in standard deviations of the statistic."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


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


def test_share_of_epoch_grows_as_published():
    """lambda(t) of the method's slides, t = epoch + 1."""
    for t, expected in ((1, 0.1864), (10, 0.5074), (20, 0.7106), (39, 0.9875)):
        assert round(share_of_epoch(t - 1), 4) == expected
    assert share_of_epoch(39) == share_of_epoch(100) == 1
    for t in range(1, 8):
        exact = min(1.0, math.sqrt((1 - 0.3**2) / 7 * t + 0.3**2))
        assert share_of_epoch(t - 1, 0.3, 7) == pytest.approx(exact, rel=1e-15)
    assert share_of_epoch(6, 0.3, 7) == 1  # exactly, so that no sample is left out


def test_balance_is_the_difference_of_both_scaled_to_one():
    random = np.random.default_rng(2)
    similarity = random.random(200, dtype=np.float32) * np.float32(0.3) + np.float32(0.5)
    loss = random.exponential(size=200).astype(np.float32)
    by_hand = {"both": [], "similarity": [], "loss": []}
    for cosine, nats in zip(similarity.astype(float), loss.astype(float), strict=True):
        agreed = (cosine - similarity.min()) / (float(similarity.max()) - similarity.min())
        lost = (nats - loss.min()) / (float(loss.max()) - loss.min())
        for name, value in (("both", agreed - lost), ("similarity", agreed), ("loss", -lost)):
            by_hand[name].append(value)
    before = similarity.copy(), loss.copy()
    for name, expected in by_hand.items():
        found = balance(similarity, loss, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)
        assert found.min() >= -1 and found.max() <= 1
    assert (similarity == before[0]).all() and (loss == before[1]).all()


def test_balance_of_equal_and_of_infinite_values():
    equal, rising = np.full(4, 0.1, np.float32), np.array([0, 1, 2, 4], np.float32)
    assert balance(equal, equal).tolist() == [0, 0, 0, 0]
    assert balance(equal, rising).tolist() == [0, -0.25, -0.5, -1]
    assert balance(rising, equal).tolist() == [0, 0.25, 0.5, 1]
    infinite = np.array([0, np.inf, 2, 4], np.float32)  # a masked class as target: as bad as the worst other
    assert balance(equal, infinite, "loss").tolist() == [0, -1, -0.5, -1]
    assert balance(equal, np.full(4, np.inf, np.float32)).tolist() == [0, 0, 0, 0]


def test_highest_takes_the_highest():
    values = np.random.default_rng(3).permutation(500).astype(np.float32)
    by_value = sorted(range(500), key=lambda i: -values[i])
    for count in (1, 2, 250, 499, 500):
        found = highest(values, count, seed=0)
        assert found.dtype == np.int32
        assert found.tolist() == sorted(by_value[:count])


def test_highest_draws_among_equals_once_for_all_epochs():
    values = np.repeat(np.array([1, 0, 2, 1], np.float32), 500)
    before = set()
    for count in (100, 500, 501, 900, 1500, 1501, 2000):
        found = set(highest(values, count, seed=4).tolist())
        assert len(found) == count and before <= found  # the sequence is fixed: more join, none leaves
        before = found
        for value in (2, 1, 0):  # no lower one as long as a higher is left
            of_value = set(np.flatnonzero(values == value).tolist())
            assert of_value <= found or all(values[i] >= value for i in found)
    alike = highest(np.zeros(2000, np.float32), 1000, seed=4)
    assert abs((alike < 1000).sum() - 500) < 4 * math.sqrt(1000 / 4)
    assert not np.array_equal(alike, highest(np.zeros(2000, np.float32), 1000, seed=5))


def test_weighted_order_is_the_order_of_gumbel_keys():
    weight = np.exp(np.random.default_rng(5).uniform(-1, 1, 1000)).astype(np.float32)
    times = np.random.default_rng(6).standard_exponential(1000)
    gumbel = [math.log(float(w)) - math.log(t) for w, t in zip(weight, times, strict=True)]
    found = weighted_order(weight, np.random.default_rng(6))
    assert found.dtype == np.int32
    assert found.tolist() == sorted(range(1000), key=lambda i: -gumbel[i])


def test_weighted_order_of_more_samples_than_a_part():
    n = balance_aware._PART + 1000
    weight = np.random.default_rng(7).random(n, dtype=np.float32) + np.float32(0.01)
    times = np.random.default_rng(8).standard_exponential(n) / weight
    expected = sorted(range(n), key=lambda i: (np.float32(times[i]), i))
    assert weighted_order(weight, np.random.default_rng(8)).tolist() == expected


def test_weighted_order_draws_in_proportion_to_the_weights():
    """Frequencies of whole orders against the chance of each, that of drawing one after the other."""
    weight = np.array([0.4, 0.1, 0.3, 0.9])
    chance = {}
    for order in itertools.permutations(range(4)):
        chance[order] = math.prod(weight[i] / weight[list(order[k:])].sum() for k, i in enumerate(order))
    rng, draws = np.random.default_rng(9), 20_000
    counts = dict.fromkeys(chance, 0)
    for _ in range(draws):
        counts[tuple(weighted_order(weight, rng).tolist())] += 1
    assert abs(chi_square(list(counts.values()), [draws * p for p in chance.values()])) < 3
    first = [sum(count for order, count in counts.items() if order[0] == i) for i in range(4)]
    assert abs(chi_square(first, draws * weight / weight.sum())) < 3
    assert chi_square(first, [draws / 4] * 4) > 100  # which plain shuffling would not pass
