"""The exceptions that a user is meant to read, and what their messages are made of."""

from __future__ import annotations

import difflib

from patchattack.redaction import printable


class InputError(Exception):
    """Bad input: a key, a file, a value or a device that cannot be used.

    The message is one line and says what was expected, what was got and how to mend it. Entries print it
    without a traceback and exit with status 2.
    """


class VictimError(RuntimeError):
    """A victim gave no usable answer, in the middle of the work: what is done so far is kept.

    The message is one line and says which victim, what was expected and what was got.
    """


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
