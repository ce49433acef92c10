"""Files that are whole or absent, folders that one process writes into, and where the package keeps its own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from patchattack.errors import InputError
from patchattack.redaction import redact

_PACKAGE = Path(__file__).parent
_LOCK = ".lock"  # in a folder that is being written into


def package_folder(folder: str) -> Path:
    """The folder ``conf`` or ``assets``: beside the package in a checkout, inside it in an installed wheel."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def write(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that, killed at any moment, ``path`` holds either its old content or all of the new one.

    Text is redacted: no file has the password or token of an address.
    Folders that are not there are made, and so are those that were deleted during the work.

    Raises:
        InputError: the file cannot be written (rights, full disk); the old content stays.
    """
    # A file's name may hold bytes that are no text: JSON reads them back, and all else shows them.
    raw = redact(data).encode(errors="backslashreplace") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path}: expected a place to write {len(raw):,} bytes, got '{error.strerror}'; "
            "free space or name another folder with output=FOLDER"
        ) from error


def json_text(data: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """``data`` as JSON, which has no NaN and no infinity: null stands for a number that is not known."""
    return json.dumps(_finite(data), indent=indent, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as :func:`json_text` has it, by :func:`write`.

    Raises:
        InputError: as :func:`write`.
    """
    write(path, json_text(data, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is no JSON, or no text in UTF-8.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("brackets within brackets without end") from error


def read_rows(path: Path, text: Sequence[str] = (), numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A table that was written as JSON: a list of objects, where null is NaN again.

    Args:
        path: of the file.
        text: columns that hold text in every row.
        numbers: columns that hold numbers, or null, in every row.

    Raises:
        ValueError: it is none, or has no such columns.
        OSError: it cannot be read.
    """
    return check_rows(read_json(path), text, numbers)


def check_rows(rows: Any, text: Sequence[str] = (), numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What a file holds, as :func:`read_rows` reads it.

    Raises:
        ValueError: it is no table, or has no such columns.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects")
    for row in rows:
        if not all(isinstance(row.get(key), str) for key in text):
            raise ValueError(f"expected {', '.join(text)} as text, got {row}")
        for value in (row.get(key, "nothing") for key in numbers):
            if value is not None:
                number(value)
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: it holds none.
        OSError: it cannot be read.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError("expected an object")
    return found


def read_again(path: Path, read: Callable[[Path], Any] = read_json) -> Any:
    """What an earlier call of the same command has written.

    Raises:
        InputError: it is damaged.
    """
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected what a run has written, got {error!r}; name another output") from error


def number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A number that a file holds: no text, no truth, finite, and in [``low``, ``high``].

    Raises:
        ValueError: it is none.
    """
    most = sys.float_info.max  # which integers of JSON can exceed
    if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
        raise ValueError(f"expected a finite number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"expected a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def integer(value: Any, low: int = 0) -> int:
    """A whole number that a file holds, ``low`` or above.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or value < low:
        raise ValueError(f"expected an integer >= {low}, got {value!r}")
    return value


def numbers(values: Any, count: int, low: float = -math.inf, high: float = math.inf) -> tuple[float, ...]:
    """A list of ``count`` numbers as :func:`number` takes them.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"expected a list of {count} numbers, got {values!r}")
    return tuple(number(value, low, high) for value in values)


def make_numbered(stem: Path) -> Path:
    """A new folder ``stem``, or ``stem-2`` and so on where there is one: no two processes get the same.

    Raises:
        OSError: it cannot be made.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    for count in range(1, 1000):
        folder = stem if count == 1 else stem.with_name(f"{stem.name}-{count}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise FileExistsError(0, "there are 1,000 of them", str(stem))


def claim(folder: Path) -> AbstractContextManager[None]:
    """``folder`` for this process alone, until the context ends or the process.

    The operating system lets go of the lock of a process that dies, however it does. Where a file system knows no
    locks there is none.

    Raises:
        InputError: another process writes into it, or it cannot be written.
    """
    try:
        descriptor = _open_lock(folder / _LOCK)
    except BlockingIOError as error:
        raise InputError(
            f"{folder}: expected a folder that nothing else writes into, got one that another process works in; "
            "wait for it, or name another folder with output=FOLDER"
        ) from error
    except OSError as error:
        raise InputError(
            f"{folder}: expected a folder that can be written, got '{error.strerror}'; name another"
        ) from error
    return _hold(folder / _LOCK, descriptor)


@contextlib.contextmanager
def _hold(path: Path, descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows deletes no open file: there the empty file stays
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                path.unlink()
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Descriptor of the file ``path``, locked.

    Raises:
        BlockingIOError: somebody else has it.
        OSError: it cannot be written.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_descriptor(descriptor)
            # Whoever had it may have deleted the file in between: a lock on that would keep nobody out.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock_descriptor(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # of a file system without locks
        return
