"""Pixels between OpenCV's arrays and torch's tensors."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """``[T, 3, H, W]`` of ``T`` images ``[H, W, 3]``; they lie in memory as they did."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def to_array(frame: Tensor) -> np.ndarray:
    """``[H, W, 3]`` of ``frame [3, H, W]``."""
    return np.ascontiguousarray(frame.permute(1, 2, 0).numpy())


def to_floats(frames: Tensor) -> Tensor:
    """uint8 frames as float32 in [0, 1]; floats as they are."""
    return frames.float().div_(255) if frames.dtype == torch.uint8 else frames


def resize(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """``image [H, W, 3]`` at ``size`` (h, w), or as it is; areas are averaged."""
    if size is None or image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
