"""Which shards and workers are to be killed, and when: decisions only, no processes."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ecrec.errors import ConfigurationError
from ecrec.launch.groups import REINITIALISE, RESTORE, STOP, Tolerance
from ecrec.protocol.messages import DOWN, UP
from ecrec.protocol.watch import Standing

AFTER_LOSS = {
    STOP: "the run will end with an error",
    REINITIALISE: "rows may begin again at their initial values",
    RESTORE: "the run will go back to its newest checkpoint",
}


class Kill(NamedTuple):
    """SIGKILL to a shard's process when worker 0 has done a step."""

    shard: int
    step: int

    def __str__(self) -> str:
        return f"ps:{self.shard}@{self.step}"


class WorkerKill(NamedTuple):
    """SIGKILL to a worker's process at a step; the launcher starts it again."""

    worker: int
    step: int

    def __str__(self) -> str:
        return f"worker:{self.worker}@{self.step}"


def parse_kill(text: str) -> Kill | WorkerKill:
    """``"ps:2@20"`` -> Kill(2, 20), ``"worker:1@20"`` -> WorkerKill(1, 20). Raises ConfigurationError for anything
    else."""
    target, at, step = text.partition("@")
    kind, colon, number = target.partition(":")
    if kind not in ("ps", "worker") or not (colon and at and _is_number(number) and _is_number(step)):
        raise ConfigurationError(f"--kill {text!r}: expected ps:SHARD@STEP or worker:RANK@STEP, for example ps:2@20")
    return Kill(int(number), int(step)) if kind == "ps" else WorkerKill(int(number), int(step))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def check_kills(kills: Sequence[Kill], tolerance: Tolerance, steps: int | None, on_data_loss: str = STOP) -> list[str]:
    """Warnings about kills that lose data, group by group. Raises ConfigurationError for those that cannot be done."""
    groups, r = tolerance.groups, tolerance.code.r
    shards = groups.shards
    for kill in kills:
        if kill.shard >= shards:
            raise ConfigurationError(f"--kill {kill}: there is no shard {kill.shard}; shards are 0 to {shards - 1}")
        if kill.step < 1:
            raise ConfigurationError(f"--kill {kill}: steps are counted from 1")
        if steps is not None and kill.step > steps:
            raise ConfigurationError(f"--kill {kill}: the run has only {steps} steps")
        if list(kills).count(kill) > 1:
            raise ConfigurationError(f"--kill {kill} is given twice: a shard can die only once at a step")
    warnings = []
    for step in sorted({kill.step for kill in kills}):
        together = {kill.shard for kill in kills if kill.step == step}
        for group in sorted(tolerance.broken(together)):
            count = sum(groups.of(shard) == group for shard in together)
            of_group = f" of group {group}" if groups.count > 1 else ""
            warnings.append(
                f"killing {count} shard{'s' if count > 1 else ''}{of_group} at step {step} is more than "
                f"the code tolerates (r = {r}): data will be lost, and {AFTER_LOSS[on_data_loss]}"
            )
    return warnings


_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0}


def parse_interval(option: str, text: str) -> float:
    """``"10s"``, ``"500ms"`` or ``"2m"`` in seconds. Raises ConfigurationError for anything else, naming the option."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m)", text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ConfigurationError(f"{option} {text!r}: expected a time like 10s, 500ms or 2m, more than 0")
    return seconds


class ChaosSchedule:
    """Random shards, one in each of a random number of groups, each time that ``every_s`` have passed; the seed gives
    the order.

    Only groups that lose no data by it are hit: one that recovers counts with what it has lost already.
    """

    def __init__(self, every_s: float, seed: int, tolerance: Tolerance) -> None:
        self._every_s = every_s
        self._random = random.Random(seed)
        self._tolerance = tolerance
        self._killed: dict[int, int] = {}
        self._last_s: float | None = None

    def due(self, now_s: float, standing: Mapping[int, Standing]) -> list[int]:
        """The shards to kill now, in order; they count as killed. The first call starts the clock."""
        if self._last_s is None:
            self._last_s = now_s
        if now_s - self._last_s < self._every_s or len(standing) < self._tolerance.groups.shards:
            return []
        # The news may be older than the last kill.
        weak = {s for s, now in standing.items() if now.state != UP or now.epoch <= self._killed.get(s, -1)}
        possible: dict[int, list[int]] = {}
        for shard in sorted(standing.keys() - weak):
            group = self._tolerance.groups.of(shard)
            if group not in self._tolerance.broken(weak | {shard}):
                possible.setdefault(group, []).append(shard)
        if not possible:
            return []
        hit = self._random.sample(sorted(possible), self._random.randint(1, len(possible)))
        shards = sorted(self._random.choice(possible[group]) for group in hit)
        self._last_s = now_s
        self._killed.update((shard, standing[shard].epoch) for shard in shards)
        return shards

    def new_cluster(self) -> None:
        """Another cluster is there, whose epochs are others."""
        self._killed, self._last_s = {}, None


def check_worker_kills(kills: Sequence[WorkerKill], workers: int, steps: int | None) -> None:
    """Raise ConfigurationError for kills of workers that cannot be done."""
    for kill in kills:
        if kill.worker >= workers:
            raise ConfigurationError(f"--kill {kill}: there is no worker {kill.worker}; they are 0 to {workers - 1}")
        if kill.step < 1 or (steps is not None and kill.step > steps):
            raise ConfigurationError(f"--kill {kill}: steps are 1 to {steps or 'the last one'}")
        if list(kills).count(kill) > 1:
            raise ConfigurationError(f"--kill {kill} is given twice: a worker can die only once at a step")


class KillSchedule:
    """Kills in order of their step; those of one step are done together.

    A kill is due at its step. It is put off while it cannot mean what was asked for:

    * until the shard's process has been given its place, when the one before was killed too (the shard may
      still be recovering: the code tolerates a second death of the same shard);
    * while a group would lose data by it, together with the group's shards that are not whole yet, unless the
      kills of its step are too many by themselves: then losing data is what was asked for.
    """

    def __init__(self, kills: Sequence[Kill], tolerance: Tolerance) -> None:
        steps = sorted({kill.step for kill in kills})
        self._by_step = [[kill for kill in kills if kill.step == step] for step in steps]
        self._tolerance = tolerance
        self._killed: dict[int, int] = {}

    @property
    def left(self) -> list[Kill]:
        """Kills not yet done."""
        return [kill for together in self._by_step for kill in together]

    def due(self, step: int, standing: Mapping[int, Standing]) -> list[Kill]:
        """The kills to do now, given worker 0's last step and the latest news of all shards; they count as
        done."""
        if not self._by_step or not standing:
            return []
        together = self._by_step[0]
        if step < together[0].step or not all(self._is_placed(kill.shard, standing) for kill in together):
            return []
        shards = {kill.shard for kill in together}
        weak = {shard for shard in standing if not self._is_whole(shard, standing)}
        hit = {self._tolerance.groups.of(shard) for shard in shards}
        if hit & (self._tolerance.broken(shards | weak) - self._tolerance.broken(shards)):
            return []
        self._by_step.pop(0)
        for kill in together:
            self._killed[kill.shard] = standing[kill.shard].epoch
        return together

    def new_cluster(self) -> None:
        """Another cluster is there, whose epochs are others."""
        self._killed = {}

    def _is_placed(self, shard: int, standing: Mapping[int, Standing]) -> bool:
        now = standing.get(shard)
        return now is not None and now.state != DOWN and now.epoch > self._killed.get(shard, -1)

    def _is_whole(self, shard: int, standing: Mapping[int, Standing]) -> bool:
        return standing[shard].state == UP and self._is_placed(shard, standing)
