"""ecrec on Ray: real nodes of `ray.cluster_utils.Cluster`, removed and added while a model is trained.

The runs take a minute or more, and need ECREC_LONG_FAULTS=1.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from runs import check_exact, words
from test_train_criteo import DATA
from test_train_sessions import TRAINING
from test_zookeeper import ZooKeeper, leader_of, why_no_zookeeper

import ecrec
from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.tools.verify import scrub
from ecrec.protocol.messages import UP
from ecrec.reproduce.measure import Measured, measure
from ecrec.reproduce.plan import Plan, Run, load
from ecrec.reproduce.raw import read
from ecrec.reproduce.runner import Runner, run_command

ray: Any = pytest.importorskip("ray")
pytest.importorskip("torch")
cluster_utils: Any = pytest.importorskip("ray.cluster_utils")

from ecrec.ray import Cluster, Rows, connect  # noqa: E402

LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"
pytestmark = pytest.mark.filterwarnings(
    "ignore:::ray", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
STEPS, REMOVED_AT, ADDED_AT = 30, 8, 16
OBJECT_STORE_BYTES = 80_000_000
DEADLINE_S = 60.0


class Nodes:
    """A Ray of nodes in processes of their own: a head, on which no server has room, and others."""

    def __init__(self, count: int) -> None:
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        head["resources"] = {"worker": 4}
        self.cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add() for _ in range(count)]
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
        ray.init(
            address=self.cluster.address, log_to_driver=False, logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
        )  # fmt: skip

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)

    def remove(self, node_id: str) -> None:
        """The node is gone, as if its host had lost its power."""
        node = next(node for node in self.nodes if node.node_id == node_id)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    if not LONG:
        pytest.skip("takes minutes: ECREC_LONG_FAULTS=1")
    made = Nodes(4)
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def train(session: Any, steps: int, at_step: Callable[[int], None] = lambda step: None) -> Any:
    names: dict[str, Any] = {}
    exec(TRAINING, names)
    return names["train"](session, steps, at_step)


@pytest.fixture(scope="module")
def calm() -> Any:
    """Digest and losses of a run in which nobody dies."""
    with ecrec.local_cluster(shards=3, code="2+1") as session:
        return train(session, STEPS)


def test_a_node_is_lost_and_another_comes_while_a_model_is_trained(nodes: Nodes, calm: Any, tmp_path: Path) -> None:
    with Cluster(shards=3, code="2+1", spares=1, state=str(tmp_path), start_timeout_s=DEADLINE_S) as cluster:
        before = {standing.endpoint: standing for standing in cluster.servers()}
        assert len({standing.node for standing in before.values()}) == 4, "each server has a node of its own"
        victim = before[cluster.state().shards[1].endpoint]

        def at_step(step: int) -> None:
            if step == REMOVED_AT:
                nodes.remove(victim.node)
            elif step == ADDED_AT:
                nodes.nodes.append(nodes.add())

        with cluster.connect() as session:
            assert train(session, STEPS, at_step) == calm
            session.flush()
        state = cluster.wait_whole()
        assert [shard.epoch for shard in state.shards] == [1, 2, 1]

        # Ray starts the actor of the lost node again on the new one: its server is the spare now.
        until(lambda: cluster.state().spares == 1)
        again = next(standing for standing in cluster.servers() if standing.name == victim.name)
        assert again.node == nodes.nodes[-1].node_id != victim.node

        # The next death is no loss either.
        assert cluster.kill(0) in {standing.name for standing in before.values()}
        until(lambda: [(s.epoch, s.state) for s in cluster.state().shards] == [(2, UP), (2, UP), (1, UP)])
        outcome = scrub(cluster.scheduler, DEADLINE_S, curve_dir=cluster.curve_dir)
        assert outcome.ok is True and outcome.stripes > 100
        servers = [standing.pid for standing in cluster.servers()]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers))
    with pytest.raises(ClusterError, match=r"Ray has no cluster 'ecrec'"):
        connect()


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def train_in_a_task(steps: int) -> Any:
    with connect("second") as session:
        return train(session, steps)


def test_a_task_finds_the_cluster_by_its_name_with_keys_of_its_own(nodes: Nodes, calm: Any) -> None:
    with Cluster(shards=3, code="2+1", spares=0, name="second", start_timeout_s=DEADLINE_S) as cluster:
        with pytest.raises(ConfigurationError, match="there is a cluster 'second' on Ray already"):
            Cluster(shards=3, code="2+1", spares=0, name="second").start()
        assert cluster.curve_dir is not None
        assert ray.get(train_in_a_task.remote(STEPS), timeout=DEADLINE_S) == calm
        attached = Cluster.attach("second")
        assert [shard.epoch for shard in attached.state().shards] == [1, 1, 1]
        assert len(attached.servers()) == 3


EXAMPLES, SPLIT, BATCH = 3000, 500, 50


def train_leased(config: dict[str, Any]) -> None:
    """Of a worker of Ray Train: one dies in its first life, in the middle of a split."""
    import torch

    from ecrec.training import SGD, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

    rank = ray.train.get_context().get_world_rank()
    died = Path(config["died"])
    with connect("third") as session:
        table = EmbeddingBagConfig(EXAMPLES, 8, "t", feature_names=["t"])
        bags = EmbeddingBagCollection(session, [table], SGD(lr=1.0), seed=1)
        for split in session.lease_splits("rows", examples=EXAMPLES, split_examples=SPLIT):
            for batch in config["rows"].read(split.first, split.last, BATCH):
                ids = torch.from_numpy(batch["id"]).reshape(1, -1)
                for features in session.prefetch([KeyedJaggedTensor.from_ids(["t"], ids)], bags):
                    bags(features).values().sum().backward()
                    session.push(ids.numel())
                if rank == 1 and not died.exists():
                    died.touch()
                    os._exit(1)


def test_workers_of_ray_train_read_a_dataset_and_one_dies(nodes: Nodes, tmp_path: Path) -> None:
    """Every row is trained on once, by whichever worker: each has exactly one step."""
    try:
        import ray.train.torch
    except ImportError as error:  # of what Ray Train needs besides, too
        pytest.skip(f"no Ray Train: {error}")
    pytest.importorskip("pandas", reason="ray.data needs pandas")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    rows = Rows(ray.data.range(EXAMPLES, override_num_blocks=7))
    assert len(rows) == EXAMPLES
    config = {"died": str(tmp_path / "died"), "rows": rows}
    with Cluster(shards=3, code="2+1", spares=0, name="third", start_timeout_s=DEADLINE_S) as cluster:
        TorchTrainer(
            train_leased,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0, "worker": 1}),
            run_config=RunConfig(storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=2)),
        ).fit()
        assert (tmp_path / "died").exists()
        (data,) = cluster.state().datasets
        assert data.trained == EXAMPLES and data.deaths >= 1
        assert scrub(cluster.scheduler, DEADLINE_S, curve_dir=cluster.curve_dir).ok is True


def test_rows_of_a_dataset_are_read_by_their_numbers(nodes: Nodes) -> None:
    pytest.importorskip("pandas", reason="ray.data needs pandas")
    rows = Rows(ray.data.range(100, override_num_blocks=7))
    for first, last, batch in ((0, 100, 9), (13, 14, 5), (95, 100, 100), (40, 40, 3)):
        read = [id for each in rows.read(first, last, batch) for id in each["id"].tolist()]
        assert read == list(range(first, last))
    with pytest.raises(ConfigurationError, match="rows 99 to 101, 5 at a time: the dataset has 100 rows"):
        next(rows.read(99, 101, 5))


def test_ecrec_train_on_ray_survives_the_loss_of_a_node(nodes: Nodes, trainer: Any, monkeypatch: Any) -> None:
    """The Criteo sample; a server's node is lost in the middle, another comes. All as in a run without it."""
    if not DATA.exists():
        pytest.skip(f"no Criteo rows at {DATA} (see ECREC_CRITEO)")
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    options = ("--data", str(DATA), "--shards", "3", "--code", "2+1", "--epochs", "4", "--dim", "16")
    calm = trainer.run(*options, timeout_s=300)
    assert calm.code == 0, calm.story
    run = trainer.start(*options, "--on", "ray", "--spares", "1", "--kill", "ps:0@500")
    words(run[0], "step 1 ", timeout_s=120)
    names = {each["name"]: each for each in ray.util.list_named_actors(all_namespaces=True)}
    name = next(name for name in names if name.endswith(".ps.1"))
    victim = ray.get(ray.get_actor(name, namespace="ecrec").standing.remote())
    nodes.remove(victim.node)
    nodes.nodes.append(nodes.add())
    finished = trainer.finish(*run, timeout_s=300)
    report = check_exact(finished, calm.report)
    assert len(report["kills"]) == 1
    assert not [each for each in ray.util.list_named_actors(all_namespaces=True) if "train-" in each["name"]]


def plan_of(*modes: str) -> Plan:
    """One experiment of these modes with a kill at a step, on as many servers as there are nodes."""
    plan = load()
    few = {"ec21": plan.modes["ec21"]}
    for name, mode in plan.modes.items():
        few.setdefault(name, msgspec.structs.replace(mode, shards=3, code="2+0") if mode.r == 0 else mode)
    experiment = {
        "about": "on Ray", "claims": ["C1"], "models": ["tiny"], "modes": list(modes), "steps": 400, "every": 0.5,
        "exact": True, "kills": {"once": {"at_steps": [200]}, "never": {}},
    }  # fmt: skip
    return msgspec.structs.replace(plan, modes=few, experiments={"ray": experiment})


def reproduced(plan: Plan, out: Path, one: Any = None) -> dict[str, Measured]:
    """What was measured of each run, by mode and kills."""
    data = str(DATA) if DATA.exists() else None
    outcome = Runner(plan, "smoke", "C1", out, data, lambda text: None, one, on="ray").run()
    assert outcome.failed == [] and outcome.skipped == [], (outcome.failed, outcome.skipped)
    records = [read(path) for path in sorted((out / "smoke" / "raw").glob("*.jsonl"))]
    assert all(record.machine["engine"].startswith("Ray, nodes of 1 CPUs") for record in records)
    return {f"{record.run.mode_name} {record.run.kills_name}": measure(record) for record in records}


def test_ecrec_reproduce_on_ray_measures_a_death_and_survives_the_loss_of_a_node(
    nodes: Nodes, tmp_path: Path, monkeypatch: Any
) -> None:
    """A server is killed by the plan, and in the run without such a kill a node is lost: the same model comes out."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    lost: list[str] = []

    def one(command: list[str], limit_s: float) -> tuple[int, str]:
        words = dict(itertools.pairwise(command))
        run = msgspec.json.decode(Path(words["--run"]).read_bytes(), type=Run)
        if run.kills_name == "once":
            return run_command(command, limit_s)
        partial = Path(words["--raw"].removesuffix(".jsonl") + ".jsonl.partial")
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(run_command, command, limit_s)
            until(lambda: done.done() or (partial.exists() and '"second"' in partial.read_text()))
            assert not done.done(), done.result()
            lost.append(node_of_a_server("train-"))
            nodes.remove(lost[0])
            nodes.nodes.append(nodes.add())
            return done.result()

    found = reproduced(plan_of("ec21"), tmp_path / "out", one)
    killed, calm = found["ec21 once"], found["ec21 never"]
    (failure,) = killed.failures
    assert failure.first_row_s is not None and failure.whole_s is not None and killed.cpu_ms is None
    assert lost and calm.failures == [], "nobody was killed by the plan"
    assert [event for event in calm.record.events if event["event"] == "down"], "and a server died all the same"
    for each in (killed, calm):
        end = each.record.end
        assert (end["lost_updates"], end["parity_ok"], each.lost_examples) == (0, True, 0)
    assert killed.record.end["model_digest"] == calm.record.end["model_digest"]
    assert not [each for each in ray.util.list_named_actors(all_namespaces=True) if "train-" in each["name"]]


def node_of_a_server(prefix: str) -> str:
    """The node of the server that has place 1 of the cluster whose name begins so."""
    names = {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)}
    name = next(name for name in names if name.startswith(prefix) and name.endswith(".scheduler.0"))
    cluster = Cluster.attach(name.removesuffix(".scheduler.0"))
    endpoint = cluster.state().shards[1].endpoint
    return next(standing.node for standing in cluster.servers() if standing.endpoint == endpoint)


def test_ecrec_reproduce_on_ray_goes_back_to_a_checkpoint(nodes: Nodes, tmp_path: Path, monkeypatch: Any) -> None:
    """Workers on other nodes are held, checkpoints are where all see them, and a new cluster goes on."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    found = reproduced(plan_of("copy-cold"), tmp_path / "out")
    killed, calm = found["copy-cold once"], found["copy-cold never"]
    assert len(killed.record.of("goes back")) == 1 and killed.failures[0].load_bytes > 0
    assert killed.record.end["model_digest"] == calm.record.end["model_digest"]


def test_schedulers_stand_by_for_each_other_through_a_zookeeper(nodes: Nodes, calm: Any, tmp_path: Path) -> None:
    """The one that leads dies, then the node of a server: the other one leads by then."""
    if why := why_no_zookeeper():
        pytest.skip(why)
    server = ZooKeeper(tmp_path)
    server.start()
    coordinator = f"zk://127.0.0.1:{server.port}/ecrec"
    try:
        with Cluster(
            shards=3, code="2+1", spares=1, coordinator=coordinator, schedulers=2, start_timeout_s=DEADLINE_S,
            scheduler_options=("--coordinator-timeout-ms", "2000"),
        ) as cluster:  # fmt: skip
            term, leader = leader_of(coordinator)

            def at_step(step: int) -> None:
                if step == REMOVED_AT:
                    (leads,) = (each for each in cluster.schedulers() if each.endpoint == leader)
                    cluster.kill_actor(leads.name)
                    until(lambda: leader_of(coordinator)[0] > term)
                elif step == ADDED_AT:
                    endpoint = cluster.state().shards[1].endpoint
                    nodes.remove(next(each.node for each in cluster.servers() if each.endpoint == endpoint))
                    nodes.nodes.append(nodes.add())

            with cluster.connect() as session:
                assert train(session, STEPS, at_step) == calm
                session.flush()
            state = cluster.wait_whole()
            assert [shard.epoch for shard in state.shards] == [1, 2, 1]
            assert leader_of(coordinator)[1] != leader
            assert scrub(cluster.scheduler, DEADLINE_S, curve_dir=cluster.curve_dir).ok is True
    finally:
        server.kill()


def test_what_cannot_be_placed_is_said(nodes: Nodes) -> None:
    with pytest.raises(ClusterError, match=r"8 servers .5 shards, 3 spares. on 8 different nodes .* it has \d nodes"):
        Cluster(shards=5, spares=3, start_timeout_s=1.0).start()
    assert not [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "ps" in actor["name"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shards": 3, "code": "4+1"}, "a stripe needs k"),
        ({"spares": -1}, "spares -1"),
        ({"state": "relative"}, "absolute path"),
        ({"state": "/x", "coordinator": "zk://a:1/b"}, "give one of them"),
        ({"curve_dir": "/x", "allow_plain_network": True}, "give one of them"),
        ({"on_data_loss": "pray"}, "on_data_loss"),
    ],
)
def test_what_cannot_work_is_refused_before_ray_is_asked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Cluster(**options)
