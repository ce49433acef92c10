"""A victim: a small flow network. Its weights may be a file of yours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.victims.victim import FlowVictim
from patchattack.victims.weights import load_weights


class Network(nn.Module):
    """Two layers over a pair of frames."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """``[B, 2, H, W]`` in pixels, for two images ``[B, 3, H, W]`` in [0, 1] with even sides."""
        return F.interpolate(self.layers(torch.cat([first, second], dim=1)), scale_factor=2.0, mode="bilinear")


class Shifts(FlowVictim):
    """The adapter owns normalising, resizing and padding; its base freezes the weights and keeps eval mode.

    Args:
        weights: a file, or ``random``.
    """

    def __init__(self, weights: str) -> None:
        torch.manual_seed(0)
        network = Network()
        if weights != "random":
            load_weights(network, weights)
        super().__init__(network, "shifts", multiple=2)  # sides are padded to a multiple of 2

    def flow(self, frames: Tensor) -> Tensor:
        """``[B, 2, H, W]`` in pixels, for ``frames [B, 2, 3, H, W]`` in [0, 1]."""
        return self.network(*frames.unbind(1))
