"""Scenes as a longer lens would see them, so that a patch meets more distances than the data have."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from patchattack import geometry
from patchattack.scene import Scene
from patchattack.seeding import Numbers


def zoom_in(scene: Scene, most: float, numbers: Numbers, device: torch.device) -> Scene:
    """A random part of each scene, enlarged to the frame, on ``device``; all that is known of the scene follows.

    The factor is log-uniform from 1 to ``most`` and the part uniform among those that hold the scene's object, the
    first of its boxes and its surface; the factor is smaller where these would not fit. Depth stays in metres, and the
    camera matrix changes.

    Args:
        scene: as its source gave it, on the host.
        most: the largest factor.
        numbers: a row for each scene.
        device: of what comes back.
    """
    edge = torch.tensor([scene.size[1], scene.size[0]], dtype=torch.float64)
    luck = numbers.streams({"zoom": 1})[0].unit(3).double()
    low, high = _object(scene, edge)
    factor = (most ** luck[:, :1]).minimum((edge / (high - low).clamp(min=1)).amin(dim=1, keepdim=True))
    part = edge / factor
    first, last = (high - part).clamp(min=-0.5), low.minimum(edge - 0.5 - part)
    corner = first + (last - first) * luck[:, 1:]  # [B, 2] top left edge of the part

    def move(points: Tensor) -> Tensor:
        """Pixels ``[B, ..., 2]`` of the scene in the part."""
        shape = (-1, *[1] * (points.ndim - 2))
        shift, scale = (value.to(points).view(*shape, value.shape[-1]) for value in (corner, factor))
        return (points - shift) * scale - 0.5

    there = geometry.pixel_grid(scene.size).double() + 0.5
    points = corner[:, None, None] + there / factor[:, None, None]  # [B, H, W, 2]
    points = points.clamp(min=torch.zeros(2), max=edge - 1).float().to(device, non_blocking=True)
    x, y = points.round().long().unbind(-1)
    rows = torch.arange(len(scene), device=device)[:, None, None]

    def nearest(images: Tensor) -> Tensor:
        """``[B, ..., C, H, W]``; no mean of what is known and what is not."""
        flat = images.flatten(1, -3)
        return flat[rows, :, y, x].permute(0, 3, 1, 2).view_as(images)

    scene = scene.to(device)
    changed = {"frames": geometry.sample(scene.frames.flatten(1, 2), points).view_as(scene.frames)}
    for name in ("flow", "occluded", "depth", "occluder"):
        if (value := getattr(scene, name)) is not None:
            changed[name] = nearest(value)
    if scene.flow is not None:
        changed["flow"] = changed["flow"] * factor.to(scene.flow)[:, :, None, None]
    if scene.surface is not None:
        changed["surface"] = move(scene.surface)
    if scene.boxes is not None:
        inside = move(scene.boxes[..., :4].unflatten(-1, (2, 2))).clamp(min=-0.5)
        inside = inside.minimum(edge.to(inside) - 0.5).flatten(-2)
        gone = (inside[..., 2:] <= inside[..., :2]).any(dim=-1, keepdim=True)
        changed["boxes"] = torch.cat([inside, scene.boxes[..., 4:]], dim=-1).masked_fill(gone, torch.nan)
    if scene.intrinsics is not None:
        lens = torch.diag_embed(torch.cat([factor, factor, torch.ones_like(factor)], dim=1))
        lens[:, :2, 2] = -corner * factor - 0.5
        changed["intrinsics"] = (lens @ scene.intrinsics.double()).to(scene.intrinsics)
    return replace(scene, **changed)


def _object(scene: Scene, edge: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, 2]`` top left and bottom right of what the part must hold; the other way round where that is nothing."""
    nothing = edge.new_tensor(torch.nan).expand(len(scene), 1, 2)
    surface = nothing if scene.surface is None else scene.surface.flatten(1, 2)
    box = nothing if scene.boxes is None else scene.boxes[:, 0, :4].unflatten(-1, (2, 2))
    points = torch.cat([surface, box], dim=1)
    low = points.where(points.isfinite(), torch.inf).amin(dim=1).clamp(min=-0.5)
    high = points.where(points.isfinite(), -torch.inf).amax(dim=1).minimum(edge - 0.5)
    return low.minimum(edge - 0.5), high.clamp(min=-0.5)
