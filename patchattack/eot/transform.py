"""What one random transformation of an image is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from patchattack.errors import InputError


def checked_range(
    key: str, value: Sequence[float], low: float = -float("inf"), high: float = float("inf")
) -> tuple[float, float]:
    """``value`` as (low, high).

    Raises:
        InputError: not two numbers in order within ``[low, high]``.
    """
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise InputError(f"{key}: expected [low, high] with {low:g} <= low <= high <= {high:g}, got {list(value)}")
    return float(value[0]), float(value[1])


def uniform(generator: torch.Generator, *ranges: tuple[float, float]) -> Tensor:
    """``[len(ranges)]`` float32 on the host, each uniform in its range."""
    low, high = torch.tensor(ranges).unbind(-1)
    return torch.rand(len(ranges), generator=generator) * (high - low) + low


def per_image(value: Tensor) -> Tensor:
    """``[N]`` as ``[N, 1, 1, 1]``, to meet images."""
    return value.view(-1, 1, 1, 1)


def saturate(image: Tensor) -> Tensor:
    """``image`` cut off at 0 and 1. A value at the bound, as many of a patch's are, keeps its gradient.

    ``clamp`` takes that away since torch 2.15: a texel that is black or white once would stay so.
    """
    cut = image.detach().clamp(0, 1)
    return torch.where(image == cut, image, cut)


class Transform(ABC):
    """A differentiable random change of images whose drawing is apart from its application.

    A draw can be replayed: on the patch, on its controls, for another victim.

    Attributes:
        margin: pixels that a change spreads.
        block: the change works on a grid of blocks of this many pixels that starts at the frame's corner.
        per_frame: both frames of a scene have draws of their own (noise) instead of one draw together.
    """

    margin = 0
    block = 1
    per_frame = False

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """The parameters of one image, a float32 tensor on the host whose shape never changes."""

    @abstractmethod
    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """The changed images.

        Args:
            image: ``[N, 3, h, w]`` in [0, 1].
            parameters: ``[N, ...]`` stacked draws.
            origin: ``[N, 2]`` the (x, y) of the image's first pixel in the frame; zeros for a texture.

        Returns:
            ``[N, 3, h, w]``; the renderer cuts it off at 0 and 1.
        """
