"""`ecrec size`: the arithmetic, and that servers hold what it says."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ecrec.cli import app
from ecrec.errors import ConfigurationError
from ecrec.launch.tools.sizing import BASE_BYTES, parse_table, size
from ecrec.protocol.placement import CodeSpec, Placement


def reckon(**more: Any) -> Any:
    given = {
        "tables": [(1_000_000, 64)], "optimizer": "rowwise-adagrad", "code": "4+1", "shards": 5, "groups": None,
        "batch": 512, "steps_per_s": 10.0, "touched": 1.0, "network_gbit_s": 10.0,
    }  # fmt: skip
    return size(**{**given, **more})


def test_all_rows_and_their_parity_are_dealt_over_the_servers() -> None:
    found = reckon()
    assert found.record_bytes == [272], "64 weights, one float of state, padded to 16 bytes"
    assert found.data_bytes == 200_000 * 272 and found.parity_bytes == 50_000 * 272
    assert found.memory_bytes == BASE_BYTES + 250_000 * 272 and found.index_bytes == 0
    assert found.recovery_bytes == 4 * 250_000 * 272 and found.recovery_s == pytest.approx(
        found.recovery_bytes / 1.25e9
    )
    assert found.recovery_training_s > found.recovery_s


def test_the_share_of_a_server_is_what_placement_gives_it() -> None:
    placement = Placement(5)
    placement.add(CodeSpec(4, 1))
    rows = 10_000
    on_first = sum((row // 4 + row % 4) % 5 == 0 for row in range(rows))
    assert abs(on_first - reckon(tables=[(rows, 64)]).data_bytes / 272) <= 4


def test_few_touched_rows_have_more_parity_than_their_part() -> None:
    found = reckon(touched=0.01)
    assert found.data_bytes == 2000 * 272
    assert 0.9 * found.data_bytes < found.parity_bytes < found.data_bytes, "nearly a parity row for each"


def test_a_large_share_has_an_index_and_traffic_grows_with_r_and_not_with_rows() -> None:
    found = reckon(tables=[(100_000_000, 64)])
    assert found.index_bytes == 4 * (20_000_000 + 5_000_000)
    step = 512 * 10 / 5
    assert found.sent_bytes_per_s == pytest.approx(step * (256 + 280), rel=1e-3)
    assert found.received_bytes_per_s == pytest.approx(step * (16 + 256 + 280), rel=1e-3)
    twice = reckon(tables=[(100_000_000, 64)], code="3+2")
    assert twice.sent_bytes_per_s == pytest.approx(step * (256 + 2 * 280), rel=1e-3)


@pytest.mark.parametrize("text", ["", "64", "x64", "100x", "0x64", "10x0", "1e6x64", "-1x4", "9" * 20 + "x4"])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected ROWSxFLOATS"):
        parse_table(text)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"optimizer": "magic"}, "--optimizer 'magic'"),
        ({"touched": 1.5}, "--touched 1.5: must be above 0, at most 1"),
        ({"network_gbit_s": 0.0}, "--network-gbit-s"),
        ({"code": "5+1"}, "a stripe needs k"),
        ({"tables": []}, "--table"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        reckon(**more)


def test_the_command_prints_it_for_people_and_programs() -> None:
    command = ["size", "--table", "1000000x64", "--table", "2000x16", "--shards", "10", "--groups", "2"]
    text = CliRunner().invoke(app, command).output
    assert "10 servers in 2 groups, code 4+1, 1,002,000 rows" in text and "memory" in text
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert found["rows"] == 1_002_000 and found["groups"] == 2
