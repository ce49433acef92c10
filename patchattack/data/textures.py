"""Procedural textures of the driving world: every one tiles the plane and is drawn from a generator."""

from __future__ import annotations

import torch
from torch import Tensor

from patchattack.seeding import uniform

KINDS = ("sky", "ground", "road", "facade", "vehicle", "poster")


def noise(count: int, size: int, generator: torch.Generator, low: float = 0.8, high: float = 1.8) -> Tensor:
    """Periodic noise ``[count, 1, size, size]`` of unit variance with spectra ``1 / f^a``, a uniform in [low, high)."""
    spectrum = torch.fft.rfft2(torch.randn(count, 1, size, size, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]) * size
    exponent = uniform(generator, (count, 1, 1, 1), low, high)
    spectrum = spectrum * frequency.clamp(min=1) ** -exponent * (frequency > 0)
    field = torch.fft.irfft2(spectrum, s=(size, size))
    return field / field.std(dim=(-2, -1), keepdim=True)


def bank(kind: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """``count`` textures of one of :data:`KINDS`, ``[count, 3, size, size]`` float32 in [0, 1]."""
    v, u = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    grain = noise(count, size, generator)

    def each(low: float, high: float) -> Tensor:
        return uniform(generator, (count, 1, 1, 1), low, high)

    def stripe(across: Tensor, centre: Tensor | float, width: Tensor | float) -> Tensor:
        return ((across - centre).abs() < width).float()

    if kind == "sky":
        texture = torch.tensor([0.55, 0.7, 0.9]).view(1, 3, 1, 1) * each(0.7, 1.1) + each(0.05, 0.15) * noise(
            count, size, generator, 1.5, 2.0
        )
    elif kind == "ground":
        texture = 0.2 + 0.3 * colour + each(0.08, 0.16) * grain
    elif kind == "road":
        dashes = stripe(u, 0.5, 0.025) * ((v * each(1, 4).round()) % 1 < each(0.4, 0.7))
        edges = stripe(u, each(0.03, 0.08), 0.02) + stripe(u, each(0.92, 0.97), 0.02)
        paint = (dashes + edges).clamp(max=1) * each(0.5, 0.9)
        texture = (each(0.2, 0.5) + each(0.04, 0.12) * grain) * (1 - paint) + paint
    elif kind == "facade":
        columns, rows = each(2, 7).round(), each(2, 6).round()
        window = stripe((u * columns) % 1, 0.5, each(0.2, 0.38)) * stripe((v * rows) % 1, 0.5, each(0.2, 0.38))
        cells = torch.rand(count, 8, 8, generator=generator)
        pick = torch.arange(count).view(-1, 1, 1)
        pane = cells[pick, (v * rows[:, 0]).long(), (u * columns[:, 0]).long()].unsqueeze(1) * 0.6
        wall = 0.15 + 0.7 * colour + each(0.03, 0.12) * grain
        texture = wall * (1 - window) + window * (pane + 0.05 * grain)
    elif kind == "vehicle":
        glass = stripe(v, each(0.2, 0.35), each(0.08, 0.15)) * stripe(u, 0.5, 0.42)
        lights = stripe(v, each(0.6, 0.75), 0.05) * (stripe(u, 0.12, 0.07) + stripe(u, 0.88, 0.07))
        tint = torch.rand(count, 3, 1, 1, generator=generator)
        body = colour + each(0.02, 0.08) * grain
        texture = body * (1 - glass) + glass * 0.15
        texture = texture * (1 - lights) + lights * tint
    elif kind == "poster":
        texture = colour + each(0.05, 0.2) * grain
        for _ in range(7):
            x, y, a, b = each(0.1, 0.9), each(0.1, 0.9), each(0.05, 0.35), each(0.05, 0.35)
            box = stripe(u, x, a) * stripe(v, y, b)
            disc = (((u - x) / a) ** 2 + ((v - y) / b) ** 2 < 1).float()
            shape = torch.where(each(0, 1) < 0.5, box, disc)
            tint = torch.rand(count, 3, 1, 1, generator=generator)
            texture = texture * (1 - shape) + shape * tint
    else:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {kind}")
    return texture.clamp(0, 1).expand(-1, 3, -1, -1)
