"""What is written while the camera runs: a line for every shot, and a bounded choice of frames."""

from __future__ import annotations

import contextlib
import csv
import sys
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from patchattack import pictures
from patchattack.errors import InputError, one_line
from patchattack.webcam.overlay import outline
from patchattack.webcam.paper import White

_QUALITY = 95  # of JPEG
_WITHIN = (320, 480)  # height and width that a camera's frame is reduced to; a dozen of them are a report's
_UNKNOWN = float("nan")


@dataclass
class Record:
    """One shot.

    Attributes:
        frame: number of the newest frame in the source.
        time: seconds from the first frame.
        victim: that was asked.
        state: ``found``; ``cut`` (the frame's edge cuts the patch off); ``lost`` (no sheet in sight, or not in both
            frames of a pair); ``mirrored`` (a sheet's mirror image, looked for until one is found); ``other`` (a sheet
            that does not belong to the run).
        sheet: number of the sheet, -1 where there is none.
        kind: ``patch`` or ``control``, the sheet on paper; ``drawn`` where AR mode has drawn the patch on it.
        markers: that were seen.
        error: RMS error of their corners, pixels.
        x0 to y3: the patch's corners, pixels of the newest frame.
        size_px, distance_m, yaw, pitch, roll, tilt: as in :class:`patchattack.webcam.pose.Pose`.
        light: luminance of the white paper, in [0, 1] of what the camera can show.
        sharpness: as in :func:`patchattack.webcam.paper.sharpness`.
        patch, grey, inpainted: the attack's primary metric for the frame as seen, with a grey card in the patch's
            place, and without it.
        success, grey_success: as in :class:`patchattack.webcam.camera_victim.Trial`.
    """

    frame: int
    time: float
    victim: str
    state: str
    sheet: int = -1
    kind: str = ""
    markers: int = 0
    error: float = _UNKNOWN
    x0: float = _UNKNOWN
    y0: float = _UNKNOWN
    x1: float = _UNKNOWN
    y1: float = _UNKNOWN
    x2: float = _UNKNOWN
    y2: float = _UNKNOWN
    x3: float = _UNKNOWN
    y3: float = _UNKNOWN
    size_px: float = _UNKNOWN
    distance_m: float = _UNKNOWN
    yaw: float = _UNKNOWN
    pitch: float = _UNKNOWN
    roll: float = _UNKNOWN
    tilt: float = _UNKNOWN
    light: float = _UNKNOWN
    sharpness: float = _UNKNOWN
    patch: float = _UNKNOWN
    grey: float = _UNKNOWN
    inpainted: float = _UNKNOWN
    success: float = _UNKNOWN
    grey_success: float = _UNKNOWN

    @property
    def corners(self) -> np.ndarray:
        """``[4, 2]`` of the patch, pixels of the newest frame."""
        return np.array([getattr(self, name) for name in CORNERS]).reshape(4, 2)


TEXT = ("victim", "state", "kind")
SHARES = ("success", "grey_success")
RECORDED = tuple(one.name for one in fields(Record))
CORNERS = ("x0", "y0", "x1", "y1", "x2", "y2", "x3", "y3")


class Log:
    """``frames.csv``, a line as soon as it is known: whatever happens, what was measured is there.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w", newline="", buffering=1, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: expected a file that can be written, got '{error.strerror}'") from error
        self._writer = csv.DictWriter(self._file, [one.name for one in fields(Record)])
        self._write({one.name: one.name for one in fields(Record)})

    def write(self, record: Record) -> None:
        """Add a line.

        Raises:
            InputError: it cannot be written.
        """
        rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(record).items()}
        self._write(rounded)

    def close(self) -> None:
        """No more lines."""
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._writer.writerow(line)
        except OSError as error:
            with contextlib.suppress(OSError):  # which closing says again
                self._file.close()
            raise InputError(f"{self._file.name}: expected room for a line, got '{error.strerror}'") from error


def read(path: Path, columns: Iterable[str] = RECORDED) -> dict[str, np.ndarray]:
    """The columns of what :class:`Log` wrote: text for :data:`TEXT`, float64 for the others.

    A last line that was not written to its end is left out.

    Args:
        path: of the table.
        columns: that it must have.

    Raises:
        InputError: there is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(line for line in file if line.endswith("\n"))
            names = next(reader, [])
            if missing := set(columns).difference(names):
                raise ValueError(f"no column {min(missing)}")
            # An hour has a hundred thousand lines: numbers are kept as such, not as objects.
            values: list[Any] = [[] if name in TEXT else array("d") for name in names]
            for row in reader:
                for name, column, cell in zip(names, values, row, strict=True):
                    column.append(sys.intern(cell) if name in TEXT else float(cell))
        found = {name: np.array(column) for name, column in zip(names, values, strict=True)}
        for name in SHARES:
            check_shares(found.get(name, np.empty(0)))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: expected the table that patchattack webcam writes, got none ({one_line(error)}); measure again"
        ) from error
    return found


def check_shares(values: np.ndarray) -> None:
    """Refuse what is neither in [0, 1] nor NaN.

    Raises:
        ValueError: one is not.
    """
    if (values < 0).any() or (values > 1).any():
        raise ValueError("a success outside [0, 1]")


@dataclass(frozen=True)
class Kept:
    """Frames that were kept on disk.

    Attributes:
        record: of the shot.
        corners: ``[T, 4, 2]`` of the patch in the victim's frames.
        whites: ``T``, the paper's brightness in them.
        files: of the ``T`` frames as the victim saw them.
        photo: of the newest frame as the camera saw it, reduced, with the patch outlined.
    """

    record: Record
    corners: np.ndarray
    whites: list[White]
    files: list[Path]
    photo: Path

    def images(self) -> list[np.ndarray]:
        """``T`` of ``[H, W, 3]`` uint8 RGB, as the victim saw them.

        Raises:
            InputError: a file is gone.
        """
        return [load_frame(path) for path in self.files]


def photo_of(folder: Path, frame: int) -> Path:
    """Where :class:`Store` puts what the camera saw in a frame."""
    return folder / f"{frame:07d}_camera.jpg"


def load_frame(path: Path) -> np.ndarray:
    """``[h, w, 3]`` uint8 RGB, a frame that :class:`Store` has kept.

    Raises:
        InputError: the file is gone.
    """
    return pictures.read(path).permute(1, 2, 0).numpy()


def _store(path: Path, image: np.ndarray) -> None:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


@dataclass
class Store:
    """At most ``most`` shots on disk, evenly spread over those that were offered, however many come.

    Every second one of those that are kept is deleted, and every second one that comes is passed over, whenever it
    gets too many.
    """

    folder: Path
    most: int
    kept: list[Kept] = field(default_factory=list)
    _every: int = 1
    _offered: int = 0

    def offer(
        self, record: Record, images: list[np.ndarray], corners: np.ndarray, whites: list[White], frame: np.ndarray
    ) -> None:
        """Keep a shot, if it is its turn.

        Args:
            record: of the shot.
            images: ``T`` of ``[H, W, 3]`` uint8 RGB, as the victim saw them.
            corners: ``[T, 4, 2]`` of the patch in them.
            whites: ``T``, the paper's brightness in them.
            frame: ``[H, W, 3]`` uint8 RGB, the newest as the camera saw it.
        """
        turn = self._offered % self._every == 0
        self._offered += 1
        if not turn or self.most < 1:
            return
        if len(self.kept) == self.most:
            for one in self.kept[1::2]:
                for path in (*one.files, one.photo):
                    path.unlink()
            self.kept, self._every = self.kept[::2], 2 * self._every
            if (self._offered - 1) % self._every:
                return
        self.folder.mkdir(exist_ok=True)
        files = [self.folder / f"{record.frame:07d}_{place}.jpg" for place in range(len(images))]
        for path, image in zip(files, images, strict=True):
            _store(path, image)
        height, width = frame.shape[:2]
        scale = min(1.0, _WITHIN[0] / height, _WITHIN[1] / width)
        size = round(width * scale), round(height * scale)
        photo = photo_of(self.folder, record.frame)
        factors = size[0] / width, size[1] / height
        corners_there = (record.corners + 0.5) * factors - 0.5
        _store(photo, outline(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), corners_there))
        self.kept.append(Kept(record, corners, whites, files, photo))
