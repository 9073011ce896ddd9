"""Time-outs that users give: what they may be together, and those that follow from them."""

from ecrec.errors import ConfigurationError
from ecrec.protocol.config import ProtocolConfig

DEFAULTS = ProtocolConfig()

LINK_TIMEOUT_TIMES = 2
MANY_TIMEOUT_TIMES = 3
STUCK_TIMEOUT_TIMES = 2
ISOLATED_TIMEOUT_TIMES = 6
"""The other time-outs that tell of a death are at least that many times the one of silence: a cluster whose processes
get their turn late (`--heartbeat-timeout-ms` is long) must not give up a slow link before it gives up a silent shard,
nor declare data lost as soon as one death."""


def check_timeouts(heartbeat_timeout_ms: int, link_timeout_ms: int | None, heartbeat_ms: int, as_flags: bool) -> None:
    """Raise ConfigurationError for time-outs at which a single late message would be a death.

    ``as_flags``: name them as a command's flags, not as arguments of a call.
    """
    silence, link, beat = (
        f"--{name.replace('_', '-')}" if as_flags else name
        for name in ("heartbeat_timeout_ms", "link_timeout_ms", "heartbeat_ms")
    )
    if heartbeat_timeout_ms <= 2 * heartbeat_ms:
        raise ConfigurationError(
            f"{silence} {heartbeat_timeout_ms}: one late heartbeat would be a death; expected more than "
            f"2 * {beat} = {2 * heartbeat_ms}"
        )
    if link_timeout_ms is not None and link_timeout_ms <= heartbeat_timeout_ms:
        raise ConfigurationError(
            f"{link} {link_timeout_ms}: a link would be given up before a shard; expected more than {silence}, "
            f"{heartbeat_timeout_ms}"
        )


def timeouts(heartbeat_timeout_ms: int, link_timeout_ms: int | None = None) -> dict[str, int]:
    """The time-outs of the configuration that follow from these: their defaults, unless these are long."""
    link_ms = link_timeout_ms or max(DEFAULTS.link_timeout_ms, LINK_TIMEOUT_TIMES * heartbeat_timeout_ms)
    return {
        "link_timeout_ms": link_ms,
        "heartbeat_timeout_many_ms": max(DEFAULTS.heartbeat_timeout_many_ms, MANY_TIMEOUT_TIMES * heartbeat_timeout_ms),
        "stuck_timeout_ms": max(DEFAULTS.stuck_timeout_ms, STUCK_TIMEOUT_TIMES * link_ms),
        "isolated_timeout_ms": max(DEFAULTS.isolated_timeout_ms, ISOLATED_TIMEOUT_TIMES * heartbeat_timeout_ms),
    }
