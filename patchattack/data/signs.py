"""Procedural traffic signs: a shape, a rim and a symbol in paint that has aged, on a square plate."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from patchattack.data.textures import noise
from patchattack.seeding import uniform

Lines = tuple[tuple[tuple[float, float], ...], ...]  # polylines of (x, y), each in [-1, 1], y down

COLOURS = {
    "red": (0.8, 0.08, 0.1),
    "blue": (0.08, 0.25, 0.7),
    "yellow": (0.95, 0.75, 0.1),
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.08),
}
# Sides (0: a disc), direction of the first side's normal in degrees clockwise from the right, distance of the sides
# from their centre, and how far that lies below the middle of the plate.
SHAPES = {
    "disc": (0, 0.0, 0.95, 0.0),
    "octagon": (8, 0.0, 0.92, 0.0),
    "square": (4, 0.0, 0.85, 0.0),
    "diamond": (4, 45.0, 0.67, 0.0),
    "triangle": (3, 90.0, 0.56, 0.26),
    "triangle on its tip": (3, -90.0, 0.56, -0.26),
}
_BOX = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0))
_FIVE = ((1.0, 0.0), (0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
GLYPHS: dict[str, Lines] = {  # x and y in [0, 1]
    "0": (_BOX,),
    "3": (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), ((0.3, 0.5), (1.0, 0.5))),
    "5": (_FIVE,),
    "8": (_BOX, ((0.0, 0.5), (1.0, 0.5))),
    "S": (_FIVE,),
    "T": (((0.0, 0.0), (1.0, 0.0)), ((0.5, 0.0), (0.5, 1.0))),
    "O": (_BOX,),
    "P": (((0.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)),),
}


@dataclass(frozen=True)
class Sign:
    """What a sign looks like; lengths are in halves of the plate's side.

    Attributes:
        shape: one of :data:`SHAPES`.
        rim, face: colours at the edge and within.
        border: width of the rim.
        symbol: lines on the face.
        ink: their colour.
        stroke: half their width.
    """

    shape: str
    rim: str
    face: str
    border: float
    symbol: Lines = ()
    ink: str = "white"
    stroke: float = 0.1


def text(letters: str, width: float, height: float, gap: float) -> Lines:
    """``letters`` side by side about the middle of the plate, each ``width`` wide."""
    left = -(len(letters) * (width + gap) - gap) / 2
    return tuple(
        tuple((left + i * (width + gap) + x * width, (y - 0.5) * height) for x, y in line)
        for i, letter in enumerate(letters)
        for line in GLYPHS[letter]
    )


def arrow(*shaft: tuple[float, float], head: float = 0.33) -> Lines:
    """A line through the points of ``shaft`` with a barbed head at the last one."""
    (x0, y0), (x, y) = shaft[-2:]
    back = math.atan2(y0 - y, x0 - x)
    ends = [(x + head * math.cos(back + turn), y + head * math.sin(back + turn)) for turn in (-0.8, 0.8)]
    return shaft, (ends[0], (x, y), ends[1])


def _circling() -> Lines:
    """Three arrows that chase one another clockwise around the middle."""
    lines: Lines = ()
    for start in (0, 120, 240):
        angles = [math.radians(start + step) for step in (0, 20, 40, 60, 80)]
        lines += arrow(*[(0.5 * math.cos(a), 0.5 * math.sin(a)) for a in angles], head=0.28)
    return lines


_WALKER: Lines = (
    ((0.0, -0.22), (0.0, -0.2)),
    ((0.0, 0.0), (0.0, 0.3), (-0.2, 0.65)),
    ((0.0, 0.3), (0.2, 0.65)),
    ((-0.25, 0.2), (0.0, 0.02), (0.25, 0.2)),
)
SIGNS = {
    "stop": Sign("octagon", "white", "red", 0.07, text("STOP", 0.25, 0.55, 0.15), stroke=0.055),
    "yield": Sign("triangle on its tip", "red", "white", 0.2),
    "no_entry": Sign("disc", "white", "red", 0.06, (((-0.5, 0.0), (0.5, 0.0)),), stroke=0.17),
    "no_stopping": Sign(
        "disc", "red", "blue", 0.16, (((-0.55, -0.55), (0.55, 0.55)), ((-0.55, 0.55), (0.55, -0.55))), "red", 0.08
    ),
    "speed_30": Sign("disc", "red", "white", 0.18, text("30", 0.36, 0.68, 0.27), "black", 0.075),
    "speed_50": Sign("disc", "red", "white", 0.18, text("50", 0.36, 0.68, 0.27), "black", 0.075),
    "speed_80": Sign("disc", "red", "white", 0.18, text("80", 0.36, 0.68, 0.27), "black", 0.075),
    "turn_left": Sign("disc", "white", "blue", 0.06, arrow((0.55, 0.0), (-0.55, 0.0))),
    "turn_right": Sign("disc", "white", "blue", 0.06, arrow((-0.55, 0.0), (0.55, 0.0))),
    "straight_on": Sign("disc", "white", "blue", 0.06, arrow((0.0, 0.55), (0.0, -0.55))),
    "roundabout": Sign("disc", "white", "blue", 0.06, _circling(), stroke=0.08),
    "priority_road": Sign("diamond", "white", "yellow", 0.2),
    "crossing": Sign("triangle", "red", "white", 0.14, _WALKER, "black", 0.07),
    "curve": Sign(
        "triangle",
        "red",
        "white",
        0.14,
        arrow((-0.12, 0.6), (-0.12, 0.35), (0.14, 0.15), (0.14, -0.2), head=0.25),
        "black",
        0.07,
    ),
    "parking": Sign("square", "white", "blue", 0.06, text("P", 0.45, 1.0, 0.0), stroke=0.11),
    "end_of_limit": Sign(
        "disc",
        "black",
        "white",
        0.05,
        tuple(((d - 0.55, d + 0.55), (d + 0.55, d - 0.55)) for d in (-0.15, 0.0, 0.15)),
        "black",
        0.04,
    ),
}


def bank(kind: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """``count`` variants of one of :data:`SIGNS`, upright, ``[count, 3, size, size]`` float32 in [0, 1].

    They differ in the colour of paint and plate, in size, place and turn on the plate, in light and in dirt.
    """
    sign = SIGNS[kind]

    def each(low: float, high: float, channels: int = 1) -> Tensor:
        return uniform(generator, (count, channels, 1, 1), low, high)

    place = (torch.arange(size) + 0.5) / size * 2 - 1
    scale, angle = each(0.85, 0.98), torch.deg2rad(each(-4, 4))
    u, v = place / scale + each(-0.03, 0.03), place[:, None] / scale + each(-0.03, 0.03)
    x, y = u * angle.cos() - v * angle.sin(), u * angle.sin() + v * angle.cos()  # [count, 1, size, size]
    texture = (each(0.2, 0.8) + each(-0.1, 0.1, 3)).expand(-1, -1, size, size)
    edge = _distance_to_shape(sign.shape, x, y)
    layers = [(edge, sign.rim), (edge + sign.border, sign.face)]
    if sign.symbol:
        layers.append((_distance_to_lines(sign.symbol, x, y) - sign.stroke, sign.ink))
    for distance, colour in layers:
        paint = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1) * each(0.8, 1.05) + each(-0.05, 0.05, 3)
        covered = (0.5 - distance * scale * size / 2).clamp(0, 1)  # antialiased: the edge is one texel wide
        texture = torch.lerp(texture, paint, covered)
    light = each(0.85, 1.1) + each(0.01, 0.05) * noise(count, size, generator)
    dirt = each(0, 0.35) * noise(count, size, generator, 1.2, 2.0).sub(0.5).clamp(0, 1)
    return torch.lerp(texture * light, torch.tensor(0.3), dirt).clamp(0, 1)


def _distance_to_shape(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the nearest side, negative within (beyond a corner: to the nearest side's line)."""
    sides, first, reach, below = SHAPES[shape]
    if not sides:
        return torch.hypot(x, y) - reach
    angles = [math.radians(first + 360 * i / sides) for i in range(sides)]
    return torch.stack([x * math.cos(a) + (y - below) * math.sin(a) for a in angles]).amax(dim=0) - reach


def _distance_to_lines(lines: Lines, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the nearest point of any of the polylines."""
    distances = []
    for line in lines:
        for (x0, y0), (x1, y1) in itertools.pairwise(line):
            along_x, along_y = x1 - x0, y1 - y0
            share = ((x - x0) * along_x + (y - y0) * along_y) / (along_x**2 + along_y**2)
            share = share.clamp(0, 1)
            distances.append(torch.hypot(x - x0 - share * along_x, y - y0 - share * along_y))
    return torch.stack(distances).amin(dim=0)
