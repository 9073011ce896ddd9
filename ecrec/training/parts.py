"""What a session moves: shares of shards, and the parts of a model that ask for them; what these want of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import CodeSpec, TableSpec

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TAKEN_AWAY = (
    "set to None after the backward pass and before the push (zero_grad?); a push does that itself. To give a step up: "
    "Session.discard()"
)
"""What became of gradients that are not there any more, for people."""


class Share(NamedTuple):
    """Rows of one shard: of some tables, in the order of the section, and, in a push, their values."""

    section: Section
    rows: I64
    values: F32 | None = None


def places_by_shard(rows: I64, k: int, n: int, groups: int) -> dict[int, I64]:
    """Shard (numbered over all groups) -> which of these rows of a table lie on it, as indices into ``rows``."""
    stripe, slot = np.divmod(rows, k)
    shard = stripe % groups * n + (stripe // groups + slot) % n
    return {int(s): np.flatnonzero(shard == s) for s in np.unique(shard)}


class WaitingGradients(NamedTuple):
    """Gradients that wait for a push, and may be changed in place. ``by_row``: float32[rows, dim] of rows of a table,
    each row once; else those of one parameter, of any shape."""

    values: F32
    by_row: bool


class TableSession(Protocol):
    """What reading and writing whole tables wants of a session."""

    machine: ClientMachine

    def pull_records(self, shares: Mapping[int, Share]) -> Any: ...

    def fetch(self, *fetches: "Fetch", exact: bool | None = None) -> None: ...

    def assign(self, shares: Mapping[int, Share]) -> None: ...


class Fetch(Protocol):
    """One part's rows of one pull."""

    @property
    def shares(self) -> Mapping[int, Share]:
        """What to ask of each shard."""
        ...

    def fill(self, answers: Mapping[int, Any]) -> None:
        """Take the answers of the shards asked, a buffer each."""
        ...


class PartSession(Protocol):
    """What a part wants of its session; `Session` says what each does."""

    machine: ClientMachine
    read_only: bool

    @property
    def world_size(self) -> int: ...

    @property
    def closed(self) -> bool: ...

    def default_code(self) -> CodeSpec: ...

    def check_claim(self, names: Sequence[str]) -> None: ...

    def claim(self, names: Sequence[str], owner: object) -> None: ...

    def register(self, part: "Part", keep: bool = True) -> None: ...

    def create_tables(self, specs: Sequence[TableSpec]) -> list[int]: ...

    def initialise(self, name: str, chunks: Callable[[], Sequence[Mapping[int, Share]]]) -> None: ...

    def fetch(self, *fetches: Fetch, exact: bool | None = None) -> None: ...

    def assign(self, shares: Mapping[int, Share]) -> None: ...


@runtime_checkable
class GradientOwner(Protocol):
    """A part whose gradients are looked at as those of tables, as a GradScaler does."""

    def check_gradients(self) -> None: ...

    def gradient_of(self, index: int) -> Any:
        """Those of the table of that index since the last push, one flat tensor; None without any. What is changed in
        it counts."""
        ...


class Part(Protocol):
    """Something whose rows are pulled before a step and whose gradients are pushed after it."""

    def plan(self, features: Any) -> Fetch:
        """What a batch with these features needs."""
        ...

    def offer(self, features: Any, fetch: Any) -> None:
        """The rows of this batch are here (``fetch`` is what `plan` returned) and its step begins."""
        ...

    def check_gradients(self) -> None:
        """Raise what is wrong with the gradients since the last push. Nothing is taken."""
        ...

    def waiting_gradients(self) -> list[WaitingGradients]:
        """The gradients since the last push, to be changed in place; behind `check_gradients`."""
        ...

    def take_gradients(self) -> dict[int, Share]:
        """The gradients since the last call, by shard; empty if there were none."""
        ...

    def pushed(self) -> None:
        """A push was made: the rows that are here are older than it."""
        ...

    def discard(self) -> None:
        """Forget the gradients since the last push."""
        ...

    def finish(self) -> None:
        """The session ends, after its last push."""
        ...

    def begin_evaluation(self) -> None:
        """From now on only forward passes without gradients, on what is pulled for them. A step that has begun, with
        its rows and gradients, is kept aside."""
        ...

    def end_evaluation(self) -> None:
        """All is as before `begin_evaluation`."""
        ...

    def describe(self, table: str, row: int, column: int) -> str:
        """For people: what is at this place, in words of the model. Empty if it is not a table of this part."""
        ...


class GivenGradients:
    """A part that pushes what it is given, and pulls nothing: rows are fetched beside it (`Session.fetch`)."""

    def __init__(self, gradients: Mapping[int, Share] | None = None) -> None:
        self.next: Mapping[int, Share] = gradients or {}
        """Of the next push, by shard."""

    def plan(self, features: Any) -> Fetch:
        raise NotImplementedError("it has no rows of a batch")

    def offer(self, features: Any, fetch: Any) -> None:
        raise NotImplementedError("it has no rows of a batch")

    def check_gradients(self) -> None:
        pass

    def waiting_gradients(self) -> list[WaitingGradients]:
        return [WaitingGradients(each.values, by_row=False) for each in self.next.values() if each.values is not None]

    def take_gradients(self) -> dict[int, Share]:
        taken, self.next = self.next, {}
        return dict(taken)

    def pushed(self) -> None:
        pass

    def discard(self) -> None:
        self.next = {}

    def finish(self) -> None:
        pass

    def begin_evaluation(self) -> None:
        pass

    def end_evaluation(self) -> None:
        pass

    def describe(self, table: str, row: int, column: int) -> str:
        return ""
