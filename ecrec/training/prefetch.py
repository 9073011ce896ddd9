"""Batches whose rows are pulled while those before them are trained on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ecrec.errors import ConfigurationError
from ecrec.training.connection import Connection
from ecrec.training.parts import Part
from ecrec.training.pulls import Asked
from ecrec.training.steps import Steps

BatchT = TypeVar("BatchT")


def check_batches(what: str, batches: object, of_batch: str, function: object) -> None:
    """Raise ConfigurationError for what no batches come from, and for a ``function`` (``of_batch`` is its name) of them
    that is none."""
    if isinstance(batches, str | bytes) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise ConfigurationError(
            f"{what}: the batches are {batches!r:.100}, expected an iterable of them, such as a DataLoader, a list or "
            "a generator (of a function that makes one, what it returns)"
        )
    if not callable(function):
        raise ConfigurationError(f"{what}: {of_batch} is {function!r:.100}, expected a function of a batch")


def prefetch(
    connection: Connection,
    steps: Steps,
    batches: Iterable[BatchT],
    parts: Sequence[Part],
    features: Callable[[BatchT], Any],
    depth: int,
    exact: bool,
) -> Iterator[BatchT]:
    """The batches, each when its rows are here and offered to the parts; see `Session.prefetch`."""
    source = iter(batches)
    queue: deque[tuple[BatchT, Any, Asked, tuple[int, int]]] = deque()
    ended, failure = False, None
    while True:
        while not ended and len(queue) <= depth:
            try:
                with connection.span("read"):
                    batch = next(source)
                with connection.span("plan"):
                    seen = features(batch)
                    asked = steps.ask([part.plan(seen) for part in parts], exact)
            except StopIteration:
                ended = True
            except Exception as error:  # the good batches before this one come first
                ended, failure = True, error
            else:
                queue.append((batch, seen, asked, (steps.pushes, steps.assigns)))
        if not queue:
            if failure is not None:
                raise failure
            return
        batch, seen, asked, (pushes, assigns) = queue.popleft()
        steps.take(asked)
        if steps.pushes - pushes > depth or steps.assigns != assigns:
            # Older than was said: somebody has pushed several times for a batch, or written weights.
            asked = steps.ask([part.plan(seen) for part in parts], exact)
            steps.take(asked)
        for part, fetch in zip(parts, asked.fetches, strict=True):
            part.offer(seen, fetch)
        if connection.spans is not None:
            connection.spans.computes()
        yield batch
