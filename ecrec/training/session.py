"""A session: one worker's way to the shards.

Everything happens while the session waits or is pumped (`connection.py`). A step pulls the rows of all its *parts*
(embedding tables, replicated modules) in one request a shard, and pushes all their gradients in one push.

This file is long because it is what a script sees, with what each call raises. What it is made of is elsewhere: its end
(`life.py`), steps, splits, and what the parts of a model want of it (`session_of_parts.py`).
"""

import operator
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, SupportsFloat, TypeVar

from torch import nn

from ecrec.checkpoint.importing import Imported, import_weights
from ecrec.checkpoint.reading import open_checkpoint
from ecrec.checkpoint.restore import restore, restored_from
from ecrec.checkpoint.saving import SAVE_TIMEOUT_S, Increments, save_checkpoint
from ecrec.checkpoint.user_state import encode as encode_state
from ecrec.errors import ConfigurationError, EcrecError
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import Dataset
from ecrec.protocol.placement import CodeSpec
from ecrec.training import exits
from ecrec.training.buffers import CONSTANT
from ecrec.training.changes import Changes
from ecrec.training.connection import Connection, Figures, Node, locked
from ecrec.training.digest import model_digest
from ecrec.training.evaluated import check_evaluated, check_result
from ecrec.training.evaluation import AtCheckpoint, Evaluation
from ecrec.training.life import Life
from ecrec.training.observation import EVERY_S, TRACE_STEPS, WINDOW_EXAMPLES, Observation
from ecrec.training.optimizers import Optimizer
from ecrec.training.owners import Owners
from ecrec.training.parts import Part
from ecrec.training.prefetch import BatchT, check_batches, prefetch
from ecrec.training.rates import ShardOptimizer
from ecrec.training.replicated import ReplicatedModule
from ecrec.training.reported import Reported
from ecrec.training.session_of_parts import SessionOfParts
from ecrec.training.splits import Split, Splits
from ecrec.training.steps import Steps
from ecrec.training.user_state import convert, make
from ecrec.transport.curve import CurveKeys

ResultT = TypeVar("ResultT")

NONFINITE = ("error", "zero")

EXAMPLES_MAX = 1 << 48
"""Of a push."""


class Session(SessionOfParts):
    """A worker's connection to the cluster; a context manager that waits for its pushes at the end.

    One that `connect` made and nobody closes does so at the end of the interpreter, or when it is dropped
    (``exits.py``).

    ``code``: of tables that name none (``"4+1"``). ``rank`` of ``world_size`` workers. ``sync``: every push is summed
    with those that all other workers make, in order of rank, and applied as one. The first push waits until all
    ``world_size`` workers are there, which then form a run; it ends for all with the first of them that dies.
    ``exact``: a pull sees all pushes made before it and none later, so that a run is repeatable, bit for bit, whatever
    dies (with one worker, or with ``sync``); otherwise pulls and up to ``pushes_in_flight_max`` pushes run freely, and
    **two runs may differ**. Default: exact with one worker or sync. ``nonfinite``: what `push` does with a
    gradient that is infinite or not a number: ``"error"`` raises GradientError before anything is sent, ``"zero"`` sets
    it to zero and counts it in ``figures``. ``wait_timeout_ms``: whatever it waits for, it waits for at most this long,
    and then raises ClusterError. None: as long as the scheduler is there and does not say that data is lost. Every 10 s
    the log names who is missing, and since when.

    A session of a machine that is a tool is **read only** (`read_only`): it is no worker, and training goes on whatever
    it does. It takes the tables as they are on the cluster, and pulls; what would change something raises
    ConfigurationError.
    """

    def __init__(
        self,
        machine: ClientMachine,
        node: Node,
        *,
        code: CodeSpec | str | None = None,
        rank: int = 0,
        world_size: int = 1,
        sync: bool = False,
        exact: bool | None = None,
        nonfinite: str = "error",
        wait_timeout_ms: float | None = None,
    ) -> None:
        if not hasattr(rank, "__index__") or not hasattr(world_size, "__index__") or not 0 <= rank < world_size:
            raise ConfigurationError(
                f"rank {rank!r} of {world_size!r} workers: expected a whole number, 0 to workers - 1"
            )
        if sync and exact is False:
            raise ConfigurationError("sync=True needs exact pulls: the sum would otherwise meet different rows")
        if nonfinite not in NONFINITE:
            raise ConfigurationError(f"nonfinite {nonfinite!r}: expected {' or '.join(NONFINITE)}")
        self.figures = Figures()
        connection = Connection(
            machine,
            node,
            self.figures,
            rank=rank,
            sync_workers=world_size if sync else 1,
            wait_timeout_ms=wait_timeout_ms,
        )
        owners = Owners()
        steps = Steps(connection, owners, rank=rank, world_size=world_size, sync=sync, nonfinite=nonfinite)
        is_exact = (sync or world_size == 1) if exact is None else exact
        super().__init__(connection, steps, owners, None if code is None else CodeSpec.of(code), is_exact)
        self.knows_world_size = True
        """Somebody has said how many workers there are; else there may be more than `world_size`."""
        self.scheduler: tuple[str, CurveKeys | None] = ("", None)
        """Its endpoint, and the keys to speak to it with."""
        self._life = Life(connection, steps, owners)
        self._reported = Reported(connection)
        self._splits = Splits(machine, connection.perform, connection.wait, connection.lock)

    # ------------------------------------------------------------------ life
    @locked
    def start(self) -> "Session":
        """Wait until all shards are known and have answered. Raises ClusterError with advice if they do not."""
        self.wait(lambda: self.machine.ready, "the cluster")
        return self

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self._refuse_copy()

    def __reduce__(self) -> NoReturn:
        self._refuse_copy()

    def _refuse_copy(self) -> NoReturn:
        raise ConfigurationError(
            "a session, and an EmbeddingBagCollection, which holds one, cannot be copied or saved: its rows are on the "
            "servers. Copy or save the dense modules alone"
        )

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self.pid:
            return  # a child of `os.fork` leaves a block that its parent is still in
        if kind is None:
            self.close()
            return
        if kind is not None and issubclass(kind, SystemExit) and not self._connection.closed:
            if text := self._life.end():  # also SIGTERM, where that is one
                exits.lost(text)
            return
        if kind is GeneratorExit and not self._connection.closed and (text := self._life.undone()):
            exits.lost(f"a session was dropped without being closed: {text}")  # nobody sees this exception
        try:
            self._life.leave_run()
        finally:
            self.abandon()

    @locked
    def close(self) -> None:
        """Wait until every push is durable, then disconnect. May be called twice."""
        if not self._connection.closed:
            self._check_not_evaluating("close")
            self._life.close()

    def end_at_exit(self) -> None:
        """If nobody closes it, it ends with the interpreter; or when it is dropped, as soon as Python notices."""
        exits.opened(self._life)
        weakref.finalize(self, self._life.dropped).atexit = False

    @locked
    def flush(self) -> None:
        """Wait until every push is durable: no death of as many shards as the code tolerates can take it back.

        Raises ClusterError with advice after the timeout.
        """
        self._steps.flush("all pushes to be durable")

    @locked
    def save(
        self,
        url: str,
        timeout_s: float = SAVE_TIMEOUT_S,
        *,
        state: Mapping[str, Any] | None = None,
        incremental: bool | Increments = False,
        rate_mb_s: float | None = None,
    ) -> int:
        """Have the cluster write a checkpoint of all pushes made so far, by all workers; return its number.

        ``url``: a path, or a URL of a file system of fsspec; every server writes its own part there. Training of the
        others goes on; one that is given up, because a server died, is begun again. Gradients that are not pushed are
        not in it. ``state``: your own, which `restored_state` gives back: a dict of plain values, lists, tuples, dicts,
        numpy arrays and torch tensors, such as ``state_dict()`` of a learning rate scheduler and of
        `Session.optimizer`, or ``torch.get_rng_state()``; 64 MiB at most. It is that of this worker alone.
        ``incremental``: only what changed since the newest one that this cluster wrote to ``url``, or all where there
        is none, or too much has changed (`Increments`). ``rate_mb_s``: all servers together write at most so many
        megabytes a second, unless what changes meanwhile fills their side buffers. Raises CheckpointError if none is
        complete within ``timeout_s`` seconds, ConfigurationError for a state that cannot be written.
        """
        self._check_writes("save")
        endpoint, keys = self.scheduler
        data = b"" if state is None else encode_state(state, convert)
        increments = Increments() if incremental is True else incremental or None

        def write() -> int:
            return save_checkpoint(
                endpoint, url, timeout_s, keys, state=data, increments=increments, rate_mb_s=rate_mb_s
            ).checkpoint

        return self._connection.meanwhile(write, "save")

    @locked
    def restored_state(self) -> dict[str, Any] | None:
        """The state that was given to `save` for the checkpoint that this cluster began with. None if it began without
        a checkpoint, or with one that was saved without a state.

        Read from where the checkpoint is: raises CheckpointError if it is not there any more, or damaged.
        """
        endpoint, keys = self.scheduler

        def read() -> dict[str, Any] | None:
            begun = restored_from(endpoint, keys)
            return None if begun is None else open_checkpoint(begun.url, begun.checkpoint).state(make)

        return self._connection.meanwhile(read, "restored-state")

    @locked
    def restore(
        self, url: str, number: int | None = None, *, names: Mapping[str, str] | None = None, partial: bool = False
    ) -> list[str]:
        """Bring a checkpoint into the tables that the cluster has, before anything is trained; see
        `ecrec.checkpoint.restore.restore` for ``names`` and ``partial``. Data sets go on behind its examples.

        Make the model first. Returns in which ways its tables and those of the checkpoint differ, where what fits was
        taken. Raises ConfigurationError for tables that do not fit, and nothing is changed then, or with several
        workers: there, `ecrec restore --into-tables` before they start; RefusedError where data sets were begun,
        CheckpointError for a checkpoint that is damaged.
        """
        self._check_writes("restore")
        if self.world_size > 1:
            raise ConfigurationError(
                "restore with several workers: the others would go on with parameters that they have pulled before. "
                "Make the model in one process that ends, run `ecrec restore --into-tables`, then start the workers"
            )
        endpoint, keys = self.scheduler
        done = self._write_weights(
            lambda: restore(endpoint, url, number, keys=keys, into_tables=True, names=names, partial=partial), "restore"
        )
        return list(done.differences)

    @locked
    def import_weights(
        self, path: str, *, names: Mapping[str, str] | None = None, pattern: str | None = None, partial: bool = False
    ) -> Imported:
        """Set the weights of all embedding tables of the cluster to those of other files, before anything is trained;
        see `ecrec.checkpoint.importing.import_weights`. With one worker alone, as `restore`."""
        self._check_writes("import_weights")
        if self.world_size > 1:
            raise ConfigurationError(
                "import_weights with several workers: make the model in one process that ends, run `ecrec import`, "
                "then start the workers"
            )
        endpoint, keys = self.scheduler
        return self._write_weights(
            lambda: import_weights(endpoint, path, names=names, pattern=pattern, partial=partial, keys=keys), "import"
        )

    def _write_weights(self, work: Callable[[], ResultT], name: str) -> ResultT:
        """What ``work`` returns, which writes weights by a way of its own: what the parts have pulled is old then."""
        self.flush()
        done = self._connection.meanwhile(work, name)
        self._steps.written()
        return done

    def changes(self, since: str | None = None) -> Changes:
        """Rows that changed since a token of an earlier call, or all that were ever trained: iterate over it to the
        end, then its ``token`` is where the next call goes on.

        Only of a session that reads (``read_only``): nothing that is read is copied aside or held back, so that no push
        waits. What comes is durable, in pieces of a bounded size; `Resent` says that all rows of one server follow,
        because it was replaced, or does not know the token any more. Raises ConfigurationError for what is no token,
        and for a session of a worker.
        """
        if not self.read_only:
            raise ConfigurationError("changes: connect with read_only=True; a worker pulls the rows that it needs")
        return Changes(self, since)

    def abandon(self) -> None:
        """Disconnect at once; pushes that are not durable may be lost."""
        self._life.abandon()

    def start_heartbeat(self) -> None:
        """From now on a thread says that this worker lives, also while it is in a long computation."""
        self._connection.start_heartbeat()

    def watch(self, failure: Callable[[], EcrecError | None]) -> None:
        """From now on every call raises what ``failure`` returns, where that is an error of the cluster."""
        self._connection.failure = failure

    # ------------------------------------------------------------------ tables and parts
    @property
    def optimizer(self) -> ShardOptimizer:
        """The optimizers of all tables and replicated modules of this session, for ``torch.optim.lr_scheduler``.

        Made when it is first asked for; no part can be made after that. Its ``step()`` is `push`.
        """
        if self._optimizer is None:
            self._check_not_evaluating("session.optimizer, which is made when it is first asked for,")
            self._optimizer = ShardOptimizer(self, dict(sorted(self._tables.items())))
        return self._optimizer

    def replicate(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        code: CodeSpec | str | None = None,
        name: str = "dense",
        buffers: str = CONSTANT,
    ) -> ReplicatedModule:
        """Replicate a module's parameters on the shards; see `ReplicatedModule`."""
        made = ReplicatedModule(self, module, optimizer, code=code, name=name, buffers=buffers)
        self._connection.replicated.add(name)
        return made

    # ------------------------------------------------------------------ steps
    def observe(
        self,
        *,
        metrics: str | Path | None = None,
        tensorboard: str | Path | None = None,
        trace: str | Path | None = None,
        trace_steps: int = TRACE_STEPS,
        first_step: int = 0,
        window_examples: int = WINDOW_EXAMPLES,
        every_s: float = EVERY_S,
    ) -> Observation:
        """Write to files, while training goes on, how it goes; a context manager, which ends no later than the session.

        ``metrics``: a file of JSON lines, one every ``every_s`` seconds, which several workers of a host may share and
        which is gone on with. ``tensorboard``: a directory, in which worker R has the run ``worker-R`` (needs the
        extra ``tensorboard``). ``trace``: a file for what the next ``trace_steps`` steps do when; with several workers,
        and for one that was started again, with rank and life in its name. docs/training.md has the fields.

        Call its ``step(loss, labels, logits)`` behind each `push`; it makes a `report` too. ``first_step``: steps of a
        run that this one goes on with. AUC and normalized entropy are those of the last ``window_examples`` examples.
        A file that cannot be written later on, as on a full disk, is warned of once. Raises ConfigurationError where
        one cannot be opened, for numbers that cannot be, and while another observation goes on.
        """
        if self._life.observation is not None and self._life.observation.is_open:
            raise ConfigurationError("observe: this session is observed already; close that observation first")
        self._connection.check_open()
        self._life.observation = Observation(
            self._connection,
            self._reported.report,
            self.rank,
            self.world_size,
            metrics=metrics,
            tensorboard=tensorboard,
            trace=trace,
            trace_steps=trace_steps,
            first_step=first_step,
            window_examples=window_examples,
            every_s=every_s,
        )
        return self._life.observation

    def prefetch(
        self,
        batches: Iterable[BatchT],
        *parts: Part,
        features: Callable[[BatchT], Any] = lambda batch: batch,
        depth: int = 0,
    ) -> Iterator[BatchT]:
        """The batches, each when its rows are here; the rows of the next ``depth`` batches are
        prefetched meanwhile.

        ``parts``: default all of the session. ``features(batch)`` is what the collections' ``forward`` will be called
        with: one KeyedJaggedTensor, ecrec's or TorchRec's, or several in a tuple, of which each collection takes that
        which has its features. With exact pulls the rows of batch t are as after push t - 1 - depth, and a push waits
        for the pulls made before it: 0 is plain training, 1 hides the time of the pull and trains on rows that are one
        step old.
        """
        self._check_not_evaluating("prefetch")
        check_batches("prefetch", batches, "features", features)
        if not hasattr(depth, "__index__") or depth < 0:
            raise ConfigurationError(f"depth is {depth!r}, expected a whole number, at least 0")
        parts = parts or tuple(self.parts)
        for part in parts:
            if not callable(getattr(part, "plan", None)) or getattr(part, "_session", self) is not self:
                raise ConfigurationError(
                    f"prefetch: {part!r:.100} is no collection and no replicated module of this session; without any, "
                    "all of them are pulled"
                )
        return prefetch(self._connection, self._steps, batches, parts, features, depth, self.exact)

    def lease_splits(
        self, name: str, examples: int, *, split_examples: int, epochs: int = 1, end: int | None = None
    ) -> Iterator[Split]:
        """Splits of ``epochs`` passes over ``examples`` examples, dealt out to all workers that ask under this name.

        Each `push` takes its examples off the oldest split, in order; push all of a split before you ask for the next.
        The iterator ends when all examples of the data set, those of the other workers too, are trained on and
        durable. Until then it waits for splits of dead workers to be handed on. A worker that dies leaves its split to
        the next one that asks, from the first example on that some shard lacks (docs/protocol.md): every example is
        trained on at least once, and only those of batches that were in flight when their worker died are trained on
        again.
        An iteration that was broken off leaves its split to the next one under the same name.

        ``split_examples``: of a split, at most; best a multiple of the batch size, and small enough for every worker to
        get several. ``end``: number of examples over all passes, where the last one is to end early.
        Raises ConfigurationError with ``sync``, for invalid numbers, while an iteration over another data set
        has a split, for one that this session has iterated over to its end, and, before the next split, if one was not
        pushed to its end or a later call has gone on with the splits; RefusedError for a name that is known with other
        numbers, after which the session goes on; FencedError when this worker was given up.
        """
        self._check_writes("lease_splits")
        if self.sync:
            raise ConfigurationError("lease_splits with sync=True: the workers of a sum must go in step")
        if not isinstance(name, str):
            raise ConfigurationError(f"lease_splits: the name is {name!r:.100}, expected a string")
        numbers: dict[str, Any] = {
            "examples": examples, "split_examples": split_examples, "epochs": epochs, "end": end,
        }  # fmt: skip
        for what, number in numbers.items():
            least = 1 if "examples" in what else 0
            if what == "end" and end is None:
                continue
            numbers[what] = whole = operator.index(number) if hasattr(number, "__index__") else number
            if isinstance(number, bool) or not isinstance(whole, Real) or whole < least:
                raise ConfigurationError(
                    f"lease_splits({name!r}): {what} is {number!r:.100}, expected a whole number, at least {least}"
                )
        examples, split_examples, epochs, end = numbers.values()
        end = epochs * examples if end is None else end
        return self._splits.iterate(Dataset(name, examples, end, split_examples))

    @locked
    def push(self, examples: int = 0) -> None:
        """Send the gradients that the parts have gathered since the last push, as one push; the end of a step.

        Waits while too many pushes are in flight or an exact pull is not answered. ``examples``: how many went into it,
        for the figures, and for `lease_splits`, where that is used: so many of the split are then done.

        All of it is applied or, after an error, nothing, on no shard. Raises ConfigurationError for more examples than
        are left of the split and for a replicated module that was changed, GradientError for gradients that were taken
        away or are of old parameters, and ClusterError if it waited too long: the gradients are still there, and `push`
        may be called again. Raises RefusedError for a push that shards could not apply, such as one that is too large,
        and GradientError for values that are not finite (see `Session`): its gradients are gone, and the session goes
        on with the next step. Only PartialPushError says that some shards may have applied their parts.
        """
        spans = self._connection.spans
        if spans is not None:
            spans.computed()
        with self._connection.span("push"):
            self._check_writes("push")
            examples = _whole(examples)
            self._splits.check(examples)
            # A push outside of an iteration is none of its split.
            self._steps.push(examples, examples if self._splits.is_open else 0, self._optimizer)
            self._reported.show()
        if spans is not None:
            spans.stepped(self.figures.steps, examples)

    def evaluate(
        self,
        model: nn.Module,
        reader: Iterable[BatchT],
        predict: Callable[[BatchT], ResultT] | None = None,
        *,
        checkpoint: str | None = None,
        number: int | None = None,
        consistent: bool = True,
    ) -> list[ResultT]:
        """What ``predict(batch)`` returns, for each batch of the reader, of one state of the model. Nothing is pushed,
        and the training goes on behind it as if it had not been: modes, gradients that wait for a push and prefetched
        batches are those of before.

        ``predict``: calls the model, without gradients, in evaluation mode; default ``model(batch)``. Rows are pulled
        when a collection is called. The state is that after the last push, with one worker, and with ``sync``, where
        no push of others is applied before the next one of this worker. Others that push freely do not stop: with
        several of them, and in a session that only reads, give a checkpoint.

        ``checkpoint``: evaluate the newest complete checkpoint at this path or URL, or the one of that ``number``
        (`save` returns it): one cut of the pushes of all workers, which go on. The weights of its trained rows are
        brought into memory. ``consistent=False``: evaluate what the shards have when each batch is pulled, while others
        push.

        Raises ConfigurationError where no one state can be promised, for a checkpoint of other tables or one that is
        too large, for a model of another session, and for what changes the model, inside of it: push, discard,
        prefetch, new tables, a forward pass with gradients. A change of modes, tensors, gradients, ``requires_grad`` or
        learning rates inside of it is undone at its end, and an error; so is a result that would change afterwards: a
        generator, or a replicated parameter itself. Raises CheckpointError for a checkpoint that is damaged.
        """
        self._connection.check_open()
        self._check_not_evaluating("evaluate")
        check_evaluated(self, model, checkpoint, number, consistent)
        check_batches("evaluate", reader, "predict", model if predict is None else predict)
        parts = self.parts
        replicated = [part for part in parts if isinstance(part, ReplicatedModule)]
        modules = [model, *(part.module for part in replicated)]
        kept_by_parts = {id(parameter) for part in replicated for parameter in part.parameters}
        source = None if checkpoint is None else self._at_checkpoint(checkpoint, number)
        undo_rates = str if self._optimizer is None else self._optimizer.remember()
        self._evaluation = Evaluation(parts, modules, source, kept_by_parts, undo_rates)
        try:
            with self._evaluation:
                found = []
                for batch in reader:
                    result: Any = model(batch) if predict is None else predict(batch)
                    check_result(result, kept_by_parts)
                    found.append(result)
                return found
        finally:
            self._evaluation = None

    @locked
    def _at_checkpoint(self, url: str, number: int | None) -> AtCheckpoint:
        return self._connection.meanwhile(lambda: AtCheckpoint(url, number, self._tables), "evaluate")

    @locked
    def report(self, /, **figures: SupportsFloat | None) -> None:
        """Show figures of the training to people: ``session.report(loss=loss.item())``.

        They travel with the heartbeats, and cost no message. ``loss``, ``auc`` and ``normalized_entropy`` are shown by
        ``ecrec dashboard`` and the scheduler's ``/metrics``, and all by ``ecrec status``. A figure is shown until it is
        reported again; None and what is not finite takes it away. Raises ConfigurationError for what is no number, for
        a name that the session has itself, and for more than 16 figures.
        """
        self._reported.report(**figures)

    @locked
    def clip_gradients(self, max_norm: float | None = None, *, row_norm: float | None = None) -> float:
        """Clip the gradients since the last push by their norm, between the backward pass and `push`.

        ``row_norm``: of each row of a table. Then ``max_norm``: of all gradients together, of tables and replicated
        modules, as ``torch.nn.utils.clip_grad_norm_`` clips. Returns the norm of all before that. A gradient that is
        not finite is left as it is, for `push` to name, or set to zero with ``nonfinite="zero"``.

        Raises ConfigurationError for norms that are not positive, with ``sync`` on several workers, whose sum only the
        servers know (``max_gradient`` of an optimizer clips that, by value), and what `push` raises of gradients.
        """
        self._check_writes("clip_gradients")
        return self._steps.clip(max_norm, row_norm)

    def model_digest(self) -> str:
        """SHA-256, in hex, over all tables of the cluster, those of replicated modules too, by name: weights and
        optimizer state, to the bit. Two runs that have trained the same model have the same one.

        All pushes of this worker are in it; other workers must have none in flight.
        """
        return model_digest(self, [spec for _, (_, spec) in sorted(self.machine.tables.items())])

    @locked
    def discard(self) -> None:
        """Give a step up: forget all gradients since the last push. Its examples do not count. A table whose weight was
        changed here, which is an error and has no effect, may be used again."""
        self._check_not_evaluating("discard")
        for part in self.parts:
            part.discard()

    @locked
    def barrier(self) -> None:
        """Wait until all workers are here: an empty push that is applied when all have made it, and is durable."""
        self._check_writes("barrier")
        self._steps.barrier()


def _whole(examples: Any) -> int:
    """A number of examples. Raises ConfigurationError for what is none."""
    try:
        number = operator.index(examples)
    except TypeError:
        number = -1
    if not 0 <= number < EXAMPLES_MAX:
        raise ConfigurationError(f"a push of {examples!r} examples, expected a whole number, at least 0")
    return number
