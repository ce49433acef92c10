"""Textures of few numbers: what a search without gradients can hope to find in few queries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from patchattack.errors import InputError

KINDS = ("pixels", "dct", "grid")


class Basis:
    """A linear map from coefficients to a texture, the same for rows, columns and colours.

    ``pixels`` is the texture itself. ``dct`` takes the lowest frequencies of the cosine transform, as low-frequency
    black-box attacks do (Guo et al. 2019); ``grid`` takes cells of one colour. All are scaled so that independent
    coefficients of variance 1 give a texture whose mean variance is 1.

    Args:
        kind: ``pixels``, ``dct`` or ``grid``.
        resolution: coefficients along the longer side of the texture, for ``dct`` and ``grid``; more than texels are
            as many as texels.
        shape: ``[c, h, w]`` of the texture.
        device: of the texture.

    Attributes:
        shape: ``[c, k, l]`` of the coefficients.

    Raises:
        InputError: no such kind, or no resolution.
    """

    def __init__(self, kind: str, resolution: int, shape: torch.Size, device: torch.device | str = "cpu") -> None:
        if kind not in KINDS or resolution < 1:
            raise InputError(
                f"optimizer: expected basis of {', '.join(KINDS)} and resolution >= 1, got {kind} and {resolution}"
            )
        channels, *sides = shape
        longest = max(sides)
        counts = [
            side if kind == "pixels" else max(1, round(min(resolution, longest) * side / longest)) for side in sides
        ]
        make = _cosines if kind == "dct" else _cells  # a cell of a texel is a pixel
        across = [make(side, count) for side, count in zip(sides, counts, strict=True)]
        self._rows, self._columns = (matrix.float().to(device) for matrix in across)
        self._inverse_rows, self._inverse_columns = (_inverse(matrix).float().to(device) for matrix in across)
        self.shape = torch.Size((channels, *counts))

    def texture(self, coefficients: Tensor) -> Tensor:
        """``[c, h, w]`` of ``coefficients [c, k, l]``."""
        return self._rows @ coefficients @ self._columns.T

    def coefficients(self, texture: Tensor) -> Tensor:
        """``[c, k, l]`` whose texture is nearest to ``texture [c, h, w]``."""
        return self._inverse_rows @ texture @ self._inverse_columns.T


def _inverse(matrix: Tensor) -> Tensor:
    """The pseudo-inverse of a matrix whose columns are orthogonal, as those of waves and of cells are."""
    return matrix.T / matrix.square().sum(dim=0)[:, None]


def _cosines(side: int, count: int) -> Tensor:
    """``[side, count]``: the first columns of the orthonormal inverse cosine transform (DCT-II), scaled."""
    places = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    waves = torch.cos(math.pi * places[:, None] * torch.arange(count))
    waves[:, 1:] *= math.sqrt(2)
    return waves / math.sqrt(count)


def _cells(side: int, count: int) -> Tensor:
    """``[side, count]``: 1 where a texel lies in a cell."""
    cells = torch.arange(side) * count // side
    return torch.nn.functional.one_hot(cells, count).double()
