"""Networks of our own and the weights that ship with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import nn

from patchattack.errors import InputError
from patchattack.files import package_folder
from patchattack.victims.weights import initialise, load_weights

Network = TypeVar("Network", bound=nn.Module)


def ready(kind: str, networks: Mapping[str, Callable[[], Network]], name: str, weights: str | Path) -> Network:
    """The network with its weights.

    Args:
        kind: what it is, as in the names of the files in ``assets/victims``.
        networks: name to what makes the network.
        name: of one of them.
        weights: "shipped" (in the package's assets), "random", or a local file.

    Raises:
        InputError: no such network, or the weights cannot be read or do not fit.
    """
    if name not in networks:
        raise InputError(f"victim compact {kind}: expected network {' or '.join(networks)}, got {name}")
    network = initialise(networks[name])
    if weights == "shipped":
        weights = package_folder("assets") / "victims" / f"{kind}_{name}.safetensors"
    if weights != "random":
        load_weights(network, weights)
    return network
