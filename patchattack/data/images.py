"""Image files as uint8 RGB tensors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from patchattack.errors import InputError

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read(path: Path) -> Tensor:
    """The image in ``path`` as uint8 RGB ``[3, h, w]`` (grey becomes three equal channels).

    Raises:
        InputError: the file is missing, damaged (a truncated file too) or has more than 8 bits per channel.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        _refuse_truncated(path)
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    if pixels is None:
        raise InputError(f"{path}: expected an image, got a file that cannot be decoded; replace it or take it away")
    if pixels.dtype != "uint8":
        raise InputError(f"{path}: expected 8 bits per channel, got {pixels.dtype}; take away what is not a frame")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _refuse_truncated(path: Path) -> None:
    """OpenCV decodes a JPEG that ends too early and fills the rest; PIL does not."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (1, 1))  # reads the whole file, but computes an eighth of its pixels
            image.load()
    except OSError as error:
        raise InputError(f"{path}: expected a whole JPEG, got '{error}'; replace it or take it away") from error


def read_16_bit(path: Path) -> Tensor:
    """float32 ``[H, W]`` or ``[H, W, 3]`` (blue, green, red) from a 16-bit PNG."""
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        got = "a file that cannot be decoded" if values is None else str(values.dtype)
        raise InputError(f"{path}: expected a 16-bit PNG, got {got}; copy the file again")
    return torch.from_numpy(values.astype(np.float32))
