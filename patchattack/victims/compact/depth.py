"""The compact depth networks as victims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from patchattack.victims.compact.depth_networks import REACH, TransformerDepth, UNet
from patchattack.victims.compact.shipped import ready
from patchattack.victims.victim import DepthVictim

NETWORKS: dict[str, Callable[[], TransformerDepth | UNet]] = {"unet": UNet, "transformer": TransformerDepth}


class CompactDepth(DepthVictim):
    """A metric depth network of our own, for the procedural world seen from a fixed height: nothing to download.

    Frames of another size are resized: the metres belong to a field of view, not to a number of pixels.

    Args:
        network: "unet" or "transformer".
        weights: "shipped" (in the package's assets), "random", or a local file.

    Raises:
        InputError: no such network, or the weights cannot be read or do not fit.
    """

    def __init__(self, network: str = "unet", weights: str | Path = "shipped") -> None:
        built = ready("depth", NETWORKS, network, weights)
        super().__init__(built, f"depth_{network}", is_metric=True, depth_range=REACH, size=built.size)
