"""What is written while the camera runs: a line for every shot, and a bounded choice of frames."""

from __future__ import annotations

import csv
import sys
from array import array
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from patchattack.errors import InputError
from patchattack.webcam.paper import White

_QUALITY = 95  # of JPEG
_UNKNOWN = float("nan")


@dataclass
class Record:
    """One shot.

    Attributes:
        frame: number of the newest frame in the source.
        time: seconds from the first frame.
        victim: that was asked.
        state: ``found``; ``cut`` (the frame's edge cuts the patch off); ``lost`` (no sheet in sight, or not in both
            frames of a pair); ``other`` (a sheet that does not belong to the run).
        sheet: number of the sheet, -1 where there is none.
        kind: ``patch`` or ``control``, the sheet on paper; ``drawn`` where AR mode has drawn the patch on it.
        markers: that were seen.
        error: RMS error of their corners, pixels.
        x0 to y3: the patch's corners, pixels of the newest frame.
        size_px, distance_m, yaw, pitch, roll, tilt: as in :class:`patchattack.webcam.pose.Pose`.
        light: luminance of the white paper, in [0, 1] of what the camera can show.
        sharpness: as in :func:`patchattack.webcam.paper.sharpness`.
        patch, grey, inpainted: the attack's headline metric for the frame as seen, with a grey card in the patch's
            place, and without it.
        success, grey_success: as in :class:`patchattack.webcam.trial.Trial`.
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


TEXT = ("victim", "state", "kind")
CORNERS = ("x0", "y0", "x1", "y1", "x2", "y2", "x3", "y3")


class Log:
    """``frames.csv``, a line as soon as it is known: whatever happens, what was measured is there.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w", newline="", buffering=1)
        except OSError as error:
            raise InputError(f"{path}: expected a file that can be written, got '{error.strerror}'") from error
        self._writer = csv.DictWriter(self._file, [one.name for one in fields(Record)])
        self._writer.writeheader()

    def write(self, record: Record) -> None:
        """Add a line."""
        rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(record).items()}
        self._writer.writerow(rounded)

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of what :class:`Log` wrote: text for :data:`TEXT`, float64 for the others."""
    with path.open(newline="") as file:
        reader = csv.reader(file)
        names = next(reader)
        # An hour has a hundred thousand lines: numbers are kept as such, not as objects.
        columns: list[Any] = [[] if name in TEXT else array("d") for name in names]
        for row in reader:
            for name, column, cell in zip(names, columns, row, strict=True):
                column.append(sys.intern(cell) if name in TEXT else float(cell))
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


@dataclass(frozen=True)
class Kept:
    """Frames that were kept on disk.

    Attributes:
        record: of the shot.
        corners: ``[T, 4, 2]`` of the patch in the victim's frames.
        whites: ``T``, the paper's brightness in them.
        files: of the ``T`` frames as the victim saw them.
    """

    record: Record
    corners: np.ndarray
    whites: list[White]
    files: list[Path]

    def images(self) -> list[np.ndarray]:
        """``T`` of ``[H, W, 3]`` uint8 RGB.

        Raises:
            InputError: a file is gone.
        """
        images = []
        for path in self.files:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
            if image is None:
                raise InputError(f"{path}: expected the frame that was stored there, found none; measure again")
            images.append(image)
        return images


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

    def offer(self, record: Record, images: list[np.ndarray], corners: np.ndarray, whites: list[White]) -> None:
        """Keep these ``T`` images ``[H, W, 3]`` uint8 RGB, if it is their turn."""
        turn = self._offered % self._every == 0
        self._offered += 1
        if not turn or self.most < 1:
            return
        if len(self.kept) == self.most:
            for one in self.kept[1::2]:
                for path in one.files:
                    path.unlink()
            self.kept, self._every = self.kept[::2], 2 * self._every
            if (self._offered - 1) % self._every:
                return
        self.folder.mkdir(exist_ok=True)
        files = [self.folder / f"{record.frame:07d}_{place}.jpg" for place in range(len(images))]
        for path, image in zip(files, images, strict=True):
            cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        self.kept.append(Kept(record, corners, whites, files))
