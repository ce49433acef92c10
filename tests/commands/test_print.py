from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from patchattack.commands import print as print_command
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.printing.fiducials import load_layouts
from patchattack.printing.sheet import Sheet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    patch = Patch.create(shape="circle", resolution=16, size_mm=100)
    patch.save(tmp_path / "night" / "patch.png", {"victims": ["pwc", "raft"], "config": "0123456789ab"})
    return tmp_path / "night"


def test_sheets_of_a_run(folder: Path, command: Callable[..., Any]) -> None:
    done = command(
        f"run={folder}", "print=letter", "print.number=2", "control=true", "blank=true", "png=true", entry="print"
    )
    assert (done.status, done.err) == (0, "")
    stems = ("letter", "control_letter", "blank_letter")
    files = {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")} | {"layout.json"}
    assert {path.name for path in (folder / "print").iterdir()} == files
    assert all(str(folder / "print" / name) in done.out for name in files)
    texts = [PdfReader(folder / "print" / f"{stem}.pdf").pages[0].extract_text() for stem in stems]
    for text, number in zip(texts, (2, 3, 2), strict=True):
        for words in ("run night", "config 0123456789ab", "100 × 100 mm", f"sheet {number}"):
            assert words in text
    assert "Patch against pwc + raft" in texts[0]
    assert "Control: random patch" in texts[1]
    layouts = load_layouts(folder / "print" / "layout.json")
    assert [(one.number, one.size_mm) for one in layouts] == [(2, (100, 100)), (3, (100, 100))]


def run(**parts: Any) -> None:
    nothing = {
        "run": None,
        "patch": None,
        "control": False,
        "blank": False,
        "png": False,
        "proof": None,
        "output": None,
    }
    print_command.run(nothing | {"print": Sheet()} | parts)


def test_sheet_of_a_file_in_another_folder(folder: Path, tmp_path: Path) -> None:
    run(patch=str(folder / "patch.png"), print=Sheet([180, 260]), output=str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"180x260mm.pdf", "layout.json"}


def test_what_to_print_must_be_given_once(folder: Path) -> None:
    for given in ({}, {"run": str(folder), "patch": "patch.png"}):
        with pytest.raises(InputError, match="run: expected the folder of a run, or patch=FILE, got neither or both"):
            run(**given)


def test_folder_without_a_patch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"patch: expected a readable image file, got .*patch\.png"):
        run(run=str(tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_printed_is_said_in_one_line(folder: Path, command: Callable[..., Any]) -> None:
    done = command(f"run={folder}", "print=a5", entry="print")
    assert done.status == 2
    assert done.err == "patchattack: print: expected one of a3, a4, custom, letter, got a5\n"
