"""Area under the ROC curve, log loss and normalized entropy, exact, in float64."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The probability that a random positive is scored above a random negative, a tie counting one half.

    labels: [n], 0 or 1. scores: [n], any increasing function of the predicted probability (logits will do).
    Exact (Mann-Whitney U), no binning. Raises ValueError for other labels, different
    lengths, a score that is NaN, or labels that are all the same (the AUC is then undefined).
    """
    positive, score = _checked(labels, scores)
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"labels are {positives} ones and {negatives} zeros; the AUC needs both")
    # Whole numbers until the division: exact. Two shorter sorts cost less than half of one with its ranks.
    ones, zeros = np.sort(score[positive]), np.sort(score[~positive])
    above = int(np.searchsorted(zeros, ones, "left").sum())
    above_or_equal = int(np.searchsorted(zeros, ones, "right").sum())
    return (above + above_or_equal) / 2.0 / (positives * negatives)


def log_loss(labels: ArrayLike, logits: ArrayLike) -> float:
    """Mean of -log p(label), p = 1 / (1 + exp(-logit)), in nats.

    labels: [n], 0 or 1. logits: [n], not probabilities: no clipping is needed, and a confident mistake costs
    what it costs. Raises ValueError as `auc` does, and for n = 0.
    """
    positive, logit = _checked(labels, logits)
    if len(logit) == 0:
        raise ValueError("there are no rows; the log loss needs at least one")
    # log(1 + exp(z)), z = -logit for a one and +logit for a zero, without overflow.
    return float(np.mean(np.logaddexp(0.0, np.where(positive, -logit, logit))))


def normalized_entropy(labels: ArrayLike, logits: ArrayLike) -> float:
    """Log loss divided by that of who predicts the share of ones for every row: below 1 is better than that.

    NE = -1/n sum(y log p + (1 - y) log(1 - p)) / -(q log q + (1 - q) log(1 - q)), with p = 1 / (1 + exp(-logit)) and q
    the mean of the labels y (He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014,
    equation 3). labels and logits are those of `log_loss`. Raises ValueError as that does, and for labels that are all
    the same, whose entropy is 0.
    """
    loss = log_loss(labels, logits)
    rate = float(np.mean(np.asarray(labels, np.float64)))
    if rate in (0.0, 1.0):
        raise ValueError(f"labels are all {rate:.0f}; the normalized entropy needs both")
    return loss / _entropy(rate)


def _entropy(rate: float) -> float:
    """Of a label that is 1 with this probability, strictly between 0 and 1; in nats."""
    return -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))


class WindowFigures(msgspec.Struct, frozen=True):
    """The metrics of a window. None: there are no rows, or, of `auc` and `normalized_entropy`, all labels are equal."""

    examples: int = 0
    auc: float | None = None
    logloss: float | None = None
    normalized_entropy: float | None = None


class Window:
    """Labels and logits of the last ``examples`` rows, in the order in which they came: for metrics while training
    goes on, of rows that were predicted before they were trained on. Raises ValueError for a number below 1."""

    def __init__(self, examples: int) -> None:
        if examples < 1:
            raise ValueError(f"a window of {examples} examples, expected at least 1")
        self._rows = np.zeros((2, examples))
        self._count = 0

    def __len__(self) -> int:
        return min(self._count, self._rows.shape[1])

    def add(self, labels: ArrayLike, logits: ArrayLike) -> None:
        """Rows of a batch, [n] each. Raises ValueError as `auc` does; nothing is added then."""
        positive, logit = _checked(labels, logits)
        size = self._rows.shape[1]
        count = min(len(logit), size)
        first = (self._count + len(logit) - count) % size
        before_end = min(count, size - first)
        for row, values in zip(self._rows, (positive[-count:], logit[-count:]), strict=True) if count else ():
            row[first : first + before_end] = values[:before_end]
            row[: count - before_end] = values[before_end:]
        self._count += len(logit)

    def copy(self) -> Window:
        """Those rows, which stay when others are added to this one."""
        made = Window(1)
        made._rows, made._count = self._rows[:, : max(1, len(self))].copy(), len(self)
        return made

    def figures(self) -> WindowFigures:
        """All of them, the log loss computed once."""
        labels, logits = self._rows[:, : len(self)]
        if not len(labels):
            return WindowFigures()
        loss, rate = log_loss(labels, logits), float(labels.mean())
        if not 0.0 < rate < 1.0:
            return WindowFigures(len(labels), None, loss, None)
        return WindowFigures(len(labels), auc(labels, logits), loss, loss / _entropy(rate))


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    label = np.asarray(labels, np.float64)
    score = np.asarray(scores, np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(f"labels {label.shape} and scores {score.shape} must be vectors of one length")
    positive = label == 1.0
    if not (positive | (label == 0.0)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN")
    return positive, score
