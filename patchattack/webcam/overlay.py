"""The live picture: the frame, what the victim makes of it, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from torch import Tensor

WIDTH, HEIGHT = 1280, 432  # pixels at most, of the two panels together: a window that fits a laptop's screen
_LINE = 24  # pixels of a line of text
_MARGIN = 10  # pixels
_SIZE = 0.5  # of the text, in OpenCV's unit
_PAPER, _INK, _MUTED, _BADGE = (24, 23, 21), (236, 234, 233), (171, 161, 154), (74, 70, 66)
_OUTLINE = (251, 138, 76)
_SHIFT = 4  # bits of a pixel's fraction


@dataclass(frozen=True)
class Text:
    """What is written below the panels, in ASCII, which is all that OpenCV can write.

    Attributes:
        state: of this frame, in a word or two.
        won: the state is a success.
        lines: of which the first goes beside the state.
        keys: what each key does, and whether it is on.
    """

    state: str
    won: bool
    lines: Sequence[str]
    keys: Mapping[str, bool] = field(default_factory=dict)


def outline(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """``image [H, W, 3]`` uint8 RGB with the patch's ``corners [4, 2]`` joined by a line, the top edge thicker."""
    drawn = image.copy()
    points = np.rint(corners * 2**_SHIFT).astype(np.int32)
    cv2.polylines(drawn, [points], True, _OUTLINE, 1, cv2.LINE_AA, _SHIFT)
    cv2.polylines(drawn, [points[:2]], False, _OUTLINE, 3, cv2.LINE_AA, _SHIFT)
    return drawn


def compose(
    frame: np.ndarray, corners: np.ndarray | None, picture: Tensor, legend: Tensor | None, text: Text
) -> np.ndarray:
    """Frame and picture side by side, the text below them.

    Args:
        frame: ``[H, W, 3]`` uint8 RGB.
        corners: ``[4, 2]`` of the patch in the frame, where it is seen.
        picture: ``[3, h, w]`` in [0, 1].
        legend: ``[3, h, w]`` in [0, 1], drawn into the picture's lower right corner.
        text: below.

    Returns:
        ``[h, w, 3]`` uint8 RGB, both sides even, as video codecs want it; the panels span about
        :data:`WIDTH` × :data:`HEIGHT` at most.
    """
    images = [frame, _pixels(picture)]
    proportions = sum(image.shape[1] / image.shape[0] for image in images)
    height = min(HEIGHT, round(WIDTH / proportions / 2) * 2)
    panels = [_of_height(image, height) for image in images]
    if corners is not None:
        factors = panels[0].shape[1] / frame.shape[1], height / frame.shape[0]
        panels[0] = outline(panels[0], (corners + 0.5) * factors - 0.5)
    if legend is not None:
        small = _pixels(legend)
        corner = panels[1][-_MARGIN - small.shape[0] : -_MARGIN, -_MARGIN - small.shape[1] : -_MARGIN]
        if corner.shape == small.shape:
            corner[:] = small
    above = np.concatenate(panels, axis=1)
    below = np.full((_LINE * (len(text.lines) + 1) + 16, above.shape[1], 3), _PAPER, np.uint8)
    start = _badge(below, text.state, text.won)
    for place, line in enumerate(text.lines):
        _write(below, place, start if place == 0 else _MARGIN, [(line, _INK)])
    keys = [(key, _OUTLINE if on else _MUTED) for key, on in text.keys.items()]
    _write(below, len(text.lines), _MARGIN, keys)
    return np.concatenate([above, below])


def _badge(below: np.ndarray, state: str, won: bool) -> int:
    """Write the state on a coloured ground; where it ends."""
    width, _ = cv2.getTextSize(state, cv2.FONT_HERSHEY_SIMPLEX, _SIZE, 1)[0]
    end = _MARGIN + width + 16
    cv2.rectangle(below, (_MARGIN, 5), (end, _LINE + 3), _OUTLINE if won else _BADGE, cv2.FILLED)
    _write(below, 0, _MARGIN + 8, [(state, _PAPER if won else _INK)])
    return end + _MARGIN


def _write(below: np.ndarray, place: int, start: int, parts: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
    """Write coloured parts into a line, smaller where they would not fit."""
    gap = 2 * _MARGIN
    widths = [cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _SIZE, 1)[0][0] for text, _ in parts]
    whole = sum(widths) + gap * (len(parts) - 1)
    factor = min(1.0, (below.shape[1] - start - _MARGIN) / max(whole, 1))
    x = float(start)
    for (text, colour), width in zip(parts, widths, strict=True):
        where = round(x), _LINE * (place + 1) - 2
        cv2.putText(below, text, where, cv2.FONT_HERSHEY_SIMPLEX, _SIZE * factor, colour, 1, cv2.LINE_AA)
        x += factor * (width + gap)


def _pixels(picture: Tensor) -> np.ndarray:
    """``[h, w, 3]`` uint8 of ``picture [3, h, w]`` in [0, 1]."""
    return np.ascontiguousarray((picture.detach().cpu().clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())


def _of_height(image: np.ndarray, height: int) -> np.ndarray:
    width = max(2, round(image.shape[1] * height / image.shape[0] / 2) * 2)
    smaller = image.shape[0] > height
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
