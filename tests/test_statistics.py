from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from patchattack.statistics import bootstrap, difference, effect, holm, interval, mean, sign_flip, wilson

RUNS = 2000  # simulated evaluations of each kind


def covered(bounds: Callable[[np.ndarray], tuple[float, float, float]], runs: np.ndarray, truth: float) -> float:
    """Fraction of ``runs [RUNS, n]`` whose interval holds the truth."""
    return float(np.mean([low <= truth <= high for _, low, high in map(bounds, runs)]))


# Means


def test_the_bootstrap_has_the_exact_mean_and_repeats() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    middle, low, high = bootstrap(values)
    assert middle == 4.0
    assert low < 4 < high
    assert high - 4 > 4 - low  # the tail is on the right
    assert bootstrap(values) == (middle, low, high)
    assert bootstrap(np.array([1.0, np.nan, 2.0, 4.0, 9.0])) == (middle, low, high)
    assert bootstrap(np.full(5, 3.0)) == bootstrap(np.array([3.0])) == (3, 3, 3)
    assert all(math.isnan(value) for value in bootstrap(np.array([np.nan])))
    assert mean(np.array([1.0, np.nan, 3.0])) == 2
    assert math.isnan(mean(np.array([np.nan])))


def test_the_interval_moves_and_grows_with_the_values() -> None:
    values = np.random.default_rng(0).exponential(size=24)
    assert bootstrap(values * 3 + 7) == pytest.approx(np.array(bootstrap(values)) * 3 + 7)
    middle, low, high = bootstrap(values)
    assert bootstrap(-values) == pytest.approx((-middle, -high, -low))


def test_the_interval_shrinks_with_the_root_of_n() -> None:
    values = np.random.default_rng(0).normal(size=1600)
    widths = [high - low for _, low, high in (bootstrap(values[:n]) for n in (100, 1600))]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("n", [48, 96])
@pytest.mark.parametrize("law", ["normal", "exponential", "gamma", "shares"])
def test_intervals_of_means_hold_the_true_mean_in_95_of_100_runs(law: str, n: int) -> None:
    """Errors in pixels are skewed, cosines less; fractions of four draws lie on five values."""
    draw = np.random.default_rng(0)
    runs, truth = {
        "normal": lambda: (draw.normal(2.0, 1.0, (RUNS, n)), 2.0),
        "exponential": lambda: (draw.exponential(3.0, (RUNS, n)), 3.0),
        "gamma": lambda: (draw.gamma(2.0, 1.0, (RUNS, n)), 2.0),
        "shares": lambda: (draw.binomial(4, draw.beta(0.6, 0.9, (RUNS, n))) / 4, 0.4),
    }[law]()
    assert 0.93 <= covered(bootstrap, runs, truth) <= 0.97


# Rates


def test_wilsons_interval_is_the_one_of_the_books() -> None:
    """8 of 10: Newcombe 1998's method 3 gives 0.4902 to 0.9433; 0 of 20 gives 0 to 0.1611."""
    assert wilson(np.array([1.0] * 8 + [0.0] * 2)) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(np.array([0.0] * 20)) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson(np.array([1.0, np.nan])) == wilson(np.array([1.0]))
    assert all(map(math.isnan, wilson(np.array([np.nan]))))


@pytest.mark.parametrize("n", [24, 48, 96])
def test_wilsons_interval_covers(n: int) -> None:
    """Counts are whole, so single rates lie above and below; over the rates that occur it is 95 of 100."""
    draw = np.random.default_rng(0)
    rates = draw.uniform(0.02, 0.98, RUNS)
    runs = (draw.random((RUNS, n)) < rates[:, None]).astype(float)
    held = [low <= rate <= high for rate, (_, low, high) in zip(rates, map(wilson, runs), strict=True)]
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_rate_has_wilsons_interval_and_anything_else_the_bootstraps() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    assert interval(values, rate=True) == wilson(values)
    assert interval(values, rate=False) == bootstrap(values)


# Paired differences


def test_the_interval_of_a_difference_of_rates_is_the_one_of_the_paper() -> None:
    """f12 = 9, f21 = 1 of 26: (10 - 2) / 28 ± 1.96 √(((10 + 2) / 28 - (8 / 28)²) / 28)."""
    differences = np.array([1.0] * 9 + [-1.0] + [0.0] * 16)
    half = 1.959964 * math.sqrt((12 / 28 - (8 / 28) ** 2) / 28)
    assert difference(differences, rate=True) == pytest.approx((8 / 26, 8 / 28 - half, 8 / 28 + half))
    assert difference(np.ones(50), rate=True)[2] == 1.0
    none, low, high = difference(np.zeros(50), rate=True)
    assert none == 0
    assert -low == high > 0  # that none of 50 differed does not mean that none ever will
    assert all(map(math.isnan, difference(np.array([np.nan]), rate=True)))
    values = np.array([0.1, 0.2, np.nan, 0.9])
    assert difference(values, rate=False) == bootstrap(values)


@pytest.mark.parametrize("n", [24, 48, 96])
def test_intervals_of_differences_of_rates_cover(n: int) -> None:
    draw = np.random.default_rng(0)
    won, lost = draw.uniform(0.05, 0.6, RUNS), draw.uniform(0.0, 0.3, RUNS)
    luck = draw.random((RUNS, n))
    runs = (luck < won[:, None]).astype(float) - (luck > 1 - lost[:, None])
    intervals = [difference(run, rate=True) for run in runs]
    held = [low <= truth <= high for truth, (_, low, high) in zip(won - lost, intervals, strict=True)]
    assert 0.93 <= np.mean(held) <= 0.97


def test_the_sign_flip_test_counts_every_pattern_of_few_scenes() -> None:
    values = np.array([0.4, 1.0, -0.3, 0.8, 0.25])
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=5)]
    expected = sum(one >= abs(values.sum()) - 1e-12 for one in sums) / 32
    assert sign_flip(values) == expected == sign_flip(-values) == sign_flip(np.append(values, [np.nan, 0.0]))
    assert sign_flip(np.ones(6)) == 2 / 64
    assert sign_flip(np.array([1.0])) == 1.0  # a single scene says nothing
    assert sign_flip(np.zeros(9)) == sign_flip(np.array([np.nan])) == 1.0


def test_of_rates_it_is_the_exact_test_of_mcnemar() -> None:
    from scipy import stats

    differences = np.array([1.0] * 10 + [-1.0] * 2 + [0.0] * 30)
    assert sign_flip(differences) == pytest.approx(stats.binomtest(2, 12).pvalue, rel=1e-9)


def test_of_many_scenes_it_tries_patterns_at_random() -> None:
    from scipy import stats

    values = np.random.default_rng(1).normal(0.3, 1.0, 40)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.15)
    assert sign_flip(np.ones(40)) == 2**-16  # never zero: the pattern that was seen is one of them


def test_holms_correction_is_that_of_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_a_patch_works_only_where_both_interval_and_test_say_so() -> None:
    assert effect(0.1, 0.01)
    assert not effect(0.1, 0.05)
    assert not effect(0.0, 0.01)
    assert not effect(float("nan"), 0.01)


@pytest.mark.parametrize("n", [16, 48])
@pytest.mark.parametrize("rate", [False, True])
def test_a_random_patch_against_random_controls_has_no_effect(rate: bool, n: int) -> None:
    """Both are draws of one law whose mean is the scene's own: skewed values, or successes of two draws each."""
    draw = np.random.default_rng(0)
    scene = draw.gamma(2.0, 1.0, (1, RUNS, n))
    both = (
        draw.binomial(2, draw.beta(0.4, 0.8, (1, RUNS, n)), (2, RUNS, n)) / 2
        if rate
        else scene * draw.exponential(1.0, (2, RUNS, n))
    )
    called = [effect(difference(run, rate)[1], sign_flip(run, flips=2**10)) for run in both[0] - both[1]]
    assert 1 - np.mean(called) >= 0.94


def test_a_whole_evaluation_of_random_patches_seldom_has_any_effect() -> None:
    """Twenty points at a time: after the correction, at most five evaluations of a hundred claim anything."""
    runs = np.random.default_rng(0).normal(size=(200, 20, 24))
    claims = []
    for points in runs:
        adjusted = holm([sign_flip(one, flips=2**12) for one in points])
        claims.append(any(effect(bootstrap(one)[1], p) for one, p in zip(points, adjusted, strict=True)))
    assert np.mean(claims) <= 0.08  # 5 % and two standard errors of 200 runs
