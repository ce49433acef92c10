"""What one random transformation of an image is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchattack.errors import InputError
from patchattack.seeding import Numbers


def check_range(
    key: str, value: Sequence[float], low: float = -float("inf"), high: float = float("inf")
) -> tuple[float, float]:
    """``value`` as (low, high).

    Raises:
        InputError: not two numbers in order within ``[low, high]``.
    """
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise InputError(f"{key}: expected [low, high] with {low:g} <= low <= high <= {high:g}, got {list(value)}")
    return float(value[0]), float(value[1])


def per_image(value: Tensor) -> Tensor:
    """``[N]`` as ``[N, 1, 1, 1]``, to meet images."""
    return value.view(-1, 1, 1, 1)


class _Saturate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        cut = image.clamp(0, 1)
        ctx.save_for_backward(image == cut)
        return cut

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        return gradients[0] * kept


def saturate(image: Tensor) -> Tensor:
    """``image`` cut off at 0 and 1. A value at the bound, as many of a patch's are, keeps its gradient.

    ``clamp`` takes that away since torch 2.15: a texel that is black or white once would stay so.
    """
    cut: Tensor = _Saturate.apply(image)
    return cut


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
    def draw(self, numbers: Numbers) -> Tensor:
        """The parameters of N images, float32 ``[N, ...]``; the shape of one image's never changes.

        Args:
            numbers: random ones for N rows, this transform's own.
        """

    @abstractmethod
    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """The changed images.

        Args:
            image: ``[N, 3, h, w]`` in [0, 1].
            parameters: ``[N, ...]`` as :meth:`draw` gives them.
            origin: ``[N, 2]`` the (x, y) of the image's first pixel in the frame; zeros for a texture.

        Returns:
            ``[N, 3, h, w]``; the renderer cuts it off at 0 and 1.
        """
