"""JPEG compression as a defence (Dziugaite et al. 2016; Guo et al. 2018)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from patchattack import pictures
from patchattack.defenses.defense import Preprocessing, straight_through
from patchattack.errors import InputError
from patchattack.jpeg import jpeg


class JpegDefense(Preprocessing):
    """Every frame goes through a JPEG file, as OpenCV writes and reads it.

    Its gradient is that of the differentiable codec of Shin & Song 2017 (as in kornia), of the same quality.

    Args:
        quality: in percent, as in a file.

    Raises:
        InputError: no such quality.
    """

    name = "jpeg"

    def __init__(self, quality: int = 75) -> None:
        if not 1 <= quality <= 100:
            raise InputError(f"defense.jpeg.quality: expected percent from 1 to 100, got {quality}")
        self.quality = quality

    def clean(self, images: Tensor) -> Tensor:
        """See :meth:`Preprocessing.clean`."""
        coded = torch.stack([self._compress(image) for image in images.detach()]).to(images)
        if not images.requires_grad:
            return coded
        return straight_through(coded, jpeg(images, images.new_full((len(images),), self.quality)))

    def _compress(self, image: Tensor) -> Tensor:
        """``image [3, H, W]`` after the file."""
        pixels = (image.cpu() * 255).round().byte().permute(1, 2, 0).numpy()
        _, file = cv2.imencode(
            ".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        )
        return pictures.decode(file) / 255
