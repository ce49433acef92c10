"""What the studies share: a folder that is resumed, patches that are trained in it, and tables."""

from __future__ import annotations

import copy
import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchattack import assembly, checkpoint, files, pipeline, training
from patchattack.assembly import Parts
from patchattack.errors import DivergedError, InputError, VictimError
from patchattack.job import Job
from patchattack.patch import Patch
from patchattack.reporting import latex
from patchattack.tracking import NullTracker

SETTINGS = "settings.json"


def settings_of(command: str, free: Sequence[str]) -> dict[str, Any]:
    """The overrides of a command line (two words and the overrides), but for those that begin with one of ``free``."""
    overrides = shlex.split(command)[2:]
    return dict.fromkeys(sorted(one for one in overrides if not one.lstrip("+~").startswith(tuple(free))), True)


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in ``settings.json`` what all in ``folder`` is made with; where that is noted, see that it is the same.

    Raises:
        InputError: the folder holds what was made with other settings.
    """
    path = folder / SETTINGS
    if not path.is_file():
        files.write_json(path, settings)
        return
    now, before = json.loads(files.json_text(settings)), files.read_again(path, files.read_object)
    if before != now:
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        raise InputError(
            f"{folder}: expected the settings that it was made with, got other ones: {', '.join(differing)}; "
            "repeat those, or name another folder with output=FOLDER"
        )


def train(parts: Parts, folder: Path, name: str, fabric: Any) -> Job:
    """Train a patch, or resume it where ``folder`` holds its checkpoint, and save the best as ``patch.png``.

    Args:
        parts: to train with; they stay as they are.
        folder: of this one patch.
        name: of it, in messages.
        fabric: device and processes.

    Returns:
        The job, whose attack knows the victim.

    Raises:
        DivergedError, VictimError, InterruptedRunError: what was done is kept.
    """
    resumes = (folder / checkpoint.FILE).is_file()
    parts = replace(parts, patch=copy.deepcopy(parts.patch))
    job = assembly.assemble(parts, fabric, folder if resumes else None)
    if job.journal is not None:
        job.journal.open(folder)
    progress = checkpoint.resume(job, folder) if resumes else checkpoint.begin(job)
    try:
        training.train(job, folder, NullTracker(folder, {}), progress)
    except DivergedError as stop:
        raise DivergedError(f"{stop.when} of {name}") from stop
    except VictimError as stop:
        raise VictimError(f"{name}: {stop}") from stop
    finally:
        if job.journal is not None:
            job.journal.close()
    best = Patch(progress.best.cpu().clamp(0, 1), job.patch.mask.cpu(), job.patch.size_mm)
    facts = {"victims": parts.victim.names, "step": progress.best_step, "seed": parts.seed}
    best.save(folder / "patch.png", facts | {"versions": pipeline.versions()})
    return job


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Tidy: a line for each row, an empty cell where it has no such value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(path, text.getvalue())


def publish_table(
    folder: Path, heads: Sequence[str], lines: Sequence[Sequence[str]], words: int, verdict: str, note: str
) -> str:
    """Write ``table.tex`` for papers; returns the same table as Markdown, for a README.

    Args:
        folder: of the study.
        heads: of the columns.
        lines: of cells, as text.
        words: the first columns that are text; the others are numbers.
        verdict: above the table.
        note: below it.

    Raises:
        InputError: the file cannot be written.
    """
    files.write(folder / "table.tex", latex.table(heads, [lines], words, [verdict, note]))
    return "\n".join([verdict, "", markdown(heads, lines, words), "", note])


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """A table in Markdown; arguments as of :func:`publish_table`."""
    rule = "| " + " | ".join(["---"] * words) + " |" + " ---: |" * (len(heads) - words)
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (heads, *lines)]
    return "\n".join([rows[0], rule, *rows[1:]])
