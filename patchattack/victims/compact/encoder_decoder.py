"""A compact encoder-decoder flow network with one correlation."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.victims.compact.layers import Residual, conv, decode, local_correlation


class EncoderDecoder(nn.Module):
    """One correlation at 1/8 of the resolution between an encoder and a decoder, after FlowNetC (Dosovitskiy 2015).

    The first frame also enters the decoder by itself, and the decoder's coarsest level sees the whole frame at once:
    what makes encoder-decoders fragile (Ranjan et al. 2019). As there, features are correlated as they are, not
    normalised: batch norm is a fixed scale once the network is trained, so a strong feature attracts every match.

    Frames enter without the mean of what surrounds each pixel, as methods before networks took the texture alone (Wedel
    et al. 2009): a plain card then shows its edges only, and what disturbs the network is a pattern.
    """

    multiple = 64
    surroundings = 31  # pixels
    reach = (4, 8)  # displacements of the correlation at 1/8

    def __init__(self) -> None:
        super().__init__()
        block = partial(conv, norm=True)
        self.matched = nn.Sequential(
            nn.Conv2d(3, 32, 7, 2, 3),
            nn.InstanceNorm2d(32),
            nn.ReLU(inplace=True),
            Residual(32, 48, 2),
            Residual(48, 80, 2),
            nn.Conv2d(80, 80, 1),
            nn.BatchNorm2d(80, affine=False),
        )
        self.temperature = nn.Parameter(torch.tensor(0.8))
        self.quarter = nn.Sequential(block(3, 24, 7, 2), block(24, 40, 5, 2))
        self.eighth = block(40, 48, 3, 2)
        cells = (2 * self.reach[0] + 1) * (2 * self.reach[1] + 1)
        self.joined = block(cells + 48, 80)
        self.down = nn.ModuleList([nn.Sequential(block(80, 80, 3, 2), block(80, 80)) for _ in range(3)])
        skips, widths = (80, 80, 80, 40), (56, 48, 40, 32)
        inputs = (80, *(w + s + 2 for w, s in zip(widths, skips, strict=True)))
        self.predict = nn.ModuleList([nn.Conv2d(n, 2, 3, padding=1) for n in inputs])
        self.up = nn.ModuleList([block(n, w) for n, w in zip(inputs[:-1], widths, strict=True)])

    def forward(self, frames: Tensor) -> list[Tensor]:
        """``[B, 2, 3, H, W]`` in [0, 1], sides divisible by 64, to flows ``[B, 2, H, W]`` from coarse to final."""
        batch, (height, width) = len(frames), frames.shape[-2:]
        flat = frames.flatten(0, 1)
        size, edge = self.surroundings, self.surroundings // 2
        mean = F.avg_pool2d(flat, (1, size), 1, (0, edge), count_include_pad=False)  # rows, then columns: many times
        mean = F.avg_pool2d(mean, (size, 1), 1, (edge, 0), count_include_pad=False)  # faster than squares
        frames = (2 * (flat - mean)).unflatten(0, (batch, 2))
        first, second = self.matched(frames.flatten(0, 1)).unflatten(0, (batch, 2)).unbind(1)
        # Over the displacements the correlation becomes a distribution: displacements are then linear in its channels,
        # which a decoder learns many times faster than from raw correlations.
        correlation = (local_correlation(first, second, self.reach) * self.temperature.exp()).softmax(dim=1)
        quarter = self.quarter(frames[:, 0])
        x = self.joined(torch.cat([correlation, self.eighth(quarter)], dim=1))
        return decode(x, quarter, self.down, self.up, self.predict, (height, width))
