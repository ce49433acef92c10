"""The compact flow networks as victims."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from patchattack.victims.compact.correlation import Correlation
from patchattack.victims.compact.encoder_decoder import EncoderDecoder
from patchattack.victims.compact.matching import Matching
from patchattack.victims.compact.shipped import ready
from patchattack.victims.victim import FlowVictim

NETWORKS: dict[str, type[EncoderDecoder] | type[Matching] | type[Correlation]] = {
    "encoder_decoder": EncoderDecoder,
    "matching": Matching,
    "correlation": Correlation,
}


class CompactFlow(FlowVictim):
    """A flow network of our own, trained on procedural scenes: nothing to download, and nothing like real video.

    Args:
        network: one of :data:`NETWORKS`.
        weights: "shipped" (in the package's assets), "random", or a local file.

    Raises:
        InputError: no such network, or the weights cannot be read or do not fit.
    """

    def __init__(self, network: str = "matching", weights: str | Path = "shipped") -> None:
        built = ready("flow", NETWORKS, network, weights)
        # Below 16 px features at 1/8 would be a single place, which instance norm cannot normalise.
        super().__init__(built, f"flow_{network}", multiple=NETWORKS[network].multiple, minimum=16)

    def flow(self, frames: Tensor) -> Tensor:
        """The finest of the network's flows."""
        return self.network(frames)[-1]
