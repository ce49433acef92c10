"""The camera's way past the sheet, through the procedural world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from patchattack import geometry, seeding
from patchattack.data.world import World
from patchattack.data.world_layout import Planes
from patchattack.errors import InputError
from patchattack.printing.fiducials import Layout

_LAYOUT, _WAY = 7, 8  # what a generator is for, besides the seed
_PERIOD = 5  # frames in which a hand that holds a camera sways once
_ASIDE = 0.4  # of half the frame's width: where the sheet is at the end of a pass


@dataclass(frozen=True)
class Stage:
    """What carries the sheet, metres.

    Attributes:
        side: of the surface that carries it.
        sheet: longer side of the sheet, cut out along its marks.
        beside: from the surface's centre to the sheet's, to the right.
        near, far: fraction of the frame's shorter side that the patch's longer side spans.
    """

    side: float
    sheet: float
    beside: float
    near: float
    far: float


SUBJECTS = {"classification": "sign", "detection": "vehicle"}  # by task; the others have a billboard
STAGES = {
    "billboard": Stage(side=2.0, sheet=2.0, beside=0.0, near=0.45, far=0.12),  # the sheet is pasted on it
    "sign": Stage(side=0.8, sheet=0.6, beside=0.65, near=0.45, far=0.15),  # beside it
    "vehicle": Stage(side=2.0, sheet=1.5, beside=0.0, near=0.24, far=0.1),  # on its rear
}


@dataclass(frozen=True)
class StreetView:
    """One frame's camera: ``rotation [3, 3]`` from the world, ``centre [3]`` in metres, and a factor on all light."""

    rotation: np.ndarray
    centre: np.ndarray
    light: float


@dataclass(frozen=True)
class Take:
    """Frames without a cut between them.

    Attributes:
        planes: of the world, where nothing moves.
        sheet: ``[3, 3]`` from millimetres ``(x, y, 1)`` in the patch's frame to metres in the world.
        views: of the camera.
    """

    planes: Planes
    sheet: np.ndarray
    views: list[StreetView]


class Street(World):
    """Scenes of the procedural world, whose subject carries the sheet and stands where it is put.

    The sheet is as large as the subject asks for, so the world is a model of itself around a sheet that keeps its
    size: one to ``model``.

    Args:
        sheet: as printed.
        task: of the victim, which decides on the subject.
        size: ``(h, w)`` of the frames.
        field_of_view: of the frame's width, degrees.
        camera_height: range in metres above the ground.
        seed: of the scenes and of the camera's way.

    Raises:
        InputError: as of :class:`World`.
    """

    def __init__(
        self,
        sheet: Layout,
        task: str,
        size: tuple[int, int],
        field_of_view: float,
        camera_height: Sequence[float],
        seed: int,
    ) -> None:
        subject = SUBJECTS.get(task, "billboard")
        # The frame is enlarged to twice this: what lies behind the sheet is a little out of focus.
        super().__init__(
            *(1, (size[0] // 2, size[1] // 2), seed, field_of_view),
            supersampling=1,
            frames=1,
            subject=subject,
            camera_height=camera_height,
        )
        self.stage, self.sheet, self.frame = STAGES[subject], sheet, size
        self.matrix = geometry.camera_matrix(size, field_of_view).double().numpy()
        left, top, right, bottom = sheet.bounds_mm
        self.metres = self.stage.sheet / max(right - left, bottom - top)  # in the world, of a millimetre on paper

    @property
    def model(self) -> float:
        """Metres in the world of a metre on paper."""
        return self.metres * 1000

    def distance(self, span: float) -> float:
        """Metres in the world from which the patch spans this fraction of the frame's shorter side."""
        return float(self.matrix[0, 0]) * max(self.sheet.size_mm) * self.metres / (span * min(self.frame))

    def take(self, number: int, place: tuple[float, float], yaw: float, roll: float) -> Take:
        """A scene with the sheet in it, and no views.

        Args:
            number: of the scene.
            place: of the sheet's centre, to the right and ahead of the camera, metres.
            yaw: degrees by which the subject's right edge is turned away.
            roll: degrees by which the sheet is turned on the subject, counter-clockwise.
        """
        draws = torch.rand(1, 320, generator=seeding.generator(self.seed, _LAYOUT, number))
        label = torch.tensor([number % len(self.classes)]) if self.subject == "sign" else None
        planes = self._lay_out(draws, label)[0]
        ground = float(planes.origin[0, 1, 1])
        # A vehicle stands on the ground; what is hung up is level with the camera, or higher where it is large.
        low = ground - self.stage.side / 2
        height = low if self.subject == "vehicle" else min(0.0, low - 0.2)
        far = math.hypot(*place)
        centre = np.array([place[0], np.clip(height, -far / 2, far / 2), 0])
        centre[2] = math.sqrt(max(far**2 - place[0] ** 2 - centre[1] ** 2, 0))
        turn = _rotation(0, -yaw, 0)
        axes = turn @ _rotation(0, 0, -roll)[:, :2] * self.metres
        sheet = np.column_stack([axes, centre - axes @ np.array(self.sheet.size_mm) / 2])
        return Take(self._place(planes, turn, centre - self.stage.beside * turn[:, 0]), sheet, [])

    def _place(self, planes: Planes, turn: np.ndarray, place: np.ndarray) -> Planes:
        """The planes with the subject's surface at ``place [3]``, its axes those of ``turn [3, 3]``, and no traffic."""
        rows = planes.objects[0]
        first, own = rows[0], slice(rows.start, rows.stop)
        u, v = planes.u[0, first], planes.v[0, first]
        before = torch.stack([u / u.norm(), v / v.norm(), torch.linalg.cross(u / u.norm(), v / v.norm())])
        change = before.mT @ torch.from_numpy(turn).mT * (self.stage.side / u.norm())
        origin, us, vs = (value.clone() for value in (planes.origin, planes.u, planes.v))
        middle = origin[0, first] + (u + v) / 2
        origin[0, own] = (origin[0, own] - middle) @ change + torch.from_numpy(place)
        us[0, own], vs[0, own] = us[0, own] @ change, vs[0, own] @ change
        vehicles = range(self.first_tile["vehicle"], self.first_tile["vehicle"] + self.counts["vehicle"])
        tiles = planes.tile[0].tolist()  # the camera would drive through the others
        keep = [row for row, tile in enumerate(tiles) if row in rows or tile not in vehicles]
        return replace(
            planes,
            origin=origin[:, keep],
            u=us[:, keep],
            v=vs[:, keep],
            **{name: getattr(planes, name)[:, keep] for name in ("velocity", "repeat", "tile", "gain")},
            objects=[],
        )

    @torch.no_grad()
    def background(self, take: Take, view: StreetView) -> np.ndarray:
        """``[h, w, 3]`` uint8 RGB, without the sheet, half as high and as wide as the frame."""
        rotation, centre = (torch.from_numpy(value)[None] for value in (view.rotation, view.centre))
        planes = take.planes
        to_planes = torch.linalg.inv(self._to_pixels(planes, 0, rotation, centre)).float()
        return self._render(to_planes, planes.gain, planes.repeat, planes.tile)[0].permute(1, 2, 0).numpy()

    def homography(self, take: Take, view: StreetView) -> np.ndarray:
        """``[3, 3]`` from millimetres in the patch's frame to pixels of the frame, times the depth in metres."""
        return self.matrix @ patch_to_camera(take, view)

    def numbers(self, kind: int, number: int, count: int) -> list[float]:
        """``count`` uniform numbers in [0, 1) of a take of one kind."""
        return seeding.uniform(seeding.generator(self.seed, _WAY, kind, number), (count,), 0, 1).tolist()


def patch_to_camera(take: Take, view: StreetView) -> np.ndarray:
    """``[3, 3]`` from millimetres ``(x, y, 1)`` in the patch's frame to metres before the camera."""
    return view.rotation @ (take.sheet - np.outer(view.centre, [0, 0, 1]))


class Lab:
    """Fixed distances and angles, as in the lab tests of Eykholt et al. 2018; a hand holds the camera.

    Args:
        distances: metres from the camera to the sheet; None takes three that suit the frame.
        angles: degrees by which the sheet's right edge is turned away.
        frames: of each distance and angle.

    Raises:
        InputError: a number that cannot be.
    """

    def __init__(
        self,
        distances: Sequence[float] | None = None,
        angles: Sequence[float] = (-45, -20, 0, 20, 45),
        frames: int = 4,
    ) -> None:
        if not (distances is None or (distances and min(distances) > 0)) or not angles or max(map(abs, angles)) > 80:
            raise InputError(
                f"lab: expected distances above 0 m, or null, and angles of at most 80°, got {distances} and {angles}"
            )
        if frames < 2:
            raise InputError(f"lab.frames: expected 2 or more, got {frames}")
        self.distances, self.angles, self.frames = distances, angles, frames

    def takes(self, street: Street) -> list[Take]:
        """One for each distance and angle, each in a scene of its own."""
        spans = np.geomspace(street.stage.near, street.stage.far, 3)
        distances = self.distances or [street.distance(span) / street.model for span in spans]
        takes = []
        for number, (distance, angle) in enumerate((d, a) for d in distances for a in self.angles):
            light, phase, roll = street.numbers(0, number, 3)
            take = street.take(number, (0.0, distance * street.model), angle, 10 * roll - 5)
            surface = street.stage.beside * take.sheet[:, 0] / np.linalg.norm(take.sheet[:, 0])
            facing = _facing(take.sheet @ [*np.array(street.sheet.size_mm) / 2, 1] - 0.3 * surface)
            views = [
                StreetView(_swaying(frame, phase, 1.0) @ facing, np.zeros(3), 0.6 + 0.5 * light)
                for frame in range(self.frames)
            ]
            takes.append(replace(take, views=views))
        return takes


class DriveBy:
    """The camera drives past the sheet in changing light, as in the field tests of Eykholt et al. 2018.

    Args:
        passes: each in a scene of its own, with the sheet at another angle.
        frames: of each pass.

    Raises:
        InputError: a number that cannot be.
    """

    def __init__(self, passes: int = 3, frames: int = 30) -> None:
        if passes < 1 or frames < 2:
            raise InputError(f"drive_by: expected passes >= 1 and frames >= 2, got {passes} and {frames}")
        self.passes, self.frames = passes, frames

    def takes(self, street: Street) -> list[Take]:
        """One for each pass."""
        near, far = street.distance(street.stage.near), street.distance(street.stage.far)
        aside = _ASIDE * street.frame[1] / 2 / street.matrix[0, 0] * near
        takes = []
        for number in range(self.passes):
            light, phase, roll, angle = street.numbers(1, number, 4)
            yaw = 70 * (number + angle) / self.passes - 35
            side = -1 if number % 2 and not street.stage.beside else 1  # what is beside the sheet is in sight, too
            take = street.take(1000 + number, (side * aside, far), yaw, 10 * roll - 5)
            views = []
            for frame in range(self.frames):
                share = frame / (self.frames - 1)
                bright = (0.7 + 0.3 * light) * (1 + 0.25 * math.sin(2 * math.pi * (share + light)))
                ahead = np.array([0, 0, share * (far - near)])
                views.append(StreetView(_swaying(frame, phase, 0.4), ahead, bright))
            takes.append(replace(take, views=views))
        return takes


def _rotation(x: float, y: float, z: float) -> np.ndarray:
    """``[3, 3]`` of a rotation vector in degrees."""
    return geometry.rotation(torch.tensor([x, y, z], dtype=torch.float64)).numpy()


def _facing(point: np.ndarray) -> np.ndarray:
    """``[3, 3]`` from the world to an upright camera in its origin that looks at ``point [3]``."""
    ahead = point / np.linalg.norm(point)
    right = np.cross([0, 1, 0], ahead)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(ahead, right), ahead])


def _swaying(frame: int, phase: float, degrees: float) -> np.ndarray:
    """``[3, 3]``: how a hand turns the camera."""
    turn = 2 * math.pi * (frame / _PERIOD + phase)
    return _rotation(
        0.5 * degrees * math.sin(turn), degrees * math.sin(turn + 1), 0.5 * degrees * math.sin(2 * turn + 2)
    )
