"""What lens, sensor and codec do. Drawn once per scene and shared by its frames, noise excepted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack.devices import constant, numbered
from patchattack.eot.transform import Transform, check_range, per_image
from patchattack.errors import InputError
from patchattack.jpeg import jpeg
from patchattack.seeding import Numbers


class Defocus(Transform):
    """Gaussian blur with a standard deviation in ``range`` pixels."""

    def __init__(self, range: Sequence[float] = (0.1, 1.2)) -> None:
        self.range = check_range("camera.defocus.range", range, 0.05)
        self.margin = int(3 * self.range[1] + 0.5)

    def draw(self, numbers: Numbers) -> Tensor:
        """Standard deviation in pixels, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        places = tuple(-0.5 * place**2 for place in range(-self.margin, self.margin + 1))
        line = (constant(places, image.dtype, image.device) / parameters.square()).softmax(dim=-1)
        side = line.shape[1]
        return _filter(image, line.view(-1, 1, 1, side), line.view(-1, 1, side, 1))


class MotionBlur(Transform):
    """Linear motion blur over up to ``length`` pixels (odd) in any direction."""

    def __init__(self, length: int = 5) -> None:
        if length < 3 or length % 2 == 0:
            raise InputError(f"camera.motion_blur.length: expected an odd number of pixels from 3 on, got {length}")
        self.length = length
        self.margin = length // 2

    def draw(self, numbers: Numbers) -> Tensor:
        """Direction in degrees and how much of the blurred image is mixed in, ``[N, 2]``."""
        return numbers.uniform((0, 360), (0, 1))

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        degrees, share = map(per_image, parameters.unbind(1))
        places = range(-self.margin, self.margin + 1)
        pixels = tuple(tuple(complex(x, y) for x in places) for y in places)
        nothing = tuple(tuple(float(x == y == 0) for x in places) for y in places)
        turn = (degrees * (1j * math.pi / 180)).exp()
        # A line of pixels, turned to the nearest ones.
        turned = torch.view_as_real(constant(pixels, turn.dtype, image.device) * turn).round().abs()
        line = (turned <= constant((self.margin, 0), image.dtype, image.device)).all(dim=-1).to(image.dtype)
        line = line / line.sum(dim=(2, 3), keepdim=True)
        return _filter(image, torch.lerp(constant(nothing, image.dtype, image.device), line, share))


class Gamma(Transform):
    """Another tone curve: the exponent is in ``range`` (1 leaves the image)."""

    def __init__(self, range: Sequence[float] = (0.8, 1.25)) -> None:
        self.range = check_range("camera.gamma.range", range, 0.01)

    def draw(self, numbers: Numbers) -> Tensor:
        """The exponent, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        # A power below 1 has an infinite slope at 0, so the curve begins a little further up.
        exponent, toe = per_image(parameters), 1 / 255
        black = toe**exponent
        # By the logarithm, whose gradient is a third of the work of a power's.
        return (((image + toe).log() * exponent).exp() - black) / ((1 + toe) ** exponent - black)


class SensorNoise(Transform):
    """Gaussian noise of every frame's own with a standard deviation in ``range``."""

    TILE = 64
    per_frame = True

    def __init__(self, range: Sequence[float] = (0.0, 0.02)) -> None:
        self.range = check_range("camera.sensor_noise.range", range, 0)

    def draw(self, numbers: Numbers) -> Tensor:
        """A tile of noise, ``[N, 3, 64, 64]``, that repeats over the frame."""
        return per_image(numbers.uniform(self.range)) * numbers.normal(3, self.TILE, self.TILE)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        rows, columns = (torch.arange(side, device=image.device) for side in image.shape[-2:])
        left, top = origin.view(-1, 2, 1, 1).unbind(1)
        x, y = (left + columns) % self.TILE, (top + rows.unsqueeze(1)) % self.TILE
        return image + parameters[numbered(len(image), image.device), :, y, x].permute(0, 3, 1, 2)


class Jpeg(Transform):
    """JPEG compression with a quality in ``range`` (percent), differentiable (Shin & Song 2017, as in kornia)."""

    margin = 17
    block = 16

    def __init__(self, range: Sequence[float] = (50, 95)) -> None:
        self.range = check_range("camera.jpeg.range", range, 1, 100)

    def draw(self, numbers: Numbers) -> Tensor:
        """Quality in percent, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        return jpeg(image, parameters[:, 0])


def _filter(image: Tensor, *kernels: Tensor) -> Tensor:
    """``image [N, 3, h, w]``, each filtered by its own of ``kernels [N, 1, kh, kw]``; its edge goes on as it is."""
    rows, columns = (sum(kernel.shape[side] // 2 for kernel in kernels) for side in (2, 3))
    filtered = F.pad(image.transpose(0, 1), (columns, columns, rows, rows), mode="replicate")
    for kernel in kernels:
        filtered = F.conv2d(filtered, kernel, groups=len(kernel))
    return filtered.transpose(0, 1)
