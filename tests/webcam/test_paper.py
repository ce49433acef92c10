from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from patchattack.printing.fiducials import Layout, find
from patchattack.webcam import paper


@pytest.mark.parametrize("where", [{}, {"distance": 1.3}, {"yaw": 40.0}])
def test_the_paper_is_as_bright_as_its_light(
    where: dict[str, float], sheet: Layout, photo: Callable[..., np.ndarray]
) -> None:
    for light in (0.8, 0.4):
        image = photo(**where, light=light)
        (sighting,) = find(image, [sheet])
        white = paper.white(image, sighting, sheet)
        assert white is not None
        for corner in sighting.corners:
            assert white.at(corner) == pytest.approx(np.full(3, light), abs=0.01)


def test_tinted_light_is_seen_as_such(sheet: Layout, photo: Callable[..., np.ndarray]) -> None:
    image = photo()
    (sighting,) = find(image, [sheet])
    tinted = (image * np.array([1.0, 0.8, 0.5])).astype(np.uint8)
    white = paper.white(tinted, sighting, sheet)
    assert white is not None
    assert white.at(sighting.corners[0]) == pytest.approx([0.8, 0.64, 0.4], abs=0.01)


def test_light_that_falls_off_is_a_plane(sheet: Layout, photo: Callable[..., np.ndarray]) -> None:
    falls = np.linspace(1, 0.5, 640)[:, None]
    image = (photo() * falls).astype(np.uint8)
    (sighting,) = find(image, [sheet])
    white = paper.white(image, sighting, sheet)
    assert white is not None
    for x, y in sighting.corners:
        assert white.at(np.array([x, y])) == pytest.approx(np.full(3, 0.8 * falls[round(x), 0]), abs=0.01)
    part = white.image(np.array([300, 100]), (20, 30))
    assert part.shape == (20, 30, 3)
    for x, y in ((0, 0), (29, 19)):
        assert part[y, x] / 255 == pytest.approx(white.at(np.array([300 + x, 100 + y])), abs=0.005)
    # In a frame of half the size, the same place has the same brightness.
    assert white.scale(0.5, 0.25).at(np.array([100.0, 50.0])) == pytest.approx(white.at(np.array([200.5, 201.5])))


def test_a_gap_beside_the_frame_leaves_a_constant(sheet: Layout, photo: Callable[..., np.ndarray]) -> None:
    image = photo()
    (sighting,) = find(image, [sheet])
    bottom = round(sighting.corners[:, 1].max()) + 4
    white = paper.white(image[:bottom], sighting, sheet)
    assert white is not None
    assert (white.slopes[:, :2] == 0).all()
    assert white.at(np.zeros(2)) == pytest.approx(np.full(3, 0.8), abs=0.01)


def test_paper_beside_the_frame_is_not_known(sheet: Layout, photo: Callable[..., np.ndarray]) -> None:
    (sighting,) = find(photo(), [sheet])
    assert paper.white(photo()[:20, :20], sighting, sheet) is None
    assert np.isnan(paper.sharpness(photo()[:20, :20], sighting, sheet))


def test_sharpness_falls_with_blur_and_not_with_light_or_distance(
    sheet: Layout, photo: Callable[..., np.ndarray]
) -> None:
    def measured(image: np.ndarray, sigma: float) -> float:
        (sighting,) = find(image, [sheet])
        return paper.sharpness(cv2.GaussianBlur(image, (0, 0), sigma), sighting, sheet)

    near = {sigma: measured(photo(distance=0.4), sigma) for sigma in (1.0, 2.0)}
    assert 1.6 < near[1.0] / near[2.0] < 2.2  # as the inverse of the blur's width
    assert measured(photo(distance=0.4, light=0.5), 1.0) == pytest.approx(near[1.0], rel=0.03)
    assert measured(photo(distance=0.6), 1.0) == pytest.approx(near[1.0], rel=0.2)
