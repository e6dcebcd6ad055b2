"""Intervals and tests for numbers that vary with several things at once."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.results import crossed


def test_each_row_of_weights_sums_to_one_and_a_factor_with_one_level_is_not_resampled() -> None:
    factors = [["a", "a", "b", "b"], ["x"] * 4]
    drawn = crossed.weights(factors, resamples=500)
    assert drawn.shape == (500, 4)
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert np.array_equal(drawn[:, 0], drawn[:, 1])  # of one level of the one factor that is resampled
    assert np.array_equal(drawn[:, 2], drawn[:, 3])
    assert drawn.std() > 0.1


def test_the_interval_is_wider_where_templates_vary_as_well_as_words() -> None:
    words, templates = np.meshgrid(np.arange(12), np.arange(4))
    values = np.random.default_rng(0).normal(size=4)[templates.ravel()] + 0.1 * words.ravel()
    one = crossed.interval(values, crossed.weights([words.ravel()]))
    both = crossed.interval(values, crossed.weights([words.ravel(), templates.ravel()]))
    assert both[0] < one[0] < values.mean() < one[1] < both[1]


def test_the_interval_of_independent_numbers_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = crossed.interval(values, crossed.weights([range(400)]))
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_without_two_levels_of_anything_there_is_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two templates or words"):
        crossed.weights([["a", "a"], ["x", "x"]])


def test_flips_count_as_often_as_chance_would_reach_the_mean() -> None:
    values = np.ones(12)
    assert crossed.flip_test(values, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]) == pytest.approx(2 / 16, abs=0.01)
    assert crossed.flip_test(values, range(12)) == pytest.approx(2 / 4096, abs=4e-4)
    assert crossed.flip_test(np.array([1.0, -1.0]), ["a", "b"]) == 1


def test_under_the_null_p_values_are_as_small_as_they_say() -> None:
    draw = np.random.default_rng(2)
    found = [crossed.flip_test(draw.normal(size=20), range(20), flips=499, seed=n) for n in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_holm_corrects_for_the_number_of_tests_and_leaves_out_what_is_not_there() -> None:
    np.testing.assert_allclose(crossed.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(crossed.holm([0.5, np.nan, 0.9]), [1.0, np.nan, 1.0])
    assert crossed.holm([]).shape == (0,)
