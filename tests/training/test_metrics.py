"""AUC and log loss against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ecrec.training.metrics import auc, log_loss


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_is_the_share_of_pairs_in_order_with_ties_counting_half(levels: int) -> None:
    random = np.random.default_rng(levels)
    labels = random.integers(0, 2, 200)
    scores = random.integers(0, levels, 200) / 7.0
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert auc(labels, scores) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-12)


def test_auc_of_perfect_reversed_and_constant_scores() -> None:
    labels = [0, 0, 1, 1]
    assert auc(labels, [1, 2, 3, 4]) == 1.0
    assert auc(labels, [4, 3, 2, 1]) == 0.0
    assert auc(labels, [5, 5, 5, 5]) == 0.5


def test_log_loss_is_its_definition_and_does_not_overflow() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 100)
    logits = random.normal(size=100)
    probability = 1.0 / (1.0 + np.exp(-logits))
    expected = -np.mean(np.log(np.where(labels == 1, probability, 1.0 - probability)))
    assert log_loss(labels, logits) == pytest.approx(expected, abs=1e-12)
    assert log_loss([1, 0], [0.0, 0.0]) == pytest.approx(math.log(2.0))
    assert log_loss([1, 0], [-1000.0, -1000.0]) == pytest.approx(500.0)


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="needs both"):
        auc([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="NaN"):
        auc([0, 1], [math.nan, 0.2])
    with pytest.raises(ValueError, match="0 or 1"):
        auc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="one length"):
        log_loss([0, 1], [0.1])
    with pytest.raises(ValueError, match="no rows"):
        log_loss([], [])
