"""What a machine went through last: for ``ecrec status --story``, and for the log when an error ends its process."""

from collections import deque
from collections.abc import Sequence

from ecrec.protocol import messages as m

EVENTS_MAX = 256
CHARACTERS_MAX = 240
"""Of one event."""
LAST = 20
"""Events that an error shows."""


def describe(view: m.FullView | m.View) -> str:
    """A view as one short line."""
    if isinstance(view, m.FullView):
        unsettled = [(some.shard, some.epoch) for some in view.unsettled]
        return (
            f"#{view.number} FullView(shard={view.shard} epoch={view.epoch} recovering={view.recovering} "
            f"window={view.window} watermarks={view.watermarks} unsettled={unsettled})"
        )
    if isinstance(view, m.TableAdded):
        table = view.table
        what = f"{table.name}: {table.rows:,} rows x {table.dim}, {table.code}, {table.optimizer.name}"
        return f"#{view.number} TableAdded({what})"
    fields = (f"{name}={getattr(view, name)}" for name in view.__struct_fields__ if name != "number")
    return f"#{view.number} {type(view).__name__}({' '.join(fields)})"[:200]


class Story:
    """The last events of a machine: its states, the views that it took, what it warned of."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS_MAX)

    def tell(self, now_ms: float, text: str) -> None:
        self._events.append((now_ms, text[:CHARACTERS_MAX]))

    def events(self, now_ms: float) -> list[m.StoryEvent]:
        """The oldest first."""
        return [m.StoryEvent(now_ms - at_ms, text) for at_ms, text in self._events]

    def last(self, now_ms: float) -> str:
        """The last events, one a line, for an error."""
        return text(self.events(now_ms)[-LAST:])


def text(events: Sequence[m.StoryEvent]) -> str:
    """For people: one event a line."""
    return "\n".join(f"{event.before_ms / 1e3:10.3f} s before  {event.text}" for event in events)
