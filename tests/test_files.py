from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from patchattack import files
from patchattack.errors import InputError


def test_text_and_bytes_come_back(tmp_path: Path) -> None:
    files.write(tmp_path / "text", "Größe: 1 µm\n")
    files.write(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "Größe: 1 µm\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "text"]


def test_folders_are_made_and_old_content_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    files.write(path, "old and longer")
    files.write(path, "new")
    assert path.read_text() == "new"


def full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    files.write(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught:
        files.write(path, b"x" * 12345)
    assert str(caught.value) == (
        f"{path}: expected a place to write 12,345 bytes, got 'No space left on device'; "
        "free space or name another folder with output=FOLDER"
    )
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["results.json"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError):
        files.write(tmp_path / "results.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_what_is_killed_half_way_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new content is complete under another name before it takes the place of the old."""
    path = tmp_path / "results.json"
    files.write(path, "old")
    seen = []

    def killed(self: Path, target: Path) -> None:
        seen.append((target, self.read_text(), target.read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, "new")
    assert seen == [(path, "new", "old")]
    assert path.read_text() == "old"


def test_a_folder_that_is_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"taken/x: expected a place to write 1 bytes, got '(File exists|Not a dir)"):
        files.write(tmp_path / "taken" / "x", "y")


def test_what_the_package_ships_is_found() -> None:
    assert (files.shipped("conf") / "train.yaml").is_file()
    assert files.shipped("assets").is_dir()
