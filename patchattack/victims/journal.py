"""What a black-box (query-only) victim has said in a run, so that a run that is interrupted asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError, one_line

FILE = "answers.sqlite"
Ask = Callable[[Tensor], Any]
_open: ContextVar[Journal | None] = ContextVar("journal", default=None)


def current() -> Journal | None:
    """That of the run that asks now, which a victim tells what it hears, piece by piece; None where no run asks."""
    return _open.get()


class AnswersFile:
    """An SQLite file that is written as answers come. Where somebody deletes it, it is written again.

    Args:
        path: of the file, made where there is none.
        tables: that it has, as ``name (columns)``.

    Raises:
        InputError: by every method, too: it cannot be read or written, or is something else.
    """

    def __init__(self, path: Path, *tables: str) -> None:
        self.path = path
        self._file = self._connect()
        for table in tables:
            self.write(f"CREATE TABLE IF NOT EXISTS {table}")

    def _connect(self) -> sqlite3.Connection:
        with self._one_line_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # In this mode a transaction is safe from a killed process without waiting for the disk.
            file = sqlite3.connect(self.path, isolation_level=None)
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
        return file

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """What a statement finds."""
        with self._one_line_errors():
            return self._file.execute(statement, values).fetchall()

    def first(self, statement: str, *values: Any) -> Any:
        """The first column of the first row that a statement finds, or None."""
        rows = self.rows(statement, *values)
        return rows[0][0] if rows else None

    def write(self, statement: str, *values: Any) -> None:
        """Let a statement change the file."""
        if not self.path.exists():
            deleted, self._file = self._file, self._connect()
            with self._one_line_errors():
                deleted.backup(self._file)
                deleted.close()
        self.rows(statement, *values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """What goes wrong, in one line."""
        try:
            yield
        except (OSError, UnicodeError, sqlite3.Error) as error:
            raise InputError(
                f"{self.path}: expected a file of answers that can be read and written, got '{one_line(error)}'; "
                "free space, or delete it to ask again"
            ) from error


class Journal:
    """Answers in the order in which they came, each written before it is used.

    Between two checkpoints a run is the same every time: what is asked after a checkpoint was asked in this order
    before, and is answered from the journal until that ends. Answers that a run needs again and again, those on clean
    frames, are kept for good. What a victim hears in pieces, request by request, is written piece by piece, and each is
    there until the answer that it is part of is whole.

    What cannot be known is a request whose answer had not arrived, and had not been written, when the run was killed:
    it is sent again, whether the victim had seen it or not. Until :meth:`open`, before a run has a folder, the journal
    is in memory, and whoever ends the run then begins anew.
    """

    def __init__(self) -> None:
        self._file: AnswersFile | None = None
        self._kept: dict[bytes, bytes] = {}  # until there is a file
        self._past: deque[tuple[int, bytes]] = deque()  # rows that an interrupted run wrote after its checkpoint

    def open(self, folder: Path) -> None:
        """Go on in the file of the run ``folder``, or begin it; nothing where that is done.

        Raises:
            InputError: there is something else in its place, or it cannot be written.
        """
        if self._file is not None:
            return
        self._file = AnswersFile(
            folder / FILE,
            "kept (question BLOB PRIMARY KEY, answer BLOB)",
            "recent (place INTEGER PRIMARY KEY, question BLOB, answer BLOB)",
            "pieces (question BLOB PRIMARY KEY, answer BLOB)",
        )
        for question, answer in self._kept.items():
            self._file.write("INSERT OR IGNORE INTO kept VALUES (?, ?)", question, answer)
        self._past.extend(self._file.rows("SELECT place, question FROM recent ORDER BY place"))

    @contextmanager
    def asks(self) -> Iterator[None]:
        """The run asks: this is the :func:`current` journal inside."""
        token = _open.set(self)
        try:
            yield
        finally:
            _open.reset(token)

    def keep(self, frames: Tensor, ask: Ask, about: str = "") -> Any:
        """The answer to ``frames [B, T, 3, H, W]``, asked once in the life of the run.

        Args:
            frames: or whatever else tensor ``ask`` takes.
            ask: the victim.
            about: which one it is, where several are asked the same.
        """
        question = _digest(frames, about)
        if (known := self._look_up(question)) is not None:
            return self._read(known, frames)
        with self.asks():
            found = ask(frames)
        if self._file is None:
            self._kept[question] = packed(found)
        else:
            self._file.write("INSERT INTO kept VALUES (?, ?)", question, packed(found))
            self._forget_pieces()
        return found

    def _look_up(self, question: bytes) -> bytes | None:
        if self._file is None:
            return self._kept.get(question)
        return self._file.first("SELECT answer FROM kept WHERE question = ?", question)

    def _read(self, answer: Any, like: Tensor) -> Any:
        try:
            return unpacked(answer, like)
        except Exception as error:  # of whatever stands where an answer was
            assert self._file is not None
            raise InputError(
                f"{self._file.path}: expected the answers of a run, got '{one_line(error)}'; delete it to ask again"
            ) from error

    def note(self, frames: Tensor, ask: Ask) -> Any:
        """The answer to ``frames [B, T, 3, H, W]``, to be there until the next checkpoint."""
        if self._file is None:
            return ask(frames)
        question = _digest(frames, "")
        if self._past:
            place, asked = self._past.popleft()
            if asked == question:
                return self._read(self._file.first("SELECT answer FROM recent WHERE place = ?", place), frames)
            # These led to the checkpoint, which was written just before the run was killed.
            self._file.write("DELETE FROM recent WHERE place >= ?", place)
            self._past.clear()
        with self.asks():
            found = ask(frames)
        self._file.write("INSERT INTO recent (question, answer) VALUES (?, ?)", question, packed(found))
        self._forget_pieces()
        return found

    def recall(self, question: bytes) -> bytes | None:
        """The answer to a piece of what is asked now, or None."""
        if self._file is None:
            return None
        return self._file.first("SELECT answer FROM pieces WHERE question = ?", question)

    def remember(self, question: bytes, answer: bytes) -> None:
        """Write down the answer to a piece of what is asked now."""
        if self._file is not None:
            self._file.write("INSERT OR REPLACE INTO pieces VALUES (?, ?)", question, answer)

    def _forget_pieces(self) -> None:
        assert self._file is not None
        self._file.write("DELETE FROM pieces")

    def checkpoint(self) -> None:
        """What was noted is needed no more."""
        self._past.clear()
        if self._file is not None:
            self._file.write("DELETE FROM recent")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def of_run(folder: Path | None) -> Journal:
    """The journal of the run ``folder``, if it has one; else a new one."""
    journal = Journal()
    if folder is not None and (folder / FILE).exists():
        journal.open(folder)
    return journal


def _digest(frames: Tensor, about: str) -> bytes:
    digest = hashlib.sha256(f"{about}{tuple(frames.shape)}".encode())
    digest.update(frames.detach().cpu().contiguous().numpy().data)
    return digest.digest()


def packed(answer: Any) -> bytes:
    """A victim's output (a tensor, or of an ensemble a tuple of outputs and None) as bytes that are data only."""
    tensors: dict[str, Tensor] = {}

    def apart(part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors[str(len(tensors))] = part.detach().cpu().contiguous()
            return len(tensors) - 1
        return None if part is None else [apart(one) for one in part]

    shape = files.json_text(apart(answer))
    return safetensors.torch.save(tensors, {"shape": shape})


def unpacked(data: bytes, like: Tensor) -> Any:
    """The output that :func:`packed` made ``data`` of, on the device of ``like``."""
    length = int.from_bytes(data[:8], "little")
    shape = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["shape"])
    tensors = safetensors.torch.load(data)

    def together(part: Any) -> Any:
        if isinstance(part, int):
            return tensors[str(part)].to(like.device)
        return None if part is None else tuple(together(one) for one in part)

    return together(shape)
