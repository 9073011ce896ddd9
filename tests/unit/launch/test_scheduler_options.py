import pytest
from typer.testing import CliRunner

from ecrec.launch.servers.scheduler import DEFAULTS, app, timeouts, with_limits


def test_a_long_time_out_of_silence_keeps_the_order_of_the_others():
    usual = timeouts(DEFAULTS.heartbeat_timeout_ms)
    assert usual == {name: getattr(DEFAULTS, name) for name in usual}
    for silence_ms in (300, 800, 2_000, 6_400, 60_000):
        others = timeouts(silence_ms)
        assert silence_ms < others["link_timeout_ms"] < others["heartbeat_timeout_many_ms"]
        assert others["link_timeout_ms"] < others["stuck_timeout_ms"]
        assert others["heartbeat_timeout_many_ms"] < others["isolated_timeout_ms"]


def test_the_time_out_of_a_link_can_be_given():
    assert timeouts(800, 2_000)["link_timeout_ms"] == 2_000
    assert timeouts(800, 100_000)["stuck_timeout_ms"] > 100_000


@pytest.mark.parametrize("link_ms", [800, 1])
def test_a_link_is_not_given_up_before_a_shard(link_ms):
    arguments = ["--bind", "tcp://127.0.0.1:0", "--shards", "3", "--state", "x", "--link-timeout-ms", str(link_ms)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "--link-timeout-ms" in result.output


def test_any_limit_can_be_set_for_experiments():
    config = with_limits(DEFAULTS, ["window_interval_ms=20", "checkpoint_bytes_per_s=1000000"])
    assert (config.window_interval_ms, config.checkpoint_bytes_per_s) == (20.0, 1_000_000)
    assert config.heartbeat_ms == DEFAULTS.heartbeat_ms and with_limits(DEFAULTS, []) == DEFAULTS


@pytest.mark.parametrize("text", ["nonsense=1", "heartbeat_ms", "heartbeat_ms=x", "heartbeat_ms=-1"])
def test_a_limit_that_there_is_not_is_refused(text):
    result = CliRunner().invoke(
        app, ["--bind", "tcp://127.0.0.1:0", "--shards", "3", "--state", "x", "--set", text], env={"COLUMNS": "300"}
    )
    assert result.exit_code == 2 and text in result.output
