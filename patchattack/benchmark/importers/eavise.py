"""The printed patches against person detectors of Thys et al. 2019.

Source: Thys, Van Ranst, Goedemé, Fooling automated surveillance cameras: adversarial patches to attack person
detection, CVPR workshops 2019; the pictures in ``saved_patches`` of https://gitlab.com/EAVISE/adversarial-yolo.
Licence: see that repository; what it states could not be confirmed, so ask its authors before handing them on.
"""

from __future__ import annotations

from pathlib import Path

from patchattack.benchmark.importers.importer import Details, PatchImporter, list_pictures, load_picture, safe_name
from patchattack.benchmark.patch_file import PatchFile


class Eavise(PatchImporter):
    """Square pictures, trained on YOLOv2 to hide persons."""

    name = "eavise"
    source = "Thys et al., CVPRW 2019, https://gitlab.com/EAVISE/adversarial-yolo"
    licence = "not confirmed: see the repository"

    def patches(self, path: Path, details: Details) -> list[PatchFile]:
        """As :class:`PatchImporter` says."""
        return [
            PatchFile(
                patch=load_picture(one, details),
                name=safe_name(f"eavise {one.stem}"),
                task="detection",
                victims=details.victims or ["yolov2"],
                knowledge="white box",
                goal="hide",
                target="person",
                source=self.source,
                licence=details.licence or self.licence,
            )
            for one in list_pictures(path)
        ]
