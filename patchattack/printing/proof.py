"""Soft proof: what a printer will make of a patch's colours, by the ICC profile of its ink and paper."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchattack.errors import InputError, one_line
from patchattack.printing.colour import delta_e, lab

INKS = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}  # a profile's colour space to an image's mode


@dataclass(frozen=True)
class Proof:
    """A patch as printed.

    Attributes:
        texture: ``[3, h, w]`` sRGB in [0, 1]: what is in the printer's gamut is as it was.
        mean: colour difference to the patch, CIEDE2000, over the texels that are printed.
        most: which 95 % of these texels do not exceed.
    """

    texture: Tensor
    mean: float
    most: float


def proof(texture: Tensor, mask: Tensor, path: Path) -> Proof:
    """Colours to the printer's and back to sRGB, by LittleCMS: relative colorimetric, so that paper counts as white.

    Args:
        texture: ``[3, h, w]`` sRGB in [0, 1].
        mask: ``[1, h, w]``; above 0 is printed.
        path: of the ICC profile, RGB, CMYK or grey.

    Raises:
        InputError: it is missing or damaged, or no profile of a printer or display.
    """
    from PIL import Image, ImageCms

    pixels = (texture.permute(1, 2, 0) * 255).round().byte().numpy()
    srgb = ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    try:
        printer = ImageCms.ImageCmsProfile(io.BytesIO(path.expanduser().read_bytes()))
        ink = INKS[printer.profile.xcolor_space.strip()]
        # Through the printer's own numbers, whose ends are the ends of its gamut.
        there = ImageCms.buildTransform(srgb, printer, "RGB", ink, intent)
        back = ImageCms.buildTransform(printer, srgb, ink, "RGB", intent)
        inked = ImageCms.applyTransform(Image.fromarray(pixels), there)
        assert inked is not None  # a new image is asked for
        shown = ImageCms.applyTransform(inked, back)
    except (OSError, KeyError, ImageCms.PyCMSError) as error:
        raise InputError(
            f"proof: expected the ICC profile of a printer and its paper, got {path} ({one_line(error)})"
        ) from error
    assert shown is not None
    printed = np.asarray(shown)
    difference = delta_e(*(lab(torch.from_numpy(one / np.float32(255))) for one in (pixels, printed)))
    counts = difference[mask[0] > 0]
    result = torch.from_numpy(printed.copy()).permute(2, 0, 1).float() / 255
    return Proof(result, float(counts.mean()), float(counts.quantile(0.95)))
