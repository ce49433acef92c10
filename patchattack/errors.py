"""The exceptions that a user is meant to read, and what their messages are made of."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path
from typing import Any

from patchattack.redaction import printable

_LONGEST = 1000  # characters of a message
# What Hydra reads as text without quotes, and what it would take for a number or nothing.
_BARE = re.compile(r"[\w./:+*@?|-]([\w./:+*@?| -]*[\w./:+*@?|-])?", re.ASCII)
_NO_TEXT = re.compile(r"[\d_.e+-]+|[+-]?(inf|nan)|null|true|false", re.IGNORECASE)


class _OneLineError(Exception):
    """Quotes names and lines of users' files, whatever is in them, on one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class InputError(_OneLineError):
    """Bad input: a key, a file, a value or a device that cannot be used.

    The message is one line and says what was expected, what was got and how to mend it. Entries print it
    without a traceback and exit with status 2.
    """


class VictimError(_OneLineError, RuntimeError):
    """A victim gave no usable answer, in the middle of the work: what is done so far is kept.

    The message is one line and says which victim, what was expected and what was got.
    """


class DivergedError(RuntimeError):
    """The loss became NaN or infinite.

    Args:
        when: as ``in step 3``.
        patch: where the last good patch is, if anywhere.
    """

    def __init__(self, when: str, patch: Path | None = None) -> None:
        kept = "" if patch is None else f"; the last good patch is {patch}"
        super().__init__(f"expected a finite loss, got NaN or infinity {when}{kept}; try a lower optimizer.lr")
        self.when = when


class InterruptedRunError(KeyboardInterrupt):
    """Ctrl-C, met after a step or a batch: what was done is kept. The message is one line and says how far it got."""


def nearest(name: str, names: list[str]) -> str:
    """The names that one misspelt name may stand for; a few of all where none is near."""
    return ", ".join(difflib.get_close_matches(name, names, n=5) or names[:5])


def one_line(error: BaseException) -> str:
    """What an error of somebody else's code says, in one line."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is that the host or the device had no room."""
    if error is None:
        return False
    torchs = isinstance(error, RuntimeError) and ("out of memory" in str(error) or "allocate memory" in str(error))
    return isinstance(error, MemoryError) or torchs or out_of_memory(error.__cause__)


def shorten(message: str) -> str:
    """``message`` on one line, and without the middle of whatever it quotes at length: the end says how to mend it."""
    message = " ".join(message.splitlines())
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST * 2 // 3]} [...] {message[-_LONGEST // 3 :]}"


def assignment(key: str, value: Any) -> str:
    """``key=value`` for the command line, quoted for the shell and, within that, for Hydra where it must be."""
    text = str(value)
    if _BARE.fullmatch(text) and not _NO_TEXT.fullmatch(text):
        return f"{key}={shlex.quote(text)}"
    return shlex.quote(f"{key}={quote(text)}")


def quote(text: str) -> str:
    """``text`` in quotes, as Hydra reads it back."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'
