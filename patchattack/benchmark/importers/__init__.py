"""Readers of the patches and scenes that others have published, one file each. Nothing of theirs comes along."""

from __future__ import annotations

from collections.abc import Mapping

from patchattack.benchmark.importers.detection_defenses import DetectionDefenses
from patchattack.benchmark.importers.eavise import Eavise
from patchattack.benchmark.importers.flowattack import FlowAttack
from patchattack.benchmark.importers.image_net_patch import ImageNetPatch
from patchattack.benchmark.importers.importer import Details, Importer
from patchattack.benchmark.importers.picture import Picture
from patchattack.benchmark.importers.reap import Reap
from patchattack.benchmark.importers.t_sea import TSea

__all__ = ["KINDS", "Details", "Importer"]

_ALL: tuple[Importer, ...] = (DetectionDefenses(), Eavise(), FlowAttack(), ImageNetPatch(), Picture(), Reap(), TSea())
KINDS: Mapping[str, Importer] = {one.name: one for one in _ALL}
