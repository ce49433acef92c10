"""The same frame without the patch: what the victim would have said of a blank sheet, and of a grey card."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from patchattack.webcam.paper import White

_FINEST = 512  # texels along the mask's longer side: its edge is not wider than the camera's pixels


@dataclass(frozen=True)
class Counterfactual:
    """One frame with the patch's area replaced.

    Attributes:
        inpainted: ``[H, W, 3]`` uint8 RGB, the area continued from the paper around it: a blank sheet.
        grey: ``[H, W, 3]`` uint8 RGB, a card of middle grey under the same light, with the patch's outline.
        coverage: ``[H, W]`` uint8, 255 where a pixel shows nothing but the patch.
    """

    inpainted: np.ndarray
    grey: np.ndarray
    coverage: np.ndarray


class Stencil:
    """The patch's outline, laid over frames.

    Args:
        mask: ``[1, h, w]`` in [0, 1], 1 where the patch is printed.
    """

    def __init__(self, mask: Tensor) -> None:
        height, width = mask.shape[1:]
        factor = max(1, math.ceil(_FINEST / max(height, width)))
        texels = (mask[0].cpu() * 255).round().byte().numpy()
        self.texels = cv2.resize(texels, (width * factor, height * factor), interpolation=cv2.INTER_NEAREST)

    def replace(self, image: np.ndarray, corners: np.ndarray, white: White) -> Counterfactual:
        """The frame with the patch's area replaced; everything else stays as it is.

        The area is continued by the plane of the paper's brightness. General inpainting would draw the markers and
        whatever is behind the sheet into it: the white between them and the patch is a few pixels wide.

        What the lens has spread beyond the patch's edge goes too: the area is wider by a pixel and a hundredth of
        the patch's side, which is less than the white around it. The grey card has the patch's own outline.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.
            corners: ``[4, 2]`` pixels of the patch.
            white: brightness of the paper.
        """
        height, width = image.shape[:2]
        side = float(np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1).mean())
        spread = 1 + math.ceil(side / 100)
        limit = np.array([width, height])
        first = np.clip(np.floor(corners.min(axis=0)).astype(int) - spread - 1, 0, limit - 1)
        last = np.clip(np.ceil(corners.max(axis=0)).astype(int) + spread + 2, first + 1, limit)
        part = (slice(first[1], last[1]), slice(first[0], last[0]))
        size = int(last[1] - first[1]), int(last[0] - first[0])

        cover = self._coverage(corners - first, size)
        hole = cv2.dilate(cover, np.ones((2 * spread + 1, 2 * spread + 1), np.uint8))
        inpainted, grey, coverage = image.copy(), image.copy(), np.zeros((height, width), np.uint8)
        sheet = white.image(first, size)
        inpainted[part] = blank = _over(image[part], sheet, hole)
        grey[part] = _over(blank, sheet // 2, cover)
        coverage[part] = cover
        return Counterfactual(inpainted, grey, coverage)

    def _coverage(self, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """``[h, w]`` uint8 of the part with this size, where the patch has ``corners``."""
        height, width = self.texels.shape
        outline = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
        homography = cv2.getPerspectiveTransform(outline, corners.astype(np.float32))
        return cv2.warpPerspective(self.texels, homography, size[::-1], flags=cv2.INTER_LINEAR)


def versions(images: list[np.ndarray], without: list[Counterfactual]) -> Tensor:
    """``[3, T, 3, H, W]`` uint8: ``T`` images ``[H, W, 3]`` as seen, with a grey card, and inpainted."""
    rows = [images, [one.grey for one in without], [one.inpainted for one in without]]
    return torch.from_numpy(np.array(rows)).permute(0, 1, 4, 2, 3)  # copied once


def coverage(without: list[Counterfactual]) -> Tensor:
    """``[1, T, 1, H, W]`` uint8, how much of a pixel shows the patch."""
    return torch.from_numpy(np.stack([one.coverage for one in without]))[None, :, None]


def _over(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """``above`` over ``below``, both ``[h, w, 3]`` uint8, as much as ``cover [h, w]`` uint8 says."""
    share = cover.astype(np.float32) / 255
    return cv2.blendLinear(np.ascontiguousarray(below), above, 1 - share, share)
