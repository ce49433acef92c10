"""Names of classes as users' files give them."""

from __future__ import annotations

from collections.abc import Iterable

from patchattack.errors import InputError


def class_names(given: Iterable[object], place: object) -> tuple[str, ...]:
    """The names as text: YAML and JSON read the sign ``30`` as a number.

    Args:
        given: the names in the order of their classes.
        place: whose they are, for messages.

    Raises:
        InputError: one is no name, such as a truth value: YAML makes it of on, off, yes and no, and the word is lost.
    """
    names = tuple(given)
    for number, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            raise InputError(
                f"{place}: expected the names of the classes as text, got {str(name)[:60]!r} for class {number}; "
                "quote them, as in names: ['on', 'off', 'yes', 'no']"
            )
    return tuple(map(str, names))
