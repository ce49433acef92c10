"""Frames of a video, as far as OpenCV decodes them."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

DAMAGED = 100  # frames in a row that cannot be decoded, after which a video is at its end


def decode(video: cv2.VideoCapture) -> Iterator[np.ndarray | None]:
    """The frames ``[h, w, 3]`` uint8 BGR; None for one that cannot be decoded but has others after it."""
    failed = 0
    while failed < DAMAGED:
        there, image = video.read()
        if there:
            yield from [None] * failed
            yield image
        failed = 0 if there else failed + 1
