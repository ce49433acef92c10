from __future__ import annotations

import math

import numpy as np
import pytest

from patchattack.statistics import bootstrap, mean, wilson


def test_the_bootstrap_has_the_exact_mean_and_repeats() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    middle, low, high = bootstrap(values)
    assert middle == 4.0
    assert 1 <= low < 4 < high <= 9
    assert bootstrap(values) == (middle, low, high)
    assert bootstrap(np.array([1.0, np.nan, 2.0, 4.0, 9.0])) == (middle, low, high)
    assert bootstrap(np.full(5, 3.0)) == (3, 3, 3)
    assert all(math.isnan(value) for value in bootstrap(np.array([np.nan])))
    assert mean(np.array([1.0, np.nan, 3.0])) == 2
    assert math.isnan(mean(np.array([np.nan])))


def test_the_interval_shrinks_with_the_root_of_n() -> None:
    values = np.random.default_rng(0).normal(size=1600)
    widths = [high - low for _, low, high in (bootstrap(values[:n]) for n in (100, 1600))]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


def test_the_interval_holds_the_true_mean_in_95_of_100_runs() -> None:
    """With many scenes; a percentile interval of few is a little narrow (20 scenes: in 93 of 100, 64 scenes: in 94)."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        _, low, high = bootstrap(draw.normal(loc=2.0, size=200), resamples=1000)
        held += low <= 2.0 <= high
    assert 930 <= held <= 970


def test_wilsons_interval_is_the_one_of_the_books() -> None:
    """8 of 10: Newcombe 1998's method 3 gives 0.4902 to 0.9433; 0 of 20 gives 0 to 0.1611."""
    assert wilson(np.array([1.0] * 8 + [0.0] * 2)) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(np.array([0.0] * 20)) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson(np.array([1.0, np.nan])) == wilson(np.array([1.0]))
    assert all(map(math.isnan, wilson(np.array([np.nan]))))


def test_wilsons_interval_covers() -> None:
    generator = np.random.default_rng(0)
    for rate in (0.03, 0.3, 0.9):
        runs = (generator.random((2000, 50)) < rate).astype(float)
        covered = np.mean([low <= rate <= high for _, low, high in map(wilson, runs)])
        assert 0.93 <= covered <= 0.99
