"""What torch sees of one table of a collection."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ecrec.errors import ConfigurationError, GradientError
from ecrec.protocol.placement import TableSpec
from ecrec.training.configs import BaseEmbeddingConfig
from ecrec.training.parts import F32
from ecrec.training.session import Session
from ecrec.training.whole import check_finite, check_size, read_table, write_table


class Table(nn.Module):
    """What torch sees of a table: its shape, without memory, and whether it is trained. A state_dict has weights."""

    def __init__(self, session: Session, config: BaseEmbeddingConfig) -> None:
        super().__init__()
        self._session, self._name = session, config.name
        self.marker: Tensor | None = None
        """What `weight` has as its gradient while gradients of the table wait for a push, and its version then."""
        self.marker_version = 0
        self.may_write = True
        """Of the weights that its collection is given next, those of all tables fit."""
        self.writes: list[Callable[[], None]] | None = None
        """Where writing the weights it is given is left to others, who collect that here."""
        shape = config.num_embeddings, config.embedding_dim
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.float32, device="meta"))
        self._version = 0
        """Of the weight, as far as writes to it have been said to have no effect."""
        self._is_told = False
        """Somebody was told that they have none, and nobody has said that he goes on."""

    def mark(self) -> None:
        """A backward pass has reached the table."""
        if self.marker is None:
            # Not empty_like, which of a tensor without memory takes a second: torch imports its symbolic shapes for it.
            self.marker = torch.empty(self.weight.shape, dtype=torch.float32, device="meta")
        if self.weight.grad is None:
            self.weight.grad = self.marker
            self.marker_version = self.marker._version

    @property
    def was_zeroed(self) -> bool:
        """The gradient was set to None since it was marked. Raises GradientError if it was changed."""
        self.check_gradient()
        return self.weight.grad is None

    def check_gradient(self) -> None:
        """Raise GradientError if the gradient is another one than the mark."""
        if self.weight.grad is None:
            return
        if self.weight.grad is not self.marker or self.marker._version != self.marker_version:
            raise GradientError(
                f"the gradient of table {self._name!r} was changed here (clip_grad_norm_, "
                "zero_grad(set_to_none=False), a loss of the weight itself, ...), where it is not: gradients of rows "
                "go to the servers. Session.clip_gradients() clips them by norm; Session.discard() gives a step up"
            )

    def check_same(self) -> None:
        """Raise ConfigurationError if somebody has taken the weights for real ones."""
        if self.weight._version != self._version or self.weight.device.type != "meta":
            self._is_told = True
            raise ConfigurationError(
                f"table {self._name!r} was changed here (nn.init, an optimizer, ...), and its weights are on the "
                "servers, as they were: init_fn gives the first ones, load_state_dict others, and steps are theirs "
                "(Session.push). Session.discard() goes on without that change"
            )

    def go_on(self) -> None:
        """A change that was an error is forgotten. Not one that nobody was told of: `zero_grad` comes here, too."""
        if not self._is_told:
            return
        self._is_told = False
        if self.weight.device.type != "meta":
            made = torch.empty(self._spec.rows, self._spec.dim, dtype=torch.float32, device="meta")
            self.weight = nn.Parameter(made, requires_grad=self.weight.requires_grad)
        self._version = self.weight._version

    def _apply(self, fn: Any, recurse: bool = True) -> "Table":
        probe = fn(torch.empty(0, dtype=torch.float32, device="cpu"))
        if probe.dtype != torch.float32 or probe.device.type not in ("cpu", "meta"):
            raise ConfigurationError(
                f"table {self._name!r} stays torch.float32 on the servers, and is pooled on the CPU; it cannot be "
                f"converted to {probe.dtype} on {probe.device}: convert the dense modules, and what the tables give"
            )
        return self

    @property
    def _spec(self) -> TableSpec:
        return self._session.machine.tables[self._name][1]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = torch.from_numpy(read_table(self._session, self._spec))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if local_metadata.get("assign_to_params_buffers"):
            raise ConfigurationError(
                f"load_state_dict(assign=True): table {self._name!r} is on the servers, and no tensor here can take "
                "its place: leave assign out, which writes the values"
            )
        may_write, self.may_write = self.may_write, True
        key = f"{prefix}weight"
        if key not in state_dict:
            missing_keys.append(key)
        elif text := self.misfit(state_dict, prefix):
            error_msgs.append(text)
        elif may_write:
            check_size(self._spec)
            write = partial(write_table, self._session, self._spec, values_of(state_dict[key]))
            if self.writes is None:
                write()
            else:
                self.writes.append(write)

    def misfit(self, state_dict: Mapping[str, Any], prefix: str) -> str:
        """Why the weights of a state_dict cannot be written, for people; empty if they can, or there are none. Raises
        GradientError for a value that is not finite."""
        weight = state_dict.get(f"{prefix}weight")
        if weight is None:
            return ""
        if not isinstance(weight, Tensor) or weight.is_complex():
            kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            return f"table {self._name!r}: {prefix}weight is {kind}, expected a tensor of real numbers"
        if tuple(weight.shape) != (expected := (self._spec.rows, self._spec.dim)) or weight.device.type == "meta":
            return (
                f"table {self._name!r} is {expected} on the servers, and {prefix}weight is {tuple(weight.shape)} on "
                f"{weight.device}"
            )
        check_finite(self._spec, values_of(weight))
        return ""


def values_of(weight: Tensor) -> F32:
    """The weights as the servers take them."""
    values: F32 = weight.detach().to(dtype=torch.float32, device="cpu").contiguous().numpy()
    return values
