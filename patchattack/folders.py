"""The folders that commands write into: new ones, those of a run, and whose turn it is to write there."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

from patchattack import files
from patchattack.errors import InputError, assignment

# What a run writes before its first checkpoint.
_OF_A_START = ("config.yaml", "overrides.yaml", "metrics.csv", "tracker.json", "wandb")
_claims = contextlib.ExitStack()


def claim(folder: Path) -> None:
    """Keep every other process from writing into ``folder`` until :func:`release`.

    Raises:
        InputError: one does so already, or it cannot be written.
    """
    _claims.enter_context(files.claim(folder))


def release() -> None:
    """Let others write into the folders that were claimed."""
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
    from patchattack.victims import journal

    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    answers = {name for name in names if name.startswith(journal.FILE)}
    if names - answers - {*_OF_A_START}:
        raise InputError(
            f"output={folder}: expected a new folder, got that of another run; "
            f"resume it with {assignment('resume', folder)}, or name another"
        )
    for name in [*answers, "config.yaml", "overrides.yaml"]:
        (folder / name).unlink(missing_ok=True)


def run_folder(given: str | None, key: str = "run") -> Path:
    """The folder of a run that a command needs.

    Raises:
        InputError: none is given.
    """
    if given is None:
        raise InputError(f"{key}: expected the folder of a run, got none; give {key}=outputs/TASK/TIME")
    return Path(str(given))
