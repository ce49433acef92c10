from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from patchattack.errors import InputError
from patchattack.webcam import overlay
from patchattack.webcam.overlay import Text
from patchattack.webcam.screen import Recorder, ScreenWindow


@pytest.mark.skipif(sys.platform != "linux", reason="displays are named by DISPLAY on Linux")
def test_without_a_display_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(InputError, match=r"^show=true: expected a display .*; use show=false$"):
        ScreenWindow()


def test_a_recording_runs_in_real_time(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "film.mp4", start=10.0)
    for moment, shade in ((10.0, 40), (10.5, 120), (11.0, 200)):
        recorder.write(np.full((64, 96, 3), (shade, 0, 0), np.uint8), moment)
    recorder.write(np.full((32, 48, 3), (200, 0, 0), np.uint8), 11.01)  # of another size, and too early for a frame
    recorder.close()
    video = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    shades = []
    while (frame := video.read())[0]:
        shades.append(int(frame[1][32, 48, 2]))
    assert len(shades) == 31  # a second, its end included
    assert np.abs(np.array(shades)[[0, 5, 20, 30]] - (40, 40, 120, 200)).max() < 12


def test_the_outline_marks_the_patch_and_its_top() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = overlay.outline(image, np.array([(10.0, 10), (50, 10), (50, 50), (10, 50)]))
    assert (image == 0).all()
    assert drawn[11, 30].any()  # the top edge is thicker
    assert drawn[50, 30].any()
    assert not drawn[48, 30].any()
    assert not drawn[30, 30].any()


def test_the_picture_has_both_panels_and_its_text() -> None:
    frame = np.full((20, 40, 3), (255, 0, 0), np.uint8)
    picture = torch.zeros(3, 30, 30)
    picture[2] = 1
    text = Text("WON", True, ["won 50% of 2 frames"], {"p pause": True, "q quit": False})
    shown = overlay.compose(frame, None, picture, None, text)
    height = 426  # panels of 2 : 1 and 1 : 1 that are 1278 wide
    assert shown[:height].shape == (height, 3 * height, 3)
    assert shown[5, 5].tolist() == [255, 0, 0]
    assert shown[5, -5].tolist() == [0, 0, 255]
    below = shown[height:].astype(int)
    orange = (below[..., 0] - below[..., 2] > 100).any(axis=1)
    assert orange[5:25].all()  # the state's ground
    assert orange[30:].any()  # the key that is on
    calm = overlay.compose(frame, None, picture, None, Text("not won", False, text.lines, {"p pause": False}))
    below = calm[height:].astype(int)
    assert not (below[..., 0] - below[..., 2] > 100).any()


@pytest.mark.parametrize("size", [(720, 1280), (64, 64), (1280, 720), (375, 1242), (721, 1281)])
def test_the_picture_fits_a_laptop_s_screen_and_a_codec(size: tuple[int, int]) -> None:
    lines = ["a line that is far too long for so narrow a picture, so that it has to be written smaller" * 2]
    shown = overlay.compose(np.zeros((*size, 3), np.uint8), None, torch.zeros(3, *size), None, Text("", False, lines))
    height, width = shown.shape[:2]
    assert width <= overlay.WIDTH + 10
    assert height <= 600
    assert height % 2 == width % 2 == 0
    assert (shown[-40:, -12:] == shown[-1, -1]).all()  # nothing is written across the edge


def test_the_outline_and_the_legend_are_where_they_belong() -> None:
    frame, corners = np.zeros((200, 200, 3), np.uint8), np.array([(20.0, 20), (180, 20), (180, 180), (20, 180)])
    legend = torch.ones(3, 30, 40)
    shown = overlay.compose(frame, corners, torch.zeros(3, 200, 200), legend, Text("", False, []))
    scale = overlay.HEIGHT / 200
    assert shown[round(20.5 * scale), overlay.HEIGHT // 2].any()
    white = np.argwhere((shown[: overlay.HEIGHT] == 255).all(axis=2))
    assert white.min(axis=0).tolist() == [overlay.HEIGHT - 40, 2 * overlay.HEIGHT - 50]
    assert white.max(axis=0).tolist() == [overlay.HEIGHT - 11, 2 * overlay.HEIGHT - 11]
    small = overlay.compose(frame[:, :20], None, torch.zeros(3, 200, 16), legend, Text("", False, []))
    assert not (small[: overlay.HEIGHT] == 255).any()  # no room for it
