"""AUC and log loss against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ecrec.training.metrics import Window, WindowFigures, auc, log_loss, normalized_entropy


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


def slow_normalized_entropy(labels: list[float], logits: list[float]) -> float:
    """Equation 3 of He et al. 2014, term by term."""
    rate = sum(labels) / len(labels)
    background = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    total = 0.0
    for label, logit in zip(labels, logits, strict=True):
        p = 1 / (1 + math.exp(-logit))
        total += label * math.log(p) + (1 - label) * math.log(1 - p)
    return -total / len(labels) / background


def slow_auc(labels: list[float], scores: list[float]) -> float:
    ones = [score for label, score in zip(labels, scores, strict=True) if label]
    zeros = [score for label, score in zip(labels, scores, strict=True) if not label]
    return sum((one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros) / (len(ones) * len(zeros))


def test_normalized_entropy_is_its_definition() -> None:
    random = np.random.default_rng(5)
    labels = (random.random(300) < 0.2).astype(float)
    logits = random.normal(-1.0, 2.0, 300)
    expected = slow_normalized_entropy(labels.tolist(), logits.tolist())
    assert normalized_entropy(labels, logits) == pytest.approx(expected, rel=1e-12)
    rate = labels.mean()
    assert normalized_entropy(labels, np.full(300, math.log(rate / (1 - rate)))) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="labels are all 1; the normalized entropy needs both"):
        normalized_entropy([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="no rows"):
        normalized_entropy([], [])


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_a_window_has_the_last_rows_whatever_the_batches(size: int) -> None:
    random = np.random.default_rng(size)
    window, labels, logits = Window(size), [], []
    for rows in (0, 3, 50, 1, 120, 7, 49):
        batch = random.integers(0, 2, rows).astype(float), random.integers(-5, 6, rows) / 2
        window.add(*batch)
        labels += batch[0].tolist()
        logits += batch[1].tolist()
        last = labels[-size:], logits[-size:]
        assert len(window) == len(last[0])
        figures = window.figures()
        if 0 < sum(last[0]) < len(last[0]):
            assert figures.auc == pytest.approx(slow_auc(*last), abs=1e-12)
            assert figures.normalized_entropy == pytest.approx(slow_normalized_entropy(*last), rel=1e-9)
            assert figures.logloss == pytest.approx(log_loss(*last), rel=1e-12)
        else:
            assert figures.auc is None and figures.normalized_entropy is None
        copy = window.copy()
        assert copy.figures() == figures and figures.examples == len(last[0])
    window.add(np.ones(size), np.zeros(size))
    assert copy.figures() == figures != window.figures()


def test_a_window_refuses_what_has_no_answer_and_keeps_what_it_has() -> None:
    with pytest.raises(ValueError, match="a window of 0 examples"):
        Window(0)
    window = Window(4)
    assert window.figures() == WindowFigures()
    window.add([0, 1], [0.0, 1.0])
    for labels, logits, words in (([1], [math.nan], "NaN"), ([2], [0.0], "0 or 1"), ([1], [0.0, 1.0], "one length")):
        with pytest.raises(ValueError, match=words):
            window.add(labels, logits)
    assert len(window) == 2 and window.figures().auc == 1.0
