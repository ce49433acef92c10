"""Approaches of the camera: what a system that sees more than one frame would have made of them.

One good frame may be enough for a system, or one bad frame may not be: a fraction of frames says neither. A pass-by
counts once in every interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchattack.errors import InputError
from patchattack.statistics import estimate, with_interval

NEARER = 1.5  # factor by which the camera comes nearer in a pass-by
OUT_OF_SIGHT = 1.0  # seconds without the sheet that end one
DEFINITION = (
    f"A pass-by ends where the camera is {NEARER:g} times as far away as at its nearest, or the sheet has been out of "
    f"sight for {OUT_OF_SIGHT:g} s, and counts from its farthest to its nearest frame if these differ by that factor."
)
NAMES = {  # of the measures of a pass-by; all but the distance are rates
    "won": "frames won",
    "whole": "won throughout",
    "latched": "latched",
    "correct_m": "first correct (m)",
    "missed": "would not stop",
}


@dataclass(frozen=True)
class PassByRule:
    """What is asked of each pass-by.

    Attributes:
        until: metres down to which every frame must be won; None for the nearest.
        latch: N and M: how many of how many frames in a row must be won for a system that tracks to believe them.
        speed: km/h at which the camera moves; None asks nothing about braking.
        reaction: seconds from the first correct frame until the brakes act.
        braking: deceleration, m/s².
        scale: metres in the world of a metre before the camera: of a model of the road.

    Raises:
        InputError: a number that cannot be.
    """

    until: float | None = None
    latch: Sequence[int] = (3, 5)
    speed: float | None = None
    reaction: float = 1.0
    braking: float = 6.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        latch: Any = self.latch
        whole = isinstance(latch, list | tuple) and len(latch) == 2 and all(type(count) is int for count in latch)
        if not (whole and 1 <= latch[0] <= latch[1]):
            raise InputError(f"pass_by.latch: expected [N, M] with 1 <= N <= M, got {latch}")
        for name in ("until", "speed", "reaction", "braking", "scale"):
            value: Any = getattr(self, name)
            if value is None and name in ("until", "speed"):
                continue
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise InputError(f"pass_by.{name}: expected a number above 0, got {value}")

    @property
    def stopping(self) -> float:
        """Metres before the camera that it takes to stop; NaN without a speed."""
        if self.speed is None:
            return math.nan
        speed = self.speed / 3.6
        return (speed * self.reaction + speed * speed / (2 * self.braking)) / self.scale

    def meanings(self) -> dict[str, str]:
        """What the measures that this asks for mean, by their names in :data:`NAMES`."""
        down = "" if self.until is None else f" down to {self.until:g} m"
        result = {
            "won": "the mean over pass-bys",
            "whole": f"every frame was won{down}",
            "latched": f"{self.latch[0]} of {self.latch[1]} frames in a row were won",
            "correct_m": "the distance at the first frame that was not won, where there is one",
        }
        if self.speed is not None:
            model = "" if self.scale == 1 else f" in this model of 1 : {self.scale:.3g}"
            result["missed"] = (
                f"that frame, if any, is nearer than the {self.stopping:.3g} m that it takes to stop{model} from "
                f"{self.speed:g} km/h, with {self.reaction:g} s of reaction and {self.braking:g} m/s²"
            )
        return result


STANDARD = PassByRule()


def pass_bys(records: Mapping[str, np.ndarray], rule: PassByRule) -> list[dict[str, Any]]:
    """Every pass-by in the records of one victim, and what became of it, by condition.

    Args:
        records: columns of ``frames.csv``, the frames with a sheet of one victim.
        rule: what is asked.

    Returns:
        A row for each pass-by and condition, ``patch`` and ``grey`` in the same frames, ``control`` or ``drawn``:

        - ``number``, ``condition``, ``sheet``, ``first_frame``, ``last_frame``, ``from_m``, ``to_m``: which it is;
        - ``frames`` in which something was measured, and ``won``, the fraction of them that were;
        - ``whole``: 1 where every frame down to ``rule.until`` was won, unknown where the pass-by ends before;
        - ``latched``: 1 where ``rule.latch`` was met, first at ``latched_m``;
        - ``correct_m``: the distance at the first frame that was not won, unknown where there is none, and
          ``collision_s``, the seconds from there to the sheet at ``rule.speed``;
        - ``missed``: 1 where that is too near to stop, or never; unknown without a speed, and where all of the pass-by
          is too near.

        Unknown numbers are NaN.
    """
    rows = []
    for number, frames in enumerate(_approaches(records)):
        part = {name: column[frames] for name, column in records.items()}
        kind, distance = str(part["kind"][0]), part["distance_m"]
        which: dict[str, Any] = {"sheet": int(part["sheet"][0]), "first_frame": int(part["frame"][0])}
        which |= {"last_frame": int(part["frame"][-1]), "from_m": float(distance[0]), "to_m": float(distance[-1])}
        for condition, column in ((kind, "success"), ("grey", "grey_success"))[: 1 + (kind == "patch")]:
            known = ~np.isnan(part[column])
            if known.any():
                measured = _measure(distance[known], part[column][known] > 0.5, rule)
                rows.append({"number": number, "condition": condition} | which | measured)
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over pass-bys with 95 % intervals, one row for each condition.

    Returns:
        ``condition``, ``n`` pass-bys, and of each of :data:`NAMES` that is known of any ``mean``, ``low``, ``high`` and
        ``n``.
    """
    result = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        own = [row for row in rows if row["condition"] == condition]
        summary: dict[str, Any] = {"condition": condition, "n": len(own)}
        for name in NAMES:
            found = estimate(np.array([row[name] for row in own]), rate=name != "correct_m")
            summary |= {name: found} if found["n"] else {}
        result.append(summary)
    return result


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """:func:`summarise` for people; what says so where there is no pass-by."""
    if not rows:
        return [f"no pass-by was recorded: the camera never came nearer to the sheet by a factor of {NEARER:g}"]
    return [
        f"{row['condition']:8} {row['n']} pass-bys: "
        + ", ".join(f"{NAMES[name]} {with_interval(row[name], 2)}" for name in NAMES if name in row)
        for row in rows
    ]


def _approaches(records: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Places of the frames of each pass-by."""
    seen = np.flatnonzero(np.isfinite(records["distance_m"]))
    distances, times = records["distance_m"][seen].tolist(), records["time"][seen].tolist()
    sheets = list(zip(records["sheet"][seen].tolist(), records["kind"][seen].tolist(), strict=True))
    begin, nearest = 0, math.inf
    for place in range(len(seen) + 1):
        over = place == len(seen) or (
            place > begin
            and (
                distances[place] > NEARER * nearest
                or times[place] - times[place - 1] > OUT_OF_SIGHT
                or sheets[place] != sheets[place - 1]
            )
        )
        if over and place > begin:
            last = begin + int(np.argmin(distances[begin:place]))
            first = begin + int(np.argmax(distances[begin : last + 1]))
            if distances[first] >= NEARER * distances[last]:
                yield seen[first : last + 1]
            begin, nearest = place, math.inf
        if place < len(seen):
            nearest = min(nearest, distances[place])


def _measure(distance: np.ndarray, won: np.ndarray, rule: PassByRule) -> dict[str, Any]:
    """What became of one pass-by in its ``n`` measured frames, in their order."""
    enough, window = rule.latch
    count = np.convolve(won, np.ones(window))[: len(won)]  # of the last frames up to each
    latched, correct = np.flatnonzero(count >= enough), np.flatnonzero(~won)
    correct_m = float(distance[correct[0]]) if len(correct) else math.nan
    until = float(distance[-1]) if rule.until is None else rule.until
    reached = distance[0] >= until >= distance[-1]
    judged = distance[0] >= rule.stopping  # False without a speed, too
    return {
        "frames": len(won),
        "won": float(won.mean()),
        "whole": float(won[distance >= until].all()) if reached else math.nan,
        "latched": float(len(latched) > 0),
        "latched_m": float(distance[latched[0]]) if len(latched) else math.nan,
        "correct_m": correct_m,
        "collision_s": math.nan if rule.speed is None else correct_m * rule.scale / (rule.speed / 3.6),
        "missed": float(not correct_m >= rule.stopping) if judged else math.nan,
    }
