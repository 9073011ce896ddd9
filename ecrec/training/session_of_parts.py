"""What the parts of a model want of their session, and what the session tells of itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ecrec.errors import ConfigurationError, RefusedError
from ecrec.protocol.client_changes import ChangedAt
from ecrec.protocol.messages import WORKER
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.configs import NOT_POOLED
from ecrec.training.connection import PUMP_MS, Connection, locked
from ecrec.training.evaluation import Evaluation, refuse
from ecrec.training.owners import Owners
from ecrec.training.parts import Fetch, GradientOwner, Part, Share
from ecrec.training.pulls import Asked, RecordsAsked
from ecrec.training.rates import ShardOptimizer
from ecrec.training.replicated import ReplicatedModule
from ecrec.training.steps import Steps


class SessionOfParts:
    """Tables are made, rows are fetched and values written over it; `Session` is what a script sees."""

    def __init__(
        self, connection: Connection, steps: Steps, owners: Owners, code: CodeSpec | None, exact: bool
    ) -> None:
        self.machine = connection.machine
        self.read_only = self.machine.role != WORKER
        """It pulls, and changes nothing."""
        self.code = code
        self.exact = exact
        self.pid, self.lock = connection.pid, connection.lock
        self._connection, self._steps, self._owners = connection, steps, owners
        self._tables: dict[int, TableSpec] = {}
        """Those of its parts: index -> spec."""
        self._evaluation: Evaluation | None = None
        """The one that goes on."""
        self._optimizer: ShardOptimizer | None = None
        """Whose learning rates go with each push."""

    @property
    def closed(self) -> bool:
        """It was closed, or its connection was given up."""
        return self._connection.closed

    @property
    def rank(self) -> int:
        """Which of the `world_size` workers it is, from 0."""
        return self._steps.rank

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self._steps.world_size

    @property
    def sync(self) -> bool:
        """Every push is summed with those of all other workers."""
        return self._steps.sync

    @property
    def nonfinite(self) -> str:
        """What `push` does with a gradient that is not finite: ``"error"`` or ``"zero"``."""
        return self._steps.nonfinite

    @property
    def shards(self) -> int:
        """Number of shards of all coding groups."""
        return self.machine.shards

    @property
    def first_rows(self) -> dict[tuple[int, int], float]:
        """(shard, epoch) -> seconds of the monotonic clock at which that incarnation first answered a pull."""
        return {life: at_ms / 1e3 for life, at_ms in self.machine.first_rows.items()}

    # ------------------------------------------------------------------ waiting
    def pump(self, timeout_ms: float = 0.0) -> None:
        """Handle what arrived; call it now and then in a long computation, so that deaths are noticed in it.

        Raises ClusterError, or one of its kinds, when the worker cannot go on: every later call raises the same.
        RefusedError where that is because workers of a run pushed what contradicts each other.
        """
        self._connection.pump(timeout_ms)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Pump until ``done()``. Raises ClusterError with advice after ``wait_timeout_ms``, and what `pump` raises."""
        self._connection.wait(done, what)

    @property
    def wait_timeout_ms(self) -> float | None:
        """The longest wait; None: no limit."""
        return self._connection.wait_timeout_ms

    @wait_timeout_ms.setter
    def wait_timeout_ms(self, limit_ms: float | None) -> None:
        self._connection.wait_timeout_ms = limit_ms

    # ------------------------------------------------------------------ tables and parts
    def default_code(self) -> CodeSpec:
        """The session's code; without one, (n - 1) + 1 on n shards and no fault tolerance on a single one."""
        if self.code is not None:
            return self.code
        n = self.machine.n
        return CodeSpec(n - 1, 1) if n > 1 else CodeSpec(1, 0)

    @locked
    def create_tables(self, specs: Sequence[TableSpec]) -> list[int]:
        """Their indices, once every running shard has them. Tables that are there and equal are taken.

        Raises RefusedError for those that do not fit the cluster or differ from the one of that name; the others are
        made, and the session goes on. A session that only reads makes none: it raises ConfigurationError for a table
        that is not there, or has other rows or another dim.
        """
        machine = self.machine
        names = [spec.name for spec in specs]
        self._check_not_evaluating(f"making tables {', '.join(names)}")
        if self._optimizer is not None:
            raise ConfigurationError(
                f"tables {', '.join(names)}: session.optimizer does not have them; make all parts before it"
            )
        if self.read_only:
            self._check_tables(specs)
            specs = [machine.tables[name][1] for name in names]
        for spec in specs:
            self._connection.perform(machine.create_table(spec))
        self.wait(lambda: not any(map(machine.creating, names)), f"tables {', '.join(names)}")
        refused = [machine.table_refusals[name] for name in dict.fromkeys(names) if name in machine.table_refusals]
        if refused:
            raise RefusedError("; ".join(refused))
        self._tables |= {machine.tables[name][0]: machine.tables[name][1] for name in names}
        return [machine.tables[name][0] for name in names]

    def _check_tables(self, specs: Sequence[TableSpec]) -> None:
        """They are on the cluster, and a row of them is what the caller takes it for."""
        known = self.machine.tables
        for spec in specs:
            if spec.name not in known:
                names = ", ".join(sorted(known)) or "none"
                raise ConfigurationError(
                    f"this session only reads, and there is no table {spec.name!r} on the cluster; there are: {names}"
                )
            there = known[spec.name][1]
            if (there.rows, there.dim) != (spec.rows, spec.dim):
                raise ConfigurationError(
                    f"table {spec.name!r} has {there.rows} rows of {there.dim} weights on the cluster, not {spec.rows} "
                    f"of {spec.dim}"
                )
            poolings = spec.pooling, there.pooling
            if poolings[0] != poolings[1] and not {"", NOT_POOLED} & set(poolings):  # rows alone may be looked at
                raise ConfigurationError(
                    f"table {spec.name!r} was trained with pooling {there.pooling} on the cluster, not {spec.pooling}"
                )

    def check_claim(self, names: Sequence[str]) -> None:
        """Raise ConfigurationError if one of these is a living part's: it would be stepped twice, or overwritten."""
        self._owners.check_claim(names)

    def claim(self, names: Sequence[str], owner: object) -> None:
        """These tables are this part's, as long as it lives."""
        self._owners.claim(names, owner)

    def release(self, part: Part) -> None:
        """It is no part any more, though somebody may hold it, as the traceback of an error does."""
        self._owners.release(part)

    def register(self, part: Part, keep: bool = True) -> None:
        """From now on `push` takes this part's gradients too; without ``keep`` as long as somebody else holds it."""
        self._owners.register(part, keep)

    @property
    def parts(self) -> list[Part]:
        """Those that live, in the order in which they were made."""
        return self._owners.parts

    # ------------------------------------------------------------------ rows, gradients and values
    @locked
    def fetch(self, *fetches: Fetch, exact: bool | None = None) -> None:
        """Pull now, and wait for it."""
        if self._evaluation is not None:
            exact = True
            if self._evaluation.source is not None:
                self._evaluation.source.answer(Asked(fetches))
                return
        self._steps.take(self._steps.ask(fetches, self.exact if exact is None else exact))

    @locked
    def gradient_of(self, index: int) -> Any:
        """Of `ShardOptimizer`: the gradients of a table since the last push, as one flat tensor; None without any.

        Raises ConfigurationError with ``sync`` on several workers, and what `push` raises of gradients.
        """
        self._check_writes("looking at gradients")
        if self.sync and self.world_size > 1:
            raise ConfigurationError(
                "session.optimizer with sync=True: the servers sum the gradients of all workers, and those of one "
                "worker say nothing of the sum. A GradScaler would skip the step of one worker alone: scale no loss "
                "(bfloat16 needs none). max_gradient of an optimizer clips the sum by value"
            )
        owner = self._owners.of(self._tables[index].name)
        if not isinstance(owner, GradientOwner):
            return None
        owner.check_gradients()
        return owner.gradient_of(index)

    @locked
    def assign(self, shares: Mapping[int, Share]) -> None:
        """Write these weights, and wait until they are durable; what an optimizer keeps beside them stays."""
        self._check_writes("assign")
        if self.rank > 0:
            raise ConfigurationError(
                f"worker {self.rank} of {self.world_size} would write weights (load_state_dict, assign) that others "
                "write too, and may undo what was pushed meanwhile: worker 0 alone does it (if session.rank == 0), and "
                "all wait for it in session.barrier()"
            )
        self._steps.assign(
            shares, lambda part, written: not isinstance(part, ReplicatedModule) or part.index in written
        )

    def initialise(self, name: str, chunks: Callable[[], Sequence[Mapping[int, Share]]]) -> None:
        """Wait until a table has its first values: rank 0 writes these, each chunk in a push, unless somebody ever has.

        Safe against deaths: a worker that dies before all is durable has written nothing that counts, and when it has
        been started again it writes all of it. Raises ClusterError with advice after the timeout.
        """
        if not self.read_only:
            self._steps.initialise(name, chunks)

    def pull_records(self, shares: Mapping[int, Share]) -> RecordsAsked:
        """Ask for whole records (weights and optimizer state); ``.take()`` waits for the answers."""
        steps = self._steps
        return RecordsAsked(shares, lambda fetch: partial(steps.take, steps.ask([fetch], True, records=True)))

    @locked
    def ask_changes(
        self, shard: int, reader: int, epoch: int, since: int, until: int, place: tuple[int, int, int]
    ) -> None:
        """Of `Changes`: ask one server for the next rows."""
        self._connection.perform(self.machine.ask_changes(shard, reader, epoch, since, until, place))

    @locked
    def take_changes(self, wait: bool) -> dict[int, ChangedAt]:
        """Of `Changes`: what servers have answered; with ``wait``, of at least one."""
        answers = self.machine.changes.answers
        if wait:
            self.wait(lambda: bool(answers), "what changed")
        else:
            self.pump(PUMP_MS)
        found = dict(answers)
        answers.clear()
        return found

    def _check_writes(self, what: str) -> None:
        if self.read_only:
            raise ConfigurationError(f"{what}: this session only reads (read_only=True)")
        self._check_not_evaluating(what)

    def _check_not_evaluating(self, what: str) -> None:
        if self._evaluation is not None:
            refuse(what)
