"""A cluster that encrypts, as real processes: who has a key on the list is served, everybody else gets nothing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import DEADLINE_S, SHARDS, Processes, Worker

from ecrec.errors import ClusterError
from ecrec.protocol.messages import UP, ClusterQuery
from ecrec.transport.client_node import query
from ecrec.transport.curve import CurveKeys, generate

REFUSED_MS = 500.0


def ecrec(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "ecrec.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Processes]:
    """Five shards that encrypt; `alice` may connect, `mallory` may not."""
    servers = tmp_path / "servers"
    generate(servers, "servers")
    for name in ("alice", "mallory"):
        generate(tmp_path / name, name, servers)
    (servers / "allowed" / "mallory.key").unlink()
    made = Processes(tmp_path, "tcp")
    made.keys = CurveKeys.load(tmp_path / "alice")
    made.scheduler("--curve-dir", str(servers))
    yield made
    made.close()


def shards_with_keys(cluster: Processes) -> list[subprocess.Popen[str]]:
    given = ("--curve-dir", str(cluster.directory / "servers"))
    shards = [cluster.shard("--shard", str(number), *given) for number in range(SHARDS)]
    cluster.wait(lambda state: all(shard.state == UP and shard.figures for shard in state.shards))
    return shards


def test_a_cluster_with_keys_serves_recovers_and_is_scrubbed(cluster: Processes) -> None:
    shards = shards_with_keys(cluster)
    worker = Worker(cluster.endpoint, keys=cluster.keys)
    try:
        worker.start()
        for step in range(12):
            worker.push()
            if step == 5:
                shards[2].kill()
                keys = {"ECREC_CURVE_DIR": str(cluster.directory / "servers")}
                cluster.program("ps", "--scheduler", cluster.endpoint, "--spare", **keys)
        assert np.array_equal(worker.pull(), worker.expected)
        worker.flush()
    finally:
        worker.node.close()
    cluster.wait(lambda state: state.shards[2].epoch == 2 and state.shards[2].state == UP)
    given = ("--scheduler", cluster.endpoint, "--curve-dir", str(cluster.directory / "alice"), "--json")
    assert [shard["state"] for shard in json.loads(ecrec("status", *given))["shards"]] == [UP] * SHARDS
    assert json.loads(ecrec("verify", *given))["parity_ok"] is True
    for name, told in (
        ("scheduler", ("ShardDown(shard=2 epoch=1", "ShardWhole(shard=2 epoch=2)")),
        ("ps:2", ("without a place -> recovering: gets the place of a dead shard", "recovering -> up: has all rows")),
        ("ps:0", ("connection to shard 2 (epoch 1): severed", "ShardWhole(shard=2 epoch=2)")),
    ):
        events = [event["text"] for event in json.loads(ecrec("status", *given, "--story", name))["events"]]
        found = [next((i for i, text in enumerate(events) if each in text), -1) for each in told]
        assert -1 < found[0] < found[1], (name, events)
    for name, says in (("ps:9", "the shards are 0 to"), ("worker:0", "expected scheduler, or ps:SHARD")):
        assert says in ecrec("status", *given, "--story", name, code=2)


def test_who_has_no_key_on_the_list_gets_nothing(cluster: Processes) -> None:
    shards_with_keys(cluster)
    state = cluster.wait(lambda state: True)
    mallory = CurveKeys.load(cluster.directory / "mallory")
    for keys in (None, mallory):
        for endpoint in (cluster.endpoint, state.shards[0].endpoint):
            with pytest.raises(ClusterError, match="no answer"):
                query(endpoint, ClusterQuery(1), REFUSED_MS, keys)
    # A server without keys, and one whose key is not a server's, are never placed nor heard.
    cluster.shard("--spare")
    cluster.shard("--spare", "--curve-dir", str(cluster.directory / "alice"))
    for keys in (None, mallory):
        worker = Worker(cluster.endpoint, keys=keys)
        try:
            with pytest.raises(AssertionError):
                worker.until(lambda w=worker: w.machine.ready, REFUSED_MS / 1e3)
        finally:
            worker.node.close()
    state = cluster.wait(lambda state: True)
    assert (state.spares, state.workers) == (0, {})
    assert "is not allowed" in cluster.logs()
    assert "it does not speak CURVE encryption" in cluster.logs()


def test_ecrec_says_what_may_be_wrong_with_keys(cluster: Processes) -> None:
    says = ecrec("status", "--scheduler", cluster.endpoint, code=1)
    assert "--curve-dir" in says
    says = ecrec("status", "--scheduler", cluster.endpoint, "--curve-dir", str(cluster.directory), code=2)
    assert "make a directory of keys by `ecrec keygen DIR`" in says


def test_a_local_cluster_trains_with_the_keys_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    written = ecrec("keygen", str(tmp_path / "keys")).split()
    assert sorted(Path(path).name for path in written) == ["default.key", "own.key", "own.key_secret", "servers.key"]
    monkeypatch.setenv("ECREC_CURVE_DIR", str(tmp_path / "keys"))
    small = ["--steps", "6", "--batch", "32", "--dim", "8", "--rows", "200", "--bottom-mlp", "8", "--top-mlp", "8"]
    report = tmp_path / "report.json"
    run_dir = tmp_path / "run"
    ecrec(
        "train", "--shards", "3", "--code", "2+1", *small, "--report", str(report), "--run-dir", str(run_dir), "--quiet"
    )
    result = json.loads(report.read_text())
    assert (result["lost_updates"], result["parity_ok"]) == (0, True)
