"""Batches of training data: Criteo's files, and generated rows like them. NumPy only."""

from ecrec.data.batch import DENSE_FEATURES, SPARSE_FEATURES, Batch, BatchSource
from ecrec.data.criteo import CriteoDataset
from ecrec.data.ids import HashedIds, VocabularyIds
from ecrec.data.synthetic import SyntheticDataset, SyntheticOptions

__all__ = [
    "DENSE_FEATURES",
    "SPARSE_FEATURES",
    "Batch",
    "BatchSource",
    "CriteoDataset",
    "HashedIds",
    "SyntheticDataset",
    "SyntheticOptions",
    "VocabularyIds",
]
