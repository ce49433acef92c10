"""What the compact flow networks share: correlation, warping and their blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack import geometry


def local_correlation(first: Tensor, second: Tensor, reach: tuple[int, int]) -> Tensor:
    """Correlate each place of ``first`` with the neighbourhood of the same place in ``second``.

    FlowNetC's correlation layer (Dosovitskiy et al. 2015, equation 1, with 1×1 patches), as one product per row
    offset instead of one per displacement.

    Args:
        first: ``[B, C, H, W]``.
        second: ``[B, C, H, W]``.
        reach: largest displacement down and right, ``(dy, dx)``.

    Returns:
        ``[B, (2·dy + 1)·(2·dx + 1), H, W]``, scaled by ``1 / sqrt(C)``; zero where the neighbour is outside.
    """
    dy, dx = reach
    width = first.shape[-1]
    rows = F.pad(second, (dx, dx, dy, dy)).unfold(2, 2 * dy + 1, 1)  # [B, C, H, W + 2dx, 2dy + 1]
    products = torch.einsum("bchw,bchvd->bdhwv", first, rows)
    place = torch.arange(width, device=first.device)
    band = place[:, None] + torch.arange(2 * dx + 1, device=first.device)  # [W, 2dx + 1]
    band = products.gather(-1, band.expand(*products.shape[:-1], -1))  # [B, 2dy + 1, H, W, 2dx + 1]
    return band.permute(0, 1, 4, 2, 3).flatten(1, 2) / first.shape[1] ** 0.5


def warp(features: Tensor, flow: Tensor) -> Tensor:
    """``features [B, C, H, W]`` fetched from where ``flow [B, 2, H, W]`` (in pixels of this size) points."""
    grid = geometry.pixel_grid((flow.shape[-2], flow.shape[-1]), flow.device)
    return geometry.sample(features, (grid + flow.permute(0, 2, 3, 1)).to(features.dtype))


def decode(
    x: Tensor, quarter: Tensor, down: nn.ModuleList, up: nn.ModuleList, predict: nn.ModuleList, size: tuple[int, int]
) -> list[Tensor]:
    """Flows of an encoder to 1/64 and a decoder to 1/4 with skips, as in FlowNet (Dosovitskiy et al. 2015).

    Args:
        x: ``[B, C, H/8, W/8]`` what the encoder goes on from.
        quarter: ``[B, C, H/4, W/4]`` the finest skip.
        down: stages of the encoder, each half the size of the one before.
        up: blocks of the decoder, from 1/64 to 1/4.
        predict: what adds to the coarser flow, one more than ``up``.
        size: ``(H, W)``.

    Returns:
        Flows ``[B, 2, H, W]`` from coarse to final.
    """
    skips = [quarter]
    for stage in down:
        skips.append(x)
        x = stage(x)
    flows = [predict[0](x)]
    for block, head in zip(up, list(predict)[1:], strict=True):
        skip = skips.pop()
        here = skip.shape[-2:]
        flow = 2 * F.interpolate(flows[-1], size=here, mode="bilinear", align_corners=False)
        x = torch.cat([F.interpolate(block(x), size=here, mode="bilinear", align_corners=False), skip, flow], dim=1)
        flows.append(flow + head(x))
    return [
        F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * (size[1] / flow.shape[-1])
        for flow in flows
    ]


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, norm: bool = False) -> nn.Sequential:
    """Convolution, batch norm where asked for, and leaky ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(layers[0], nn.BatchNorm2d(outputs), layers[1]) if norm else nn.Sequential(*layers)


class Residual(nn.Module):
    """Two convolutions with instance norm around a shortcut (He et al. 2016), as in RAFT's feature encoder."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1),
            nn.InstanceNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
            nn.InstanceNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        return F.relu(self.body(x) + self.shortcut(x))
