from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    assert (files.package_folder("conf") / "train.yaml").is_file()
    assert files.package_folder("assets").is_dir()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"mean": math.nan, "n": 3}, '{"mean": null, "n": 3}'),
        ([math.inf, -math.inf, 1.5], "[null, null, 1.5]"),
        ({"rows": [{"low": (1, math.nan)}]}, '{"rows": [{"low": [1, null]}]}'),
        ({"name": "图ü"}, '{"name": "图ü"}'),
    ],
)
def test_json_has_no_numbers_that_json_does_not_know(tmp_path: Path, data: Any, text: str) -> None:
    assert files.json_text(data) == text
    files.write_json(tmp_path / "x.json", data)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == json.loads(text)


def test_rows_come_back_with_their_gaps(tmp_path: Path) -> None:
    files.write_json(tmp_path / "rows.json", [{"metric": "a", "mean": math.nan, "n": 0}])
    (row,) = files.read_rows(tmp_path / "rows.json")
    assert math.isnan(row.pop("mean"))
    assert row == {"metric": "a", "n": 0}


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"a": 1}', "[1]", "\udcff", "1" * 5000])
def test_what_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"."):
        files.read_rows(tmp_path / "rows.json")
    with pytest.raises(InputError, match=r"rows.json: expected what a run has written"):
        files.read_again(tmp_path / "rows.json", files.read_rows)


@pytest.mark.parametrize("value", ["12", True, None, [1], math.nan, math.inf, 10**400, 0.05, 1e-320, 1e6])
def test_what_is_no_number_of_its_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a"):
        files.number(value, 0.1, 1e5)


@pytest.mark.parametrize("values", ["12", [1], [1, 2, 3], {"0": 1, "1": 2}, ["1", "2"], None])
def test_what_is_no_list_of_so_many_numbers_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="expected a"):
        files.numbers(values, 2)


def test_numbers_are_read_as_they_are() -> None:
    assert files.numbers([1, 2.5], 2, 0, 3) == (1.0, 2.5)
    assert files.integer(3) == 3
    for value in (1.0, True, -1, "1"):
        with pytest.raises(ValueError, match="expected an integer >= 0"):
            files.integer(value)


def test_no_two_get_the_same_numbered_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(files.make_numbered, [tmp_path / "a" / "run"] * 40))
    assert sorted(made) == sorted((tmp_path / "a").iterdir())
    assert {path.name for path in made} == {"run", *(f"run-{number}" for number in range(2, 41))}


def test_a_folder_is_claimed_once_until_it_is_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with files.claim(folder), pytest.raises(InputError, match="got one that another process works in"):
        files.claim(folder)
    assert list(folder.iterdir()) == []
    with files.claim(folder):
        shutil.rmtree(folder)  # by somebody else: nothing is left to let go


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process to kill")
def test_the_claim_of_a_process_dies_with_it(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        child = os.fork()
    if child == 0:
        files.claim(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock").exists()
    with files.claim(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"root": "caf\udce9"})
    assert files.read_json(tmp_path / "a.json") == {"root": "caf\udce9"}
    assert "\\udce9" in (tmp_path / "a.json").read_text(encoding="utf-8")
