"""Compact networks for metric depth from one image: an encoder-decoder and a transformer."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.victims.compact.layers import conv
from patchattack.victims.compact.transformer import Transformer

REACH = (0.5, 80.0)  # metres
block = partial(conv, norm=True)


def upsample(features: Tensor) -> Tensor:
    """``[B, C, H, W]`` at twice the size."""
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


def metres(position: Tensor) -> Tensor:
    """Depth from a number without bounds: the logarithm of the depth lies between those of :data:`REACH`."""
    near, far = REACH
    return near * (far / near) ** position.sigmoid()


class UNet(nn.Module):
    """An encoder-decoder whose levels are joined across, after U-Net (Ronneberger et al. 2015)."""

    size = (128, 256)

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 48, 64, 80)  # at 1/2 .. 1/32
        self.down = nn.ModuleList(
            nn.Sequential(block(n, m, 3, 2), block(m, m)) for n, m in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.narrow = nn.ModuleList(block(m, n) for n, m in pairwise(widths))
        self.join = nn.ModuleList(block(2 * n, n) for n in widths[:-1])
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Metres ``[B, 1, H, W]`` of ``images [B, 3, H, W]`` in [0, 1], sides divisible by 32."""
        x, levels = images * 2 - 1, []
        for down in self.down:
            x = down(x)
            levels.append(x)
        levels.pop()
        for narrow, join in zip(reversed(self.narrow), reversed(self.join), strict=True):
            x = join(torch.cat([upsample(narrow(x)), levels.pop()], dim=1))
        return metres(upsample(self.head(x)))


class TransformerDepth(nn.Module):
    """Self-attention at 1/16 of the resolution between convolutions, after the hybrid DPT (Ranftl et al. 2021)."""

    size = (128, 256)

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 40, 56, 80)  # at 1/2 .. 1/16
        self.down = nn.ModuleList(
            block(n, m, kernel, 2) for n, m, kernel in zip((3, *widths[:-1]), widths, (7, 3, 3, 3), strict=True)
        )
        self.transformer = Transformer(widths[-1], grid=(8, 16))
        self.narrow = nn.ModuleList(block(m, n) for n, m in pairwise(widths))
        self.join = nn.ModuleList(block(2 * n, n) for n in widths[:-1])
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Metres ``[B, 1, 128, 256]`` of ``images [B, 3, 128, 256]`` in [0, 1]."""
        x, levels = images * 2 - 1, []
        for down in self.down:
            x = down(x)
            levels.append(x)
        x = self.transformer(levels.pop())
        for narrow, join in zip(reversed(self.narrow), reversed(self.join), strict=True):
            x = join(torch.cat([upsample(narrow(x)), levels.pop()], dim=1))
        return metres(upsample(self.head(x)))
