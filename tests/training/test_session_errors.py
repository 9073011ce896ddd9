"""What is left of a session after each error: the next call works, or names the same failure."""

from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import (  # noqa: E402
    ClusterError,
    ConfigurationError,
    DataLostError,
    FencedError,
    GradientError,
    PartialPushError,
    RefusedError,
)
from ecrec.protocol import messages as m  # noqa: E402
from ecrec.protocol.config import ProtocolConfig  # noqa: E402
from ecrec.protocol.events import Received  # noqa: E402
from ecrec.protocol.messages import SCHEDULER, SHARD, Address, Section  # noqa: E402
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Session,
)
from ecrec.training.parts import GivenGradients, Share  # noqa: E402

ROWS, DIM = 48, 4
SPEC = TableSpec("plain", 12, 2, CodeSpec(1, 1), OptimizerSpec("sgd", (1.0,)), "zeros")


def tables(session: Session, name: str = "emb") -> EmbeddingBagCollection:
    config = EmbeddingBagConfig(ROWS, DIM, name, feature_names=[name], init_scale=0.0)
    return EmbeddingBagCollection(session, [config], SGD(lr=1.0), code="2+1")


def features(ids: Any = range(ROWS), name: str = "emb") -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_ids([name], torch.tensor(list(ids))[None, :])


def step(session: Session, sparse: EmbeddingBagCollection, ids: Any = range(ROWS), factor: float = -1.0) -> None:
    """Weights of the rows grow by one."""
    (factor * sparse(features(ids)).values()).sum().backward()
    session.push(0)


def weights(sparse: EmbeddingBagCollection) -> np.ndarray:
    with torch.no_grad():
        return sparse(features()).values().numpy()


def goes_on(session: Session, sparse: EmbeddingBagCollection, steps: float = 0.0) -> None:
    """All rows have made so many steps, and make one more."""
    assert (weights(sparse) == steps).all()
    step(session, sparse)
    session.flush()
    assert (weights(sparse) == steps + 1).all()


# ------------------------------------------------------------------ tables
def test_after_a_refused_table_the_session_goes_on_and_the_name_may_be_tried_again() -> None:
    with InProcessCluster(3).session() as session:
        sparse = tables(session)
        huge = msgspec.structs.replace(SPEC, name="huge", rows=1 << 46)
        with pytest.raises(RefusedError, match=r"'huge'.*bytes of address space"):
            session.create_tables([huge, SPEC])
        with pytest.raises(RefusedError, match=r"'huge'.*a stripe needs k \+ r = 8"):
            session.create_tables([msgspec.structs.replace(huge, rows=12, code=CodeSpec(6, 2))])
        with pytest.raises(RefusedError, match=r"'emb' exists with other properties: rows is 48, not 50"):
            session.create_tables([msgspec.structs.replace(SPEC, name="emb", rows=50)])
        goes_on(session, sparse)
        assert session.create_tables([msgspec.structs.replace(huge, rows=12), SPEC]) == [2, 1]


@pytest.mark.parametrize("change", [{"rows": 1 << 70}, {"rows": 2.5}, {"name": "\ud800"}, {"dim": "4"}, {"code": None}])
def test_a_table_that_cannot_be_sent_is_refused_at_once(change: dict[str, Any]) -> None:
    with InProcessCluster(3).session() as session:
        sparse = tables(session)
        with pytest.raises(RefusedError, match="cannot be asked for"):
            session.create_tables([msgspec.structs.replace(SPEC, **change)])
        goes_on(session, sparse)


# ------------------------------------------------------------------ pushes and pulls
def test_a_push_that_one_shard_could_not_take_is_applied_nowhere_and_the_next_step_is() -> None:
    config = ProtocolConfig(frame_bytes_max=400)
    with InProcessCluster(3, config=config).session() as session:
        sparse = tables(session)
        before = session.figures.bytes_pushed
        # 26 rows of shard 0 do not fit, a row of each other one would.
        on_first = [row for row in range(ROWS) if (row // 2 + row % 2) % 3 == 0]
        with pytest.raises(RefusedError, match=r"table 'emb'.* shard 0: .* bytes .*, and 400 can be sent.*fewer rows"):
            (-sparse(features([*on_first * 2, 1, 3])).values()).sum().backward()
            index = session.machine.tables["emb"][0]
            rows = np.array(on_first * 2, np.int64)
            session.register(
                GivenGradients({0: Share(Section([index], [len(rows)]), rows, np.ones(len(rows) * DIM, "f4"))})
            )
            session.push()
        assert session.figures.steps == 0 and session.figures.bytes_pushed == before
        goes_on(session, sparse)


def test_a_part_that_gives_rows_of_another_shard_is_refused() -> None:
    with InProcessCluster(3).session() as session:
        sparse = tables(session)
        index = session.machine.tables["emb"][0]
        for rows, words in (([1], "row 1 of table 'emb' is not on shard 0"), ([99], "no row 99 of table 'emb'")):
            session.register(
                GivenGradients({0: Share(Section([index], [1]), np.array(rows), np.ones(DIM, np.float32))})
            )
            with pytest.raises(RefusedError, match=words):
                session.push()
        goes_on(session, sparse)


def test_after_a_gradient_that_is_not_finite_the_session_goes_on() -> None:
    with InProcessCluster(3).session() as session:
        sparse = tables(session)
        with pytest.raises(GradientError, match=r"table 'emb', row 0, column 0 is -inf.*nonfinite=\"zero\""):
            step(session, sparse, factor=-float("inf"))
        goes_on(session, sparse)


def test_a_pull_that_is_too_large_is_asked_of_no_shard() -> None:
    with InProcessCluster(3, config=ProtocolConfig(answer_bytes_max=100)).session() as session:
        sparse = tables(session)
        with pytest.raises(RefusedError, match=r"table 'emb'.* bytes, and 100 can be sent.*fewer rows"):
            weights(sparse)
        for ids in ([0, 1, 2], [3]):
            step(session, sparse, ids)
        session.flush()
        with torch.no_grad():
            assert (sparse(features([0, 1, 2, 3, 4])).values().numpy()[:, 0] == [1, 1, 1, 1, 0]).all()


def test_a_pull_that_a_shard_refuses_is_the_only_one_that_fails() -> None:
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        sparse = tables(session)
        batches = [features([0, 1]), features([2, 3]), features([4, 5])]
        steps = session.prefetch(batches, sparse, depth=2)
        ticket = session.machine._requests + 1
        cluster.channels["process-1", "worker-0-3"].append(
            Received(Address(SHARD, 1, session.machine.epoch_of(1)), m.PullRefused(ticket, "too many wait"))
        )
        with pytest.raises(RefusedError, match="refused a pull of rows of table 'emb': too many wait"):
            next(steps)
        goes_on(session, sparse)


def test_a_push_that_waited_too_long_has_its_gradients_still() -> None:
    cluster = InProcessCluster(3, config=ProtocolConfig(pushes_in_flight_max=1))
    with cluster.session(exact=False) as session:
        sparse = tables(session)
        step(session, sparse)
        can_push, session.wait_timeout_ms = type(session.machine).can_push, 50.0
        try:
            type(session.machine).can_push = property(lambda machine: False)
            with pytest.raises(ClusterError, match="room for a push"):
                step(session, sparse)
        finally:
            type(session.machine).can_push = can_push
        session.wait_timeout_ms = 20_000.0
        session.push()
        session.flush()
        goes_on(session, sparse, 2.0)


def test_a_push_of_which_a_shard_refused_its_part_ends_the_session_with_that_error() -> None:
    cluster = InProcessCluster(3)
    session = cluster.session()
    sparse = tables(session)
    step(session, sparse)
    cluster.channels["process-1", "worker-0-3"].append(
        Received(Address(SHARD, 1, session.machine.epoch_of(1)), m.PushRefused(1, "it does not fit"))
    )
    words = r"refused push 1: it does not fit; shards 0, 2 may have applied"
    for call in (
        session.flush, session.push, lambda: weights(sparse), lambda: session.create_tables([SPEC]), session.barrier,
        lambda: next(session.lease_splits("x", 10, split_examples=5)), session.pump, session.close,
    ):  # fmt: skip
        with pytest.raises(PartialPushError, match=words):
            call()
    with pytest.raises(ClusterError, match="closed"):
        session.push()


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (m.Fenced("another process"), FencedError, "another process"),
        (m.Views(0, [m.DataLost(10**6, "two are gone")]), DataLostError, "two are gone"),
    ],
)
def test_after_a_failure_every_call_names_it(message: m.Message, error: type[Exception], words: str) -> None:
    cluster = InProcessCluster(3)
    session = cluster.session()
    sparse = tables(session)
    step(session, sparse)
    session.flush()
    if isinstance(message, m.Views):
        message.views[0] = m.DataLost(session.machine._views[0] + 1, "two are gone")
        message = m.Views(0, message.views, session.machine.origin)
    cluster.channels["scheduler", "worker-0-3"].append(Received(Address(SCHEDULER, 0, 0), message))
    with pytest.raises(error, match=words):
        for _ in range(100):
            session.pump()
    for call in (
        session.flush, session.push, lambda: weights(sparse), lambda: session.create_tables([SPEC]), session.barrier,
        lambda: next(session.lease_splits("x", 10, split_examples=5)), session.pump, session.close,
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()


def test_a_closed_session_says_so() -> None:
    session = InProcessCluster(3).session()
    sparse = tables(session)
    session.close()
    session.close()
    for call in (
        session.flush, session.push, lambda: weights(sparse), lambda: session.create_tables([SPEC]), session.barrier,
        lambda: next(session.lease_splits("x", 10, split_examples=5)), session.pump,
    ):  # fmt: skip
        with pytest.raises(ClusterError, match="this session is closed"):
            call()


# ------------------------------------------------------------------ splits
def test_a_refused_split_leaves_the_session_and_its_other_data_sets_alone() -> None:
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        sparse = tables(session)
        for split in session.lease_splits("x", 10, split_examples=5):
            session.push(split.last - split.first)
        for _ in range(2):
            with pytest.raises(RefusedError, match=r"lease_splits\('x'\): .*exists as"):
                next(session.lease_splits("x", 10, split_examples=5, epochs=2))
        with pytest.raises(ConfigurationError, match="iterated over all of it"):
            session.lease_splits("x", 10, split_examples=5)
        assert next(session.lease_splits("y", 10, split_examples=5)) == (0, 0, 5)
        session.push(5)
        goes_on(session, sparse)


@pytest.mark.parametrize("examples", [1 << 70, 10.5])
def test_a_data_set_that_cannot_be_sent_is_refused_at_once(examples: Any) -> None:
    with InProcessCluster(3).session() as session:
        with pytest.raises(RefusedError, match="data set 'x' cannot be asked for"):
            next(session.lease_splits("x", examples, split_examples=5))
        assert next(session.lease_splits("x", 10, split_examples=5)) == (0, 0, 5)
        session.push(5)


def test_an_iteration_that_was_broken_off_is_gone_on_with_by_the_next_one() -> None:
    with InProcessCluster(3).session() as session:
        for _ in session.lease_splits("x", 10, split_examples=5):
            session.push(2)
            break
        with pytest.raises(ConfigurationError, match=r"lease_splits\('y'\): an iteration over 'x' .*was broken off"):
            next(session.lease_splits("y", 10, split_examples=5))
        seen = []
        for split in session.lease_splits("x", 10, split_examples=5):
            seen.append(split)
            session.push(split.last - split.first)
        assert seen == [(0, 2, 5), (0, 5, 10)]
        assert next(session.lease_splits("y", 10, split_examples=5)) == (0, 0, 5)
        session.push(5)


def test_an_iteration_that_somebody_still_holds_is_taken_over() -> None:
    """As after Ctrl-C in a notebook, whose traceback holds it."""
    with InProcessCluster(3).session() as session:
        held = session.lease_splits("x", 15, split_examples=5)
        assert next(held) == (0, 0, 5)
        session.push(2)
        again = session.lease_splits("x", 15, split_examples=5)
        assert next(again) == (0, 2, 5)
        with pytest.raises(ConfigurationError, match="a later call has gone on with these splits"):
            next(held)
        del held
        session.push(3)
        seen = []
        for split in again:
            seen.append(split)
            session.push(split.last - split.first)
        assert seen == [(0, 5, 10), (0, 10, 15)]


def test_a_worker_that_gets_no_split_of_a_data_set_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """A script that runs a second time on a living cluster trains nothing, and would end well without a word."""
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        for split in session.lease_splits("x", 10, split_examples=5):
            session.push(split.last - split.first)
        assert "were trained on before" not in caplog.text
    with cluster.session() as again:
        assert list(again.lease_splits("x", 10, split_examples=5)) == []
    assert "lease_splits('x'): all 10 examples were trained on before" in caplog.text


def test_a_split_that_was_asked_for_is_never_taken_for_one_of_another_data_set() -> None:
    with InProcessCluster(3).session() as session:
        for _ in session.lease_splits("x", 10, split_examples=5):
            session.push(5)
            break  # the next one is asked for
        with pytest.raises(ConfigurationError, match="broken off"):
            next(session.lease_splits("y", 1000, split_examples=500))
        assert next(session.lease_splits("x", 10, split_examples=5)) == (0, 5, 10)
        session.push(5)


# ------------------------------------------------------------------ runs and modules
def test_workers_whose_runs_differ_are_refused_and_can_meet_after_all() -> None:
    cluster = InProcessCluster(3)
    sessions = [cluster.session(rank=0, world_size=2), cluster.session(rank=1, world_size=3)]

    def barrier(session: Session) -> str:
        try:
            session.barrier()
        except RefusedError as error:
            session._steps.world_size = 2
            return str(error)
        return ""

    refusals = in_threads([lambda s=session: barrier(s) for session in sessions])  # type: ignore[misc]
    for refusal in refusals:
        assert "a run of" in refusal and "start all with one world_size" in refusal
    in_threads([session.barrier for session in sessions])
    in_threads([session.close for session in sessions])


def test_a_module_too_large_to_be_written_leaves_the_claim_to_others() -> None:
    """Whoever says that he writes first values and cannot is waited for by all others."""
    cluster = InProcessCluster(3, config=ProtocolConfig(frame_bytes_max=8000))
    with cluster.session() as session:
        sparse = tables(session)
        with pytest.raises(RefusedError, match=r"table 'large'.*bytes"):
            session.replicate(nn.Linear(100, 100), SGD(lr=1.0), name="large")
        assert not cluster.scheduler.state.initial.claims
        bad = nn.Linear(2, 2)
        with torch.no_grad():
            bad.weight[0, 0] = float("nan")
        with pytest.raises(GradientError, match="the weight of table 'bad', row 0, column 0 is nan"):
            session.replicate(bad, SGD(lr=1.0), name="bad")
        assert not cluster.scheduler.state.initial.claims
        goes_on(session, sparse)


def test_first_values_that_the_scheduler_refuses_are_an_error_that_names_the_table() -> None:
    cluster = InProcessCluster(3)
    with cluster.session() as session:
        sparse = tables(session)
        session.create_tables([InProcessCluster(3).session().replicate(nn.Linear(2, 2), SGD(lr=1.0)).spec])
        cluster.scheduler.state.initial.unsure.append(session.machine.tables["dense"][0])
        with pytest.raises(RefusedError, match=r"first values of table 'dense': .*under another name"):
            session.replicate(nn.Linear(2, 2), SGD(lr=1.0))
        session.replicate(nn.Linear(2, 2), SGD(lr=1.0), name="other")
        goes_on(session, sparse)


def test_a_call_that_ctrl_c_has_ended_leaves_no_module_behind() -> None:
    """Torch says of an exception that a call is over, and not of KeyboardInterrupt."""

    class Stop(torch.nn.Module):
        on = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.on:
                raise KeyboardInterrupt
            return x

    with InProcessCluster(3).session(code="2+1") as session:
        stop = Stop()
        model = torch.nn.Sequential(torch.nn.Linear(3, 1), stop)
        session.replicate(model, SGD(lr=0.1))
        x = torch.ones(2, 3)
        for interrupted in (True, False, True):
            model(x).sum().backward()
            session.push()
            stop.on = interrupted
            if interrupted:
                with pytest.raises(KeyboardInterrupt):
                    model(x)
            stop.on = False
            with torch.no_grad():
                found = model(x)
            state = model.state_dict()
            assert torch.equal(found, x @ state["0.weight"].T + state["0.bias"])
        model(x).sum().backward()
        session.push()
        assert session.figures.steps == 4
