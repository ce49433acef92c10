"""The universal patches of Ranjan et al. 2019 against optical flow.

Source: Ranjan, Janai, Geiger, Black, Attacking Optical Flow, ICCV 2019; the pictures in ``patches`` of
https://github.com/anuragranj/flowattack. Which networks ``Upatch1`` and ``Upatch2`` were trained on, the repository
does not say: give ``victims=[...]`` where you know.
Licence: of the Max-Planck-Gesellschaft, for non-commercial research; may not be handed on.
"""

from __future__ import annotations

from pathlib import Path

from patchattack.benchmark.importers.importer import Details, PatchImporter, list_pictures, load_picture, safe_name
from patchattack.benchmark.patch_file import PatchFile


class FlowAttack(PatchImporter):
    """Circles in square pictures."""

    name = "flowattack"
    source = "Ranjan et al., ICCV 2019, https://github.com/anuragranj/flowattack"
    licence = "Max-Planck-Gesellschaft, non-commercial research, no distribution"

    def patches(self, path: Path, details: Details) -> list[PatchFile]:
        """As :class:`PatchImporter` says."""
        return [
            PatchFile(
                patch=load_picture(one, details, circle=True),
                name=safe_name(f"flowattack {one.stem}"),
                task="flow",
                victims=details.victims,
                knowledge="white box",
                source=self.source,
                licence=self.licence,
            )
            for one in list_pictures(path)
        ]
