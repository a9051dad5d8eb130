"""A tree of sums over weights: what is drawn from it, and what of it a change makes anew.

Every 16 weights have a sum, every 16 of these sums have one, and so on to a top of at most 16. A sum is always taken
over its children, in one order, and never adjusted by a difference: so it is a function of the weights alone. A draw
goes down from the top, and at every node picks a child by a random number of its own. csrc/cpu/sum_tree.cpp does the
same, to the bit.
"""

from __future__ import annotations

import numpy as np
import torch

from torchassay.philox import Purpose, random_words

CHILDREN = 16
AT_ONCE = 1 << 16  # nodes whose children are in memory twice: 8 MiB

Blocks = tuple[np.ndarray, np.ndarray]  # nodes, ascending, and the numbers below them [K, 16]


def sizes(n: int) -> list[int]:
    """How many sums each level above n weights has, the lowest first; filled up with zeros to whole nodes."""
    found = []
    while not found or n > CHILDREN:
        n = -(-n // CHILDREN)
        found.append(-(-n // CHILDREN) * CHILDREN)
    return found


def levels(leaves: np.ndarray, sums: np.ndarray) -> list[np.ndarray]:
    """All levels of a tree, the leaves first; ``sums`` holds those above them one after the other."""
    return [leaves, *np.split(sums, np.cumsum(sizes(len(leaves)))[:-1])]


def added(children: np.ndarray) -> np.ndarray:
    """The sum of the last dimension, 16 long: of its halves' sums, pair by pair."""
    for half in (8, 4, 2, 1):
        children = children[..., :half] + children[..., half:]
    return children[..., 0]


def children(level: np.ndarray, node: np.ndarray) -> np.ndarray:
    """The numbers below nodes, [K, 16], a copy; zeros behind the last leaf."""
    place = node[:, None] * CHILDREN + np.arange(CHILDREN)
    return np.where(place < len(level), level[np.minimum(place, len(level) - 1)], 0.0)


def build(leaves: np.ndarray, sums: np.ndarray) -> tuple[int, int]:
    """Take all sums; the first leaf that is no weight (finite, at least 0) or -1, and how many are above 0."""
    below, *above = levels(leaves, sums)
    for level in above:
        level[:] = 0
        for first in range(0, len(below), AT_ONCE * CHILDREN):
            node = np.arange(first // CHILDREN, min(first // CHILDREN + AT_ONCE, -(-len(below) // CHILDREN)))
            level[node] = added(children(below, node))
        below = level
    positive = 0
    for first in range(0, len(leaves), AT_ONCE * CHILDREN):
        part = leaves[first : first + AT_ONCE * CHILDREN]
        wrong = ~((part >= 0) & (part < np.inf))
        if wrong.any():
            return first + int(np.argmax(wrong)), 0
        positive += int(np.count_nonzero(part))
    return -1, positive


def update(leaves: np.ndarray, sums: np.ndarray, index: np.ndarray, weights: np.ndarray) -> int:
    """Set leaves, of an index that comes twice to its last weight; by how many more leaves are above 0 now."""
    touched = np.unique(index)
    before = np.count_nonzero(leaves[touched])
    leaves[index] = weights
    gained = np.count_nonzero(leaves[touched]) - before
    below, *above = levels(leaves, sums)
    for level in above:
        touched = np.unique(touched // CHILDREN)
        level[touched] = added(children(below, touched))
        below = level
    return int(gained)


def without(leaves: np.ndarray, sums: np.ndarray, gone: np.ndarray) -> list[Blocks]:
    """What is another thing in each level, the leaves first, where the weights ``gone`` count as 0."""
    changed, values = [], np.zeros(len(gone))
    for level in levels(leaves, sums):
        node, row = np.unique(gone // CHILDREN, return_inverse=True)
        rows = children(level, node)
        rows[row, gone % CHILDREN] = values
        changed.append((node, rows))
        gone, values = node, added(rows)
    return changed


def sample(
    leaves: np.ndarray, sums: np.ndarray, seed: int, first: int, count: int, changed: list[Blocks] | None = None
) -> np.ndarray:
    """The draws ``first`` to ``first`` + ``count`` - 1 of a seed, with replacement, from a tree whose sum is above 0.

    Draw i takes for the level at depth d the words 2 (d modulo 2) and the next one of its block d // 2 of random words:
    the upper 53 bits of the 64, as a number in [0, 1). ``changed``: of the weights that `without` left.
    """
    found = np.empty(count, np.int64)
    for start in range(0, count, AT_ONCE):
        draw = torch.arange(first + start, first + min(start + AT_ONCE, count))
        node = np.zeros(len(draw), np.int64)
        for depth, level in enumerate(reversed(levels(leaves, sums))):
            if depth % 2 == 0:
                words = [word.numpy() for word in random_words(seed, Purpose.WEIGHTED_DRAWS, draw, 0, depth // 2)]
            low, high = words[2 * (depth % 2) :][:2]
            rows = children(level, node)
            if changed is not None:
                nodes, instead = changed[-1 - depth]
                at = np.minimum(np.searchsorted(nodes, node), len(nodes) - 1)
                rows = np.where((nodes[at] == node)[:, None], instead[at], rows)
            upto = np.cumsum(rows, axis=1)
            uniform = (high << 21 | low >> 11) * 2.0**-53
            at = np.minimum(uniform * upto[:, -1], np.nextafter(upto[:, -1], 0))  # below the last running sum
            node = node * CHILDREN + (upto <= at[:, None]).sum(axis=1)  # the first that is above
        found[start : start + len(draw)] = node
    return found
