"""One of many runs of a command: where it lies, how far it is, and what came of it, as its folder tells everybody."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchattack import files
from patchattack.errors import InputError

FILE, LOG = "cell.json", "log.txt"  # in a cell's folder
WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"
_STATUSES = (WAITING, RUNNING, FINISHED, FAILED)


@dataclass(frozen=True)
class Cell:
    """A run of a sweep.

    Attributes:
        folder: of the run.
        command: that runs, as ``train``.
        overrides: that make it this run.
        status: waiting, running (or killed while it was), finished or failed.
        reason: why it failed, in one line.
        score: of a finished training, on its validation scenes; lower is a stronger patch.
    """

    folder: Path
    command: str
    overrides: Sequence[str]
    status: str = WAITING
    reason: str = ""
    score: float | None = None

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.folder.name

    def write(self) -> None:
        """Tell it to everybody.

        Raises:
            InputError: the file cannot be written.
        """
        told: dict[str, Any] = asdict(self)
        del told["folder"]
        files.write_json(self.folder / FILE, told)

    @classmethod
    def read(cls, folder: Path) -> Cell | None:
        """The cell of a folder; None where there is none.

        Raises:
            InputError: its file is damaged.
        """
        path = folder / FILE
        try:
            told = files.read_object(path)
            texts = [told[key] for key in ("command", "status", "reason")]
            overrides, score = told["overrides"], told["score"]
            if not all(isinstance(one, str) for one in (*texts, *overrides)) or told["status"] not in _STATUSES:
                raise ValueError(f"expected texts and a status, got {told}")
            command, status, reason = texts
            return cls(folder, command, overrides, status, reason, None if score is None else files.number(score))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: expected what a sweep has written, got {error!r}; delete the file") from error


def read_all(sweep: Path) -> list[Cell]:
    """The cells in a sweep's folder, numbers in their names in the order of numbers.

    Raises:
        InputError: one is damaged.
    """
    folders = sorted((path.parent for path in sweep.glob(f"*/{FILE}")), key=lambda one: _natural(one.name))
    return [cell for cell in map(Cell.read, folders) if cell is not None]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def name_of(overrides: Sequence[str], keys: Sequence[str], words: Sequence[str] = ()) -> str:
    """The name of the folder that belongs to ``overrides``, whatever their order: no two sets have the same.

    Args:
        overrides: all of the run.
        keys: those that a person tells the runs apart by.
        words: that the name begins with.
    """
    split = (re.sub(r"^([^=@]*)@[^=]*", r"\1", one.lstrip("+~")).partition("=") for one in overrides)
    told = [f"{key.rpartition('.')[2]}-{value}" for key, _, value in split if key in keys]
    shown = [re.sub(r"[^\w.-]+", "-", one).strip("-.") for one in (*words, *told)]
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    return "_".join(["_".join(shown)[:80], digest]).lstrip("_")
