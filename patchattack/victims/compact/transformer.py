"""The transformer that the compact classifier and the compact depth network share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Transformer(nn.Module):
    """Self-attention among all places of a feature map of one size, after ViT (Dosovitskiy et al. 2021).

    Args:
        width: channels, divisible by the heads.
        grid: ``(h, w)`` of the feature map; every place has its own learned position.
        depth: blocks.
        heads: of the attention.
    """

    def __init__(self, width: int, grid: tuple[int, int], depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.grid = grid
        self.positions = nn.Parameter(torch.randn(1, grid[0] * grid[1], width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            ),
            nn.LayerNorm(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width, h, w]`` to the same shape."""
        tokens = self.blocks(features.flatten(2).mT + self.positions)
        return tokens.mT.unflatten(-1, self.grid)
