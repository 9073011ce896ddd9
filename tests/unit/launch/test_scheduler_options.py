import pytest

from ecrec.launch.servers.scheduler import program, with_limits
from ecrec.launch.timeouts import DEFAULTS, timeouts

ARGUMENTS = ["--bind", "tcp://127.0.0.1:0", "--shards", "3", "--state", "x"]


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


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        program([*ARGUMENTS, *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("link_ms", [800, 1])
def test_a_link_is_not_given_up_before_a_shard(link_ms, capsys):
    assert f"error: --link-timeout-ms {link_ms}: " in refused(capsys, "--link-timeout-ms", str(link_ms))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--heartbeat-ms", "500"], "--heartbeat-timeout-ms 800: one late heartbeat would be a death"),
        (["--lease-timeout-ms", "200"], "--lease-timeout-ms 200: one late heartbeat would end a worker"),
        (["--coordinator", "zk://h:1/e"], "--state: expected a file, or else a --coordinator"),
        (["--on-data-loss", "pray"], "--on-data-loss 'pray': expected one of stop, reinitialise"),
        (["--coordinator-timeout-ms", "50000"], "--coordinator-timeout-ms 50000: must be at most 40000"),
        (["--shards", "17", "--groups", "2"], "--shards 17: "),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments, words, capsys):
    assert words in refused(capsys, *arguments)


def test_any_limit_can_be_set_for_experiments():
    config = with_limits(DEFAULTS, ["window_interval_ms=20", "checkpoint_bytes_per_s=1000000"])
    assert (config.window_interval_ms, config.checkpoint_bytes_per_s) == (20.0, 1_000_000)
    assert config.heartbeat_ms == DEFAULTS.heartbeat_ms and with_limits(DEFAULTS, []) == DEFAULTS


@pytest.mark.parametrize("text", ["nonsense=1", "heartbeat_ms", "heartbeat_ms=x", "heartbeat_ms=-1"])
def test_a_limit_that_there_is_not_is_refused(text, capsys):
    assert f"--set {text!r}" in refused(capsys, "--set", text)
