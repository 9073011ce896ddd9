"""Generated rows: a function of seed and row number, shaped like Criteo's, with something to learn."""

from __future__ import annotations

import numpy as np
import pytest

from ecrec.data import SyntheticDataset, SyntheticOptions
from ecrec.data.rows import MISSING_TOKEN


def test_a_row_is_the_same_however_it_is_reached() -> None:
    data = SyntheticDataset(SyntheticOptions(rows=5000))
    whole = data.raw(0, 5000)
    for start, stop in [(0, 1), (17, 18), (4000, 4500), (4999, 5000)]:
        part = data.raw(start, stop)
        assert np.array_equal(part.labels, whole.labels[start:stop])
        assert np.array_equal(part.integers, whole.integers[start:stop])
        assert np.array_equal(part.integers_missing, whole.integers_missing[start:stop])
        assert np.array_equal(part.tokens, whole.tokens[:, start:stop])
    later = next(data.train_batches(64, first_step=3))
    assert np.array_equal(later.ids, list(data.train_batches(64, steps=4))[3].ids)


def test_seeds_give_different_rows() -> None:
    a = SyntheticDataset(SyntheticOptions(rows=100, seed=1)).raw(0, 100)
    b = SyntheticDataset(SyntheticOptions(rows=100, seed=2)).raw(0, 100)
    assert (a.tokens[2] != b.tokens[2]).mean() > 0.5
    assert (a.integers != b.integers).any()


def test_rows_look_like_criteo_rows() -> None:
    raw = SyntheticDataset(SyntheticOptions(rows=50_000)).raw(0, 50_000)
    assert 0.2 < raw.labels.mean() < 0.32
    missing = (raw.tokens == MISSING_TOKEN).mean(axis=1)
    assert missing[0] == 0.0
    assert 0.7 < missing[21] < 0.82
    assert [len(np.unique(raw.tokens[feature])) for feature in (8, 16)] == [3, 10]
    counts = np.sort(np.unique(raw.tokens[2], return_counts=True)[1])[::-1]
    assert len(counts) > 5000
    assert counts[:10].sum() > 0.2 * 50_000
    assert not raw.integers[raw.integers_missing].any()
    logs = np.log1p(raw.integers[~raw.integers_missing[:, 4], 4])
    assert 7.0 < logs.mean() < 8.5
    assert 1.5 < logs.std() < 2.5


def test_a_logistic_regression_of_the_integers_and_a_few_ids_finds_the_signal() -> None:
    """A floor for what there is to learn: token means from the training part, summed, against the test part."""
    from ecrec.training.metrics import auc

    data = SyntheticDataset(SyntheticOptions(rows=40_000))
    train, test = data.raw(0, 32_000), data.raw(32_000, 40_000)
    score = np.zeros(8000)
    for feature in range(26):
        tokens, inverse, counts = np.unique(train.tokens[feature], return_inverse=True, return_counts=True)
        clicks = np.bincount(inverse, weights=train.labels)
        rate = (clicks + 5.0) / (counts + 20.0)
        place = np.minimum(np.searchsorted(tokens, test.tokens[feature]), len(tokens) - 1)
        known = tokens[place] == test.tokens[feature]
        score += np.where(known, np.log(rate / (1.0 - rate))[place], -1.1)
    assert auc(test.labels, score) > 0.7


def test_options_out_of_range_are_refused() -> None:
    for options in (
        SyntheticOptions(rows=-1),
        SyntheticOptions(train_fraction=1.1),
        SyntheticOptions(seed=-1),
        SyntheticOptions(rows_per_table=1),
        SyntheticOptions(exponent=1.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            SyntheticDataset(options)
