"""Where the live picture goes: a window, a video file, nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from patchattack.errors import InputError
from patchattack.pictures import c_path

_TITLE = "patchattack"
_FPS = 30.0
_PROBE = "import cv2; cv2.namedWindow('patchattack'); cv2.destroyAllWindows()"


class Screen(Protocol):
    """Shows pictures and hears keys.

    Attributes:
        visible: whether anybody sees the pictures; otherwise none need be drawn.
    """

    visible: bool

    def show(self, picture: np.ndarray) -> str:
        """Show ``picture [H, W, 3]`` uint8 RGB; the key that was pressed since the last one, or nothing."""

    def close(self) -> None:
        """Show nothing any more."""


class NoScreen:
    """No window, no keys."""

    visible = False

    def show(self, picture: np.ndarray) -> str:
        """Nothing happens."""
        return ""

    def close(self) -> None:
        """Nothing happens."""


class ScreenWindow:
    """A window of OpenCV's; closing it quits.

    Raises:
        InputError: there is no display.
    """

    visible = True

    def __init__(self) -> None:
        # OpenCV's Qt has no fonts and says so in pages, but the window has no text of Qt's.
        os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
        # Where there is no display, OpenCV's Qt does not fail, it ends the process: another one has to try.
        quiet = subprocess.DEVNULL
        if subprocess.run([sys.executable, "-c", _PROBE], stdout=quiet, stderr=quiet, check=False).returncode:
            shown = os.environ.get("DISPLAY") or "no DISPLAY"
            raise InputError(f"show=true: expected a display for the window, got none ({shown}); use show=false")
        self._open = False

    def show(self, picture: np.ndarray) -> str:
        """As :class:`Screen` says."""
        if not self._open:
            # Without Qt's tools, which would scroll and zoom a picture that is gone the next moment.
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
            cv2.resizeWindow(_TITLE, picture.shape[1], picture.shape[0])
            self._open = True
        cv2.imshow(_TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1)
        if not _visible():
            return "q"
        return chr(key & 0xFF) if key >= 0 else ""

    def close(self) -> None:
        """Close the window."""
        if self._open and _visible():
            cv2.destroyWindow(_TITLE)


def _visible() -> bool:
    """Whether the user has left the window open."""
    try:
        return cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # what Qt's OpenCV says when its last window is closed
        return False


class Recorder:
    """A video in real time of pictures that come when they come: the last one is repeated until the next.

    Args:
        path: of the MP4.
        start: time of the first picture, seconds.
    """

    def __init__(self, path: Path, start: float) -> None:
        self.path, self.start = path, start
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._last: np.ndarray | None = None
        self._written = 0

    def write(self, picture: np.ndarray, time: float) -> None:
        """Add ``picture [H, W, 3]`` uint8 RGB, seen at ``time`` seconds.

        Raises:
            InputError: the file cannot be written.
        """
        if self._writer is None:
            self._size = (picture.shape[1], picture.shape[0])
            self._writer = cv2.VideoWriter(c_path(self.path), cv2.VideoWriter.fourcc(*"mp4v"), _FPS, self._size)
            if not self._writer.isOpened():
                raise InputError(f"{self.path}: expected a video that can be written; use record=false")
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        due = int((time - self.start) * _FPS) + 1
        while self._written < due:
            self._writer.write(bgr if self._written == due - 1 or self._last is None else self._last)
            self._written += 1
        self._last = bgr

    def close(self) -> None:
        """The video is complete."""
        if self._writer is not None:
            self._writer.release()
