"""Any picture whose size on paper, task and licence whoever imports it knows."""

from __future__ import annotations

from pathlib import Path

from patchattack.benchmark.importers.importer import Details, PatchImporter, list_pictures, load_picture, safe_name
from patchattack.benchmark.patch_file import PatchFile
from patchattack.errors import InputError


class Picture(PatchImporter):
    """PNG, JPEG and others; the alpha is the mask. With victims it counts as a white-box patch of these."""

    name = "picture"
    source = "whatever source= says"
    licence = "whatever licence= says"

    def patches(self, path: Path, details: Details) -> list[PatchFile]:
        """As :class:`PatchImporter` says."""
        lacking = [key for key in ("task", "licence", "source") if getattr(details, key) is None]
        if lacking:
            raise InputError(
                f"{', '.join(lacking)}: expected what the picture does not say, got nothing; give "
                "task=flow licence=CC-BY-4.0 source=ADDRESS"
            )
        return [
            PatchFile(
                patch=load_picture(one, details),
                name=safe_name(one.stem),
                task=str(details.task),
                victims=details.victims,
                defenses=details.defenses,
                knowledge="white box" if details.victims else "none",
                goal=details.goal,
                target=details.target,
                source=str(details.source),
                licence=str(details.licence),
            )
            for one in list_pictures(path)
        ]
