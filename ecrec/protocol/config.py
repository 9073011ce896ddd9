"""Every limit and timeout of the protocol, once, with its unit and its reason."""

from typing import Annotated

import msgspec

# What a message may say; a number that no cluster uses is refused where it is read.
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
WholeMilliseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]

NEVER_MS = float("inf")


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

    unstable_bytes_max: Count = 1 << 30
    """Of the records of a shard's closed windows that are not yet stable. Beyond it no push is applied: pushes wait
    where they are bounded, and so do the workers, instead of windows for a peer that hangs."""

    frame_bytes_max: Count = (1 << 31) - 1
    """Of any frame from one shard to another; the wire takes no longer one (`wire.FRAME_BYTES_MAX`). A push whose
    deltas would not fit is refused; what is cut in pieces (seeds, repairs, scrubs) stays far below."""

    ack_delay_ms: Milliseconds = 20.0
    """An acknowledgement waits at most this long for a push that opens a window; that window then carries it.
    Nobody waits for it but the limit of pushes in flight; a second window that comes meanwhile has its own at once."""

    heartbeat_ms: WholeMilliseconds = 100
    """How often a shard or worker reports to the scheduler."""

    heartbeat_timeout_ms: WholeMilliseconds = 800
    """A shard that is silent for longer than this is declared down. Below 1 s, above what a busy core makes a process
    wait."""

    heartbeat_timeout_many_ms: WholeMilliseconds = 5000
    """The same where data would be lost by it, and for those who heard of the shard last, its peers included: a machine
    without time for its processes, and a network that is cut, look just like that."""

    isolated_timeout_ms: WholeMilliseconds = 60_000
    """The same where nobody is heard who misses the shard, or more of its group are silent than heard, and only from
    when on a process waits for the place of each of them: it may be the scheduler that is cut off, and that ends some
    time. Far longer than a restart of a switch, and than what moves a scheduler to another host."""

    link_timeout_ms: WholeMilliseconds = 4000
    """Of two members one of which waits for the other's acknowledgement, and one of which has heard nothing of the
    other for this long, one is to be replaced, though the scheduler hears both: no push can become durable. What they
    have not read yet is no silence, so that a busy host does not look like a cut."""

    stuck_timeout_ms: WholeMilliseconds = 60_000
    """A member that is heard, and acknowledges no window for this long, is replaced if nothing is lost: something is
    wrong with it. Far above what a loaded host makes it wait."""

    blocked_timeout_ms: WholeMilliseconds = 20_000
    """Requests for tables that wait for a suspect whose death would lose data are refused with the reason after so
    long; a session gives up after 60 s and knows less."""

    view_timeout_ms: WholeMilliseconds = 0
    """A member that is heard, but confirms no view in this time though there are newer ones, is replaced: settlements,
    fences and new tables wait for it. 0: `link_timeout_ms`, because both are cuts that nothing else shows."""

    views_kept_max: Count = 10_000
    """Views of a group that are kept for members that are behind. A member that is farther behind is told to stop."""

    reconnect_grace_ms: WholeMilliseconds = 150
    """A closed connection that does not come back within this time means death, before the heartbeat does: unless a
    peer of the shard still has a connection to it, or the shard is heard."""

    form_after_ms: WholeMilliseconds = 300
    """A scheduler without a state starts no group before it has listened for this long: members of a cluster that
    lives, whose state was lost, are heard by then. Processes that wait for a place must not become a new cluster."""

    reach_timeout_ms: WholeMilliseconds = 5000
    """A process gets a place when the scheduler has reached it at the endpoint that it names. One that was not reached
    for this long is told to end, and why; so is one that has a place and is reached by no other member."""

    view_resend_ms: WholeMilliseconds = 200
    """A member whose heartbeat shows an old view is sent the views after it again, at most this often."""

    state_copy_ms: WholeMilliseconds = 500
    """How often a shard is sent a copy of the scheduler's state, if that has changed: what only the scheduler knows,
    and what was not yet copied when its state is lost, cannot be adopted. A copy has some kilobytes."""

    adopt_timeout_ms: WholeMilliseconds = 5000
    """A scheduler that makes its state again waits for members that do not answer at most this time: it can declare
    them down when it has a state."""

    answer_bytes_max: Count = 1 << 30
    """Of one pull's answer; a larger one is refused, because no frame may have 2 GiB."""

    repair_timeout_ms: WholeMilliseconds = 1000
    """A repair that was not answered is asked again."""

    repair_rows_max: Count = 16384
    """Touched stripes in one repair of the background sweep, at least one row: 4 MB a member at 64 floats a row. Each
    repair has some sixteen messages, whose price is paid for all of its rows; of a sparse table a member has few of the
    rows of touched stripes, and so has the one that lost them."""

    repair_bytes_max: Count = 4 << 20
    """Of the records in one repair, of each member; at least one row. Rows may be 800 kB wide."""

    repairs_in_flight_max: Count = 8
    """Background repairs at a time, of all classes together: each waits for several processes in turn, which have
    something to do meanwhile only if there are others,"""

    foreground_repairs_max: Count = 2
    """and while workers ask for rows."""

    repairs_wanted_max: Count = 64
    """Repairs at a time of rows that pulls and pushes wait for; each costs the peers `repair_bytes_max`."""

    recovery_share_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 30
    """Of the time, the sweep of a recovery and each seeder of it take so much while workers ask for rows, and all of it
    while none does. 100: all of it always. What workers wait for is repaired at once."""

    recovery_pause_max_ms: Milliseconds = 200.0
    """The longest pause that makes: a cluster that is too busy for any recovery could lose no further server."""

    foreground_ms: Milliseconds = 1000.0
    """A shard that no worker asked anything for longer than this has no worker waiting for it. Longer than a process
    mostly takes to start: while a place is empty workers wait for it, and ask the others for nothing."""

    seed_rows_max: Count = 16384
    """Rows a shard adds to its open window for one recovering peer at a time."""

    foreground_rows_max: Count = 4096
    """The same of both while workers ask for rows: what is handled for a recovery lets them wait for 1 ms and not 4."""

    seed_bytes_max: Count = 4 << 20
    """The same in bytes of records; at least one row."""

    scrub_rows_max: Count = 1 << 16
    """Touched stripes that are compared at one cut, whatever a tool asks for,"""

    scrub_bytes_max: Count = 16 << 20
    """and bytes of their parity rows on one holder; at least one stripe."""

    scrub_wrong_bytes_max: Count = 1 << 20
    """Of the parity rows on one holder that do not fit at one cut: where there are more, fewer are compared at a time.
    To tell which member of a stripe is wrong takes some ns a byte."""

    captures_bytes_max: Count = 1 << 30
    """Of the parity rows that a shard has copied for repairs of others. Beyond it a request is put off."""

    pushes_in_flight_max: Count = 64
    """Pushes of one worker to one shard that are not yet durable: what a worker keeps, and sends again after a death.
    A push is durable half a second after it was made at the latest: at 50 pushes a second 10 to 25 are on their way."""

    pushes_kept_bytes_max: Count = 2 << 30
    """The same in bytes, of all shards together; the next push is made whatever its size."""

    push_queue_bytes_max: Count = 256 << 20
    """Of a worker's pushes that a shard has not applied yet. The next one is taken whatever its size; what follows it
    is dropped beyond this, and sent again."""

    push_queues_bytes_max: Count = 2 << 30
    """The same of all workers together: beyond it a shard takes one push of each worker at a time."""

    pulls_waiting_bytes_max: Count = 256 << 20
    """Of the row ids of pulls that wait for a push or for lost rows, of all workers; at least one pull."""

    held_bytes_max: Count = 256 << 20
    """Of one peer's messages that wait for a view. Beyond it they stay with the peer."""

    unplaced_bytes_max: Count = 64 << 20
    """Of messages to a process that has no place yet. A process that was never placed has no config but this one."""

    resend_ms: WholeMilliseconds = 500
    """A worker sends what a shard has not answered for this long again; the shard drops what it has."""

    reinitialise_lost: bool = False
    """After more deaths than the code tolerates: go on with the lost rows at their initial records, counted, instead of
    stopping. Off, because nobody should train on a damaged model without having asked for it."""
    lease_timeout_ms: WholeMilliseconds = 15_000
    """A worker that is silent for longer is given up, and its splits go to others. It reports only while it waits for
    shards: a step must take less, and so must a pause of a worker of a run (`sync`). The splits of a worker that
    is started again are handed on without that wait."""

    worker_place_kept_ms: WholeMilliseconds = 5_000
    """A process that yields (`WorkerStatus.yields`) gets the place of a worker that was silent for longer than this.
    Heartbeats come every quarter of a second, also while a script computes, unless that holds the interpreter."""

    worker_place_taken_ms: WholeMilliseconds = 500
    """It is refused if the worker is heard at least this time after it asked. Last words of a dead worker arrive
    sooner."""

    huge_pages_interval_ms: WholeMilliseconds = 50
    """How often a shard that has nothing else to do looks for parts of its tables that huge pages would hold better."""

    huge_pages_extents: Count = 8
    """Extents of 2 MiB that it looks at each time: 0.2 ms for one that is moved, so that a push which comes meanwhile
    waits for 2 ms at most. A table of 1 GB is gone through in 3 s."""

    huge_pages_pause_ms: WholeMilliseconds = 2000
    """So long it does not look after a look at all tables that moved nothing."""

    hand_over: Annotated[int, msgspec.Meta(ge=0, le=1)] = 1
    """A server that leaves is copied to a spare first. 0: it is let go as without one, and the spare recovers: for
    comparisons."""

    succession_bytes: Count = 4 << 20
    """Of the records in one message to a successor, at least one row: copying them takes a millisecond or two."""

    succession_copies_in_flight_max: Count = 2
    """Of these messages: one is put into the successor's store while the next one is copied."""

    succession_left_bytes_max: Count = 8 << 20
    """A shard whose copy lacks no more than this asks to halt its group: in 10 ms the rest is copied."""

    succession_passes_max: Count = 4
    """It asks, too, when it has copied so many times what it had at first: rows change as fast as they are copied."""

    succession_halt_timeout_ms: WholeMilliseconds = 2000
    """A succession that takes longer than this after its group was halted is given up: some member does not answer,
    and training waits."""

    succession_tries_max: Count = 3
    """A server that could not be handed over so many times is let go as without a spare, which then recovers: its rows
    change faster than they are copied, or its peers are too slow, and each try stops training for the time above."""

    succession_again_ms: WholeMilliseconds = 5000
    """The next one waits for this time after one that was given up."""

    changes_chunk_bytes: Count = 1 << 20
    """Of row ids and weights that a reader of changes gets at a time; copied in a fraction of a millisecond."""

    changes_readers_max: Count = 16
    """Readers of changes whose marks a shard keeps. One that was not heard for longest gets all rows again."""

    checkpoint_told_timeout_ms: WholeMilliseconds = 1000
    """A checkpoint is given up when a worker has not told for this long which pushes it has made: the next pushes of
    those who have told wait meanwhile. A worker that ends just then is noticed by nothing else so soon."""

    checkpoint_cut_timeout_ms: WholeMilliseconds = 10_000
    """The same when a shard has not reached the cut: it lacks pushes that a worker has made."""

    checkpoint_stall_timeout_ms: WholeMilliseconds = 60_000
    """A checkpoint of which nothing was written for this long is given up: the storage hangs."""

    checkpoint_part_bytes: Count = 8 << 20
    """Of a part, at least one row: copying it out takes milliseconds, in which no push is applied; each is a file."""

    checkpoint_parts_in_flight_max: Count = 2
    """Parts of a shard that are being written: one is written while the next is copied out."""

    checkpoint_bytes_per_s: Count = 32 << 20
    """Copied out by each shard while workers ask for something; without workers there is no limit."""

    checkpoint_kept_bytes_max: Count = 256 << 20
    """Of old records of rows that were pushed before they were copied out. Beyond it that limit does not hold; beyond
    twice as much the storage is too slow for the training, and the checkpoint is given up."""
