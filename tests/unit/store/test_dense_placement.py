"""Records of touched rows lie dense, wherever in the table the rows are."""

import os
import resource
import subprocess
import sys
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


def test_rows_keep_their_values_in_whatever_order_they_are_touched() -> None:
    """Data and parity of three slots and two parities, touched backwards, forwards and anyhow."""
    group = Group([Table(600, 4, 3, 2, shards=5)], 5)
    rng = np.random.default_rng(3)
    for order in (range(599, -1, -7), range(0, 600, 5), rng.permutation(600).tolist()):
        for shard in range(5):
            mine = [row for row in order if row in set(group.rows_of(shard, 0))]
            values = rng.standard_normal(len(mine) * 4).astype(np.float32)
            group.apply(shard, sections((0, mine)), values)
        group.exchange()
        for shard in range(5):
            group.check_rows(shard)
        group.check_parity()


def test_an_extent_is_looked_at_when_enough_of_it_has_records() -> None:
    """The last extent with records is moved when the knob's part of its pages is used."""
    store = Store(0, 1)
    add_table(store, Table(100_000, 64, 1, 0, "cauchy", "sgd", (0.1,)))
    rows = list(range(0, 100_000, 20))  # 5,000 records of 256 bytes: 313 pages
    store.assign(*sections((0, rows)), np.ones(len(rows) * 64, dtype=np.float32), None)
    for pages, left in ((314, 1), (313, 0)):
        with tuned({"huge_page_touched_min": pages, "collapse_failures": 1, "collapse_errno": 22}):
            store.use_huge_pages(100)
            assert _native.tuning()["collapse_failures"] == left


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
