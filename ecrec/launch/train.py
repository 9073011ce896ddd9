"""``ecrec train``: a local cluster, workers that train a DLRM, kills, and the report of what happened."""

import json
import os
import platform
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

import ecrec
from ecrec.errors import ClusterError, ConfigurationError, DataLostError
from ecrec.launch.children import Child, Ended, Line
from ecrec.launch.cluster import (
    DEATHS_MAX,
    DEATHS_SPAN_S,
    ClusterSettings,
    LocalCluster,
    default_heartbeat_timeout_ms,
)
from ecrec.launch.kills import ChaosSchedule, KillSchedule, Standing
from ecrec.launch.options import TrainOptions
from ecrec.launch.progress import ProgressView
from ecrec.launch.report import (
    FirstRow,
    KillDone,
    Step,
    data_figures,
    group_entries,
    kill_entries,
    loss_entries,
    lost_updates,
)
from ecrec.launch.scratch import Scratch
from ecrec.launch.server import EXIT_FENCED
from ecrec.launch.threads import SERVERS_PER_CORE, cores, thread_environment, worker_threads
from ecrec.launch.train_worker import EXIT_DATA_LOST
from ecrec.launch.verify import ScrubOutcome, cluster_state, describe_bad, scrub
from ecrec.launch.watch import ClusterWatch
from ecrec.protocol.messages import DOWN, UP, ClusterState

WORKER_MODULE = "ecrec.launch.train_worker"

PUMP_S = 0.1
"""How long the launcher waits for its children before it looks at the cluster again."""

WHOLE_TIMEOUT_S = 120.0
"""After training, the last replacement gets that long to be whole; times `crowding`."""

SCRUB_TIMEOUT_S = 60.0
"""A scrub that does not go on for that long is given up; times `crowding`."""

FENCED_GRACE_S = 10.0
"""A worker that the scheduler has given up ends on its own, if it runs at all; after so long it is killed."""

FAILURES_SHOWN = 2
"""Ends of servers that an error message tells of."""

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
        self._steps_of_first = 0
        self._steps: list[Step] = []
        self._first_rows: list[FirstRow] = []
        self._kills: list[KillDone] = []
        self._done: dict[int, dict[str, Any]] = {}
        self._step = 0
        self._not_shown = 0

    def run(self) -> dict[str, Any]:
        """Train, kill, wait until all is whole again, compare everything; return the report.

        Raises ClusterError when a process fails or the cluster does not become whole, DataLostError when more
        shards died than the code stands.
        """
        settings = ClusterSettings(
            self._options.shards,
            self._run_dir,
            self._options.transport,
            self._options.heartbeat_ms,
            self._options.heartbeat_timeout_ms,
            self._options.link_timeout_ms,
            self._options.on_data_loss,
            self._options.lease_timeout_ms,
            self._groups.count,
            self._options.deaths_max,
        )
        with LocalCluster(settings) as cluster:
            endpoint = cluster.start()
            self._progress.say(f"scheduler at {endpoint}, logs in {self._run_dir / 'logs'}")
            self._say_groups(cluster)
            self._start_workers(cluster)
            with ClusterWatch(endpoint) as watch:
                try:
                    cluster.wait_ready()
                    self._train(cluster, watch)
                    state = self._settle(cluster, watch)
                except ClusterError as error:
                    raise self._explain(error, cluster, watch) from error
            self._progress.say("training is done; comparing all parity with all data")
            outcome = self._scrub(cluster, endpoint)
        return self._report(state, outcome)

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
    def _start_workers(self, cluster: LocalCluster) -> None:
        threads = worker_threads(cores(), self._options.workers)
        self._worker_config.write_text(json.dumps(worker_config(self._options, threads)))
        for rank in range(self._options.workers):
            self._start_worker(cluster, rank)

    @property
    def _worker_config(self) -> Path:
        return self._run_dir / "config.json"

    def _start_worker(self, cluster: LocalCluster, rank: int) -> None:
        child = cluster.start_worker(
            rank,
            self._options.workers,
            ["-m", WORKER_MODULE, "--config", str(self._worker_config)],
            thread_environment(worker_threads(cores(), self._options.workers)),
        )
        self._workers[child] = rank

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
            self._kill_what_is_due(cluster, watch)
            self._end_fenced_workers(cluster, watch)

    def _look(self, watch: ClusterWatch) -> None:
        if watch.lost:
            raise DataLostError(watch.lost)
        self._progress.health({shard: now.state for shard, now in watch.standing.items()})

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
        self._kills.append(KillDone(at, shard, step))
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
            self._steps.append(Step(event["at"], rank, event["examples"]))
            self._steps_of_first += rank == 0
            self._not_shown += event["examples"]
            step = self._steps_done()
            if step > self._step:
                self._step = step
                self._progress.step(self._step, self._not_shown, event["loss"])
                self._not_shown = 0
        elif kind == "first_row":
            self._first_rows.append(FirstRow(event["at"], event["shard"], event["epoch"]))
        elif kind == "done":
            self._done[rank] = dict(event)

    def _steps_done(self) -> int:
        """Steps of all workers; none waits for another one that is slower, or dead, if it need not."""
        if self._options.leases_splits:
            return len(self._steps) // self._options.workers
        return self._steps_of_first

    def _on_worker_ended(self, cluster: LocalCluster, event: Ended) -> None:
        rank = self._workers.pop(event.child)
        self._epochs.pop(event.child, None)
        if event.code == 0 and rank in self._done:
            return
        if event.code == EXIT_DATA_LOST:
            raise DataLostError(event.child.describe_end())
        died = event.code < 0 or event.code == EXIT_FENCED
        ends = self._worker_ends[rank]
        ends.append(time.monotonic())
        while ends[0] < ends[-1] - DEATHS_SPAN_S:
            ends.popleft()
        if not died or not self._options.leases_splits or len(ends) >= DEATHS_MAX:
            raise ClusterError(event.child.describe_end())
        self._done.pop(rank, None)
        self._worker_deaths += 1
        self._progress.say(f"worker {rank} died; another process goes on with its part of the data")
        self._start_worker(cluster, rank)

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
                and len(self._deaths(state)) >= len(self._kills)
            ):
                return state
            limit_s = WHOLE_TIMEOUT_S * cluster.crowding
            if time.monotonic() - done > limit_s:
                raise ClusterError(f"the cluster was not whole {limit_s:.0f} s after training: {_states(state)}")
            cluster.pump(PUMP_S)

    def _deaths(self, state: ClusterState) -> list[float]:
        begin = self._kills[0].at * 1e3 if self._kills else 0.0
        return [entry.at_ms for entry in state.history if entry.event == "down" and entry.at_ms >= begin]

    def _scrub(self, cluster: LocalCluster, endpoint: str) -> ScrubOutcome:
        outcome = scrub(endpoint, SCRUB_TIMEOUT_S * cluster.crowding, lambda: _drop(cluster.pump(0.0)))
        for line in describe_bad(outcome.bad):
            self._progress.say(line)
        return outcome

    def _report(self, state: ClusterState, outcome: ScrubOutcome) -> dict[str, Any]:
        acked = {rank: {int(shard): push for shard, push in done["acked"].items()} for rank, done in self._done.items()}
        first = self._done[0]
        seconds = max(done["seconds"] for done in self._done.values())
        if self._worker_deaths:
            times = [step.at for step in self._steps]
            seconds = max(times) - min(times)
        examples = sum(step.examples for step in self._steps)
        return {
            "steps": self._steps_done(),
            "examples": examples,
            "seconds": seconds,
            "examples_per_s": examples / seconds if seconds else None,
            "auc": first["auc"],
            "logloss": first["logloss"],
            "model_digest": first["model_digest"],
            "lost_updates": lost_updates(acked, {s.shard: s.marks for s in state.shards}) + state.updates_damaged,
            "updates_damaged": state.updates_damaged,
            "rows_reinitialised": state.rows_reinitialised,
            "losses": loss_entries(state),
            "groups": group_entries(self._groups, self._kills, state),
            "kills": kill_entries(self._kills, self._steps, state.history, self._first_rows),
            "deaths": sum(entry.event == "down" for entry in state.history),
            "kills_not_done": [str(kill) for kill in [*self._schedule.left, *self._worker_kills]],
            **data_figures(state.datasets, examples),
            "worker_deaths": self._worker_deaths,
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
    return report


def worker_config(options: TrainOptions, threads: int) -> dict[str, Any]:
    """What a worker is told; see `ecrec.training.train`."""
    return {**resolved_config(options), "threads": threads}


def resolved_config(options: TrainOptions) -> dict[str, Any]:
    """All options, with the groups, time-out and learning rates that are used."""
    config: dict[str, Any] = msgspec.to_builtins(options)
    config["data"] = [str(Path(file).absolute()) for file in options.data]
    config["groups"] = options.dealt.count
    config["heartbeat_timeout_ms"] = options.heartbeat_timeout_ms or default_heartbeat_timeout_ms(options.shards)
    config["lr"] = options.learning_rate
    config["dense_lr"] = options.dense_learning_rate
    return config


def versions() -> dict[str, str]:
    """What took part."""
    found = {"ecrec": ecrec.__version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "pyzmq", "msgspec"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
