"""The compact classifiers as victims."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from patchattack.errors import InputError
from patchattack.files import shipped
from patchattack.victims.compact.classifiers import ResidualClassifier, TransformerClassifier
from patchattack.victims.victim import ClassificationVictim
from patchattack.victims.weights import initialised, load_weights

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
        if network not in NETWORKS:
            raise InputError(f"victim compact classifier: expected network {' or '.join(NETWORKS)}, got {network}")
        built = initialised(NETWORKS[network])
        if weights == "shipped":
            weights = shipped("assets") / "victims" / f"classifier_{network}.safetensors"
        if weights != "random":
            load_weights(built, weights)
        super().__init__(built, f"classifier_{network}", CLASSES, size=built.size)
