from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack import geometry
from patchattack.geometry import MipAtlas, Window

UNIT = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
QUADS = {
    "upright": [[2.0, 3.0], [12.0, 3.0], [12.0, 9.0], [2.0, 9.0]],
    "sheared": [[2.0, 3.0], [12.0, 5.0], [15.0, 11.0], [5.0, 9.0]],
    "tilted": [[10.0, 12.0], [60.0, 8.0], [55.0, 52.0], [14.0, 40.0]],
    "mirrored": [[12.0, 3.0], [2.0, 3.0], [2.0, 9.0], [12.0, 9.0]],
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def square(side: float, angle: float, centre: tuple[float, float]) -> Tensor:
    """Corners ``[1, 4, 2]`` of a square turned counter-clockwise."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    return ((UNIT - 0.5) * side @ turn.mT + torch.tensor(centre, dtype=torch.float64))[None]


@pytest.mark.parametrize("quad", QUADS.values(), ids=QUADS)
def test_a_homography_takes_the_unit_square_to_the_corners(quad: list[list[float]]) -> None:
    corners = torch.tensor(quad, dtype=torch.float64)
    homography = geometry.homography_from_corners(corners)
    assert homography.dtype == torch.float64
    torch.testing.assert_close(geometry.project(homography, UNIT), corners)
    reference = cv2.getPerspectiveTransform(UNIT.float().numpy(), corners.float().numpy())
    np.testing.assert_allclose((homography / homography[2, 2]).numpy(), reference, rtol=1e-5, atol=1e-5)


def test_homographies_come_in_batches() -> None:
    corners = torch.tensor(list(QUADS.values())).view(2, 2, 4, 2)
    batch = geometry.homography_from_corners(corners)
    assert batch.shape == (2, 2, 3, 3)
    torch.testing.assert_close(batch[1, 0], geometry.homography_from_corners(corners[1, 0]))
    torch.testing.assert_close(geometry.project(batch, UNIT.expand(2, 2, 4, 2)), corners.double())


def test_a_parallelogram_has_an_affine_homography() -> None:
    homography = geometry.homography_from_corners(torch.tensor(QUADS["sheared"]))
    torch.testing.assert_close(homography[2], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("vector", [[30.0, 0.0, 0.0], [0.0, -75.0, 0.0], [10.0, 20.0, 30.0], [0.0, 0.0, 0.0]])
def test_rotation_is_rodrigues(vector: list[float]) -> None:
    expected, _ = cv2.Rodrigues(np.radians(np.array(vector)))
    found = geometry.rotation(torch.tensor(vector, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_rotation_about_z_takes_x_to_y() -> None:
    turned = geometry.rotation(torch.tensor([0.0, 0.0, 90.0])) @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-6)


def test_camera_matrix_and_pixel_grid_agree_on_the_middle() -> None:
    grid = geometry.pixel_grid((4, 6))
    assert grid.shape == (4, 6, 2)
    assert grid[2, 5].tolist() == [5, 2]
    torch.testing.assert_close(geometry.camera_matrix((4, 6), 90.0)[:2, 2], grid.mean(dim=(0, 1)))
    assert geometry.camera_matrix((4, 6), 90.0)[0, 0].item() == pytest.approx(3)
    fine = geometry.pixel_grid((4, 6), supersampling=2)
    assert fine.shape == (8, 12, 2)
    assert fine[:2, :2].flatten(0, 1).tolist() == [[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]]


def test_sample_takes_pixels_at_integers_and_zero_outside() -> None:
    image = random(1, 2, 5, 7) + 1
    torch.testing.assert_close(geometry.sample(image, geometry.pixel_grid((5, 7)).double()[None]), image)
    outside = torch.tensor([[[[-1.0, 2.0], [7.0, 2.0], [3.0, -1.0], [3.0, 5.0], [99.0, 99.0]]]], dtype=torch.float64)
    assert geometry.sample(image, outside).abs().max() < 1e-12
    halfway = geometry.sample(image, torch.tensor([[[[2.5, 1.0], [2.0, 1.5], [6.5, 0.0]]]], dtype=torch.float64))
    torch.testing.assert_close(halfway[0, :, 0, 0], (image[0, :, 1, 2] + image[0, :, 1, 3]) / 2)
    torch.testing.assert_close(halfway[0, :, 0, 1], (image[0, :, 1, 2] + image[0, :, 2, 2]) / 2)
    torch.testing.assert_close(halfway[0, :, 0, 2], image[0, :, 0, 6] / 2)


def warp(textures: Tensor, corners: Tensor, window: Window) -> Tensor:
    return geometry.warp_texture(textures, geometry.homography_from_corners(corners), window)


def texels(atlas: MipAtlas, level: int) -> Tensor:
    """A level of the atlas, read through ``locate`` at the middle of each texel."""
    height, width = atlas.sizes[level].tolist()
    uv = (geometry.pixel_grid((height, width)).double() + 0.5) / torch.tensor([width, height])
    points = atlas.locate(uv, torch.full((height, width), level))
    return geometry.sample(atlas.image, points.expand(len(atlas.image), -1, -1, -1))


@pytest.mark.parametrize("repeats", [False, True])
def test_levels_are_exact_averages_of_powers_of_two(repeats: bool) -> None:
    texture = random(2, 3, 16, 32)
    atlas = MipAtlas.build(texture, repeats)
    assert atlas.sizes.tolist() == [[16, 32], [8, 16], [4, 8], [2, 4], [1, 2], [1, 1]]
    for level in range(5):
        expected = torch.nn.functional.avg_pool2d(texture, 2**level)
        torch.testing.assert_close(texels(atlas, level), expected)
    torch.testing.assert_close(texels(atlas, 5)[..., 0, 0], texture.mean(dim=(2, 3)))


def test_odd_sizes_are_rounded_up() -> None:
    atlas = MipAtlas.build(torch.full((1, 1, 5, 7), 0.3, dtype=torch.float64))
    assert atlas.sizes.tolist() == [[5, 7], [3, 4], [2, 2], [1, 1]]
    for level in range(4):
        torch.testing.assert_close(texels(atlas, level), torch.full_like(texels(atlas, level), 0.3))


def test_the_level_follows_the_footprint() -> None:
    atlas = MipAtlas.build(random(1, 1, 16, 16))
    assert atlas.level(torch.tensor([0.1, 1.0, 2.0, 4.0, 16.0, 1e9])).tolist() == [0, 0, 1, 2, 4, 4]


def test_a_texture_that_repeats_wraps() -> None:
    texture = random(1, 1, 4, 8)
    atlas = MipAtlas.build(texture, repeats=True)
    uv = torch.tensor([[[0.3, 0.6], [1.3, 0.6], [-0.7, -2.4], [0.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    for level in (0, 1, 2):
        values = geometry.sample(atlas.image, atlas.locate(uv, torch.full((1, 5), level))[None])[0, 0, 0]
        torch.testing.assert_close(values[1:3], values[:1].expand(2))
        torch.testing.assert_close(values[4], values[3])
    seam = geometry.sample(atlas.image, atlas.locate(uv, torch.zeros(1, 5, dtype=torch.long))[None])[0, 0, 0, 3]
    torch.testing.assert_close(seam, texture[0, 0][[0, 0, -1, -1], [0, -1, 0, -1]].mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("texels", [31, 64, 96, 100, 128])
def test_beside_the_texture_there_is_not_a_trace_of_it(texels: int, dtype: torch.dtype) -> None:
    """Coverage above 0 says which pixels show the patch, so rounding must not put any anywhere else."""
    corners = square(40.3, 17.0, (61.4, 59.7))
    window = Window.around(corners, (120, 120), 24)
    out = warp(torch.ones(1, 1, texels, texels, dtype=dtype), corners, window)
    place = geometry.pixel_grid(window.size).double().view(-1, 2) + window.origin
    uv = geometry.project(torch.linalg.inv(geometry.homography_from_corners(corners)), place)[0]
    reach = 1.5 / 40.3 + 1 / texels  # a pixel and a texel
    beside = ((uv < -reach) | (uv > 1 + reach)).any(-1).view(1, 1, *window.size)
    assert beside.sum() > 1000
    assert out[beside].abs().max() == 0
    assert out.max() <= 1 + 1e-6


def test_a_view_beyond_the_horizon_is_empty() -> None:
    """Where the patch's plane vanishes, w is 0: nothing is seen there, and nothing is NaN."""
    for column in (8.25, 10.25, 10.0):
        to_square = torch.tensor([[0.5, 0, 0], [0, 0.1, 0], [-1 / column, 0, 1]], dtype=torch.float64)
        corners = geometry.project(torch.linalg.inv(to_square), UNIT)[None]
        window = Window(torch.zeros(1, 2, dtype=torch.long), (16, 32), (16, 32))
        out = warp(torch.ones(1, 1, 8, 8), corners, window)
        assert out.isfinite().all()
        assert out[..., 4:].abs().max() == 0
        assert out.max() > 0.9


def area_reference(texture: Tensor, corners: Tensor, window: Window) -> Tensor:
    """The mean of 16 × 16 bilinear samples of the full texture per pixel, with a hard edge."""
    size = torch.tensor([texture.shape[-1], texture.shape[-2]])
    grid = geometry.pixel_grid(window.size, supersampling=16).double() + window.origin[0]
    to_square = torch.linalg.inv(geometry.homography_from_corners(corners))[0]
    uv = geometry.project(to_square, grid.view(-1, 2)).view_as(grid)
    points = torch.minimum((uv * size - 0.5).clamp(min=0), size - 1.0)
    inside = ((uv >= 0) & (uv <= 1)).all(-1)
    return torch.nn.functional.avg_pool2d(geometry.sample(texture, points[None]) * inside, 16)


@pytest.mark.parametrize("angle", [0.0, 17.0])
@pytest.mark.parametrize("minification", [2, 5, 8])
@pytest.mark.parametrize("cells", [160, 20], ids=["noise", "cells"])
def test_a_minified_texture_is_antialiased(cells: int, minification: int, angle: float) -> None:
    """At least 30 dB against an area average; one bilinear tap has 15 to 18 dB."""
    texture = torch.nn.functional.interpolate(random(1, 3, cells, cells), size=160, mode="nearest")
    texture = torch.cat([texture, torch.ones(1, 1, 160, 160)], dim=1).double()
    corners = square(160 / minification, angle, (100.3, 110.7))
    window = Window.around(corners, (220, 220))
    out = warp(texture, corners, window)
    error = out - area_reference(texture, corners, window)
    assert -10 * math.log10(error[:, :3].square().mean()) >= 30
    assert error[:, 3].abs().max() <= 0.03 + 1e-3


def test_a_minified_texture_keeps_its_mean() -> None:
    texture = random(1, 1, 64, 64)
    corners = square(8, 30.0, (12.2, 11.9))
    out = warp(texture, corners, Window.around(corners, (24, 24)))
    assert out.sum().item() == pytest.approx(64 * texture.mean().item(), rel=0.02)


def test_the_frames_of_a_scene_show_its_own_texture() -> None:
    """Neighbouring corners share a texture, in the order of the scenes."""
    textures = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    corners = torch.cat([square(10, 0, (x, 12.0)) for x in (8, 10, 12, 14)])
    out = warp(textures, corners, Window.around(corners, (24, 24)))
    torch.testing.assert_close(out.amax(dim=(1, 2, 3)), torch.tensor([0.25, 0.25, 1.0, 1.0]))


def test_the_warp_has_the_gradient_of_a_linear_map() -> None:
    """Warping is linear in the texture: its gradient is its transpose."""
    texture = random(1, 1, 12, 12).requires_grad_()
    corners = torch.tensor(QUADS["tilted"], dtype=torch.float64)[None] / 2
    window = Window.around(corners, (32, 40))
    weights, direction = random(1, 1, *window.size, seed=1), random(1, 1, 12, 12, seed=2)
    warped = warp(texture, corners, window)
    (gradient,) = torch.autograd.grad((warped * weights).sum(), texture)
    along = warp(direction, corners, window)
    torch.testing.assert_close((gradient * direction).sum(), (along * weights).sum())


@pytest.mark.parametrize("block", [1, 16])
def test_a_window_holds_the_corners_and_the_margin(block: int) -> None:
    corners = torch.cat([square(20, 30, (50, 40)), square(10, 0, (8, 70)), square(30, 45, (120, 5))])
    window = Window.around(corners, (80, 128), 6, block)
    assert window.frame == (80, 128)
    height, width = window.size
    assert height % block == width % block == 0
    first, last = window.origin, window.origin + torch.tensor([width, height]) - 1
    assert (window.origin % block == 0).all()
    assert (first >= 0).all()
    assert (last < torch.tensor([128, 80])).all()
    assert (first <= (corners.amin(1) - 6).clamp(min=0)).all()
    assert (last >= torch.minimum((corners.amax(1) + 6).floor(), torch.tensor([127.0, 79.0]))).all()


@pytest.mark.parametrize("offset", [(-300, 0), (300, 0), (0, -300), (-300, 900)])
def test_a_window_of_what_is_off_the_frame_lies_in_the_frame(offset: tuple[int, int]) -> None:
    corners = square(10, 0, (20, 20)) + torch.tensor(offset)
    window = Window.around(corners, (48, 64), 4, 16)
    assert min(window.size) >= 1
    assert (window.origin >= 0).all()
    assert (window.origin + torch.tensor(window.size).flip(0) <= torch.tensor([64, 48])).all()


def test_a_window_is_no_larger_than_the_frame() -> None:
    window = Window.around(square(500, 0, (20, 20)), (50, 60), 5, 16)
    assert window.size == (50, 60)
    assert window.origin.tolist() == [[0, 0]]


def test_take_and_put_are_a_round_trip() -> None:
    images = random(2, 3, 20, 30)
    window = Window(torch.tensor([[3, 5], [18, 0]]), (8, 12), (20, 30))
    parts = window.take(images)
    assert torch.equal(parts[0], images[0, :, 5:13, 3:15])
    assert torch.equal(parts[1], images[1, :, 0:8, 18:30])
    assert torch.equal(window.put(images, parts), images)
    changed = window.put(images, parts + 1)
    difference = changed - images
    assert torch.equal(window.take(difference).round(), torch.ones_like(parts))
    assert (difference != 0).sum() == parts.numel()


def test_the_gradient_of_put_goes_to_the_parts_alone() -> None:
    images = random(1, 1, 10, 10).requires_grad_()
    parts = random(1, 1, 4, 4).requires_grad_()
    window = Window(torch.tensor([[2, 3]]), (4, 4), (10, 10))
    weights = random(1, 1, 10, 10, seed=1)
    to_images, to_parts = torch.autograd.grad((window.put(images, parts) * weights).sum(), (images, parts))
    assert torch.equal(to_parts, window.take(weights))
    assert window.take(to_images).abs().max() == 0
    outside = window.put(torch.ones_like(weights), torch.zeros_like(parts)).detach()
    assert torch.equal(to_images, weights * outside)


def test_distance_to_edge_does_not_count_edges_of_the_frame() -> None:
    window = Window(torch.tensor([[0, 0], [5, 6]]), (4, 5), (10, 12))
    corner, middle = window.distance_to_edge()[:, 0]
    assert corner.tolist() == [[min(4 - x, 3 - y) for x in range(5)] for y in range(4)]
    # Rows 6 to 9 end with the frame; columns 5 to 9 do not.
    assert middle.tolist() == [[min(x, 4 - x, y) for x in range(5)] for y in range(4)]


@pytest.mark.parametrize("side", [1, 3, 15])
def test_the_highest_around_a_pixel_is_opencvs_dilation(side: int) -> None:
    values = random(2, 1, 12, 17).float().where(random(2, 1, 12, 17, seed=1) > 0.9, 0)
    kernel = np.ones((side, side), np.uint8)
    expected = [cv2.dilate(one.numpy(), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) for one in values[:, 0]]
    assert np.array_equal(geometry.highest(values, side)[:, 0].numpy(), np.stack(expected))
