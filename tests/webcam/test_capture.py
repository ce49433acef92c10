from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from patchattack.errors import InputError
from patchattack.webcam import capture
from patchattack.webcam.capture import LiveCapture, Recorded, open_source


def image(value: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """BGR, all of it blue."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0] = value
    return pixels


class Device:
    """Gives a frame for every permit, frame ``n`` at ``times[n]``; fails when it is told to, and hangs otherwise."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.fails = self.released = False
        self.given = 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.permits.acquire()
        if self.fails:
            return False, None
        self.given += 1
        return True, image((self.given - 1) % 256)

    def release(self) -> None:
        self.released = True

    def give(self, live: LiveCapture, count: int) -> None:
        """``count`` frames, all of which have arrived afterwards."""
        wanted = live.frames + count
        self.permits.release(count)
        limit = time.monotonic() + 5
        while live.frames < wanted:
            assert time.monotonic() < limit
            time.sleep(0.001)

    def unplug(self) -> None:
        self.fails = True
        self.permits.release()


@pytest.fixture
def device() -> Iterator[Device]:
    """Unplugged in the end, so that no thread is left."""
    made = Device()
    yield made
    made.unplug()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the capture takes for the time."""
    now = [0.0]
    monkeypatch.setattr(capture, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_every_recorded_frame_comes_in_order_and_in_rgb() -> None:
    source = Recorded(iter([image(n) for n in range(5)]), 1, 10)
    shots = list(source.shots())
    assert [(shot.number, shot.time) for shot in shots] == [(n, n / 10) for n in range(5)]
    assert [shot.images[0][0, 0].tolist() for shot in shots] == [[0, 0, n] for n in range(5)]
    assert (source.frames, source.dropped, source.gaps, source.faults) == (5, 0, 0, [])


def test_recorded_pairs_never_cross_a_damaged_frame() -> None:
    source = Recorded(iter([image(0), image(1), None, image(3), image(4), image(5, (4, 4)), image(6, (4, 4))]), 2, 10)
    pairs = [tuple(int(one[0, 0, 2]) for one in shot.images) for shot in source.shots()]
    assert pairs == [(0, 1), (3, 4), (5, 6)]
    assert (source.dropped, source.gaps) == (1, 2)


def test_the_newest_frame_is_taken_and_the_others_are_counted(device: Device) -> None:
    live = LiveCapture(device, 1, timeout=5)
    shots = live.shots()
    device.give(live, 1)
    assert next(shots).number == 0
    device.give(live, 7)
    shot = next(shots)
    assert (shot.number, shot.images[0][0, 0].tolist()) == (7, [0, 0, 7])
    assert live.dropped == 6
    device.give(live, 1)
    assert next(shots).number == 8
    assert live.dropped == 6


@pytest.mark.usefixtures("clock")
def test_memory_does_not_grow_while_nobody_takes_frames(device: Device) -> None:
    live = LiveCapture(device, 2, timeout=5)
    device.give(live, 500)
    assert len(live._held) == 2
    assert len(live._times) <= capture.INTERVALS + 1
    shot = next(live.shots())
    assert [int(one[0, 0, 2]) for one in shot.images] == [498 % 256, 499 % 256]
    assert live.dropped == 498


def test_a_live_pair_is_of_neighbours(device: Device, clock: list[float]) -> None:
    live = LiveCapture(device, 2, timeout=5)
    for number in range(6):
        clock[0] = number / 30
        device.give(live, 1)
    clock[0] = 8 / 30  # frames 6 and 7 never came
    device.give(live, 1)
    assert live.gaps == 1
    clock[0] = 9 / 30
    device.give(live, 1)
    shot = next(live.shots())
    assert [int(one[0, 0, 2]) for one in shot.images] == [6, 7]
    assert shot.time == pytest.approx(0.3)


def test_a_camera_that_is_unplugged_ends_after_its_last_frame(device: Device) -> None:
    live = LiveCapture(device, 1, timeout=5)
    device.give(live, 2)
    device.unplug()
    live._thread.join(timeout=5)
    assert [shot.number for shot in live.shots()] == [1]
    assert live.faults == ["it stopped answering, after 2 frames"]
    live.close()
    assert device.released


def test_a_stream_that_stalls_is_given_up(device: Device) -> None:
    live = LiveCapture(device, 1, timeout=0.05)
    device.give(live, 1)
    assert [shot.number for shot in live.shots()] == [0]
    assert live.faults == ["no new frame for 0.05 s, after 1 frames"]


def test_a_video_is_read_to_its_end(tmp_path: Path, film: Callable[..., Path]) -> None:
    path = film(tmp_path / "film.avi", [np.full((32, 32, 3), (200, 40 * n, 20), np.uint8) for n in range(4)], fps=20)
    shots = list(open_source(str(path), 2).shots())
    assert [shot.number for shot in shots] == [1, 2, 3]
    assert shots[2].time == pytest.approx(3 / 20)
    assert np.abs(shots[2].images[0][16, 16].astype(int) - (200, 80, 20)).max() < 12


def test_the_damaged_frames_of_a_video_are_left_out(tmp_path: Path, film: Callable[..., Path]) -> None:
    path = film(tmp_path / "film.avi", [np.full((32, 32, 3), 20 * n, np.uint8) for n in range(12)])
    raw = bytearray(path.read_bytes())
    places = [match.start() for match in re.finditer(b"00dc", raw)][1:9]  # of the frames: one more is in the header
    for number in (0, 5, 6):
        raw[places[number] + 8 : places[number + 1]] = bytes(places[number + 1] - places[number] - 8)
    path.write_bytes(raw)
    source = open_source(str(path), 2)
    pairs = [tuple(round(one.mean() / 20) for one in shot.images) for shot in source.shots()]
    assert pairs == [(1, 2), (2, 3), (3, 4), (7, 8), (8, 9), (9, 10), (10, 11)]
    assert (source.frames, source.dropped, source.gaps) == (12, 3, 1)
    assert source.faults == ["3 of 12 frames are damaged"]


def test_a_video_that_is_cut_off_is_not_taken_for_a_whole_one(tmp_path: Path, film: Callable[..., Path]) -> None:
    path = film(tmp_path / "film.avi", [np.full((32, 32, 3), 20 * n, np.uint8) for n in range(12)])
    raw = path.read_bytes()
    path.write_bytes(raw[: [match.start() for match in re.finditer(b"00dc", raw)][6]])  # the first is in the header
    source = open_source(str(path), 1)
    assert len(list(source.shots())) == 5
    assert source.faults == ["the video announces 12 frames and has 5: it is cut off or damaged"]
    source = open_source(str(path), 1)
    next(source.shots())
    assert source.faults == []  # of one that nobody has read to its end


@pytest.mark.parametrize(
    ("announced", "seconds", "cut"), [(300, 3.9, True), (300, 9.9, False), (float("nan"), 1, False)]
)
def test_where_frames_are_not_counted_the_time_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: float, seconds: float, cut: bool
) -> None:
    class Film:
        """A hundred frames of a film that has 30 a second at most."""

        def __init__(self, _: str) -> None:
            self.left = 100

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.left -= 1
            return (True, image(0)) if self.left >= 0 else (False, None)

        def get(self, what: int) -> float:
            known = {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FRAME_COUNT: announced, cv2.CAP_PROP_POS_MSEC: 1000 * seconds}
            return known[what]

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Film)
    (tmp_path / "film.webm").touch()
    source = open_source(str(tmp_path / "film.webm"), 1)
    assert len(list(source.shots())) == 100
    assert bool(source.faults) is cut


def test_a_mirrored_picture_is_turned_back(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :2] = 255
    cv2.imwrite(str(tmp_path / "0.png"), picture)
    (shot,) = open_source(str(tmp_path), 1, mirrored=True).shots()
    assert (shot.images[0] == picture[:, ::-1]).all()


def test_a_camera_is_named_by_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def opened(number: int) -> object:
        asked.append(number)
        reads = iter([(True, image(0))])  # and nothing more
        return SimpleNamespace(
            isOpened=lambda: True, set=lambda *_: True, read=lambda: next(reads, (False, None)), release=lambda: None
        )

    monkeypatch.setattr(cv2, "VideoCapture", opened)
    link = tmp_path / "usb-Some_Camera-video-index0"
    link.symlink_to("/dev/video62")
    for source in ("/dev/video61", str(link)):
        assert isinstance(open_source(source, 1), LiveCapture)
    assert asked == [61, 62]


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b2.png", "a1.jpg"):
        cv2.imwrite(str(tmp_path / name), image(int(name[1:-4])))
    (tmp_path / "b3.png").write_text("not a picture")
    (tmp_path / "notes.txt").write_text("nor this")
    source = open_source(str(tmp_path), 1, fps=2)
    assert [(int(shot.images[0][0, 0, 2]), shot.time) for shot in source.shots()][1:] == [(2, 0.5), (10, 1.5)]
    assert source.dropped == 1


@pytest.mark.parametrize("source", [63, "63", "/dev/video63"])
def test_no_camera(source: int | str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        InputError, match=rf"^source={source}: expected a camera, got none .* a video, a folder or a stream$"
    ):
        open_source(source, 1)
    assert capfd.readouterr().err == ""


def test_a_camera_that_gives_no_frame_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = SimpleNamespace(isOpened=lambda: True, set=lambda *_: True, read=lambda: (False, None), release=lambda: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: busy)
    with pytest.raises(InputError, match="gives no frame; close the program that uses it"):
        open_source(0, 1)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("not a video")
    for source, message in (
        (str(tmp_path / "missing.mp4"), "expected a camera's number, a video, a folder or an address, found no"),
        (str(tmp_path / "text.mp4"), "expected a video that OpenCV can decode"),
        (str(tmp_path / "empty"), "expected a folder of images"),
        ("rtsp://me:secret@127.0.0.1:9/x", r"got no answer from rtsp://\*\*\*@127.0.0.1:9/x"),
    ):
        with pytest.raises(InputError, match=message):
            list(open_source(source, 1).shots())
    with pytest.raises(InputError, match="timeout and fps above 0"):
        open_source(0, 1, timeout=0)
