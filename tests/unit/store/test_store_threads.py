"""Objects of one store in several threads: right results or an error, never a crash."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]

HAMMER = """
import sys
import threading
import time

import numpy as np
from store_group import ALL_CLASSES, Group, sections
from ecrec.store import Capture, RowBuffer, Window
from ecrec.store.reference import Table

sys.setswitchinterval(1e-5)
table = Table(4_000, 16, 2, 1, "cauchy", "adagrad", (0.1, 1e-8), shards=3)
group = Group([table], 3)
store, window = group.stores[0], group.windows[0]
rows = group.rows_of(0, 0)
listed, ones = sections((0, rows)), np.ones(16 * len(rows), np.float32)
store.apply(*listed, ones, window)
keys, records = window.buffer(2).take()
parity = group.stores[2]
parity.fold(0, ALL_CLASSES, keys, records)
size = store.class_size(0)
lone, held, capture = RowBuffer(store), window.buffer(2), Capture(parity, 0, 0, size)
out = np.empty(store.gather_bytes(*listed[:2]), np.uint8)
applied, refused, done, wrong = [1], [0], [0], []
ends = time.monotonic() + float(sys.argv[1])


def gather():
    own = np.empty_like(out)
    store.gather(*listed, own)


def apply():
    store.apply(*listed, ones, window)
    applied[0] += 1


calls = [
    gather, apply,
    lambda: store.check(*listed, ones),
    lambda: store.missing(*listed),
    lambda: store.keys(*listed),
    lambda: store.coded_rows(0, 0, size),
    lambda: store.add_table(100, 4, 2, 1, "cauchy", "sgd", [0.1], "zeros", 0, 0.0, 0.0),
    lambda: store.memory(),
    lambda: lone.fold(7, keys, records),
    lambda: (lone.nonzero(), len(lone), lone.nbytes),
    lambda: lone.take(),
    lambda: held.fold(3, keys, records),
    lambda: held.remove_class(1),
    lambda: held.take(),
    lambda: (window.rows(), window.nbytes()),
    lambda: (window.set_limit(2, 1, 0), store.seed(window, 2, 0, 50)),
    lambda: capture.fold(0, keys, records),
    lambda: capture.take(),
    lambda: parity.fold(0, ALL_CLASSES, keys, records),
    lambda: parity.wipe_parity(0),
    lambda: Capture(parity, 0, 0, size).take(),
    lambda: (Window(store), RowBuffer(store)),
    lambda: store.use_huge_pages(4),
]


def run(seed):
    rng = np.random.default_rng(seed)
    while time.monotonic() < ends:
        try:
            calls[int(rng.integers(len(calls)))]()
            done[0] += 1
        except RuntimeError as error:
            if "in use by another thread" not in str(error):
                wrong.append(repr(error))
            refused[0] += 1
        except BaseException as error:
            wrong.append(repr(error))


threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong[:3]
assert done[0] > 50 and refused[0] > 0, (done, refused)
# All that went through is right: as many steps as were taken.
expected = Group([table], 3)
for _ in range(applied[0]):
    expected.stores[0].apply(*listed, ones, None)
mine, theirs = (np.empty(s.gather_bytes(*listed[:2], records=True), np.uint8) for s in (store, expected.stores[0]))
store.gather(*listed, mine, records=True)
expected.stores[0].gather(*listed, theirs, records=True)
assert mine.tobytes() == theirs.tobytes()
print(done[0], refused[0])
"""


def test_threads_that_share_a_store_get_results_or_an_error() -> None:
    """In a process of its own, which a race would end."""
    command = [sys.executable, "-c", HAMMER, "2"]
    done = subprocess.run(command, cwd=HERE, timeout=120, capture_output=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout.decode(), done.stderr.decode()[-2000:])
