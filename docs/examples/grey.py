"""A regulariser: a patch that is grey on the average."""

from __future__ import annotations

from torch import Tensor, nn


class Grey(nn.Module):
    """Square of how far the mean colour is from grey. It does not depend on the patch's resolution.

    Args:
        weight: factor of this term in the loss.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, texture: Tensor, mask: Tensor) -> Tensor:
        """A scalar, not weighted, of ``texture [3, h, w]`` under ``mask [1, h, w]``."""
        mean = (texture * mask).sum(dim=(1, 2)) / mask.sum()
        return (mean - mean.mean()).square().sum()
