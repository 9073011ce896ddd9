"""The dense part of a model: its parameters are replicated on r + 1 shards, which apply the optimizer (code k = 1)."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ecrec.errors import ConfigurationError, GradientError, RefusedError
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.buffers import CONSTANT, ConstantBuffers, check_buffers, digest_of_buffers, running_statistics
from ecrec.training.dense_gradients import DenseGradients
from ecrec.training.dense_values import DenseValues
from ecrec.training.evaluation import check_no_gradients, refuse
from ecrec.training.module_hooks import hook, watch_shared
from ecrec.training.optimizers import Optimizer, check_optimizer
from ecrec.training.parameter_rows import ROW_FLOATS, ParameterRows, dense_parameters
from ecrec.training.parts import PartSession, Share, WaitingGradients

log = logging.getLogger(__name__)

_owners: dict[int, weakref.ref[ReplicatedModule]] = {}
"""By the id of a parameter, which may be another one's by now."""


class ReplicatedModule:
    """All parameters of a module, each from a row of its own on, as the rows of one table.

    Those of an `EmbeddingBagCollection` in it are on the servers already, and left out.

    The parameters become views of one flat buffer, whose values a pull replaces. They are pulled when the module, or
    one in it, is called, saved or loaded for the first time after a push, by `Session.prefetch`, and at the end of the
    session; who reads them otherwise, as an average over steps does, calls `pull` before. A push takes the gradients
    that the parameters have then, as ``optimizer.step()`` would, and sets them to None; a parameter that has none, or
    does not require one, is left alone by the optimizer. When the constructor returns, the module has the values of the
    shards on all workers: what was trained under this name before, else those of rank 0. It must be made by all of
    them.

    ``buffers``: servers keep none. ``"constant"``: training must not change them; layers that learn running statistics
    (BatchNorm) are refused unless they are in evaluation mode, and a push raises ConfigurationError after a buffer was
    changed, but by ``load_state_dict``. ``"local"``: each worker has its own. One that is started again, and a reader,
    begins with those of the module it is given, and the log says so.

    ``code``: 1+r; default r is that of `Session.default_code`. ``name``: of the table.
    Raises ConfigurationError for a module without parameters, parameters that are not float32 on the CPU, another k
    than 1, an optimizer that is not elementwise, or a name that this session replicates already; RefusedError if a
    module with other parameters was trained under the name.
    """

    def __init__(
        self,
        session: PartSession,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        code: CodeSpec | str | None = None,
        name: str = "dense",
        row_floats: int = ROW_FLOATS,
        buffers: str = CONSTANT,
    ) -> None:
        code = CodeSpec(1, session.default_code().r) if code is None else CodeSpec.of(code)
        if not isinstance(module, nn.Module):
            raise ConfigurationError(f"what is replicated is {module!r:.100}, expected a torch.nn.Module")
        if not isinstance(name, str):
            raise ConfigurationError(f"replicate: the name is {name!r:.100}, expected a string")
        named = dense_parameters(module)
        check_replicable(type(module).__name__, named, optimizer)
        _check_code(code)
        check_buffers(name, module, buffers)
        session.check_claim([name])
        self.module = module
        self.name = name
        self._session = session
        self._rows = ParameterRows(named, row_floats, session.machine.n, session.machine.groups)
        constants = digest_of_buffers(module) if buffers == CONSTANT else ""
        self.spec = _spec(name, self._rows.count, row_floats, code, optimizer, named, constants)
        try:
            self._index = session.create_tables([self.spec])[0]
            there = session.machine.tables[name][1]
            if there.init_seed != self.spec.init_seed:  # only where the session reads
                raise RefusedError(f"table {name!r} has other parameters")
            if there.first_values != self.spec.first_values:
                raise RefusedError(f"table {name!r} has other parameters or buffers")
            self.spec = there
        except RefusedError as error:
            if "other p" not in str(error):
                raise
            raise RefusedError(
                f"{error}. What is replicated as {name!r} on this cluster is another module, or has another optimizer "
                "or code (init_seed stands for the names and shapes of the parameters), or other values in buffers "
                "that no training changes (first_values stands for them): give another name=, or make the buffers of "
                "all workers alike before they are replicated"
            ) from None
        self._values = DenseValues(name, module, self._rows)
        self._gradients = DenseGradients(name, self._rows)
        self._buffers = ConstantBuffers(name, module, buffers)
        self._pushes = 0
        self._is_stale = False
        """There was a push since the parameters were pulled for a step."""
        self._is_behind = False
        """What is here is older than the last push: also in a step that `Session.prefetch` made to be, ``depth`` steps
        behind."""
        self._calls = 0
        """Calls of the module, and of modules in it, that are not over."""
        self.outermost = 0
        """The id of the module whose call is around the others. 0: none is called."""
        # Rank 0 writes its values, unless the table ever had any; then all pull them.
        session.initialise(name, lambda: [self._rows.shares(self._index, self._values.here)])
        fetch = self.plan(None)
        session.fetch(fetch, exact=True)
        first = self._values.assembled(fetch.answers)
        # Only now is the module touched: what was refused before left it as it was.
        is_of_others = self._values.take_over(first)
        self._gradients.watch()
        self._values.know_versions()
        hook(self)
        _watch_shared()
        self.buffers_are_known()
        _owners.update((id(p), weakref.ref(self)) for p in self._rows.parameters)
        session.claim([name], self)
        session.register(self, keep=False)
        if is_of_others and (running := running_statistics(module)):
            log.warning(
                "replicated module %r: its parameters are now those of the cluster, and the running statistics of %s "
                "are not: servers keep no buffers. Load them (load_state_dict of the buffers, strict=False) before the "
                "module is evaluated",
                name, ", ".join(running),
            )  # fmt: skip

    @staticmethod
    def of(module: nn.Module) -> ReplicatedModule:
        """The living one that has all parameters of a module, or of a model that was distributed. ConfigurationError if
        there is none."""
        parameters = dense_parameters(module)
        parts = {id(part): part for part in (owner_of(parameter) for parameter in parameters.values())}
        part = next(iter(parts.values()), None)
        if len(parts) != 1 or part is None:
            raise ConfigurationError(
                f"{type(module).__name__} is not replicated as a whole: {sum(p is not None for p in parts.values())} "
                "replicated modules have parameters of it"
            )
        return part

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are replicated."""
        return list(self._rows.parameters)

    @property
    def index(self) -> int:
        """Of its table, on the cluster."""
        return self._index

    def is_of(self, session: object) -> bool:
        """It is a part of this session."""
        return self._session is session

    @property
    def is_over(self) -> bool:
        """Its session is closed: the module is plain torch from now on."""
        return self._session.closed

    @property
    def fetch_shares(self) -> dict[int, Share]:
        """All rows, by shard."""
        return self._rows.all_rows(self._index)

    def pull(self, undo: bool = False) -> None:
        """Set the parameters to what the shards have now.

        Raises ConfigurationError if that would undo a change that was made to them here (see `assign`), and
        GradientError if they have gradients of older values. With ``undo`` it undoes that: parameters that were
        changed, converted or replaced are those of before, with the values of the shards.
        """
        if self._values.is_evaluated:
            refuse(f"pull of the replicated module {self.name!r}")
        if undo:
            self._values.undo()
        self._values.check_same()
        self._pull(exact=True)

    def assign(self) -> None:
        """Write the values that the parameters have here to the shards, as after ``load_state_dict``, and wait until
        they are durable.

        The state of the optimizer stays. With several workers one of them does it, while the others push nothing
        (`Session.barrier`). Raises ConfigurationError where the parameters are not those that were replicated, or are
        older than the last push (``load_state_dict`` pulls them first), GradientError for a value that is infinite or
        not a number.
        """
        self._values.check_same(values=False)
        if self._is_behind:
            raise ConfigurationError(
                f"replicated module {self.name!r}: the parameters here are older than the last push, which this would "
                "undo: pull() them, change them, and then assign(); pull(undo=True) gives a change up"
            )
        self._session.assign(self._rows.shares(self._index, self._values.here))
        self._values.written()
        self._is_stale = self._is_behind = False

    def remember(self) -> Callable[[], None]:
        """What brings the values of now back, as if they had never been changed."""
        return self._values.remember()

    def buffers_are_known(self) -> None:
        """The buffers that the module has now are those that training must not change."""
        self._buffers.know()

    # ------------------------------------------------------------------ as a part of a session
    def plan(self, features: Any) -> _DenseRows:
        """All rows, whatever the batch."""
        return _DenseRows(self.fetch_shares, self._pushes)

    def offer(self, features: Any, fetch: _DenseRows) -> None:
        """A step begins: only now may the parameters change."""
        if self._values.is_evaluated:
            refuse("a step of Session.prefetch")
        self._values.check_same()
        if self._is_stale and self._gradients.wait:
            raise GradientError(
                f"replicated module {self.name!r}: it has gradients of parameters that are older than the last push: "
                "Session.discard(), and compute them again with those of now"
            )
        self._values.set(self._values.assembled(fetch.answers))
        self._is_stale, self._is_behind = False, fetch.pushes != self._pushes

    def check_gradients(self) -> None:
        """Raise what is wrong with them; nothing is taken."""
        self._values.check_same()
        self._buffers.check()
        self._gradients.check()
        if self._is_stale and self._gradients.wait:
            raise GradientError(
                f"replicated module {self.name!r}: these gradients are of parameters that were not pulled since the "
                "last push. Session.discard() them, and compute them again: call the module, give it to "
                "Session.prefetch, or pull() it before"
            )

    def waiting_gradients(self) -> list[WaitingGradients]:
        """Those of all parameters that are trained, in place."""
        return self._gradients.waiting()

    def gradient_of(self, index: int) -> Tensor | None:
        """Of all parameters that are trained and have one, as one flat tensor; None without any. What is changed in it
        counts: gradients become views of it."""
        return self._gradients.as_one()

    def take_gradients(self) -> dict[int, Share]:
        """Gradients of the parameters since the last call; empty if there are none."""
        return self._gradients.take(self._index)

    def pushed(self) -> None:
        """What is here is older than what the shards have."""
        self._pushes += 1
        self._no_call()
        self._is_stale = self._is_behind = True

    def discard(self) -> None:
        """Forget the gradients since the last push."""
        self._gradients.forget()
        self._no_call()

    def describe(self, table: str, row: int, column: int) -> str:
        """For people: the place in a parameter of a place in the table. Empty if it is another table's."""
        place = self._rows.describe(row, column) if table == self.name else ""
        return f"{place} of the replicated module {self.name!r}" if place else ""

    def finish(self) -> None:
        """The session ends: what is here from now on is what the shards had last."""
        if not self._is_behind:
            return
        self.discard()
        try:
            self.pull()
        except ConfigurationError as error:
            log.warning("the module keeps the parameters of before its last step: %s", error)

    def begin_evaluation(self) -> None:
        """Pull the parameters into memory of their own, which the module has until `end_evaluation`."""
        self._values.check_same()
        fetch = self.plan(None)
        self._session.fetch(fetch, exact=True)
        self._values.begin_evaluation(self._values.assembled(fetch.answers))

    def end_evaluation(self) -> None:
        """The module has the values of training again. Raises ConfigurationError if somebody has changed those that
        were evaluated, or other tensors are in their place; that change is undone."""
        self._no_call()
        self._values.end_evaluation()

    # ------------------------------------------------------------------ what its module's hooks tell it
    def before_forward(self, is_whole: bool, module: int) -> None:
        """The module (``is_whole``), or one in it, is called; ``module`` is its id. Its parameters must be those after
        the last push; and those of now where others push and this is no step of training: with gradients disabled, and
        always where the session reads.

        Not a module in one that is being called: in one pass all have the parameters of one moment.
        """
        session = self._session
        # trap: torch does not say that a call is over which Ctrl-C has ended.
        self._calls = 1 if is_whole else self._calls + 1
        if self._calls == 1:
            self.outermost = module
        if self._values.is_evaluated:
            check_no_gradients(f"replicated module {self.name!r}")
            return
        if session.closed or self._calls > 1:
            return  # it has what the shards had last, or what the call around it has pulled
        self._values.check_kind()
        of_others = session.read_only or (session.world_size > 1 and not torch.is_grad_enabled())
        if self._is_stale or of_others:
            self._pull(exact=None)

    def after_forward(self) -> None:
        """That call is over, with or without an error."""
        self._calls = max(0, self._calls - 1)
        if not self._calls:
            self.outermost = 0

    def _no_call(self) -> None:
        self._calls = self.outermost = 0

    def before_saving(self) -> None:
        """The module is saved or loaded: its parameters must be those after the last push, and of all workers'."""
        session = self._session
        if session.closed or self._values.is_evaluated:
            return
        self._values.check_kind()
        if self._is_behind or session.read_only or session.world_size > 1:
            self._pull(exact=None)

    def check_fresh(self, what: str) -> None:
        """Raise ConfigurationError if the parameters are older than the last push."""
        if self._is_behind and not self._values.is_evaluated:
            raise ConfigurationError(
                f"replicated module {self.name!r}: {what} would have parameters that are older than the last push: "
                "pull() before"
            )

    def _pull(self, exact: bool | None) -> None:
        fetch = self.plan(None)
        self._session.fetch(fetch, exact=exact)
        self.offer(None, fetch)


class _DenseRows:
    """One pull of all rows; the answers are kept until the step begins. ``pushes``: made before it was asked for."""

    def __init__(self, shares: dict[int, Share], pushes: int) -> None:
        self.shares = shares
        self.pushes = pushes
        self.answers: Mapping[int, Any] = {}

    def fill(self, answers: Mapping[int, Any]) -> None:
        self.answers = answers


def owner_of(parameter: nn.Parameter) -> ReplicatedModule | None:
    """The living replicated module that has it."""
    owner = _owners.get(id(parameter), lambda: None)()
    return owner if owner is not None and any(parameter is other for other in owner.parameters) else None


@cache
def _watch_shared() -> None:
    """Once a process."""
    watch_shared(owner_of)


def _spec(
    name: str, rows: int, row_floats: int, code: CodeSpec, optimizer: Optimizer, parameters: Mapping[str, Tensor],
    constants: str = "",
) -> TableSpec:  # fmt: skip
    """The seed, which tables of zeros do not need, says which parameters it is of."""
    shapes = "".join(f"{name} {tuple(parameter.shape)};" for name, parameter in parameters.items())
    digest = hashlib.sha256(shapes.encode()).digest()
    seed = int.from_bytes(digest[:7], "little")
    return TableSpec(
        name, rows, row_floats, code, optimizer.spec, "zeros", seed, init_state=optimizer.init_state, is_module=True,
        first_values=constants,
    )  # fmt: skip


def check_replicable(what: str, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Raise ConfigurationError for parameters of ``what`` that cannot be replicated, or not with this optimizer."""
    check_optimizer(optimizer)
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConfigurationError(f"parameter {name} of {what} has no shape yet: run the module once before")
        if parameter.is_inference():
            raise ConfigurationError(
                f"parameter {name} of {what} was made in torch.inference_mode(), and cannot be trained: make it outside"
            )
        if (owner := owner_of(parameter)) is not None:
            raise ConfigurationError(f"parameter {name} of {what} is replicated already, as part of {owner.name!r}")
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ConfigurationError(
                f"parameter {name} of {what} is {parameter.dtype} on {parameter.device}; expected torch.float32 on cpu"
                ", where a replicated module is trained: module.cpu().float() before it is replicated"
            )
    if not sum(parameter.numel() for parameter in parameters.values()):
        raise ConfigurationError(f"{what} has no parameters to replicate")
    if not optimizer.elementwise:
        raise ConfigurationError(
            f"{type(optimizer).__name__} keeps its state by row, and a row of a replicated module is cut anywhere; "
            "use another optimizer"
        )


def _check_code(code: CodeSpec) -> None:
    if code.k != 1:
        raise ConfigurationError(f"code {code}: replication is k = 1, for example 1+{max(code.r, 1)}")
