"""What a worker that waits tells people."""

from ecrec.protocol.client import ClientMachine

SILENT_TIMEOUTS = 3
"""A scheduler that was silent for so many time-outs is named in the advice."""


def advice(machine: ClientMachine, sync_workers: int, trouble: str) -> str:
    """Why a worker waits, and what to do about it. ``sync_workers``: how many workers' pushes are summed; ``trouble``:
    what is wrong with the connection to a scheduler that does not answer."""
    silent_ms = machine.scheduler_silent_ms
    if silent_ms is None:
        return f"the scheduler has not answered ({trouble}); is it running, and at the address given?"
    missing = _missing(machine)
    if machine.waits and silent_ms > SILENT_TIMEOUTS * machine.config.heartbeat_timeout_ms:
        missing.append(f"the scheduler has not answered for {silent_ms / 1e3:.1f} s; is it running?")
    if missing:
        return "; ".join(missing)
    if not machine.groups or len(machine.acked) < machine.shards:
        return "the cluster has not all its servers yet; `ecrec status` names those that are there"
    if machine.initial_asked:
        if machine.worker == 0:
            return "no shard is missing; an earlier life of this worker, which wrote them, has to be over first"
        return (
            "no shard is missing; has worker 0 been started, does it make the same tables in the same order, and what "
            "does its log say?"
        )
    if machine.runs.joining:
        names = ", ".join(map(str, machine.runs.missing)) or "others"
        return f"no shard is missing; worker {names} of {machine.runs.size} has not come: start all with one world_size"
    if sync_workers > 1:
        return f"no shard is missing; do all {sync_workers} workers make the same number of steps?"
    if asked := machine.unanswered():
        names = ", ".join(_name(machine, shard) for shard in asked)
        return f"no shard is missing, but not all is done that was asked of {names}; the logs may say why"
    return "no shard is missing"


def _missing(machine: ClientMachine) -> list[str]:
    """The shards that are waited for, and since when, for people."""
    suspected, down = machine.suspected(), machine.down()
    out = [f"{_name(machine, shard)} is in the way: {reason}" for shard, reason in sorted(suspected.items())]
    for shard, ms in down.items():
        if shard not in suspected:
            since = f"has been down for {ms / 1e3:.1f} s"
            out.append(f"{_name(machine, shard)} {since}; if no spare waits, start one with ecrec-ps")
    for shard, ms in machine.unheard(machine.config.heartbeat_timeout_ms).items():
        if shard not in suspected:
            out.append(
                f"{_name(machine, shard)} has not answered this worker for {ms / 1e3:.1f} s, and is not declared down; "
                "look at the network between the two"
            )
    return out


def _name(machine: ClientMachine, shard: int) -> str:
    endpoint = machine.endpoint_of(shard)
    return f"shard {shard} of {machine.shards} at {endpoint}" if endpoint else f"shard {shard}"
