"""A small network that learnt from another victim's answers, as a victim with gradient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from patchattack.errors import InputError
from patchattack.victims.compact.classifiers import ResidualClassifier
from patchattack.victims.victim import ClassificationVictim
from patchattack.victims.weights import initialised, load_weights

WEIGHTS, NOTE = "weights.safetensors", "substitute.json"


class Substitute(ClassificationVictim):
    """What stands for a victim that only answers, to be attacked in white box (Papernot et al. 2017).

    Args:
        weights: the folder that ``patchattack substitute`` made, with the weights and the names of the classes.

    Raises:
        InputError: there is no such folder, or what it holds does not fit.
    """

    def __init__(self, weights: str | Path) -> None:
        folder = Path(weights).expanduser()
        try:
            note = json.loads((folder / NOTE).read_text())
            classes, (height, width), taught = note["classes"], note["size"], note["victim"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"victim.weights: expected the folder of a substitute, with {NOTE}, got {folder}: "
                f"{type(error).__name__}; make one with patchattack substitute"
            ) from error
        network = untaught(classes)
        load_weights(network, folder / WEIGHTS)
        super().__init__(network, f"substitute_of_{taught}", classes, (height, width))


def untaught(classes: Sequence[str]) -> ResidualClassifier:
    """The network before its first lesson, always the same."""
    return initialised(lambda: ResidualClassifier(len(classes)))
