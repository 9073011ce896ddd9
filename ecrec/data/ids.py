"""From a feature's tokens to the ids of its embedding table.

Tokens come as int64[H, n], feature-major, in [0, 2**32) or MISSING_TOKEN; ids go out in the same shape. H is the
number of features, or more, where a row has several ids for some.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ecrec.data.criteo_format import TOKENS
from ecrec.data.rows import MISSING_TOKEN

Tokens = NDArray[np.int64]
Ids = NDArray[np.int64]

_MERGE_ENTRIES = 1 << 20
"""Token counts that wait for a merge while a vocabulary is built; bounds memory, not the result."""


class IdMapping(Protocol):
    """Tokens int64[H, n] to ids int64[H, n], ids of feature f in [0, rows_per_table[f])."""

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """Rows of each table."""
        ...

    def __call__(self, tokens: Tokens) -> Ids:
        """The ids of these tokens."""
        ...


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, elementwise: a bijection of 64-bit words whose every output bit depends
    on every input bit (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, variant
    13)."""
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


class HashedIds:
    """id = 1 + hash(feature, token) mod (rows - 1); id 0 is the missing token's.

    The hash is `mix64` of (feature number from 1) * 2**32 + token, so a token is one in whatever way it is spelled. It
    is the same on every machine and in every release: a checkpoint depends on it.

    rows: of every table, or a number for each of F features; at least 2. hot: ids of each row for each feature, 1 where
    nothing else is said; their sum is H. Without ``hot``, and with one number of rows, F is that of Criteo.
    Raises ValueError for impossible numbers.
    """

    def __init__(self, rows: int | tuple[int, ...], hot: tuple[int, ...] = ()) -> None:
        self._rows = rows
        hot = hot or (1,) * (TOKENS if isinstance(rows, int) else len(rows))
        self.rows_per_table = (rows,) * len(hot) if isinstance(rows, int) else tuple(rows)
        if len(self.rows_per_table) != len(hot) or min(self.rows_per_table, default=0) < 2:
            raise ValueError(f"rows is {rows}, expected a number of at least 2, or {len(hot)} of them")
        repeats = np.array(hot)
        self._modulus = np.repeat(np.array(self.rows_per_table, np.uint64), repeats)[:, None] - np.uint64(1)
        self._features = np.repeat(np.arange(1, len(hot) + 1, dtype=np.uint64), repeats)[:, None] << np.uint64(32)

    def of(self, hot: tuple[int, ...]) -> HashedIds:
        """The same for other features. Raises ValueError where ``rows`` was given for each one of others."""
        return HashedIds(self._rows, hot)

    def __call__(self, tokens: Tokens) -> Ids:
        """The ids of these tokens, int64[H, n]."""
        hashed = mix64(tokens.view(np.uint64) | self._features)
        hashed %= self._modulus
        hashed += np.uint64(1)
        hashed[tokens == MISSING_TOKEN] = 0
        return hashed.view(np.int64)


@dataclass(frozen=True)
class VocabularyIds:
    """Ask for a vocabulary from the training part: a row for each token seen there at least `min_count`
    times.

    Id 0 is every other token (unseen or rare), id 1 the missing token, ids from 2 the tokens in the order in
    which they first occur. Raises ValueError if min_count is below 1.
    """

    min_count: int = 2

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise ValueError(f"min_count is {self.min_count}, expected at least 1")


class VocabularyTables:
    """A vocabulary that was built: per feature, its sorted tokens and their ids, and how many ids a row has of it."""

    def __init__(self, tables: list[tuple[Tokens, Ids]], hot: tuple[int, ...]) -> None:
        self._tables = [table for table, times in zip(tables, hot, strict=True) for _ in range(times)]
        self.rows_per_table = tuple(len(tokens) + 2 for tokens, _ in tables)

    @classmethod
    def build(
        cls, options: VocabularyIds, pieces: Iterable[Tokens], hot: tuple[int, ...] = (1,) * TOKENS
    ) -> VocabularyTables:
        """Count the tokens of all pieces, int64[H, n] each, given in row order."""
        counters = [_TokenCounter() for _ in hot]
        ends = list(itertools.accumulate(hot))
        for piece in pieces:
            for counter, end, times in zip(counters, ends, hot, strict=True):
                counter.add(piece[end - times : end].T.reshape(-1))
        return cls([counter.table(options.min_count) for counter in counters], hot)

    def __call__(self, tokens: Tokens) -> Ids:
        """The ids of these tokens, int64[H, n]."""
        ids = np.zeros(tokens.shape, np.int64)
        for column, out, (known, known_ids) in zip(tokens, ids, self._tables, strict=True):
            if len(known):
                place = np.minimum(np.searchsorted(known, column), len(known) - 1)
                np.copyto(out, known_ids[place], where=known[place] == column)
        ids[tokens == MISSING_TOKEN] = 1
        return ids


class _TokenCounter:
    """Counts and first rows of one feature's tokens, merged now and then so that memory follows the
    vocabulary."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tokens, NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0
        self._rows = 0

    def add(self, column: Tokens) -> None:
        tokens, first, counts = np.unique(column, return_index=True, return_counts=True)
        self._parts.append((tokens, counts, first + self._rows))
        self._rows += len(column)
        self._waiting += len(tokens)
        if self._waiting > _MERGE_ENTRIES:
            self._parts = [self._merged()]
            self._waiting = 0

    def _merged(self) -> tuple[Tokens, NDArray[np.int64], NDArray[np.int64]]:
        if not self._parts:
            empty = np.empty(0, np.int64)
            return empty, empty, empty
        all_tokens, all_counts, all_first = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        # Parts are in row order, so the first occurrence of a token among them has its smallest row.
        tokens, first, inverse = np.unique(all_tokens, return_index=True, return_inverse=True)
        counts = np.zeros(len(tokens), np.int64)
        np.add.at(counts, inverse, all_counts)
        return tokens, counts, all_first[first]

    def table(self, min_count: int) -> tuple[Tokens, Ids]:
        tokens, counts, first = self._merged()
        kept = (counts >= min_count) & (tokens != MISSING_TOKEN)
        tokens, first = tokens[kept], first[kept]
        ids = np.empty(len(tokens), np.int64)
        ids[np.argsort(first, kind="stable")] = np.arange(2, len(tokens) + 2)
        return tokens, ids
