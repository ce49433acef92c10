"""Compact image classifiers: a residual network and a transformer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.victims.compact.transformer import Transformer


class NormedResidual(nn.Module):
    """Two convolutions with batch norm around a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        return F.relu(self.body(x) + self.shortcut(x))


class ResidualClassifier(nn.Module):
    """Residual blocks with batch norm and a mean over all places, after ResNet (He et al. 2016).

    Args:
        classes: how many it tells apart.
    """

    size = (64, 64)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            NormedResidual(24, 24, 1), NormedResidual(24, 40, 2), NormedResidual(40, 64, 2), NormedResidual(64, 96, 2)
        )
        self.head = nn.Linear(96, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``images [B, 3, 64, 64]`` in [0, 1]."""
        return self.head(self.stages(self.stem(images * 2 - 1)).mean(dim=(2, 3)))


class TransformerClassifier(nn.Module):
    """Self-attention among patches of 8×8 pixels, which three convolutions embed, after ViT (Dosovitskiy et al. 2021).

    Convolutions instead of one linear map let a small transformer learn from few images (Xiao et al. 2021).

    Args:
        classes: how many it tells apart.
    """

    size = (64, 64)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, 48, 3, 2, 1), nn.GELU(), nn.Conv2d(48, 80, 3, 2, 1)
        )
        self.transformer = Transformer(80, grid=(8, 8))
        self.head = nn.Linear(80, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``images [B, 3, 64, 64]`` in [0, 1]."""
        return self.head(self.transformer(self.patches(images * 2 - 1)).mean(dim=(2, 3)))
