"""A picture of an image before and after an attack, with what the victim says and where pixels were set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIDE = 256  # pixels that each image is high and wide at least: a single one of its own can be seen
ORANGE = "#c2410c"


@dataclass(frozen=True)
class Side:
    """One half of the picture.

    Attributes:
        image: ``[3, H, W]`` in [0, 1].
        caption: what the victim says.
        rings: (x, y) of the pixels to ring.
    """

    image: Tensor
    caption: str
    rings: Sequence[tuple[int, int]] = ()


def before_after(before: Side, after: Side) -> Tensor:
    """``[3, h, w]`` in [0, 1]: both sides, enlarged without smoothing, their captions below."""
    from PIL import Image, ImageDraw, ImageFont

    factor = math.ceil(SIDE / min(before.image.shape[1:]))
    height, width = (side * factor for side in before.image.shape[1:])
    gap = line = SIDE // 10
    canvas = Image.new("RGB", (2 * width + gap, height + line), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(line * 0.6)
    for left, side in ((0, before), (width + gap, after)):
        pixels = side.image.mul(255).round().byte().permute(1, 2, 0).numpy()
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, 0))
        radius = max(1.5 * factor, SIDE / 24)
        for x, y in side.rings:
            centre = left + (x + 0.5) * factor, (y + 0.5) * factor
            for extra, colour in ((1, "white"), (0, ORANGE)):  # seen on any ground
                reach = radius + 2 * extra
                box = (centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)
                draw.ellipse(box, outline=colour, width=2)
        draw.text((left, height + line * 0.8), side.caption, "black", font, anchor="ls")
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
