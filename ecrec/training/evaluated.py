"""What may be evaluated, and where one state of it is read."""

from collections.abc import Collection, Coroutine, Generator, Mapping
from typing import Protocol

from torch import nn

from ecrec.errors import ConfigurationError
from ecrec.training.parameter_rows import dense_parameters
from ecrec.training.replicated import owner_of


class Evaluating(Protocol):
    """What is asked of a session."""

    read_only: bool
    knows_world_size: bool

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def sync(self) -> bool: ...


def check_evaluated(
    session: Evaluating, model: nn.Module, checkpoint: str | None, number: int | None, consistent: bool
) -> None:
    """Raise ConfigurationError as `Session.evaluate`."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"evaluate: the model is {model!r:.100}, expected a torch.nn.Module")
    others = [part for part in model.modules() if getattr(part, "_session", session) is not session]
    owners = [owner_of(parameter) for parameter in dense_parameters(model).values()]
    if others or any(owner is not None and not owner.is_of(session) for owner in owners):
        raise ConfigurationError(
            "evaluate: the model has tables or replicated parameters of another session: call evaluate of that one"
        )
    if checkpoint is None and number is not None:
        raise ConfigurationError(f"evaluate: number={number} is that of a checkpoint: give checkpoint, its path")
    if checkpoint is not None and not consistent:
        raise ConfigurationError("evaluate: a checkpoint is consistent; leave out checkpoint or consistent=False")
    if checkpoint is None and consistent and not (session.sync or session.read_only or session.knows_world_size):
        raise ConfigurationError(
            f"evaluate: this is worker {session.rank}, and nobody has said how many there are: others may push "
            "between two batches. Give world_size to ecrec.connect (1 if this is the only worker), or WORLD_SIZE; "
            "or evaluate(..., consistent=False)"
        )
    if checkpoint is None and consistent and (session.read_only or (session.world_size > 1 and not session.sync)):
        why = "a session that only reads" if session.read_only else f"one of {session.world_size} free workers"
        saved = "" if session.read_only else "number = session.save(url), then "
        raise ConfigurationError(
            f"evaluate: this is {why}, and workers may push between two batches, so that no one state of the model "
            f"would be evaluated: {saved}evaluate(..., checkpoint=url{', number=number' * bool(saved)}) evaluates "
            "one cut while they go on; consistent=False evaluates what is there when each batch is pulled"
        )


def check_result(result: object, replicated: Collection[int]) -> None:
    """Raise ConfigurationError for a result of ``predict`` that is another one when the evaluation is over: one that is
    computed only then, or has a parameter, by its id one of the ``replicated``, itself."""
    if isinstance(result, Generator | Coroutine):
        raise ConfigurationError(
            f"evaluate: predict returned a {type(result).__name__}, which would run when the evaluation is over: "
            "return what it gives, as a list"
        )
    if isinstance(result, nn.Parameter) and id(result) in replicated:
        raise ConfigurationError(
            f"evaluate: predict returned a parameter of a replicated module {tuple(result.shape)} itself, which has "
            "the values of training again when the evaluation is over: return parameter.detach()"
        )
    if isinstance(result, list | tuple | Mapping):
        for each in result.values() if isinstance(result, Mapping) else result:
            check_result(each, replicated)
