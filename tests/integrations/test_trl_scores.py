"""TRL's helpers and its head from hidden states, beside torchassay's in their place."""

import re

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("trl")
import transformers
from torchassay.backends import BackendFallback
from torchassay.integrations import trl as ours
from trl.trainer import utils as theirs

pytestmark = pytest.mark.filterwarnings("default")  # others' warnings are not ours to mend
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LABELS = [((7,), None), ((2, 5), None), ((2, 5), 1), ((2, 5), 3), ((6,), 4), ((2, 2, 3), 2)]  # rows, classes a row


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def logits_of(rows, dtype=torch.float32, classes=301, scale=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*rows, classes, generator=generator)).to(dtype)


def classes_of(rows, several, classes=301):
    shape = rows if several is None else (*rows, several)
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


def truth_of(logits, index, temperature=1.0):
    log_probs = F.log_softmax(logits.double() / temperature, -1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    if index.dim() == logits.dim():
        return log_probs.gather(-1, index), entropy
    return log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1), entropy


def no_worse(found, others, exact):
    """At least as near the truth as the others, or as near as its dtype goes."""
    error, their_error = ((values.double() - exact).abs().max() for values in (found, others))
    assert error <= max(their_error, exact.abs().max() * max(torch.finfo(found.dtype).eps, 1e-14))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "several"), LABELS, ids=str)
def test_selective_log_softmax(rows, several, dtype):
    index = classes_of(rows, several)
    leaves = [logits_of(rows, dtype).requires_grad_() for _ in range(3)]
    found, others = ours.selective_log_softmax(leaves[0], index), theirs.selective_log_softmax(leaves[1], index)
    assert found.shape == others.shape == index.shape and found.dtype == others.dtype == dtype
    exact, _ = truth_of(leaves[2], index)
    no_worse(found, others, exact)
    up = torch.randn(index.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    found.backward(up)
    others.backward(up)
    (expected,) = torch.autograd.grad(exact, leaves[2], up.double())
    no_worse(leaves[0].grad, leaves[1].grad, expected.double())


@pytest.mark.parametrize("chunk_size", [1, 4, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_from_logits(dtype, chunk_size):
    for rows in ((1,), (10,), (2, 5), (2, 1, 3)):
        leaves = [logits_of(rows, dtype).requires_grad_() for _ in range(3)]
        found = ours.entropy_from_logits(leaves[0], chunk_size)
        others = theirs.entropy_from_logits(leaves[1], chunk_size=chunk_size)
        assert found.shape == others.shape == rows and found.dtype == others.dtype == dtype
        _, exact = truth_of(leaves[2], torch.zeros(rows, dtype=torch.int64))
        no_worse(found, others, exact)
        for values in (found, others):
            values.sum().backward()
        (expected,) = torch.autograd.grad(exact.sum(), leaves[2])
        no_worse(leaves[0].grad, leaves[1].grad, expected.double())


def test_confident_rows_keep_their_digits():
    """Where TRL's log-probabilities of float32 logits are 0 and its entropies lose their digits."""
    logits = torch.zeros(6, 50)
    logits[:, 7] = torch.tensor([15.0, 20, 25, 30, 40, 60])
    index = torch.full((6,), 7)
    exact = -torch.log1p(49 * torch.exp(-logits[:, 7].double()))
    torch.testing.assert_close(ours.selective_log_softmax(logits, index).double(), exact, rtol=1e-6, atol=0)
    assert (theirs.selective_log_softmax(logits, index)[3:] == 0).all()
    r = 49 * torch.exp(-logits[:, 7].double())
    entropy = torch.log1p(r) + r * logits[:, 7] / (1 + r)
    torch.testing.assert_close(ours.entropy_from_logits(logits).double(), entropy, rtol=1e-6, atol=0)


def test_strides_and_no_rows():
    wide = logits_of((2, 5), classes=602)
    index = classes_of((5, 2), 3)
    for logits in (wide[..., ::2].transpose(0, 1), wide.permute(2, 1, 0)[:301].movedim(0, -1)):
        assert not logits.is_contiguous()
        found = ours.selective_log_softmax(logits, index)
        torch.testing.assert_close(found, theirs.selective_log_softmax(logits, index))
        torch.testing.assert_close(ours.entropy_from_logits(logits), theirs.entropy_from_logits(logits))
        assert torch.equal(found, ours.selective_log_softmax(logits.contiguous(), index))
    none = torch.zeros(0, 9, requires_grad=True)
    assert ours.entropy_from_logits(none).shape == theirs.entropy_from_logits(none).shape == (0,)
    found = ours.selective_log_softmax(none, torch.zeros(0, 2, dtype=torch.int64))
    assert found.shape == (0, 2)
    found.sum().backward()
    assert none.grad.shape == (0, 9)


@pytest.mark.parametrize("several", [None, 3])
def test_temperature_and_row_mask(several):
    logits, index = logits_of((4, 5)).requires_grad_(), classes_of((4, 5), several)
    mask = torch.rand(index.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    index[~mask] = 0 if several is None else -7  # whatever stands there
    found = ours.selective_log_softmax(logits, index, 0.7, mask)
    (grad,) = torch.autograd.grad(found.sum(), logits)
    expected = theirs.selective_log_softmax(logits, index.clamp(min=0), temperature=0.7, row_mask=mask.long())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0])
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_both_from_one_read(dtype):
    logits, index = logits_of((3, 4), dtype).requires_grad_(), classes_of((3, 4), None)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    for graph in (True, False):
        how = {"entropy_requires_grad": graph, "temperature": 1.5, "row_mask": mask}
        found = ours.selective_log_softmax_and_entropy(logits, index, **how)
        others = theirs.selective_log_softmax_and_entropy(logits, index, **how)
        for values, other, exact in zip(found, others, truth_of(logits, index, 1.5), strict=True):
            assert values.dtype == other.dtype and values.requires_grad == other.requires_grad
            no_worse(values, other, exact.detach() * mask)
        total = sum(values.sum() for values in found if values.requires_grad)
        wanted = sum(values.sum() for values in others if values.requires_grad)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for ours_, theirs_ in zip(*(torch.autograd.grad(t, logits) for t in (total, wanted)), strict=True):
            torch.testing.assert_close(ours_, theirs_, rtol=tolerance, atol=tolerance)


def test_messages_of_the_functions():
    logits, index = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    for function in (ours.selective_log_softmax, ours.selective_log_softmax_and_entropy):
        name = function.__name__
        message = re.escape(f"{name}: row_mask must have index's shape, (2,), got (3,)")
        with pytest.raises(ValueError, match=message):
            function(logits, index, row_mask=torch.ones(3))
        with pytest.raises(TypeError, match=f"{name}: index must be a Tensor, got list"):
            function(logits, [0, 1])
        with pytest.raises(TypeError, match=f"{name}: row_mask must be a Tensor, got list"):
            function(logits, index, row_mask=[1, 1])
        with pytest.raises(ValueError, match="temperature must be finite and > 0, got 0"):
            function(logits, index, temperature=0.0)
        with pytest.raises(ValueError, match="got class 5 at row 1"):
            function(logits, torch.tensor([0, 5]))


# ---- the head


def causal_lm(kind, **more):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=97, num_key_value_heads=1, **sizes, **more)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def fused(model, labels, autocast=False, **more):
    ids = torch.randint(97, (3, 8), generator=torch.Generator().manual_seed(4))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(input_ids=ids, labels=labels, fused_lm_head=True, **more)
    (out.log_probs.sum() + 0.3 * out.entropy.square().sum()).backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "more"), [("Qwen2", {}), ("Gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8}), ("Phi", {})]
)
@pytest.mark.parametrize("wide", [None, False, True])
def test_head_in_the_place_of_trls(kind, more, wide):
    """Values and all gradients as TRL's head has them; float32, and bf16 autocast with a head in bf16 or float32."""
    if kind == "Gemma2":
        more = more | {"query_pre_attn_scalar": 8, "sliding_window": 16}
    labels = torch.randint(97, (3, 8), generator=torch.Generator().manual_seed(5))
    labels[0, :4], labels[1] = -100, -100
    results = []
    for replace in (False, True):
        model = causal_lm(kind, **more)
        for parameter in model.parameters():  # so that logits are not all equal
            parameter.data.mul_(3)
        theirs.add_fused_lm_head(model, 0.8, cast_lm_head_to_fp32=bool(wide), outputs=("log_probs", "entropy"))
        if replace:
            ours._replace_head(model, 0.8, bool(wide))
        results.append(fused(model, labels, autocast=wide is not None))
    (expected, grads), (found, our_grads) = results
    tolerance = 1e-5 if wide is None else 3e-2
    assert torch.equal(found.label_mask, labels[:, 1:] != -100)
    for values, other in ((found.log_probs, expected.log_probs), (found.entropy, expected.entropy)):
        assert values.dtype == torch.float32 and (values[1] == 0).all() and (values[2] != 0).all()
        torch.testing.assert_close(values, other, rtol=tolerance, atol=tolerance)
    assert our_grads.keys() == grads.keys() and len(grads) > 5
    for name, grad in our_grads.items():
        assert (grad - grads[name]).norm() <= 10 * tolerance * grads[name].norm(), name


def test_head_answers_nothing_else():
    """Generation and plain calls are the model's own; so is a batch that counts no token."""
    model, plain = causal_lm("Qwen2"), causal_lm("Qwen2")
    theirs.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ours._replace_head(model, 1.0, False)
    ids = torch.randint(97, (2, 4), generator=torch.Generator().manual_seed(6))
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert torch.equal(model(ids, labels=ids).loss, plain(ids, labels=ids).loss)
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **how), plain.generate(ids, **how))
    out, grads = fused(model, torch.full((3, 8), -100))
    assert not out.log_probs.any() and len(grads) > 5 and all((grad == 0).all() for grad in grads.values())
    shifted, _ = fused(model, None, shift_labels=torch.ones(3, 8, dtype=torch.int64))
    assert shifted.log_probs.shape == (3, 8)  # TRL's own


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("Granite", {"logits_scaling": 2.0}, r"multiplies its logits \(logits_scaling=2.0\)"),
        ("Mixtral", {"output_router_logits": True}, r"asks for its balancing loss \(output_router_logits=True\)"),
    ],
)
def test_heads_that_stay_trls(kind, more, reason):
    model = causal_lm(kind, **more)
    theirs.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    before = model.forward
    with pytest.warns(BackendFallback, match=f"OneReadMixin: {kind}ForCausalLM {reason}; TRL's own head goes on"):
        ours._replace_head(model, 1.0, False)
    assert model.forward == before


def test_mixture_of_experts_without_its_loss():
    model = causal_lm("Mixtral")
    theirs.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ours._replace_head(model, 1.0, False)
    labels = torch.zeros(3, 8, dtype=torch.int64)
    assert fused(model, labels)[0].aux_loss is None
    assert fused(model, labels, output_router_logits=True)[0].aux_loss > 0  # asked for: TRL's own
