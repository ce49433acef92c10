"""A small network that learnt from another victim's answers, as a victim with gradient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchattack import files
from patchattack.errors import InputError, one_line
from patchattack.names import class_names
from patchattack.victims.compact.classifiers import ResidualClassifier
from patchattack.victims.victim import ClassificationVictim
from patchattack.victims.weights import initialise, load_weights

WEIGHTS, NOTE = "weights.safetensors", "substitute.json"
LARGEST = 4096  # pixels along a side of its images


class Substitute(ClassificationVictim):
    """What stands for a black-box (query-only) victim, to be attacked in white box (Papernot et al. 2017).

    Args:
        weights: the folder that ``patchattack substitute`` made, with the weights and the names of the classes.

    Raises:
        InputError: there is no such folder, or what it holds does not fit.
    """

    def __init__(self, weights: str | Path) -> None:
        folder = Path(weights).expanduser()
        try:
            note = files.read_json(folder / NOTE)
            classes, taught = class_names(note["classes"], folder / NOTE), str(note["victim"])
            height, width = (int(side) for side in files.numbers(note["size"], 2, 1, LARGEST))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"victim.weights: expected the folder of a substitute, with {NOTE}, got {folder}: "
                f"{one_line(error)}; make one with patchattack substitute"
            ) from error
        network = initial_network(classes)
        load_weights(network, folder / WEIGHTS)
        super().__init__(network, f"substitute_of_{taught}", classes, (height, width))


def initial_network(classes: Sequence[str]) -> ResidualClassifier:
    """The network before its first lesson, always the same."""
    return initialise(lambda: ResidualClassifier(len(classes)))
