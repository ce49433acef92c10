"""A printer and a camera that nobody has measured."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from patchattack import seeding

_GAMMA = 2.2  # of the camera: light is a value to this power
_POWERS = np.array([power for power in itertools.product(range(4), repeat=3) if 2 <= sum(power) <= 3])
_MODEL, _NOISE = 5, 6  # what a generator is for, besides the seed


@dataclass(frozen=True)
class Unknown:
    """A smooth response of ink and paper, and a lens and a sensor.

    What is printed is darker in the middle tones (dot gain), then a polynomial of degree 3 in red, green and blue,
    whose linear part mixes the channels and whose black is not quite black.

    Attributes:
        seed: that it is drawn from.
        gain: how much darker a middle grey is printed.
        mix: ``[3, 3]``, the linear part.
        bend: ``[16, 3]``, factors of the monomials of degree 2 and 3.
        balance: of red, green and blue, factors on light: the white balance.
        vignetting: fraction of the light that is lost in the frame's corners.
        blur: standard deviation, pixels.
        noise: standard deviation of a pixel, of full scale.
    """

    seed: int
    gain: float
    mix: np.ndarray
    bend: np.ndarray
    balance: np.ndarray
    vignetting: float
    blur: float
    noise: float

    @classmethod
    def draw(cls, seed: int) -> Unknown:
        """The printer and the camera of a seed."""
        generator = seeding.generator(seed, _MODEL)

        def between(low: float, high: float, *shape: int) -> np.ndarray:
            return seeding.uniform(generator, shape or (1,), low, high).double().numpy()

        spill = between(0.04, 0.14, 3, 3) * (1 - np.eye(3))  # inks are not pure
        return cls(
            seed=seed,
            gain=float(between(0.04, 0.1)[0]),
            mix=spill + np.diag(1 - spill.sum(axis=0)),
            bend=between(-0.025, 0.025, len(_POWERS), 3),
            balance=between(0.92, 1.08, 3),
            vignetting=float(between(0.1, 0.35)[0]),
            blur=float(between(0.5, 0.9)[0]),
            noise=float(between(0.004, 0.012)[0]),
        )

    def print_image(self, image: np.ndarray) -> np.ndarray:
        """What paper shows of ``image [h, w, 3]`` uint8 RGB: float32 in [0, 1], each pixel by itself."""
        codes, place = np.unique(image.reshape(-1, 3) @ np.array([65536, 256, 1]), return_inverse=True)
        colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1) / 255
        inked = colours - 4 * self.gain * colours * (1 - colours)
        terms = np.stack([np.prod(inked**power, axis=-1) for power in _POWERS], axis=-1)
        shown = np.clip(0.06 + 0.84 * (inked @ self.mix + terms @ self.bend), 0, 1).astype(np.float32)
        return shown[place].reshape(image.shape)

    def photograph(self, image: np.ndarray, light: float, number: int) -> np.ndarray:
        """The photograph of what is before the camera.

        Args:
            image: ``[H, W, 3]`` float32 in [0, 1].
            light: factor on all light.
            number: of the photograph, which has noise of its own.

        Returns:
            ``[H, W, 3]`` uint8 RGB.
        """
        height, width = image.shape[:2]
        noise = torch.randn(height, width, 3, generator=seeding.generator(self.seed, _NOISE, number)).numpy()
        x, y = (np.linspace(-1, 1, length, dtype=np.float32) for length in (width, height))
        falloff = 1 - self.vignetting / 2 * np.add.outer(y**2, x**2)
        gain = (falloff[..., None] * np.float32(light * self.balance)) ** np.float32(1 / _GAMMA)
        seen = cv2.GaussianBlur(image, (0, 0), self.blur) * gain + np.float32(self.noise) * noise
        return np.rint(seen.clip(0, 1) * 255).astype(np.uint8)
