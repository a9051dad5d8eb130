"""Case 10: any strides, dimensions and alignment give what the same values in a plain layout give."""

import pytest
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

CUBE = torch.randn(3, 4, 6, 40, generator=torch.Generator().manual_seed(30))  # base of the views below


def view_cases():
    x = CUBE
    return {
        "contiguous": (x[0], -1),
        "transposed rows": (x[0].transpose(0, 1), -1),
        "transposed rows, odd row stride": (x[..., :39].transpose(1, 2), -1),
        "sliced tokens": (x[:, :, 1:-1], -1),
        "shifted tokens": (x[0, :, :-1, :], -1),
        "every second row": (x[0, 0, ::2], -1),
        "every second class": (x[0, 0, :, ::2], -1),
        "misaligned by one": (x[0, 0, :, 1:], -1),
        "class dimension first": (x[0, 0], 0),
        "class dimension in the middle": (x[0], 1),
        "class dimension in the middle of four": (x, 1),
        "class dimension in the middle, permuted": (x.permute(0, 3, 1, 2), 1),
        "class dimension negative": (x, -2),
        "expanded rows": (x[0, 0, 0].expand(5, 40), -1),
        "expanded classes": (x[0, 0, :, :1].expand(-1, 7), -1),
        "expanded between rows": (x[0, :, None, 0].expand(-1, 3, 40), -1),
        "three row strides": (x[:, ::2, ::3], -1),
        "channels last": (x.contiguous(memory_format=torch.channels_last), 1),
        "overlapping windows": (x.reshape(-1).unfold(0, 40, 7)[:20], -1),
        "one dimension": (x[0, 0, 0], 0),
        "one dimension, strided": (x[:, 0, 0, 0], -1),
        "column of ones": (x[0, 0, :, :1], -1),
        "row of size one between": (x[:2, :1, :, :], -1),
    }


VIEWS = view_cases()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", VIEWS)
def test_case_10_any_strides(case, dtype, place):
    base = CUBE.to(place.device, dtype)
    shape, dim = VIEWS[case]
    x = _same_view(base, shape)
    plain = x.movedim(dim, -1).contiguous().view(-1, x.shape[dim])
    y = torch.arange(len(plain), device=x.device) * 13 % x.shape[dim]
    rows = x.movedim(dim, -1).shape[:-1]
    found = ta.score(x, y.view(rows), signals=ROW_SIGNALS, dim=dim, backend=place.backend)
    expected = ta.score(plain, y, signals=ROW_SIGNALS, backend=place.backend)
    for name in ROW_SIGNALS:
        value = getattr(found, name)
        assert value.shape == rows and value.is_contiguous()
        # the reference may add a row up in another order in another layout: its last bits are not the point here
        torch.testing.assert_close(value.reshape(-1), getattr(expected, name), rtol=1e-6, atol=0, msg=name)
        if place.backend != "reference":
            assert torch.equal(value.reshape(-1), getattr(expected, name)), name


@pytest.mark.parametrize("case", VIEWS)
def test_gradients_come_back_through_any_strides(case, place):
    base = CUBE.to(place.device).clone().requires_grad_()
    shape, dim = VIEWS[case]
    x = _same_view(base, shape)
    y = (torch.arange(x.numel() // x.shape[dim], device=x.device) * 13 % x.shape[dim]).view(
        x.movedim(dim, -1).shape[:-1]
    )
    logp, entropy = ta.log_prob_entropy(x, y, dim=dim, backend=place.backend)
    (2 * logp.sum() + entropy.square().sum()).backward()
    found, base.grad = base.grad, None
    logits = _same_view(base, shape).double().log_softmax(dim)
    plain = logits.movedim(dim, -1)
    picked = plain.gather(-1, y.unsqueeze(-1)).sum()
    (2 * picked + (-(plain.exp() * plain).sum(-1)).square().sum()).backward()
    torch.testing.assert_close(found, base.grad, rtol=1e-5, atol=1e-6)


def _same_view(base, view):
    """``view`` of CUBE, taken of ``base``: on another device, in another dtype, in another graph."""
    if view.untyped_storage().data_ptr() != CUBE.untyped_storage().data_ptr():
        return base.contiguous(memory_format=torch.channels_last)
    return base.as_strided(view.shape, view.stride(), view.storage_offset())


def test_targets_of_any_strides(place):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(31)).to(place.device)
    y = torch.tensor([3, 39, 0, 7, 20, 20], device=place.device)
    expected = ta.score(x, y, backend=place.backend).loss
    spread = torch.stack([y, y + 1], 1)[:, 0]
    offset = torch.cat([y[:1], y])[1:]
    narrow = torch.cat([y[:1], y]).int()[1:]  # int32, 4 bytes past an 8-byte boundary
    flipped = y.view(2, 3).t().contiguous().t().reshape(2, 3)
    for target in (spread, offset, narrow):
        assert torch.equal(ta.score(x, target, backend=place.backend).loss, expected)
    found = ta.score(x.view(2, 3, 40), flipped, backend=place.backend).loss
    assert torch.equal(found.reshape(-1), expected)
    one = torch.tensor([3], device=place.device).expand(6)
    assert torch.equal(
        ta.score(x, one, backend=place.backend).loss, ta.score(x, one.contiguous(), backend=place.backend).loss
    )


@pytest.mark.parametrize("classes", [7, 127, 1001])
def test_every_alignment_of_a_row_gives_the_same_bits(classes, place):
    """Offsets of 0 to 8 elements into the storage: what a sliced vocabulary or a packed batch has."""
    row = torch.randn(classes, generator=torch.Generator().manual_seed(32)).to(place.device, torch.bfloat16)
    results = []
    for offset in range(0, 9, 4 if place.slow else 1):
        store = torch.zeros(offset + 2 * classes, dtype=row.dtype, device=place.device)
        store[offset : offset + classes] = store[offset + classes :] = row
        found = ta.score(store[offset:].view(2, classes), signals=("entropy", "margin", "lse"), backend=place.backend)
        results += [found[0].as_dict(), found[1].as_dict()]
    for name in ("entropy", "margin", "lse"):
        assert len({result[name].item() for result in results}) == 1, name
