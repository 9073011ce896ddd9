"""Figures of one run, from its raw lines. Everything here is arithmetic: no clock, no file."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ecrec.reproduce.plan import PARTIAL
from ecrec.reproduce.raw import Record

TOGETHER_S = 0.5
"""Kills that are no further apart belong to one failure."""

BEFORE_S = 5.0
"""The throughput before a kill is that of so many whole seconds, at most."""


class Failure(NamedTuple):
    """What followed one kill, or several at once; times in seconds from the first of them. None: it never came."""

    at_s: float
    servers: int
    noticed_s: float | None
    """The scheduler declared the death, or the launcher saw the process end where all goes back."""
    first_row_s: float | None
    """A worker got rows from the replacement."""
    whole_s: float | None
    """All rows and all redundancy are there again."""
    loaded_s: float | None
    """A checkpoint, or a part of it, had been read and loaded; how long that took alone:"""
    load_s: float | None
    load_bytes: float
    lost_examples: float
    caught_up_s: float | None
    """The position of the kill was reached again."""
    recovery_s: float | None
    """Until training was where it was, and as safe: the latest of what the mode needs."""
    pause_s: float
    """The longest time between two steps of a worker meanwhile."""
    before: float | None
    """Useful examples a second before."""
    during: float | None
    """The same from the kill until ``recovery_s``: what is lost and repeated does not count."""

    @property
    def ratio(self) -> float | None:
        return None if not self.before or self.during is None else self.during / self.before


class Measured(NamedTuple):
    """A run."""

    record: Record
    rate: float | None
    """Examples a second from the end of the warm-up until the first kill, or the end."""
    cpu_ms: float | None
    """Processor milliseconds of servers and workers for 1,000 examples, in the same time."""
    useful: float
    """Examples that the model at the end has seen since the clock started."""
    seconds: float
    lost_examples: float
    checkpoints: int
    checkpoint_s: float | None
    """Median of how long one took; training stood meanwhile only with stop-the-world ones."""
    checkpoint_bytes: float
    data_bytes: float
    parity_bytes: float
    resident_bytes: float
    failures: list[Failure]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def mode(self) -> str:
        return self.record.run.mode_name

    @property
    def useful_rate(self) -> float:
        """Useful examples a second over the whole run."""
        return self.useful / self.seconds if self.seconds > 0 else 0.0


def measure(record: Record) -> Measured:
    """All figures of a run."""
    run, end = record.run, record.end
    kills = record.of("kill")
    begin = next((event["position"] for event in record.of("begin")), 0)
    last = min([end["t"], *(kill["t"] for kill in kills)])
    written = record.of("checkpoint ends")
    servers = [line for line in record.servers if line["t"] >= 0.0]
    return Measured(
        record=record,
        rate=throughput(record, run.warm_up_s, last),
        cpu_ms=_cpu_ms(record, run.warm_up_s, last),
        useful=max(0.0, end["position"] - begin),
        seconds=end["t"],
        lost_examples=sum(event["examples"] for event in record.of("goes back")),
        checkpoints=len(written),
        checkpoint_s=median([event["seconds"] for event in written]),
        checkpoint_bytes=sum(event["bytes"] for event in written),
        data_bytes=max((line["data_bytes"] for line in servers), default=0.0),
        parity_bytes=max((line["parity_bytes"] for line in servers), default=0.0),
        resident_bytes=max((line["resident_bytes"] for line in servers), default=0.0),
        failures=_failures(record),
    )


def median(values: Sequence[float]) -> float | None:
    """None for none."""
    if not values:
        return None
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def timeline(record: Record) -> list[tuple[int, float]]:
    """(second, examples of all workers in it), from 0 to the last whole second; those in which nothing was done too."""
    counts: dict[int, float] = {}
    for line in record.seconds:
        counts[int(line["t"])] = counts.get(int(line["t"]), 0.0) + line["examples"]
    return [(second, counts.get(second, 0.0)) for second in range(int(record.end["t"]))]


def throughput(record: Record, begin: float, end: float) -> float | None:
    """Examples a second in begin..end, of seconds as far as they lie within; None for less than half a second.

    Within a second its examples count as if they were spread evenly.
    """
    if end - begin < 0.5:
        return None
    total: float = sum(line["examples"] * _within(line["t"], begin, end) for line in record.seconds)
    return total / (end - begin)


def _within(second: float, begin: float, end: float) -> float:
    return max(0.0, min(second + 1.0, end) - max(second, begin))


def _cpu_ms(record: Record, begin: float, end: float) -> float | None:
    lines = [line for line in record.servers if begin <= line["t"] <= end and "cpu_s" in line]
    if len(lines) < 2:
        return None
    first, last = lines[0], lines[-1]
    used = sum(last[name] - first[name] for name in ("cpu_s", "worker_cpu_s"))
    rate = throughput(record, first["t"], last["t"])
    examples = rate * (last["t"] - first["t"]) if rate else 0.0
    return 1e6 * used / examples if examples else None


# ---------------------------------------------------------------------- failures
def _failures(record: Record) -> list[Failure]:
    groups: list[list[dict[str, Any]]] = []
    for kill in sorted(record.of("kill"), key=lambda event: event["t"]):
        if groups and kill["t"] - groups[-1][0]["t"] <= TOGETHER_S:
            groups[-1].append(kill)
        else:
            groups.append([kill])
    found = []
    for number, group in enumerate(groups):
        until = groups[number + 1][0]["t"] if number + 1 < len(groups) else record.end["t"] + 1e9
        found.append(_failure(record, group, until))
    return found


def _failure(record: Record, group: Sequence[dict[str, Any]], until: float) -> Failure:
    """Until the next one; ``group``: its kills."""
    at, position = group[0]["t"], group[0]["position"]
    shards = {kill["shard"] for kill in group}
    events = [event for event in record.events if at <= event["t"] < until]

    def first_of(name: str) -> dict[int, dict[str, Any]]:
        """By shard, of those that were killed."""
        found: dict[int, dict[str, Any]] = {}
        for event in events:
            if event["event"] == name and event["shard"] in shards:
                found.setdefault(event["shard"], event)
        return found

    lost = [event for event in events if event["event"] == "goes back"]
    loads = [event for event in events if event["event"] in ("loaded", "put back")]
    ended = [event for event in events if event["event"] == "process ended"]
    rows = [event for event in events if event["event"] == "first row"]
    caught_up = [event for event in events if event["event"] == "caught up"]
    goes_back = bool(lost)
    # A server that is told to end may hand its rows to another one, and nothing is to be recovered.
    down, whole = first_of("down"), {**first_of("handed over"), **first_of("whole")}
    if goes_back:
        noticed = ended[:1]
        answered = [event for event in rows if event["t"] > lost[-1]["t"]][:1]
        recovered = caught_up[-1:]
    else:
        noticed = _all_of(down, shards)
        answered = _all_of(first_of("first row"), shards)
        recovered = _all_of(whole, shards)
        if record.run.mode.recovery == PARTIAL:
            recovered = [max(*recovered, loads[-1], key=lambda event: event["t"])] if recovered and loads else []
    recovery_s = recovered[0]["t"] - at if recovered else None
    end = recovered[0]["t"] if recovered else min(until, record.end["t"])
    pauses = [e["seconds"] for e in record.of("pause") if at < e["t"] and e["t"] - e["seconds"] < end]
    return Failure(
        at_s=at,
        servers=len(shards),
        noticed_s=_after(noticed, at),
        first_row_s=_after(answered, at),
        whole_s=None if goes_back else _after(_all_of(whole, shards), at),
        loaded_s=_after(loads[-1:], at),
        load_s=sum(event["seconds"] for event in loads) if loads else None,
        load_bytes=float(sum(event["bytes"] for event in loads)),
        lost_examples=float(sum(event["examples"] for event in lost)),
        caught_up_s=_after(caught_up[-1:], at) if goes_back else None,
        recovery_s=recovery_s,
        pause_s=max(pauses, default=0.0),
        before=throughput(record, max(record.run.warm_up_s, at - BEFORE_S), at),
        during=(recovered[0]["position"] - position) / recovery_s if recovery_s else None,
    )


def _all_of(found: dict[int, dict[str, Any]], shards: set[int]) -> list[dict[str, Any]]:
    """The last of the events, if each shard has one."""
    return [max(found.values(), key=lambda event: event["t"])] if found.keys() == shards else []


def _after(events: Sequence[dict[str, Any]], at: float) -> float | None:
    return events[0]["t"] - at if events else None
