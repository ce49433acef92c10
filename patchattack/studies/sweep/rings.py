"""How far a patch reaches: regions by their distance from its edge."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor

from patchattack.scene import View

EDGES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # sides of the patch away from its edge
RINGS = {f"{low:g} to {high:g} sides away": (low, high) for low, high in pairwise(EDGES)}


def rings(view: View) -> dict[str, Tensor]:
    """``[H, W]`` bool for each of :data:`RINGS`: pixels without the patch, by how far they are from one that shows it.

    Distances are in sides: of the square that has as many pixels as the patch, in the frame that shows most of it.

    Args:
        view: whose first scene counts.
    """
    coverage = view.coverage[0, :, 0] > 0
    patch = coverage.any(dim=0)
    side = float(coverage.sum(dim=(1, 2)).max()) ** 0.5
    outside = np.ascontiguousarray((~patch).cpu().numpy(), dtype=np.uint8)
    away = torch.from_numpy(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)).to(patch.device)
    return {name: (away > low * side) & (away <= high * side) for name, (low, high) in RINGS.items()}


def averages(values: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """``[B]`` for each of ``parts [H, W]``: the mean of ``values [B, H, W]`` where they are known, NaN without any."""
    found = {}
    for name, part in parts.items():
        known = part & ~values.isnan()
        found[name] = values.nan_to_num().mul(known).sum(dim=(1, 2)) / known.sum(dim=(1, 2))
    return found
