"""Area under the ROC curve and log loss, exact, in float64."""

from __future__ import annotations

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
