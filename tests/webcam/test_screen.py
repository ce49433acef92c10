from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from patchattack.errors import InputError
from patchattack.webcam import overlay
from patchattack.webcam.screen import Recorder, Window


@pytest.mark.skipif(sys.platform != "linux", reason="displays are named by DISPLAY on Linux")
def test_without_a_display_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(InputError, match=r"^show=true: expected a display .*; use show=false$"):
        Window()


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
    drawn = overlay.outlined(image, np.array([(10.0, 10), (50, 10), (50, 50), (10, 50)]))
    assert (image == 0).all()
    assert drawn[11, 30].any()  # the top edge is thicker
    assert drawn[50, 30].any()
    assert not drawn[48, 30].any()
    assert not drawn[30, 30].any()


def test_the_picture_has_both_panels_and_its_text() -> None:
    frame = np.full((20, 40, 3), (255, 0, 0), np.uint8)
    picture = torch.zeros(3, 30, 30)
    picture[2] = 1
    shown = overlay.compose(frame, picture, ["WON", "p pause"])
    assert shown.shape == (overlay.HEIGHT + 60, 3 * overlay.HEIGHT, 3)
    assert shown[5, 5].tolist() == [255, 0, 0]
    assert shown[5, -5].tolist() == [0, 0, 255]
    assert (shown[overlay.HEIGHT :] > 100).any()
