"""The compact classifiers as victims."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from patchattack.victims.compact.classifiers import ResidualClassifier, TransformerClassifier
from patchattack.victims.compact.shipped import ready
from patchattack.victims.victim import ClassificationVictim

CLASSES = (
    *("stop", "yield", "no_entry", "no_stopping", "speed_30", "speed_50", "speed_80", "turn_left", "turn_right"),
    *("straight_on", "roundabout", "priority_road", "crossing", "curve", "parking", "end_of_limit"),
)
NETWORKS: dict[str, Callable[[], ResidualClassifier | TransformerClassifier]] = {
    "residual": partial(ResidualClassifier, len(CLASSES)),
    "transformer": partial(TransformerClassifier, len(CLASSES)),
}


class CompactClassifier(ClassificationVictim):
    """A classifier of our own for the procedural world's traffic signs: nothing to download.

    Args:
        network: "residual" or "transformer".
        weights: "shipped" (in the package's assets), "random", or a local file.

    Raises:
        InputError: no such network, or the weights cannot be read or do not fit.
    """

    def __init__(self, network: str = "residual", weights: str | Path = "shipped") -> None:
        built = ready("classifier", NETWORKS, network, weights)
        super().__init__(built, f"classifier_{network}", CLASSES, size=built.size)
