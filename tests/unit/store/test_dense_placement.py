"""Records of touched rows lie dense where a table is large, and at their own places where it is not."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from store_group import Group, add_table, sections, tuned

from ecrec import _native
from ecrec.store import RowBuffer, Store
from ecrec.store.reference import Table

HERE = Path(__file__).parents[2]

SPARSE = """
import numpy as np
from store_group import add_table, sections
from ecrec.store import Store
from ecrec.store.reference import Table

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

store = Store(0, 1)
add_table(store, Table(5_000_000, 64, 1, 0, "cauchy", "sgd", (0.1,)))
rows = np.sort(np.random.default_rng(7).choice(5_000_000, 100_000, replace=False))
values = np.arange(len(rows) * 64, dtype=np.float32)
before = resident()
store.assign(*sections((0, rows)), values, None)
grown, wanted = resident() - before, len(rows) * 256 + 5_000_000 * 4
assert grown < wanted + (16 << 20), f"{grown} bytes for {wanted}"
while store.use_huge_pages(100):
    pass
grown = resident() - before
assert grown < wanted + (24 << 20), f"{grown} bytes for {wanted}, with huge pages"
out = np.empty(len(rows) * 256, dtype=np.uint8)
store.gather(*sections((0, rows)), out)
assert out.tobytes() == values.tobytes()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident bytes are read from /proc")
@pytest.mark.skipif("ECREC_SANITIZED" in os.environ, reason="the sanitizers' own memory is resident, too")
def test_rows_touched_here_and_there_take_their_own_bytes() -> None:
    """2 % of the rows, one in fifty: with a page for each it would be 400 MB, and 25.6 MB have rows."""
    assert resource.getpagesize() == 4096
    subprocess.run([sys.executable, "-c", SPARSE], cwd=HERE, timeout=60, check=True)


INDEXED, AT_THEIR_PLACES = {"unindexed_bytes_max": 0}, {"unindexed_bytes_max": 1 << 40}


@pytest.mark.parametrize("memory", [INDEXED, AT_THEIR_PLACES, {"unindexed_bytes_max": 3000}])
def test_rows_keep_their_values_in_whatever_order_they_are_touched(memory: dict[str, int]) -> None:
    """Data and parity of three slots and two parities, touched backwards, forwards and anyhow."""
    with tuned(memory):  # 40 quotients of 16 bytes: 1,920 bytes of data, 1,280 of parity; twice as much in the second
        group = Group([Table(600, 4, 3, 2, shards=5), Table(1200, 4, 3, 2, shards=5)], 5)
    rng = np.random.default_rng(3)
    for order in (range(599, -1, -7), range(0, 600, 5), rng.permutation(600).tolist()):
        for shard in range(5):
            mine = [[row for row in order if row in set(group.rows_of(shard, table))] for table in range(2)]
            values = rng.standard_normal(sum(map(len, mine)) * 4).astype(np.float32)
            group.apply(shard, sections((0, mine[0]), (1, mine[1])), values)
        group.exchange()
        for shard in range(5):
            group.check_rows(shard)
        group.check_parity()


def touched_pages_seen(rows: list[int], pages: int, memory: dict[str, int]) -> bool:
    """Whether an extent of a table of records of 256 bytes is looked at, where that takes so many touched pages."""
    with tuned(memory):
        store = Store(0, 1)
        add_table(store, Table(100_000, 64, 1, 0, "cauchy", "sgd", (0.1,)))
    store.assign(*sections((0, rows)), np.ones(len(rows) * 64, dtype=np.float32), None)
    with tuned({"huge_page_touched_min": pages, "collapse_failures": 1, "collapse_errno": 22}):
        store.use_huge_pages(100)
        return _native.tuning()["collapse_failures"] == 0


@pytest.mark.parametrize(
    ("memory", "rows", "pages"),
    [
        (INDEXED, range(0, 100_000, 20), 313),  # 5,000 records, 16 a page
        (AT_THEIR_PLACES, range(0, 8192, 32), 256),  # each second page of the first 512
        (AT_THEIR_PLACES, range(8192 * 3, 8192 * 3 + 101 * 16, 16), 101),  # in the fourth extent
        (AT_THEIR_PLACES, [8191, 8192], 1),  # the last page of one, the first page of the next
    ],
)
def test_an_extent_is_looked_at_when_enough_of_it_has_records(
    memory: dict[str, int], rows: Sequence[int], pages: int
) -> None:
    """An extent is moved when the knob's part of its pages is used."""
    assert touched_pages_seen(list(rows), pages, memory)
    assert not touched_pages_seen(list(rows), pages + 1, memory)


def test_a_buffer_gives_only_what_is_not_zero() -> None:
    group = Group([Table(300, 4, 2, 1, shards=3)], 3)
    rows = group.rows_of(0, 0)
    group.apply(0, sections((0, rows)), np.ones(len(rows) * 4, dtype=np.float32))
    group.exchange()
    store = group.stores[0]
    keys, records = store.coded_rows(0, 0, store.class_size(0))
    some = keys[::3].copy()
    each = len(records) // len(keys)
    buffer = RowBuffer(store)
    buffer.fold(1, keys, records)
    buffer.fold(1, some, np.ascontiguousarray(records.reshape(len(keys), each)[::3]).reshape(-1))
    kept, left = buffer.take_nonzero()
    assert kept.tolist() == [key for key in keys.tolist() if key not in set(some.tolist())]
    assert left.tobytes() == np.delete(records.reshape(len(keys), each), np.s_[::3], 0).tobytes()
    assert len(buffer) == 0 and buffer.take_nonzero()[0].size == 0
