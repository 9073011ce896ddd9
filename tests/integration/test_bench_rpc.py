"""The suite rpc of `ecrec bench` on real servers: what is measured of ours trains as the arithmetic says."""

from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("torch")

from ecrec.bench import rpc
from ecrec.bench.harness import Selection
from ecrec.bench.workload import PULLED, SERVED_DIM, make_row_batches
from ecrec.launch.tools.bench import local_shards


@pytest.mark.parametrize("name", ["pull + push, one server", "pull + push, 4+1 durable, TCP"])
def test_ours_takes_the_steps_that_are_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "PEERS", {})
    monkeypatch.setattr(rpc, "CASES", {name: rpc.CASES[name]})
    monkeypatch.setattr(rpc, "HUGE_PAGES_SECONDS", 0.0)
    made: list[rpc.Ours] = []
    case_of = rpc.case_of
    monkeypatch.setattr(rpc, "case_of", lambda case, ours, peers: made.append(ours) or case_of(case, ours, peers))
    with closing(rpc.cases(Selection("rpc", "", local_shards))) as cases:
        case = next(cases)
        assert case.ours(1) > 0
        pulled, (_, gradients) = made[0].pull(0), make_row_batches()[0]
        assert pulled.shape == (PULLED, SERVED_DIM)
        assert np.abs(pulled + rpc.LR * gradients / (np.abs(gradients) + rpc.EPS)).max() < 1e-6
        assert len(case.check()) >= 16
        assert not list(cases)
