"""Means with intervals; a value stands for a scene, never for a draw."""

from __future__ import annotations

import math

import numpy as np


def mean(values: np.ndarray) -> float:
    """Of the values that are known; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean and percentile interval at 95 % (Efron 1979), resampling scenes.

    Args:
        values: ``[n]``, one per scene; the draws of a scene are not independent and come as their mean.
        seed: of the resampling.
        resamples: how many.

    Returns:
        mean, low, high; NaN without values.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def wilson(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and interval at 95 % of a rate (Wilson 1927).

    Args:
        values: ``[n]``, one per scene, each in [0, 1]: the share of its draws that succeeded. Draws of a scene are
            not independent, so a scene counts once; shares vary no more than successes, so the interval is not too
            narrow.

    Returns:
        mean, low, high; NaN without values.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    rate, n, z = float(values.mean()), len(values), 1.959964
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return rate, max(centre - half, 0.0), min(centre + half, 1.0)


def interval(values: np.ndarray, rate: bool) -> tuple[float, float, float]:
    """Mean, low and high: Wilson's of a rate, the bootstrap's of anything else."""
    return wilson(values) if rate else bootstrap(values)
