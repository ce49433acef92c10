"""What print, light and surface do to the patch's own pixels. Drawn once per scene, applied to the texture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from patchattack.devices import constant, transfer
from patchattack.eot.transform import Transform, check_range, per_image
from patchattack.seeding import Numbers

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as in kornia and OpenCV


class Contrast(Transform):
    """Scale the texture's colours: ``range`` is the factor's (1 leaves them)."""

    def __init__(self, range: Sequence[float] = (0.8, 1.2)) -> None:
        self.range = check_range("appearance.contrast.range", range, 0)

    def draw(self, numbers: Numbers) -> Tensor:
        """A factor, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        weights = constant(LUMINANCE, image.dtype, image.device)
        mean = image.mean(dim=(-2, -1)) @ weights
        return torch.lerp(per_image(mean), image, per_image(parameters))


class Brightness(Transform):
    """Add light: ``range`` is in units of the full scale (0 leaves the texture)."""

    def __init__(self, range: Sequence[float] = (-0.1, 0.1)) -> None:
        self.range = check_range("appearance.brightness.range", range, -1, 1)

    def draw(self, numbers: Numbers) -> Tensor:
        """A summand, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        return image + per_image(parameters)


class Hue(Transform):
    """Turn the hue by ``range`` degrees and scale the saturation by ``saturation``."""

    def __init__(self, range: Sequence[float] = (-10, 10), saturation: Sequence[float] = (0.8, 1.2)) -> None:
        self.range = check_range("appearance.hue.range", range, -180, 180)
        self.saturation = check_range("appearance.hue.saturation", saturation, 0)

    def draw(self, numbers: Numbers) -> Tensor:
        """Degrees and factor, ``[N, 2]``."""
        return numbers.uniform(self.range, self.saturation)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        # A turn of the chroma plane: HSV would have no gradient at grey.
        grey, turns = (constant(part, image.dtype, image.device) for part in _chroma_turns())
        degrees, factor = parameters.unbind(1)
        turn = torch.addmm(grey, torch.view_as_real(torch.polar(factor, torch.deg2rad(degrees))), turns)
        return torch.bmm(turn.view(-1, 3, 3), image.flatten(2)).view(image.shape)


class WhiteBalance(Transform):
    """Light of another colour: red and blue gain against green, each in ``range``."""

    def __init__(self, range: Sequence[float] = (0.9, 1.1)) -> None:
        self.range = check_range("appearance.white_balance.range", range, 0)

    def draw(self, numbers: Numbers) -> Tensor:
        """Gains of red and blue, ``[N, 2]``."""
        return numbers.uniform(self.range, self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        green, others = (constant(part, image.dtype, image.device) for part in ((0, 1, 0), ((1, 0, 0), (0, 0, 1))))
        return image * torch.addmm(green, parameters, others).view(-1, 3, 1, 1)


class Illumination(Transform):
    """Light that falls off across the patch in a random direction: the far edges differ by up to ``strength``."""

    def __init__(self, strength: float = 0.3) -> None:
        self.range = check_range("appearance.illumination.strength", (0, strength), 0, 1)

    def draw(self, numbers: Numbers) -> Tensor:
        """Direction in degrees and strength, ``[N, 2]``."""
        return numbers.uniform((0, 360), self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        degrees, strength = parameters.unbind(1)
        one = constant((1.0,), image.dtype, image.device)
        return image * torch.addcmul(one, per_image(strength), _ramp(image, degrees), value=0.5)


class Shadow(Transform):
    """A soft straight shadow over part of the patch that takes away up to ``strength`` of the light."""

    def __init__(self, strength: float = 0.5, softness: float = 0.05) -> None:
        self.range = check_range("appearance.shadow.strength", (0, strength), 0, 1)
        self.softness = softness

    def draw(self, numbers: Numbers) -> Tensor:
        """Direction in degrees, place across the patch and strength, ``[N, 3]``."""
        return numbers.uniform((0, 360), (-1, 1), self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        degrees, place, strength = parameters.unbind(1)
        depth = (_ramp(image, degrees) - per_image(place)) / self.softness
        one = constant((1.0,), image.dtype, image.device)
        return image * torch.addcmul(one, per_image(strength), depth.sigmoid(), value=-1)


class PrintNoise(Transform):
    """Grain of paper and ink: a fixed Gaussian pattern per print with standard deviation up to ``sigma``."""

    GRAIN = 64

    def __init__(self, sigma: float = 0.03) -> None:
        self.range = check_range("appearance.print_noise.sigma", (0, sigma), 0)

    def draw(self, numbers: Numbers) -> Tensor:
        """The pattern, ``[N, 3, 64, 64]``, stretched over the texture."""
        return per_image(numbers.uniform(self.range)) * numbers.normal(3, self.GRAIN, self.GRAIN)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        size = image.shape[-2:]
        return image + torch.nn.functional.interpolate(parameters, size=size, mode="bilinear", align_corners=False)


def _ramp(image: Tensor, degrees: Tensor) -> Tensor:
    """``[N, 1, h, w]`` from -1 to 1 across the texture along ``degrees [N]``."""
    height, width = image.shape[-2:]
    along = torch.view_as_real((degrees * (1j * math.pi / 180)).exp())  # [N, 2] right and up
    along = along / torch.linalg.vector_norm(along, ord=1, dim=1, keepdim=True)
    return (along @ _sides(height, width, image.dtype, image.device)).view(-1, 1, height, width)


@lru_cache(maxsize=16)
def _sides(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[2, h·w]`` how far right and how far up each texel is, from -1 to 1."""
    right, down = ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1 for side in (width, height))
    sides = torch.stack(torch.meshgrid(right, -down, indexing="xy")).flatten(1)
    return transfer(sides.to(dtype), device)


@lru_cache(maxsize=1)
def _chroma_turns() -> tuple[Any, ...]:
    """Maps ``[9]`` of RGB: what stays; ``[2, 9]`` what goes by the cosine of a turn of the chroma, and by its sine."""
    from kornia.color import rgb_to_yuv, yuv_to_rgb

    one = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    there, back = (convert(one).view(3, 3).T for convert in (rgb_to_yuv, yuv_to_rgb))
    turns = torch.zeros(3, 3, 3, dtype=torch.float64)
    turns[0, 0, 0] = turns[1, 1, 1] = turns[1, 2, 2] = turns[2, 2, 1] = 1
    turns[2, 1, 2] = -1
    grey, *others = (tuple(turn) for turn in (back @ turns @ there).flatten(1).tolist())
    return grey, tuple(others)
