"""Clusters that cannot be: each is refused at once, before a process is started, with what was expected."""

from typing import Any

import pytest

pytest.importorskip("torch")

import ecrec
from ecrec.errors import ConfigurationError


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shards": 0}, "shards"),
        ({"shards": 3, "code": "4+1"}, r"4\+1: a stripe needs"),
        ({"code": "4"}, r"expected K\+R"),
        (
            {"heartbeat_timeout_ms": 200},
            "heartbeat_timeout_ms 200: one late heartbeat would be a death",
        ),
        ({"heartbeat_timeout_ms": -1}, "heartbeat_timeout_ms -1: .* more than 2 . heartbeat_ms = 200"),
        ({"link_timeout_ms": 100}, "link_timeout_ms 100: .* expected more than heartbeat_timeout_ms"),
        ({"heartbeat_timeout_ms": 5000, "link_timeout_ms": 5000}, "link_timeout_ms 5000: .* expected more than .*5000"),
        ({"on_data_loss": "panic"}, "on_data_loss 'panic': expected one of"),
        ({"on_data_loss": "restore"}, "give checkpoint"),
        ({"checkpoint_every_s": 5.0}, "give checkpoint"),
        ({"checkpoint": "x", "checkpoint_every_s": 0.0}, "expected a positive number of seconds"),
        ({"checkpoint": "x", "checkpoint_keep": 0}, "checkpoint_keep 0: expected at least 1"),
    ],
)
def test_a_local_cluster_that_cannot_be_is_refused_at_once(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        ecrec.local_cluster(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rank": "0"}, "rank '0': expected a whole number, at least 0"),
        ({"rank": -1}, "rank -1: expected a whole number, at least 0"),
        ({"rank": True}, "rank True: expected a whole number, at least 0"),
        ({"rank": 1.0}, "rank 1.0: expected a whole number, at least 0"),
        ({"rank": 0, "world_size": 0}, "world_size 0: expected a whole number, at least 1"),
        ({"world_size": "2"}, "world_size '2': expected a whole number, at least 1"),
    ],
)
def test_a_rank_that_is_no_number_is_refused_before_anything_is_asked(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ecrec.connect("tcp://127.0.0.1:1", **arguments)
