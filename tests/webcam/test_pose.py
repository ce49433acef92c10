from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from patchattack.errors import InputError
from patchattack.printing.fiducials import Layout, Sighting, find
from patchattack.webcam.pose import Lens, pose, project

OUTLINE = np.array([(0, 0), (150, 0), (150, 150), (0, 150)], dtype=np.float64)


def exact(matrix: np.ndarray) -> Sighting:
    return Sighting(3, project(matrix, OUTLINE), matrix, 6, 0.0)


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"distance": 1.4},
        {"distance": 1.2, "yaw": 35.0},
        {"distance": 0.5, "pitch": -45.0},
        {"distance": 0.5, "yaw": -50.0, "x": 0.1},
        {"distance": 0.8, "yaw": 20.0, "pitch": 25.0, "roll": -120.0, "x": -0.2, "y": 0.1},
    ],
)
def test_the_pose_is_recovered_from_a_photograph(
    where: dict[str, float], sheet: Layout, photo: Callable[..., np.ndarray], true_homography: Callable[..., np.ndarray]
) -> None:
    image = photo(**where)
    (sighting,) = find(image, [sheet])
    here = pose(sighting, sheet, Lens(60), image.shape[:2])
    corners = project(true_homography(**where), OUTLINE)
    assert np.abs(sighting.corners - corners).max() < 1
    assert here.distance == pytest.approx(where.get("distance", 0.6), rel=0.03)
    for angle in ("yaw", "pitch", "roll"):
        assert getattr(here, angle) == pytest.approx(where.get(angle, 0), abs=3)
    assert here.side == pytest.approx(np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1).mean(), rel=0.02)


def test_the_signs_of_the_angles(sheet: Layout, true_homography: Callable[..., np.ndarray]) -> None:
    def sides(**where: float) -> tuple[float, float, float, float]:
        top_left, top_right, bottom_right, bottom_left = project(true_homography(**where), OUTLINE)
        edges = (top_right - top_left, bottom_right - top_right, bottom_left - bottom_right, top_left - bottom_left)
        top, right, bottom, left = map(float, map(np.linalg.norm, edges))
        return top, right, bottom, left

    _, right, _, left = sides(yaw=30)
    assert right < left  # the right edge is farther away
    top, _, bottom, _ = sides(pitch=30)
    assert top > bottom  # the top edge is nearer
    corners = project(true_homography(roll=30), OUTLINE)
    assert corners[1, 1] < corners[0, 1]  # the top edge rises to the right: counter-clockwise
    here = pose(exact(true_homography(yaw=30, pitch=10, roll=5)), sheet, Lens(60), (360, 640))
    assert (here.yaw, here.pitch, here.roll) == pytest.approx((30, 10, 5), abs=0.01)


def test_the_tilt_is_against_the_line_of_sight(sheet: Layout, true_homography: Callable[..., np.ndarray]) -> None:
    beside = pose(exact(true_homography(x=0.5)), sheet, Lens(60), (360, 640))
    assert beside.tilt == pytest.approx(np.degrees(np.arctan(0.5)), abs=0.01)
    turned = pose(exact(true_homography(x=0.5, yaw=-np.degrees(np.arctan(0.5)))), sheet, Lens(60), (360, 640))
    assert turned.tilt == pytest.approx(0, abs=0.1)


def test_intrinsics_and_distortion_are_used(sheet: Layout) -> None:
    matrix = np.array([[500.0, 0, 300], [0, 510, 200], [0, 0, 1]])
    bend = np.array([-0.2, 0.05, 0.0, 0.0])
    marks = np.concatenate(list(sheet.markers.values()))
    solid = np.pad(marks - 75, ((0, 0), (0, 1)))
    turn, place = np.array([0.3, -0.2, 0.1]), np.array([60.0, 20.0, 700.0])
    seen = cv2.projectPoints(solid, turn, place, matrix, bend)[0][:, 0]
    homography, _ = cv2.findHomography(marks, seen)  # which cannot bend: all but exact
    here = pose(exact(homography), sheet, Lens(intrinsics=[500, 510, 300, 200], distortion=bend.tolist()), (400, 600))
    assert here.distance == pytest.approx(np.linalg.norm(place) / 1000, rel=0.01)
    straight = pose(exact(homography), sheet, Lens(intrinsics=[500, 510, 300, 200]), (400, 600))
    assert abs(straight.distance - 0.7029) > 5 * abs(here.distance - 0.7029)


@pytest.mark.parametrize("ending", ["yml", "json"])
def test_a_calibration_is_scaled_to_the_frames(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"camera.{ending}"
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    file.write("image_width", 1280)
    file.write("image_height", 720)
    file.write("camera_matrix", np.array([[1000.0, 0, 639.5], [0, 1000, 359.5], [0, 0, 1]]))
    file.write("distortion_coefficients", np.array([[0.1, 0.01, 0, 0]]))
    file.release()
    lens = Lens(calibration=str(path))
    np.testing.assert_allclose(lens.matrix((720, 1280))[0], [1000, 0, 639.5])
    np.testing.assert_allclose(lens.matrix((360, 640)), [[500, 0, 319.5], [0, 500, 179.5], [0, 0, 1]])
    assert lens.distortion.tolist() == [0.1, 0.01, 0, 0]


def test_a_guess_follows_the_frames() -> None:
    focal = 320 / np.tan(np.radians(30))
    np.testing.assert_allclose(Lens(60).matrix((360, 640))[0], [focal, 0, 319.5], rtol=1e-6)


def test_what_cannot_be_a_lens(tmp_path: Path) -> None:
    (tmp_path / "notes.yml").write_text("focal: 3")
    for given, message in (
        ({"field_of_view": 180}, r"lens\.field_of_view: expected degrees between 0 and 180, got 180"),
        ({"intrinsics": [500, 500]}, r"lens\.intrinsics: expected \[fx, fy, cx, cy\]"),
        ({"distortion": [0.1, math.inf]}, r"lens: expected finite numbers, got \[0\.1, inf\]"),
        ({"intrinsics": [500, 500, math.nan, 100]}, "lens: expected finite numbers"),
        ({"calibration": str(tmp_path / "notes.yml")}, "expected OpenCV's YAML, XML or JSON with camera_matrix"),
        ({"calibration": str(tmp_path / "none.yml")}, "expected OpenCV's YAML, XML or JSON with camera_matrix"),
    ):
        with pytest.raises(InputError, match=message):
            Lens(**given)
