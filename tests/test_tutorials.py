"""The README and the tutorials are programs: their commands and files, in their order, in one empty folder.

Everything is smaller here. A comment before a block, which no reader sees, has overrides for its commands beyond SMALL,
as in ``<!-- small: images=2 -->``: a key that one of them sets is set there alone. ``old -> new`` replaces a part of
its text.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from patchattack.reporting import ablation, compare, report, single_image, sweep, webcam

PROJECT = Path(__file__).parents[1]
PAGES = PROJECT / "docs" / "pages"
BLOCK = re.compile(
    r"(?:^<!-- small: (?P<small>.*?) -->\n)?^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TRAINING = (
    *("trainer.steps=2", "trainer.batch=2", "trainer.draws=1", "trainer.split=[0.25,0.25,0.5]", "trainer.starts=0"),
    *("trainer.validate_every=2", "trainer.test_draws=1", "trainer.accelerator=cpu", "tracker=none"),
    *("trainer.candidates=1", "trainer.stages=1", "patch.resolution=16"),
    *("trainer.validation_scenes=1", "trainer.test_scenes=2", "data.scenes=8", "data.supersampling=1"),
)
SMALL: dict[str, tuple[str, ...]] = {
    "train": TRAINING,
    "attack=flow": ("data.size=[32,64]",),
    "attack=depth": ("data.size=[32,64]",),
    "attack=detection": ("data.size=[64,128]", "attack.min_height=4"),
    "evaluate": ("scenes=2", "workers=1"),
    "defenses": ("trainer.steps=1", "defenses=[jpeg]"),
    "substitute": TRAINING,
    "transfer": TRAINING[3:],
    "ablate": TRAINING,
    "webcam": ("show=false",),
    "rehearse": ("size=[360,640]", "lab.angles=[0]", "lab.frames=2", "drive_by.passes=1", "drive_by.frames=3"),
}
OF_THE_WORLD = ("data.scenes", "data.supersampling")
ELSEWHERE = ("uv run pytest", "uv run mkdocs")  # this, and tests/test_pages.py


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, its language, its file's name, its text and what makes it small."""

    page: str
    kind: str
    title: str | None
    text: str
    small: str

    def lines(self) -> Iterator[str]:
        """The commands, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s+)# .*", "", line).strip()
            if command and not command.startswith(ELSEWHERE):
                yield command.rpartition("&& uv run ")[2]


def blocks(path: Path) -> list[Block]:
    found = BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [Block(path.name, one["kind"], one["title"], one["text"], one["small"] or "") for one in found]


def tutorials() -> list[Path]:
    """In the order of the navigation."""
    names = re.findall(r": (tutorials/\w+\.md)$", (PROJECT / "docs" / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {path.name for path in (PAGES / "tutorials").glob("*.md")} == {
        "index.md",
        *(Path(name).name for name in names),
    }
    return [PAGES / name for name in names]


class Reader:
    """Somebody who does what the pages say, in one folder."""

    def __init__(self, folder: Path, command: Callable[..., Any]) -> None:
        self.folder, self.command = folder, command
        self.typed: list[list[str]] = []

    def follow(self, block: Block) -> None:
        text, overrides = block.text, []
        for part in filter(None, block.small.split("; ")):
            old, arrow, new = part.partition(" -> ")
            assert not arrow or old in text, f"{block.page}: no line {old!r} to make smaller"
            text = text.replace(old, new) if arrow else text
            overrides += [] if arrow else shlex.split(part)
        if block.title:
            (self.folder / block.title).write_text(text)
        elif block.kind == "sh":
            commands = [shlex.split(line) for line in block.lines()]
            given = {key(word) for words in commands for word in words}
            for words in commands:
                self.type(words, [one for one in overrides if key(one) in map(key, words) or key(one) not in given])

    def type(self, words: list[str], overrides: list[str]) -> None:
        """Do what a line says, unless it was done before."""
        words = words[words[:2] == ["python", "train.py"] :]
        if words in self.typed or words[:2] == ["pip", "install"]:
            return
        self.typed.append(words)
        if words[0] == "python":
            runpy.run_path(str(self.folder / words[1]), run_name="__main__")
            return
        name, *given = words[1:] if words[0] == "patchattack" else ["train", *words[1:]]
        fixed = {*map(key, overrides)} | ({*OF_THE_WORLD} if "data" in map(key, given) else set())
        small = [one for word in (name, *given) for one in SMALL.get(word, ()) if key(one) not in fixed]
        small = [] if "resume" in map(key, given) else small
        given = [one for one in given if key(one) not in map(key, overrides)]
        outcome = self.command(*given, *small, *overrides, entry=name)
        assert outcome.status == 0, f"{shlex.join(words)}\n{outcome.err}"


def key(word: str) -> str:
    """What an override sets."""
    return word.partition("=")[0]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any]) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(folder)
        patches.setattr(sys, "path", [str(folder), *sys.path])
        # What tests/reporting looks at: figures take longest to draw.
        patches.setattr(sweep, "FORMATS", {})
        for module in (report, sweep, compare, ablation, single_image, webcam):
            patches.setattr(module, "svg", str)
        yield Reader(folder, command)
    for name in set(sys.modules) - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("page", tutorials(), ids=lambda path: path.stem)
def test_a_tutorial_does_what_it_says(page: Path, reader: Reader) -> None:
    """Later pages use the runs of earlier ones, which another process may have read."""
    for earlier in tutorials():
        for block in blocks(earlier):
            reader.follow(block)
        if earlier == page:
            break


def test_the_readme_does_what_it_says(reader: Reader) -> None:
    """What it photographs and films was rehearsed on a page."""
    for page in tutorials():
        for block in blocks(page):
            reader.follow(block)
    (reader.folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        photograph = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(reader.folder / "photos" / f"{number}.png"), photograph)
    for block in blocks(PROJECT / "README.md"):
        reader.follow(block)


def test_what_ci_looks_for_is_in_the_readme() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 150
    assert {"pip install uv && uv run train.py attack=flow", "uv run pytest"} <= set(lines)
