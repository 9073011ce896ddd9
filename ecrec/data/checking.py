"""All that is wrong with files of data, found by reading all of them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ecrec.data.columns import Columns
from ecrec.data.dataset import BAD_ROWS_MAX
from ecrec.data.formats import open_rows
from ecrec.data.opened import open_file, size_of
from ecrec.data.plain_ids import PlainIds
from ecrec.data.rows import Layout
from ecrec.errors import DataError
from ecrec.urls import shown

Progress = Callable[[int, int], None]
"""(bytes that are read, bytes in all)."""


class FileChecked(NamedTuple):
    """What was found in a file."""

    name: str
    rows: int
    """That were read, bad ones too."""
    bad_rows: int
    damage: str
    """Why the rest of it cannot be read; empty: it can."""

    @property
    def is_good(self) -> bool:
        return not self.bad_rows and not self.damage


def check(
    names: Sequence[str],
    columns: Columns | None,
    defect: Callable[[str], None],
    ids: PlainIds | None = None,
    progress: Progress = lambda done, total: None,
) -> Iterator[FileChecked]:
    """Read each file to its end and tell each ``defect``, with file, place, and what was expected; then yield what was
    found in the file. ``ids``: in files whose ids are rows of tables, others are defects. A file whose rest cannot be
    read does not keep the others from being checked.

    Raises DataError for a file that is not there, before any is read; ConfigurationError for a missing package.
    """
    sizes = []
    for name in names:
        with open_file(name) as stream:
            sizes.append(size_of(stream))
    done, layout = 0, None
    for name, size in zip(names, sizes, strict=True):

        def reads(share: float, done: int = done, size: int = size) -> None:
            progress(done + int(share * size), sum(sizes))

        found, layout = _check_file(name, columns, ids, layout, defect, reads)
        yield found
        done += size
        progress(done, sum(sizes))


def _check_file(
    name: str,
    columns: Columns | None,
    ids: PlainIds | None,
    layout: Layout | None,
    defect: Callable[[str], None],
    reads: Callable[[float], None],
) -> tuple[FileChecked, Layout | None]:
    rows = bad = 0
    damage = ""
    try:
        file = open_rows(name, columns, ids)
        for piece in file.pieces():
            rows, bad = piece.stop, bad + len(piece.wrong)
            for why in piece.wrong.values():
                defect(why)
            reads(piece.share)
            if bad > BAD_ROWS_MAX:
                raise DataError(f"{shown(name)}: more than {BAD_ROWS_MAX} bad rows: is this another kind of file?")
        if not rows:
            raise DataError(f"{shown(name)}: found no rows, expected at least one")
        _check_sums(name)
        if layout is not None and file.layout != layout:
            raise DataError(
                f"{shown(name)}: has {len(file.layout.dense)} dense and {len(file.layout.sparse)} sparse features, and "
                f"the files before have {len(layout.dense)} and {len(layout.sparse)}, or of other names"
            )
        layout = file.layout
    except DataError as error:
        damage = str(error)
        defect(damage)
    return FileChecked(name, rows, bad, damage), layout


def _check_sums(name: str) -> None:
    """Where rows are read from the middle of an archive, its checksums are not looked at."""
    with open_file(name) as stream:
        if not zipfile.is_zipfile(stream):
            return
        with zipfile.ZipFile(stream) as archive:
            member = archive.testzip()
    if member is not None:
        raise DataError(f"{shown(name)}: {member}: its checksum does not fit, it is damaged")
