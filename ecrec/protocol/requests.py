"""What a client asks of shards, checked as a whole before any shard is sent a part of it.

A push goes to all shards in parts, and a shard that refuses its part cannot undo those of the others. So a part that a
shard would refuse for its content must never leave: everything is known here that decides it. Shards check again, for
clients that do not.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ecrec._native import first_elsewhere, first_nonfinite
from ecrec.errors import GradientError, RefusedError
from ecrec.protocol import arrays, wire
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages import Frames, Section
from ecrec.protocol.placement import TableSpec

SectionsAndFrames = tuple[list[Section], Frames]
"""What is asked of, or sent to, one shard."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class _Part(NamedTuple):
    """A section as arrays: int64[m], int64[m], int64[N] and, in a push, float32 values."""

    tables: Any
    counts: Any
    rows: Any
    values: Any = None


class Requests:
    """Checks for a cluster of ``groups`` groups of ``n`` shards.

    ``tables``: by index, those that all running shards have. ``pending``: names of those that some may not have yet.
    Raises RefusedError, or GradientError for a value that is infinite or not a number; nothing is changed then.
    """

    def __init__(
        self, n: int, groups: int, config: ProtocolConfig, tables: Mapping[int, TableSpec], pending: Mapping[int, str]
    ) -> None:
        self._n, self._groups, self._config = n, groups, config
        self._tables, self._pending = tables, pending
        size = max(tables, default=-1) + 1
        self._rows, self._k, self._dims, self._records, self._floats = (np.zeros(size, np.int64) for _ in range(5))
        for index, spec in tables.items():
            self._rows[index], self._k[index], self._dims[index] = spec.rows, spec.code.k, spec.dim
            self._records[index] = spec.record_bytes
            self._floats[index] = spec.dim + spec.optimizer.state_floats(spec.dim)

    # ------------------------------------------------------------------ requests
    def push(
        self, by_shard: Mapping[int, SectionsAndFrames], barrier: int, assign: bool
    ) -> dict[int, SectionsAndFrames]:
        """The push as it is sent: a section that is too long for a frame becomes several, still of the same push.

        ``barrier``: it is applied together with those of so many workers, which are taken to be about as large.
        """
        return {shard: self._push(shard, *part, max(1, barrier), assign) for shard, part in by_shard.items()}

    def records(self, by_shard: Mapping[int, SectionsAndFrames]) -> None:
        """A push of whole records, of one table on each shard: their floats are weights and state."""
        whole = copy.copy(self)
        whole._dims = self._floats
        for shard, (sections, frames) in by_shard.items():
            parts = whole._parts(shard, "push", sections, frames, values=True)
            if len(parts) != 1 or len(parts[0].tables) != 1:
                self._refuse(
                    shard, "push", f"whole records of {self.table_names(sections)}; expected one section of one"
                )
            dim, floats = int(self._dims[parts[0].tables[0]]), int(self._floats[parts[0].tables[0]])
            weights = np.ascontiguousarray(parts[0].values.reshape(-1, floats)[:, :dim]).reshape(-1)
            self._check_values(parts[0]._replace(values=weights), 1, assign=True)
            self._check_deltas(shard, sections, parts, 1)
            longest = max(parts[0].rows.nbytes, parts[0].values.nbytes)
            if longest > wire.REQUEST_BYTES_MAX:
                what = f"a frame of it has {longest:,} bytes, and {wire.REQUEST_BYTES_MAX:,} can be sent"
                self._too_long(shard, "push", sections, what)

    def pull(self, by_shard: Mapping[int, SectionsAndFrames], records: bool) -> None:
        """``records``: it asks for whole records."""
        for shard, (sections, frames) in by_shard.items():
            parts = self._parts(shard, "pull", sections, frames, values=False)
            sizes = self._records if records else 4 * self._dims
            size = sum(int(np.dot(sizes[part.tables], part.counts)) for part in parts)
            if size > self._config.answer_bytes_max:
                what = f"its answer would have {size:,} bytes, and {self._config.answer_bytes_max:,} can be sent"
                self._too_long(shard, "pull", sections, what)
            longest = max((part.rows.nbytes for part in parts), default=0)
            if longest > wire.REQUEST_BYTES_MAX:
                what = f"a frame of its row ids has {longest:,} bytes, and {wire.REQUEST_BYTES_MAX:,} can be sent"
                self._too_long(shard, "pull", sections, what)

    def rates(self, rates: Mapping[int, float], assign: bool) -> None:
        """Raise RefusedError for learning rates of a push that no shard takes."""
        if rates and assign:
            raise RefusedError("a push that sets weights takes no learning rates")
        for index, rate in rates.items():
            if index not in self._tables:
                raise RefusedError(f"a push has a learning rate of table {index}, which is not on all shards")
            spec = self._tables[index]
            if error := spec.optimizer.rate_error(rate):
                raise RefusedError(f"table {spec.name!r}: {error}")

    def table_names(self, sections: list[Section]) -> str:
        """For people."""
        indices = dict.fromkeys(index for section in sections for index in section.tables)
        names = [repr(self._tables[index].name) for index in indices if index in self._tables]
        return f"table{'s' * (len(names) > 1)} {', '.join(names)}"

    # ------------------------------------------------------------------ checks
    def _push(
        self, shard: int, sections: list[Section], frames: Frames, workers: int, assign: bool
    ) -> SectionsAndFrames:
        parts = self._parts(shard, "push", sections, frames, values=True)
        for part in parts:
            self._check_values(part, workers, assign)
        self._check_deltas(shard, sections, parts, workers)
        if max((max(part.rows.nbytes, part.values.nbytes) for part in parts), default=0) > wire.REQUEST_BYTES_MAX:
            pieces = [piece for part in parts for piece in self._cut(part)]
            sections = [Section(piece.tables.tolist(), piece.counts.tolist()) for piece in pieces]
            frames = [frame for piece in pieces for frame in (piece.rows, piece.values)]
            self._check_frames(shard, "push", sections, len(frames))
        return sections, frames

    def _parts(self, shard: int, kind: str, sections: list[Section], frames: Frames, values: bool) -> list[_Part]:
        if not 0 <= shard < self._n * self._groups:
            raise RefusedError(f"a {kind} names shard {shard}: they are 0 to {self._n * self._groups - 1}")
        self._check_frames(shard, kind, sections, len(frames))
        each = 2 if values else 1
        if len(frames) != each * len(sections):
            self._refuse(
                shard, kind, f"{len(sections)} sections need {each * len(sections)} frames, it has {len(frames)}"
            )
        parts = []
        for i, section in enumerate(sections):
            self._check_tables(shard, kind, section)
            tables, counts = np.array(section.tables, np.int64), np.array(section.counts, np.int64)
            rows = self._array(shard, kind, frames[each * i], np.int64, f"row ids of section {i}")
            total = sum(section.counts)
            if len(tables) != len(counts) or min(section.counts, default=0) < 0 or total != len(rows):
                self._refuse(
                    shard, kind,
                    f"section {i} has {len(tables)} tables, counts {section.counts[:8]} with sum {total}, and "
                    f"{len(rows)} row ids; expected a count for each table, and as many row ids as they add up to",
                )  # fmt: skip
            self._check_rows(shard, kind, _Part(tables, counts, rows))
            floats = None
            if values:
                floats = self._array(shard, kind, frames[each * i + 1], np.float32, f"values of section {i}")
                expected = int(np.dot(self._dims[tables], counts))
                if expected != len(floats):
                    what = f"section {i} of {self.table_names([section])} has {len(floats)} values"
                    self._refuse(shard, kind, f"{what}, expected {expected}")
            parts.append(_Part(tables, counts, rows, floats))
        return parts

    def _check_tables(self, shard: int, kind: str, section: Section) -> None:
        for index in section.tables:
            if index in self._pending:
                name = self._pending[index]
                self._refuse(
                    shard, kind, f"table {name!r} may not be on all shards yet: create it, and wait until it is"
                )
            if index not in self._tables:
                self._refuse(shard, kind, f"there is no table {index}")

    def _array(self, shard: int, kind: str, frame: Any, dtype: type, what: str) -> Any:
        if isinstance(frame, np.ndarray):
            if frame.dtype != dtype or not frame.flags.c_contiguous:
                layout = "contiguous" if frame.flags.c_contiguous else "not contiguous"
                expected = np.dtype(dtype).name
                self._refuse(shard, kind, f"{what} are {frame.dtype}, {layout}; expected {expected}, contiguous")
            return frame.reshape(-1) if frame.flags.aligned else frame.reshape(-1).copy()
        try:
            return arrays.array(frame, dtype, what)
        except (ValueError, TypeError) as error:
            self._refuse(shard, kind, f"{what}: {error}")

    def _check_rows(self, shard: int, kind: str, part: _Part) -> None:
        """Every row is one of its table's, and lies on the shard."""
        rows = part.rows
        at = first_elsewhere(rows, part.tables, part.counts, self._rows, self._k, shard, self._n, self._groups)
        if at < 0:
            return
        spec = self._tables[self._table_at(part, at)]
        if 0 <= rows[at] < spec.rows:
            self._refuse(shard, kind, f"row {rows[at]} of table {spec.name!r} is not on shard {shard}")
        self._refuse(shard, kind, f"there is no row {rows[at]} of table {spec.name!r}: they are 0 to {spec.rows - 1}")

    def _check_values(self, part: _Part, workers: int, assign: bool) -> None:
        values, what = part.values, "weight" if assign else "gradient"
        first = first_nonfinite(values)
        if first >= 0:
            raise GradientError(
                f"the {what} of {self._value_at(part, first)} is {values[first]}; nothing was pushed",
                self._place_at(part, first),
            )
        if workers == 1 or assign or not values.size:
            return
        # trap: the sum may be infinite, in the rows of some shards alone
        limit = _FLOAT32_MAX / (2 * workers)
        first = int(np.abs(values).argmax())
        if abs(float(values[first])) > limit:
            raise RefusedError(
                f"the gradient of {self._value_at(part, first)} is {values[first]}: summed with those of {workers} "
                f"workers it may be infinite, at most {limit:.3g} can be; nothing was pushed"
            )

    def _check_deltas(self, shard: int, sections: list[Section], parts: list[_Part], workers: int) -> None:
        """What a peer of the shard gets of the push fits a frame (`Pushes._make_room`)."""
        size = 0
        for part in parts:
            rows = part.counts
            if workers > 1:
                # Rows that several workers push count once: there are no more than the shard has of the table.
                stripes = -(-self._rows[part.tables] // self._k[part.tables])
                rows = np.minimum(rows * workers, -(-stripes // (self._n * self._groups)) * self._k[part.tables])
            size += int(np.dot(self._records[part.tables], rows))
        if size > self._config.frame_bytes_max:
            of = f" of {workers} workers" if workers > 1 else ""
            self._too_long(
                shard, "push", sections,
                f"its deltas{of} (weights and optimizer state of each row) could have {size:,} bytes for one peer, and "
                f"{self._config.frame_bytes_max:,} can be sent",
            )  # fmt: skip

    def _check_frames(self, shard: int, kind: str, sections: list[Section], frames: int) -> None:
        if frames > wire.FRAMES_MAX:
            self._too_long(shard, kind, sections, f"it has {frames:,} frames, and {wire.FRAMES_MAX:,} can be sent")

    def _cut(self, part: _Part) -> list[_Part]:
        """The same rows in the same order, in parts whose frames can be sent; a row always can."""
        if max(part.rows.nbytes, part.values.nbytes) <= wire.REQUEST_BYTES_MAX or len(part.rows) < 2:
            return [part]
        middle = len(part.rows) // 2
        return self._cut(self._slice(part, 0, middle)) + self._cut(self._slice(part, middle, len(part.rows)))

    def _slice(self, part: _Part, first: int, last: int) -> _Part:
        ends = np.cumsum(part.counts)
        begins, dims = ends - part.counts, self._dims[part.tables]
        counts = np.clip(np.minimum(ends, last) - np.maximum(begins, first), 0, None)
        used = counts > 0
        begin, end = (int(np.dot(np.clip(row - begins, 0, part.counts), dims)) for row in (first, last))
        return _Part(part.tables[used], counts[used], part.rows[first:last], part.values[begin:end])

    # ------------------------------------------------------------------ for people
    def _table_at(self, part: _Part, row: int) -> int:
        """Index of the table of a section's row."""
        return int(part.tables[np.searchsorted(np.cumsum(part.counts), row, side="right")])

    def _value_at(self, part: _Part, at: int) -> str:
        table, row, column = self._place_at(part, at)
        return f"table {table!r}, row {row}, column {column}"

    def _place_at(self, part: _Part, at: int) -> tuple[str, int, int]:
        """Table, row and column of a value."""
        dims = self._dims[part.tables]
        ends = np.cumsum(part.counts * dims)
        which = int(np.searchsorted(ends, at, side="right"))
        begin = int(ends[which] - part.counts[which] * dims[which])
        row, column = divmod(at - begin, int(dims[which]))
        row += int(part.counts[:which].sum())
        return self._tables[int(part.tables[which])].name, int(part.rows[row]), column

    def _refuse(self, shard: int, kind: str, reason: str) -> NoReturn:
        raise RefusedError(f"a {kind}, its part for shard {shard}: {reason}; nothing of it was sent")

    def _too_long(self, shard: int, kind: str, sections: list[Section], what: str) -> NoReturn:
        raise RefusedError(
            f"a {kind} of rows of {self.table_names(sections)}, its part for shard {shard}: {what}; nothing of it was "
            f"sent: {kind} fewer rows at a time, or spread the tables over more shards"
        )
