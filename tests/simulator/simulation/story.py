"""The trace of a run: what happened, in order; its hash; and the story of some shards out of it."""

import hashlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from ecrec.protocol import messages as m
from ecrec.protocol.story import describe

KEY_FRAME: dict[Any, int] = {
    m.Window: 0, m.Repair: 0, m.CaptureParity: 0, m.Snap: 0, m.Marker: 1, m.Captured: 0, m.Repaired: 1,
}  # fmt: skip
"""Which frame of a message holds the keys of the rows it carries."""


class Happening(NamedTuple):
    """One line of a trace. ``what`` is a text or a message."""

    at_ms: float
    kind: str
    source: str
    to: str
    what: Any
    frames: Any


class ViolationError(Exception):
    """A checker found the run wrong. ``shards`` (numbered over all groups) and ``keys`` say whom the story is about."""

    def __init__(self, text: str, shards: Collection[int] = (), keys: Collection[int] = ()) -> None:
        super().__init__(text)
        self.text = text
        self.shards = tuple(shards)
        self.keys = tuple(int(key) for key in keys)


class LivenessError(ViolationError):
    """Faults have stopped, and yet the cluster did not become whole and quiet."""


def show_keys(keys: Any) -> str:
    """``table:stripe`` of each key, at most twelve."""
    shown = " ".join(f"{int(key) >> 48}:{int(key) & (1 << 48) - 1}" for key in keys[:12])
    return f"[{shown}{' ...' if len(keys) > 12 else ''}]"


def show(message: Any, frames: Any = ()) -> str:
    """A message as one short line."""
    if isinstance(message, str):
        return message
    if isinstance(message, m.Views):
        return "Views " + "; ".join(show(view) for view in message.views)
    if isinstance(message, m.FullView | m.View):
        return describe(message)
    if isinstance(message, m.ShardStatus):
        reports = [(r.shard, r.epoch, r.window, r.watermarks) for r in message.reports]
        told = f"view={message.view} whole={message.whole} reports={reports} watermarks={message.watermarks}"
        return f"ShardStatus({told})"
    text = type(message).__name__
    if hasattr(message, "__struct_fields__"):
        fields = (f"{name}={getattr(message, name)}" for name in message.__struct_fields__)
        text += f"({' '.join(fields)})"
    at = KEY_FRAME.get(type(message))
    if at is not None and len(frames) > at and len(frames[at]):
        text += " " + show_keys(np.frombuffer(frames[at], np.uint64))
    return text[:400]


class Story:
    """Collects happenings; the hash covers every one of them, payloads too."""

    def __init__(self, echo: bool = False) -> None:
        self.happenings: list[Happening] = []
        self._hash = hashlib.blake2b(digest_size=12)
        self._echo = echo

    def add(self, at_ms: float, kind: str, source: str, to: str, what: Any, frames: Any = (), raw: bytes = b"") -> None:
        """``raw`` is what the hash takes of a message; of a text it takes the text."""
        happening = Happening(at_ms, kind, source, to, what, frames)
        self.happenings.append(happening)
        update = self._hash.update
        update(f"{at_ms:.6f}{kind}{source}>{to}".encode())
        update(raw or str(what).encode())
        for frame in frames:
            update(frame)
        if self._echo:
            print(self.line(happening), flush=True)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @staticmethod
    def line(happening: Happening) -> str:
        arrow = f"{happening.source} > {happening.to}" if happening.to else happening.source
        return f"{happening.at_ms:10.3f}  {happening.kind:8} {arrow:22} {show(happening.what, happening.frames)}"

    def tell(self, shards: Collection[int], keys: Collection[int] = (), last: int = 60) -> str:
        """The last happenings that concern these shards (all, where none is named).

        Of messages that carry rows, where keys are named, only those that carry one of them.
        """
        names = {f"s{shard}" for shard in shards}
        wanted = set(keys)
        lines: list[str] = []
        for happening in reversed(self.happenings):
            involved = {happening.source.split(".")[0], happening.to.split(".")[0]}
            if happening.kind == "message":
                if names and not involved & names:
                    continue
                at = KEY_FRAME.get(type(happening.what))
                if wanted and at is not None and len(happening.frames) > at:
                    here = set(np.frombuffer(happening.frames[at], np.uint64).tolist())
                    if here and not here & wanted:
                        continue
                if isinstance(happening.what, m.ShardStatus | m.WorkerStatus):
                    continue
            lines.append(self.line(happening))
            if len(lines) >= last:
                break
        return "\n".join(reversed(lines))
