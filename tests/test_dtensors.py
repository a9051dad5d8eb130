"""DTensors sharded on the class dimension: what one process finds, gradients where their tensors lie, errors."""

import subprocess
import sys

import pytest
import torch
import torchassay as ta
from ranks import on_ranks
from torchassay.scores import ROW_SIGNALS

ROWS, CLASSES, FEATURES = 5, 14, 6  # which no mesh cuts into equal parts: 3 and 2; 4, 4, 4 and 2


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


X, IMAGES = normal(1, ROWS, CLASSES), normal(2, ROWS, CLASSES, 3)
H, HEAD, BIAS = normal(3, ROWS, FEATURES), normal(4, CLASSES, FEATURES), normal(5, CLASSES)
Y = torch.tensor([13, 0, -100, 4, 9])
LABELS = torch.tensor([[13, 0, -100], [4, 9, 1], [2, 2, 2], [12, 11, 7], [5, 6, 8]])
WEIGHT, BY_ROW = torch.linspace(0.5, 2.0, CLASSES), torch.linspace(0.5, 1.5, ROWS)
OPTIONS = {"label_smoothing": 0.1, "softcap": 15.0}


def logits_calls(x, images, target, labels, weight, by_row) -> dict[str, tuple]:
    """By name a call's loss, and its signals if it has any; the logits are leaves."""
    return {
        "mean": (ta.cross_entropy(x, target), None),
        "sum": (ta.cross_entropy(x, target, reduction="sum", z_loss=1e-3), None),
        "weight": (ta.cross_entropy(x, target, weight), None),
        "signals": ta.cross_entropy(x, target, weight, temperature=by_row, signals=ROW_SIGNALS, **OPTIONS),
        "images": ta.cross_entropy(images, labels, weight, signals="lse"),
    }


def linear_calls(h, head, bias, target, weight, by_row) -> dict[str, tuple]:
    log_prob, entropy = ta.linear_log_prob_entropy(h, head, target, linear_bias=bias, temperature=by_row)
    signals = (*ROW_SIGNALS, "weight_grad_norm")
    options = {"linear_bias": bias, "weight": weight, "temperature": by_row, **OPTIONS}
    return {
        "linear mean": (ta.linear_cross_entropy(h, head, target, linear_bias=bias), None),
        "linear weight": (ta.linear_cross_entropy(h, head, target, weight=weight, linear_bias=bias), None),
        "linear sum": ta.linear_cross_entropy(h, head, target, reduction="sum", signals=signals, **options),
        "log_prob": (log_prob.sum() + entropy.sum(), None),
    }


def outcome(calls: dict[str, tuple], leaves: list) -> dict[str, dict]:
    """The loss, the signals and the gradients of each call, and where these lie."""
    found = {}
    for name, (loss, s) in calls.items():
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found[name] = {
            "loss": loss.detach(),
            "signals": {} if s is None else s.as_dict(),
            "gradients": [],
            "places": [],
        }
        for grad in grads:
            if hasattr(grad, "placements"):
                found[name]["places"].append(str(grad.placements))
                grad = grad.full_tensor()
            found[name]["gradients"].append(grad)
    return found


def one_process() -> dict[str, dict]:
    x, images, h, head, bias = (t.clone().requires_grad_() for t in (X, IMAGES, H, HEAD, BIAS))
    found = outcome(logits_calls(x, images, Y, LABELS, WEIGHT, BY_ROW), [x, images])
    return found | outcome(linear_calls(h, head, bias, Y, WEIGHT, BY_ROW), [h, head, bias])


def everything(rank: int) -> dict[str, dict]:
    """On a line of four slices, and on a grid of two parts of the rows by two slices."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    found = {}

    def leaves(mesh, *pairs):
        return [distribute_tensor(whole, mesh, places).requires_grad_() for whole, places in pairs]

    # a line: targets are plain or replicated; class weights sharded, or this rank's slice
    x, images = leaves(line, (X, [Shard(1)]), (IMAGES, [Shard(-2)]))
    at = slice(4 * rank, min(4 * rank + 4, CLASSES))
    found["plain targets"] = outcome(logits_calls(x, images, Y, LABELS, WEIGHT[at], BY_ROW), [x, images])
    target, labels, by_row, h = (distribute_tensor(t, line, [Replicate()]) for t in (Y, LABELS, BY_ROW, H))
    weight = distribute_tensor(WEIGHT, line, [Shard(0)])
    found["DTensors"] = outcome(logits_calls(x, images, target, labels, weight, by_row), [x, images])
    h, head, bias = leaves(line, (H, [Replicate()]), (HEAD, [Shard(0)]), (BIAS, [Shard(0)]))
    found["DTensors"] |= outcome(linear_calls(h, head, bias, target, weight, by_row), [h, head, bias])
    h = H.clone().requires_grad_()
    plain_bias = BIAS[at].clone().requires_grad_()
    found["plain states"] = outcome(linear_calls(h, head, plain_bias, Y, WEIGHT[at], BY_ROW), [h, head])

    # a grid: every process has some of the rows
    rows = [Shard(0), Replicate()]
    x, images = leaves(grid, (X, [Shard(0), Shard(1)]), (IMAGES, [Shard(0), Shard(1)]))
    target, labels, by_row = (distribute_tensor(t, grid, rows) for t in (Y, LABELS, BY_ROW))
    weight = distribute_tensor(WEIGHT, grid, [Replicate(), Shard(0)])
    found["grid"] = outcome(logits_calls(x, images, target, labels, weight, by_row), [x, images])
    mine = slice(0, 3) if rank < 2 else slice(3, 5)
    plain = (Y[mine], LABELS[mine], weight, BY_ROW[mine])
    found["grid, plain targets"] = outcome(logits_calls(x, images, *plain), [x, images])
    sliced = [Replicate(), Shard(0)]
    h, head, bias = leaves(grid, (H, rows), (HEAD, sliced), (BIAS, sliced))
    found["grid"] |= outcome(linear_calls(h, head, bias, target, weight, by_row), [h, head, bias])
    return found | {"errors": errors(rank, line, grid)}


def errors(rank: int, line, grid) -> dict[str, str]:
    """What this rank hears of calls that are wrong on all ranks, or on one."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    found = {}

    def heard(name, function, *given, **more):
        try:
            found[name] = f"no error: {function(*given, **more)}"
        except (ValueError, TypeError, RuntimeError) as error:  # kept, it would keep the groups alive
            found[name] = f"{type(error).__name__}: {error}"

    def put(whole, *places, mesh=None):
        return distribute_tensor(whole, mesh or (line if len(places) == 1 else grid), places)

    x, head, h = put(X, Shard(1)), put(HEAD, Shard(0)), put(H, Replicate())
    on_grid = put(X, Shard(0), Shard(1))
    heard("replicated", ta.score, put(X, Replicate()), Y)
    heard("rows", ta.cross_entropy, put(X, Shard(0)), Y)
    heard("classes twice", ta.score, put(X, Shard(1), Shard(1)), Y)
    heard("a sum", ta.score, DTensor.from_local(X[:, :4], grid, [Partial(), Shard(1)]), Y)
    heard("a group as well", ta.score, x, Y, group=line.get_group())
    heard("target", ta.score, x, put(Y, Shard(0)))
    heard("target of another mesh", ta.score, on_grid, put(Y, Replicate()))
    heard("weight", ta.cross_entropy, x, Y, put(WEIGHT, Replicate()))
    heard("temperature", ta.score, x, Y, temperature=put(BY_ROW, Shard(0)))
    heard("features sharded", ta.linear_score, H, put(HEAD, Shard(1)), Y)
    heard("plain head", ta.linear_cross_entropy, h, HEAD, Y)
    heard("sequence", ta.linear_cross_entropy, put(H, Shard(0)), head, Y)
    heard("features of states", ta.linear_score, put(H, Shard(1), Replicate()), put(HEAD, Replicate(), Shard(0)), Y)
    heard("meshes", ta.linear_score, put(H, Replicate(), Replicate()), head, Y)
    heard("bias", ta.linear_score, H, head, Y, linear_bias=put(BIAS, Replicate()))
    heard("group of a plain head", ta.linear_score, h, HEAD, Y, group=line.get_group())
    uneven = X[:, : [3, 4, 4, 3][rank]]
    heard("other cuts", ta.score, DTensor.from_local(uneven, line, [Shard(1)], shape=X.shape, stride=X.stride()), Y)
    heard("cuts that nobody knows", ta.score, DTensor.from_local(uneven, line, [Shard(1)]), Y.clamp(max=9))
    heard("one rank", ta.score, x, Y[: 5 - (rank == 2)])
    mine = Y[:3] if rank < 2 else Y[3:]
    heard("one rank of a grid", ta.score, on_grid, mine.float() if rank == 3 else mine)
    heard("out of range", ta.cross_entropy, on_grid, mine + (rank > 1) * 5)
    heard("reductions", ta.cross_entropy, on_grid, mine, reduction="mean" if rank < 2 else "sum")
    found["at last"] = f"{float(ta.cross_entropy(on_grid, mine)):.5f}"
    return found


MESH = "DeviceMesh((4,), 'cpu', stride=(1,))"
GRID = "DeviceMesh((data=2, classes=2), 'cpu', stride=(2, 1))"
CUT = "sharded on dimension {}, its classes, along one dimension of the mesh"
VALUE, TYPE = "InputValueError:", "InputTypeError:"
EVERYWHERE = {
    "replicated": f"{VALUE} score: input must be {CUT.format(1)}, got (Replicate(),)",
    "rows": f"{VALUE} cross_entropy: input must be {CUT.format(1)}, got (Shard(dim=0),)",
    "classes twice": f"{VALUE} score: input must be {CUT.format(1)}, got (Shard(dim=1), Shard(dim=1))",
    "a sum": f"{VALUE} score: input must be {CUT.format(1)}, got (Partial(sum), Shard(dim=1))",
    "a group as well": f"{TYPE} score: input must be a plain Tensor with a group, got a DTensor",
    "target": f"{VALUE} score: target must be placed (Replicate(),) on {MESH}, got (Shard(dim=0),) on {MESH}",
    "target of another mesh": f"{VALUE} score: target must be placed (Shard(dim=0), Replicate()) on {GRID}, "
    f"got (Replicate(),) on {MESH}",
    "weight": f"{VALUE} cross_entropy: weight must be placed (Shard(dim=0),) on {MESH}, got (Replicate(),) on {MESH}",
    "temperature": f"{VALUE} score: temperature must be placed (Replicate(),) on {MESH}, got (Shard(dim=0),) on {MESH}",
    "features sharded": f"{VALUE} linear_score: linear_weight must be {CUT.format(0)}, replicated along others, "
    "got (Shard(dim=1),)",
    "plain head": f"{TYPE} linear_cross_entropy: linear_weight must be a DTensor where input is one, got Tensor",
    "sequence": f"{VALUE} linear_cross_entropy: input must be replicated where linear_weight is sharded, and elsewhere "
    "replicated or sharded by rows, got (Shard(dim=0),)",
    "features of states": f"{VALUE} linear_score: input must be replicated where linear_weight is sharded, and "
    "elsewhere replicated or sharded by rows, got (Shard(dim=1), Replicate())",
    "meshes": f"{VALUE} linear_score: input and linear_weight must have one mesh, got {GRID} and {MESH}",
    "bias": f"{VALUE} linear_score: linear_bias must be placed (Shard(dim=0),) on {MESH}, got (Replicate(),) on {MESH}",
    "group of a plain head": f"{TYPE} linear_score: input must be a plain Tensor with a group, got a DTensor",
}
CUTS = "input must hold {} of the 14 classes on this rank, as DTensor cuts them, got {}"
TOTALS = "every rank of the group must be given the same number of classes, got 12 on rank 0 and 16 on rank 1"
PRE = f"{VALUE} score:"
SAID = "of the group refused its arguments:"
SHAPES = "target has shape (4,) but input (5, 4) without dim -1 is (5,); did you mean dim=0?"
FLOAT = "target must have an integer dtype (class indices) where the classes are in slices, got float32"
RANGE = "target must hold 0 <= class < 14 or ignore_index=-100, got class 14 at row 1"
REDUCED = "every rank of the group must be given the same reduction, got mean on rank 0 and sum on rank 1"
BY_RANK = {
    "one rank": [f"{PRE} rank 2 {SAID} {SHAPES}" if rank != 2 else f"{PRE} {SHAPES}" for rank in range(4)],
    "one rank of a grid": [  # first along the classes, then along the rows
        f"{PRE} rank 1 {SAID} rank 1 {SAID} {FLOAT}",
        f"{PRE} rank 1 {SAID} {FLOAT}",
        f"{PRE} rank 1 {SAID} {FLOAT}",
        f"{TYPE} score: {FLOAT}",
    ],
    "out of range": [f"{VALUE} cross_entropy: rank 1 {SAID} {RANGE}"] * 2 + [f"{VALUE} cross_entropy: {RANGE}"] * 2,
    "other cuts": [f"{PRE} {CUTS.format(4, 3)}"]
    + [f"{PRE} rank 0 {SAID} {CUTS.format(4, 3)}"] * 2
    + [f"{PRE} {CUTS.format(2, 3)}"],
    "cuts that nobody knows": [f"{PRE} {TOTALS}"] * 4,
    "reductions": [f"{VALUE} cross_entropy: {REDUCED}"] * 4,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    return on_ranks(4, tmp_path_factory.mktemp("ranks"), everything)


PLACES = {
    "plain targets": ["(Shard(dim=1),)", "(Shard(dim=1),)"],
    "DTensors": ["(Shard(dim=1),)", "(Shard(dim=1),)"],
    "DTensors linear": ["(Replicate(),)", "(Shard(dim=0),)", "(Shard(dim=0),)"],
    "plain states linear": ["(Shard(dim=0),)"],
    "grid": ["(Shard(dim=0), Shard(dim=1))", "(Shard(dim=0), Shard(dim=1))"],
    "grid, plain targets": ["(Shard(dim=0), Shard(dim=1))", "(Shard(dim=0), Shard(dim=1))"],
    "grid linear": ["(Shard(dim=0), Replicate())", "(Replicate(), Shard(dim=0))", "(Replicate(), Shard(dim=0))"],
}


@pytest.mark.parametrize("of", ["plain targets", "DTensors", "plain states", "grid", "grid, plain targets"])
def test_what_one_process_finds(of, found):
    """Losses are of all rows wherever they lie; signals are of this process's rows."""
    exact = one_process()
    for rank, of_rank in enumerate(found):
        mine = (slice(0, 3) if rank < 2 else slice(3, 5)) if "grid" in of else slice(None)
        for name, got in of_rank[of].items():
            expected = exact[name]
            if name != "log_prob" or "grid" not in of:  # which the test sums itself
                torch.testing.assert_close(got["loss"], expected["loss"], rtol=2e-6, atol=2e-6)
            assert got["signals"].keys() == expected["signals"].keys()
            for signal, value in got["signals"].items():
                torch.testing.assert_close(value, expected["signals"][signal][mine], rtol=1e-5, atol=1e-6)
            places = PLACES[f"{of} linear" if "linear" in name or name == "log_prob" else of]
            needed = [grad for grad in got["gradients"] if grad is not None]
            assert got["places"] == places[: len(got["places"])] and len(needed) >= len(got["places"]) > 0
            for value, whole in zip(got["gradients"], expected["gradients"], strict=False):
                assert (value is None) == (whole is None)
                if value is not None:
                    assert value.shape == whole.shape and (value - whole).norm() <= 1e-6 * whole.norm(), name


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_is_wrong_on_all_ranks(name, found):
    assert [of_rank["errors"][name] for of_rank in found] == [EVERYWHERE[name]] * 4


@pytest.mark.parametrize("name", BY_RANK)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(name, found):
    assert [of_rank["errors"][name] for of_rank in found] == BY_RANK[name]


def test_all_are_in_step_afterwards(found):
    loss = torch.nn.functional.cross_entropy(X, Y)
    assert [of_rank["errors"]["at last"] for of_rank in found] == [f"{loss:.5f}"] * 4


def test_nobody_imports_dtensors_who_has_none():
    code = """
import sys, torch, torchassay as ta
ta.cross_entropy(torch.ones(2, 3), torch.tensor([0, 1]))
ta.linear_score(torch.ones(2, 3), torch.ones(4, 3))
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
ta.score(torch.ones(2, 3), group=torch.distributed.group.WORLD)
print("torch.distributed.tensor" in sys.modules, "torchassay.dtensors" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"
