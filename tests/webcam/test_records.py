from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from patchattack.errors import InputError
from patchattack.webcam.paper import White
from patchattack.webcam.records import CORNERS, Log, Record, Store, load_frame, read

PAPER = [White(np.zeros((3, 3)))]
ELSEWHERE = dict.fromkeys(CORNERS, -99.0)  # the patch is outlined where nobody sees it


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    log = Log(tmp_path / "frames.csv")
    log.write(Record(7, 0.25, 'a "victim", named', "found", sheet=3, kind="patch", distance_m=1 / 3, success=1.0))
    log.write(Record(8, 0.5, "b", "lost"))
    columns = read(tmp_path / "frames.csv")
    log.close()
    assert columns["frame"].tolist() == [7, 8]
    assert columns["victim"].tolist() == ['a "victim", named', "b"]
    assert columns["state"].tolist() == ["found", "lost"]
    assert columns["distance_m"][0] == pytest.approx(1 / 3, rel=1e-5)
    assert math.isnan(columns["success"][1])


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file that can be written"):
        Log(tmp_path / "missing" / "frames.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(InputError, match=r"/dev/full: expected room for a line, got 'No space left"):
        Log(Path("/dev/full"))


@pytest.mark.parametrize("most", [1, 4, 5])
def test_the_store_is_bounded_and_evenly_spread(tmp_path: Path, most: int) -> None:
    store = Store(tmp_path / "frames", most)
    image = np.zeros((4, 4, 3), np.uint8)
    for number in range(40):
        store.offer(
            Record(number, number, "v", "found", **ELSEWHERE), [image, image], np.zeros((2, 4, 2)), PAPER * 2, image
        )
        assert len(store.kept) <= most
        assert len(list((tmp_path / "frames").iterdir())) == 3 * len(store.kept)
    numbers = [one.record.frame for one in store.kept]
    assert len(set(np.diff(numbers))) <= 1
    assert len(numbers) >= most / 2
    assert numbers[0] == 0


def test_what_is_kept_comes_back_in_rgb(tmp_path: Path) -> None:
    store = Store(tmp_path / "frames", 2)
    image = np.full((16, 16, 3), (200, 100, 20), np.uint8)
    store.offer(Record(0, 0, "v", "found", **ELSEWHERE), [image], np.zeros((1, 4, 2)), PAPER, image[..., ::-1])
    (again,) = store.kept[0].images()
    assert np.abs(again.astype(int) - image).max() <= 3
    assert np.abs(load_frame(store.kept[0].photo).astype(int) - image[..., ::-1]).max() <= 3
    store.kept[0].files[0].unlink()
    with pytest.raises(InputError, match=r"0000000_0\.jpg: expected an image, got no file"):
        store.kept[0].images()


@pytest.mark.parametrize(
    ("size", "reduced"), [((720, 1280), (270, 480)), ((960, 960), (320, 320)), ((90, 160), (90, 160))]
)
def test_what_the_camera_saw_is_kept_reduced_with_the_patch_s_place(
    tmp_path: Path, size: tuple[int, int], reduced: tuple[int, int]
) -> None:
    (height, width), camera = size, np.zeros((*size, 3), np.uint8)
    left, top, right, bottom = width / 2 - 0.5, height / 3 - 0.5, 0.9 * width - 0.5, 2 * height / 3 - 0.5
    corners = dict(zip(CORNERS, (left, top, right, top, right, bottom, left, bottom), strict=True))
    store = Store(tmp_path / "frames", 1)
    small = np.zeros((16, 16, 3), np.uint8)
    store.offer(Record(0, 0, "v", "found", **corners), [small], np.zeros((1, 4, 2)), PAPER, camera)
    photo = load_frame(store.kept[0].photo)
    assert photo.shape == (*reduced, 3)
    rows, columns = (np.flatnonzero((photo[..., 0] > 80).any(axis=axis)) for axis in (1, 0))
    factor = reduced[1] / width
    # The line is a pixel wide, three along the top edge.
    expected = [factor * (value + 0.5) - 0.5 for value in (left, right, top, bottom)]
    np.testing.assert_allclose((columns[0], columns[-1], rows[0], rows[-1]), expected, atol=3)


def test_nothing_is_kept_where_nothing_shall_be(tmp_path: Path) -> None:
    store = Store(tmp_path / "frames", 0)
    image = np.zeros((4, 4, 3), np.uint8)
    store.offer(Record(0, 0, "v", "found"), [image], np.zeros((1, 4, 2)), PAPER, image)
    assert not store.kept
    assert not list(tmp_path.iterdir())
