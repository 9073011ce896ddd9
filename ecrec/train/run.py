"""``ecrec train``: a local cluster, workers that train a DLRM, kills, and the report of what happened.

This file is long because one class hears all that happens in a run, and decides what is done next.
"""

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ecrec.checkpoint.reading import open_checkpoint
from ecrec.checkpoint.restore import cluster_name, restore, restored_datasets
from ecrec.checkpoint.saving import Increments
from ecrec.errors import CheckpointError, ClusterError, ConfigurationError, DataError, DataLostError, EcrecError
from ecrec.exit_codes import ExitCode
from ecrec.launch.environment import curve_keys
from ecrec.launch.groups import RESTORE, STOP
from ecrec.launch.local.children import Child, Ended, Line
from ecrec.launch.local.cluster import (
    DEATHS_MAX,
    DEATHS_SPAN_S,
    ClusterSettings,
    LocalCluster,
    default_heartbeat_timeout_ms,
    set_aside,
)
from ecrec.launch.local.scratch import Scratch
from ecrec.launch.rewind import DamagedPointError, Point, Rewinds, Rewound
from ecrec.launch.saving import SavingThread
from ecrec.launch.threads import SERVERS_PER_CORE, cores, thread_environment, worker_threads
from ecrec.launch.tools.dashboard import dashboard
from ecrec.launch.tools.verify import cluster_state, describe_bad, scrub
from ecrec.launch.tools.watch import ClusterWatch
from ecrec.protocol.messages import DOWN, UP, ClusterState, HistoryEntry
from ecrec.protocol.scrub_tool import ScrubOutcome
from ecrec.protocol.watch import Standing
from ecrec.train.counting import RowCount
from ecrec.train.engines import make_cluster
from ecrec.train.kills import ChaosSchedule, KillSchedule
from ecrec.train.lives import Life, all_kills, go_back, rewind_entries
from ecrec.train.machine import machine, versions
from ecrec.train.options import SKIP_BAD_ROWS, TrainOptions, check_order
from ecrec.train.progress import ProgressView
from ecrec.train.report import (
    FirstRow,
    KillDone,
    Step,
    data_figures,
    group_entries,
    loss_entries,
    lost_updates,
)
from ecrec.train.resizing import ResizeDueError, Resizing
from ecrec.train.traces import Traces

if TYPE_CHECKING:
    from ecrec.data.rows import Counted

TO_SURVIVE_MORE = (
    "A --code with a larger r survives more deaths at a time; with --checkpoint URL --on-data-loss restore, training "
    "goes on from the newest checkpoint"
)
"""What is said behind a loss of data."""

WORKER_MODULE = "ecrec.train.worker"

PUMP_S = 0.1
"""How long the launcher waits for its children before it looks at the cluster again."""

WHOLE_TIMEOUT_S = 120.0
"""After training, the last replacement gets that long to be whole; times `crowding`."""

SCRUB_TIMEOUT_S = 60.0
"""A scrub that does not go on for that long is given up; times `crowding`."""

FENCED_GRACE_S = 10.0
"""A worker that the scheduler has given up ends on its own, if it runs at all; after this time it is killed."""

FAILURES_SHOWN = 2
"""Ends of servers that an error message tells of."""

COUNTING_SAID_S = 2.0
"""Who waits for this long for the rows to be counted is told what for."""

BAD_ROWS_SAID = 5
"""Bad rows of the data that are told one by one."""

ADVICE_ON_BAD_ROWS = ". Rows that cannot be read are left out with --bad-rows skip"

HEARTBEATS_AFTER = 3
"""A watermark counts as final when the shard was heard of so many heartbeats after the workers were done."""


class TrainingRun:
    """One run; ``run`` does it all. What the workers say is recorded here as it comes."""

    def __init__(self, options: TrainOptions, run_dir: Path, progress: ProgressView) -> None:
        self._options = options
        self._run_dir = run_dir
        self._progress = progress
        self._groups = options.dealt
        self._schedule = KillSchedule(options.kill_list, options.tolerance)
        every_s = options.chaos_kill_every_s
        self._chaos = None if every_s is None else ChaosSchedule(every_s, options.seed, options.tolerance)
        self._worker_kills = list(options.worker_kills)
        self._workers: dict[Child, int] = {}
        """Rank of each worker's process that runs."""
        self._epochs: dict[Child, int] = {}
        self._fenced_at: dict[Child, float] = {}
        self._worker_ends: defaultdict[int, deque[float]] = defaultdict(deque)
        self._worker_deaths = 0
        self._lives: list[Life] = []
        self._rewound: list[Rewound] = []
        self._resumed: Point | None = None
        """What the run began with."""
        self._resizing = Resizing(run_dir, options.checkpoint)
        self._traces = Traces(run_dir)
        self._owed: ResizeDueError | None = None
        """A resize that is done as soon as a step is."""
        self._done: dict[int, dict[str, Any]] = {}
        self._bad_rows: dict[int, str] = {}
        """Row of the data -> what is wrong with it, where a worker has told that; each once, whoever met it."""
        self._step = 0
        self._not_shown = 0
        self._saved: list[int] = []
        """Numbers of the checkpoints that were written."""
        self._not_saved: list[str] = []
        self._differences: list[str] = []
        """Between the tables of the checkpoint that is resumed and those of the model."""
        self._last_checkpoint_error = ""

    @property
    def _life(self) -> Life:
        return self._lives[-1]

    @property
    def _kills(self) -> list[KillDone]:
        return [kill for life in self._lives for kill in life.kills]

    @property
    def _steps(self) -> list[Step]:
        return [step for life in self._lives for step in life.steps]

    def run(self) -> dict[str, Any]:
        """Train, kill, wait until all is whole again, compare everything; return the report.

        Raises ClusterError when a process fails or the cluster does not become whole, DataLostError when more
        shards died than the code tolerates, unless the run could go back to a checkpoint, DataError when data to train
        on cannot be read, CheckpointError for a checkpoint that cannot be resumed.
        """
        try:
            with RowCount(self._options.data, self._options.columns) as rows:  # while the servers start
                return self._run(rows)
        finally:
            self._resizing.over()
            if self._options.trace is not None and (trouble := self._traces.write(Path(self._options.trace))):
                self._progress.say(trouble)

    def _run(self, rows: RowCount) -> dict[str, Any]:
        resume = self._options.resume
        point = None
        if resume is not None:
            manifest = open_checkpoint(resume).manifest
            check_order(self._options, [dataset.name for dataset in manifest.datasets])
            point = Point(resume, manifest.checkpoint)
        self._resumed = point
        rewinds = Rewinds(self._options.checkpoint or "", point)
        why: EcrecError | None = None
        while True:
            try:
                return self._live(rows, rewinds, point, why)
            except DataLostError as error:
                if self._options.on_data_loss != RESTORE:
                    raise DataLostError(f"{error}\n{TO_SURVIVE_MORE}") from error
                why, point = error, rewinds.back(error)
            except DamagedPointError as error:
                self._progress.say(f"{error.point} cannot be restored, the one before it is tried: {error}")
                rewinds.is_damaged(error.point)
                assert why is not None
                point = rewinds.back(why)
            except ResizeDueError as error:
                why, point = error, error.point
                self._resize(error.options)
            set_aside(self._run_dir)

    def _resize(self, options: TrainOptions) -> None:
        self._options, self._groups = options, options.dealt
        self._schedule = KillSchedule(self._schedule.left, options.tolerance)
        if self._chaos is not None and options.chaos_kill_every_s is not None:
            self._chaos = ChaosSchedule(options.chaos_kill_every_s, options.seed, options.tolerance)

    def _live(self, rows: RowCount, rewinds: Rewinds, point: Point | None, why: EcrecError | None) -> dict[str, Any]:
        """One cluster of the run, which begins at ``point``; ``why`` the one before has ended.

        All processes of it, workers too, are ended when this returns or raises.
        """
        settings = ClusterSettings(
            self._options.shards,
            self._run_dir,
            self._options.transport,
            self._options.heartbeat_ms,
            self._options.heartbeat_timeout_ms,
            self._options.link_timeout_ms,
            STOP if self._options.on_data_loss == RESTORE else self._options.on_data_loss,
            self._options.lease_timeout_ms,
            self._groups.count,
            self._options.deaths_max,
        )
        options = self._options
        with make_cluster(options.on, settings, str(options.code_spec), options.spare_count) as cluster:
            endpoint = cluster.start()
            if why is None:
                self._progress.say(f"scheduler at {endpoint}, logs in {self._run_dir / 'logs'}")
                self._say_groups(cluster)
            if point is not None:
                cluster.wait_ready()
                rewinds.lives(cluster_name(endpoint, curve_keys()))
                self._begin_with(cluster, endpoint, rows, point, why)
            else:
                self._lives.append(Life(time.monotonic()))
            self._start_workers(cluster, self._counted(cluster, rows))
            with self._page(endpoint), ClusterWatch(endpoint) as watch, self._checkpoints(endpoint) as checkpoints:
                try:
                    cluster.wait_ready()
                    rewinds.lives(cluster_name(endpoint, curve_keys()))
                    checkpoints.start()
                    self._train(cluster, watch)
                    self._resizing.over()
                    state = self._settle(cluster, watch)
                    if self._options.checkpoint is not None:
                        checkpoints.finish()
                except ClusterError as error:
                    raise self._explain(error, cluster, watch) from error
                finally:
                    self._life.history = watch.latest.state.history if watch.latest is not None else ()
            if self._resumed is not None and not any(life.steps for life in self._lives):
                self._progress.say(
                    "nothing was left to train on: --epochs and --steps count from the beginning of the first run"
                )
            self._progress.say("training is done; comparing all parity with all data")
            outcome = self._scrub(cluster, endpoint)
        return self._report(state, outcome)

    @contextmanager
    def _page(self, endpoint: str) -> Iterator[None]:
        """The live page, where that is wanted."""
        if self._options.http is None:
            yield
            return
        with dashboard(endpoint, self._options.http) as url:
            self._progress.say(f"live page at {url}")
            yield

    def _make_tables(self, cluster: LocalCluster, rows: RowCount) -> None:
        """A worker makes the tables of the model, and ends."""
        self._write_config(self._counted(cluster, rows))
        child = self._start_worker(cluster, 0, "--tables-only")
        while True:
            for event in cluster.pump(PUMP_S):
                if isinstance(event, Line):
                    self._on_event(event.child, event.data)
                elif event.child is child and event.code:
                    raise ClusterError(child.describe_end())
                elif event.child is child:
                    return

    def _begin_with(
        self, cluster: LocalCluster, endpoint: str, rows: RowCount, point: Point, why: EcrecError | None
    ) -> None:
        """Bring a checkpoint into a cluster that has just begun."""
        options = self._options
        self._progress.say(f"restoring from {point}" if why is None else f"{why}\ngoing back to {point}")
        is_foreign = point == self._resumed
        """It may be of another model; those that this run has written are not."""
        if is_foreign:
            self._make_tables(cluster, rows)
        try:
            checkpoint = open_checkpoint(point.url, point.number)
            trained = sum(dataset.trained for dataset in restored_datasets(checkpoint))
            done = restore(
                endpoint, point.url, point.number, options.code_spec, keys=curve_keys(),
                meanwhile=lambda _: _drop(cluster.pump(0.0)), into_tables=is_foreign,
                names=options.names if is_foreign else None, partial=options.partial and is_foreign,
            )  # fmt: skip
        except CheckpointError as error:
            if why is None:
                raise
            raise DamagedPointError(point, str(error)) from error
        self._progress.say(f"restored {done.rows:,} rows, {done.nbytes / 1e6:.1f} MB")
        for difference in done.differences:
            self._progress.say(f"not as in the checkpoint: {difference}")
        self._differences += done.differences
        steps_before = 0
        if why is not None:
            cut = time.monotonic() - (time.time() - checkpoint.manifest.time_s)
            rewound = go_back(self._lives, why, point, cut, trained)
            self._rewound.append(rewound)
            self._progress.say(
                f"{rewound.examples_repeated:,} examples, {rewound.seconds_repeated:.1f} s of training, are repeated"
            )
            steps_before = max(0, trained - self._lives[0].trained) // self._options.batch
        self._lives.append(Life(time.monotonic(), trained, steps_before))
        self._workers, self._epochs, self._fenced_at, self._done = {}, {}, {}, {}
        self._worker_ends.clear()
        self._schedule.new_cluster()
        if self._chaos is not None:
            self._chaos.new_cluster()
        self._step, self._not_shown = steps_before, 0
        self._owed = why if isinstance(why, ResizeDueError) else None

    @contextmanager
    def _checkpoints(self, endpoint: str) -> Iterator[SavingThread]:
        options = self._options
        url = options.checkpoint or ""
        thread = SavingThread(
            endpoint, url, options.checkpoint_every_s if url else None, options.checkpoint_keep, self._progress.say,
            Increments() if options.checkpoint_incremental else None,
        )  # fmt: skip
        try:
            yield thread
        finally:
            thread.stop()
            self._saved += [each.checkpoint for each in thread.written]
            self._not_saved += thread.failed
            self._last_checkpoint_error = thread.error

    def _say_groups(self, cluster: LocalCluster) -> None:
        if self._groups.count > 1:
            r = self._options.code_spec.r
            self._progress.say(f"{self._groups}; each tolerates the death of {r} at a time")
        if cluster.crowding > 1 and self._options.heartbeat_timeout_ms is None:
            self._progress.say(
                f"more than {SERVERS_PER_CORE} servers share a core: one that is silent counts as down after "
                f"{cluster.heartbeat_timeout_ms} ms (--heartbeat-timeout-ms)"
            )

    # ------------------------------------------------------------------ workers
    def _counted(self, cluster: LocalCluster, rows: RowCount) -> "list[Counted]":
        """Rows of each file of the data, once they are counted. Servers that end meanwhile are started again."""
        begin, said = time.monotonic(), False
        while not rows.is_done:
            cluster.pump(PUMP_S)
            if not said and time.monotonic() - begin > COUNTING_SAID_S:
                said = True
                self._progress.say(f"counting the rows of {', '.join(self._options.data)}, once for all workers")
        return rows.result()

    def _start_workers(self, cluster: LocalCluster, counted: "list[Counted]") -> None:
        self._write_config(counted)
        for rank in range(self._options.workers):
            self._start_worker(cluster, rank, "--first-step", str(self._first_step(rank)))

    def _first_step(self, rank: int) -> int:
        """Steps before those of a worker that starts now: its own, and those in what its cluster began with."""
        life = self._life
        return life.trained // self._options.batch + sum(step.worker == rank for step in life.steps)

    def _write_config(self, counted: "list[Counted]") -> None:
        threads = worker_threads(cores(), self._options.workers)
        trace = self._traces.of_life(len(self._lives)) if self._options.trace is not None else None
        config = worker_config(self._options, threads, counted, trace)
        self._worker_config.write_text(json.dumps(config))

    @property
    def _worker_config(self) -> Path:
        return self._run_dir / "config.json"

    def _start_worker(self, cluster: LocalCluster, rank: int, *arguments: str) -> Child:
        child = cluster.start_worker(
            rank,
            self._options.workers,
            ["-m", WORKER_MODULE, "--config", str(self._worker_config), *arguments],
            thread_environment(worker_threads(cores(), self._options.workers)),
        )
        self._workers[child] = rank
        return child

    def _train(self, cluster: LocalCluster, watch: ClusterWatch) -> None:
        spares_started = False
        while len(self._done) < self._options.workers:
            if not spares_started and watch.all_up:
                spares_started = True
                for _ in range(self._options.spare_count):
                    cluster.add_spare()
            for event in cluster.pump(PUMP_S):
                if isinstance(event, Line):
                    self._on_event(event.child, event.data)
                    # At once: the next step may already be in the pipe.
                    self._kill_what_is_due(cluster, watch)
                    self._kill_workers_due(cluster)
                else:
                    self._on_worker_ended(cluster, event)
            self._look(watch)
            self._look_at_size(cluster, watch)
            self._kill_what_is_due(cluster, watch)
            self._end_fenced_workers(cluster, watch)

    def _look(self, watch: ClusterWatch) -> None:
        if watch.lost:
            raise DataLostError(watch.lost)
        self._progress.health({shard: now.state for shard, now in watch.standing.items()})

    def _look_at_size(self, cluster: LocalCluster, watch: ClusterWatch) -> None:
        """Raises ResizeDueError when the run is to go on with other servers."""
        if self._owed is not None and self._life.steps:
            last = rewind_entries(self._rewound, self._lives)[-1]
            self._resizing.done(self._owed, last["examples_repeated"], last["seconds_stood_still"])
            self._owed = None
        if watch.all_up:
            self._resizing.look(cluster.endpoint, self._options)

    def _kill_what_is_due(self, cluster: LocalCluster, watch: ClusterWatch) -> None:
        # The scheduler's news may be older than what the launcher saw.
        standing = {
            shard: now if cluster.runs(now.endpoint) else now._replace(state=DOWN)
            for shard, now in watch.standing.items()
        }
        for kill in self._schedule.due(self._step, standing):
            self._kill(cluster, standing, kill.shard, kill.step)
        if self._chaos is not None and self._step:
            for shard in self._chaos.due(time.monotonic(), standing):
                self._kill(cluster, standing, shard, self._step)

    def _kill(self, cluster: LocalCluster, standing: Mapping[int, Standing], shard: int, step: int) -> None:
        at = cluster.kill(standing[shard].endpoint)
        self._life.kills.append(KillDone(at, shard, step))
        self._progress.say(f"step {self._step}: SIGKILL to ps {shard}")

    def _kill_workers_due(self, cluster: LocalCluster) -> None:
        """A worker that has joined is killed at its step; one that is still starting, as soon as it has."""
        for kill in [kill for kill in self._worker_kills if kill.step <= self._step]:
            child = next((c for c, rank in self._workers.items() if rank == kill.worker and c in self._epochs), None)
            if child is not None:
                self._worker_kills.remove(kill)
                self._epochs.pop(child)
                cluster.kill_worker(child)
                self._progress.say(f"step {self._step}: SIGKILL to worker {kill.worker}")

    def _end_fenced_workers(self, cluster: LocalCluster, watch: ClusterWatch) -> None:
        """A worker that the scheduler has given up, and that does not end, is stopped: its place is another's."""
        others_done = len(self._done) >= self._options.workers - 1
        for child, epoch in list(self._epochs.items()):
            rank = self._workers.get(child)
            if rank is None or rank in self._done or watch.fenced.get(rank, 0) < epoch:
                continue
            since = self._fenced_at.setdefault(child, time.monotonic())
            if others_done or time.monotonic() - since > FENCED_GRACE_S:
                self._epochs.pop(child)
                cluster.kill_worker(child)

    def _on_event(self, child: Child, event: Mapping[str, Any]) -> None:
        rank = self._workers[child]
        kind = event.get("event")
        if kind == "joined":
            self._epochs[child] = event["epoch"]
        elif kind == "step":
            self._life.stepped(Step(event["at"], rank, event["examples"], event["skipped"]))
            self._not_shown += event["examples"]
            step = self._steps_done()
            if step > self._step:
                self._step = step
                self._progress.step(self._step, self._not_shown, event["loss"])
                self._not_shown = 0
        elif kind == "bad_rows":
            self._on_bad_rows(event["rows"], event["texts"])
        elif kind == "warning":
            self._progress.say(f"worker {rank}: {event['text']}")
        elif kind == "bad_data":
            advice = "" if self._options.bad_rows == SKIP_BAD_ROWS else ADVICE_ON_BAD_ROWS
            raise DataError(f"--data: {event['text']}{advice}")
        elif kind == "first_row":
            self._life.first_rows.append(FirstRow(event["at"], event["shard"], event["epoch"]))
        elif kind == "done":
            self._done[rank] = dict(event)

    def _on_bad_rows(self, rows: list[int], texts: list[str]) -> None:
        """A worker has left out these rows; ``texts`` are of the first of them."""
        told: list[str] = texts + [""] * (len(rows) - len(texts))
        for row, text in zip(rows, told, strict=True):
            if row not in self._bad_rows and text and len(self._bad_rows) < BAD_ROWS_SAID:
                self._progress.say(f"a bad row is skipped: {text}")
            self._bad_rows[row] = self._bad_rows.get(row) or text

    def _steps_done(self) -> int:
        """Steps of all workers; none waits for another one that is slower, or dead, if it need not. Those that were
        undone do not count."""
        life = self._life
        if self._options.leases_splits:
            return life.steps_before + len(life.steps) // self._options.workers
        return life.steps_of_first

    def _on_worker_ended(self, cluster: LocalCluster, event: Ended) -> None:
        rank = self._workers.pop(event.child)
        self._epochs.pop(event.child, None)
        if event.code == 0 and rank in self._done:
            return
        if event.code == ExitCode.DATA_LOST:
            raise DataLostError(event.child.describe_end())
        died = event.code < 0 or event.code == ExitCode.REPLACED
        ends = self._worker_ends[rank]
        ends.append(time.monotonic())
        while ends[0] < ends[-1] - DEATHS_SPAN_S:
            ends.popleft()
        if not died or not self._options.leases_splits or len(ends) >= DEATHS_MAX:
            raise ClusterError(event.child.describe_end())
        self._done.pop(rank, None)
        self._worker_deaths += 1
        self._progress.say(f"worker {rank} died; another process goes on with its part of the data")
        self._start_worker(cluster, rank, "--first-step", str(self._first_step(rank)))

    def _explain(self, error: ClusterError, cluster: LocalCluster, watch: ClusterWatch) -> ClusterError:
        """The error with what lies behind it: lost data, and servers that ended on their own."""
        lost = error if isinstance(error, DataLostError) else None
        if reason := watch.lost or _lost_by_now(cluster.endpoint):
            # The worker's end may be seen before the reason for it.
            lost = DataLostError(reason)
        failures = [failure for failure in cluster.failures if failure not in str(error)][:FAILURES_SHOWN]
        return type(lost or error)("\n".join([str(lost or error), *failures]))

    # ------------------------------------------------------------------ afterwards
    def _settle(self, cluster: LocalCluster, watch: ClusterWatch) -> ClusterState:
        """The state once all shards are whole and their watermarks are newer than the workers' end."""
        done = time.monotonic()
        margin_ms = HEARTBEATS_AFTER * self._options.heartbeat_ms
        while True:
            self._look(watch)
            seen = watch.latest
            state = None if seen is None else seen.state
            age_ms = 0.0 if seen is None else (seen.asked_at - done) * 1e3
            if (
                state is not None
                and len(state.shards) == self._options.shards
                and all(s.state == UP and s.silent_ms + margin_ms < age_ms for s in state.shards)
                and self._life.deaths(state.history) >= len(self._life.kills)
            ):
                return state
            limit_s = WHOLE_TIMEOUT_S * cluster.crowding
            if time.monotonic() - done > limit_s:
                raise ClusterError(f"the cluster was not whole {limit_s:.0f} s after training: {_states(state)}")
            cluster.pump(PUMP_S)

    def _scrub(self, cluster: LocalCluster, endpoint: str) -> ScrubOutcome:
        outcome = scrub(endpoint, SCRUB_TIMEOUT_S * cluster.crowding, lambda: _drop(cluster.pump(0.0)))
        for line in describe_bad(outcome.bad):
            self._progress.say(line)
        return outcome

    def _report(self, state: ClusterState, outcome: ScrubOutcome) -> dict[str, Any]:
        acked = {rank: {int(shard): push for shard, push in done["acked"].items()} for rank, done in self._done.items()}
        first = self._done[0]
        seconds = max(done["seconds"] for done in self._done.values())
        if self._worker_deaths or self._rewound:
            times = [step.at for step in self._steps]
            seconds = max(times) - min(times)
        examples = sum(step.examples for step in self._steps)
        history: list[HistoryEntry] = [entry for life in self._lives for entry in life.history]
        went_back = rewind_entries(self._rewound, self._lives)
        return {
            "steps": self._steps_done(),
            "examples": examples,
            "seconds": seconds,
            "examples_per_s": examples / seconds if seconds else None,
            "auc": first["auc"],
            "logloss": first["logloss"],
            "normalized_entropy": first["normalized_entropy"],
            "training": first["training"],
            "bad_rows": len(self._bad_rows),
            "bad_row": next((text for _, text in sorted(self._bad_rows.items()) if text), None),
            "model_digest": first["model_digest"],
            "lost_updates": lost_updates(acked, {s.shard: s.watermarks for s in state.shards}) + state.updates_damaged,
            "updates_damaged": state.updates_damaged,
            "rows_reinitialised": state.rows_reinitialised,
            "losses": loss_entries(state),
            "groups": group_entries(self._groups, self._kills, history, state),
            "kills": all_kills(self._lives),
            "deaths": sum(entry.event == "down" for entry in history),
            "kills_not_done": [str(kill) for kill in [*self._schedule.left, *self._worker_kills]],
            **data_figures(state.datasets, examples),
            "worker_deaths": self._worker_deaths,
            "waited_s": [self._done[rank]["waited_s"] for rank in sorted(self._done)],
            "resume_differences": self._differences,
            "rewinds": [entry for entry in went_back if not entry["resized"]],
            "resizes": [entry for entry in went_back if entry["resized"]],
            "checkpoints": self._saved,
            "checkpoints_failed": self._not_saved,
            "last_checkpoint_error": self._last_checkpoint_error,
            "parity_ok": outcome.ok,
            "stripes_scrubbed": outcome.stripes,
            "parity_rows_scrubbed": outcome.parity_rows,
            "updates_acknowledged": sum(sum(shards.values()) for shards in acked.values()),
            "config": resolved_config(self._options),
            "versions": versions(),
            "machine": machine(),
        }


def run_training(options: TrainOptions, make_progress: Callable[[], ProgressView]) -> dict[str, Any]:
    """Do a run whose options are checked; write and return the report.

    The run directory is a temporary one, unless named; a temporary one is left in place when the run fails.
    """
    scratch = Scratch("ecrec-train-") if options.run_dir is None else None
    run_dir = Path(options.run_dir or "") if scratch is None else scratch.path
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--run-dir {run_dir}: {error.strerror}") from error
    with make_progress() as progress:
        report = TrainingRun(options, run_dir, progress).run()
    if scratch is not None:
        scratch.remove()
    if options.report is not None:
        text = json.dumps(report, indent=2) + "\n"
        try:
            Path(options.report).write_text(text)
        except OSError as error:
            raise ClusterError(
                f"training is done, but the report cannot be written to {options.report}: {error.strerror}. "
                f"It is:\n{text}"
            ) from error
    if report["last_checkpoint_error"]:
        raise CheckpointError(f"training is done, without a last checkpoint: {report['last_checkpoint_error']}")
    return report


def worker_config(
    options: TrainOptions, threads: int, counted: "list[Counted]", trace: Path | None = None
) -> dict[str, Any]:
    """What a worker is told; see `ecrec.train.steps`. ``trace``: where it writes its own."""
    found = {"data_rows": [each.rows for each in counted], "data_marks": [each.marks for each in counted]}
    path = None if trace is None else str(trace)
    return {**resolved_config(options), "threads": threads, **found, "trace": path}


def resolved_config(options: TrainOptions) -> dict[str, Any]:
    """All options, with the columns, groups, time-out and learning rates that are used."""
    config: dict[str, Any] = msgspec.to_builtins(options)
    if options.data:
        from ecrec.data.columns import read_columns  # numpy, which runs on generated data do without
        from ecrec.data.opened import absolute

        config["data"] = [absolute(file) for file in options.data]
        config["columns"] = None if options.columns is None else msgspec.to_builtins(read_columns(options.columns))
    for name in ("metrics", "tensorboard", "trace"):
        if config[name] is not None:
            config[name] = str(Path(config[name]).absolute())
    config["groups"] = options.dealt.count
    config["heartbeat_timeout_ms"] = options.heartbeat_timeout_ms or default_heartbeat_timeout_ms(options.shards)
    config["lr"] = options.learning_rate
    config["dense_lr"] = options.dense_learning_rate
    return config


def _states(state: ClusterState | None) -> str:
    if state is None:
        return "the scheduler never answered"
    return ", ".join(f"shard {s.shard} is {s.state}, heard of {s.silent_ms:.0f} ms ago" for s in state.shards)


def _lost_by_now(endpoint: str) -> str:
    try:
        return cluster_state(endpoint, 1.0).lost
    except ClusterError:
        return ""


def _drop(_: object) -> None:
    return None
