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
        white = paper.white(image, find(image, [sheet])[0], sheet)
        assert white == pytest.approx(np.full(3, light), abs=0.01)


def test_tinted_light_is_seen_as_such(sheet: Layout, photo: Callable[..., np.ndarray]) -> None:
    image = photo()
    (sighting,) = find(image, [sheet])
    tinted = (image * np.array([1.0, 0.8, 0.5])).astype(np.uint8)
    assert paper.white(tinted, sighting, sheet) == pytest.approx([0.8, 0.64, 0.4], abs=0.01)


def test_paper_beside_the_frame_is_not_known(sheet: Layout, photo: Callable[..., np.ndarray]) -> None:
    (sighting,) = find(photo(), [sheet])
    assert np.isnan(paper.white(photo()[:20, :20], sighting, sheet)).all()
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
