from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from patchattack.attacks.classification import ClassificationAttack
from patchattack.attacks.flow import FlowAttack
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.printing import fiducials
from patchattack.printing.fiducials import Layout, Sighting, layout
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.victim import Victim
from patchattack.webcam.camera_victim import CameraVictim
from patchattack.webcam.capture import Capture, Recorded, Shot
from patchattack.webcam.digital import predict
from patchattack.webcam.pose import Lens
from patchattack.webcam.records import read
from patchattack.webcam.screen import NoScreen
from patchattack.webcam.session import Session, Setup


class Keyboard:
    """A screen that nobody sees, whose keys are pressed in turn, one a picture."""

    visible = True

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.shown: list[np.ndarray] = []
        self.closed = False

    def show(self, picture: np.ndarray) -> str:
        self.shown.append(picture)
        return self.keys.pop(0) if self.keys else ""

    def close(self) -> None:
        self.closed = True


def trial(victim: Victim, name: str = "coloured") -> CameraVictim:
    attack: Any = FlowAttack() if victim.task == "flow" else ClassificationAttack("targeted", "sheet")
    return CameraVictim(name, victim, attack, victim, torch.device("cpu"))


@pytest.fixture
def setup(coloured: Callable[[], Victim], patch: Patch, sheet: Layout) -> Setup:
    victim = coloured()
    return Setup([trial(victim), trial(victim, "again")], patch, [sheet, layout((150.0, 150.0), 4)], Lens(60))


def recorded(images: list[np.ndarray | None], count: int = 1, fps: float = 10) -> Recorded:
    return Recorded((None if one is None else one[..., ::-1] for one in images), count, fps)


def measured(setup: Setup, capture: Capture, folder: Path, screen: Any = None) -> tuple[Session, dict[str, np.ndarray]]:
    session = Session(setup, capture, screen or NoScreen(), folder)
    session.run()
    return session, read(folder / "frames.csv")


def test_the_patch_wins_and_the_grey_card_does_not(
    setup: Setup, photo: Callable[..., np.ndarray], wall: np.ndarray, stranger: np.ndarray, tmp_path: Path
) -> None:
    images = [photo(), wall, photo(yaw=30.0), stranger, photo(x=0.5)]
    session, columns = measured(setup, recorded([*images]), tmp_path)
    assert columns["state"].tolist() == ["found", "lost", "found", "other", "cut"]
    assert columns["sheet"].tolist() == [3, -1, 3, 7, 3]
    won = columns["state"] == "found"
    assert columns["success"][won].tolist() == [1, 1]
    assert columns["grey_success"][won].tolist() == [0, 0]
    assert np.isnan(columns["success"][~won]).all()
    assert columns["distance_m"][won] == pytest.approx([0.6, 0.6], rel=0.03)
    assert columns["yaw"][won] == pytest.approx([0, 30], abs=3)
    assert columns["light"][won] == pytest.approx([0.8, 0.8], abs=0.01)
    assert session.live.tally.strangers == {7: 1}
    assert {path.name for path in (tmp_path / "frames").iterdir()} == {
        *("0000000_0.jpg", "0000000_camera.jpg", "0000002_0.jpg", "0000002_camera.jpg")
    }


def test_a_control_sheet_is_told_apart(setup: Setup, photo: Callable[..., np.ndarray], tmp_path: Path) -> None:
    swapped = Setup(setup.trials, setup.patch, setup.sheets[::-1], setup.lens)
    assert measured(setup, recorded([photo()]), tmp_path)[1]["kind"].tolist() == ["patch"]
    assert measured(swapped, recorded([photo()]), tmp_path)[1]["kind"].tolist() == ["control"]


def test_smaller_frames_for_the_victim_keep_the_corners_on_the_patch(
    setup: Setup, photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    smaller = Setup(setup.trials, setup.patch, setup.sheets, setup.lens, size=(180, 256))
    session, columns = measured(smaller, recorded([photo()]), tmp_path)
    assert columns["success"].tolist() == [1]
    (kept,) = session.store.kept
    assert kept.images()[0].shape == (180, 256, 3)
    expected = np.array([[columns[f"x{n}"][0], columns[f"y{n}"][0]] for n in range(4)])
    np.testing.assert_allclose((kept.corners[0] + 0.5) / (0.4, 0.5) - 0.5, expected, atol=1e-3)


def test_the_prediction_is_rendered_at_the_measured_places(
    setup: Setup, photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    unprinted = photo()  # on whose paper there is another patch: what is on paper does not matter
    session, _ = measured(setup, recorded([unprinted, photo(yaw=30.0)]), tmp_path)
    found = dict(predict(session.store.kept, setup.trials, setup.patch, session.stencil))
    assert {number: one.success for number, one in found.items()} == {0: 1.0, 1: 1.0}
    black = Patch(torch.zeros(3, 8, 8), torch.ones(1, 8, 8), (150.0, 150.0)).requires_grad_(False)
    found = dict(predict(session.store.kept, setup.trials, black, session.stencil))
    assert {number: one.success for number, one in found.items()} == {0: 0.0, 1: 0.0}


def test_a_pair_needs_the_sheet_in_both_frames_and_no_gap(
    setup: Setup, photo: Callable[..., np.ndarray], wall: np.ndarray, tmp_path: Path
) -> None:
    victim = CompactFlow("matching", "random")
    pairs = Setup([trial(victim, "flow")], setup.patch, setup.sheets, setup.lens, size=(64, 128))
    moved = photo(x=0.02)
    capture = recorded([photo(), moved, wall, photo(), moved, None, photo(), moved], 2)
    _, columns = measured(pairs, capture, tmp_path)
    assert columns["frame"].tolist() == [1, 2, 3, 4, 7]
    assert columns["state"].tolist() == ["found", "lost", "lost", "found", "found"]
    assert (capture.dropped, capture.gaps) == (1, 1)
    assert np.isfinite(columns["patch"][[0, 3, 4]]).all()
    assert columns["patch"][0] == columns["patch"][3]
    assert columns["inpainted"][0] == pytest.approx(1, abs=1e-5)  # the cosine to itself


def test_what_was_measured_is_saved_when_the_source_breaks(
    setup: Setup, photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    class Broken(Recorded):
        closed = False

        def shots(self) -> Iterator[Shot]:
            yield from super().shots()
            raise KeyboardInterrupt

        def close(self) -> None:
            self.closed = True

    capture = Broken(iter([photo()[..., ::-1]] * 2), 1, 10)
    _, columns = measured(setup, capture, tmp_path)
    assert columns["success"].tolist() == [1, 1]
    assert capture.closed


def test_keys(setup: Setup, photo: Callable[..., np.ndarray], tmp_path: Path) -> None:
    screen = Keyboard(["c", "s", "v", "r", "", "p", "s", "p", "q"])
    session, columns = measured(setup, recorded([photo()] * 20), tmp_path, screen)
    # One picture a frame, and two more while it stood still; the rest of the source was never asked for.
    assert len(columns["frame"]) == 7
    assert columns["victim"].tolist() == ["coloured"] * 3 + ["again"] * 4
    assert len(screen.shown) == 9
    assert screen.closed
    assert {path.name for path in tmp_path.glob("screenshot*")} == {"screenshot_1.png", "screenshot_2.png"}
    assert session.live.switches.version == 1
    video = cv2.VideoCapture(str(tmp_path / "recording_1.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) > 1
    left, right = slice(0, 400), slice(320, 480)
    assert (screen.shown[0][left, right] != screen.shown[1][left, right]).any()  # the grey card instead of the patch


def test_while_it_stands_still_the_keys_act_on_the_same_frame(
    setup: Setup, photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    screen = Keyboard(["p", "", "c", "c", "c", "a", "v", "p", "q"])
    session, columns = measured(setup, recorded([photo(), photo(yaw=30.0), photo()]), tmp_path, screen)
    assert columns["frame"].tolist() == [0, 1]  # a frame is measured and kept once, however long one looks at it
    assert columns["kind"].tolist() == ["patch", "drawn"]
    assert columns["victim"].tolist() == ["coloured", "again"]
    assert len(session.store.kept) == 1
    running, paused, _, grey, inpainted, again, drawing, other, _ = screen.shown
    panel = slice(0, 240)
    for picture, same in ((paused, True), (grey, False), (inpainted, False), (again, True), (other, False)):
        assert (picture[panel, :600] == running[panel, :600]).all() == same
    assert (paused != running).any()  # it says so
    assert (other != drawing).any()  # the victim's name


def test_the_window_shows_frames_without_a_sheet_too(
    setup: Setup, wall: np.ndarray, stranger: np.ndarray, tmp_path: Path
) -> None:
    screen = Keyboard([])
    measured(setup, recorded([wall, stranger]), tmp_path, screen)
    assert len(screen.shown) == 2


def test_drawing_puts_the_digital_patch_on_the_sheet(
    setup: Setup, photo: Callable[..., np.ndarray], coloured: Callable[[], Victim], tmp_path: Path
) -> None:
    black = Patch(torch.zeros(3, 8, 8), torch.ones(1, 8, 8), (150.0, 150.0)).requires_grad_(False)
    drawing = Setup([trial(coloured())], black, setup.sheets, setup.lens)
    session, columns = measured(drawing, recorded([photo()] * 3), tmp_path, Keyboard(["a"]))
    assert columns["kind"].tolist() == ["patch", "drawn", "drawn"]
    assert columns["success"].tolist() == [1, 0, 0]  # the black one hides what is printed
    assert len(session.store.kept) == 1


def test_memory_does_not_grow_with_time(
    setup: Setup, sheet: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners = np.array([(25.0, 17), (55, 17), (55, 47), (25, 47)])
    sighting = Sighting(sheet.number, corners, np.array([[0.2, 0, 25], [0, 0.2, 17], [0, 0, 1]]), 6, 0.1)
    image = np.full((64, 80, 3), 200, np.uint8)
    few, many, held = 150, 750, []

    def frames() -> Iterator[np.ndarray]:
        for number in range(many + 1):
            if number in (few, many):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
            yield image

    found = itertools.cycle([[sighting]] * 9 + [[]])  # looking for the markers holds nothing, and takes longest
    monkeypatch.setattr(fiducials, "find", lambda *_: next(found))
    lasting = replace(setup, trials=setup.trials[:1], keep=10)
    session = Session(lasting, Recorded(frames(), 1, 10), NoScreen(), tmp_path)
    tracemalloc.start()
    session.run()
    tracemalloc.stop()
    assert session.live.tally.states["found"] > 0.8 * many
    assert len(list((tmp_path / "frames").iterdir())) <= 2 * 10
    assert len((tmp_path / "frames.csv").read_text().splitlines()) == 1 + many + 1
    # NumPy's own store of small blocks fills slowly; a record that is held would be a thousand bytes a frame.
    assert held[1] - held[0] < 100 * (many - few)


def test_a_recording_needs_no_window(setup: Setup, photo: Callable[..., np.ndarray], tmp_path: Path) -> None:
    filmed = Setup(setup.trials, setup.patch, setup.sheets, setup.lens, record=True)
    measured(filmed, recorded([photo()] * 3), tmp_path)
    assert (tmp_path / "recording_1.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": (8, 64)}, r"size: expected \[height, width\] of at least 16 pixels, or null, got \[8, 64\]"),
        ({"keep": -1}, "keep: expected 0 or more stored shots, got -1"),
        ({"independent": 0}, "independent: expected seconds above 0, got 0"),
    ],
)
def test_numbers_that_cannot_be(setup: Setup, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Setup(setup.trials, setup.patch, setup.sheets, setup.lens, **given)
