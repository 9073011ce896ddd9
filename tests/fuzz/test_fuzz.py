"""Hostile input to every decoder and machine: the corpus, and some seconds of mutations of valid input.

For minutes: ``python tests/fuzz/fuzz_random.py``; guided by coverage: ``python tests/fuzz/fuzz_all.py``, or
``python tests/fuzz/fuzz_coverage.py TARGET`` for one.
"""

import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cases import deep, read_case, write_case
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import MACHINES, mutated, seeds
from targets import SOURCES, TARGETS, TO, run_case
from test_wire import PREAMBLE_BYTES, resealed

from ecrec.errors import WireError
from ecrec.protocol import messages as m
from ecrec.protocol import wire

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = {"wire": 400, "state": 150, "criteo": 150, "files": 200, "checkpoint": 300, "store": 30}
"""Of the machines fewer: each example runs a machine up to a moment first."""
MACHINE_EXAMPLES = 60


@pytest.fixture
def traced() -> Iterator[None]:
    """Allocations are counted, and bounded by the targets."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_promises_hold_for_neighbours_of_valid_input(name: str) -> None:
    @settings(max_examples=EXAMPLES.get(name, MACHINE_EXAMPLES))
    @given(st.sampled_from(range(len(seeds(name)))), st.integers(0, 2**32))
    def check(start: int, seed: int) -> None:
        TARGETS[name](mutated(name, seeds(name)[start], random.Random(seed)))

    check()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_promises_hold_for_the_corpus(path: Path) -> None:
    """What broke a promise once, and some valid input."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_no_more_is_allocated_than_an_input_may_ask_for(name: str, traced: None) -> None:
    rng = random.Random(7)
    for start in rng.sample(seeds(name), min(12, len(seeds(name)))):
        TARGETS[name](start)
        TARGETS[name](mutated(name, start, rng))


@pytest.mark.parametrize("levels", [10, 1_000, 100_000, 1_000_000])
def test_depth_is_refused(levels: int, traced: None) -> None:
    head = wire.encode(m.WindowAck(1), (), SOURCES[0], TO)[0][:PREAMBLE_BYTES]
    for body in (deep(levels), b"\x92\xa9WindowAck" + deep(levels), b"\x81\x00" * levels + b"\x00"):
        with pytest.raises(WireError, match="not a message of wire version"):
            wire.decode(resealed([head + body]))


@pytest.mark.parametrize("kind", ["array", "map", "bytes", "text"])
def test_counts_beyond_the_input_are_refused_at_once(kind: str, traced: None) -> None:
    count = {"array": b"\xdd", "map": b"\xdf", "bytes": b"\xc6", "text": b"\xdb"}[kind] + b"\xff\xff\xff\xff"
    head = wire.encode(m.WindowAck(1), (), SOURCES[0], TO)[0][:PREAMBLE_BYTES]
    for body in (count, b"\x92\xa9WindowAck" + count, b"\x94\xa4Join\x01" + count):
        before, _ = tracemalloc.get_traced_memory()
        with pytest.raises(WireError):
            wire.decode(resealed([head + body]))
        assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
        tracemalloc.reset_peak()


@pytest.mark.parametrize("name", MACHINES)
def test_a_scene_is_lively(name: str) -> None:
    """Without this the fuzzer could spend its time on machines that drop everything."""
    kinds = set()
    for data in seeds(name):
        case = read_case(data)
        assert write_case(case) == data
        run_case(name, case, len(data))
        kinds |= {sent.body[1:12] for sent in case.sent}
    assert len(kinds) >= {"client": 5, "scheduler": 4}.get(name, 8)


def test_the_coverage_guided_fuzzer_runs_and_counts(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    counts = tmp_path / "counts"
    command = [sys.executable, str(Path(__file__).parent / "fuzz_coverage.py"), "wire", "--seconds", "2"]
    done = subprocess.run([*command, "--counts", str(counts)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cov:" in done.stderr
    inputs, size = np.fromfile(counts, np.int64)
    assert 100 < inputs < size
