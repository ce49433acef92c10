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
    parts = _constants()
    there, black, back, zero, weights, cosines, tables = (constant(part, images.dtype, images.device) for part in parts)
    padded = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    size = padded.shape[2:]
    shape = (count, 3, *size)
    colours = torch.baddbmm(black, there.expand(count, 3, 3), padded.flatten(2)).view(shape)
    # Chroma at half the resolution, antialiased.
    chroma = F.conv2d(F.pad(colours[:, 1:], (1, 1, 1, 1), mode="reflect"), weights, stride=2, groups=2)
    blocks = [_blocks(colours[:, :1]), _blocks(chroma)]
    lengths = [part.shape[1] for part in blocks]
    steps = _steps(tables, quality)  # [N, 2, 64]
    steps = torch.cat([steps[:, n : n + 1].expand(-1, length, -1) for n, length in enumerate(lengths)], dim=1)
    coefficients = torch.cat(blocks, dim=1) @ cosines / steps
    whole = coefficients.detach().round()
    coefficients = whole + (coefficients - whole) ** 3
    light, chroma = (coefficients * steps @ cosines.T).split(lengths, dim=1)
    chroma = F.interpolate(
        _join(chroma, 2, (size[0] // 2, size[1] // 2)), scale_factor=2, mode="bilinear", align_corners=False
    )
    colours = torch.cat([_join(light, 1, (size[0], size[1])), chroma], dim=1).flatten(2)
    return torch.baddbmm(zero, back.expand(count, 3, 3), colours).view(shape)[..., :height, :width]


def _blocks(planes: Tensor) -> Tensor:
    """``[N, C, h, w]`` as the blocks of all planes, ``[N, C·h/8·w/8, 64]``."""
    count, planes_each, height, width = planes.shape
    cut = planes.reshape(count, planes_each, height // 8, 8, width // 8, 8)
    return cut.transpose(3, 4).reshape(count, -1, 64)


def _join(blocks: Tensor, planes: int, size: tuple[int, int]) -> Tensor:
    """The reverse of :func:`_blocks`, ``[N, C, h, w]``."""
    count, (height, width) = len(blocks), size
    return blocks.view(count, planes, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(count, planes, *size)


def _steps(tables: Tensor, quality: Tensor) -> Tensor:
    """``[N, 2, 64]`` the steps to which light and chroma are rounded, of ``tables [2, 64]``."""
    quality = quality.detach().view(-1, 1, 1)
    scale = _floor(torch.where(quality < 50, 5000 / quality, 200 - 2 * quality))
    steps = (tables * scale + 50) / 100
    # Cut off at 1 and 255 softly.
    steps = torch.where(steps > 255, 255 + 0.02 * (1 - (255 - steps).exp()), steps)
    return _floor(torch.where(steps < 1, 1 - 0.02 * (1 - (steps - 1).exp()), steps))


def _floor(values: Tensor) -> Tensor:
    """A floor with a slope."""
    whole = values.floor()
    return whole + (values - 0.5 - whole) ** 3


@lru_cache(maxsize=1)
def _constants() -> tuple[Any, ...]:
    """Maps of colours to levels about 0 and back, weights of the pixels that make one of chroma, DCT, and tables."""
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
    tables = torch.stack([codec.quantization_table_y.flatten(), codec.quantization_table_c.flatten()])
    levels = (
        *(255 * there, 255 * black - 128, back / 255, zero + back.sum(dim=1).view(1, 3, 1) * 128 / 255),
        *(torch.outer(four, four).expand(2, 1, 4, 4), torch.kron(dct, dct).T, tables),
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
