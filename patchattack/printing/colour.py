"""sRGB to CIELAB, and CIEDE2000."""

from __future__ import annotations

import torch
from torch import Tensor


def lab(colours: Tensor) -> Tensor:
    """CIELAB (D65), ``[..., 3]``, of the sRGB ``colours [..., 3]`` in [0, 1]."""
    from kornia.color import rgb_to_lab

    return rgb_to_lab(colours[..., None, None])[..., 0, 0]


def linear(colours: Tensor) -> Tensor:
    """Linear light of sRGB values of any shape."""
    return torch.where(colours > 0.04045, ((colours.clamp(min=0) + 0.055) / 1.055) ** 2.4, colours / 12.92)


def encode(light: Tensor) -> Tensor:
    """The inverse of :func:`linear`."""
    return torch.where(light > 0.0031308, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, light * 12.92)


def delta_e(one: Tensor, other: Tensor) -> Tensor:
    """CIEDE2000 colour difference, parametric factors 1 (Sharma, Wu & Dalal 2005, equations 2 to 22).

    Args:
        one: ``[..., 3]`` CIELAB.
        other: ``[..., 3]`` CIELAB.

    Returns:
        ``[...]``, in units of which about one is just noticeable. Not meant for gradients: it has jumps.
    """
    lightness, a, b = torch.stack(torch.broadcast_tensors(one.double(), other.double())).unbind(-1)  # each [2, ...]
    mean_chroma = torch.hypot(a, b).mean(dim=0)
    stretch = 1.5 - 0.5 * (mean_chroma**7 / (mean_chroma**7 + 25.0**7)).sqrt()
    a = a * stretch
    chroma, hue = torch.hypot(a, b), torch.rad2deg(torch.atan2(b, a)) % 360
    coloured = chroma[0] * chroma[1] != 0

    turn = hue[1] - hue[0]
    # Exactly half a turn stays as it is, whatever rounding makes of it: the mean hue would jump to the other side.
    turn = torch.where(turn.abs() <= 180 + 1e-9, turn, turn - 360 * turn.sign()) * coloured
    d_lightness, d_chroma = lightness[1] - lightness[0], chroma[1] - chroma[0]
    d_hue = 2 * chroma.prod(dim=0).sqrt() * torch.sin(torch.deg2rad(turn) / 2)

    mean_lightness, mean_chroma = lightness.mean(dim=0), chroma.mean(dim=0)
    mean_hue = torch.where(coloured, (hue[0] + turn / 2) % 360, hue.sum(dim=0))

    def cos(degrees: Tensor) -> Tensor:
        return torch.cos(torch.deg2rad(degrees))

    weight = (
        1
        - 0.17 * cos(mean_hue - 30)
        + 0.24 * cos(2 * mean_hue)
        + 0.32 * cos(3 * mean_hue + 6)
        - 0.20 * cos(4 * mean_hue - 63)
    )
    middle = (mean_lightness - 50) ** 2
    term_l = d_lightness / (1 + 0.015 * middle / (20 + middle).sqrt())
    term_c = d_chroma / (1 + 0.045 * mean_chroma)
    term_h = d_hue / (1 + 0.015 * mean_chroma * weight)
    angle = 60 * torch.exp(-(((mean_hue - 275) / 25) ** 2))
    rotation = -2 * (mean_chroma**7 / (mean_chroma**7 + 25.0**7)).sqrt() * torch.sin(torch.deg2rad(angle))
    return (term_l**2 + term_c**2 + term_h**2 + rotation * term_c * term_h).sqrt()
