"""The patches of T-SEA, which hide persons from detectors.

Source: Huang et al., T-SEA: Transfer-based Self-Ensemble Attack on Object Detection, CVPR 2023; the pictures in
``results`` of https://github.com/VDIGPKU/T-SEA, named ``DETECTOR-METHOD-....png``.
Licence: free for academic research alone, as its README states.
"""

from __future__ import annotations

from pathlib import Path

from patchattack.benchmark.importers.importer import Details, PatchImporter, list_pictures, load_picture, safe_name
from patchattack.benchmark.patch_file import PatchFile
from patchattack.errors import InputError

_DETECTORS = {
    **{f"v{number}": f"yolov{number}" for number in (2, 3, 4, 5)},
    **{name: name for name in ("centernet", "faster_rcnn", "ssd")},
}


class TSea(PatchImporter):
    """Square pictures; the detector that one was trained on begins its name."""

    name = "t_sea"
    source = "Huang et al., CVPR 2023, https://github.com/VDIGPKU/T-SEA"
    licence = "academic research only"

    def patches(self, path: Path, details: Details) -> list[PatchFile]:
        """As :class:`PatchImporter` says."""
        return [
            PatchFile(
                patch=load_picture(one, details),
                name=safe_name(f"t_sea {one.stem}"),
                task="detection",
                victims=details.victims or [_detector(one)],
                knowledge="white box",
                goal="hide",
                target="person",
                source=self.source,
                licence=self.licence,
            )
            for one in list_pictures(path)
        ]


def _detector(path: Path) -> str:
    known = path.stem.partition("-")[0]
    if known not in _DETECTORS:
        raise InputError(
            f"{path}: expected a name that begins with {', '.join(_DETECTORS)} and -, got {path.name}; give the "
            "detector that it was trained on with victims=[NAME], and import this picture alone"
        )
    return _DETECTORS[known]
