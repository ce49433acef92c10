"""What is installed does what a checkout does: the wheel in an empty folder, away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from patchattack import __version__

PROJECT = Path(__file__).parents[1]
# All in one process, which imports torch once.
PROGRAM = """
import sys
import patchattack
from patchattack import commands

for line in sys.stdin.read().splitlines():
    sys.argv = ["patchattack", *line.split()]
    commands.main()
print(patchattack.__file__)
"""
LINES = """
train attack=flow {tiny} output=run
train resume=run
evaluate run=run axes=[yaw] axes.yaw.levels=[0,30] scenes=2 workers=1
print run=run print=a4 control=true
rehearse run=run size=[360,640] lab.angles=[30] lab.frames=2 lab.distances=[0.4] drive_by.passes=1 drive_by.frames=4
compare run run
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def start(site: Path, place: Path, program: str, *words: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=place, env=environment, input=lines, capture_output=True, text=True, check=False)


def test_it_trains_evaluates_prints_rehearses_and_compares(site: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    tiny = tuple(one for one in tiny if not one.startswith(("victim", "data.size")))
    done = start(site, tmp_path, PROGRAM, lines=LINES.strip().format(tiny=" ".join((*tiny, "data.size=[64,128]"))))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(site))
    for name in ("report.html", "print/a4.pdf", "print/control_a4.pdf", "evaluation/report.html"):
        assert (tmp_path / "run" / name).is_file()
    assert len(list((tmp_path / "outputs").glob("*/*/report.html"))) == 1  # the comparison
    assert len(list((tmp_path / "outputs").glob("rehearse/*/*/report.html"))) == 2


def test_it_lists_its_commands_and_suggests_one(site: Path, tmp_path: Path) -> None:
    entry = "from patchattack.commands import main; main()"
    shown = start(site, tmp_path, entry, "--help").stdout
    scripts = {path.stem for path in (PROJECT / "scripts").glob("*.py")} | {"train"}
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if line.startswith("  "))
    assert {name.replace("-", "_") for name in lines} == scripts
    assert all(len(text) > 20 for text in lines.values())
    assert start(site, tmp_path, entry, "--version").stdout == f"patchattack {__version__}\n"
    wrong = start(site, tmp_path, entry, "eval")
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("got eval; did you mean patchattack evaluate?\n")
    assert wrong.stderr.count("\n") == 1
