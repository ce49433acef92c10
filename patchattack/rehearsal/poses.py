"""How far what the camera was made to measure is from the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchattack.rehearsal.film import Truth
from patchattack.webcam.records import CORNERS

SMALLEST, STEEPEST = 60, 50  # pixels and degrees: of smaller and steeper patches nothing is promised
BARS = {"corners_px": 1.0, "distance_percent": 3.0, "angles_deg": 3.0}  # largest errors that are promised


def compare(records: Mapping[str, np.ndarray], truths: Sequence[Truth | None], consecutive: int) -> dict[str, Any]:
    """Measured poses compared with the true ones, of the frames that show all markers of a patch that is not too small.

    Args:
        records: columns of ``frames.csv``.
        truths: of all frames.
        consecutive: frames that the victim gets at once: of the first ones of a take nothing is measured.

    Returns:
        ``shown``, such frames, ``found``, those of them in which the sheet was, ``within``, those of them within all
        of :data:`BARS`, and for each bar ``median``, ``p95``, ``largest`` and ``bar``.
    """
    found = {int(records["frame"][row]): row for row in np.flatnonzero(records["state"] == "found")}
    shown, errors = 0, []
    for number, true in enumerate(truths):
        before = truths[max(number - consecutive + 1, 0) : number + 1]
        if true is None or len(before) < consecutive or None in before:
            continue
        if not true.whole or true.size_px < SMALLEST or true.tilt > STEEPEST:
            continue
        shown += 1
        if number in found:
            errors.append(_errors({name: column[found[number]] for name, column in records.items()}, true))
    table = np.array(errors).reshape(-1, len(BARS))
    result: dict[str, Any] = {
        "shown": shown,
        "found": len(table),
        "within": int((table <= list(BARS.values())).all(axis=1).sum()),
    }
    for (name, bar), column in zip(BARS.items(), table.T, strict=True):
        if len(column):
            median, p95, largest = np.quantile(column, (0.5, 0.95, 1)).tolist()
            result[name] = {"median": median, "p95": p95, "largest": largest, "bar": bar}
    return result


def by_take(records: Mapping[str, np.ndarray], truths: Sequence[Truth | None]) -> list[dict[str, float]]:
    """For each take, and so for each distance and angle of the lab, what is true and who won.

    Args:
        records: columns of ``frames.csv``.
        truths: of all frames; None between two takes.

    Returns:
        ``distance_m``, ``tilt`` and ``size_px``, the means of the take's frames, ``frames``, of which something was
        measured, and the means of ``success`` and ``grey_success`` of those, if there are any.
    """
    takes: list[list[Truth]] = [[]]
    for true in truths:
        if true is None:
            takes.append([])
        else:
            takes[-1].append(true)
    rows = []
    for take in takes:
        row = {name: float(np.mean([getattr(one, name) for one in take])) for name in ("distance_m", "tilt", "size_px")}
        own = np.isin(records["frame"], [one.frame for one in take]) & ~np.isnan(records["success"])
        means = {name: float(records[name][own].mean()) for name in ("success", "grey_success") if own.any()}
        rows.append(row | {"frames": int(own.sum())} | means)
    return rows


def _errors(record: Mapping[str, Any], true: Truth) -> tuple[float, float, float]:
    """The largest distance of a corner, that of the distance in percent, and the largest of the angles."""
    corners = np.array([record[name] for name in CORNERS]).reshape(4, 2)
    return (
        float(np.linalg.norm(corners - true.corners, axis=1).max()),
        100 * abs(float(record["distance_m"]) / true.distance_m - 1),
        max(abs(float(record[name]) - getattr(true, name)) for name in ("yaw", "pitch", "roll", "tilt")),
    )
