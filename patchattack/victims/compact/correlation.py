"""A compact encoder-decoder flow network with one raw correlation, as the literature attacks it."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.victims.compact.layers import conv, decode, local_correlation


class RawCorrelation(nn.Module):
    """FlowNetC's correlation layer: products divided by the number of channels, and leaky ReLU."""

    def __init__(self, reach: tuple[int, int]) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """``[B, C, H, W]`` twice to ``[B, cells, H, W]``, the displacements row by row."""
        return F.leaky_relu(local_correlation(first, second, self.reach) / first.shape[1] ** 0.5, 0.1)


class Correlation(nn.Module):
    """FlowNetC (Dosovitskiy et al. 2015) at a smaller width: raw products at 1/8 between an encoder and a decoder.

    What patches break (Ranjan et al. 2019, Schrodi et al. 2022) is all here: features that see 31 px, correlated as
    they are (not normalised, no softmax) over 80 px each way, and an encoder to 1/64 that sees the whole frame. The
    only norm is batch norm, a fixed scale once the network is trained.
    """

    multiple = 64
    reach = (10, 10)  # displacements of the correlation at 1/8, one cell apart

    def __init__(self) -> None:
        super().__init__()
        block = partial(conv, norm=True)
        self.quarter = nn.Sequential(block(3, 32, 7, 2), block(32, 64, 5, 2))
        self.eighth = nn.Sequential(nn.Conv2d(64, 96, 5, 2, 2), nn.BatchNorm2d(96))
        self.correlation = RawCorrelation(self.reach)
        self.redirect = block(96, 32, 1)
        cells = (2 * self.reach[0] + 1) * (2 * self.reach[1] + 1)
        self.joined = block(cells + 32, 96)
        widths = (96, 112, 128, 128)  # at 1/8 to 1/64
        self.down = nn.ModuleList([nn.Sequential(block(n, m, 3, 2), block(m, m)) for n, m in pairwise(widths)])
        skips, up = (128, 112, 96, 64), (80, 64, 48, 32)
        inputs = (128, *(w + s + 2 for w, s in zip(up, skips, strict=True)))
        self.predict = nn.ModuleList([nn.Conv2d(n, 2, 3, padding=1) for n in inputs])
        self.up = nn.ModuleList([block(n, w) for n, w in zip(inputs[:-1], up, strict=True)])

    def forward(self, frames: Tensor) -> list[Tensor]:
        """``[B, 2, 3, H, W]`` in [0, 1], sides divisible by 64, to flows ``[B, 2, H, W]`` from coarse to final."""
        batch, size = len(frames), (frames.shape[-2], frames.shape[-1])
        quarter = self.quarter(frames.flatten(0, 1) * 2 - 1)
        first, second = self.eighth(quarter).unflatten(0, (batch, 2)).unbind(1)
        x = self.joined(torch.cat([self.correlation(first, second), self.redirect(first)], dim=1))
        quarter = quarter.unflatten(0, (batch, 2))[:, 0]
        return decode(x, quarter, self.down, self.up, self.predict, size)
