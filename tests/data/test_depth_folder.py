from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from patchattack.data.depth_folder import DepthFolder
from patchattack.errors import InputError

REAL = Path(__file__).parents[2] / "../shared/real/frames_kitti_drive"


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_pair(frame: Path, depth: Path | None, size: tuple[int, int] = (6, 9)) -> None:
    """A frame whose red is the column and whose green is the row, and 1.5 m for each column, none in column 0."""
    rows, columns = np.indices(size)
    write(frame, np.stack([np.zeros(size), rows, columns], axis=-1).astype(np.uint8))
    if depth is not None:
        write(depth, (columns * 384).astype(np.uint16))


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        DepthFolder(str(root), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_frames_and_depths_of_one_name_are_a_scene(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_pair(tmp_path / f"{name}.png", tmp_path / f"{name}_depth.png")
    source = DepthFolder(str(tmp_path), frames="*.png")  # which a depth map's name matches too
    assert [(frame.name, depth.name) for frame, depth in source.pairs] == [
        ("a.png", "a_depth.png"),
        ("b.png", "b_depth.png"),
    ]
    scene = source.__getitems__([1, 0])
    assert scene.index.tolist() == [1, 0]
    assert scene.frames.shape == (2, 1, 3, 6, 9)
    assert scene.frames.dtype == torch.uint8
    assert scene.frames[0, 0, :, 2, 7].tolist() == [7, 2, 0]
    assert scene.depth is not None
    assert scene.depth.shape == (2, 1, 6, 9)
    assert scene.depth[..., 0].isnan().all()
    assert scene.depth[1, 0, 3, 1:].tolist() == [1.5 * column for column in range(1, 9)]
    assert scene.surface is None
    assert source.classes == ()


def test_the_star_stands_for_the_same_in_two_folders(tmp_path: Path) -> None:
    write_pair(tmp_path / "image" / "data" / "00.png", tmp_path / "truth" / "00.png")
    source = DepthFolder(str(tmp_path), "image/data/*.png", "truth/*.png", scale=192)
    scene = source[0]
    assert scene.depth is not None
    assert scene.depth[0, 0, 0, 8] == 16


def test_frames_without_depth_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(tmp_path / "a.png", tmp_path / "a_depth.png")
    write_pair(tmp_path / "c.png", None)
    with caplog.at_level(logging.WARNING):
        assert len(DepthFolder(str(tmp_path), frames="*.png")) == 1
    assert "1 frame(s) have no depth map and are left out, the first is" in caplog.text
    assert "c.png" in caplog.text


def test_frames_are_cropped_and_the_bottom_and_the_horizontal_centre_stay(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png", tmp_path / "a_depth.png", (6, 9))
    write_pair(tmp_path / "b.png", tmp_path / "b_depth.png", (8, 7))
    batch = DepthFolder(str(tmp_path), "*.png").__getitems__([0, 1])
    assert batch.frames[:, 0, :2, 0, 0].tolist() == [[1, 0], [0, 2]]
    assert batch.depth is not None
    assert batch.depth[0, 0, 0, 0] == 1.5  # cropped with its frame
    assert DepthFolder(str(tmp_path), "*.png", size=(5, 3))[0].frames.shape == (1, 1, 3, 5, 3)
    assert "expected at least 6×8, got 8×7; frames are cropped" in refusal(tmp_path, frames="*.png", size=(6, 8))


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    assert "expected one * in each of frames and depths, got frames=*/* and" in refusal(tmp_path, frames="*/*")
    assert "got frames=*.jpg and depths=depth.png" in refusal(tmp_path, depths="depth.png")
    assert "expected scale above 0 and size [h, w] of positive numbers or null" in refusal(tmp_path, scale=0)
    assert "got scale=256.0 and size=[3]" in refusal(tmp_path, size=(3,))
    assert "got 0 frame(s) and 0 depth map(s); set data.root" in refusal(tmp_path)
    assert "got 0 frame(s) and 0 depth map(s)" in refusal(tmp_path / "nothing")
    write_pair(tmp_path / "a.png", None)
    assert "got 1 frame(s) and 0 depth map(s)" in refusal(tmp_path, frames="*.png")
    write_pair(tmp_path / "other.jpg", tmp_path / "a_depth.png", (5, 9))
    assert "a_depth.png: expected 6×9 like" in refusal(tmp_path, frames="*.png")
    (tmp_path / "a_depth.png").write_bytes(b"no image")
    assert "a_depth.png: expected an image, got" in refusal(tmp_path, frames="*.png")


def test_depth_maps_of_other_kinds_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png", None)
    for depth, message in (
        (np.zeros((6, 9), np.uint8), r"expected a 16-bit PNG of 1 channel\(s\), got 1 of uint8"),
        (np.zeros((6, 9, 3), np.uint16), r"expected a 16-bit PNG of 1 channel\(s\), got 3 of uint16"),
    ):
        write(tmp_path / "a_depth.png", depth)
        with pytest.raises(InputError, match=message):
            DepthFolder(str(tmp_path), "*.png")[0]


def phone_pair(folder: Path, orientation: int, depth: np.ndarray) -> DepthFolder:
    """A JPEG of 16×24, stored red on the left and blue on the right, and its depth map."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12, 0] = pixels[:, 12:, 2] = 220
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(folder / "a.jpg", quality=95, subsampling=0, exif=exif)
    write(folder / "a_depth.png", depth)
    return DepthFolder(str(folder))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_depth_follows_the_orientation_of_its_frame(
    tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    """20 m where it is red, in the sensor's orientation, and where sizes tell it apart in that of the picture shown."""
    stored = np.full((16, 24), 5 * 256, np.uint16)
    stored[:, :12] = 20 * 256
    maps = [stored]
    if orientation >= 5:
        maps.append(np.rot90(stored, {5: 3, 6: 3, 7: 1, 8: 1}[orientation]))
    for depth in maps:
        scene = phone_pair(tmp_path, orientation, depth)[0]
        red = scene.frames[0, 0, 0] > 128
        assert scene.depth is not None
        assert red.float().mean() == 0.5
        assert torch.equal(scene.depth[0, 0] == 20, red)
        assert scene.size == ((24, 16) if orientation >= 5 else (16, 24))
    assert ("1 frame(s) have an EXIF orientation and their depth maps none" in caplog.text) == (orientation < 5)


def test_depth_that_fits_no_side_of_its_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected 24×16 like .*, got 16×20; copy both again"):
        phone_pair(tmp_path, 6, np.ones((16, 20), np.uint16))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real test material in ../shared/real")
def test_a_kitti_drive() -> None:
    source = DepthFolder(str(REAL), depths="*_lidar_depth_x256.png")
    assert len(source) == 48
    scene = source[17]
    assert scene.depth is not None
    known = scene.depth.isfinite()
    assert 0.01 < known.float().mean() < 0.5
    assert 1 < scene.depth[known].min() < scene.depth[known].median() < 60 < scene.depth[known].max() < 130
    third = scene.size[0] // 3
    assert known[..., -third:, :].float().mean() > 10 * known[..., :third, :].float().mean()  # no LiDAR in the sky
