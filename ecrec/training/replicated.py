"""The dense part of a model: its parameters are replicated on r + 1 shards, which apply the optimizer (code k = 1).

This file is long because a replicated module is one object to torch, to its session and to its users: what each
of them may do to it, and when, is checked where its values and gradients are.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ecrec._native import first_nonfinite
from ecrec.errors import ConfigurationError, DivergedError, GradientError, RefusedError
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.evaluation import check_no_gradients, refuse
from ecrec.training.optimizers import Optimizer, check_optimizer
from ecrec.training.parts import F32, TAKEN_AWAY, PartSession, Share, WaitingGradients, places_by_shard

CONSTANT, LOCAL = "constant", "local"
"""What becomes of buffers: training does not change them, or each worker has its own."""

ROW_FLOATS = 1024
"""Floats in a row of the table: 4 KiB, so that even a small model is spread over the shards."""


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
        named = dense_parameters(module)
        check_replicable(type(module).__name__, named, optimizer)
        _check_code(code)
        _check_buffers(name, module, buffers)
        session.check_claim([name])
        self.module = module
        self.name = name
        self._session = session
        self._names, self._parameters = list(named), list(named.values())
        counts = [-(-p.numel() // row_floats) for p in self._parameters]
        ends = np.cumsum(counts)
        rows = int(ends[-1])
        self._row_parameter = np.repeat(np.arange(len(counts)), counts)
        self._first_rows = ends - counts
        constants = _digest_of_buffers(module) if buffers == CONSTANT else ""
        self.spec = _spec(name, rows, row_floats, code, optimizer, named, constants)
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
        self._rows = places_by_shard(np.arange(rows, dtype=np.int64), 1, session.machine.n, session.machine.groups)
        self._values: F32 = np.zeros((rows, row_floats), np.float32)
        self._gradients: F32 = np.zeros((rows, row_floats), np.float32)
        self._value_views = list(self._views(self._values))
        self._gradient_views = list(self._views(self._gradients))
        self._reached: set[int] = set()
        """Parameters that a backward pass has reached since the last push."""
        self._flat: Tensor | None = None
        self._flat_views: list[Tensor] = []
        """Gradients as `gradient_of` gave them, and what parameters had then."""
        self._pushes = 0
        self._is_stale = False
        """There was a push since the parameters were pulled for a step."""
        self._is_behind = False
        """What is here is older than the last push: also in a step that `Session.prefetch` made to be, ``depth`` steps
        behind."""
        self._constant = buffers == CONSTANT
        self._evaluated: F32 | None = None
        """In an evaluation: the values that are evaluated. Those of training stay where they are."""
        self._calls = 0
        """Calls of the module, and of modules in it, that are not over."""
        self._buffers: dict[str, tuple[Tensor, int]] = {}
        """As they were last known, with their versions, where training must not change them."""
        for parameter, value in zip(self._parameters, self._value_views, strict=True):
            value.copy_(parameter.data)
        # Rank 0 writes its values, unless the table ever had any; then all pull them.
        session.initialise(name, lambda: [self._shares(self._values)])
        fetch = self.plan(None)
        session.fetch(fetch, exact=True)
        self._known: F32 = self._assembled(fetch)
        """As they were pulled, or written, last."""
        is_of_others = not _equal(self._values, self._known)
        self._values[:] = self._known
        # Only now is the module touched: what was refused before left it as it was.
        for i, (parameter, value) in enumerate(zip(self._parameters, self._value_views, strict=True)):
            parameter.data = value
            parameter.grad = None
            trained = parameter.requires_grad
            parameter.requires_grad_(True)  # torch refuses the hook otherwise; it may be trained later
            parameter.register_post_accumulate_grad_hook(_Reached(self._reached, i))  # type: ignore[no-untyped-call]
            parameter.requires_grad_(trained)
        self._versions = [p._version for p in self._parameters]
        # First, so that other hooks see the parameters of now.
        for part in module.modules():
            if part is module or dense_parameters(part):
                part.register_forward_pre_hook(_PullBefore(self, of_part=part is not module), prepend=True)
                part.register_forward_hook(_CallIsOver(self), always_call=True)
            part.register_state_dict_pre_hook(_PullBeforeSave(self))  # type: ignore[no-untyped-call]
            part._register_load_state_dict_pre_hook(_PullBeforeLoad(self))  # type: ignore[no-untyped-call]
            part.register_load_state_dict_post_hook(_KnowBuffers(self))  # type: ignore[no-untyped-call]
        self.buffers_are_known()
        _owners.update((id(p), weakref.ref(self)) for p in self._parameters)
        session.claim([name], self)
        session.register(self, keep=False)
        if is_of_others and (running := _running_statistics(module)):
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
        return list(self._parameters)

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
        return {shard: Share(Section([self._index], [len(rows)]), rows) for shard, rows in self._rows.items()}

    def pull(self, undo: bool = False) -> None:
        """Set the parameters to what the shards have now.

        Raises ConfigurationError if that would undo a change that was made to them here (see `assign`), which with
        ``undo`` it does, and GradientError if they have gradients of older values.
        """
        if self._evaluated is not None:
            refuse(f"pull of the replicated module {self.name!r}")
        if undo:
            self._check_same(values=False)
            self._values[:] = self._known
            self._versions = [p._version for p in self._parameters]
        self._check_same()
        self._pull(exact=True)

    def assign(self) -> None:
        """Write the values that the parameters have here to the shards, as after ``load_state_dict``, and wait until
        they are durable.

        The state of the optimizer stays. With several workers one of them does it, while the others push nothing
        (`Session.barrier`). Raises ConfigurationError where the parameters are not those that were replicated, or are
        older than the last push (``load_state_dict`` pulls them first), GradientError for a value that is infinite or
        not a number.
        """
        self._check_same(values=False)
        if self._is_behind:
            raise ConfigurationError(
                f"replicated module {self.name!r}: the parameters here are older than the last push, which this would "
                "undo: pull() them, change them, and then assign(); pull(undo=True) gives a change up"
            )
        self._session.assign(self._shares(self._values))
        self._known[:] = self._values
        self._versions = [p._version for p in self._parameters]
        self._is_stale = self._is_behind = False

    def remember(self) -> Callable[[], None]:
        """What brings the values of now back, as if they had never been changed."""
        values = self._values.copy()
        were_same = [p._version for p in self._parameters] == self._versions

        def restore() -> None:
            self._values[:] = values
            if were_same:
                self._versions = [p._version for p in self._parameters]

        return restore

    def buffers_are_known(self) -> None:
        """The buffers that the module has now are those that training must not change."""
        if self._constant:
            self._buffers = {name: (buffer, buffer._version) for name, buffer in _buffers(self.module).items()}

    def _check_constant(self) -> None:
        """Raise ConfigurationError for a buffer that was changed, where none may be."""
        if not self._constant:
            return
        _check_buffers(self.name, self.module, CONSTANT)  # torch's kernels change running means without a trace
        now = {name: (buffer, buffer._version) for name, buffer in _buffers(self.module).items()}
        for name, (buffer, version) in now.items():
            known, known_version = self._buffers.get(name, (None, 0))
            if known is not buffer or known_version != version:
                raise ConfigurationError(
                    f"replicated module {self.name!r}: buffer {name} was changed since the last push, and servers keep "
                    f"no buffers: the workers would differ in it, and one that is started again would lose it. "
                    f"{_BUFFERS_ADVICE}"
                )

    # ------------------------------------------------------------------ as a part of a session
    def plan(self, features: Any) -> _DenseRows:
        """All rows, whatever the batch."""
        return _DenseRows(self.fetch_shares, self._pushes)

    def offer(self, features: Any, fetch: _DenseRows) -> None:
        """A step begins: only now may the parameters change."""
        if self._evaluated is not None:
            refuse("a step of Session.prefetch")
        self._check_same()
        if self._is_stale and any(p.requires_grad and p.grad is not None for p in self._parameters):
            raise GradientError(
                f"replicated module {self.name!r}: it has gradients of parameters that are older than the last push: "
                "Session.discard(), and compute them again with those of now"
            )
        new = self._assembled(fetch)
        if not _equal(self._values, self._known):
            self._refuse_changed("a parameter")
        if not _equal(new, self._known):
            self._values[:] = self._known = new
            # A graph that was built with the values of before must not go backward with these: torch says so then.
            for parameter in self._parameters:
                increment_version(parameter)
            self._versions = [p._version for p in self._parameters]
        self._is_stale, self._is_behind = False, fetch.pushes != self._pushes

    def check_gradients(self) -> None:
        """Raise what is wrong with them; nothing is taken."""
        self._check_same()
        self._check_constant()
        having = {i for i, p in enumerate(self._parameters) if p.grad is not None}
        if taken := sorted(self._reached - having):
            raise GradientError(
                f"replicated module {self.name!r}: the gradient of {self._named(taken)} was {TAKEN_AWAY}"
            )
        for i in having:
            parameter = self._parameters[i]
            grad = parameter.grad
            assert grad is not None
            if grad.dtype != torch.float32 or grad.device.type != "cpu" or grad.shape != parameter.shape:
                raise GradientError(
                    f"replicated module {self.name!r}: the gradient of {self._names[i]} is {grad.dtype} "
                    f"{tuple(grad.shape)} on {grad.device}; expected torch.float32 {tuple(parameter.shape)} on cpu"
                )
        if self._is_stale and any(self._parameters[i].requires_grad for i in having):
            raise GradientError(
                f"replicated module {self.name!r}: these gradients are of parameters that were not pulled since the "
                "last push. Session.discard() them, and compute them again: call the module, give it to "
                "Session.prefetch, or pull() it before"
            )

    def waiting_gradients(self) -> list[WaitingGradients]:
        """Those of all parameters that are trained, in place."""
        out = []
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.requires_grad:
                if parameter.grad.layout != torch.strided:
                    parameter.grad = parameter.grad.to_dense()
                out.append(WaitingGradients(parameter.grad.detach().numpy(), by_row=False))
        return out

    def gradient_of(self, index: int) -> Tensor | None:
        """Of all parameters that are trained and have one, as one flat tensor; None without any. What is changed in it
        counts: gradients become views of it."""
        having = [p for p in self._parameters if p.grad is not None and p.requires_grad]
        if not having:
            return None
        if self._flat is None or not _are(self._flat_views, [p.grad for p in having]):
            grads = [
                p.grad.to_dense() if p.grad.layout != torch.strided else p.grad for p in having if p.grad is not None
            ]
            self._flat = torch.cat([grad.detach().reshape(-1) for grad in grads])
            sizes = [grad.numel() for grad in grads]
            self._flat_views = [part.view_as(g) for part, g in zip(torch.split(self._flat, sizes), grads, strict=True)]
            for parameter, view in zip(having, self._flat_views, strict=True):
                parameter.grad = view
        return self._flat

    def take_gradients(self) -> dict[int, Share]:
        """Gradients of the parameters since the last call; empty if there are none."""
        touched = np.zeros(len(self._parameters), np.bool_)
        for i, (parameter, view) in enumerate(zip(self._parameters, self._gradient_views, strict=True)):
            if parameter.grad is None:
                continue
            if parameter.requires_grad:
                grad = parameter.grad
                view.copy_(grad.to_dense() if grad.layout != torch.strided else grad)
                touched[i] = True
            parameter.grad = None
        self._reached.clear()
        self._flat, self._flat_views = None, []
        if not touched.any():
            return {}
        return self._shares(self._gradients, None if touched.all() else touched[self._row_parameter])

    def pushed(self) -> None:
        """What is here is older than what the shards have."""
        self._pushes += 1
        self._calls = 0
        self._is_stale = self._is_behind = True

    def discard(self) -> None:
        """Forget the gradients since the last push."""
        for parameter in self._parameters:
            parameter.grad = None
        self._reached.clear()
        self._calls = 0
        self._flat, self._flat_views = None, []

    def describe(self, table: str, row: int, column: int) -> str:
        """For people: the place in a parameter of a place in the table. Empty if it is another table's."""
        if table != self.name:
            return ""
        i = int(self._row_parameter[row])
        flat = (row - int(self._first_rows[i])) * self._values.shape[1] + column
        shape = self._parameters[i].shape
        if flat >= self._parameters[i].numel():
            return ""
        place = [int(each) for each in np.unravel_index(flat, shape)] if shape else []
        return f"parameter {self._names[i]}{place or ''} of the replicated module {self.name!r}"

    # ------------------------------------------------------------------ helpers
    def before_forward(self, is_whole: bool) -> None:
        """The module (``is_whole``), or one in it, is called: its parameters must be those after the last push; and
        those of now where others push and this is no step of training: with gradients disabled, and always where the
        session reads.

        Not a module in one that is being called: in one pass all have the parameters of one moment.
        """
        session = self._session
        # trap: torch does not say that a call is over which Ctrl-C has ended.
        self._calls = 1 if is_whole else self._calls + 1
        if self._evaluated is not None:
            check_no_gradients(f"replicated module {self.name!r}")
            return
        if session.closed or self._calls > 1:
            return  # it has what the shards had last, or what the call around it has pulled
        self._check_kind()
        of_others = session.read_only or (session.world_size > 1 and not torch.is_grad_enabled())
        if self._is_stale or of_others:
            self._pull(exact=None)

    def after_forward(self) -> None:
        """That call is over, with or without an error."""
        self._calls = max(0, self._calls - 1)

    def before_saving(self) -> None:
        """The module is saved or loaded: its parameters must be those after the last push, and of all workers'."""
        session = self._session
        if session.closed or self._evaluated is not None:
            return
        self._check_kind()
        if self._is_behind or session.read_only or session.world_size > 1:
            self._pull(exact=None)

    def _pull(self, exact: bool | None) -> None:
        fetch = self.plan(None)
        self._session.fetch(fetch, exact=exact)
        self.offer(None, fetch)

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
        """Pull the parameters into memory of their own, which the module has until `end_evaluation`.

        trap: not in place. A graph that waits for its backward pass, and a step of `Session.prefetch`, are of values
        that may be older than the last push.
        """
        self._check_same()
        fetch = self.plan(None)
        self._session.fetch(fetch, exact=True)
        self._evaluated = self._assembled(fetch)
        for parameter, value in zip(self._parameters, self._views(self._evaluated), strict=True):
            parameter.data = value

    def end_evaluation(self) -> None:
        """The module has the values of training again. Raises ConfigurationError if somebody has changed those that
        were evaluated, or other tensors are in their place; that change is undone."""
        evaluated = self._evaluated
        assert evaluated is not None
        self._evaluated, self._calls = None, 0
        were = [value.data_ptr() for value in self._views(evaluated)]
        is_same = were == [parameter.data.data_ptr() for parameter in self._parameters]
        is_same = is_same and [p._version for p in self._parameters] == self._versions
        for parameter, value in zip(self._parameters, self._value_views, strict=True):
            parameter.data = value
        self._versions = [p._version for p in self._parameters]
        if not is_same:
            raise ConfigurationError(
                f"replicated module {self.name!r}: a parameter was changed inside Session.evaluate (load_state_dict, "
                "the step of an optimizer, a conversion), which changes nothing; it has the values of before again"
            )

    def check_fresh(self, what: str) -> None:
        """Raise ConfigurationError if the parameters are older than the last push."""
        if self._is_behind and self._evaluated is None:
            raise ConfigurationError(
                f"replicated module {self.name!r}: {what} would have parameters that are older than the last push: "
                "pull() before"
            )

    def _assembled(self, fetch: _DenseRows) -> F32:
        """The rows of a pull in one array. Raises DivergedError for a value that is not finite."""
        out = np.zeros_like(self._values)
        for shard, frame in fetch.answers.items():
            out[self._rows[shard]] = np.frombuffer(frame, np.float32).reshape(-1, out.shape[1])
        first = first_nonfinite(out.reshape(-1))
        if first >= 0:
            row, column = divmod(first, out.shape[1])
            raise DivergedError(f"{self.describe(self.name, row, column)} is {out[row, column]} on the servers")
        return out

    def _check_same(self, values: bool = True) -> None:
        """The module still has the parameters that were replicated, and, with ``values``, nobody has changed them."""
        named = dense_parameters(self.module)
        parameters = list(named.values())
        if len(parameters) != len(self._parameters) or any(
            a is not b for a, b in zip(parameters, self._parameters, strict=True)
        ):
            raise ConfigurationError(
                f"replicated module {self.name!r}: its parameters are {', '.join(named)}, and were "
                f"{', '.join(self._names)}, or one was replaced: change a module before it is replicated"
            )
        for name, parameter, view, version in zip(
            self._names, self._parameters, self._value_views, self._versions, strict=True
        ):
            data = parameter.data
            if data.data_ptr() != view.data_ptr() or data.dtype != view.dtype or data.device != view.device:
                self._refuse_moved(name, parameter)
            if values and parameter._version != version:
                self._refuse_changed(f"parameter {name}")

    def _check_kind(self) -> None:
        """Raise ConfigurationError for a parameter that was converted: torch would only name the matrices."""
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                self._refuse_moved(name, parameter)

    def _refuse_moved(self, name: str, parameter: nn.Parameter) -> NoReturn:
        raise ConfigurationError(
            f"replicated module {self.name!r}: parameter {name} was moved or converted ({parameter.dtype} on "
            f"{parameter.device}); it is trained as torch.float32 on cpu where it was when it was replicated"
        )

    def _refuse_changed(self, what: str) -> NoReturn:
        raise ConfigurationError(
            f"replicated module {self.name!r}: {what} was changed here (load_state_dict, the step of an optimizer, "
            "DistributedDataParallel, another operation in place), and the next pull would undo it. "
            "ReplicatedModule.assign() writes the values to the servers; steps are theirs (Session.push)"
        )

    def _named(self, indices: Sequence[int]) -> str:
        return ", ".join(self._names[i] for i in indices)

    def _views(self, buffer: F32) -> Iterator[Tensor]:
        flat = torch.from_numpy(buffer).view(-1)
        for parameter, first in zip(self._parameters, (self._first_rows * buffer.shape[1]).tolist(), strict=True):
            yield flat[first : first + parameter.numel()].view(parameter.shape)

    def _shares(self, buffer: F32, which: NDArray[np.bool_] | None = None) -> dict[int, Share]:
        # A copy: the frames of a push are kept until it is durable, and the buffer is used again before that.
        shares = {}
        for shard, all_rows in self._rows.items():
            rows = all_rows if which is None else all_rows[which[all_rows]]
            if len(rows):
                shares[shard] = Share(Section([self._index], [len(rows)]), rows, buffer[rows].reshape(-1))
        return shares


class _Hook:
    """A hook of the module. A copy of the module, or one that was loaded from a file, has none that does anything.

    ``of_part``: of a module in it. Where the whole is compiled, that one's hook is enough: each ends a graph.
    """

    def __init__(self, part: ReplicatedModule | None, of_part: bool = False) -> None:
        self.part, self.of_part = part, of_part

    def __call__(self, *_: Any) -> None:
        if self.part is None:
            return
        if not torch.compiler.is_compiling():
            self._act(self.part)
        elif not self.of_part:  # it waits for sockets, and no compiler sees into that
            torch.compiler.disable(self._act)(self.part)  # type: ignore[no-untyped-call]

    def _act(self, part: ReplicatedModule) -> None:
        raise NotImplementedError

    def __deepcopy__(self, memo: Any) -> _Hook:
        if self.part is not None:
            self.part.check_fresh("a copy")
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.part is not None:
            self.part.check_fresh("a file")
        return _Hook, (None,)


class _PullBefore(_Hook):
    """The hook before a call."""

    def _act(self, part: ReplicatedModule) -> None:
        part.before_forward(not self.of_part)


class _CallIsOver(_Hook):
    """The hook after a call."""

    def _act(self, part: ReplicatedModule) -> None:
        part.after_forward()


class _PullBeforeSave(_Hook):
    """The hook of ``state_dict``."""

    def _act(self, part: ReplicatedModule) -> None:
        part.before_saving()


class _PullBeforeLoad(_PullBeforeSave):
    """The hook of ``load_state_dict``, which is told whether other tensors are to take the parameters' places."""

    def __call__(self, *given: Any) -> None:
        if self.part is not None and given[2].get("assign_to_params_buffers") and not self.part.is_over:
            raise ConfigurationError(
                f"load_state_dict(assign=True) would put other tensors in the place of the parameters of the "
                f"replicated module {self.part.name!r}: leave assign out, which copies the values"
            )
        super().__call__(*given)


class _KnowBuffers:
    """A hook of the module after ``load_state_dict``: the buffers that were loaded are no work of training's."""

    def __init__(self, part: ReplicatedModule | None) -> None:
        self.part = part

    def __call__(self, *_: Any) -> None:
        if self.part is not None:
            self.part.buffers_are_known()

    def __deepcopy__(self, memo: Any) -> _KnowBuffers:
        return _KnowBuffers(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _KnowBuffers, (None,)


class _Reached:
    """A hook of a parameter: a backward pass has reached it."""

    def __init__(self, reached: set[int], index: int) -> None:
        self.reached, self.index = reached, index

    def __call__(self, parameter: Tensor) -> None:
        self.reached.add(self.index)


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
    return owner if owner is not None and any(parameter is other for other in owner._parameters) else None


def _are(some: Sequence[Tensor], others: Sequence[Tensor | None]) -> bool:
    """They are the same objects."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _equal(a: F32, b: F32) -> bool:
    """To the bit."""
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def dense_parameters(module: nn.Module, left_out: Sequence[nn.Module] = ()) -> dict[str, nn.Parameter]:
    """A module's parameters by name, but for those of embedding tables that are on the servers already, and of modules
    in it that are ``left_out``. Raises ConfigurationError for what torch has wrapped for several processes."""
    for path, part in module.named_modules():
        if isinstance(part, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise ConfigurationError(
                f"{path or 'the module'} is wrapped in {type(part).__name__}: the servers add up the gradients of all "
                "workers (Session.push), so give the module inside (.module), without the wrapper"
            )
    others = [*left_out, *(part for part in module.modules() if getattr(part, "is_on_servers", False))]
    tables = {id(weight) for part in others for weight in part.parameters()}
    return {name: parameter for name, parameter in module.named_parameters() if id(parameter) not in tables}


_BUFFERS_ADVICE = (
    'buffers="local" (replicate, distribute) trains so all the same; layers without running statistics (LayerNorm, '
    "track_running_stats=False), or in evaluation mode, need none of it"
)


def _check_buffers(name: str, module: nn.Module, buffers: str) -> None:
    """Raise ConfigurationError for another option, and for layers whose buffers training would change."""
    if buffers not in (CONSTANT, LOCAL):
        raise ConfigurationError(f"buffers is {buffers!r:.100}, expected {CONSTANT!r} or {LOCAL!r}")
    if buffers == CONSTANT and (learning := _running_statistics(module, of_training=True)):
        raise ConfigurationError(
            f"replicated module {name!r}: {', '.join(learning)} learns running statistics, which are buffers, and "
            f"servers keep none: each worker would have its own, and lose them when it is started again. "
            f"{_BUFFERS_ADVICE}"
        )


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers())


def _running_statistics(module: nn.Module, of_training: bool = False) -> list[str]:
    """Layers that learn some beside their parameters, as BatchNorm does; ``of_training``: in training mode."""
    layers = ((name or type(part).__name__, part) for name, part in module.named_modules())
    return [
        name
        for name, part in layers
        if isinstance(getattr(part, "running_mean", None), Tensor) and (part.training or not of_training)
    ]


def _digest_of_buffers(module: nn.Module) -> str:
    """Of their names and values, to the bit; empty without any. Workers that differ in one train different models."""
    digest = hashlib.sha256()
    buffers = _buffers(module)
    for name, buffer in sorted(buffers.items()):
        digest.update(f"{name} {buffer.dtype} {tuple(buffer.shape)};".encode())
        digest.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"buffers {digest.hexdigest()[:16]}" if buffers else ""


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
