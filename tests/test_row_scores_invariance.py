"""Case 22: a row's result is the same bits alone, in any batch, in any place, with any number of threads."""

import pytest
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

# 127 and 50257 are odd: bfloat16 rows then start at every 2-byte offset
SIZES = {torch.float32: [2, 10, 100, 127, 1000, 4097], torch.bfloat16: [10, 127, 1000, 4097]}
CASES = [(dtype, classes) for dtype, sizes in SIZES.items() for classes in sizes]
IDS = [f"{str(dtype).removeprefix('torch.')}-{classes}" for dtype, classes in CASES]


def batch(rows, classes, dtype, place):
    x = torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes)) * 4
    y = torch.arange(rows) * 31 % classes
    return x.to(place.device, dtype), y.to(place.device)


def bits(place, x, y, pick=slice(None)):
    found = ta.score(x, y, signals=ROW_SIGNALS, backend=place.backend).as_dict()
    return {n: v[pick].view(torch.int64 if v.dtype == torch.int64 else torch.int32).tolist() for n, v in found.items()}


@pytest.mark.parametrize(("dtype", "classes"), CASES, ids=IDS)
def test_alone_in_three_and_in_4097(dtype, classes, place):
    total = (67 if classes < 200 else 9) if place.slow else 4097
    x, y = batch(total, classes, dtype, place)
    for at in (0, total - 1) if place.slow else (0, 1, total // 2, total - 1):
        whole = bits(place, x, y, slice(at, at + 1))
        assert bits(place, x[at : at + 1], y[at : at + 1]) == whole
        assert bits(place, x[at : at + 1].clone(), y[at : at + 1]) == whole
        three = torch.tensor([at - 7, at, at - 3], device=x.device) % total
        assert bits(place, x[three], y[three], slice(1, 2)) == whole


@pytest.mark.parametrize(("dtype", "classes"), CASES, ids=IDS)
def test_permuted(dtype, classes, place):
    total = 9 if place.slow else 515
    x, y = batch(total, classes, dtype, place)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(1)).to(x.device)
    whole = ta.score(x, y, signals=ROW_SIGNALS, backend=place.backend)[order].as_dict()
    shuffled = ta.score(x[order], y[order], signals=ROW_SIGNALS, backend=place.backend).as_dict()
    assert all(torch.equal(whole[name], shuffled[name]) for name in whole)


# few long rows are cut among the threads, many are not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [8193, 50257, 151936])
def test_long_rows_alone_and_among_33(classes, dtype, fast_place):
    x, y = batch(33, classes, dtype, fast_place)
    for at in (0, 16, 32):
        whole = bits(fast_place, x, y, slice(at, at + 1))
        assert bits(fast_place, x[at : at + 1], y[at : at + 1]) == whole
        assert bits(fast_place, x[at : at + 1].clone(), y[at : at + 1]) == whole


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"]
)
@pytest.mark.parametrize(("rows", "classes"), [(1, 151936), (2, 50257), (3, 20000), (700, 127), (5000, 10)])
def test_any_number_of_threads(rows, classes, dtype, double_place, threads):
    x, y = batch(rows, classes, dtype, double_place)
    results = []
    for count in (1, 2, 4, 3):
        threads(count)
        found = ta.score(x, y, signals=ROW_SIGNALS, backend=double_place.backend)
        results.append(torch.stack([getattr(found, name).double() for name in ROW_SIGNALS]))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("classes", [10, 127, 1000])
def test_gradients_alone_and_in_a_batch(classes, place):
    total = 20 if place.slow else 300
    x, y = batch(total, classes, torch.float32, place)

    def gradient(x, y):
        x = x.clone().requires_grad_()
        logp, entropy = ta.log_prob_entropy(x, y, backend=place.backend)
        (logp + 0.5 * entropy).sum().backward()
        return x.grad

    whole = gradient(x, y)
    for at in (0, total // 2, total - 1):
        assert torch.equal(gradient(x[at : at + 1], y[at : at + 1])[0], whole[at])


def test_from_run_to_run(place):
    x, y = batch(20, 1000, torch.float32, place)
    first = bits(place, x, y)
    assert all(bits(place, x, y) == first for _ in range(3))
