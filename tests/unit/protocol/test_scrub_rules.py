"""What a scrub finds, against slow code that tries each member: which one is wrong; and records of several tables."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ecrec._native import Code, gf_multiply
from ecrec.protocol.messages import LOCATED, UNSURE
from ecrec.protocol.repair import KEY_BITS
from ecrec.protocol.scrub import Scrubs, Syndromes, _by_table, _in_order


def scrubs(code: Code, rows: int, groups: int, group: int) -> Scrubs:
    tables = [SimpleNamespace(code=SimpleNamespace(k=code.k), rows=rows)]
    context: Any = SimpleNamespace(tables=tables, groups=groups, group=group)
    return Scrubs(context, None)  # type: ignore[arg-type]


def times(factor: int, record: Any) -> Any:
    return np.array([gf_multiply(factor, byte) for byte in record.tolist()], np.uint8)


def explained(some: Syndromes, at: int, code: Code, rows: int, groups: int, group: int) -> list[int]:
    """Data rows of which one error would make all syndromes of the stripe what they are."""
    first, found = some.values[0, at], []
    for j in range(code.k if code.r > 1 else 0):
        row = ((int(some.keys[at]) & ((1 << KEY_BITS) - 1)) * groups + group) * code.k + j
        inverse = next(x for x in range(1, 256) if gf_multiply(x, int(code.coefficients[0, j])) == 1)
        error = times(inverse, first)
        fits = all((times(int(code.coefficients[i, j]), error) == some.values[i, at]).all() for i in range(code.r))
        if row < rows and error.any() and fits:
            found.append(j)
    return found


def expected(some: Syndromes, code: Code, rows: int, groups: int, group: int) -> set[tuple[int, int, int]]:
    found = set()
    for at, key in enumerate(some.keys.tolist()):
        bad = [i for i in range(code.r) if some.values[i, at].any()]
        members = explained(some, at, code, rows, groups, group)
        assert len(members) <= 1
        sure = LOCATED if len(bad) == 1 and code.r > 1 else UNSURE
        found |= {(key, j, LOCATED) for j in members} or {(key, code.k + i, sure) for i in bad}
    return found


@pytest.mark.parametrize("seed", range(60))
def test_the_member_that_is_wrong_is_the_one_that_explains_all_that_is_wrong(seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = Code(int(rng.integers(1, 9)), int(rng.integers(1, 5)), ("cauchy", "isal-cauchy")[seed % 2])
    size, stripes, groups = int(rng.integers(1, 5)) * 4, 30, int(rng.integers(1, 4))
    group = int(rng.integers(0, groups))
    values = np.zeros((code.r, stripes, size), np.uint8)
    for at in range(stripes):
        for _ in range(int(rng.integers(1, 4))):  # so many members are wrong
            error = np.zeros(size, np.uint8)
            where = rng.integers(0, size, int(rng.integers(1, size + 1)))
            error[where] = rng.integers(0, 256, len(where))
            slot = int(rng.integers(0, code.k + code.r))
            for i in range(code.r):
                if slot < code.k:
                    values[i, at] ^= times(int(code.coefficients[i, slot]), error)
                elif i == slot - code.k:
                    values[i, at] ^= error
    wrong = values.any(axis=(0, 2))
    some = Syndromes(0, np.arange(stripes, dtype=np.uint64)[wrong], np.ascontiguousarray(values[:, wrong]))
    rows = max(1, stripes * groups * code.k - int(rng.integers(0, 3 * code.k * groups)))  # the last stripes are short
    columns = scrubs(code, rows, groups, group)._judge(some, code)
    found = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == expected(some, code, rows, groups, group)


@pytest.mark.parametrize("seed", range(20))
def test_records_of_several_tables_are_told_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = (4 * rng.integers(1, 9, int(rng.integers(1, 6)))).tolist()
    store = SimpleNamespace(record_bytes=lambda table: sizes[table], tables=len(sizes))
    taken, content = [], []
    for _ in range(int(rng.integers(1, 4))):
        tables, stripes = rng.integers(0, len(sizes), 40), rng.integers(0, 20, 40)
        keys = np.unique((tables.astype(np.uint64) << np.uint64(KEY_BITS)) | stripes.astype(np.uint64))
        rng.shuffle(keys)
        rows = [
            rng.integers(0, 2, sizes[key >> KEY_BITS]).astype(np.uint8) * np.uint8(rng.integers(0, 2))
            for key in keys.tolist()
        ]
        taken.append(_in_order(store, keys, np.concatenate(rows)))
        content.append(dict(zip(keys.tolist(), rows, strict=True)))
    for records, known in zip(taken, content, strict=True):
        wanted = rng.permutation(list(known))[: int(rng.integers(0, len(known) + 1))].astype(np.uint64)
        parts = [known[key] for key in wanted.tolist()]
        assert np.array_equal(records.select(wanted), np.concatenate([np.zeros(0, np.uint8), *parts]))
    bad = [np.array([key for key, row in known.items() if row.any()], np.uint64) for known in content]
    seen = []
    for some in _by_table(bad, taken):
        for at, key in enumerate(some.keys.tolist()):
            seen.append(key)
            assert key >> KEY_BITS == some.table
            for i, known in enumerate(content):
                assert np.array_equal(some.values[i, at], known.get(key, np.zeros(sizes[some.table], np.uint8)))
    assert sorted(seen) == sorted({key for keys in bad for key in keys.tolist()})
