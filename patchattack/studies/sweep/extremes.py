"""What papers report of an axis besides its means: the level at which a patch breaks, and the worst place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from patchattack import statistics
from patchattack.evaluation import Row
from patchattack.reporting.sweep_numbers import HALF
from patchattack.studies.sweep.axis import Level


def break_level(levels: Sequence[float], won: np.ndarray, seed: int = 0, resamples: int = 1000) -> Row:
    """The level at which half of the scenes are won, as the smallest size at which a victim fails.

    The won fractions are made monotone in the level by isotonic regression, rising or falling as fits better, and
    joined by lines. The interval is the percentile bootstrap's, resampling scenes.

    Args:
        levels: of the axis.
        won: ``[levels, scenes]`` fractions of each scene's draws; NaN where there is nothing to win.
        seed: of the resampling.
        resamples: how many.

    Returns:
        level, low, high (each None where half are won at no level or at every one, so that it lies beyond them), n
        (scenes), ``rises``: more are won at higher levels, and ``most``: the highest fraction, None without scenes.
    """
    order = np.argsort(levels)
    x, known = np.asarray(levels, dtype=float)[order], ~np.isnan(won).any(axis=0)
    shares = won[order][:, known]
    n = shares.shape[1]
    if n == 0:
        return {"level": None, "low": None, "high": None, "n": 0, "rises": True, "most": None}
    means = shares.mean(axis=1)
    fits = {rises: _monotone(means, rises) for rises in (True, False)}
    rises = bool(np.square(fits[True] - means).sum() <= np.square(fits[False] - means).sum())
    picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
    found = [_crossing(x, shares[:, pick].mean(axis=1), rises) for pick in picks]
    low, high = np.percentile(found, [2.5, 97.5], method="nearest")
    values = {"level": _crossing(x, means, rises), "low": float(low), "high": float(high)}
    known_values = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return known_values | {"n": n, "rises": rises, "most": float(fits[rises].max())}


def _monotone(means: np.ndarray, rises: bool) -> np.ndarray:
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(means, increasing=rises).x)


def _crossing(levels: np.ndarray, means: np.ndarray, rises: bool) -> float:
    """Where the monotone fit passes one half; infinite beyond the levels, on the side where it would."""
    fit = _monotone(means if rises else means[::-1], rises=True)
    x = levels if rises else levels[::-1]
    beyond = math.inf if rises else -math.inf
    if fit[-1] < HALF:
        return beyond
    if fit[0] >= HALF:
        return -beyond
    after = int(np.argmax(fit >= HALF))
    share = (HALF - fit[after - 1]) / (fit[after] - fit[after - 1])
    return float(x[after - 1] + share * (x[after] - x[after - 1]))


def worst_place(levels: Sequence[Level], effects: np.ndarray) -> Level | None:
    """Where the patch is strongest, chosen on every other scene, so that the rest can measure it without bias.

    Args:
        levels: places of a grid.
        effects: ``[places, scenes]``, more is stronger.

    Returns:
        The place; None where the scenes to choose on are unknown at every place.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a place without any known scene
        means = np.nanmean(effects[:, ::2], axis=1)
    return None if np.isnan(means).all() else levels[int(np.nanargmax(means))]


def at_place(values: np.ndarray, rate: bool) -> Row:
    """The estimate over the scenes that :func:`worst_place` has not seen."""
    return statistics.estimate(values[1::2], rate)
