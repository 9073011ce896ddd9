"""Ask a process of a running cluster what it went through last."""

import secrets
from typing import cast

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.environment import curve_keys
from ecrec.launch.tools.verify import cluster_state
from ecrec.protocol.messages import DOWN, SCHEDULER_ADDRESS, SHARD, Address, StoryQuery, StoryTold
from ecrec.transport.client_node import query

SCHEDULER_NAME = "scheduler"


def story(endpoint: str, name: str, timeout_s: float = 3.0, curve_dir: str | None = None) -> StoryTold:
    """What a process went through last. ``name``: ``scheduler``, or ``ps:2`` for the server that is shard 2.

    Raises ConfigurationError for another name and for a shard that the cluster lacks, ClusterError for one that is down
    or does not answer in time.
    """
    asked, at = (
        (SCHEDULER_ADDRESS, endpoint) if name == SCHEDULER_NAME else _shard(endpoint, name, timeout_s, curve_dir)
    )
    question = StoryQuery(secrets.randbelow(1 << 31))
    return cast(StoryTold, query(at, question, timeout_s * 1e3, curve_keys(curve_dir), asked))


def _shard(endpoint: str, name: str, timeout_s: float, curve_dir: str | None) -> tuple[Address, str]:
    kind, _, number = name.partition(":")
    if kind != "ps" or not (number.isascii() and number.isdigit()):
        raise ConfigurationError(f"--story {name}: expected {SCHEDULER_NAME}, or ps:SHARD, such as ps:2")
    state = cluster_state(endpoint, timeout_s, curve_dir)
    if int(number) >= state.n * state.groups:
        raise ConfigurationError(f"--story {name}: the shards are 0 to {state.n * state.groups - 1}")
    shard = next((each for each in state.shards if each.shard == int(number)), None)
    if shard is None or shard.state == DOWN:
        raise ClusterError(f"{name} is down; what is known of it: --story {SCHEDULER_NAME}")
    return Address(SHARD, shard.shard, shard.epoch), shard.endpoint
