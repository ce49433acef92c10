from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from patchattack.errors import InputError
from patchattack.printing.fiducials import (
    PER_SHEET,
    SHEETS,
    Layout,
    Sighting,
    bits,
    find,
    layout,
    load_layouts,
    save_layouts,
)

DENSITY = 8  # pixels per mm of the drawn sheets, at which every edge of a 33 mm marker lies between two pixels
SHEET = layout((150, 150), 0, 33)


def drawn(sheet: Layout, margin: float = 8) -> tuple[np.ndarray, np.ndarray]:
    """The sheet on white, and the matrix from mm to its pixels."""
    left, top, right, bottom = (np.array(sheet.bounds_mm) + np.array([-1, -1, 1, 1]) * margin).tolist()
    paper = np.full((round((bottom - top) * DENSITY), round((right - left) * DENSITY)), 255, np.uint8)
    matrix = np.array([[DENSITY, 0, -left * DENSITY - 0.5], [0, DENSITY, -top * DENSITY - 0.5], [0, 0, 1]])

    def fill(corner: np.ndarray, size: tuple[float, float], cells: np.ndarray) -> None:
        x, y = np.rint((corner - (left, top)) * DENSITY).astype(int)
        width, height = (round(side * DENSITY) for side in size)
        paper[y : y + height, x : x + width] = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)

    texture = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    fill(np.zeros(2), sheet.size_mm, texture)
    for marker, corners in sheet.markers.items():
        fill(corners[0], (sheet.marker_mm, sheet.marker_mm), 255 - 255 * bits(marker).astype(np.uint8))
    return paper, matrix


def seen(
    sheet: Layout,
    span: float,
    turn: tuple[float, float, float],
    place: tuple[float, float] = (0, 0),
    blur: float = 0.7,
    light: tuple[float, float] = (30, 220),
) -> tuple[np.ndarray, np.ndarray]:
    """A noisy camera's view [360, 640] of the sheet on a busy ground, and the homography from mm to its pixels.

    Seen from the front, the patch's width would span ``span`` pixels; ``turn`` are its pitch, yaw and roll in degrees,
    ``place`` is its centre from the frame's, in pixels.
    """
    rng = np.random.default_rng(0)
    height, width, fine = 360, 640, 4
    focal = width / 2 / math.tan(math.radians(35))
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    pitch, yaw, roll = (cv2.Rodrigues(np.radians(angle) * axis)[0] for angle, axis in zip(turn, np.eye(3), strict=True))
    rotation = roll @ yaw @ pitch
    distance = focal * sheet.size_mm[0] / span
    centre = np.array([place[0] * distance / focal, place[1] * distance / focal, distance])
    centre -= rotation[:, :2] @ (np.array(sheet.size_mm) / 2)
    homography = camera @ np.column_stack([rotation[:, :2], centre])

    paper, to_paper = drawn(sheet)
    finer = np.array([[fine, 0, (fine - 1) / 2], [0, fine, (fine - 1) / 2], [0, 0, 1]])
    to_view = finer @ homography @ np.linalg.inv(to_paper)
    soft = cv2.GaussianBlur(paper, (0, 0), max(0.4 * DENSITY * sheet.size_mm[0] / span / fine, 0.1))
    size = (width * fine, height * fine)
    warped, cover = (
        cv2.resize(cv2.warpPerspective(image, to_view, size), (width, height), interpolation=cv2.INTER_AREA)
        for image in (soft, np.full_like(paper, 255))
    )
    ground = cv2.resize(rng.integers(40, 200, (24, 40)).astype(np.float32), (width, height))
    lit = light[0] + warped.astype(np.float32) / 255 * (light[1] - light[0])
    image = cv2.GaussianBlur(ground + (lit - ground) * (cover / 255), (0, 0), blur) + rng.normal(0, 3, ground.shape)
    return image.clip(0, 255).round().astype(np.uint8), homography


def true_corners(sheet: Layout, homography: np.ndarray) -> np.ndarray:
    width, height = sheet.size_mm
    points = np.array([[(0, 0), (width, 0), (width, height), (0, height)]], dtype=np.float64)
    return cv2.perspectiveTransform(points, homography)[0]


def worst(sighting: Sighting, sheet: Layout, homography: np.ndarray) -> float:
    """The largest distance of a corner from where it is, pixels."""
    return float(np.linalg.norm(sighting.corners - true_corners(sheet, homography), axis=1).max())


@pytest.mark.parametrize("size_mm", [(150, 150), (300, 100), (80, 240), (40.5, 40.5)])
def test_markers_stand_around_the_patch_with_white_between(size_mm: tuple[float, float]) -> None:
    sheet = layout(size_mm, 3)
    assert list(sheet.markers) == list(range(3 * PER_SHEET, 4 * PER_SHEET))
    module = sheet.marker_mm / 6
    boxes = [(four.min(axis=0), four.max(axis=0)) for four in sheet.markers.values()]
    boxes.append((np.zeros(2), np.array(size_mm)))
    for place, (first, last) in enumerate(boxes):
        for start, end in boxes[:place]:
            assert np.maximum(first - end, start - last).max() >= module
    for four in sheet.markers.values():
        assert np.diff(np.vstack([four, four[:1]]), axis=0).tolist() == pytest.approx(
            np.array([(1, 0), (0, 1), (-1, 0), (0, -1)]) * sheet.marker_mm
        )
    outer = np.concatenate(list(sheet.markers.values()))
    assert outer[:, 0].min() == 0
    assert outer[:, 0].max() == pytest.approx(size_mm[0])
    left, top, right, bottom = sheet.bounds_mm
    assert (outer.min(axis=0) - (left, top)).min() >= module
    assert ((right, bottom) - outer.max(axis=0)).min() >= module


@pytest.mark.parametrize("turn", [(0, 0, 0), (50, 0, 20), (0, 50, -30), (-35, 35, 120), (30, -30, 200)])
@pytest.mark.parametrize("span", [80, 150])
def test_corners_to_a_fraction_of_a_pixel(span: float, turn: tuple[float, float, float]) -> None:
    image, homography = seen(SHEET, span, turn, place=(37.3, -11.8))
    corners = true_corners(SHEET, homography)
    assert cv2.contourArea(corners.astype(np.float32)) ** 0.5 >= 60
    (sighting,) = find(image, [SHEET, layout((150, 150), 1, 33)])
    assert (sighting.number, sighting.markers) == (0, 6)
    assert worst(sighting, SHEET, homography) < 0.2
    assert sighting.homography / sighting.homography[2, 2] == pytest.approx(sighting.homography)
    assert true_corners(SHEET, sighting.homography) == pytest.approx(sighting.corners, abs=1e-9)
    assert sighting.error < 0.2


@pytest.mark.parametrize("turn", [(0, 0, 10), (50, 0, 0), (0, -50, 0)])
def test_an_earlier_sighting_leads_to_patches_of_60_pixels_from_the_front(turn: tuple[float, float, float]) -> None:
    _, homography = seen(SHEET, 60, turn)
    earlier = Sighting(0, true_corners(SHEET, homography), homography, 6, 0.0)
    image, homography = seen(SHEET, 60, turn, place=(20, 9))
    (sighting,) = find(image, [SHEET], around=earlier)
    assert worst(sighting, SHEET, homography) < 0.3
    # Colour is taken as well, and a sheet that has gone elsewhere is found again.
    moved, homography = seen(SHEET, 90, (20, 0, 0), place=(-180, 60))
    (sighting,) = find(cv2.cvtColor(moved, cv2.COLOR_GRAY2RGB), [SHEET], around=earlier)
    assert worst(sighting, SHEET, homography) < 0.2


@pytest.mark.parametrize(
    "conditions", [{"span": 150, "blur": 2.5}, {"span": 90, "light": (10, 60)}, {"span": 200, "blur": 4}]
)
def test_blurred_and_dark_sheets(conditions: dict) -> None:
    image, homography = seen(SHEET, turn=(20, 10, 5), **conditions)
    (sighting,) = find(image, [SHEET])
    assert worst(sighting, SHEET, homography) < 0.5


def test_hidden_markers_do_not_pull_the_corners() -> None:
    image, homography = seen(SHEET, 150, (20, 20, 0))
    corner, middle = (
        cv2.perspectiveTransform(SHEET.markers[marker][None], homography)[0][1:place].mean(axis=0)
        for marker, place in ((0, 2), (4, 4))
    )
    for thumb, radius in ((corner, 15), (middle, 30)):
        cv2.circle(image, np.rint(thumb).astype(int).tolist(), radius, 128, cv2.FILLED)
    (sighting,) = find(image, [SHEET])
    assert sighting.markers == 5
    assert worst(sighting, SHEET, homography) < 0.3


def test_markers_of_one_row_are_not_enough() -> None:
    image, homography = seen(SHEET, 150, (0, 0, 0))
    top, bottom = (int(row[1]) for row in true_corners(SHEET, homography)[[0, 2]])
    assert find(image[: bottom + 4], [SHEET]) == []
    assert len(find(image[top - 60 : bottom + 60], [SHEET])) == 1


def test_two_sheets_in_one_picture_and_none_of_others() -> None:
    control = layout((150, 150), 1, 33)
    left, homography = seen(SHEET, 110, (10, 0, 0), place=(-150, 0))
    right, other = seen(control, 110, (0, 30, 0), place=(150, 0))
    image = np.hstack([left[:, :320], right[:, 320:]])
    found = find(image, [control, SHEET])
    assert [sighting.number for sighting in found] == [1, 0]
    assert worst(found[0], control, other) < 0.2
    assert worst(found[1], SHEET, homography) < 0.2
    assert find(image, [layout((150, 150), 2, 33)]) == []


def test_nothing_is_seen_where_nothing_is() -> None:
    image, homography = seen(SHEET, 150, (0, 0, 0))
    assert find(np.ascontiguousarray(image[:, ::-1]), [SHEET]) == []  # a mirror's image
    noise = np.random.default_rng(0).integers(0, 256, (90, 160), dtype=np.uint8)
    assert find(cv2.resize(noise, (640, 360)), [SHEET]) == []
    assert find(np.zeros((360, 640), np.uint8), [SHEET]) == []
    gone = Sighting(0, true_corners(SHEET, homography) + 5000, np.array([[1, 0, 5000], [0, 1, 0], [0, 0, 1.0]]), 6, 0.0)
    assert len(find(image, [SHEET], around=gone)) == 1


def test_layouts_come_back_from_their_file(tmp_path: Path) -> None:
    sheets = [layout((150, 97.5), number, 20) for number in (0, SHEETS - 1)]
    save_layouts(tmp_path / "print/layout.json", sheets)
    for one, other in zip(sheets, load_layouts(tmp_path / "print/layout.json"), strict=True):
        assert (one.number, one.size_mm, one.marker_mm) == (other.number, other.size_mm, other.marker_mm)
        assert all(np.array_equal(one.markers[marker], other.markers[marker]) for marker in one.markers)


@pytest.mark.parametrize(
    "content", [None, "not JSON", "[]", '{"sheets": 3}', '{"sheets": [{"number": 0}]}', b"\xff\xfe"]
)
def test_file_of_layouts_that_cannot_be(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "layout.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        InputError, match=r"layout.json: expected the layouts of printed sheets, got .*patchattack print"
    ):
        load_layouts(path)


@pytest.mark.parametrize("sheet", [{"number": -1}, {"number": SHEETS}, {"number": "0"}, {"marker_mm": 60}])
def test_layouts_of_a_file_are_checked(tmp_path: Path, sheet: dict) -> None:
    path = tmp_path / "layout.json"
    path.write_text(json.dumps({"sheets": [{"number": 0, "size_mm": [150, 150], "marker_mm": 30} | sheet]}))
    with pytest.raises(
        InputError, match=r"print\.(number|marker_mm): expected|layouts of printed sheets, got .*expected an integer"
    ):
        load_layouts(path)
