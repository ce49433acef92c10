from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from patchattack import pictures
from patchattack.data import frames
from patchattack.data.frames import Frames
from patchattack.errors import InputError

REAL = (Path(__file__).parents[2] / "../shared/real/frames_udacity").resolve()


def write(path: Path, grey: int = 0, size: tuple[int, int] = (16, 24)) -> None:
    """An image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), grey, np.uint8))


def write_video(path: Path, greys: list[int], codec: str) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25.0, (64, 48))
    assert writer.isOpened()
    for grey in greys:
        writer.write(np.full((48, 64, 3), grey, np.uint8))
    writer.release()


def greys(source: Frames) -> list[list[int]]:
    """The grey of both frames of every pair."""
    batch = source.__getitems__(list(range(len(source))))
    return batch.frames[:, :, 0, 0, 0].tolist()


def refusal(root: Path, size: tuple[int, int] | None = None, stride: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        Frames(str(root), size, stride)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes blue, green, red
    for name in ("0.png", "1.png"):
        cv2.imwrite(str(tmp_path / name), red)
    assert pictures.read(tmp_path / "0.png")[:, 1, 2].tolist() == [255, 0, 0]
    assert Frames(str(tmp_path))[0].frames[0, :, :, 1, 2].tolist() == [[255, 0, 0]] * 2


def test_video_channels_are_red_green_blue(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
    for _ in range(2):
        writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))
    writer.release()
    red, green, blue = Frames(str(tmp_path / "red.avi"))[0].frames[0, 0, :, 20, 30].tolist()
    assert red > 240
    assert max(green, blue) < 15


def test_grey_images_become_three_equal_channels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 6), 77, np.uint8))
    assert torch.equal(pictures.read(tmp_path / "grey.png"), torch.full((3, 4, 6), 77, dtype=torch.uint8))


def test_pairs_follow_the_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 11):
        write(tmp_path / f"frame{number}.png", number)
    source = Frames(str(tmp_path))
    assert len(source) == 4
    assert greys(source) == [[1, 2], [2, 9], [9, 10], [10, 11]]
    assert greys(Frames(str(tmp_path), stride=3)) == [[1, 10], [2, 11]]


def test_a_batch_is_uint8_pairs_with_their_index(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.png", number)
    source = Frames(str(tmp_path))
    batch = source.__getitems__([3, 0])
    assert batch.frames.shape == (2, 2, 3, 16, 24)
    assert batch.frames.dtype == torch.uint8
    assert batch.frames.is_contiguous()
    assert batch.index.tolist() == [3, 0]
    assert batch.flow is None
    assert torch.equal(batch.frames[:1], source[3].frames)
    assert [scene.index.item() for scene in source] == [0, 1, 2, 3]


def test_a_loader_fetches_whole_batches(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.png", number)
    loader = torch.utils.data.DataLoader(Frames(str(tmp_path)), batch_size=2, collate_fn=lambda scene: scene)
    assert [scene.index.tolist() for scene in loader] == [[0, 1], [2, 3]]


def test_pairs_never_cross_folders(tmp_path: Path) -> None:
    for folder, first in (("", 0), ("drive2", 20), ("drive10", 100), ("drive10/deeper", 200)):
        for number in (first, first + 1):
            write(tmp_path / folder / f"{number}.png", number)
    assert greys(Frames(str(tmp_path))) == [[0, 1], [20, 21], [100, 101], [200, 201]]


def test_a_folder_of_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """FlyingChairs' layout: the second picture of a pair and the first of the next are of two scenes."""
    for scene in (1, 2, 10):
        for number in (1, 2):
            write(tmp_path / f"{scene:05d}_img{number}.ppm", 10 * scene + number)
    assert greys(Frames(str(tmp_path))) == [[11, 12], [21, 22], [101, 102]]
    assert "pairs are taken within each of 3 sequences, such as 00001_img1.ppm and 00001_img2.ppm" in caplog.text
    caplog.clear()
    assert len(Frames(str(tmp_path), pairs=False)) == 5
    assert len(Frames(str(tmp_path), frames=1)) == 6
    (tmp_path / "00010_img2.ppm").unlink()
    assert len(Frames(str(tmp_path))) == 4  # not the same numbers for all: nobody said that these are pairs
    assert greys(Frames(str(tmp_path), pairs=True)) == [[11, 12], [21, 22]]
    assert not caplog.records


def test_names_that_are_no_pairs_stay_one_sequence(tmp_path: Path) -> None:
    for name in ("2024-05-01_12-00-59.png", "2024-05-01_12-01-00.png", "start.png"):
        write(tmp_path / name)
    assert len(Frames(str(tmp_path))) == 2


def test_other_files_and_dot_files_are_not_frames(tmp_path: Path) -> None:
    write(tmp_path / "1.PNG", 1)
    write(tmp_path / "2.png", 2)
    write(tmp_path / "._1.png", 9)
    (tmp_path / "notes.txt").write_text("no frame")
    assert greys(Frames(str(tmp_path))) == [[1, 2]]


def test_resizing_averages_areas(tmp_path: Path) -> None:
    board = np.indices((16, 24)).sum(0) % 2 * 200
    for name in ("0.png", "1.png"):
        cv2.imwrite(str(tmp_path / name), board.astype(np.uint8))
    batch = Frames(str(tmp_path), size=(8, 12))[0]
    assert batch.size == (8, 12)
    assert (batch.frames == 100).all()


@pytest.mark.parametrize(("name", "codec"), [("film.avi", "MJPG"), ("film.mp4", "mp4v")])
def test_a_video_reads_the_same_in_any_order(tmp_path: Path, name: str, codec: str) -> None:
    shades = [(i * 67) % 211 + 20 for i in range(30)]  # neighbours in time are far apart, and codecs are off by a few
    write_video(tmp_path / name, shades, codec)
    source = Frames(str(tmp_path / name), stride=2)
    assert len(source) == len(shades) - 2
    for i in (20, 3, 27, 0, 14):
        first, second = source[i].frames[0].float().mean(dim=(1, 2, 3)).tolist()
        assert first == pytest.approx(shades[i], abs=8)
        assert second == pytest.approx(shades[i + 2], abs=8)
    assert Frames(str(tmp_path / name), size=(24, 32))[0].size == (24, 32)


def test_a_damaged_image_leaves_a_gap_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(6):
        write(tmp_path / f"{number}.png", number)
    (tmp_path / "2.png").write_bytes(b"not an image")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        source = Frames(str(tmp_path))
    assert greys(source) == [[0, 1], [3, 4]]
    assert len(caplog.records) == 1
    assert "2 image(s) cannot be used" in caplog.text
    assert "2.png: expected an image" in caplog.text


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "ppm"])
def test_a_truncated_image_is_refused(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    path = tmp_path / f"cut.{ending}"
    cv2.imwrite(str(path), noise)
    assert pictures.read(path).shape == (3, 48, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"cut\.{ending}: expected"):
        pictures.read(path)


def test_a_16_bit_image_is_not_a_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "depth.png"), np.full((4, 6), 2560, np.uint16))
    with pytest.raises(InputError, match="expected 8 bits per channel, got uint16"):
        pictures.read(tmp_path / "depth.png")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "nowhere: expected a folder of images or a video" in message
    assert "got nothing there" in message
    with pytest.raises(InputError, match=r"missing\.png: expected an image"):
        pictures.read(tmp_path / "missing.png")


def test_an_empty_folder_names_the_endings(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("")
    message = refusal(tmp_path)
    assert "got none" in message
    for ending in pictures.ENDINGS:
        assert ending in message


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(frames.os, "scandir", deny)
    assert "got 'Permission denied'" in refusal(tmp_path)


def test_a_single_image_is_no_pair(tmp_path: Path) -> None:
    write(tmp_path / "alone.png")
    assert "got a single image" in refusal(tmp_path / "alone.png")
    assert "expected two frames 1 apart in one sequence, got 1 in 1 sequence(s)" in refusal(tmp_path)
    write(tmp_path / "below" / "other.png")
    assert "got 2 in 2 sequence(s)" in refusal(tmp_path)


def test_too_large_a_stride_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png")
    message = refusal(tmp_path, stride=3)
    assert "expected two frames 3 apart" in message
    assert "lower data.stride" in message


def test_only_damaged_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    assert "0.png: expected an image" in refusal(tmp_path)
    write(tmp_path / "1.png")
    message = refusal(tmp_path)
    assert "got 1 in 1 sequence(s)" in message
    assert "0.png: expected an image" in message


def test_different_sizes_are_refused_unless_resized(tmp_path: Path) -> None:
    write(tmp_path / "a" / "0.png")
    write(tmp_path / "a" / "1.png")
    write(tmp_path / "b" / "0.png", size=(18, 20))
    write(tmp_path / "b" / "1.png", size=(18, 20))
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'b' / '0.png'}: expected 16×24 like {tmp_path / 'a' / '0.png'}, got 18×20")
    assert "data.size=[h,w]" in message
    assert len(Frames(str(tmp_path), size=(8, 8))) == 2


def test_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png")
    monkeypatch.setattr(frames, "MEMORY", 4 * 16 * 24 * 3 - 1)
    message = refusal(tmp_path)
    assert "got 4 of 16×24" in message
    assert "data.size=[h,w]" in message
    assert len(Frames(str(tmp_path), size=(15, 24))) == 3


def test_what_a_video_holds_counts_and_not_what_it_announces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "film.avi"
    write_video(path, [100] * 4, "MJPG")
    raw = bytearray(path.read_bytes())
    for field in (raw.index(b"avih") + 24, raw.index(b"strh") + 40):  # dwTotalFrames and dwLength
        assert int.from_bytes(raw[field : field + 4], "little") == 4
        raw[field : field + 4] = (614_126).to_bytes(4, "little")
    path.write_bytes(raw)
    one = Frames(str(path), frames=1).pixels[0].numel()
    monkeypatch.setattr(frames, "MEMORY", 4 * one)
    assert len(Frames(str(path), frames=1)) == 4
    monkeypatch.setattr(frames, "MEMORY", 4 * one - 1)
    assert "got 4 or more of" in refusal(path)


@pytest.mark.parametrize("name", ["notes.txt", "film.gz"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("OpenCV would show these letters as a film\n" * 50)
    message = refusal(tmp_path / name)
    assert "got another file" in message
    assert ".mp4" in message


def test_a_video_that_does_not_open_is_refused(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no film" * 100)
    assert "film.mp4: expected a video that OpenCV decodes" in refusal(tmp_path / "film.mp4")


def test_a_video_of_one_frame_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "film.avi", [100], "MJPG")
    assert "expected two frames 1 apart in one sequence, got 1" in refusal(tmp_path / "film.avi")


def test_a_truncated_video_gives_its_whole_frames_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "film.avi"
    write_video(path, [100] * 20, "MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with caplog.at_level(logging.WARNING):
        source = Frames(str(path))
    assert 2 <= len(source) < 15
    assert f"it announces 20 frames and has {len(source) + 1}" in caplog.text


def test_damaged_frames_of_a_video_leave_a_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "film.avi"
    write_video(path, [20 * n for n in range(8)], "MJPG")
    raw = bytearray(path.read_bytes())
    places = [match.start() for match in re.finditer(b"00dc", raw)][1:9]  # of the frames: one more is in the header
    raw[places[3] + 8 : places[4]] = bytes(places[4] - places[3] - 8)
    path.write_bytes(raw)
    source = Frames(str(path))
    assert source.scenes.tolist() == [[0, 1], [1, 2], [3, 4], [4, 5], [5, 6]]  # of the seven that are left
    assert "1 image(s) cannot be used, the first is frame 3 of" in caplog.text


@pytest.mark.parametrize(("size", "stride"), [(None, 0), ((0, 8), 1), ((8,), 1)])
def test_bad_arguments_are_refused(tmp_path: Path, size: tuple[int, int] | None, stride: int) -> None:
    assert "data=frames: expected stride >= 1, frames of 1 or 2 and size [h, w]" in refusal(tmp_path, size, stride)


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real/frames_udacity")
def test_real_highway_frames() -> None:
    source = Frames(str(REAL), size=(90, 160))
    assert len(source) == 109
    scenes = source.__getitems__([0, 54, 108])
    assert scenes.frames.shape == (3, 2, 3, 90, 160)
    first, second = scenes.frames.float().unbind(1)
    near, far = (first - second).abs().mean(), (first[0] - first[2]).abs().mean()
    assert 0 < near < far / 2  # neighbours in time look more alike than the drive's start and end


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real/frames_udacity")
def test_a_real_jpeg_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = shutil.copyfile(sorted(REAL.iterdir())[0], tmp_path / "cut.jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    assert cv2.imread(str(path)) is not None  # OpenCV alone would not notice
    assert "expected a whole JPEG" in refusal(tmp_path)


def test_each_frame_can_be_a_scene_of_its_own(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((4, 6, 3), 10 * number, np.uint8))
    source = Frames(str(tmp_path), frames=1)
    assert len(source) == 3
    assert source.__getitems__([0, 2]).frames.amax(dim=(1, 2, 3, 4)).tolist() == [0, 20]
    assert source[1].frames.shape == (1, 1, 3, 4, 6)
    with pytest.raises(InputError, match=r"frames of 1 or 2 .* frames=3"):
        Frames(str(tmp_path), frames=3)
