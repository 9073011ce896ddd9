"""Batches of training data: files of many formats, and generated rows like Criteo's. NumPy, and pyarrow where a format
needs it."""

from ecrec.data.batch import Batch, BatchSource
from ecrec.data.columns import Columns, read_columns
from ecrec.data.dataset import BAD_ROWS, FileDataset
from ecrec.data.ids import HashedIds, VocabularyIds
from ecrec.data.plain_ids import PlainIds
from ecrec.data.shuffle import ShuffledSource
from ecrec.data.synthetic import SyntheticDataset, SyntheticOptions

__all__ = [
    "BAD_ROWS",
    "Batch",
    "BatchSource",
    "Columns",
    "FileDataset",
    "HashedIds",
    "PlainIds",
    "ShuffledSource",
    "SyntheticDataset",
    "SyntheticOptions",
    "VocabularyIds",
    "read_columns",
]
