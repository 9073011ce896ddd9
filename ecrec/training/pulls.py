"""A pull of several parts: one request a shard, whose frames go back to the parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ecrec.errors import ClusterError
from ecrec.protocol.messages import Frames
from ecrec.protocol.requests import SectionsAndFrames
from ecrec.training.parts import Fetch, Share


class Asked:
    """A pull of several parts: which frame of which shard is whose."""

    def __init__(self, fetches: Sequence[Fetch]) -> None:
        self.fetches = list(fetches)
        self.frames: dict[int, Frames] | None = None
        self.refusal = ""
        """Why a shard refused it."""
        self.by_shard: dict[int, SectionsAndFrames] = {}
        self._order: dict[int, list[int]] = {}
        for i, fetch in enumerate(self.fetches):
            for shard, share in fetch.shares.items():
                sections, rows = self.by_shard.setdefault(shard, ([], []))
                sections.append(share.section)
                rows.append(share.rows)  # type: ignore[attr-defined]
                self._order.setdefault(shard, []).append(i)

    def fill(self) -> int:
        """Hand the frames to the fetches; returns their bytes."""
        assert self.frames is not None
        answers: list[dict[int, Any]] = [{} for _ in self.fetches]
        size = 0
        for shard, order in self._order.items():
            frames = self.frames[shard]
            if len(frames) != len(order):
                raise ClusterError(f"shard {shard} answered {len(order)} sections with {len(frames)} frames")
            for i, frame in zip(order, frames, strict=True):
                answers[i][shard] = frame
                size += memoryview(frame).nbytes
        for fetch, answer in zip(self.fetches, answers, strict=True):
            fetch.fill(answer)
        return size


class RecordsAsked:
    """A pull of whole records, which may be on its way."""

    def __init__(self, shares: Mapping[int, Share], ask: "Callable[[RecordsAsked], Callable[[], None]]") -> None:
        self.shares = shares
        self.answers: Mapping[int, Any] = {}
        self._wait = ask(self)

    def fill(self, answers: Mapping[int, Any]) -> None:
        self.answers = answers

    def take(self) -> Mapping[int, Any]:
        """Wait for it; the records of each shard asked, a buffer each."""
        self._wait()
        return self.answers
