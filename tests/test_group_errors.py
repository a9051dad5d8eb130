"""What is wrong on one rank of a group is an error on every rank, and none waits for another."""

import functools

import pytest
import torch
import torch.distributed as dist
import torchassay as ta
from ranks import on_ranks
from torchassay.backends import why_not
from torchassay.scores import ROW_SIGNALS

ROWS, CUT, FEATURES = 4, (6, 3), 5
Y = torch.tensor([0, 8, -100, 6])


def calls(rank: int) -> dict[str, tuple]:
    """By name a function and what it is given: rank 1 is given something wrong, or something else than rank 0."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(ROWS, CUT[rank], generator=generator)
    h, w = torch.ones(ROWS, FEATURES), torch.randn(CUT[rank], FEATURES, generator=generator)
    of_classes = torch.ones(CUT[rank])
    score, loss = functools.partial(ta.score, x), functools.partial(ta.cross_entropy, x)
    linear, linear_loss = functools.partial(ta.linear_score, h, w), functools.partial(ta.linear_cross_entropy, h, w)

    def other(first, second):
        return (first, second)[rank]

    by_row = torch.tensor([0.5, 1.0, 1.5, 2.0])
    return {
        # what ranks must be given alike
        "rows": (ta.score, x[: other(4, 3)], Y[: other(4, 3)]),
        "shape": (ta.score, x.view(other((4, 1, -1), (2, 2, -1))), Y.view(other((4, 1), (2, 2)))),
        "dtype": (ta.score, x.to(other(torch.float32, torch.float64)), Y),
        "target": (score, other(Y, Y.flip(0))),
        "no target": (score, other(Y, None), {"signals": "entropy"}),
        "dtype of target": (score, other(Y, Y.int())),
        "weight": (score, Y, {"weight": other(None, of_classes)}),
        "signals": (score, Y, {"signals": other(("loss", "lse"), ("lse", "entropy"))}),
        "history": (score, Y, {"signals": "loss", "history": other(None, ta.History(signal="margin"))}),
        "ignore_index": (score, Y, {"ignore_index": other(-100, 7)}),
        "label_smoothing": (score, Y, {"label_smoothing": other(0.0, 0.1)}),
        "temperature": (score, Y, {"temperature": other(1.0, 0.5)}),
        "temperature of rows": (score, Y, {"temperature": other(by_row, 0.5)}),
        "temperatures of rows": (score, Y, {"temperature": other(by_row, by_row * 2)}),
        "softcap": (score, Y, {"softcap": other(30.0, None)}),
        "z_loss": (loss, Y, {"z_loss": other(1e-4, 0.0)}),
        "reduction": (loss, Y, {"reduction": other("mean", "sum")}),
        "backend": (
            score,
            Y,
            {"backend": other("reference", "native" if not why_not("native", "cpu", x.dtype) else None)},
        ),
        "function": (other(score, linear), Y),
        "features": (ta.linear_score, h[:, : other(5, 4)], w[:, : other(5, 4)], Y),
        "linear_bias": (linear, Y, {"linear_bias": other(None, of_classes)}),
        "input with and without gradient": (ta.linear_cross_entropy, h.clone().requires_grad_(rank == 1), w, Y),
        "draws": (linear, {"feature_noise_std": 0.1, "feature_noise_draws": other(2, 3)}),
        "seed": (linear, {"feature_noise_std": 0.1, "seed": other(7, 8)}),
        "noise": (linear, {"feature_noise_std": other(by_row, 0.1)}),
        # what is refused on one of them
        "list": (ta.score, other(x, [[1.0]]), Y),
        "integer logits": (ta.score, other(x, x.long()), Y),
        "no class": (ta.score, x[:, : other(6, 0)], Y),
        "shape of target": (score, Y[: other(4, 3)]),
        "dim": (score, Y, {"dim": other(-1, 5)}),
        "integer weight": (score, Y, {"weight": other(of_classes, of_classes.long())}),
        "length of weight": (score, Y, {"weight": other(of_classes, torch.ones(9))}),
        "unknown signal": (score, Y, {"signals": other("loss", "gain")}),
        "probabilities": (score, other(Y, x.softmax(1))),
        "noise of logits": (score, {"noise_std": other(0.0, 0.5), "signals": "entropy"}),
        "no history": (score, Y, {"history": other(None, "latest")}),
        "unknown reduction": (loss, Y, {"reduction": other("mean", "median")}),
        "unknown backend": (score, Y, {"backend": other("reference", "fast")}),
        "backend that is not there": (ta.score, x.double(), Y, {"backend": other("reference", "triton")}),
        "negative temperature": (score, Y, {"temperature": other(by_row, -by_row)}),
        "integer linear_weight": (ta.linear_score, h, other(w, w.long()), Y),
        "dtype of linear_weight": (ta.linear_score, h, other(w, w.double()), Y),
        "features of linear_weight": (ta.linear_score, h, w[:, : other(5, 4)], Y),
        "length of linear_bias": (linear, Y, {"linear_bias": other(of_classes, torch.ones(9))}),
        "workspace": (linear_loss, Y, {"max_workspace_bytes": other(1 << 20, 95)}),
        "no target of a loss": (linear_loss, other(Y, None)),
        "noise of rows": (linear, {"feature_noise_std": other(0.1, -0.1)}),
        # what is wrong on all of them
        "class of nobody": (score, Y + 1),
        "class of nobody, hidden states": (linear_loss, Y - 1),
    }


LABELS, NUMBERS = "int64 (4,) with checksum 8a8fd4db", "float32 (4,) with checksum 9f7a053e"
ALIKE = {
    "rows": ("score", "shape of the rows", "(4,)", "(3,)"),
    "shape": ("score", "shape of the rows", "(4, 1)", "(2, 2)"),
    "dtype": ("score", "dtype", "float32", "float64"),
    "target": ("score", "target", LABELS, "int64 (4,) with checksum 0f562197"),
    "no target": ("score", "target", LABELS, "none"),
    "dtype of target": ("score", "target", LABELS, "int32 (4,) with checksum 0b65e5b9"),
    "weight": ("score", "weight", "none", "one"),
    "signals": ("score", "signals", "loss, lse", "entropy, lse"),
    "history": ("score", "signals", "loss", "loss, margin"),
    "ignore_index": ("score", "ignore_index", "-100", "7"),
    "label_smoothing": ("score", "label_smoothing", "0.0", "0.1"),
    "temperature": ("score", "temperature", "1.0", "0.5"),
    "temperature of rows": ("score", "temperature", NUMBERS, "0.5"),
    "temperatures of rows": ("score", "temperature", NUMBERS, "float32 (4,) with checksum 8ba71454"),
    "softcap": ("score", "softcap", "30.0", "None"),
    "z_loss": ("cross_entropy", "z_loss", "0.0001", "0.0"),
    "reduction": ("cross_entropy", "reduction", "mean", "sum"),
    "backend": ("score", "backend", "reference", "native"),
    "features": ("linear_score", "hidden features", "5", "4"),
    "linear_bias": ("linear_score", "linear_bias", "none", "one"),
    "input with and without gradient": ("linear_cross_entropy", "requires_grad of input", "False", "True"),
    "draws": ("linear_score", "feature noise's draws", "2", "3"),
    "seed": ("linear_score", "feature noise's seed", "7", "8"),
    "noise": ("linear_score", "feature noise's std", NUMBERS, "0.1"),
}
FLOATS = "float16, bfloat16, float32 or float64"
REFUSED = {
    "list": "score: input must be a Tensor, got list",
    "integer logits": f"score: input must be {FLOATS}, got int64",
    "no class": "score: input must have at least one class, got shape (4, 0)",
    "shape of target": "score: target has shape (3,) but input (4, 3) without dim -1 is (4,); did you mean dim=0?",
    "dim": "score: dim must be in [-2, 1] for an input of shape (4, 3), got 5",
    "integer weight": "score: weight must have a float dtype, got int64",
    "length of weight": "score: weight must have shape (3,), one number a class, got (9,)",
    "unknown signal": f"score: signals must be among {', '.join(ROW_SIGNALS)}; got 'gain'",
    "probabilities": "score: target must have an integer dtype (class indices) where the classes are in slices, "
    "got float32",
    "noise of logits": "score: noise_std must be 0 where the classes are in slices",
    "no history": "score: history must be a History, got str",
    "unknown reduction": "cross_entropy: reduction must be 'none', 'mean' or 'sum', got 'median'",
    "unknown backend": "score: backend must be one of native, triton, reference, got 'fast'",
    "backend that is not there": "score: backend 'triton' is not available for this call: the GPU kernels have no "
    "float64",
    "negative temperature": "score: temperature must be finite and > 0 in every row",
    "integer linear_weight": f"linear_score: linear_weight must be {FLOATS}, got int64",
    "dtype of linear_weight": "linear_score: linear_weight must have input's dtype, float32, got float64",
    "features of linear_weight": "linear_score: linear_weight must have shape (V, 5), of input's last dimension, "
    "got (3, 4)",
    "length of linear_bias": "linear_score: linear_bias must have shape (3,), one number a class, got (9,)",
    "workspace": "linear_cross_entropy: max_workspace_bytes must be at least 96, for 3 classes of 4 rows, got 95",
    "no target of a loss": "linear_cross_entropy: target must be a Tensor, got NoneType",
    "noise of rows": "linear_score: feature_noise_std must be finite and >= 0, got -0.1",
}
TYPES = ("list", "integer logits", "integer weight", "probabilities", "no history", "integer linear_weight")
TYPES += ("dtype of linear_weight", "no target of a loss")
EVERYWHERE = {
    "class of nobody": "score: target must hold 0 <= class < 9 or ignore_index=-100, got class 9 at row 1",
    "class of nobody, hidden states": "linear_cross_entropy: target must hold 0 <= class < 9 or ignore_index=-100, "
    "got class -1 at row 0",
}


def heard(function, *given) -> str:
    arguments, keywords = (given[:-1], given[-1]) if isinstance(given[-1], dict) else (given, {})
    try:
        found = function(*arguments, group=dist.group.WORLD, **keywords)
        return f"no error: {found}"
    except (ValueError, TypeError, RuntimeError) as error:  # kept, it would keep the group alive
        return f"{type(error).__name__}: {error}"


def everything(rank: int) -> dict[str, str]:
    """What each rank hears; a last call without an error shows that all are still in step."""
    found = {name: heard(*call) for name, call in calls(rank).items()}
    x = torch.arange(9.0).expand(4, 9)[:, slice(0, 6) if rank == 0 else slice(6, 9)].contiguous()
    leaf = x.clone().requires_grad_()
    loss = ta.cross_entropy(leaf, Y, group=dist.group.WORLD)
    try:
        torch.autograd.grad(loss, leaf, create_graph=True)
    except RuntimeError as error:
        found["create_graph"] = str(error)
    hidden = torch.ones(4, 5, requires_grad=True)
    loss = ta.linear_cross_entropy(hidden, torch.ones(CUT[rank], 5), Y, group=dist.group.WORLD)
    try:
        torch.autograd.grad(loss, hidden, create_graph=True)
    except RuntimeError as error:
        found["create_graph of hidden states"] = str(error)
    found["at last"] = ta.score(x, Y, group=dist.group.WORLD).loss.tolist()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, str]]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), everything)


@pytest.mark.parametrize("name", ALIKE)
def test_ranks_that_are_given_different_things(name, found):
    if name == "backend" and why_not("native", "cpu", torch.float32):
        pytest.skip("only one backend here")
    function, what, first, second = ALIKE[name]
    alike = f"every rank of the group must be given the same {what}"
    expected = f"{function}: {alike}, got {first} on rank 0 and {second} on rank 1"
    assert [of_rank[name] for of_rank in found] == [f"InputValueError: {expected}"] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_rank_refuses(name, found):
    """That rank hears why in its own type; the other hears which rank it was, and why."""
    if name == "backend that is not there" and why_not("triton", "cpu", torch.float64).endswith("installed"):
        pytest.skip("no triton")
    refused = REFUSED[name]
    kind = (
        "RuntimeError"
        if name == "backend that is not there"
        else "InputTypeError"
        if name in TYPES
        else "InputValueError"
    )
    function, _, reason = refused.partition(": ")
    heard = f"InputValueError: {function}: rank 1 of the group refused its arguments: {reason}"
    assert [of_rank[name] for of_rank in found] == [heard, f"{kind}: {refused}"]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_target_out_of_range_of_all_ranks(name, found):
    assert [of_rank[name] for of_rank in found] == [f"InputValueError: {EVERYWHERE[name]}"] * 2


def test_two_functions(found):
    expected = "every rank of the group must be given the same function, got score on rank 0 and linear_score on rank 1"
    assert [of_rank["function"] for of_rank in found] == [
        f"InputValueError: score: {expected}",
        f"InputValueError: linear_score: {expected}",
    ]


def test_there_is_no_second_derivative(found):
    for of_rank in found:
        expected = "cross_entropy: there is no second derivative (create_graph=True) with a group"
        assert of_rank["create_graph"] == expected
        assert of_rank["create_graph of hidden states"] == f"linear_{expected}"


def test_all_are_in_step_afterwards(found):
    for of_rank in found:
        lse = torch.arange(9.0).logsumexp(0)
        torch.testing.assert_close(torch.tensor(of_rank["at last"]), (lse - Y).masked_fill(Y == -100, 0))


@pytest.mark.parametrize("function", [ta.score, ta.cross_entropy])
def test_a_group_that_is_none(function):
    expected = f"{function.__name__}: group must be a torch.distributed.ProcessGroup, got str"
    with pytest.raises(TypeError, match=f"^{expected}$"):
        function(torch.ones(2, 3), torch.tensor([0, 1]), group="world")


@pytest.mark.parametrize("function", [ta.linear_score, ta.linear_cross_entropy, ta.linear_log_prob_entropy])
def test_a_group_that_is_none_of_a_linear_head(function):
    expected = f"{function.__name__}: group must be a torch.distributed.ProcessGroup, got int"
    with pytest.raises(TypeError, match=f"^{expected}$"):
        function(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1]), group=1)
