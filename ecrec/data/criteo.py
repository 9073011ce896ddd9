"""Criteo's native files as rows: plain or gzip, a line a row.

What becomes of a field:

- an integer x becomes log(1 + max(x, 0)), so that 0 and every negative value (Criteo has -1, -2 and -3)
  become 0; a missing integer becomes 0 too;
- a token becomes an id of its feature's embedding table, by `HashedIds` or `VocabularyIds`.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np

from ecrec.data.criteo_format import DENSE_FEATURES, SPARSE_FEATURES, RawRows, parse_good_lines
from ecrec.data.rows import Layout, Rows, transform_integers
from ecrec.data.text import Parsed, TextFile

LAYOUT = Layout(DENSE_FEATURES, SPARSE_FEATURES, (1,) * len(SPARSE_FEATURES))


def criteo_file(name: str) -> TextFile:
    """A file of Criteo's as a `RowFile`."""
    return TextFile(name, LAYOUT, _parse)


def _parse(block: bytes, name: str, first_line: int) -> Parsed:
    raw, numbers, wrong = parse_good_lines(block, name, first_line)
    return Parsed(Rows(raw.labels, transform_integers(raw.integers), raw.tokens), numbers, wrong)


def write_rows(stream: io.BufferedIOBase | BinaryIO, raw: RawRows) -> None:
    """Write rows in Criteo's native format; `parse_block` reads them back as they were."""
    integers = np.where(raw.integers_missing, "", raw.integers.astype(str))
    lines = []
    for label, row_integers, row_tokens in zip(
        raw.labels.astype(int).tolist(), integers.tolist(), raw.tokens.T.tolist(), strict=True
    ):
        tokens = ["" if token < 0 else f"{token:08x}" for token in row_tokens]
        lines.append("\t".join([str(label), *row_integers, *tokens]))
    if lines:
        stream.write(("\n".join(lines) + "\n").encode("ascii"))
