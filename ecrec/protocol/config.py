"""Every limit and timeout of the protocol, once, with its unit and its reason."""

from typing import Annotated

import msgspec

# What a message may say; a number that no cluster uses is refused where it is read.
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
WholeMilliseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class ProtocolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and timeouts that all members of a cluster share; the scheduler hands them out."""

    windows_in_flight_max: Count = 2
    """Closed windows that are not yet stable. Two keep the link busy while the open one merges deltas."""

    window_interval_ms: Milliseconds = 250.0
    """From one window to the next, while pushes come: deltas of several pushes merge, and the price of a window is paid
    once for all. The first push after a pause goes out at once, and so does what a recovery needs or a worker waits
    for (Flush)."""

    window_pushes_max: Count = 20
    """Pushes of one worker after which the open window closes before its time: what two windows in flight and the open
    one hold stays below `pushes_in_flight_max`, so that a fast worker does not wait."""

    window_bytes_max: Count = 64 << 20
    """An open window closes at this size whatever is in flight, so that no message grows without bound."""

    ack_delay_ms: Milliseconds = 20.0
    """An acknowledgement waits so long for a push that opens a window, and then for that window, which takes it along.
    Nobody waits for it but the limit of pushes in flight; a second window that comes meanwhile has its own at once."""

    heartbeat_ms: WholeMilliseconds = 100
    """How often a shard or worker reports to the scheduler."""

    heartbeat_timeout_ms: WholeMilliseconds = 800
    """A shard that was silent for so long is down. Below 1 s, above what a busy core makes a process wait."""

    heartbeat_timeout_many_ms: WholeMilliseconds = 5000
    """The same while more shards are silent, or not whole, than the code stands: to declare so many dead is to declare
    data lost, and a machine without time for its processes looks just like that."""

    link_timeout_ms: WholeMilliseconds = 4000
    """A member that acknowledged no window of another for so long is cut off from it, although the scheduler hears
    both: one of them is to be replaced, because no push can become durable. Far above what a slow shard takes."""

    reconnect_grace_ms: WholeMilliseconds = 150
    """A closed connection that does not come back within this time means death, before the heartbeat does."""

    view_resend_ms: WholeMilliseconds = 200
    """A member whose heartbeat shows an old view is sent the views after it again, at most this often."""

    answer_bytes_max: Count = 1 << 30
    """Of one pull's answer; a larger one is refused, because no frame may have 2 GiB."""

    repair_timeout_ms: WholeMilliseconds = 1000
    """A repair that was not answered is asked again."""

    repair_rows_max: Count = 4096
    """Touched stripes in one repair of the background sweep: about 1 MB a member at 64 floats a row."""

    repairs_in_flight_max: Count = 4
    """Background repairs at a time; repairs that a worker waits for are not counted."""

    seed_rows_max: Count = 4096
    """Rows a shard adds to its open window for one recovering peer at a time."""

    pushes_in_flight_max: Count = 64
    """Pushes of one worker to one shard that are not yet durable: what a worker keeps, and sends again after a death.
    A push is durable half a second after it was made at the latest: at 50 pushes a second 10 to 25 are on their way."""

    resend_ms: WholeMilliseconds = 500
    """A worker sends what a shard has not answered for so long again; the shard drops what it has."""

    reinitialise_lost: bool = False
    """After more deaths than the code stands: go on with the lost rows at their initial records, counted, instead of
    stopping. Off, because nobody should train on a damaged model without having asked for it."""
    lease_timeout_ms: WholeMilliseconds = 15_000
    """A worker that was silent for so long is over, and its splits go to others. It reports only while it waits for
    shards: a step must not take so long. What a worker that is started again has left goes on without waiting."""

    huge_pages_interval_ms: WholeMilliseconds = 50
    """How often a shard that has nothing else to do looks for parts of its tables that huge pages would hold better."""

    huge_pages_extents: Count = 8
    """Extents of 2 MiB that it looks at each time: 0.2 ms for one that is moved, so that a push which comes meanwhile
    waits for 2 ms at most. A table of 1 GB is gone through in 3 s."""

    huge_pages_pause_ms: WholeMilliseconds = 2000
    """So long it does not look after a look at all tables that moved nothing."""
