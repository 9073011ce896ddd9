"""Batches of training data: Criteo's files, and generated rows like them. NumPy only."""

from ecrec.data.batch import Batch, BatchSource
from ecrec.data.criteo import BAD_ROWS, CriteoDataset
from ecrec.data.ids import HashedIds, VocabularyIds
from ecrec.data.synthetic import SyntheticDataset, SyntheticOptions

__all__ = [
    "BAD_ROWS",
    "Batch",
    "BatchSource",
    "CriteoDataset",
    "HashedIds",
    "SyntheticDataset",
    "SyntheticOptions",
    "VocabularyIds",
]
