"""Classes by name: a victim's, the data's and what the user types."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from patchattack.errors import InputError


def plain(name: str) -> str:
    """A name as it is compared: no case, a space for an underscore or a hyphen (but that of -1 stays), 003 is 3."""
    shown = re.sub(r"(?<=\S)[\s_-]+(?=\S)", " ", name.strip()).casefold()
    return str(int(shown)) if shown.isascii() and shown.isdigit() else shown


def by_name(classes: Sequence[str]) -> dict[str, list[int]]:
    """Numbers of the classes by plain name, by synonym ("tench, Tinca tinca") and by number.

    Where a name is a synonym or a number of another class too, the name goes first.
    """
    names: dict[str, list[int]] = {}
    synonyms: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        names.setdefault(plain(name), []).append(number)
        for synonym in name.split(","):
            synonyms.setdefault(plain(synonym), []).append(number)
    return {str(number): [number] for number in range(len(classes))} | synonyms | names


def number_of(key: str, wanted: str | int, classes: Sequence[str], victim: str) -> int:
    """The number of the class that the user means by ``key=wanted``.

    Raises:
        InputError: the victim has no such class, or two of that name.
    """
    numbers = by_name(classes).get(plain(str(wanted)), [])
    if len(numbers) > 1:
        raise InputError(
            f"{key}: expected one class of victim {victim}, got {wanted}, which names its classes "
            f"{' and '.join(map(str, numbers))}; give the number"
        )
    if not numbers:
        names = {plain(name): name for name in classes}
        nearest = [names[name] for name in difflib.get_close_matches(plain(str(wanted)), names, n=5, cutoff=0)]
        raise InputError(
            f"{key}: expected a class of victim {victim}, by name or as 0 to {len(classes) - 1}, got {wanted}; "
            f"the nearest names are {', '.join(nearest)}"
        )
    return numbers[0]


def few(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
