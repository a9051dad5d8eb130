"""Data sets whose items say which they are, in containers of several kinds."""

import collections

import torch
from torch.utils.data import Dataset

Pair = collections.namedtuple("Pair", "image label")


class Items(Dataset):
    """Image i is full of i, its label is i mod 10; in containers of several kinds."""

    def __init__(self, n: int, kind: str = "tuple"):
        self.n, self.kind = n, kind

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        image, label = torch.full((2, 3), float(i)), i % 10
        return {
            "tuple": (image, label),
            "list": [image, label],
            "namedtuple": Pair(image, label),
            "dict": {"image": image, "label": label},
            "tensor": image,
        }[self.kind]


class Batched(Items):
    """A data set that fetches whole batches."""

    def __getitems__(self, indices):
        self.fetched = indices
        return [self[i] for i in indices]
