"""What the tasks' pictures have in common: colour maps, bars that explain them, and maps laid over a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SEEN_THROUGH = 0.3  # fraction of the grey frame in a map that lies over it
TEXT = "#1a1c1f"


def colour_map(values: Tensor, name: str) -> Tensor:
    """``[N, 3, H, W]`` in a colour map of matplotlib's for ``values [N, H, W]``, from its first colour at 0 to 1."""
    from matplotlib import colormaps

    colours = torch.tensor(colormaps[name](range(256)))[:, :3].float()
    return colours[(values.clamp(0, 1) * 255).round().long()].permute(0, 3, 1, 2)


def over(frame: Tensor, colours: Tensor) -> Tensor:
    """``[3, H, W]``: ``colours [3, H, W]`` over ``frame [3, H, W]`` in grey, so that one sees what they belong to."""
    grey = frame.detach().cpu().clamp(0, 1).mean(dim=0, keepdim=True)
    return (1 - SEEN_THROUGH) * colours + SEEN_THROUGH * grey


def enlarge(picture: Tensor, height: int) -> Tensor:
    """``picture [3, H, W]`` by the least whole factor that makes it at least ``height`` pixels high."""
    factor = max(1, -(-height // picture.shape[1]))
    if factor == 1:
        return picture
    return F.interpolate(picture[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]


def bar(name: str, labels: Sequence[str]) -> Tensor:
    """``[3, h, w]``: a colour map from left to right, with ``labels`` evenly below it, on white."""
    from PIL import Image, ImageDraw, ImageFont

    width, height, margin = 400, 26, 16
    colours = colour_map(torch.linspace(0, 1, width).expand(1, height, -1), name)[0]
    image = Image.new("RGB", (width + 2 * margin, height + 46), "white")
    image.paste(Image.fromarray((colours * 255).round().byte().permute(1, 2, 0).numpy()), (margin, 8))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(22)
    for place, label in enumerate(labels):
        share = place / (len(labels) - 1)
        anchor = "la" if share == 0 else "ra" if share == 1 else "ma"
        draw.text((margin + share * width, height + 14), label, TEXT, font, anchor=anchor)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
