"""What people are told of files of data: each defect, and what was found in each file."""

import json
import sys
from collections import Counter
from collections.abc import Sequence

from ecrec.launch.tools.checkpoints import progress


def check_files(
    files: Sequence[str], columns: str | None, plain_rows: int | None, shown_max: int, as_json: bool
) -> bool:
    """Read all of the files and print what is wrong, at most ``shown_max`` defects a file. True: nothing is.
    ``plain_rows``: of each table, where ids are rows of it.

    Raises DataError for a file that is not there, ConfigurationError for ``columns`` that are none.
    """
    from ecrec.data.checking import check  # numpy, which most programs of the launcher do without
    from ecrec.data.columns import read_columns
    from ecrec.data.formats import names_of
    from ecrec.data.plain_ids import PlainIds
    from ecrec.urls import shown

    mapping = None if columns is None else read_columns(columns)
    if mapping is not None and plain_rows is not None:
        mapping.check_plain_ids()
    ids = None if plain_rows is None else PlainIds(plain_rows)
    told: list[str] = []
    count: Counter[str] = Counter()

    def defect(text: str) -> None:
        count["here"] += 1
        if count["here"] <= shown_max:
            told.append(text)
            if not as_json:
                print(text, flush=True)

    checked = []
    with progress("checking") as report:
        for found in check(names_of(files), mapping, defect, ids, report):
            checked.append({**found._asdict(), "name": shown(found.name), "defects": list(told)})
            more = count["here"] - len(told)
            told.clear()
            count.clear()
            if not as_json:
                left = f" ({more} more are not shown)" if more else ""
                state = "good" if found.is_good else f"{found.bad_rows} bad rows{left}"
                rest = ", and the rest cannot be read" if found.damage else ""
                print(f"{shown(found.name)}: {found.rows} rows, {state}{rest}", flush=True)
    if as_json:
        print(json.dumps(checked))
    elif len(checked) > 1:
        print(f"{len(checked)} files, {sum(each['rows'] for each in checked)} rows", file=sys.stdout)
    return all(not each["bad_rows"] and not each["damage"] for each in checked)
