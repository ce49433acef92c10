"""The window on a virtual display, and a user who looks at it, presses keys and closes it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from patchattack.patch import Patch
from patchattack.printing.fiducials import Layout, save_layouts
from patchattack.webcam.records import read

MISSING = [tool for tool in ("Xvfb", "xdotool") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"a virtual display and its user need {' and '.join(MISSING)}")

ROOT = Path(__file__).parents[2]
SCREEN = (768, 1366)
PATIENCE = 600  # seconds until a key that has no effect is a failure, however busy the machine
SHOWING = """
import time
import numpy as np
from patchattack.webcam.screen import Window
window = Window()
while window.show(np.full((300, 400, 3), 99, np.uint8)) != "q":
    time.sleep(0.01)
window.close()
print("quits")
"""


def until(condition: Callable[[], Any]) -> Any:
    """What ``condition`` says as soon as it says something."""
    limit = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return answer


class User:
    """Sits before one display; without a window manager, keys go to the window under the pointer."""

    def __init__(self, name: str, buffer: Path) -> None:
        self.environment = os.environ | {"DISPLAY": name}
        self.buffer = buffer

    def press(self, key: str) -> None:
        self._do("mousemove", "50", "50")
        self._do("key", key)

    def windows(self) -> list[str]:
        return self._do("search", "--onlyvisible", "--name", "^patchattack$").split()

    def looks(self) -> np.ndarray:
        """``[H, W, 3]`` uint8 BGR of the display, from X's own dump of it."""
        raw = self.buffer.read_bytes()
        header, *_ = np.frombuffer(raw, ">u4", 1)
        colours = np.frombuffer(raw, ">u4", 1, 19 * 4)[0]
        pixels = np.frombuffer(raw, np.uint8, SCREEN[0] * SCREEN[1] * 4, int(header + 12 * colours))
        return pixels.reshape(*SCREEN, 4)[..., :3]

    def closes(self, window: str) -> None:
        """What a window manager does when one clicks on the cross."""
        x11 = ctypes.CDLL("libX11.so.6")
        x11.XOpenDisplay.restype, x11.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
        display = ctypes.c_void_p(x11.XOpenDisplay(self.environment["DISPLAY"].encode()))
        protocols, delete = (x11.XInternAtom(display, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
        client_message, longs = 33, (ctypes.c_long * 24)()  # of XEvent, in whose fields an int has a long's place
        longs[0], longs[4], longs[5], longs[6], longs[7] = client_message, int(window), protocols, 32, delete
        x11.XSendEvent(display, ctypes.c_ulong(int(window)), 0, ctypes.c_long(0), longs)
        x11.XCloseDisplay(display)

    def _do(self, *command: str) -> str:
        return subprocess.run(
            ["xdotool", *command], env=self.environment, capture_output=True, text=True, check=False
        ).stdout


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """Of a display with a free number, which is stopped in the end."""
    ready, told = os.pipe()
    size = f"{SCREEN[1]}x{SCREEN[0]}x24"
    command = ["Xvfb", "-displayfd", str(told), "-noreset", "-nocursor", "-screen", "0", size, "-fbdir", str(tmp_path)]
    server = subprocess.Popen(command, pass_fds=[told], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(told)
    try:
        with os.fdopen(ready) as pipe:
            yield User(f":{pipe.readline().strip()}", tmp_path / "Xvfb_screen0")
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture
def started(
    user: User, tmp_path: Path, patch: Patch, sheet: Layout, photo: Callable[..., np.ndarray]
) -> Iterator[subprocess.Popen[str]]:
    """``scripts/webcam.py`` on a folder with more frames than anybody waits for, into ``tmp_path / "out"``."""
    run, frames = tmp_path / "run", tmp_path / "source"
    patch.save(run / "patch.png", {})
    (run / "overrides.yaml").write_text("- attack=classification\n")
    save_layouts(run / "print" / "layout.json", [sheet])
    frames.mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), photo(x=0.02 * number)[..., ::-1])
    for number in range(5000):
        (frames / f"{number}.jpg").symlink_to(tmp_path / f"{number % 3}.jpg")
    given = ["victims=[classifier_residual,classifier_transformer]", "trainer.accelerator=cpu", "keep=4", "fps=10"]
    process = subprocess.Popen(
        [sys.executable, "scripts/webcam.py", f"run={run}", f"source={frames}", f"output={tmp_path / 'out'}", *given],
        cwd=ROOT,
        env=user.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_the_keys_do_what_the_window_says(started: subprocess.Popen[str], user: User, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def lines() -> list[list[str]]:
        assert started.poll() is None
        path = out / "frames.csv"
        return [line.split(",") for line in path.read_text().splitlines()[1:]] if path.is_file() else []

    def newest(column: int) -> str:
        return lines()[-1][column]

    until(lambda: len(lines()) > 1)
    until(user.windows)
    picture = tuple(slice(0, int(side.max()) + 1) for side in user.looks().any(axis=2).nonzero())
    height, width = (side.stop for side in picture)
    assert 400 < height < 500
    assert 1200 < width < 1300

    def pause_is_on() -> bool:
        key = user.looks()[height - 30 : height, :90].astype(int)
        return bool((key[..., 2] - key[..., 0] > 100).any())  # orange

    assert not pause_is_on()
    user.press("p")
    until(pause_is_on)
    count = len(lines())

    user.press("s")
    until((out / "screenshot_1.png").is_file)
    first = user.looks()
    until(lambda: np.array_equal(cv2.imread(str(out / "screenshot_1.png")), first[picture]))

    user.press("c")
    frame = slice(0, 340), slice(0, width // 2)
    until(lambda: (user.looks()[frame] != first[frame]).any())
    y, x = (user.looks()[frame] != first[frame]).any(axis=2).nonzero()
    corners = np.array(lines()[-1][8:16], float).reshape(4, 2) * width / 2 / 640  # of frames 640 pixels wide
    np.testing.assert_allclose((x.min(), y.min(), x.max(), y.max()), (*corners[0], *corners[2]), atol=6)
    assert len(lines()) == count  # it has stood still

    user.press("p")
    until(lambda: len(lines()) > count)
    assert newest(2) == "classifier_residual"
    user.press("v")
    until(lambda: newest(2) == "classifier_transformer")
    user.press("r")
    until((out / "recording_1.mp4").is_file)
    assert newest(5) == "patch"
    user.press("a")
    until(lambda: newest(5) == "drawn")
    user.press("q")
    told, complaints = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, complaints
    assert "Qt" not in complaints
    assert str(out / "report.html") in told
    assert "patch drawn on the sheet" in (out / "report.html").read_text()
    written = read(out / "frames.csv")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"]["frames"] == len(written["frame"])
    assert set(summary["victims"]) == {"classifier_residual", "classifier_transformer"}
    assert cv2.VideoCapture(str(out / "recording_1.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) > 0
    assert len(list(out.glob("screenshot_*.png"))) == 1


def test_closing_the_window_quits(user: User) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SHOWING], cwd=ROOT, env=user.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        until(lambda: user.windows() and (user.looks()[:300, :400] == 99).all())  # not the one that looks for a display
        (window,) = user.windows()
        user.closes(window)
        told, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, told) == (0, "quits\n")
