"""What an importer is, and what it shares with the others: files that somebody else has published become ours."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from patchattack import pictures
from patchattack.benchmark import patch_file
from patchattack.benchmark.patch_file import PatchFile
from patchattack.errors import InputError
from patchattack.patch import Patch, ellipse, read_image


@dataclass(frozen=True)
class Details:
    """What the files do not say, and whoever imports them does.

    Attributes:
        size_mm: width of a patch on paper; its height follows from its pixels.
        task, goal, target, victims, defenses, licence, source: of patches whose source says nothing of them.
        frames: folder of the pictures that a table speaks of.
    """

    size_mm: float | None = None
    task: str | None = None
    goal: str | None = None
    target: str | None = None
    victims: Sequence[str] = ()
    defenses: Sequence[str] = ()
    licence: str | None = None
    source: str | None = None
    frames: Path | None = None


class Importer(ABC):
    """One published source. Nothing of it comes with this package: the user has downloaded it.

    Attributes:
        name: by which the command line calls it.
        source: paper and address.
        licence: of the files, as their source states it.
    """

    name: str
    source: str
    licence: str

    @abstractmethod
    def write(self, path: Path, folder: Path, details: Details) -> list[Path]:
        """Write what is at ``path`` into ``folder``, in this package's formats.

        Returns:
            PNGs of patch files, or folders of scene packs.

        Raises:
            InputError: the files are of another form, or ``details`` lack what the files do not say.
        """


class PatchImporter(Importer):
    """Patches: all are read before the first is written."""

    def write(self, path: Path, folder: Path, details: Details) -> list[Path]:
        """As :class:`Importer` says."""
        return [patch_file.write(folder, one) for one in self.patches(path, details)]

    @abstractmethod
    def patches(self, path: Path, details: Details) -> list[PatchFile]:
        """The patches of the file, or of the folder of files, at ``path``.

        Raises:
            InputError: as :meth:`Importer.write`.
        """


def width_mm(details: Details) -> float:
    """The width on paper.

    Raises:
        InputError: nobody has said it.
    """
    if details.size_mm is None:
        raise InputError("size_mm: expected the patch's width on paper in millimetres, got none; give size_mm=150")
    return details.size_mm


def load_picture(path: Path, details: Details, circle: bool = False) -> Patch:
    """A picture as a patch.

    Args:
        path: of the picture; its alpha is the mask.
        details: with the width.
        circle: the mask is the largest ellipse in it, whatever the alpha.
    """
    image = read_image(path, "patch")
    height, width = image.shape[1:]
    mask = ellipse(height, width) if circle else image[3:]
    return Patch(image[:3], mask, (width_mm(details), width_mm(details) * height / width))


def list_pictures(path: Path) -> list[Path]:
    """The picture, or those in the folder and below it, by name.

    Raises:
        InputError: there is none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.rglob("*") if one.suffix.lower() in pictures.ENDINGS and one.is_file())
    if not found:
        raise InputError(f"{path}: expected a picture or a folder of pictures, got none; name another path")
    return found


def safe_name(text: str) -> str:
    """``text`` with what a patch file's name cannot have replaced."""
    return re.sub(r"\W", "_", text[:1]) + re.sub(r"[^\w.+() -]", "_", text[1:100])
