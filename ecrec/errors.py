"""All exceptions that ecrec raises on purpose."""


class EcrecError(Exception):
    """Base of them all."""


class ConfigurationError(EcrecError, ValueError):
    """Options, codes, tables or files that do not fit together; nothing was started or changed."""


class DataError(EcrecError, ValueError):
    """Input data that cannot be read; says the file and the line."""


class WireError(EcrecError):
    """Bytes on a socket that are not a message of this version; the message is dropped."""


class RefusedError(EcrecError):
    """A request was refused, by the scheduler, by a shard, or before anything was sent; nothing of it was applied. The
    session goes on, unless the refusal is of pushes that workers of a run made in disagreement."""


class GradientError(EcrecError, ValueError):
    """Gradients that cannot be pushed: infinite, not a number, taken away or of old parameters; says which. Nothing was
    sent."""

    def __init__(self, text: str, place: tuple[str, int, int] | None = None) -> None:
        super().__init__(text)
        self.place = place
        """Table, row and column, where it is about one value."""


class DivergedError(EcrecError, ValueError):
    """Weights on the servers that are infinite or not a number; says which. What was pushed before has made them so."""


class ClusterError(EcrecError):
    """The cluster cannot serve: it is not reachable, or not complete, in the time allowed."""


class PartialPushError(ClusterError):
    """A shard refused its part of a push, and others may have applied theirs; says which. The session is over."""


class FencedError(ClusterError):
    """This process is not a worker any more: it was silent for too long, or has been started again; its splits went to
    others. What it pushed before stays, nothing more is taken from it."""


class DataLostError(ClusterError):
    """More shards are gone than the code tolerates; says which."""


class CheckpointError(EcrecError):
    """A checkpoint that cannot be written, or read: damaged, of another version, or not complete; says which file."""


class FileMissingError(CheckpointError):
    """A file or folder of a checkpoint that is not there; says which."""


class CheckpointVersionError(CheckpointError):
    """A file of a checkpoint in a version of the format that this ecrec does not read; says which."""
