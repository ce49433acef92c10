from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from patchattack.data.kitti import EARTH_RADIUS, Kitti
from patchattack.errors import InputError

REAL = (Path(__file__).parents[2] / "../shared/real/pairs").resolve()
DATE = "2011_09_26"
FOCAL, CX, CY = 72.0, 60.5, 17.25


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def columns_and_rows(size: tuple[int, int]) -> np.ndarray:
    """An image whose red is the column and whose green is the row, so that a crop shows where it was taken."""
    rows, columns = np.indices(size)
    return np.stack([np.zeros(size), rows, columns], axis=-1).astype(np.uint8)


def encode_flow(u: np.ndarray, v: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The benchmark's 16 bits, in OpenCV's order of channels."""
    return np.stack([valid, v * 64 + 2**15, u * 64 + 2**15], axis=-1).astype(np.uint16)


def write_2015(root: Path, number: int, size: tuple[int, int] = (20, 40), truth: bool = True) -> None:
    training = root / "training"
    for ending in ("10", "11"):
        write(training / "image_2" / f"{number:06}_{ending}.png", columns_and_rows(size))
    if truth:
        rows, columns = np.indices(size)
        valid = columns != 5
        write(training / "flow_occ" / f"{number:06}_10.png", encode_flow(columns / 4 - 3, rows / 8.0, valid))
        seen = valid & (rows != 19)
        write(training / "flow_noc" / f"{number:06}_10.png", encode_flow(columns / 4 - 3, rows / 8.0, seen))


def oxts(latitude: float, longitude: float, altitude: float, roll: float, pitch: float, yaw: float) -> str:
    return " ".join(str(value) for value in (latitude, longitude, altitude, roll, pitch, yaw, *[0.0] * 24))


def write_raw(
    root: Path, drive: str = "0001", size: tuple[int, int] = (20, 40), poses: list[str] | None = None
) -> Path:
    """A drive of four frames with calibration: the camera looks along the inertial unit's x."""
    folder = root / DATE / f"{DATE}_drive_{drive}_sync"
    for number in range(4):
        write(folder / "image_02" / "data" / f"{number:010}.png", columns_and_rows(size))
    for number, pose in enumerate(poses or []):
        path = folder / "oxts" / "data" / f"{number:010}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pose)
    projection = f"{FOCAL} 0 {CX} {FOCAL * 0.06} 0 {FOCAL} {CY} 0 0 0 1 0"
    (root / DATE / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: {projection}\n"
    )
    (root / DATE / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 -0.08 -0.27\n")
    (root / DATE / "calib_imu_to_velo.txt").write_text("R: 1 0 0 0 1 0 0 0 1\nT: -0.8 0.3 -0.8\n")
    return folder


def refusal(root: Path, size: tuple[int, int] | None = None, split: str = "training") -> str:
    with pytest.raises(InputError) as caught:
        Kitti(str(root), size, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    write_2015(tmp_path, 0)
    red = np.zeros((20, 40, 3), np.uint8)
    red[..., 2] = 255
    write(tmp_path / "training/image_2/000000_10.png", red)
    assert Kitti(str(tmp_path))[0].frames[0, 0, :, 3, 4].tolist() == [255, 0, 0]


def test_flow_2015(tmp_path: Path) -> None:
    write_2015(tmp_path, 0)
    write_2015(tmp_path, 1)
    source = Kitti(str(tmp_path))
    assert len(source) == 2
    scene = source.__getitems__([1, 0])
    assert scene.frames.shape == (2, 2, 3, 20, 40)
    assert scene.frames.dtype == torch.uint8
    assert scene.index.tolist() == [1, 0]
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(40.0), indexing="ij")
    expected = torch.stack([columns / 4 - 3, rows / 8])
    expected[:, :, 5] = torch.nan
    assert scene.flow is not None
    assert scene.occluded is not None
    torch.testing.assert_close(scene.flow[0], expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(scene.occluded[1, 0], (rows == 19) & (columns != 5))
    assert scene.depth is None
    assert scene.motion is None
    assert scene.intrinsics is None


def test_the_bottom_and_the_horizontal_centre_stay(tmp_path: Path) -> None:
    write_2015(tmp_path, 0, (20, 40))
    write_2015(tmp_path, 1, (22, 37))
    source = Kitti(str(tmp_path))
    assert source.size == (20, 37)
    batch = source.__getitems__([0, 1])
    assert batch.frames[:, 0, :, 0, 0].tolist() == [[1, 0, 0], [0, 2, 0]]  # red is the column, green the row
    assert batch.frames[:, 0, 1, -1, 0].tolist() == [19, 21]
    assert batch.flow is not None
    assert batch.flow[0, 0, 0, 0] == 1 / 4 - 3  # the flow is cropped with its frame
    cropped = Kitti(str(tmp_path), size=(10, 21)).__getitems__([0, 1])
    assert cropped.frames[:, 0, :2, 0, 0].tolist() == [[9, 10], [8, 12]]


def test_truth_that_some_pairs_lack_is_used_by_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_2015(tmp_path, 0)
    write_2015(tmp_path, 1, truth=False)
    with caplog.at_level(logging.WARNING):
        source = Kitti(str(tmp_path))
    batch = source.__getitems__([0, 1])
    assert batch.flow is None
    assert batch.occluded is None
    assert "1 of 2 pairs lack flow" in caplog.text
    assert "000001_10.png" in caplog.text


def test_without_flow_noc_nothing_is_said_about_occlusion(tmp_path: Path) -> None:
    write_2015(tmp_path, 0)
    shutil.rmtree(tmp_path / "training/flow_noc")
    scene = Kitti(str(tmp_path))[0]
    assert scene.flow is not None
    assert scene.occluded is None


def test_the_testing_split_has_no_truth(tmp_path: Path) -> None:
    write_2015(tmp_path, 0, truth=False)
    (tmp_path / "training").rename(tmp_path / "testing")
    assert Kitti(str(tmp_path), split="testing")[0].flow is None
    assert "testing/image_2/000000_10.png" not in refusal(tmp_path)


def test_raw_pairs_follow_one_another(tmp_path: Path) -> None:
    write_raw(tmp_path, "0001")
    folder = write_raw(tmp_path, "0002")
    (folder / "image_02/data/0000000001.png").unlink()
    source = Kitti(str(tmp_path))
    names = [(pair.first.stem[-1], pair.second.stem[-1]) for pair in source.pairs]
    assert names == [("0", "1"), ("1", "2"), ("2", "3"), ("2", "3")]
    scene = source[0]
    assert scene.flow is None
    assert scene.depth is None
    assert scene.motion is None


def test_intrinsics_move_with_the_crop(tmp_path: Path) -> None:
    write_raw(tmp_path, size=(20, 40))
    whole, cropped = Kitti(str(tmp_path))[0].intrinsics, Kitti(str(tmp_path), size=(12, 31))[0].intrinsics
    assert whole is not None
    assert cropped is not None
    assert whole.tolist() == [[[FOCAL, 0, CX], [0, FOCAL, CY], [0, 0, 1]]]
    assert cropped.tolist() == [[[FOCAL, 0, CX - 4], [0, FOCAL, CY - 8], [0, 0, 1]]]


def test_driving_ahead_moves_the_scene_towards_the_camera(tmp_path: Path) -> None:
    latitude = 49.0
    metre_east = 180 / math.pi / (EARTH_RADIUS * math.cos(math.radians(latitude)))
    poses = [oxts(latitude, 8.4 + i * 1.5 * metre_east, 110, 0, 0, 0) for i in range(4)]  # yaw 0 faces east
    write_raw(tmp_path, poses=poses)
    motion = Kitti(str(tmp_path)).__getitems__([0, 2]).motion
    assert motion is not None
    expected = torch.eye(4).repeat(2, 1, 1)
    expected[:, 2, 3] = -1.5
    torch.testing.assert_close(motion, expected, rtol=0, atol=1e-5)


def test_a_point_of_the_world_is_carried_from_camera_to_camera(tmp_path: Path) -> None:
    """Against the development kit's formulas, written out for one point."""
    angles = [(0.02, -0.01, 0.8), (0.03, 0.01, 0.9), (0.0, 0.0, 1.0), (0.01, 0.0, 1.1)]
    places = [(49.0 + i * 1e-5, 8.4 - i * 2e-5, 110 + i * 0.1) for i in range(4)]
    write_raw(tmp_path, poses=[oxts(*place, *angle) for place, angle in zip(places, angles, strict=True)])
    motion = Kitti(str(tmp_path))[1].motion
    assert motion is not None

    def world_from_inertial(i: int) -> tuple[np.ndarray, np.ndarray]:
        (latitude, longitude, altitude), (roll, pitch, yaw) = places[i], angles[i]
        scale = math.cos(places[0][0] * math.pi / 180)
        x = scale * longitude * math.pi * 6378137 / 180
        y = scale * 6378137 * math.log(math.tan((90 + latitude) * math.pi / 360))
        (sx, cx), (sy, cy), (sz, cz) = ((math.sin(a), math.cos(a)) for a in (roll, pitch, yaw))
        about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        return about_z @ about_y @ about_x, np.array([x, y, altitude])

    def seen_by_camera(i: int, world: np.ndarray) -> np.ndarray:
        rotation, place = world_from_inertial(i)
        laser = rotation.T @ (world - place) + [-0.8, 0.3, -0.8]
        camera = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ laser + [0, -0.08, -0.27]
        return camera + np.array([0.06, 0, 0])

    world = world_from_inertial(1)[1] + [12.0, 5.0, -1.0]
    carried = motion[0].double().numpy() @ np.append(seen_by_camera(1, world), 1)
    np.testing.assert_allclose(carried[:3], seen_by_camera(2, world), atol=1e-4)


def test_motion_needs_every_file(tmp_path: Path) -> None:
    folder = write_raw(tmp_path, poses=[oxts(49, 8.4, 110, 0, 0, 0)] * 4)
    assert Kitti(str(tmp_path))[0].motion is not None
    (folder / "oxts/data/0000000003.txt").unlink()
    scene = Kitti(str(tmp_path))[0]
    assert scene.motion is None
    assert scene.intrinsics is not None


def test_depth_in_metres_and_only_frames_that_have_it(tmp_path: Path) -> None:
    folder = write_raw(tmp_path)
    depth = np.full((20, 40), 2560 + 64, np.uint16)
    depth[0] = 0
    for number in (1, 2):
        write(folder / f"proj_depth/groundtruth/image_02/{number:010}.png", depth)
    source = Kitti(str(tmp_path))
    assert [pair.first.stem for pair in source.pairs] == ["0000000001", "0000000002"]
    scene = source[0]
    assert scene.depth is not None
    assert scene.depth.shape == (1, 1, 20, 40)
    assert scene.depth[0, 0, 0].isnan().all()
    assert (scene.depth[0, 0, 1:] == 10.25).all()


def test_neither_layout_names_both(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        message = refusal(root)
        assert "training/image_2/000000_10.png" in message
        assert "2011_09_26_drive_0001_sync/image_02/data/0000000000.png" in message
        assert "data.root=FOLDER" in message


def test_a_missing_second_frame_is_named(tmp_path: Path) -> None:
    write_2015(tmp_path, 0)
    (tmp_path / "training/image_2/000000_11.png").unlink()
    assert "000000_11.png: expected an image, got no file" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 20, 60])
@pytest.mark.parametrize("name", ["image_2/000000_11.png", "flow_occ/000000_10.png"])
def test_a_truncated_file_is_named_before_the_work(tmp_path: Path, name: str, kept: int) -> None:
    write_2015(tmp_path, 0)
    path = tmp_path / "training" / name
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: expected {'a whole PNG' if kept == 60 else 'an image'}, got" in refusal(tmp_path)


def test_truth_of_another_size_is_named(tmp_path: Path) -> None:
    write_2015(tmp_path, 0)
    write(tmp_path / "training/flow_occ/000000_10.png", np.zeros((20, 41, 3), np.uint16))
    message = refusal(tmp_path)
    assert "flow_occ/000000_10.png: expected 20×40" in message
    assert "got 20×41" in message


def test_truth_of_8_bits_is_refused(tmp_path: Path) -> None:
    write_2015(tmp_path, 0)
    write(tmp_path / "training/flow_occ/000000_10.png", np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"expected a 16-bit PNG of 3 channel\(s\), got \d of uint8"):
        Kitti(str(tmp_path))[0]


def test_too_large_a_crop_is_refused(tmp_path: Path) -> None:
    write_2015(tmp_path, 0)
    message = refusal(tmp_path, size=(21, 40))
    assert "000000_10.png: expected at least 21×40, got 20×40" in message


def test_damaged_calibration_is_named(tmp_path: Path) -> None:
    write_raw(tmp_path, poses=[oxts(49, 8.4, 110, 0, 0, 0)] * 3 + ["49 8.4"])
    assert "0000000003.txt: expected 6 numbers, got 2" in refusal(tmp_path)
    path = tmp_path / DATE / "calib_cam_to_cam.txt"
    path.write_text("R_rect_00: 1 0 0 0 1 0 0 0 1\n")
    assert "calib_cam_to_cam.txt: expected a line 'P_rect_02: ...', got none" in refusal(tmp_path)
    path.write_text("P_rect_02: 1 2 three\n")
    assert "calib_cam_to_cam.txt: expected numbers, got" in refusal(tmp_path)


@pytest.mark.parametrize(("size", "split"), [(None, "validation"), ((0, 5), "training"), ((5,), "training")])
def test_bad_arguments_are_refused(tmp_path: Path, size: tuple[int, int] | None, split: str) -> None:
    assert "data=kitti: expected split training or testing and size [h, w]" in refusal(tmp_path, size, split)


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real/pairs")
def test_real_flow_warps_the_second_frame_onto_the_first(tmp_path: Path) -> None:
    for source, target in (("10", "image_2/000045_10"), ("11", "image_2/000045_11"), ("gt", "flow_occ/000045_10")):
        path = tmp_path / "training" / f"{target}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(REAL / f"kitti000045_{source}.png")
    scene = Kitti(str(tmp_path), size=(368, 1232))[0]
    assert scene.flow is not None
    known = ~scene.flow[0, 0].isnan()
    assert 0.05 < known.float().mean() < 0.9
    first, second = scene.frames[0, :, 0].float()
    rows, columns = known.nonzero(as_tuple=True)
    u, v = scene.flow[0, :, rows, columns]
    x, y = (columns + u).round().long(), (rows + v).round().long()
    inside = (x >= 0) & (x < 1232) & (y >= 0) & (y < 368)
    moved = (second[y[inside], x[inside]] - first[rows[inside], columns[inside]]).abs().mean()
    still = (second - first)[known].abs().mean()
    assert moved < 0.5 * still
