"""How much of the time a recovery takes from workers that wait meanwhile (docs/protocol.md, "Repair").

Work goes in chunks, one at a time. After a chunk that took t there is a pause, so that t is a share of both. How long a
chunk takes includes how long it waited, at all who take part: where they are busy, the pauses are longer.
"""

from ecrec.protocol.config import ProtocolConfig


class Share:
    """When the next chunk may begin. Without a worker that asks for something there are no pauses."""

    def __init__(self) -> None:
        self.resume_ms = -1e18

    def waits(self, shares_time: bool, now_ms: float) -> bool:
        """Whether a chunk must wait. ``shares_time``: there are workers that ask for something."""
        return shares_time and now_ms < self.resume_ms

    def ended(self, took_ms: float, config: ProtocolConfig, now_ms: float) -> None:
        """A chunk is done."""
        pause_ms = took_ms * (100 - config.recovery_share_percent) / config.recovery_share_percent
        self.resume_ms = now_ms + min(pause_ms, config.recovery_pause_max_ms)
