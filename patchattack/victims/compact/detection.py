"""The compact detectors as victims."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from patchattack.victims.compact.detectors import CentreNet, YoloNetwork
from patchattack.victims.compact.shipped import ready
from patchattack.victims.victim import DetectionVictim

CLASSES = ("vehicle", "sign")
NETWORKS: dict[str, Callable[[], CentreNet | YoloNetwork]] = {
    "yolo": partial(YoloNetwork, len(CLASSES)),
    "centre": partial(CentreNet, len(CLASSES)),
}


class CompactDetector(DetectionVictim):
    """A detector for the procedural world's vehicles and signs: nothing to download.

    Args:
        network: "yolo" (the architecture of ultralytics' YOLO11 nano) or "centre".
        weights: "shipped" (in the package's assets), "random", or a local file.

    Raises:
        InputError: no such network, or the weights cannot be read or do not fit.
    """

    def __init__(self, network: str = "yolo", weights: str | Path = "shipped") -> None:
        built = ready("detector", NETWORKS, network, weights)
        super().__init__(built, f"detector_{network}", CLASSES, multiple=built.multiple)

    def candidates(self, images: Tensor) -> Tensor:
        """One for each place of the network's maps."""
        return self.network(images)
