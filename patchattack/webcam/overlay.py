"""The live picture: the frame, what the victim makes of it, and how it stands."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

HEIGHT = 432  # pixels of the two panels
_LINE = 24  # pixels of a line of text
_PAPER, _INK, _MUTED = (24, 23, 21), (236, 234, 233), (171, 161, 154)
_OUTLINE = (251, 138, 76)
_SHIFT = 4  # bits of a pixel's fraction


def outlined(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """``image [H, W, 3]`` uint8 RGB with the patch's ``corners [4, 2]`` joined by a line, the top edge thicker."""
    drawn = image.copy()
    points = np.rint(corners * 2**_SHIFT).astype(np.int32)
    thin = max(1, image.shape[0] // 360)
    cv2.polylines(drawn, [points], True, _OUTLINE, thin, cv2.LINE_AA, _SHIFT)
    cv2.polylines(drawn, [points[:2]], False, _OUTLINE, 3 * thin, cv2.LINE_AA, _SHIFT)
    return drawn


def compose(frame: np.ndarray, picture: Tensor, lines: Sequence[str]) -> np.ndarray:
    """Frame and picture side by side, the text below them; the last line is muted.

    Args:
        frame: ``[H, W, 3]`` uint8 RGB.
        picture: ``[3, h, w]`` in [0, 1].
        lines: ASCII, which is all that OpenCV can write.

    Returns:
        ``[HEIGHT + ..., w, 3]`` uint8 RGB, both sides even, as video codecs want it.
    """
    pixels = (picture.detach().cpu().clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    panels = [_of_height(panel) for panel in (frame, np.ascontiguousarray(pixels))]
    above = np.concatenate(panels, axis=1)
    below = np.full((_LINE * len(lines) + 12, above.shape[1], 3), _PAPER, np.uint8)
    for place, line in enumerate(lines):
        colour = _MUTED if place == len(lines) - 1 else _INK
        cv2.putText(below, line, (10, _LINE * (place + 1) - 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return np.concatenate([above, below])


def _of_height(image: np.ndarray) -> np.ndarray:
    width = max(2, round(image.shape[1] * HEIGHT / image.shape[0] / 2) * 2)
    smaller = image.shape[0] > HEIGHT
    return cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
