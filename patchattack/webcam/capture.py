"""Frames from a camera, a stream, a video or a folder of images."""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from patchattack import pictures
from patchattack.errors import InputError
from patchattack.pictures import c_path, quietly
from patchattack.redaction import redact
from patchattack.videos import decode

LATE = 1.75  # times the usual interval between two frames, from which one is missing in between
INTERVALS = 31  # whose median is the usual one
PATIENCE = 10_000  # milliseconds that a stream may take to open
WHOLE = 0.98  # fraction of the frames that a video announces which makes it a whole one
COUNTED = (".avi", ".m4v", ".mov", ".mp4")  # containers that count their frames; of others OpenCV guesses the number


@dataclass(frozen=True)
class Shot:
    """Consecutive frames; the last one is the newest.

    Attributes:
        images: ``T`` of ``[H, W, 3]`` uint8 RGB.
        number: of the newest frame, from 0.
        time: of the newest frame, seconds from the first.
    """

    images: tuple[np.ndarray, ...]
    number: int
    time: float


class Device(Protocol):
    """What :class:`Live` asks of ``cv2.VideoCapture``."""

    def read(self) -> tuple[bool, np.ndarray | None]:
        """Whether there is a frame, and the frame ``[H, W, 3]`` uint8 BGR."""

    def release(self) -> None:
        """Free the device."""


class Capture(ABC):
    """Where shots come from.

    Attributes:
        frames: that came, whether they were delivered or not.
        dropped: of these, how many were never delivered: a newer one was there already, or they were damaged.
        gaps: places where frames are missing from the source itself, so that no shot goes across.
        faults: why frames are missing that were to be expected.
        mirrored: the source's pictures are mirrored: they are turned back.
    """

    mirrored = False

    def __init__(self) -> None:
        self.frames = self.dropped = self.gaps = 0
        self.faults: list[str] = []

    @abstractmethod
    def shots(self) -> Iterator[Shot]:
        """Shots until the source ends."""

    @abstractmethod
    def close(self) -> None:
        """Free the source; a second time does nothing."""

    @property
    def other_way(self) -> str:
        """What mirrors the pictures that come, or does not if it is done now."""
        return f"mirrored={str(not self.mirrored).lower()}"

    def _rgb(self, image: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(cv2.flip(image, 1) if self.mirrored else image, cv2.COLOR_BGR2RGB)


class Recorded(Capture):
    """Every frame in its order, however long it takes to measure it.

    Args:
        images: ``[H, W, 3]`` uint8 BGR, None for one that cannot be read.
        count: frames of a shot.
        fps: frames a second.
    """

    def __init__(self, images: Iterator[np.ndarray | None], count: int, fps: float) -> None:
        super().__init__()
        self.images, self.count, self.fps = images, count, fps

    def shots(self) -> Iterator[Shot]:
        """A shot for every frame that has enough before it; none across a damaged frame or a change of size."""
        held: deque[np.ndarray] = deque(maxlen=self.count)
        for number, image in enumerate(self.images):
            self.frames += 1
            if image is None or (held and held[-1].shape != image.shape):
                self.gaps += bool(held)
                held.clear()
            if image is None:
                self.dropped += 1
                continue
            held.append(self._rgb(image))
            if len(held) == self.count:
                yield Shot(tuple(held), number, number / self.fps)
        if self.dropped:
            self.faults.append(f"{self.dropped:,} of {self.frames:,} frames are damaged")

    def close(self) -> None:
        """Nothing is held open."""


class LiveCapture(Capture):
    """The newest frames of a device that does not wait: while one shot is measured, older frames are dropped.

    A thread of its own reads the device and keeps the newest ``count`` frames, and nothing else: neither latency nor
    memory grows. A shot of several frames is always of neighbours; where the device itself has left one out (the
    interval is :data:`LATE` times the usual one), no shot goes across.

    Args:
        device: is read until it fails.
        count: frames of a shot.
        timeout: seconds without a new shot after which the stream counts as stalled.
    """

    def __init__(self, device: Device, count: int, timeout: float) -> None:
        super().__init__()
        self.device, self.count, self.timeout = device, count, timeout
        self._held: deque[np.ndarray] = deque(maxlen=count)
        self._times: deque[float] = deque(maxlen=INTERVALS + 1)
        self._first = 0.0
        self._delivered = 0  # frames up to and with the newest that was handed out
        self._failed = self._stop = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop:
            try:
                there, image = self.device.read()
            except cv2.error:  # what some drivers say when their camera is unplugged
                there, image = False, None
            now = time.monotonic()
            with self._changed:
                if not there or image is None:
                    self._failed = True
                    self._changed.notify()
                    return
                usual = float(np.median(np.diff(self._times))) if len(self._times) > 2 else np.inf
                if self._held and (now - self._times[-1] > LATE * usual or image.shape != self._held[-1].shape):
                    self.gaps += 1
                    self._held.clear()
                self._first = self._first if self.frames else now
                self._times.append(now)
                self._held.append(image)
                self.frames += 1
                self._changed.notify()

    def shots(self) -> Iterator[Shot]:
        """The newest shot each time; ends when the device fails or stalls, and says so in ``faults``."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._failed or self._fresh(), self.timeout)
                if not self._fresh():
                    what = "it stopped answering" if self._failed else f"no new frame for {self.timeout:g} s"
                    self.faults.append(f"{what}, after {self.frames} frames")
                    return
                self.dropped += max(self.frames - self.count - self._delivered, 0)
                self._delivered = number = self.frames
                images, moment = tuple(self._held), self._times[-1] - self._first
            yield Shot(tuple(map(self._rgb, images)), number - 1, moment)

    def _fresh(self) -> bool:
        return len(self._held) == self.count and self.frames > self._delivered

    def close(self) -> None:
        """Stop reading; a device that hangs in a read is left to the end of the process."""
        self._stop = True
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            self.device.release()


class Video(Recorded):
    """Every frame of a video file in its order; it says where frames are damaged or fewer than the file announces.

    Args:
        path: of the file.
        count: frames of a shot.

    Raises:
        InputError: OpenCV decodes no frame of it.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        with quietly():
            video = cv2.VideoCapture(c_path(path))
            there = any(image is not None for image in decode(video))
        if not there:
            raise InputError(f"source: expected a video that OpenCV can decode, got {path}; convert it to MP4 (H.264)")
        rate = video.get(cv2.CAP_PROP_FPS)
        self.announced = video.get(cv2.CAP_PROP_FRAME_COUNT)
        video.release()
        super().__init__(self._frames(), count, rate if 0 < rate < 1000 else 30.0)

    def _frames(self) -> Iterator[np.ndarray | None]:
        video = cv2.VideoCapture(c_path(self.path))
        seconds = 0.0
        try:
            for image in decode(video):
                seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield image
        finally:
            video.release()
        # Where frames are not counted, their number is guessed of the duration: what it was guessed of is compared.
        found = self.frames if self.path.suffix.lower() in COUNTED else max(self.frames, seconds * self.fps + 1)
        if found < WHOLE * self.announced - 1:
            self.faults.append(
                f"the video announces {self.announced:,.0f} frames and has {self.frames:,}: it is cut off or damaged"
            )


def open_source(
    source: int | str,
    count: int,
    timeout: float = 5.0,
    fps: float = 1.0,
    resolution: Sequence[int] = (720, 1280),
    mirrored: bool = False,
) -> Capture:
    """The capture for what the user names.

    Args:
        source: a camera's number or device (``/dev/video0``, or a link to it), a stream's address, a video file, or a
            folder of images in the order of their names.
        count: frames of a shot.
        timeout: seconds without a frame after which a camera or a stream counts as stalled.
        fps: of a folder's images.
        resolution: height and width asked of a camera, which gives what it can.
        mirrored: the source's pictures are mirrored: they are turned back.

    Raises:
        InputError: it cannot be opened, or gives no frame.
    """
    if not timeout > 0 or not fps > 0:
        raise InputError(f"expected timeout and fps above 0, got {timeout} and {fps}")
    capture = _open(str(source), count, timeout, fps, resolution)
    capture.mirrored = mirrored
    return capture


def _open(source: str, count: int, timeout: float, fps: float, resolution: Sequence[int]) -> Capture:
    if "://" in source:
        return LiveCapture(_stream(source), count, timeout)
    path = Path(source).expanduser()
    device = re.fullmatch(r"/dev/video(\d+)", str(path.resolve()))  # of several cameras, links alone have stable names
    if device or source.isdecimal():
        return LiveCapture(_camera(source, int(device[1] if device else source), resolution), count, timeout)
    if path.is_dir():
        return Recorded(_images(path), count, fps)
    if not path.is_file():
        raise InputError(f"source: expected a camera's number, a video, a folder or an address, found no {path}")
    return Video(path, count)


def _camera(name: str, number: int, resolution: Sequence[int]) -> cv2.VideoCapture:
    with quietly():
        camera = cv2.VideoCapture(number)
        if camera.isOpened():
            height, width = resolution
            camera.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))  # raw 720p is too much for USB 2
            camera.set(cv2.CAP_PROP_FRAME_WIDTH, width)
            camera.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
            camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        there, _ = camera.read()
    if not there:
        state = "that gives no frame; close the program that uses it" if camera.isOpened() else "that cannot be opened"
        camera.release()
        raise InputError(
            f"source={name}: expected a camera, got none or one {state}; "
            "name another number, a video, a folder or a stream"
        )
    return camera


def _stream(address: str) -> cv2.VideoCapture:
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, PATIENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, PATIENCE]
    with quietly():
        stream = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    if not stream.isOpened():
        raise InputError(f"source: expected a stream, got no answer from {redact(address)}; check address and network")
    return stream


def _images(folder: Path) -> Iterator[np.ndarray | None]:
    paths = [path for path in folder.iterdir() if path.suffix.lower() in pictures.ENDINGS]
    if not paths:
        raise InputError(f"source: expected a folder of images ({', '.join(pictures.ENDINGS)}), got none in {folder}")
    natural = sorted(paths, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])
    return (_image(path) for path in natural)


def _image(path: Path) -> np.ndarray | None:
    try:
        return cv2.cvtColor(pictures.read(path).permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR)
    except InputError:
        return None
