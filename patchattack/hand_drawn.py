"""Textures that a hand can draw with a ruler and two pens: what an optimised patch must beat, and a place to start.

Self-similar textures disturb optical flow without any optimisation (Schrodi et al. 2022, section 4).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patchattack import seeding
from patchattack.errors import InputError

KINDS = ("stripes", "checkers")
PERIODS = (2.0, 4.0, 8.0)  # along the patch's longer side, of the textures that every run tries
MOST_PERIODS = 16.0
COLOURS = {
    "".join(map(str, c)): (name, tuple(map(float, c)))
    for c, name in zip(
        itertools.product((0, 1), repeat=3),
        ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white"),
        strict=True,
    )
}
_SAMPLES = 4  # along each side of a texel


@dataclass(frozen=True)
class HandDrawn:
    """Two colours in stripes or checkers.

    Attributes:
        kind: one of :data:`KINDS`.
        periods: along the patch's longer side.
        angle: degrees, counter-clockwise, of the direction across the stripes; 0 makes them upright.
        phase: in periods.
        duty: fraction of a period that has the first colour, in (0, 1); stripes alone have one.
        colours: two corners of the colour cube as in :data:`COLOURS`, such as ``100`` for red.

    Raises:
        InputError: a value that cannot be.
    """

    kind: str
    periods: float
    angle: float = 0.0
    phase: float = 0.0
    duty: float = 0.5
    colours: tuple[str, str] = ("111", "000")

    def __post_init__(self) -> None:
        numbers = all(math.isfinite(value) for value in (self.periods, self.angle, self.phase, self.duty))
        known = self.kind in KINDS and len(self.colours) == 2 and set(self.colours) <= set(COLOURS)
        if not (numbers and known and 0 < self.periods <= MOST_PERIODS and 0 < self.duty < 1):
            raise InputError(f"hand-drawn texture: expected values in their ranges, got {asdict(self)}")

    def texture(self, height: int, width: int) -> Tensor:
        """``[3, height, width]`` in [0, 1]; a texel that an edge crosses has a fraction of both colours."""
        longer = max(height, width) * _SAMPLES
        y, x = ((torch.arange(n * _SAMPLES) + 0.5 - n * _SAMPLES / 2) / longer for n in (height, width))
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        across = x * cos - y[:, None] * sin
        first = (across * self.periods + self.phase) % 1 < self.duty
        if self.kind == "checkers":
            first = ((across * self.periods + self.phase) % 1 < 0.5) ^ (
                (x * sin + y[:, None] * cos) * self.periods % 1 < 0.5
            )
        share = torch.nn.functional.avg_pool2d(first.float()[None], _SAMPLES)
        one, other = (torch.tensor(COLOURS[key][1]).view(3, 1, 1) for key in self.colours)
        return share * one + (1 - share) * other

    def __str__(self) -> str:
        one, other = (COLOURS[key][0] for key in self.colours)
        return f"{one} and {other} {self.kind}, {self.periods:.3g} periods at {self.angle % 180:.0f}°"

    def facts(self) -> dict[str, Any]:
        """As JSON has it; :meth:`read` reads it."""
        return asdict(self) | {"colours": list(self.colours)}

    @classmethod
    def read(cls, facts: dict[str, Any]) -> HandDrawn:
        """What :meth:`facts` gave.

        Raises:
            InputError: it did not.
        """
        try:
            return cls(**facts | {"colours": tuple(facts["colours"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"hand-drawn texture: expected kind, periods, …, colours, got {facts}") from error


def standard_textures() -> list[HandDrawn]:
    """Those that every run tries: stripes both ways and checkers, black and white or red and cyan, three periods."""
    return [
        HandDrawn(kind, periods, angle, colours=colours)
        for colours in (("111", "000"), ("100", "011"))
        for kind, angle in (("stripes", 0.0), ("stripes", 90.0), ("checkers", 0.0))
        for periods in PERIODS
    ]


def sample(generator: torch.Generator) -> HandDrawn:
    """Any of them, at random."""
    kind, angle, octaves, phase, duty = seeding.uniform(generator, (5,), 0, 1).tolist()
    one, other = torch.randperm(len(COLOURS), generator=generator)[:2].tolist()
    names = list(COLOURS)
    return HandDrawn(
        KINDS[int(kind * len(KINDS))],
        1.5 * 2 ** (3 * octaves),
        180 * angle,
        phase,
        0.3 + 0.4 * duty,
        (names[one], names[other]),
    )


def vary(texture: HandDrawn, generator: torch.Generator) -> HandDrawn:
    """One like ``texture``: a little turned, shifted, stretched, or in other colours."""
    periods, angle, phase, duty = torch.randn(4, generator=generator).tolist()
    colours = sample(generator).colours if torch.rand((), generator=generator) < 0.25 else texture.colours
    return replace(
        texture,
        periods=min(max(texture.periods * 2 ** (0.2 * periods), 1.0), MOST_PERIODS),
        angle=texture.angle + 8 * angle,
        phase=texture.phase + 0.1 * phase,
        duty=min(max(texture.duty + 0.08 * duty, 0.2), 0.8),
        colours=colours,
    )
