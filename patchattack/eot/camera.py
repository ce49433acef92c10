"""What lens, sensor and codec do. Drawn once per scene and shared by its frames, noise excepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack.eot.jpeg import jpeg
from patchattack.eot.transform import Transform, checked_range, per_image
from patchattack.devices import numbered
from patchattack.errors import InputError
from patchattack.seeding import Numbers


class Defocus(Transform):
    """Gaussian blur with a standard deviation in ``range`` pixels."""

    def __init__(self, range: Sequence[float] = (0.1, 1.2)) -> None:
        self.range = checked_range("camera.defocus.range", range, 0.05)
        self.margin = int(3 * self.range[1] + 0.5)

    def draw(self, numbers: Numbers) -> Tensor:
        """Standard deviation in pixels, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        places = torch.arange(-self.margin, self.margin + 1, device=image.device)
        line = (places / parameters).square().mul(-0.5).softmax(dim=-1)
        return _filtered(_filtered(image, line[:, None, :]), line[:, :, None])


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
        angle = torch.deg2rad(parameters[:, :1, None])
        places = torch.arange(-self.margin, self.margin + 1, device=image.device)
        right, up = angle.cos(), angle.sin()
        # A line of pixels, turned to the nearest ones.
        along, across = right * places - up * places[:, None], up * places + right * places[:, None]
        line = ((along.round().abs() <= self.margin) & (across.round() == 0)).to(image.dtype)
        blurred = _filtered(image, line / line.sum(dim=(1, 2), keepdim=True))
        return torch.lerp(image, blurred, per_image(parameters[:, 1]))


class Gamma(Transform):
    """Another tone curve: the exponent is in ``range`` (1 leaves the image)."""

    def __init__(self, range: Sequence[float] = (0.8, 1.25)) -> None:
        self.range = checked_range("camera.gamma.range", range, 0.01)

    def draw(self, numbers: Numbers) -> Tensor:
        """The exponent, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        # A power below 1 has an infinite slope at 0, so the curve begins a little further up.
        exponent, toe = per_image(parameters), 1 / 255
        black = toe**exponent
        return ((image + toe) ** exponent - black) / ((1 + toe) ** exponent - black)


class SensorNoise(Transform):
    """Gaussian noise of every frame's own with a standard deviation in ``range``."""

    TILE = 64
    per_frame = True

    def __init__(self, range: Sequence[float] = (0.0, 0.02)) -> None:
        self.range = checked_range("camera.sensor_noise.range", range, 0)

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
        self.range = checked_range("camera.jpeg.range", range, 1, 100)

    def draw(self, numbers: Numbers) -> Tensor:
        """Quality in percent, ``[N, 1]``."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        return jpeg(image, parameters[:, 0])


def _filtered(image: Tensor, kernels: Tensor) -> Tensor:
    """``image [N, 3, h, w]``, each filtered by its own of ``kernels [N, kh, kw]``; its edge goes on as it is."""
    rows, columns = (side // 2 for side in kernels.shape[1:])
    padded = F.pad(image.transpose(0, 1), (columns, columns, rows, rows), mode="replicate")
    return F.conv2d(padded, kernels.unsqueeze(1), groups=len(kernels)).transpose(0, 1)
