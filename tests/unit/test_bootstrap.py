"""Bootstrap intervals and the rank correlation: numbers to doubt with have to be right themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.results.bootstrap import LEVEL, RESAMPLES, interval, rank_correlation

samples = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=12).map(np.array)
levels = st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99])


def mean_of(sample: np.ndarray, **asked: float) -> tuple[float, float]:
    low, high = interval(lambda weights: weights @ sample, len(sample), resamples=200, **asked)  # type: ignore[arg-type]
    assert low.dtype == high.dtype == np.float32
    return float(low), float(high)


@given(samples, levels)
def test_an_interval_lies_within_the_sample_and_is_the_same_for_a_seed(sample: np.ndarray, level: float) -> None:
    low, high = mean_of(sample, level=level)
    assert sample.min() - 1e-4 <= low <= high <= sample.max() + 1e-4
    assert (low, high) == mean_of(sample, level=level)
    assert mean_of(sample, level=level) == mean_of(sample, level=level, seed=0)
    wide = mean_of(sample, level=0.999)
    assert wide[0] <= low <= high <= wide[1]


@given(samples, st.integers(-20, 20), st.sampled_from([-2.0, 0.5, 3.0]))
def test_an_interval_moves_and_grows_with_what_it_is_of(sample: np.ndarray, shift: int, scale: float) -> None:
    ends = [end * scale + shift for end in mean_of(sample)]
    assert mean_of(sample * scale + shift) == pytest.approx(sorted(ends), abs=1e-3)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_the_level_is_the_share_of_averages_between_the_ends(level: float) -> None:
    low, high = interval(lambda weights: np.linspace(0, 1, len(weights))[:, None] * [1, 2], 5, level=level)
    assert low == pytest.approx(np.array([1, 2]) * (1 - level) / 2)
    assert high == pytest.approx(np.array([1, 2]) * (1 + level) / 2)


def test_pairs_are_drawn_with_replacement_as_often_as_there_are() -> None:
    seen: list[np.ndarray] = []

    def average(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, 0]

    usual = interval(average, 4)
    assert seen[0].shape == (RESAMPLES, 4) == (2000, 4)
    counts = seen[0] * 4
    assert np.array_equal(counts, counts.round())
    assert (counts.sum(1) == 4).all()
    assert seen[0].mean(0) == pytest.approx([0.25] * 4, abs=0.02)
    assert (seen[0].std(0) > 0.1).all()
    assert np.array_equal(usual, interval(average, 4, level=LEVEL, seed=0))
    interval(average, 4, seed=1)
    assert not np.array_equal(seen[0], seen[-1])
    assert LEVEL == 0.95


def test_a_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    random, hits = np.random.default_rng(0), 0
    for seed in range(200):
        sample = random.normal(3.0, 1.0, size=40)
        low, high = interval(lambda weights, sample=sample: weights @ sample, 40, resamples=400, seed=seed)
        hits += bool(low <= 3.0 <= high)
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize("n", [0, 1])
def test_an_interval_of_fewer_than_two_pairs_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"two pairs.* {n}"):
        interval(lambda weights: weights @ np.ones(n), n)
    interval(lambda weights: weights @ np.ones(2), 2)


@pytest.mark.parametrize("level", [-0.5, 0, 1, 1.5, 95])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match=rf"level.*{level}"):
        interval(lambda weights: weights @ np.ones(2), 2, level=level)


def ranks_of(values: np.ndarray) -> np.ndarray:
    """From 1; those that are equal share their mean rank."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=12))
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    found = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(found)
        return
    assert found == pytest.approx(np.corrcoef(ranks_of(a), ranks_of(b))[0, 1])
    assert found == pytest.approx(rank_correlation(b, a))
    assert found == pytest.approx(rank_correlation(np.exp(a), b**3))  # ranks alone count
    assert found == pytest.approx(-rank_correlation(-a, b))
    assert rank_correlation(a, a) == pytest.approx(1)


def test_rank_correlation_of_known_ranks() -> None:
    assert rank_correlation(np.array([1, 2, 2, 4]), np.array([1, 3, 2, 4])) == pytest.approx(0.9486833)
    grid = np.array([[1, 2], [3, 4]])
    assert rank_correlation(grid, grid.T) == pytest.approx(0.8)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3)))
    assert np.isnan(rank_correlation(np.arange(3), np.ones(3)))
