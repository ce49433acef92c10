"""Where the sheet is in front of the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from patchattack import geometry
from patchattack.errors import InputError
from patchattack.printing.fiducials import Layout, Sighting

_MIRROR = np.array([1.0, -1.0, -1.0])  # from right, down and away to right, up and towards the camera


class Lens:
    """The camera's intrinsics: from a calibration, as given, or guessed from the field of view.

    Distances are as good as the focal length: a field of view that is 5 % off makes them about 5 % off. Angles and
    everything else hardly depend on it.

    Args:
        field_of_view: degrees that the frame's width spans; used where nothing better is known.
        intrinsics: ``[fx, fy, cx, cy]`` pixels of the frames as they come.
        distortion: OpenCV's coefficients ``[k1, k2, p1, p2, ...]``, with ``intrinsics``.
        calibration: a file as OpenCV's calibration writes it (YAML, XML or JSON with ``camera_matrix``,
            ``distortion_coefficients``, ``image_width`` and ``image_height``); it goes first.

    Raises:
        InputError: numbers that cannot be, or a file that holds no calibration.
    """

    def __init__(
        self,
        field_of_view: float = 60.0,
        intrinsics: Sequence[float] | None = None,
        distortion: Sequence[float] = (),
        calibration: str | None = None,
    ) -> None:
        if not 0 < field_of_view < 180:
            raise InputError(f"lens.field_of_view: expected degrees between 0 and 180, got {field_of_view}")
        if intrinsics is not None and (len(intrinsics) != 4 or min(intrinsics[:2]) <= 0):
            raise InputError(f"lens.intrinsics: expected [fx, fy, cx, cy] in pixels, got {list(intrinsics)}")
        self.field_of_view, self.distortion = field_of_view, np.array(distortion, dtype=np.float64)
        self._matrix: np.ndarray | None = None
        self._size: tuple[int, int] | None = None  # of the frames that the matrix is for; None fits all
        if intrinsics is not None:
            fx, fy, cx, cy = intrinsics
            self._matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)
        if calibration is not None:
            self._matrix, self.distortion, self._size = _calibration(Path(calibration).expanduser())
        numbers = [*self.distortion, *([] if self._matrix is None else self._matrix.ravel())]
        if not np.isfinite(numbers).all():
            raise InputError(f"lens: expected finite numbers, got {[float(one) for one in numbers]}")

    def matrix(self, size: tuple[int, int]) -> np.ndarray:
        """``[3, 3]`` camera matrix for frames ``(h, w)``; a calibrated one is scaled to them."""
        if self._matrix is None:
            return geometry.camera_matrix(size, self.field_of_view).double().numpy()
        if self._size is None:
            return self._matrix
        x, y = size[1] / self._size[1], size[0] / self._size[0]
        # About the frame's corner, which is half a pixel before the centre of the first one.
        return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ self._matrix


@dataclass(frozen=True)
class Pose:
    """The patch as the camera sees it.

    The angles are right-handed about the axes to the right, up and towards the camera, all 0 for an upright sheet that
    is parallel to the sensor; the sheet is turned by ``roll``, then ``pitch``, then ``yaw``.

    Attributes:
        distance: from the camera to the patch's centre, metres.
        yaw: degrees; positive where the right edge has turned away from the camera.
        pitch: degrees; positive where the top edge has turned towards it.
        roll: degrees, counter-clockwise on the screen.
        tilt: degrees between the sheet's normal and the line of sight to its centre: 0 is seen face to face.
        side: mean length of the patch's four sides, pixels.
    """

    distance: float
    yaw: float
    pitch: float
    roll: float
    tilt: float
    side: float


def pose(sighting: Sighting, sheet: Layout, lens: Lens, size: tuple[int, int]) -> Pose:
    """Distance and angles of a sheet from its markers.

    IPPE (Collins & Bartoli 2014), then the least squares of the reprojection error.

    Args:
        sighting: of the sheet.
        sheet: as printed.
        lens: of the camera.
        size: ``(h, w)`` of the frame.
    """
    marks = np.concatenate(list(sheet.markers.values()))
    pixels = project(sighting.homography, marks)
    solid = np.pad(marks - np.array(sheet.size_mm) / 2, ((0, 0), (0, 1)))  # about the patch's centre
    matrix = lens.matrix(size)
    _, turns, places, _ = cv2.solvePnPGeneric(solid, pixels, matrix, lens.distortion, flags=cv2.SOLVEPNP_IPPE)
    # Both solutions are refined before one is chosen: nearly face to face, the closed form is degrees off.
    rotation, place = min(
        (_refine(solid, pixels, matrix, lens.distortion, *start) for start in zip(turns, places, strict=True)),
        key=lambda one: one[2],
    )[:2]
    distance = float(np.linalg.norm(place))
    seen = _MIRROR[:, None] * rotation * _MIRROR
    sides = np.linalg.norm(sighting.corners - np.roll(sighting.corners, 1, axis=0), axis=1)
    return Pose(
        distance=distance / 1000,
        yaw=math.degrees(math.atan2(seen[0, 2], seen[2, 2])),
        pitch=math.degrees(math.asin(np.clip(-seen[1, 2], -1, 1))),
        roll=math.degrees(math.atan2(seen[1, 0], seen[1, 1])),
        tilt=math.degrees(math.acos(np.clip(rotation[:, 2] @ place / distance, -1, 1))),
        side=float(sides.mean()),
    )


def _refine(
    solid: np.ndarray,
    pixels: np.ndarray,
    matrix: np.ndarray,
    distortion: np.ndarray,
    turn: np.ndarray,
    place: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation ``[3, 3]`` and place ``[3]`` after Gauss and Newton's steps, and the error that is left."""
    turn, place = cv2.solvePnPRefineVVS(solid, pixels, matrix, distortion, turn, place)
    again = cv2.projectPoints(solid, turn, place, matrix, distortion)[0][:, 0]
    return cv2.Rodrigues(turn)[0], place.ravel(), float(np.square(again - pixels).sum())


def project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``[n, 2]`` pixels of ``points [n, 2]`` in millimetres."""
    return cv2.perspectiveTransform(points.reshape(-1, 1, 2), homography).reshape(-1, 2)


def _calibration(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    try:
        file = cv2.FileStorage(path.read_text("utf-8"), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        matrix = file.getNode("camera_matrix").mat()
        distortion = file.getNode("distortion_coefficients").mat()
        width, height = (int(file.getNode(f"image_{side}").real()) for side in ("width", "height"))
        file.release()
    except (OSError, ValueError, cv2.error, SystemError):  # what OpenCV says of files that are not its own
        matrix = None
    if matrix is None or matrix.shape != (3, 3) or width < 1 or height < 1:
        raise InputError(
            f"lens.calibration={path}: expected OpenCV's YAML, XML or JSON with camera_matrix, image_width and "
            "image_height, got something else; give lens.intrinsics=[fx,fy,cx,cy] or lens.field_of_view instead"
        )
    return matrix, np.zeros(0) if distortion is None else distortion.ravel(), (height, width)
