"""Sessions: steps, prefetch, several workers, deaths; training against plain torch."""

import copy
import time
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ClusterError, ConfigurationError, DataLostError, EcrecError, GradientError  # noqa: E402
from ecrec.protocol.client import ClientMachine  # noqa: E402
from ecrec.protocol.config import ProtocolConfig  # noqa: E402
from ecrec.protocol.events import Received  # noqa: E402
from ecrec.protocol.messages import SCHEDULER, WRITE, Address, Suspected  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    Adagrad,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    RowWiseAdagrad,
    Session,
)
from ecrec.training.digest import model_digest  # noqa: E402

KEYS = ["a", "b"]
ROWS = {"a": 30, "b": 7}
DIM = 4
STEPS = 8
BATCH = 12


def batches(steps: int = STEPS, seed: int = 0) -> list[tuple[KeyedJaggedTensor, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(steps):
        ids = np.stack([rng.integers(0, ROWS[key], BATCH) for key in KEYS])
        labels = (ids.sum(axis=0) % 2).astype(np.float32)
        out.append((KeyedJaggedTensor.from_ids(KEYS, torch.from_numpy(ids)), torch.from_numpy(labels)))
    return out


def tower(seed: int = 5) -> nn.Module:
    """A small model; its first values depend on the seed alone, also when threads make some at the same time."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(2 * DIM, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.4, 0.4, generator=generator)
    return module


def tables(session: Session, optimizer: Any = None) -> EmbeddingBagCollection:
    configs = [EmbeddingBagConfig(ROWS[key], DIM, f"t{key}", feature_names=[key]) for key in KEYS]
    return EmbeddingBagCollection(session, configs, optimizer or SGD(lr=0.5), seed=9)


def train(
    session: Session,
    data: list[tuple[KeyedJaggedTensor, torch.Tensor]],
    depth: int = 1,
    sparse_optimizer: Any = None,
    dense_optimizer: Any = None,
    at_step: Any = None,
    rows: slice = slice(None),
) -> tuple[EmbeddingBagCollection, Any, list[float]]:
    """Train on the given rows of each batch; the loss is the mean over the whole batch."""
    sparse = tables(session, sparse_optimizer)
    module = tower()
    dense = session.replicate(module, dense_optimizer or SGD(lr=0.5))
    losses = []
    mine = [(KeyedJaggedTensor.from_ids(KEYS, k.values().view(2, -1)[:, rows].contiguous()), y[rows]) for k, y in data]
    steps = session.prefetch(mine, sparse, dense, features=lambda batch: batch[0], depth=depth)
    for step, (features, labels) in enumerate(steps):
        logits = module(sparse(features).values()).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / BATCH
        loss.backward()
        session.push(len(labels))
        losses.append(loss.item())
        if at_step is not None:
            at_step(step)
    session.flush()
    dense.pull()
    return sparse, dense, losses


class PlainRowWise(torch.optim.Optimizer):
    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.setdefault(p, {"sum": torch.zeros(len(p))})
                state["sum"] += (p.grad**2).mean(dim=1)
                touched = p.grad.abs().sum(dim=1) > 0
                scale = state["sum"].sqrt() + 1e-8
                p[touched] -= group["lr"] * p.grad[touched] / scale[touched, None]


def all_rows(sparse: EmbeddingBagCollection) -> list[torch.Tensor]:
    out = []
    for i, key in enumerate(KEYS):
        lengths = torch.tensor([int(k == key) for k in KEYS for _ in range(ROWS[key])])
        with torch.no_grad():
            pooled = sparse(KeyedJaggedTensor.from_lengths_sync(KEYS, torch.arange(ROWS[key]), lengths)).values()
        out.append(pooled[:, i * DIM : (i + 1) * DIM].clone())
    return out


OPTIMIZERS = [
    (SGD(lr=0.5), lambda p: torch.optim.SGD(p, lr=0.5)),
    (Adagrad(lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    (RowWiseAdagrad(lr=0.1), lambda p: PlainRowWise(p, lr=0.1)),
]


@pytest.mark.parametrize("optimizer", range(3))
def test_training_equals_plain_torch(optimizer: int) -> None:
    ours, theirs = OPTIMIZERS[optimizer]
    dense_ours, dense_theirs = OPTIMIZERS[min(optimizer, 1)]
    session = InProcessCluster(3).session(code="2+1")
    first = all_rows(tables(session, ours))
    sparse, dense, losses = train(session, batches(), 0, ours, dense_ours)

    bags = [nn.EmbeddingBag.from_pretrained(w.clone(), freeze=False, mode="sum") for w in first]
    plain = tower()
    steppers = [theirs([b.weight for b in bags]), dense_theirs(list(plain.parameters()))]
    for (features, labels), ours_loss in zip(batches(), losses, strict=True):
        ids = features.values().view(2, -1, 1)
        logits = plain(torch.cat([bag(i) for bag, i in zip(bags, ids, strict=True)], dim=1)).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        for stepper in steppers:
            stepper.zero_grad()
        loss.backward()
        for stepper in steppers:
            stepper.step()
        assert loss.item() == pytest.approx(ours_loss, rel=1e-4)
    for got, bag in zip(all_rows(sparse), bags, strict=True):
        torch.testing.assert_close(got, bag.weight.detach(), rtol=1e-4, atol=1e-6)
    for got, expected in zip(dense.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_batch_sees_the_pushes_up_to_the_prefetch_depth_before_it() -> None:
    """With depth d, batch t is computed with the weights after push t - 1 - d; d = 0 is plain training."""
    for depth in (0, 1, 2):
        session = InProcessCluster(3).session(code="2+1")
        module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(module.weight)
        dense = session.replicate(module, SGD(lr=1.0))
        seen = []
        for _ in session.prefetch(range(6), dense, depth=depth):
            seen.append(module.weight.item())
            module(torch.ones(1, 1)).sum().backward()
            session.push()
        assert seen == [1.0 - max(0, t - depth) for t in range(6)]


def digest_of(kill: dict[int, list[int]], n: int = 5, code: str = "3+2", depth: int = 1) -> str:
    cluster = InProcessCluster(n)

    def at_step(step: int) -> None:
        for shard in kill.get(step, []):
            cluster.kill(shard)

    with cluster.session(code=code) as session:
        sparse, dense, _ = train(session, batches(), depth, RowWiseAdagrad(lr=0.1), Adagrad(lr=0.1), at_step)
        return model_digest(session, [*sparse.specs, dense.spec])


def test_one_worker_ends_with_the_same_digest_whoever_dies() -> None:
    calm = digest_of({})
    assert digest_of({}) == calm
    assert digest_of({2: [1]}) == calm
    assert digest_of({3: [0, 4]}) == calm
    assert digest_of({0: [2], 3: [2], 6: [2]}) == calm


def test_many_coding_groups_hold_the_same_model_as_one_whoever_dies_in_each() -> None:
    digests = []
    for n, groups in ((3, 1), (3, 2), (4, 9)):
        cluster = InProcessCluster(n, groups)

        def at_step(step: int, cluster: InProcessCluster = cluster, n: int = n, groups: int = groups) -> None:
            if step == 3:
                for group in range(groups):
                    cluster.kill(group * n + group % n)

        with cluster.session(code="2+1") as session:
            sparse, dense, _ = train(session, batches(), at_step=at_step)
            assert session.shards == n * groups
            digests.append(model_digest(session, [*sparse.specs, dense.spec]))
    assert digests[0] == digests[1] == digests[2]


def run_two(sync: bool, kill: dict[int, int] | None = None) -> tuple[str, list[torch.Tensor], Session]:
    cluster = InProcessCluster(3)

    def worker(rank: int) -> Any:
        session = cluster.session(code="2+1", rank=rank, world_size=2, sync=sync)

        def at_step(step: int) -> None:
            if rank == 0 and step in (kill or {}):
                session.wait(cluster.whole, "the last death to be repaired: the code tolerates one")
                cluster.kill((kill or {})[step])

        half = slice(0, BATCH // 2) if rank == 0 else slice(BATCH // 2, BATCH)
        sparse, dense, _ = train(session, batches(), 1, at_step=at_step, rows=half)
        session.barrier()
        if rank == 1:
            session.close()
            return None
        return model_digest(session, [*sparse.specs, dense.spec]), all_rows(sparse), session

    return in_threads([lambda: worker(0), lambda: worker(1)])[0]


def test_two_workers_in_sync_are_one_worker_with_both_halves() -> None:
    digest, rows, _ = run_two(sync=True)
    alone = InProcessCluster(3).session(code="2+1")
    sparse, _, _ = train(alone, batches())
    for got, expected in zip(rows, all_rows(sparse), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert run_two(sync=True, kill={3: 1})[0] == digest


def test_two_free_workers_lose_no_push() -> None:
    _, rows, session = run_two(sync=False, kill={2: 0, 5: 2})
    assert all(torch.isfinite(table).all() for table in rows)
    assert session.machine.acked == session.machine.pushed == dict.fromkeys(range(3), STEPS + 2)


def test_other_ranks_begin_with_the_values_of_rank_0() -> None:
    cluster = InProcessCluster(3)

    def worker(rank: int) -> list[torch.Tensor]:
        session = cluster.session(rank=rank, world_size=2)
        module = tower(seed=rank)
        session.replicate(module, SGD(lr=1.0))
        return [p.detach().clone() for p in module.parameters()]

    first, second = in_threads([lambda: worker(0), lambda: worker(1)])
    for a, b, expected in zip(first, second, tower(seed=0).parameters(), strict=True):
        assert torch.equal(a, expected) and torch.equal(b, expected)


def test_a_restarted_worker_goes_on_with_the_values_of_the_shards() -> None:
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        _, dense, _ = train(session, batches())
        trained = [p.detach().clone() for p in dense.module.parameters()]
    again = cluster.session()
    module = tower(seed=77)
    again.replicate(module, SGD(lr=0.5))
    for got, expected in zip(module.parameters(), trained, strict=True):
        assert torch.equal(got, expected)
    tables(again)
    again.push()
    assert set(again.machine.pushed.values()) == {STEPS + 2}


def test_a_second_module_on_a_used_cluster_gets_its_values() -> None:
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        train(session, batches(2))
    again = cluster.session()
    module = tower(seed=5)
    dense = again.replicate(module, SGD(lr=0.5), name="second")
    dense.pull()
    for got, expected in zip(module.parameters(), tower(seed=5).parameters(), strict=True):
        assert torch.equal(got, expected)


def test_a_worker_that_dies_while_it_writes_the_first_values_is_followed_by_one_that_writes_all() -> None:
    cluster = InProcessCluster(3)
    dies = cluster.session()
    spec = InProcessCluster(3).session().replicate(tower(), SGD(lr=0.5)).spec
    (index,) = dies.create_tables([spec])
    dies._connection.perform(dies.machine.initialise(index, claim=True))
    dies.wait(lambda: dies.machine.initial(index) == WRITE, "the claim")
    dies.abandon()
    again = cluster.session()
    module = tower(seed=5)
    again.replicate(module, SGD(lr=0.5))
    for got, expected in zip(module.parameters(), tower(seed=5).parameters(), strict=True):
        assert torch.equal(got, expected)


def fails(weights: torch.Tensor) -> None:
    raise OSError("no file of first weights")


def test_workers_that_wait_for_first_values_are_told_that_worker_0_cannot_make_them() -> None:
    cluster = InProcessCluster(3)
    session = cluster.session(code="2+1", rank=1, world_size=2)
    config = EmbeddingBagConfig(20, 4, "items", init_fn=fails)

    def work(rank: int) -> str:
        mine = session if rank else cluster.session(code="2+1", rank=0, world_size=2)
        try:
            EmbeddingBagCollection(mine, [config], SGD(lr=1.0))
        except EcrecError as error:
            return f"{type(error).__name__}: {error}"
        return "made"

    writer, other = in_threads([lambda: work(0), lambda: work(1)])
    assert writer == "ConfigurationError: table items: its init_fn failed: no file of first weights"
    assert other.startswith("RefusedError: first values of table 'items': ")
    assert "worker 0 could not make them: " in other and "no file of first weights" in other
    assert other.endswith("Start that worker again, and this one")


def test_one_that_waits_for_first_values_says_for_whom() -> None:
    session = InProcessCluster(3).session(code="2+1", rank=1, world_size=2)
    session.wait_timeout_ms = 500.0
    words = r"first values of table 'items', which worker 0 writes: no shard is missing; has worker 0 been started"
    with pytest.raises(ClusterError, match=words):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(20, 4, "items", init_fn=fails)], SGD(lr=1.0))


def test_runs_in_sync_of_different_sizes_follow_each_other() -> None:
    """One worker, then two, then three, then two: their watermarks are all different."""
    cluster = InProcessCluster(3)

    def worker(rank: int, size: int) -> None:
        with cluster.session(code="2+1", rank=rank, world_size=size, sync=True) as session:
            sparse, dense = tables(session), session.replicate(tower(), Adagrad(lr=0.05))
            for features, _ in session.prefetch(batches(2), sparse, dense, features=lambda batch: batch[0]):
                dense.module(sparse(features).values()).sum().backward()
                session.push(1)

    for size in (1, 2, 3, 2):
        in_threads([lambda rank=rank, size=size: worker(rank, size) for rank in range(size)])


def test_a_worker_that_fails_ends_the_run_for_the_other_at_once() -> None:
    cluster = InProcessCluster(3)

    def worker(rank: int) -> None:
        with cluster.session(code="2+1", rank=rank, world_size=2, sync=True) as session:
            session.barrier()
            if rank == 1:
                raise ValueError("of the user's model")
            with pytest.raises(ClusterError, match=r"worker 1 \(epoch 1\) has left run 1"):
                session.barrier()

    with pytest.raises(ValueError, match="of the user's model"):
        in_threads([lambda: worker(0), lambda: worker(1)])


def test_gradients_that_were_set_to_none_are_taken_again() -> None:
    session = InProcessCluster(3).session()
    module = nn.Linear(2, 1)
    dense = session.replicate(module, SGD(lr=1.0))
    for _ in range(2):
        before = copy.deepcopy(module.weight.data)
        for parameter in module.parameters():
            parameter.grad = None
        module(torch.ones(1, 2)).sum().backward()
        session.push()
        dense.pull()
        torch.testing.assert_close(module.weight.data, before - 1.0)


def test_a_push_without_gradients_is_empty() -> None:
    session = InProcessCluster(3).session()
    module = nn.Linear(2, 1)
    dense = session.replicate(module, Adagrad(lr=1.0))
    before = module.weight.detach().clone()
    session.push()
    dense.pull()
    assert torch.equal(module.weight, before)


def test_what_cannot_be_replicated_is_refused() -> None:
    session = InProcessCluster(3).session()
    with pytest.raises(ConfigurationError, match="no parameters"):
        session.replicate(nn.ReLU(), SGD(lr=1.0))
    with pytest.raises(ConfigurationError, match="float64"):
        session.replicate(nn.Linear(2, 2).double(), SGD(lr=1.0))
    with pytest.raises(ConfigurationError, match="k = 1"):
        session.replicate(nn.Linear(2, 2), SGD(lr=1.0), code="2+1")
    with pytest.raises(ConfigurationError, match="state by row"):
        session.replicate(nn.Linear(2, 2), RowWiseAdagrad(lr=1.0))


class DeadNode:
    """A transport on which nothing ever comes."""

    def perform(self, effects: Any) -> None:
        pass

    def pump(self, timeout_ms: float) -> list[Any]:
        return []

    def scheduler_trouble(self) -> str:
        return "the cable is cut"

    def close(self) -> None:
        pass


def test_a_cluster_that_does_not_answer_is_an_error_with_advice() -> None:
    session = Session(ClientMachine(0, "p"), DeadNode(), wait_timeout_ms=0.0)
    with pytest.raises(ClusterError, match=r"scheduler has not answered \(the cable is cut\)"):
        session.start()


def test_a_session_that_gives_up_names_the_shard_that_nobody_may_replace() -> None:
    session = Session(machine := ClientMachine(0, "p"), DeadNode(), wait_timeout_ms=0.0)
    machine.groups = 1
    machine.handle(Received(Address(SCHEDULER, 0, 0), Suspected({2: "it confirms no view"})), 0.0)
    with pytest.raises(ClusterError, match="for rows: shard 2 is in the way: it confirms no view"):
        session.wait(lambda: False, "rows")


def test_a_wait_without_a_limit_says_who_is_missing_and_ends_with_the_scheduler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ecrec.training.connection.SAID_S", 0.0)
    session = Session(ClientMachine(0, "p"), DeadNode())
    looks = iter([False] * 200 + [True])
    session.wait(lambda: next(looks), "rows")
    assert "worker 0 waits for rows for 0 s: the scheduler has not answered" in caplog.text
    monkeypatch.setattr("ecrec.training.connection.SCHEDULER_TIMEOUT_S", 0.05)
    with pytest.raises(ClusterError, match="for rows: the scheduler has not answered"):
        session.wait(lambda: False, "rows")


def test_a_wait_does_not_end_while_the_scheduler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecrec.training.connection.SCHEDULER_TIMEOUT_S", 0.0)
    monkeypatch.setattr("ecrec.training.connection.SCHEDULER_AWAY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("ecrec.training.connection.WAITS_S", 0.0)
    cluster = InProcessCluster(3)
    session = cluster.session()
    session.wait_timeout_ms = None
    end = time.monotonic() + 1.0
    session.wait(lambda: time.monotonic() > end, "a second")
    session.wait_timeout_ms = 200.0
    with pytest.raises(ClusterError, match="for a second: no shard is missing"):
        session.wait(lambda: False, "a second")


def test_a_wait_ends_when_a_scheduler_that_has_answered_is_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than its host takes to start again, and than for one that has never answered."""
    monkeypatch.setattr("ecrec.training.connection.SCHEDULER_TIMEOUT_S", 0.0)
    session = InProcessCluster(3).session()
    session.wait_timeout_ms = None
    monkeypatch.setattr(type(session.machine), "scheduler_silent_ms", property(lambda machine: 1e6))
    monkeypatch.setattr("ecrec.training.connection.SCHEDULER_AWAY_TIMEOUT_S", 1e6)
    looks = iter([False] * 20 + [True])
    session.wait(lambda: next(looks), "rows")
    monkeypatch.setattr("ecrec.training.connection.SCHEDULER_AWAY_TIMEOUT_S", 0.05)
    with pytest.raises(ClusterError, match="for rows"):
        session.wait(lambda: False, "rows")


def test_bad_ranks_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="rank 2"):
        Session(ClientMachine(2, "p"), DeadNode(), rank=2, world_size=2)
    with pytest.raises(ConfigurationError, match="exact"):
        Session(ClientMachine(0, "p"), DeadNode(), sync=True, exact=False)


def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_pushed() -> None:
    session = InProcessCluster().session()
    sparse = tables(session)
    features, _ = batches(1)[0]
    row = int(features.values()[BATCH])  # the first id of the second feature
    for _ in session.prefetch([features], sparse):
        sparse(features).values()[0, DIM + 2].mul(float("nan")).backward()
        with pytest.raises(GradientError, match=rf"table 'tb', row {row}, column 2 is nan"):
            session.push()
    assert session.machine.pushed == dict.fromkeys(range(3), 0)


def test_gradients_that_are_not_finite_can_be_taken_as_zero() -> None:
    session = InProcessCluster().session(nonfinite="zero")
    sparse = tables(session)
    features, _ = batches(1)[0]
    before = model_digest(session, [spec for _, spec in session.machine.tables.values()])
    for _ in session.prefetch([features], sparse):
        sparse(features).values()[0, 1].mul(float("inf")).backward()
        session.push()
    assert session.figures.nonfinite_gradients == 1
    assert model_digest(session, [spec for _, spec in session.machine.tables.values()]) == before


def test_lost_data_is_an_error_that_names_the_rows() -> None:
    cluster = InProcessCluster(n=4)
    with pytest.raises(DataLostError, match=r"data lost: shards 0 \(down\), 1 \(down\).* a: \d+ of 30 rows \(every"):
        train_until_lost(cluster, dense_code="1+1")


def test_a_dense_part_lost_in_all_copies_stops_also_where_training_may_go_on() -> None:
    goes_on = ProtocolConfig(reinitialise_lost=True)
    with pytest.raises(DataLostError, match="rows of the replicated module dense were lost in all their copies"):
        train_until_lost(InProcessCluster(n=4, config=goes_on), dense_code="1+1")
    # with one more copy it does go on
    cluster = InProcessCluster(n=4, config=goes_on)
    train_until_lost(cluster, dense_code="1+2")
    assert cluster.scheduler.state.rows_reinitialised > 0


def train_until_lost(cluster: InProcessCluster, dense_code: str) -> None:
    """Two of four servers die in the middle; 2+1 tolerates one."""
    with cluster.session(code="2+1") as session:
        configs = [EmbeddingBagConfig(ROWS[name], DIM, name, feature_names=[name]) for name in KEYS]
        sparse = EmbeddingBagCollection(session, configs, optimizer=RowWiseAdagrad(lr=0.05), seed=3)
        model = tower()
        dense = session.replicate(model, SGD(lr=0.05), code=dense_code)
        for step, (features, labels) in enumerate(batches()):
            if step == 4:
                cluster.kill(0)
                cluster.kill(1)
            session.fetch(*(fetches := [part.plan(features) for part in (sparse, dense)]))
            for part, fetch in zip((sparse, dense), fetches, strict=True):
                part.offer(features, fetch)
            nn.functional.binary_cross_entropy_with_logits(
                model(sparse(features).values()).squeeze(1), labels
            ).backward()
            session.push(len(labels))


def test_what_a_script_reports_is_told_with_the_figures_of_its_session_until_it_is_reported_again() -> None:
    cluster = InProcessCluster()
    session = cluster.session()
    session.report(loss=torch.tensor(0.5), auc=0.75, mine=3)
    told = session.machine.figures
    assert (told["loss"], told["auc"], told["mine"], told["steps"]) == (0.5, 0.75, 3.0, 0)
    session.report(loss=float("nan"), auc=None)
    assert session.machine.figures.keys() & {"loss", "auc", "mine"} == {"mine"}
    for wrong, words in (
        ({"steps": 1.0}, "which the session counts itself"), ({"loss": "0.5"}, "is no number"),
        ({"loss": True}, "is no number"), ({"x" * 41: 1.0}, "at most 40 characters"),
        ({f"f{number}": 1.0 for number in range(17)}, "18 figures, expected at most 16"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=words):
            session.report(**wrong)
    assert session.machine.figures["mine"] == 3.0 and "f0" not in session.machine.figures
    sparse = tables(session)
    features, _ = batches(1)[0]
    for _ in session.prefetch([features], sparse):
        sparse(features).values().sum().backward()
        session.push()
    assert session.machine.figures["mine"] == 3.0 and session.machine.figures["steps"] == 1.0
