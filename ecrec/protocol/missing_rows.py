"""Rows of pushes and pulls that a replacement has not got yet: found once, and asked for."""

from collections.abc import Sequence

import numpy as np

from ecrec.protocol import arrays
from ecrec.protocol.events import BAD_CONTENT, HalfHandledError
from ecrec.protocol.messages import RECOVERING
from ecrec.protocol.queues import QueuedPull, QueuedPush, SectionArrays
from ecrec.protocol.repair import Repairs
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.wanted import Wanted


class MissingRows:
    """The part of a `ShardMachine` that says what a push or pull waits for."""

    def __init__(self, context: ShardContext, repairs: Repairs) -> None:
        self.context = context
        self.repairs = repairs

    def lacks(self, request: QueuedPush | QueuedPull, sections: list[SectionArrays]) -> bool:
        """Whether rows of a push or pull are still to be repaired. They are found here, once, and asked for."""
        context = self.context
        if context.state != RECOVERING or request.wanted is not None:
            return False
        missing = [context.store.missing(s.tables, s.counts, s.rows) for s in sections]
        request.wanted = Wanted(context.store, np.concatenate([arrays.NO_KEYS, *missing]))
        return self.still_lacks([request])

    def still_lacks(self, requests: Sequence[QueuedPush | QueuedPull]) -> bool:
        """Whether rows of these that were found to be lost are not here yet.

        What is raised here is no refusal of the push or pull that waits for them.
        """
        context = self.context
        if context.state != RECOVERING:
            return False
        try:
            return any([self.repairs.lacks(r.wanted) for r in requests if r.wanted is not None])
        except BAD_CONTENT as error:
            raise HalfHandledError(f"{context.address} could not ask for rows: {error}") from error
