"""The folders that commands write into: new ones, those of a run, and whose turn it is to write there."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import datetime
from pathlib import Path

from patchattack import cells, files
from patchattack.errors import InputError, assignment

# What a run writes before its first checkpoint.
_OF_A_START = ("config.yaml", "overrides.yaml", "metrics.csv", "tracker.json", "wandb", cells.FILE, cells.LOG)
_claims = contextlib.ExitStack()
_claimed: set[Path] = set()


def is_first() -> bool:
    """Whether this process is the first of all that make one run, on whatever machine, or the only one: it writes."""
    return all(os.environ.get(key, "0") == "0" for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def claim(folder: Path, waits: bool = False) -> None:
    """Keep every other process from writing into ``folder`` until :func:`release`.

    Args:
        folder: that is there; one that this process has claimed stays claimed.
        waits: for a process that writes into it to end.

    Raises:
        InputError: one does so already, or it cannot be written.
    """
    if folder.resolve() in _claimed:
        return
    _claims.enter_context(claimed(folder, waits))
    _claimed.add(folder.resolve())


def claimed(folder: Path, waits: bool = False) -> contextlib.AbstractContextManager[None]:
    """The same for a part of the work; arguments and errors as of :func:`claim`, but who has it may not ask again."""
    while True:
        try:
            return files.claim(folder)
        except InputError as error:
            if not (waits and isinstance(error.__cause__, BlockingIOError)):
                raise
            time.sleep(1)


def release() -> None:
    """Let others write into the folders that were claimed."""
    _claimed.clear()
    _claims.close()


def new_folder(output: str | None, task: str, stem: Path | None = None) -> Path:
    """The folder of a new run, made and claimed: ``output``, or ``stem``, or ``outputs/<task>/<time>``.

    The folder of a run that ended before its first checkpoint is as good as a new one.

    Raises:
        InputError: it cannot be written, another process writes into it, or it holds a run already.
    """
    if output is not None:
        folder = Path(str(output))
    else:
        folder = stem or Path("outputs") / task / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        if output is not None:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = files.make_numbered(folder)
    except OSError as error:
        raise InputError(
            f"output={folder}: expected a folder that can be written, got '{error.strerror}'; name another"
        ) from error
    claim(folder)
    _check_new(folder)
    return folder


def _check_new(folder: Path) -> None:
    """Refuse the folder of a run; of one that ended before it could be resumed, forget settings and answers."""
    if not (folder / "config.yaml").exists():
        return
    if can_resume(folder):
        raise InputError(
            f"output={folder}: expected a new folder, got that of another run; "
            f"resume it with {assignment('resume', folder)}, or name another"
        )
    for name in [*_answers(folder), "config.yaml", "overrides.yaml"]:
        (folder / name).unlink(missing_ok=True)


def can_resume(folder: Path) -> bool:
    """Whether it holds a run that has come to its first checkpoint."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return "config.yaml" in names and bool(names - _answers(folder) - {*_OF_A_START})


def _answers(folder: Path) -> set[str]:
    from patchattack.victims import journal

    return {path.name for path in folder.iterdir() if path.name.startswith(journal.FILE)}


def run_folder(given: str | None, key: str = "run") -> Path:
    """The folder of a run that a command needs.

    Raises:
        InputError: none is given.
    """
    if given is None:
        raise InputError(f"{key}: expected the folder of a run, got none; give {key}=outputs/TASK/TIME")
    return Path(str(given))
