"""JPEG with a gradient, whose host waits for nothing: kornia's own codec reads the quality back from the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack.devices import constant


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Images as JPEG stores them (Shin & Song 2017, with the formulas of kornia's ``jpeg_codec_differentiable``).

    Args:
        images: ``[N, 3, h, w]`` in [0, 1].
        quality: ``[N]`` from 1 to 100; it gets no gradient.

    Returns:
        ``[N, 3, h, w]``, about [0, 1] and not cut off there.
    """
    count, _, height, width = images.shape
    there, black, back, zero, weights, *transforms, tables = (
        constant(part, images.dtype, images.device) for part in _constants()
    )
    to_waves, from_waves = (transform.expand(count, 64, 64) for transform in transforms)
    padded = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    size = padded.shape[2:]
    shape = (count, 3, *size)
    colours = torch.baddbmm(black, there.expand(count, 3, 3), padded.flatten(2)).view(shape)
    # Chroma at half the resolution, antialiased.
    chroma = F.conv2d(F.pad(colours[:, 1:], (1, 1, 1, 1), mode="reflect"), weights, stride=2, groups=2)
    # The planes of chroma stand below one another: of either kind [N, 64, h/8, w/8], a column of pixels for each block.
    light, chroma = (F.pixel_unshuffle(each, 8) for each in (colours[:, :1], chroma.view(count, 1, size[0], -1)))
    counts = [each.shape[2] * each.shape[3] for each in (light, chroma)]
    steps = _steps(tables, quality).split(1, dim=2)  # [N, 64, 1] of each kind
    steps = torch.cat([step.expand(-1, -1, blocks) for step, blocks in zip(steps, counts, strict=True)], dim=2)
    coefficients = torch.bmm(to_waves, torch.cat([light.flatten(2), chroma.flatten(2)], dim=2)) / steps
    whole = coefficients.detach().round()
    coefficients = whole + (coefficients - whole) ** 3
    columns = torch.bmm(from_waves, coefficients * steps).split(counts, dim=2)
    light, chroma = (
        F.pixel_shuffle(column.view(each.shape), 8) for column, each in zip(columns, (light, chroma), strict=True)
    )
    chroma = chroma.view(count, 2, size[0] // 2, size[1] // 2)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    colours = torch.cat([light, chroma], dim=1).flatten(2)
    return torch.baddbmm(zero, back.expand(count, 3, 3), colours).view(shape)[..., :height, :width]


def _steps(tables: Tensor, quality: Tensor) -> Tensor:
    """``[N, 64, 2]`` the steps to which light and chroma are rounded, of ``tables [64, 2]``."""
    quality = quality.detach().view(-1, 1, 1)
    scale = _floor(torch.where(quality < 50, 5000 / quality, 200 - 2 * quality))
    steps = (tables * scale + 50) / 100
    # Cut off at 1 and 255 softly.
    cut = steps.clamp(1, 255)
    beyond = cut - steps
    return _floor(cut + 0.02 * beyond.sign() * torch.expm1(-beyond.abs()))


def _floor(values: Tensor) -> Tensor:
    """A floor with a slope."""
    whole = values.floor()
    return whole + (values - 0.5 - whole) ** 3


@lru_cache(maxsize=1)
def _constants() -> tuple[Any, ...]:
    """Maps of colours to levels about 0 and back, weights of the pixels that make one of chroma, the discrete cosine
    transform of a block's pixels and its inverse, and tables.
    """
    from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb
    from kornia.enhance import JPEGCodecDifferentiable

    there, black = _affine(rgb_to_ycbcr)
    back, zero = _affine(ycbcr_to_rgb)
    side, middle = (math.exp(-2 * place**2) for place in (1, 0))  # a Gaussian with a deviation of half a pixel
    four = torch.tensor([side, side + middle, side + middle, side], dtype=torch.float64) / (2 * side + middle) / 2
    places = torch.arange(8, dtype=torch.float64)
    dct = torch.cos((2 * places + 1) * places[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    codec: Any = JPEGCodecDifferentiable()
    tables = torch.stack([codec.quantization_table_y.flatten(), codec.quantization_table_c.flatten()], dim=1)
    waves = torch.kron(dct, dct)
    levels = (
        *(255 * there, 255 * black - 128, back / 255, zero + back.sum(dim=1).view(1, 3, 1) * 128 / 255),
        *(torch.outer(four, four).expand(2, 1, 4, 4), waves, waves.T, tables),
    )
    return tuple(_to_tuples(part.tolist()) for part in levels)


def _affine(convert: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """``[3, 3]`` and ``[1, 3, 1]`` of a map of colours that is affine but for a cut at 0 and 1."""
    colours = 0.5 + 0.1 * torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()  # far from where it cuts
    grey, *others = convert(colours.view(4, 3, 1, 1)).view(4, 3)
    matrix = torch.stack([other - grey for other in others], dim=1) / 0.1
    return matrix, (grey - matrix.sum(dim=1) / 2).view(1, 3, 1)


def _to_tuples(values: Any) -> Any:
    """Lists as tuples, at every depth."""
    return tuple(map(_to_tuples, values)) if isinstance(values, list) else values
