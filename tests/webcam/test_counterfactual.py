from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from patchattack.patch import Patch
from patchattack.printing.fiducials import Layout, find
from patchattack.webcam.counterfactual import Stencil, coverage, versions
from patchattack.webcam.paper import White

WHERE = {"yaw": 25.0, "roll": 20.0}


@pytest.fixture
def corners(sheet: Layout, photo: Callable[..., np.ndarray]) -> np.ndarray:
    return find(photo(**WHERE), [sheet])[0].corners


def constant(value: float) -> White:
    return White(np.array([[0, 0, value]] * 3))


def distance_inside(size: tuple[int, int], corners: np.ndarray) -> np.ndarray:
    """``[H, W]`` pixels from the patch's edge, positive inside."""
    contour = corners.astype(np.float32)
    return np.array([[cv2.pointPolygonTest(contour, (x, y), True) for x in range(size[1])] for y in range(size[0])])


def test_nothing_but_the_patch_changes(patch: Patch, photo: Callable[..., np.ndarray], corners: np.ndarray) -> None:
    image = photo(**WHERE)
    without = Stencil(patch.mask).replace(image, corners, constant(0.8))
    inside = distance_inside(image.shape[:2], corners)
    for version, reach in ((without.grey, 6), (without.inpainted, 6)):
        assert (version[inside < -reach] == image[inside < -reach]).all()
    assert (without.coverage[inside > 1] == 255).all()
    assert (without.coverage[inside < -1] == 0).all()
    assert without.coverage.sum() / 255 == pytest.approx(cv2.contourArea(corners.astype(np.float32)), rel=0.01)


def test_inpainting_leaves_a_blank_sheet_and_no_trace_of_the_patch(
    patch: Patch, photo: Callable[..., np.ndarray], corners: np.ndarray
) -> None:
    without = Stencil(patch.mask).replace(photo(**WHERE), corners, constant(0.8))
    inside = distance_inside((360, 640), corners) > -3
    assert np.abs(without.inpainted[inside].astype(int) - 204).max() < 12
    assert np.abs(without.inpainted[inside].astype(int) - 204).mean() < 2


def test_the_grey_card_stands_in_the_same_light(
    patch: Patch, photo: Callable[..., np.ndarray], corners: np.ndarray
) -> None:
    without = Stencil(patch.mask).replace(
        photo(**WHERE), corners, White(np.array([[0, 0, 0.8], [0, 0, 0.6], [0, 0, 0.4]]))
    )
    inside = distance_inside((360, 640), corners) > 1
    assert (without.grey[inside] == (102, 76, 51)).all()


def test_a_mask_leaves_its_holes_alone(photo: Callable[..., np.ndarray], corners: np.ndarray) -> None:
    mask = torch.ones(1, 4, 4)
    mask[:, 1:3, 1:3] = 0
    image = photo(**WHERE)
    without = Stencil(mask).replace(image, corners, constant(1.0))
    x, y = np.rint(corners.mean(axis=0)).astype(int)
    assert without.coverage[y, x] == 0
    assert (without.grey[y, x] == image[y, x]).all()
    assert (without.inpainted[y, x] == image[y, x]).all()


def test_a_patch_that_leaves_the_frame(patch: Patch, photo: Callable[..., np.ndarray]) -> None:
    image = photo(**WHERE)
    corners = np.array([(-50.0, -30), (60, -20), (70, 80), (-40, 90)])
    without = Stencil(patch.mask).replace(image, corners, constant(1.0))
    assert without.coverage[10, 10] == 255
    assert (without.inpainted[:, 100:] == image[:, 100:]).all()


def test_versions_come_as_seen_grey_and_inpainted(
    patch: Patch, photo: Callable[..., np.ndarray], corners: np.ndarray
) -> None:
    image = photo(**WHERE)
    without = [Stencil(patch.mask).replace(image, corners, constant(1.0))] * 2
    batch = versions([image, image], without)
    assert batch.shape == (3, 2, 3, 360, 640)
    for row, expected in zip(batch[:, 1], (image, without[0].grey, without[0].inpainted), strict=True):
        assert (row.permute(1, 2, 0).numpy() == expected).all()
    covered = coverage(without)
    assert covered.shape == (1, 2, 1, 360, 640)
    assert covered.max() == 255
