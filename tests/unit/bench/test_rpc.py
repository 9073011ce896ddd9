"""The suite rpc: our rows by shard, and a peer that is driven over pipes and trains what it is meant to."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

pytest.importorskip("torch")

from ecrec.bench import rpc
from ecrec.bench.peers.drive import driven
from ecrec.bench.workload import SERVED_DIM, make_row_batches

MODULES = {"Redis": "redis", "Ray": "ray", "TensorFlow": "tensorflow"}
"""Of peers that there is no wheel of for every platform and Python."""


def test_our_rows_are_split_by_shard_and_come_back_in_order() -> None:
    ids, gradients = make_row_batches()[0]
    rows = rpc.Rows(0, 4, 5, (ids, gradients))
    assert sorted(rows.shares) == sorted(rows.gradients) == list(range(5))
    answers = {}
    for shard, share in rows.shares.items():
        assert np.all((share.rows // 4 + share.rows % 4) % 5 == shard)
        answers[shard] = np.repeat(share.rows.astype(np.float32), SERVED_DIM).tobytes()
        pushed = rows.gradients[shard]
        assert np.array_equal(pushed.rows, share.rows)
        order = np.argsort(ids)
        found = order[np.searchsorted(ids[order], share.rows)]
        assert np.array_equal(pushed.values.reshape(-1, SERVED_DIM), gradients[found])
    rows.fill(answers)
    assert np.array_equal(rows.values[rows.inverse][:, 0], ids.astype(np.float32))


def test_steps_go_on_where_the_last_ones_ended() -> None:
    firsts = []

    def steps(calls: int, first: int) -> float:
        firsts.append(first)
        return float(calls)

    run = rpc.in_turn(steps)
    assert [run(3), run(5), run(1)] == [3.0, 5.0, 1.0]
    assert firsts == [0, 3, 8]


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("peer", list(rpc.PEERS))
def test_a_peer_in_processes_of_its_own_takes_the_steps_of_adagrad(peer: str, tcp: bool) -> None:
    module = MODULES.get(peer)
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    _, gradients = make_row_batches()[0]
    with driven(rpc.PEERS[peer], {**rpc.OPTIONS, "tcp": tcp}) as client:
        client.wait_started()
        assert client.steps(1, 0) > 0
        pulled = client.pull(0)
    expected = -rpc.LR * gradients / (np.abs(gradients) + rpc.EPS)
    assert np.abs(pulled - expected).max() < 1e-6
