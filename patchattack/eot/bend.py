"""What the patch lies on where that is not flat: a cylinder, or cloth.

A bend maps the plane of the patch's corners to the texture. It is drawn once per scene: the frames of a pair differ in
their corners alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack.devices import transfer
from patchattack.eot.transform import check_range
from patchattack.errors import InputError
from patchattack.seeding import Numbers

AXES = ("vertical", "horizontal")
TIGHTEST = 1 / (2 * math.pi)  # radius around which a side of length 1 wraps once
_TABLE = 65  # points along each side of the table of a spline


class Bend(Protocol):
    """Draws what the patch lies on; all of the patch is seen within its corners."""

    def draw(self, numbers: Numbers) -> Tensor:
        """Parameters of N scenes, ``[N, P]`` on the host, each from its own row of ``numbers``."""

    def unbend(self, parameters: Tensor, places: Tensor, supersampling: int) -> Tensor:
        """Where in the texture it is that is seen at ``places``.

        Args:
            parameters: ``[N, P]`` as :meth:`draw` gives them.
            places: ``[N, 2, h, w]`` x and y in the plane of the corners, whose unit square would show the flat patch;
                on any device.
            supersampling: places along each side of a pixel.

        Returns:
            ``[N, 2, h, w]`` x and y in the texture, in [0, 1] within it; infinite where nothing of it is seen.
        """


class Cylinder:
    """A cup, a pole or a torso: the patch is wrapped around a cylinder, its lengths true along the arc.

    The corners lie in the plane that touches the cylinder along the patch's middle. A point at distance s along the arc
    from there is seen at r · sin(s / r): as from afar, so that what perspective there is, is the plane's. What lies
    beyond the cylinder's outline is hidden.

    Args:
        radius: range, as a multiple of the side of the patch that is bent: of its width around a vertical axis, of its
            height around a horizontal one.
        turn: range of the angle by which the patch's middle is turned away about the axis, degrees, positive to the
            right or downwards.
        axis: ``vertical`` or ``horizontal``, as seen on the upright patch.

    Raises:
        InputError: the patch would wrap around more than once, or another value is out of range.
    """

    def __init__(
        self, radius: Sequence[float] = (0.4, 2.0), turn: Sequence[float] = (-20, 20), axis: str = "vertical"
    ) -> None:
        if axis not in AXES:
            raise InputError(f"bend.axis: expected {' or '.join(AXES)}, got {axis}")
        if len(radius) == 2 and radius[0] < TIGHTEST:
            raise InputError(
                f"bend.radius: expected at least {TIGHTEST:.3f} times the bent side, around which the patch wraps "
                f"once, got {radius[0]:g}; raise it"
            )
        self.radius = check_range("bend.radius", radius, TIGHTEST, 100)
        self.turn = check_range("bend.turn", turn, -90, 90)
        self._side = AXES.index(axis)

    def draw(self, numbers: Numbers) -> Tensor:
        """Radius and turn, ``[N, 2]``."""
        return numbers.uniform(self.radius, self.turn)

    def unbend(self, parameters: Tensor, places: Tensor, supersampling: int) -> Tensor:
        """As :class:`Bend` says."""
        radius, turn = parameters.double().unbind(1)
        turn = turn.deg2rad()
        host = torch.stack([turn.sin() - 0.5 / radius, 1 / radius, 0.5 - radius * turn, radius], dim=1)
        begin, per_side, middle, radius = _on(places, host).view(-1, 4, 1, 1, 1).unbind(1)
        sides = list(places.split(1, dim=1))
        sine = torch.addcmul(begin, sides[self._side], per_side)
        angle = sine.asin_().nan_to_num_(nan=math.inf)  # beyond the outline there is none
        sides[self._side] = torch.addcmul(middle, angle, radius)
        return torch.cat(sides, dim=1)


class Cloth:
    """Cloth that is drawn out of shape, by a thin-plate spline (Bookstein 1989; for patches Xu et al. 2020).

    A grid of control points is spread over the patch, from corner to corner. Each of them shows what lies up to
    ``strength`` beside it in the texture, and the spline bends least in between. Where that takes the cloth beyond the
    corners, all of it is made smaller until it lies within them.

    Args:
        points: control points along each side.
        strength: how far each control point is moved at most, in x and in y, as a fraction of the patch's sides.

    Raises:
        InputError: so strong that the cloth could fold, or a value is out of range.
    """

    def __init__(self, points: int = 4, strength: float = 0.04) -> None:
        if not 2 <= points <= 16:
            raise InputError(f"bend.points: expected 2 to 16 control points along each side, got {points}")
        # The Jacobian is I + M. Where M's columns are at most a and b, its determinant is above 0 for a + b < 1.
        slopes = [np.abs(np.diff(_influence(points), axis=axis)).sum(axis=0).max() * (_TABLE - 1) for axis in (1, 2)]
        fold = float(1 / sum(slopes))
        if not 0 <= strength < fold:
            raise InputError(
                f"bend.strength: expected 0 to {math.floor(1000 * fold) / 1000:g}, up to which {points} × {points} "
                f"control points cannot fold the cloth, got {strength:g}; lower it, or bend.points"
            )
        self.points, self.strength = points, strength

    def draw(self, numbers: Numbers) -> Tensor:
        """How far each control point is moved, ``[N, 2 · points²]``, x of all before y of all."""
        return (numbers.unit(2 * self.points**2) * 2 - 1) * self.strength

    def unbend(self, parameters: Tensor, places: Tensor, supersampling: int) -> Tensor:
        """As :class:`Bend` says."""
        shifts = parameters.double().unflatten(1, (2, -1))
        # Beyond the table the cloth goes on as at its edge, which is so seen as far outside as it is moved.
        first, last = torch.einsum("nak,kaes->naes", shifts, _edges(self.points)).amax(dim=3).clamp(min=0).unbind(2)
        host = torch.cat([-1 - 2 * first, 1 + first + last, (shifts - first.unsqueeze(2)).flatten(1)], dim=1)
        begin, size, moved = _on(places, host).split((2, 2, 2 * self.points**2), dim=1)
        begin, size = begin[..., None, None], size[..., None, None]
        influence = _influence_on(self.points, places.dtype, places.device)
        table = (moved.unflatten(1, (2, -1)) @ influence).unflatten(2, (_TABLE, _TABLE))
        # One shift for all places of a pixel: looking up each would cost more than the texture.
        first_of, last_of = (places[..., at::supersampling, at::supersampling] for at in (0, supersampling - 1))
        pixels = torch.addcmul(begin, first_of + last_of, size).permute(0, 2, 3, 1)  # from -1 to 1 over the table
        shift = F.grid_sample(table, pixels, mode="bilinear", padding_mode="border", align_corners=True)
        of_pixels = places.unflatten(3, (-1, supersampling)).unflatten(2, (-1, supersampling))
        found = torch.addcmul(shift[:, :, :, None, :, None], of_pixels, size[..., None, None])
        return found.flatten(4, 5).flatten(2, 3)


def _on(places: Tensor, host: Tensor) -> Tensor:
    """``host`` in the type and on the device of ``places``."""
    return transfer(host.to(places.dtype), places.device)


@lru_cache(maxsize=16)
def _influence(points: int) -> np.ndarray:
    """``[points², 65, 65]``: how much of each control point's shift the spline has at the points of its table."""
    from scipy.interpolate import RBFInterpolator

    sides = (np.linspace(0, 1, count) for count in (points, _TABLE))
    control, table = (np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2) for side in sides)
    spline = RBFInterpolator(control, np.eye(points**2), kernel="thin_plate_spline")
    return np.asarray(spline(table)).T.reshape(-1, _TABLE, _TABLE)


@lru_cache(maxsize=16)
def _edges(points: int) -> Tensor:
    """``[points², 2, 2, 65]``, outwards: of x at the left and the right edge, of y at the upper and the lower one."""
    table = torch.from_numpy(_influence(points))
    ends = [table[:, :, 0], -table[:, :, -1], table[:, 0], -table[:, -1]]
    return torch.stack(ends, dim=1).unflatten(1, (2, 2))


@lru_cache(maxsize=16)
def _influence_on(points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same as ``[points², 65²]`` on a device."""
    return transfer(torch.from_numpy(_influence(points)).flatten(1).to(dtype), device)
