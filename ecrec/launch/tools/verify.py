"""Scrub a running cluster: every parity row against the data rows of its stripe, at consistent cuts."""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from ecrec.errors import ClusterError, DataLostError
from ecrec.launch.environment import curve_keys
from ecrec.protocol.messages import ClusterQuery, ClusterState
from ecrec.protocol.scrub_tool import BadStripe, ScrubMachine, ScrubOutcome
from ecrec.transport.client_node import ClientNode, query, tool_address

STATE_MS = 500.0
"""How often the scheduler is asked who the shards are."""

NEWS_S = 0.5
"""The time that the scheduler has to answer. Meanwhile the answers of the shards wait."""

SAID_S = 3.0
"""After this time without progress the log says what the scrub waits for."""

log = logging.getLogger(__name__)

_PUMP_MS = 20.0


def cluster_state(endpoint: str, timeout_s: float = 3.0, curve_dir: str | None = None) -> ClusterState:
    """What the scheduler knows. ``curve_dir``: of keys, else as `curve_keys` finds it.

    Raises ClusterError when it does not answer in time, ConfigurationError for keys that cannot be used.
    """
    question = ClusterQuery(secrets.randbelow(1 << 31))
    return cast(ClusterState, query(endpoint, question, timeout_s * 1e3, curve_keys(curve_dir)))


def scrub(
    endpoint: str,
    timeout_s: float,
    meanwhile: Callable[[], None] = lambda: None,
    curve_dir: str | None = None,
    *,
    repair: bool = False,
    rate_mb_s: float | None = None,
) -> ScrubOutcome:
    """Compare all parity with all data of the running cluster. ``curve_dir``: as of `cluster_state`.

    ``repair``: parity rows that do not fit are rewritten. ``rate_mb_s``: read at most so many megabytes a second.
    ``meanwhile`` is called every few tens of milliseconds. Raises ClusterError when no chunk is finished for
    ``timeout_s`` seconds, DataLostError when data was lost.
    """
    state = _intact(cluster_state(endpoint, curve_dir=curve_dir))
    machine = ScrubMachine(tool_address(), state, repair, rate_mb_s)
    if machine.is_empty:
        return machine.outcome
    with ClientNode(endpoint, machine, curve_keys(curve_dir)) as node:
        node.perform(machine.update(state))
        asked = moved = time.monotonic()
        said = False
        seen = machine.outcome
        while not machine.done:
            node.pump(_PUMP_MS)
            now = time.monotonic()
            meanwhile()
            outcome = machine.outcome
            if outcome != seen:
                seen, moved, said = outcome, now, False
            if now - moved > timeout_s:
                reason = f": {machine.waits_for}" if machine.waits_for else ""
                raise ClusterError(f"the scrub did not go on for {timeout_s:.0f} s{reason}")
            if now - moved > SAID_S and machine.waits_for and not said:
                said = True
                log.warning("the scrub waits, %.0f s at most: %s", timeout_s, machine.waits_for)
            if now - asked > STATE_MS / 1e3:
                asked = now
                try:
                    state = cluster_state(endpoint, NEWS_S, curve_dir)
                except ClusterError:
                    continue  # a scheduler that restarts is no reason to give up: the shards answer without it
                node.perform(machine.update(_intact(state)))
    return machine.outcome


def _intact(state: ClusterState) -> ClusterState:
    if state.lost:
        raise DataLostError(f"there is nothing to compare: {state.lost}")
    return state


def describe_bad(bad: Sequence[BadStripe], most: int = 10) -> Iterable[str]:
    """One line for each bad stripe, up to a number of them."""
    for stripe in bad[:most]:
        yield f"table {stripe.table}, stripe {stripe.stripe}: {_describe(stripe)}"
    if len(bad) > most:
        yield f"and {len(bad) - most} more"


def _describe(stripe: BadStripe) -> str:
    if stripe.row is not None:
        return (
            f"data row {stripe.row} on shard {stripe.shard} is wrong, all parity agrees on it; it is not repaired: "
            "pushes since may have built on it"
        )
    done = "rewritten from the data rows" if stripe.repaired else "not repaired"
    why = "" if stripe.located else ", or else a data row: nobody can tell, and training uses the data rows"
    return f"parity row {stripe.parity} on shard {stripe.shard} is wrong{why}; {done}"
