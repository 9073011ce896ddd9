"""Clipping by norm of the gradients that wait for a push, in this process."""

import math
from collections.abc import Sequence

import numpy as np

from ecrec.errors import ConfigurationError
from ecrec.training.parts import WaitingGradients

EPSILON = 1e-6
"""Added to a norm before it divides, as in ``torch.nn.utils.clip_grad_norm_``."""


def check_norms(max_norm: float | None, row_norm: float | None) -> None:
    """Raise ConfigurationError for what is no norm to clip to."""
    if max_norm is None and row_norm is None:
        raise ConfigurationError("clip_gradients: give max_norm, of all gradients together, or row_norm, of each row")
    for name, norm in (("max_norm", max_norm), ("row_norm", row_norm)):
        is_number = isinstance(norm, (int, float, np.number)) and not isinstance(norm, bool)
        if norm is not None and not (is_number and 0 < norm < math.inf):
            raise ConfigurationError(f"clip_gradients: {name} is {norm!r:.100}, expected a positive, finite number")


def zero_nonfinite(gradients: WaitingGradients) -> int:
    """Set values that are infinite or not a number to zero; returns how many there were."""
    bad = ~np.isfinite(gradients.values)
    gradients.values[bad] = 0.0
    return int(bad.sum())


def clip(waiting: Sequence[WaitingGradients], max_norm: float | None, row_norm: float | None) -> float:
    """Scale each row of a table down to ``row_norm``, then all gradients to ``max_norm`` together: g *= min(1, limit /
    (norm + `EPSILON`)), with Euclidean norms in float64. Returns the norm of all before that last step. Where it is not
    finite, nothing is scaled."""
    if row_norm is not None:
        for values, by_row in waiting:
            if by_row:
                norms = np.sqrt(np.square(values, dtype=np.float64).sum(axis=1))
                factors = np.minimum(1.0, row_norm / (norms + EPSILON))
                # of a row that is not finite the push tells where
                factors[~np.isfinite(norms)] = 1.0
                values *= factors[:, None].astype(np.float32)
    total = math.sqrt(math.fsum(float(np.square(values, dtype=np.float64).sum()) for values, _ in waiting))
    factor = 1.0 if max_norm is None or not math.isfinite(total) else min(1.0, max_norm / (total + EPSILON))
    if factor < 1.0:
        for values, _ in waiting:
            values *= np.float32(factor)
    return total
