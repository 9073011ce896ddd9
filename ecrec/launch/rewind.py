"""Where a run goes back to when more servers die than the code tolerates: to the newest checkpoint of its own.

The launcher that started all processes does this (`ecrec train`, `local_cluster(...).run`). It ends all of
them first, workers too, so that nobody of the cluster that has lost data can push into the next one.
"""

from typing import NamedTuple

from ecrec.checkpoint.reading import checkpoints
from ecrec.errors import CheckpointError, DataLostError, EcrecError
from ecrec.urls import shown

SAME_POINT_MAX = 3
"""So often a run goes back to one checkpoint: data that is lost again each time on the way to the next one is no
accident."""


class Point(NamedTuple):
    """A checkpoint that a cluster begins with."""

    url: str
    number: int

    def __str__(self) -> str:
        return f"checkpoint {self.number} at {shown(self.url)}"


class Rewound(NamedTuple):
    """A run went back to a checkpoint."""

    reason: str
    to: Point
    examples_repeated: int
    """Those that had been trained on, and that the checkpoint does not have. Of data sets whose splits are leased: of
    others nobody knows."""
    seconds_repeated: float
    """That this had taken."""
    stopped: float
    """When data was lost, or the last step was made; seconds of the monotonic clock."""
    resized: bool = False
    """It was asked for, to go on with other servers; no data was lost."""


class DamagedPointError(Exception):
    """A checkpoint that a run wanted to go back to cannot be restored."""

    def __init__(self, point: Point, reason: str) -> None:
        super().__init__(reason)
        self.point = point


class Rewinds:
    """The checkpoints that a run may go back to: those that its own clusters have written to ``url``, and the one that
    it began with. Others at that URL are of other runs."""

    def __init__(self, url: str, begin: Point | None) -> None:
        self._url = url
        self._begin = begin
        self._clusters: set[str] = set()
        self._damaged: set[Point] = set()
        self._last: Point | None = None
        self._times = 0

    def lives(self, cluster: str) -> None:
        """A cluster of this name is one of the run's."""
        self._clusters.add(cluster)

    def is_damaged(self, point: Point) -> None:
        """A checkpoint could not be restored: the ones before it are left."""
        self._damaged.add(point)

    def back(self, lost: EcrecError) -> Point:
        """The newest complete checkpoint to go back to. Raises DataLostError, with the reason, if there is none."""
        point = self._newest(lost)
        if point is None:
            raise DataLostError(
                f"{lost}\nThere is nothing to go back to: no checkpoint at {shown(self._url)} is complete that this "
                "run has written"
            )
        self._times = self._times + 1 if point == self._last else 1
        self._last = point
        if self._times > SAME_POINT_MAX:
            raise DataLostError(
                f"{lost}\nThe run has gone back to {point} {SAME_POINT_MAX} times, and has lost data again each time "
                "before the next checkpoint"
            )
        return point

    def _newest(self, lost: EcrecError) -> Point | None:
        try:
            found = checkpoints(self._url)
        except CheckpointError as error:
            raise DataLostError(f"{lost}\nThe checkpoints to go back to cannot be listed: {error}") from error
        own = [Point(self._url, info.number) for info in found if info.is_complete and info.cluster in self._clusters]
        possible = [point for point in [self._begin, *own] if point is not None and point not in self._damaged]
        return possible[-1] if possible else None
