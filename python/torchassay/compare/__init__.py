"""Methods against each other on one data set: equal budgets, several seeds, and a report."""

from torchassay.compare.data import Data
from torchassay.compare.run import compare

__all__ = ["Data", "compare"]
