"""KITTI: the 2015 flow benchmark and the raw drives, with the ground truth that lies beside them."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchattack import geometry, pictures
from patchattack.errors import InputError
from patchattack.scene import Scene, Source

EARTH_RADIUS = 6378137.0  # metres, as in the raw data's development kit

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pair:
    """Two frames and where their ground truth is."""

    first: Path
    second: Path
    flow: Path | None = None  # of every pixel with a LiDAR return
    flow_seen: Path | None = None  # only of those that stay in sight
    depth: Path | None = None
    intrinsics: Tensor | None = None  # [3, 3] float64, of the whole frame
    motion: Tensor | None = None  # [4, 4] float64

    @property
    def files(self) -> list[Path]:
        return [value for field in fields(self) if isinstance(value := getattr(self, field.name), Path)]


class Kitti(Source):
    """Pairs of KITTI's left colour camera, in one of two layouts that are found by themselves.

    - *Flow 2015* (Menze and Geiger, Object Scene Flow for Autonomous Vehicles, CVPR 2015):
      ``training/image_2/000000_10.png`` and ``_11.png``; ``training/flow_occ`` gives the flow, and with
      ``training/flow_noc`` beside it what is occluded.
    - *Raw* (Geiger et al., Vision meets Robotics, IJRR 2013):
      ``2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000000.png`` and the frame after it. The date's
      ``calib_*.txt`` give the intrinsics and, with the drive's ``oxts/data``, the motion. The drive's
      ``proj_depth/groundtruth/image_02`` (Uhrig et al., Sparsity Invariant CNNs, 3DV 2017) gives the depth; it leaves
      out the first and last five frames of a drive, and no pair starts with a frame that it leaves out.

    All pairs carry the same ground truth: what some lack none has, and a warning says so. KITTI's drives differ in
    size by a few pixels: frames are cropped, never resized, to one size, and the bottom and the horizontal centre stay.

    Args:
        root: the folder that holds ``training`` or the dates; flow 2015 is taken where both are there.
        size: ``(h, w)`` of the crop, ``None`` takes the smallest height and width found.
        split: ``training``, or flow 2015's ``testing``, which has no ground truth.

    Raises:
        InputError: neither layout is there, a file is missing, damaged or of the wrong size, or a frame is smaller
            than ``size``.
    """

    def __init__(self, root: str, size: tuple[int, int] | None = None, split: str = "training") -> None:
        if split not in ("training", "testing") or (size is not None and (len(size) != 2 or min(size) < 1)):
            raise InputError(
                "data=kitti: expected split training or testing and size [h, w] of positive numbers or null, "
                f"got split={split} and size={size if size is None else list(size)}"
            )
        folder = Path(root).expanduser()
        pairs = _flow_2015(folder / split) or (_raw(folder) if split == "training" else [])
        if not pairs:
            raise InputError(
                f"{folder}: expected KITTI 2015 flow (such as {split}/image_2/000000_10.png and 000000_11.png) or, for "
                "training, KITTI raw (such as 2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000000.png and "
                "0000000001.png), got neither; name the folder that holds them with data.root=FOLDER"
            )
        self.pairs = _same_truth(pairs)
        found = [_common_size(pair) for pair in self.pairs]
        self.size = (size[0], size[1]) if size else (min(h for h, _ in found), min(w for _, w in found))
        for pair, (height, width) in zip(self.pairs, found, strict=True):
            if height < self.size[0] or width < self.size[1]:
                raise InputError(
                    f"{pair.first}: expected at least {self.size[0]}×{self.size[1]}, got {height}×{width}; frames are "
                    "cropped to data.size=[h,w], so choose a smaller one"
                )

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[Path, ...]:
        """Both frames."""
        return self.pairs[index].first, self.pairs[index].second

    def __getitem__(self, index: int) -> Scene:
        pair = self.pairs[index]
        frames = torch.stack([pictures.read(path) for path in (pair.first, pair.second)])  # [2, 3, H, W]
        top, left = frames.shape[-2] - self.size[0], (frames.shape[-1] - self.size[1]) // 2

        def crop(image: Tensor) -> Tensor:
            return image[..., top:, left : left + self.size[1]].unsqueeze(0).contiguous()

        flow = occluded = depth = intrinsics = motion = None
        if pair.flow is not None:
            values, valid = _read_flow(pair.flow)
            flow = crop(values)
            if pair.flow_seen is not None:
                occluded = crop(valid & ~_read_flow(pair.flow_seen)[1])
        if pair.depth is not None:
            metres = pictures.read_16_bit(pair.depth) / 256
            depth = crop(metres.where(metres > 0, torch.nan))
        if pair.intrinsics is not None:
            shift = torch.tensor([[0, 0, left], [0, 0, top], [0, 0, 0]])
            intrinsics = (pair.intrinsics - shift).float().unsqueeze(0)
        if pair.motion is not None:
            motion = pair.motion.float().unsqueeze(0)
        return Scene(
            frames=crop(frames),
            index=torch.tensor([index]),
            flow=flow,
            occluded=occluded,
            depth=depth,
            intrinsics=intrinsics,
            motion=motion,
        )


def _flow_2015(folder: Path) -> list[_Pair]:
    pairs = []
    for first in sorted(folder.glob("image_2/*_10.png")):
        second = first.with_name(first.name.replace("_10.png", "_11.png"))
        flow, seen = (folder / kind / first.name for kind in ("flow_occ", "flow_noc"))
        pairs.append(_Pair(first, second, flow if flow.is_file() else None, seen if seen.is_file() else None))
    return pairs


def _raw(folder: Path) -> list[_Pair]:
    pairs = []
    for drive in sorted(folder.glob("*/*_drive_*_sync")):
        frames = sorted(path for path in drive.glob("image_02/data/*.png") if path.stem.isdecimal())
        if len(frames) < 2:
            continue
        calibration = drive.parent / "calib_cam_to_cam.txt"
        intrinsics = _read_calibration(calibration, "P_rect_02", (3, 4))[:, :3] if calibration.is_file() else None
        motions = _motions(drive, [frame.stem for frame in frames])
        depths = drive / "proj_depth" / "groundtruth" / "image_02"
        for i, (first, second) in enumerate(itertools.pairwise(frames)):
            depth = depths / first.name if depths.is_dir() else None
            if int(second.stem) == int(first.stem) + 1 and (depth is None or depth.is_file()):
                motion = None if motions is None else motions[i]
                pairs.append(_Pair(first, second, depth=depth, intrinsics=intrinsics, motion=motion))
    return pairs


def _motions(drive: Path, names: list[str]) -> Tensor | None:
    """``[n - 1, 4, 4]`` float64 from each frame's camera to the next one's; ``None`` if a file for it is not there."""
    files = [drive.parent / f"calib_{name}.txt" for name in ("cam_to_cam", "velo_to_cam", "imu_to_velo")]
    positions = [drive / "oxts" / "data" / f"{name}.txt" for name in names]
    if not all(path.is_file() for path in files + positions):
        return None
    cameras, laser, inertial = files
    projection = _read_calibration(cameras, "P_rect_02", (3, 4))
    # The rectified cameras share their axes; the last column of the projection is where camera 2 stands among them.
    offset, singular = torch.linalg.solve_ex(projection[:, :3], projection[:, 3])
    to_camera = _rigid(_read_calibration(cameras, "R_rect_00", (3, 3)), offset)
    for path in (laser, inertial):
        to_camera @= _rigid(_read_calibration(path, "R", (3, 3)), _read_calibration(path, "T", (3,)))
    oxts = torch.stack([_numbers(path, path.read_text(errors="replace").split()[:6], 6) for path in positions])
    poses = to_camera @ torch.linalg.inv_ex(_poses(oxts))[0]  # world to camera
    motions = poses[1:] @ torch.linalg.inv_ex(poses[:-1])[0]
    if singular or not motions.float().isfinite().all():
        raise InputError(f"{drive}: expected rotations and places on earth, got others; copy the drive again")
    return motions


def _poses(oxts: Tensor) -> Tensor:
    """Inertial unit to world, ``[n, 4, 4]``, from latitude, longitude (degrees), altitude, roll, pitch, yaw (radians).

    The development kit's Mercator projection, scaled to be true at the first latitude.
    """
    latitude, longitude, altitude = oxts[:, :3].unbind(1)
    radius = EARTH_RADIUS * torch.deg2rad(latitude[0]).cos()
    north = torch.deg2rad(45 + latitude / 2).tan().log()
    place = torch.stack([radius * torch.deg2rad(longitude), radius * north, altitude], dim=1)
    roll, pitch, yaw = (geometry.rotation(torch.diag_embed(torch.rad2deg(oxts[:, 3:])))[:, i] for i in range(3))
    return _rigid(yaw @ pitch @ roll, place)


def _rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """``[..., 4, 4]`` from ``[..., 3, 3]`` and ``[..., 3]``."""
    matrix = torch.eye(4, dtype=rotation.dtype).repeat(*rotation.shape[:-2], 1, 1)
    matrix[..., :3, :3], matrix[..., :3, 3] = rotation, translation
    return matrix


def _read_calibration(path: Path, key: str, shape: tuple[int, ...]) -> Tensor:
    """float64 ``shape`` from the line of ``path`` that starts with ``key:``."""
    for line in path.read_text(errors="replace").splitlines():
        name, _, text = line.partition(":")
        if name == key:
            return _numbers(path, text.split(), math.prod(shape)).view(shape)
    raise InputError(f"{path}: expected a line '{key}: ...', got none; copy the file again")


def _numbers(path: Path, words: list[str], count: int) -> Tensor:
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"{path}: expected numbers, got '{error}'; copy the file again") from error
    usable = [value for value in values if abs(value) < 1e12]  # not NaN either
    if len(values) != count or len(usable) != count:
        raise InputError(f"{path}: expected {count} numbers, got {len(usable)}; copy the file again")
    return torch.tensor(values, dtype=torch.float64)


def _same_truth(pairs: list[_Pair]) -> list[_Pair]:
    """``pairs`` without the ground truth that some of them lack."""
    for field in ("flow", "flow_seen", "depth", "intrinsics", "motion"):
        lacking = [pair.first for pair in pairs if getattr(pair, field) is None]
        if 0 < len(lacking) < len(pairs):
            _log.warning(
                "%d of %d pairs lack %s, so none is used; the first is %s", len(lacking), len(pairs), field, lacking[0]
            )
            nothing: dict[str, Any] = {field: None}
            pairs = [replace(pair, **nothing) for pair in pairs]
    return pairs


def _common_size(pair: _Pair) -> tuple[int, int]:
    """Height and width that all files of ``pair`` share."""
    size = pictures.header(pair.first).size
    for path in pair.files[1:]:
        if (other := pictures.header(path).size) != size:
            raise InputError(
                f"{path}: expected {size[0]}×{size[1]} like {pair.first}, got {other[0]}×{other[1]}; copy both again"
            )
    return size


def _read_flow(path: Path) -> tuple[Tensor, Tensor]:
    """Flow float32 ``[2, H, W]`` in pixels, NaN where unknown, and whether it is known, bool ``[1, H, W]``."""
    u, v, valid = pictures.read_16_bit(path, channels=3)
    known = (valid > 0).unsqueeze(0)
    return ((torch.stack([u, v]) - 2**15) / 64).where(known, torch.nan), known
