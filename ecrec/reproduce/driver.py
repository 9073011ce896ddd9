"""One run: a cluster, workers, checkpoints, kills, and what each mode does after a death.

The driver takes several *lives* where a mode goes back to a checkpoint: each is a cluster of its own, the later ones
with what the last checkpoint has. All that happens is written down by the `Recorder`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ecrec.checkpoint.reading import State, checkpoints, open_checkpoint
from ecrec.checkpoint.restore import restore, restored_datasets
from ecrec.errors import ClusterError, DataLostError
from ecrec.exit_codes import ExitCode
from ecrec.launch.environment import curve_keys
from ecrec.launch.local.children import Ended, Line
from ecrec.launch.tools.verify import scrub
from ecrec.launch.tools.watch import ClusterWatch
from ecrec.protocol.messages import DOWN, UP, ClusterState
from ecrec.reproduce.checkpointing import PAUSED_S, Checkpointer, Task
from ecrec.reproduce.life import Engine, Life
from ecrec.reproduce.plan import PARITY, PARTIAL, RESTART, SCRATCH, TIMES_UNTIL_RECOVERED, KillAt, Run
from ecrec.reproduce.processes import ProcessorTime
from ecrec.reproduce.raw import RawWriter
from ecrec.reproduce.recorder import Recorder
from ecrec.reproduce.resources import CpuLimit
from ecrec.reproduce.rows import load_shard, touch
from ecrec.train.options import LOCAL
from ecrec.train.report import lost_updates

PUMP_S = 0.02
SERVERS_S = 1.0
"""How often the servers are looked at."""

BEGIN_TIMEOUT_S = 120.0
"""Until all workers have made a step, all rows are touched and the first checkpoint is written."""

END_TIMEOUT_S = 60.0
"""Until the workers have ended, and all is whole."""

HEARTBEATS_AFTER_MS = 300.0
"""A watermark counts as final when the shard was heard this long after the workers were done: three heartbeats."""


class _GoesBackError(Exception):
    """Data was lost: a new life begins."""


class _Standby(NamedTuple):
    """A life whose processes wait, or are being started."""

    life: Life
    task: Task


class Driver:
    """Does a run; `drive` does it all."""

    def __init__(
        self, run: Run, raw: RawWriter, directory: Path, url: str, data: str, data_rows: int, engine: Engine
    ) -> None:
        self._run, self._raw, self._directory = run, raw, directory
        self._data, self._data_rows, self._engine = data, data_rows, engine
        self._recorder = Recorder(raw, time.monotonic)
        self._url = url
        self._kills = list(run.kills)
        self._lives = 0
        self._limit: CpuLimit | None = None
        self._server_time, self._worker_time = ProcessorTime(), ProcessorTime()
        self._servers_at = 0.0
        self._history: set[tuple[float, str, int, int]] = set()
        self._putting_back: Task | None = None
        self._over: tuple[float, int] | None = None
        """When the run was over, and the position then."""

    def drive(self) -> None:
        """Raises ClusterError, or another error of ecrec, for a run that cannot be done to its end."""
        with contextlib.ExitStack() as stack:
            if self._run.resources.cores is not None:
                self._limit = stack.enter_context(CpuLimit(self._run.resources.cores))
            standby: _Standby | None = None
            life = self._next_life()
            life.start(self._hold)
            try:
                while True:
                    if standby is None and self._may_go_back():
                        standby = self._prepare_standby()
                    try:
                        self._live(life)
                        return
                    except _GoesBackError:
                        life.end_at_once()
                        self._recorder.back_to(position_of(self._url))
                    if self._is_over():
                        self._over = time.monotonic(), self._recorder.position
                        self._end({}, None)
                        return
                    life, standby = self._take(standby), None
            finally:
                life.cluster.close()
                if standby is not None:
                    standby.task.wait()
                    standby.life.end_at_once()

    # ------------------------------------------------------------------ lives
    def _next_life(self) -> Life:
        self._lives += 1
        return Life(self._run, self._lives, self._directory, self._data, self._data_rows, self._engine)

    def _may_go_back(self) -> bool:
        """A death that is still to come will end this life."""
        return self._run.mode.standby and bool(self._kills)

    def _prepare_standby(self) -> "_Standby":
        life = self._next_life()
        task = Task(lambda: life.start(self._hold))
        if not self._recorder.has_begun:
            task.wait()
        return _Standby(life, task)

    def _take(self, standby: "_Standby | None") -> Life:
        """The next life, whose processes run; they are started now if nobody has."""
        begin = time.monotonic()
        if standby is None:
            life = self._next_life()
            life.start(self._hold)
        else:
            standby.task.wait()
            life = standby.life
            if standby.task.error is not None:
                life.end_at_once()
                raise standby.task.error
        if self._recorder.has_begun:
            self._recorder.event("started", seconds=time.monotonic() - begin)
        return life

    def _hold(self, pids: list[int]) -> None:
        if self._limit is not None:
            self._limit.hold(pids)

    def _live(self, life: Life) -> None:
        """Until the run is over, or data is lost."""
        first = not self._recorder.has_begun
        self._recorder.forget_workers()
        if first:
            life.control.pause()  # until all is prepared: rows touched, the first checkpoint
        else:
            self._load(life.endpoint)
            self._miss_kills()
        life.control.go()
        with ClusterWatch(life.endpoint) as watch, self._checkpoints(life, first) as checkpointer:
            if first:
                self._prepare(life, watch, checkpointer)
            if checkpointer is not None:
                checkpointer.begin()
            self._train(life, watch, checkpointer)
            state = self._settle(life, watch)
        self._check(life, state)

    def _load(self, endpoint: str) -> None:
        """A later life: what the newest checkpoint has, or nothing."""
        begin = time.monotonic()
        if _newest(self._url) is not None:
            done = restore(endpoint, self._url, keys=curve_keys())
            self._recorder.event("loaded", seconds=time.monotonic() - begin, bytes=done.nbytes, rows=done.rows)

    @contextlib.contextmanager
    def _checkpoints(self, life: Life, first: bool) -> Iterator[Checkpointer | None]:
        run = self._run
        if not run.mode.checkpoint:
            yield None
            return
        checkpointer = Checkpointer(life.endpoint, self._url, run.mode, run.every, run.mtbf_s, life.holding, first)
        if not first:
            checkpointer.start()
        try:
            yield checkpointer
        finally:
            checkpointer.close()

    # ------------------------------------------------------------------ before the clock starts
    def _prepare(self, life: Life, watch: ClusterWatch, checkpointer: Checkpointer | None) -> None:
        end = time.monotonic() + BEGIN_TIMEOUT_S
        self._until(life, watch, lambda: life.holding.all_paused and watch.all_up, end, "the first steps")
        life.add_spares()
        life.cluster.wait_ready()
        if self._run.model.touch:
            seen = watch.latest
            assert seen is not None
            tables = seen.state.tables
            task = Task(lambda: touch(life.endpoint, tables, self._run.seed))
            self._until(life, watch, lambda: task.is_done, end, "all rows to be touched")
            if task.error is not None:
                raise task.error
            self._recorder.event("touched", bytes=task.result)
        if checkpointer is not None:
            checkpointer.start()
            self._until(life, watch, checkpointer.is_ready.is_set, end, "the first checkpoint")
            if checkpointer.error:
                raise ClusterError(f"the first checkpoint could not be written: {checkpointer.error}")
            self._told(checkpointer)
        self._recorder.begin()
        life.control.resume()

    def _until(self, life: Life, watch: ClusterWatch, done: Callable[[], bool], end: float, what: str) -> None:
        while not done():
            self._pump(life, watch)
            if watch.lost:
                raise ClusterError(f"data was lost before the clock started: {watch.lost}")
            if time.monotonic() > end:
                raise ClusterError(f"waited too long for {what}; logs are in {self._directory}")

    # ------------------------------------------------------------------ training
    def _train(self, life: Life, watch: ClusterWatch, checkpointer: Checkpointer | None) -> None:
        while len(life.done) < self._run.workers:
            self._pump(life, watch)
            if checkpointer is not None:
                self._told(checkpointer)
            self._look(watch)
            if life.spares_due and watch.all_up:
                life.add_spares()
            self._kill_what_is_due(life, watch)
            if self._run.mode.recovery == PARTIAL:
                self._put_back(life, watch)
            if self._over is None and self._is_over():
                self._over = time.monotonic(), self._recorder.position
                life.control.stop()
            if self._over is not None and time.monotonic() > self._over[0] + END_TIMEOUT_S:
                raise ClusterError(f"the workers have not ended after {END_TIMEOUT_S:.0f} s; logs in {self._directory}")
        if self._over is None:
            self._over = time.monotonic(), self._recorder.position

    def _is_over(self) -> bool:
        run, recorder = self._run, self._recorder
        if not run.seconds or not recorder.has_begun or recorder.time() < run.seconds:
            return False
        waits = run.until_recovered and recorder.is_behind
        return not waits or recorder.time() >= TIMES_UNTIL_RECOVERED * run.seconds

    def _pump(self, life: Life, watch: ClusterWatch) -> None:
        for event in life.cluster.pump(PUMP_S):
            if isinstance(event, Line):
                self._heard(life, life.workers[event.child], event.data)
            elif isinstance(event, Ended):
                self._worker_ended(life, event, watch)
        if len(life.cluster.replaced) > life.replaced:
            life.replaced = len(life.cluster.replaced)
            self._recorder.event("process ended")
            if self._recorder.has_begun and self._run.mode.recovery in (SCRATCH, RESTART):
                raise _GoesBackError
        now = time.monotonic()
        if now >= self._servers_at + SERVERS_S:
            self._servers_at = now
            self._hold(life.cluster.server_pids)
            self._write_servers(life, watch)

    def _heard(self, life: Life, rank: int, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "step":
            self._recorder.step(rank, event["at"], event["examples"], event["loss"], event["waited_s"])
        elif kind in ("paused", "resumed"):
            life.holding.heard(kind, rank)
        elif kind == "first_row" and self._recorder.has_begun:
            self._recorder.event("first row", event["at"], shard=event["shard"], epoch=event["epoch"])
        elif kind == "done":
            life.done[rank] = dict(event)

    def _worker_ended(self, life: Life, event: Ended, watch: ClusterWatch) -> None:
        rank = life.workers.pop(event.child)
        if event.code == 0 and rank in life.done:
            return
        if self._recorder.has_begun and (event.code == ExitCode.DATA_LOST or watch.lost):
            raise _GoesBackError
        raise ClusterError(event.child.describe_end())

    def _look(self, watch: ClusterWatch) -> None:
        seen = watch.latest
        if seen is None:
            return
        zero = self._recorder.zero or 0.0
        for entry in seen.state.history:
            key = (entry.at_ms, entry.event, entry.shard, entry.epoch)
            if key not in self._history and entry.at_ms / 1e3 >= zero:
                self._history.add(key)
                self._recorder.event(entry.event, entry.at_ms / 1e3, shard=entry.shard, epoch=entry.epoch)
        if watch.lost:
            raise _GoesBackError

    def _told(self, checkpointer: Checkpointer) -> None:
        for event, at, fields in checkpointer.take():
            self._recorder.event(event, at, **fields)

    def _write_servers(self, life: Life, watch: ClusterWatch) -> None:
        seen = watch.latest
        if seen is None:
            return
        figures = [shard.figures for shard in seen.state.shards]

        def total(name: str) -> float:
            return sum(each.get(name, 0.0) for each in figures)

        used = {}
        if self._engine.on == LOCAL:  # elsewhere they are processes of other hosts
            used["cpu_s"] = self._server_time.of(life.cluster.server_pids)
            used["worker_cpu_s"] = self._worker_time.of(child.pid for child in life.workers)
        self._recorder.servers(
            data_bytes=total("data_bytes_touched"), parity_bytes=total("parity_bytes_touched"),
            resident_bytes=total("resident_bytes"), **used,
        )  # fmt: skip

    # ------------------------------------------------------------------ kills, and what follows
    def _kill_what_is_due(self, life: Life, watch: ClusterWatch) -> None:
        for kill in [kill for kill in self._kills if self._is_due(kill)]:
            self._kills.remove(kill)
            for place in kill.places:
                self._kill(life, watch, int(place * self._run.mode.shards))

    def _miss_kills(self) -> None:
        """Those that were due while there was no cluster to be hit."""
        for kill in [kill for kill in self._kills if kill.at_s is not None and self._is_due(kill)]:
            self._kills.remove(kill)
            for place in kill.places:
                self._recorder.event("kill missed", shard=int(place * self._run.mode.shards))

    def _is_due(self, kill: KillAt) -> bool:
        if kill.at_s is not None:
            return self._recorder.time() >= kill.at_s
        return self._recorder.position >= (kill.step or 0) * self._run.model.batch * self._run.workers

    def _kill(self, life: Life, watch: ClusterWatch, shard: int) -> None:
        standing = watch.standing.get(shard)
        if standing is None or standing.state == DOWN or not life.cluster.runs(standing.endpoint):
            self._recorder.event("kill missed", shard=shard)
            return
        signal = self._run.mode.signal
        act = life.cluster.kill if signal == "KILL" else life.cluster.tell_to_end
        self._recorder.killed(act(standing.endpoint), shard, signal)

    def _put_back(self, life: Life, watch: ClusterWatch) -> None:
        """Partial recovery: rows that began again are put back to the checkpoint, while the workers stand still."""
        seen, task = watch.latest, self._putting_back
        if task is not None:
            if task.is_done:
                self._putting_back = None
                life.holding.resume()
                if task.error is not None:
                    raise task.error
                self._recorder.event("put back", seconds=time.monotonic() - task.begin, bytes=task.result)
        elif seen is not None and len(seen.state.losses) > life.losses_handled and _all_placed(watch):
            loss = seen.state.losses[life.losses_handled]
            life.losses_handled += 1
            shards = sorted({rows.shard for rows in loss.rows})
            self._recorder.event("rows lost", shards=shards, updates=loss.updates)

            def put_back() -> int:
                if not life.holding.pause(PAUSED_S):
                    raise ClusterError(f"the workers did not stand still within {PAUSED_S:.0f} s")
                return sum(load_shard(life.endpoint, self._url, shard) for shard in shards)

            self._putting_back = Task(put_back)

    # ------------------------------------------------------------------ the end
    def _settle(self, life: Life, watch: ClusterWatch) -> ClusterState:
        """The state when all is whole and newer than the end of the workers."""
        done = time.monotonic()
        while time.monotonic() < done + END_TIMEOUT_S:
            self._pump(life, watch)
            self._look(watch)
            seen = watch.latest
            if seen is None:
                continue
            age_ms = (seen.asked_at - done) * 1e3
            shards = seen.state.shards
            if len(shards) == self._run.mode.shards and all(
                shard.state == UP and shard.silent_ms + HEARTBEATS_AFTER_MS < age_ms for shard in shards
            ):
                self._write_servers(life, watch)
                return seen.state
        raise ClusterError(f"not whole {END_TIMEOUT_S:.0f} s after training; logs in {self._directory}")

    def _check(self, life: Life, state: ClusterState) -> None:
        """What must hold at the end, and the last line."""
        run = self._run
        figures: dict[str, Any] = {}
        if run.mode.recovery == PARITY and run.mode.r and not any(state.losses) and life.number == 1:
            acked = {rank: {int(s): n for s, n in done["acked"].items()} for rank, done in life.done.items()}
            figures["lost_updates"] = lost_updates(acked, {s.shard: s.watermarks for s in state.shards})
        if run.exact and run.mode.r:
            with contextlib.suppress(DataLostError):
                figures["parity_ok"] = scrub(life.endpoint, END_TIMEOUT_S, lambda: _drop(life.cluster.pump(0.0))).ok
        self._end(figures, life.done.get(0))

    def _end(self, figures: Mapping[str, Any], done: Mapping[str, Any] | None) -> None:
        recorder = self._recorder
        at, position = self._over or (time.monotonic(), recorder.position)
        recorder.close()
        results = {name: done[name] for name in ("auc", "logloss", "model_digest")} if done is not None else {}
        self._raw.end(
            t=recorder.time(at), position=position, examples=recorder.examples, kills_left=len(self._kills),
            throttled=self._limit.throttled if self._limit else {}, **figures, **results,
        )  # fmt: skip


def _newest(url: str) -> int | None:
    complete = [info.number for info in checkpoints(url) if info.state is State.COMPLETE]
    return complete[-1] if complete else None


def position_of(url: str) -> int:
    """Examples that the model of the newest complete checkpoint has seen; 0 where there is none."""
    if _newest(url) is None:
        return 0
    return sum(dataset.trained for dataset in restored_datasets(open_checkpoint(url)))


def _all_placed(watch: ClusterWatch) -> bool:
    standing = watch.standing
    return bool(standing) and all(shard.state != DOWN for shard in standing.values())


def _drop(_: object) -> None:
    return None
