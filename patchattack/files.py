"""Files that are whole or absent, and where the package keeps its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from patchattack.errors import InputError
from patchattack.redaction import redacted

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """The folder ``conf`` or ``assets``: beside the package in a checkout, inside it in an installed wheel."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def write(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that, killed at any moment, ``path`` holds either its old content or all of the new one.

    Text is redacted: no file has the password or token of an address.

    Raises:
        InputError: the file cannot be written (rights, full disk); the old content stays.
    """
    raw = redacted(data).encode() if isinstance(data, str) else data
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
