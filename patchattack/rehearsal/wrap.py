"""A sheet around an upright cylinder: a cup, a pole or a torso, in front of a pinhole camera.

Millimetres are those of the flat sheet's plane, x to the right, y down and z away from its front. The cylinder touches
the plane along the patch's middle, so that a sheet of no curvature is the plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from patchattack.errors import InputError
from patchattack.printing.fiducials import Layout


@dataclass(frozen=True)
class Wrap:
    """The cylinder: its ``radius``, and ``middle``, the patch's x, both in millimetres."""

    radius: float
    middle: float

    def places(self, points: np.ndarray) -> np.ndarray:
        """``[n, 3]``: where points ``[n, 2]`` of the sheet come to lie. Lengths are true along the arc."""
        angle = (points[:, 0] - self.middle) / self.radius
        x, z = self.middle + self.radius * np.sin(angle), self.radius * (1 - np.cos(angle))
        return np.stack([x, points[:, 1], z], axis=1)

    def seen(self, rays: np.ndarray, eye: np.ndarray) -> np.ndarray:
        """``[..., 2]``: the sheet's point that each ray meets first, infinite where it passes the cylinder.

        Args:
            rays: ``[..., 3]`` directions, of any length.
            eye: ``[3]`` that they start at, before the cylinder.
        """
        # The nearer of the two points at which the circle of the cylinder is met, seen from above.
        away = np.array([self.middle, self.radius])
        way, start = rays[..., ::2], eye[::2] - away
        square, half = (way**2).sum(axis=-1), (way * start).sum(axis=-1)
        root = half**2 - square * ((start**2).sum() - self.radius**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            far = (-half - np.sqrt(root)) / square
            met = start + far[..., None] * way
            angle = np.arctan2(met[..., 0], -met[..., 1])
            found = np.stack([self.middle + self.radius * angle, eye[1] + far * rays[..., 1]], axis=-1)
        return np.where((root >= 0)[..., None] & (far > 0)[..., None], found, np.inf)


def wrapped(sheet: Layout, radius_mm: float | None) -> Wrap | None:
    """The sheet around a cylinder of a radius; None for a flat one.

    Raises:
        InputError: the sheet would wrap around more than once.
    """
    if radius_mm is None:
        return None
    left, _, right, _ = sheet.bounds_mm
    if not radius_mm * 2 * math.pi >= right - left:
        raise InputError(
            f"radius_mm: expected {(right - left) / (2 * math.pi):.0f} or more, around which the sheet of "
            f"{right - left:.0f} mm wraps once, got {radius_mm:g}"
        )
    return Wrap(float(radius_mm), sheet.size_mm[0] / 2)
