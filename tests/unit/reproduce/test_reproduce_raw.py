"""Raw lines: written, read again, refused."""

import json
from pathlib import Path

import pytest
from hand_made import MACHINE, end, event, lines_of, make_run, second, servers

from ecrec.errors import DataError
from ecrec.reproduce import raw
from ecrec.reproduce.raw import RawWriter, read


def test_what_was_written_is_read(tmp_path: Path) -> None:
    run, path = make_run(), tmp_path / "a.jsonl"
    with RawWriter(path, run, MACHINE, {"ecrec": "1"}) as writer:
        writer.line("second", **{key: value for key, value in second(0, 5).items() if key != "kind"})
        writer.line("event", t=1.0, event="kill", shard=2)
        assert not raw.is_complete(path)
        writer.end(t=10.0, position=7, examples=9, auc=0.5)
    found = read(path)
    assert found.run == run and found.machine == MACHINE and found.versions == {"ecrec": "1"} and found.name == "a"
    assert found.seconds[0]["examples"] == 5 and found.of("kill")[0]["shard"] == 2 and found.end["auc"] == 0.5


def test_a_file_without_its_end_does_not_get_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with RawWriter(path, make_run(), MACHINE, {}) as writer:
        writer.line("event", t=1.0, event="kill")
    assert not raw.is_complete(path)
    failed = raw.fail(path, "it broke")
    assert json.loads(failed.read_text().splitlines()[-1]) == {"kind": "failed", "reason": "it broke"}
    raw.forget_failure(path)
    assert list(tmp_path.iterdir()) == []


GOOD = lines_of(make_run(), second(0, 5), servers(0.5), event(1.0, "kill"), end())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no end"),
        (lines_of(make_run(), second(0, 5)), "no end"),
        (GOOD[:-1], "cut short"),
        (GOOD + GOOD, "cannot stand here"),
        (GOOD.replace('"version": 1', '"version": 2'), "version 2"),
        (GOOD.replace('"event": "kill"', '"event": 5'), "is no name"),
        (GOOD.replace('"examples": 5', '"examples": "5"'), "expected a number"),
        (GOOD.replace('"data_bytes"', '"dat_bytes"'), "data_bytes"),
        (GOOD.replace('"kind": "second"', '"kind": "third"'), "'third' cannot stand here"),
        (GOOD.replace('"workers": 1', '"workers": "x"'), "workers"),
        ("[1]\n" + GOOD, ":1: expected a JSON object"),
        ("nonsense\n", ":1: expected a JSON object"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "none.jsonl")
