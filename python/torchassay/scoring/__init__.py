"""Offline scoring: a model over a whole data set, on one process or many, into Parquet parts."""

from torchassay.scoring.batches import BrokenRows
from torchassay.scoring.dataset_scorer import DatasetScorer
from torchassay.scoring.run import score_dataset

__all__ = ["BrokenRows", "DatasetScorer", "score_dataset"]
