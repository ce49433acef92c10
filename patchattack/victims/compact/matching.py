"""A compact global-matching flow network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack import geometry
from patchattack.victims.compact.layers import Residual, conv, local_correlation, warp


class Matching(nn.Module):
    """Global matching at 1/8 of the resolution and two local refinements, after GMFlow (Xu et al. 2022).

    Features of both frames are compared at every pair of places; the softmax over the second frame gives an expected
    coordinate. A correlation with the warped second frame then corrects it at 1/8 and at 1/4.
    """

    multiple = 8

    def __init__(self) -> None:
        super().__init__()
        self.quarter = nn.Sequential(
            nn.Conv2d(3, 32, 7, 2, 3), nn.InstanceNorm2d(32), nn.ReLU(inplace=True), Residual(32, 48, 2)
        )
        self.eighth = nn.Sequential(Residual(48, 80, 2), Residual(80, 80))
        self.features = nn.Conv2d(80, 80, 1)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.refine = nn.ModuleList([self._refinement(80), self._refinement(48)])

    @staticmethod
    def _refinement(channels: int) -> nn.Sequential:
        return nn.Sequential(conv(81 + 2 + channels, 96), conv(96, 64), conv(64, 48), nn.Conv2d(48, 2, 3, padding=1))

    def forward(self, frames: Tensor) -> list[Tensor]:
        """``[B, 2, 3, H, W]`` in [0, 1], sides divisible by 8, to flows ``[B, 2, H, W]`` from coarse to final."""
        batch, (height, width) = len(frames), frames.shape[-2:]
        quarter = self.quarter(frames.flatten(0, 1) * 2 - 1)
        eighth = self.eighth(quarter)
        features = F.normalize(self.features(eighth), dim=1).unflatten(0, (batch, 2))
        flows = [self._match(features[:, 0], features[:, 1])]
        for level, refine in zip((eighth, quarter), self.refine, strict=True):
            size = level.shape[-2:]
            flow = flows[-1]
            if flow.shape[-2:] != size:
                flow = 2 * F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
            flow = flow.detach() if self.training else flow
            first, second = level.unflatten(0, (batch, 2)).unbind(1)
            correlation = local_correlation(first, warp(second, flow), (4, 4))
            flows.append(flow + refine(torch.cat([correlation, flow, first], dim=1)))
        return [
            F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * (width / flow.shape[-1])
            for flow in flows
        ]

    def _match(self, first: Tensor, second: Tensor) -> Tensor:
        """Expected displacement ``[B, 2, h, w]`` under the softmax over all places of ``second``."""
        height, width = first.shape[-2:]
        exact = torch.promote_types(first.dtype, torch.float32)  # a coordinate in bfloat16 is off by half a pixel
        grid = geometry.pixel_grid((height, width), first.device).flatten(0, 1).to(exact)
        with torch.autocast(first.device.type, enabled=False):
            similarity = first.to(exact).flatten(2).mT @ second.to(exact).flatten(2) * self.temperature.exp()
            expected = similarity.softmax(dim=-1) @ grid
        return (expected - grid).mT.unflatten(-1, (height, width))
