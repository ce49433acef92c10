"""The patches against optical flow of Scheurer et al. 2024, some trained through a defence.

Source: Scheurer et al., Detection Defenses: An Empty Promise against Adversarial Patch Attacks on Optical Flow, WACV
2024; the pictures ``NETWORK_DEFENCE.png`` in ``patches`` of https://github.com/cv-stuttgart/DetectionDefenses.
Licence: the repository states none.
"""

from __future__ import annotations

from pathlib import Path

from patchattack.benchmark.importers.importer import Details, PatchImporter, list_pictures, load_picture, safe_name
from patchattack.benchmark.patch_file import PatchFile
from patchattack.errors import InputError

# Our names of local gradients smoothing (Naseer et al. 2019) and inpainting with Laplacian prior (Anand et al. 2020).
_DEFENSES = {"none": [], "lgs": ["gradient_smoothing"], "ilp": ["inpainting"]}


class DetectionDefenses(PatchImporter):
    """Circles, as flowattack's, trained towards the negative flow."""

    name = "detection_defenses"
    source = "Scheurer et al., WACV 2024, https://github.com/cv-stuttgart/DetectionDefenses"
    licence = "none stated"

    def patches(self, path: Path, details: Details) -> list[PatchFile]:
        """As :class:`PatchImporter` says."""
        return [self._patch(one, details) for one in list_pictures(path)]

    def _patch(self, path: Path, details: Details) -> PatchFile:
        network, _, defense = path.stem.rpartition("_")
        if not network or defense not in _DEFENSES:
            raise InputError(
                f"{path}: expected NETWORK_DEFENCE.png with one of {', '.join(_DEFENSES)}, got {path.name}; keep the "
                "names of the repository"
            )
        return PatchFile(
            patch=load_picture(path, details, circle=True),
            name=safe_name(f"detection_defenses {path.stem}"),
            task="flow",
            victims=details.victims or [network],
            defenses=_DEFENSES[defense],
            knowledge="white box",
            source=self.source,
            licence=details.licence or self.licence,
        )
