"""Other libraries' losses, where they are installed, on the outputs that they have. They are given logits of their own:
some write the gradient over them."""

from __future__ import annotations

from collections.abc import Callable

from contenders import Contender
from rotation import first_line
from torch import Tensor


class NotComparable(Exception):
    """It is there, but does not do what is measured here."""


def liger_kernel() -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda x, y: {"loss": liger_cross_entropy(x, y, reduction="none")}


def quack() -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    from quack.cross_entropy import cross_entropy_fwd

    return lambda x, y: dict(zip(("loss", "lse"), cross_entropy_fwd(x, y, return_lse=True), strict=True))


def flash_attn() -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return lambda x, y: {"loss": cross_entropy_loss(x, y)[0]}


def cut_cross_entropy() -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    import cut_cross_entropy

    raise NotComparable(f"{cut_cross_entropy.__name__} takes hidden states and a head, not logits")


def liger_head() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        found = liger_fused_linear_cross_entropy(hidden, weight, target)
        return found[0] if isinstance(found, tuple) else found

    return loss


def cut_head() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy


# the mean loss of hidden states, a head and targets
HEADS = {"liger-kernel, fused linear": liger_head, "cut-cross-entropy": cut_head}
PEERS = {
    "liger-kernel": liger_kernel,
    "quack-kernels": quack,
    "flash-attn's Triton loss": flash_attn,
    "cut-cross-entropy": cut_cross_entropy,
}


def find(peers: dict[str, Callable] = PEERS) -> tuple[list[Contender], dict[str, str]]:
    """The peers that can be timed; of each other one, why not."""
    found, notes = [], {}
    for name, load in peers.items():
        try:
            found.append(Contender(name, load()))
        except ModuleNotFoundError:
            notes[name] = "not installed"
        except NotComparable as reason:
            notes[name] = str(reason)
        except Exception as error:  # a broken or different version may raise anything
            notes[name] = f"does not import: {first_line(error)}"
    return found, notes
