"""A compact encoder-decoder flow network with one correlation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.victims.compact.layers import Residual, conv, local_correlation


class EncoderDecoder(nn.Module):
    """One correlation at 1/8 of the resolution between an encoder and a decoder, after FlowNetC (Dosovitskiy 2015)."""

    multiple = 64
    reach = (4, 8)  # displacements of the correlation at 1/8

    def __init__(self) -> None:
        super().__init__()
        self.quarter = nn.Sequential(
            nn.Conv2d(3, 32, 7, 2, 3), nn.InstanceNorm2d(32), nn.ReLU(inplace=True), Residual(32, 48, 2)
        )
        self.eighth = Residual(48, 80, 2)
        self.features = nn.Conv2d(80, 80, 1)
        self.temperature = nn.Parameter(torch.tensor(3.0))
        self.redirect = conv(80, 32, 1)
        cells = (2 * self.reach[0] + 1) * (2 * self.reach[1] + 1)
        self.joined = conv(cells + 32, 80)
        self.down = nn.ModuleList([nn.Sequential(conv(80, 80, 3, 2), conv(80, 80)) for _ in range(3)])
        skips, widths = (80, 80, 80, 48), (56, 48, 40, 32)
        inputs = (80, *(w + s + 2 for w, s in zip(widths, skips, strict=True)))
        self.predict = nn.ModuleList([nn.Conv2d(n, 2, 3, padding=1) for n in inputs])
        self.up = nn.ModuleList([conv(n, w) for n, w in zip(inputs[:-1], widths, strict=True)])

    def forward(self, frames: Tensor) -> list[Tensor]:
        """``[B, 2, 3, H, W]`` in [0, 1], sides divisible by 64, to flows ``[B, 2, H, W]`` from coarse to final."""
        batch, (height, width) = len(frames), frames.shape[-2:]
        quarter = self.quarter(frames.flatten(0, 1) * 2 - 1)
        eighth = self.eighth(quarter)
        first, second = F.normalize(self.features(eighth), dim=1).unflatten(0, (batch, 2)).unbind(1)
        # Over the displacements the correlation becomes a distribution: displacements are then linear in its channels,
        # which a decoder learns many times faster than from raw correlations.
        cosines = local_correlation(first, second, self.reach) * first.shape[1] ** 0.5
        correlation = (cosines * self.temperature.exp()).softmax(dim=1)
        context = self.redirect(eighth.unflatten(0, (batch, 2))[:, 0])
        x = self.joined(torch.cat([correlation, context], dim=1))
        skips = [quarter.unflatten(0, (batch, 2))[:, 0]]
        for down in self.down:
            skips.append(x)
            x = down(x)
        flows = [self.predict[0](x)]
        for up, predict in zip(self.up, self.predict[1:], strict=True):
            skip = skips.pop()
            size = skip.shape[-2:]
            flow = 2 * F.interpolate(flows[-1], size=size, mode="bilinear", align_corners=False)
            x = torch.cat([F.interpolate(up(x), size=size, mode="bilinear", align_corners=False), skip, flow], dim=1)
            flows.append(flow + predict(x))
        return [
            F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * (width / flow.shape[-1])
            for flow in flows
        ]
