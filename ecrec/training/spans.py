"""What a session does when: spans of its first steps, as Chrome's trace format has them.

The format is "Trace Event Format" (Chromium); chrome://tracing and ui.perfetto.dev read it. The thread of
the script has complete events (``X``), which nest: a step, in it read, plan, pull, compute and push, and in these each
wait. What is in flight to a shard overlaps, and is an asynchronous event (``b``, ``e``) of its own name.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import msgspec

STEPS_MAX = 10_000
"""Of a trace: some 30 events each, 100 bytes an event; what shows them takes no more than some 100 MB."""

EVENTS_MAX = 1_000_000
"""A trace ends early after so many: a step that waits for hours has many."""

SCRIPT_THREAD = 1
"""The thread of a trace on which the script runs."""


_Event: TypeAlias = tuple[str, str | int, float, Any, Any]
"""Phase; name, or shard; when; end, or id; arguments, or kind. JSON is made of it in the thread that writes."""


class Traced(Protocol):
    """What is looked at in a machine."""

    @property
    def acked(self) -> Mapping[int, int]: ...

    @property
    def pushed(self) -> Mapping[int, int]: ...

    def answered(self, ticket: int) -> Collection[int] | None: ...

    def down(self) -> Mapping[int, float]: ...


class Spans:
    """Spans of the next ``steps`` steps of a session of worker ``worker``, in its life ``epoch``; process ``pid``.

    Times are seconds of the monotonic clock, which all processes of a machine share. Whoever has the lock of the
    session records; any thread may `take`.
    """

    def __init__(self, steps: int, worker: int, epoch: int, pid: int) -> None:
        self._left = steps
        self._pid = pid
        self._ids = itertools.count(1)
        self._begin = time.monotonic()
        """Of the step."""
        self._computes: float | None = None
        """Since when the script computes."""
        self._pulls: dict[int, dict[int, int]] = {}
        """Ticket -> shard -> id of the event, of those that have not answered."""
        self._pushes: dict[int, deque[tuple[int, int]]] = {}
        """Shard -> (number, id) of pushes that are not durable there."""
        self._down: set[int] = set()
        name = f"worker {worker}" if epoch <= 1 else f"worker {worker}, life {epoch}"
        self._taken = 0
        self._events: deque[_Event] = deque(
            [
                ("M", "process_name", 0.0, 0.0, {"name": name}),
                ("M", "process_sort_index", 0.0, 0.0, {"sort_index": worker}),
                ("M", "thread_name", 0.0, 0.0, {"name": "script"}),
            ]
        )

    @property
    def records(self) -> bool:
        """Steps are left to record."""
        return self._left > 0 and self._taken + len(self._events) < EVENTS_MAX

    @property
    def is_over(self) -> bool:
        """Nothing more comes: all steps are recorded, and nothing of them is in flight."""
        return not self.records and not self._pulls and not any(self._pushes.values())

    def span(self, name: str) -> AbstractContextManager[None]:
        """What is done in this context is one span."""
        return _Span(self, name)

    def add(self, name: str, begin: float, end: float, args: Mapping[str, Any] | None = None) -> None:
        """A span that is over."""
        if self.records:
            self._events.append(("X", name, begin, end, args))

    def computes(self) -> None:
        """The script has its batch."""
        self._computes = time.monotonic()

    def computed(self) -> None:
        """The script calls `push`. Without `prefetch` it has computed, and pulled, since the step before."""
        self.add("compute", self._begin if self._computes is None else self._computes, time.monotonic())
        self._computes = None

    def stepped(self, step: int, examples: int) -> None:
        """A push was made, the end of a step."""
        end = time.monotonic()
        self.add("step", self._begin, end, {"step": step, "examples": examples})
        self._begin = end
        self._left -= 1

    def pulls(self, ticket: int, shards: Collection[int]) -> None:
        """Shards were asked for rows."""
        if self.records:
            self._pulls[ticket] = {shard: self._fly("pull", shard) for shard in shards}

    def pushes(self, machine: Traced) -> None:
        """A push was sent to all shards."""
        if self.records:
            for shard, number in machine.pushed.items():
                self._pushes.setdefault(shard, deque()).append((number, self._fly("push", shard)))

    def look(self, machine: Traced) -> None:
        """Messages were handled: what is not in flight any more?"""
        for ticket, open_ in list(self._pulls.items()):
            answered = machine.answered(ticket)
            for shard in list(open_) if answered is None else open_.keys() & answered:
                self._land("pull", shard, open_.pop(shard))
            if not open_:
                del self._pulls[ticket]
        for shard, number in machine.acked.items():
            sent = self._pushes.get(shard)
            while sent and sent[0][0] <= number:
                self._land("push", shard, sent.popleft()[1])
        down = set(machine.down())
        for shard in sorted(down ^ self._down) if self.records else ():
            text = f"shard {shard} is {'down' if shard in down else 'there again'}"
            self._events.append(("i", text, time.monotonic(), 0.0, None))
        self._down = down

    def take(self) -> list[bytes]:
        """The events since the last call, a JSON object each."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._events.popleft())
        self._taken += len(taken)
        return [self._json(event) for event in taken]

    def _json(self, event: _Event) -> bytes:
        """Put together by hand, for a thread that encodes keeps the script from running; names need no escapes."""
        phase, name, at, more, args = event
        begin = _ns(at)
        text = f'{{"ph":"{phase}","pid":{self._pid},"tid":{SCRIPT_THREAD}'
        if phase != "M":
            text += f',"ts":{begin / 1e3:.3f}'
        if phase in "be":
            return f'{text},"cat":"{args}","id2":{{"local":"{more:#x}"}},"name":"{args} shard {name}"}}'.encode()
        text += f',"name":"{name}"'
        if phase == "X":
            text += f',"dur":{(_ns(more) - begin) / 1e3:.3f}'
        elif phase == "i":
            text += ',"s":"p"'  # marks the process
        if args is None:
            return f"{text}}}".encode()
        return f'{text},"args":'.encode() + msgspec.json.encode(args) + b"}"

    def _fly(self, kind: str, shard: int) -> int:
        number = next(self._ids)
        self._events.append(("b", shard, time.monotonic(), number, kind))
        return number

    def _land(self, kind: str, shard: int, number: int) -> None:
        self._events.append(("e", shard, time.monotonic(), number, kind))


class _Span:
    """A context that is one span of a trace; cheap, for each step has several."""

    __slots__ = ("_begin", "_name", "_spans")

    def __init__(self, spans: Spans, name: str) -> None:
        self._spans, self._name, self._begin = spans, name, time.monotonic()

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._spans.add(self._name, self._begin, time.monotonic())


def _ns(at: float) -> int:
    """Whole nanoseconds: what nests in seconds nests in them."""
    return round(at * 1e9)
