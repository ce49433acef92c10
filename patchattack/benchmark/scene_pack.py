"""Writing scene packs, which ``data=pack`` reads."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from patchattack import files
from patchattack.data.pack import COLUMNS, CORNERS, FORMAT, HEAD, TABLE, VERSION, Frame, is_inside, read
from patchattack.errors import InputError


def write(folder: Path, frames: Sequence[Frame], originals: Mapping[str, Path], source: str, licence: str) -> Path:
    """Write a scene pack; ``scenes.json`` comes last, so that what was begun and not finished is no pack.

    Args:
        folder: that becomes the pack.
        frames: lines of its table, in the order of scenes and frames.
        originals: of each path in the pack, the file that is copied there.
        source: where the scenes come from: a paper, an address.
        licence: under which they may be handed on.

    Returns:
        The folder.

    Raises:
        InputError: there are no frames, a line is none that can be read again, a file cannot be read or written, or
            the folder has another pack.
    """
    if not frames:
        raise InputError(f"{folder}: expected frames for a scene pack, got none")
    if (folder / HEAD).exists():
        raise InputError(f"{folder}: expected a folder without a scene pack, got one with {HEAD}; name another output")
    for name, original in originals.items():
        if not is_inside(name):
            raise InputError(f"{folder}: expected files in its folder, got {name[:200]!r}; correct the table")
        try:
            data = original.read_bytes()
        except OSError as error:
            raise InputError(f"{original}: expected a file of the pack, got '{error.strerror}'; copy it") from error
        files.write(folder / name, data)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cells(frame) for frame in frames])
    files.write(folder / TABLE, text.getvalue())
    head = {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "licence": licence,
        "scenes": len({frame.scene for frame in frames}),
        "frames": len({frame.frame for frame in frames}),
        "classes": sorted({frame.label for frame in frames} - {""}),
    }
    files.write_json(folder / HEAD, head)
    read(folder)
    return folder


def _cells(frame: Frame) -> list[str]:
    told: dict[str, Any] = {one.name: getattr(frame, one.name) for one in fields(Frame)}
    told |= dict(zip(CORNERS, told.pop("corners"), strict=True))
    # The shortest decimal that reads as the same number again; nothing where it is unknown.
    return ["" if isinstance(one := told[key], float) and math.isnan(one) else str(one) for key in COLUMNS]
