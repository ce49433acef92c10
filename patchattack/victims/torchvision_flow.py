"""RAFT as torchvision has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from patchattack.errors import InputError
from patchattack.victims.victim import FlowVictim
from patchattack.victims.weights import initialise, load_hub, load_weights


class Raft(FlowVictim):
    """Recurrent all-pairs field transforms (Teed and Deng, ECCV 2020).

    Its gradient is the one that RAFT is trained with: each update takes the flow so far as a constant, so what one
    update does to the next reaches the input through the hidden state alone.

    Args:
        variant: "small" or "large".
        weights: "hub" (torchvision's default weights), "random", or a local file.
        updates: recurrent updates; the flow after the last one counts.
        trust_checkpoint: read a local file that runs code when it is read.

    Raises:
        InputError: no such variant, no update, or the weights cannot be had or do not fit.
    """

    network: Any  # torchvision's RAFT, which comes without types

    def __init__(
        self, variant: str = "small", weights: str | Path = "hub", updates: int = 12, trust_checkpoint: bool = False
    ) -> None:
        from torchvision.models import optical_flow

        variants = {
            "small": (optical_flow.raft_small, optical_flow.Raft_Small_Weights.DEFAULT),
            "large": (optical_flow.raft_large, optical_flow.Raft_Large_Weights.DEFAULT),
        }
        if variant not in variants or updates < 1:
            raise InputError(
                f"victim raft: expected variant small or large and updates >= 1, "
                f"got variant={variant} and updates={updates}"
            )
        build, default = variants[variant]
        network = initialise(build)
        if weights == "hub":
            load_hub(network, default.url)
        elif weights != "random":
            load_weights(network, weights, trust_checkpoint)
        # The coarsest of four levels of correlation, of features at 1/8, needs two places along each side.
        super().__init__(network, f"raft_{variant}", multiple=8, minimum=128)
        self.updates = updates

    def flow(self, frames: Tensor) -> Tensor:
        """The flow after the last update."""
        first, second = (frames * 2 - 1).unbind(1)
        flow = self.network(first, second, num_flow_updates=self.updates)[-1]
        # torchvision keeps the correlations of all pairs until the next call: hundreds of MB at the size of KITTI.
        self.network.corr_block.corr_pyramid = []
        return flow
