"""The board of the benchmark: a page with two scores for each victim, and what each patch does beyond its controls."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchattack.controls import CONDITIONS
from patchattack.reporting.page import ARROWS, REGIONS, write_page

Row = dict[str, Any]


@dataclass(frozen=True)
class Board:
    """All that the page shows.

    Attributes:
        title: names the board.
        verdict: one sentence.
        filters: key of a line to its label, all values, and the one that is chosen at first, which may be none.
        victims: a line for each victim behind a defence at a size in a medium: those four and ``task``, ``pose``,
            ``metric``, ``label``, ``stronger``, ``knowledge``, ``link``, ``when``, ``by``; the rows ``clean``,
            ``strongest`` and ``random``, None where there is none; and ``why`` there is no strongest.
        patches: rows of patches and controls, with ``link``.
        labels: metric to what it is, in words.
        gaps: what was not measured, and why.
        repeated: what several have measured, and who.
        command: repeats it.
        versions: package to version.
    """

    title: str
    verdict: str
    filters: Mapping[str, tuple[str, Sequence[str], str]]
    victims: Sequence[Row]
    patches: Sequence[Row]
    labels: Mapping[str, str]
    gaps: Sequence[tuple[str, str]]
    repeated: Sequence[tuple[str, str]]
    command: str
    versions: Mapping[str, str]


def write_board(path: Path, board: Board) -> None:
    """Write ``board`` as one HTML file that asks nothing of any server.

    Its one script sorts and filters; the page allows no other, for the rows may be strangers'. Without it all lines
    are there.

    Raises:
        InputError: the file cannot be written.
    """
    from markupsafe import Markup

    script = Path(__file__).with_name("board.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {"board": board, "script": Markup(script), "script_hash": digest}
    write_page(path, "board.html.j2", title=board.title, names=name_of, regions=REGIONS, arrows=ARROWS, **values)


def name_of(condition: str) -> str:
    """A condition in words."""
    return CONDITIONS.get(condition, condition)
