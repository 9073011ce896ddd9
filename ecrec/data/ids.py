"""From a feature's tokens to the ids of its embedding table.

Tokens come as int64[26, n], feature-major, in [0, 2**32) or MISSING_TOKEN; ids go out in the same shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ecrec.data.criteo_format import MISSING_TOKEN, TOKENS

Tokens = NDArray[np.int64]
Ids = NDArray[np.int64]

_MERGE_ENTRIES = 1 << 20
"""Token counts that wait for a merge while a vocabulary is built; bounds memory, not the result."""


class IdMapping(Protocol):
    """Tokens int64[26, n] to ids int64[26, n], ids of feature f in [0, rows_per_table[f])."""

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """Rows of each of the 26 tables."""
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

    The hash is `mix64` of (feature number from 1) * 2**32 + (the token as the number it spells), so upper
    and lower case are one token. It is the same on every machine and in every release: a checkpoint depends
    on it.

    rows: of every table, or one number for each of the 26; at least 2. Raises ValueError otherwise.
    """

    def __init__(self, rows: int | tuple[int, ...]) -> None:
        self.rows_per_table = (rows,) * TOKENS if isinstance(rows, int) else tuple(rows)
        if len(self.rows_per_table) != TOKENS or min(self.rows_per_table) < 2:
            raise ValueError(f"rows is {rows}, expected a number of at least 2, or {TOKENS} of them")
        self._modulus = np.array(self.rows_per_table, np.uint64)[:, None] - np.uint64(1)
        self._features = np.arange(1, TOKENS + 1, dtype=np.uint64)[:, None] << np.uint64(32)

    def __call__(self, tokens: Tokens) -> Ids:
        """The ids of these tokens, int64[26, n]."""
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
    """A vocabulary that was built: per feature, its sorted tokens and their ids."""

    def __init__(self, tables: list[tuple[Tokens, Ids]]) -> None:
        self._tables = tables
        self.rows_per_table = tuple(len(tokens) + 2 for tokens, _ in tables)

    @classmethod
    def build(cls, options: VocabularyIds, pieces: Iterable[Tokens]) -> VocabularyTables:
        """Count the tokens of all pieces, int64[26, n] each, given in row order."""
        counters = [_TokenCounter() for _ in range(TOKENS)]
        for piece in pieces:
            for counter, column in zip(counters, piece, strict=True):
                counter.add(column)
        return cls([counter.table(options.min_count) for counter in counters])

    def __call__(self, tokens: Tokens) -> Ids:
        """The ids of these tokens, int64[26, n]."""
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
