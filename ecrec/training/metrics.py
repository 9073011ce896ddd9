"""Area under the ROC curve, log loss and normalized entropy, exact, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The probability that a random positive is scored above a random negative, a tie counting one half.

    labels: [n], 0 or 1. scores: [n], any increasing function of the predicted probability (logits will do).
    Exact (Mann-Whitney U with mid-ranks), no binning. Raises ValueError for other labels, different
    lengths, a score that is NaN, or labels that are all the same (the AUC is then undefined).
    """
    positive, score = _checked(labels, scores)
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"labels are {positives} ones and {negatives} zeros; the AUC needs both")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    # Ranks from 1; tied scores share the mean of the ranks they take up.
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = float(np.sum(mid_ranks[inverse][positive]))
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


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
    return loss / -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))


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
        new = np.stack([positive, logit])[:, -size:]
        first = (self._count + len(logit) - new.shape[1]) % size
        self._rows[:, (first + np.arange(new.shape[1])) % size] = new
        self._count += len(logit)

    def auc(self) -> float | None:
        """None while all labels are equal."""
        return self._of(auc)

    def log_loss(self) -> float | None:
        """None while there are no rows."""
        return log_loss(*self._rows[:, : len(self)]) if len(self) else None

    def normalized_entropy(self) -> float | None:
        """None while all labels are equal."""
        return self._of(normalized_entropy)

    def _of(self, metric: Callable[[ArrayLike, ArrayLike], float]) -> float | None:
        labels, logits = self._rows[:, : len(self)]
        both = len(labels) and 0.0 < float(labels.mean()) < 1.0
        return metric(labels, logits) if both else None


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    label = np.asarray(labels, np.float64)
    score = np.asarray(scores, np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(f"labels {label.shape} and scores {score.shape} must be vectors of one length")
    if not np.isin(label, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN")
    return label == 1.0, score
