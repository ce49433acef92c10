"""What stands in the procedural world, drawn scene by scene from uniform numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchattack import geometry

if TYPE_CHECKING:
    from patchattack.data.world import World

VARIANTS = 6  # textures of each kind of sign


@dataclass(frozen=True)
class Planes:
    """``P`` parallelograms per scene in world coordinates (metres), each with its texture.

    Attributes:
        origin, u, v: ``[B, P, 3]``; a point is ``origin + a·u + b·v``.
        velocity: ``[B, P, 3]`` metres from frame 0 to frame 1.
        repeat: ``[B, P, 2]`` how often the texture repeats along u and v.
        tile: ``[B, P]`` int64 row of the texture bank.
        gain: ``[B, P, 3]`` light on the plane, a factor on its colour.
        objects: rows of each object's planes, the same in all scenes; the subject comes first, and the first of its
            planes is the surface.
        kinds: ``[B, N]`` int64 class of each object, or ``[B, 0]`` where there are no classes.
    """

    origin: Tensor
    u: Tensor
    v: Tensor
    velocity: Tensor
    repeat: Tensor
    tile: Tensor
    gain: Tensor
    objects: list[range]
    kinds: Tensor


class WorldLayout:
    """Planes, rotations to cameras and their centres for a batch of scenes.

    Every number is the next of ``draws``: the order of what follows is part of the world, and of what victims that were
    trained in it have seen.

    Args:
        world: whose sizes, textures and subject count.
        draws: uniform numbers ``[B, k]``.
        label: ``[B]`` number of the sign that is the subject; None where it is something else.

    Attributes:
        planes: of all scenes.
        rotations: to cameras, ``[B, 2, 3, 3]``.
        centres: of the cameras, ``[B, 2, 3]``.
    """

    def __init__(self, world: World, draws: Tensor, label: Tensor | None) -> None:
        self.world, self.label, self.draws, self.taken = world, label, draws.double(), 0
        self.rows: list[dict[str, Tensor]] = []
        self._street()
        vehicles = [self._vehicle(first=number == 0) for number in range(3)]
        roadside = [self._board() for _ in range(3)]
        self.rotations, self.centres = self._cameras()
        objects: list[range] = []
        kinds = torch.empty(len(draws), 0, dtype=torch.long)
        if world.subject == "vehicle":
            objects, kinds = [*vehicles, *roadside], torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(len(draws), -1)
        elif world.subject != "none":
            objects = [range(len(self.rows), len(self.rows) + 1)]
            kinds = kinds if label is None else label.unsqueeze(1)
            self._subject()
        stacked = {name: torch.stack([row[name] for row in self.rows], dim=1) for name in self.rows[0]}
        light = self.take(0.6, 1.2).unsqueeze(1)
        self.planes = Planes(
            stacked["origin"],
            stacked["u"],
            stacked["v"],
            stacked["velocity"],
            stacked["repeat"].float(),
            stacked["tile"],
            (stacked["gain"] * light).float(),
            objects,
            kinds,
        )

    def take(self, low: float, high: float, n: int = 1) -> Tensor:
        """``[B, n]`` in [low, high)."""
        self.taken += n
        return self.draws[:, self.taken - n : self.taken] * (high - low) + low

    def xyz(self, x: Tensor | float, y: Tensor | float, z: Tensor | float) -> Tensor:
        """``[B, 3]``."""
        parts = [torch.as_tensor(one, dtype=torch.float64).expand(len(self.draws), 1) for one in (x, y, z)]
        return torch.cat(parts, dim=-1)

    def add(
        self, kind: str, origin: Tensor, u: Tensor, v: Tensor, metres: float = 0.0, velocity: Tensor | None = None
    ) -> None:
        """A plane; its texture spans ``metres``, or the whole plane once."""
        repeat = torch.ones(len(self.draws), 2, dtype=torch.float64)
        if metres:
            repeat = torch.stack([u.norm(dim=-1), v.norm(dim=-1)], dim=-1) / (metres * self.take(0.7, 1.5))
        tile = self.world.first_tile[kind] + (self.take(0, 1) * self.world.counts[kind]).long()
        self.rows.append(
            {
                "origin": origin,
                "u": u,
                "v": v,
                "velocity": torch.zeros_like(origin) if velocity is None else velocity,
                "repeat": repeat,
                "tile": tile.squeeze(1),
                "gain": self.take(0.55, 1.15) * self.take(0.95, 1.05, 3),
            }
        )

    def _street(self) -> None:
        """Sky, ground, road, and facades along both sides and at the end."""
        self.ground = self.take(*self.world.camera_height)  # metres below the camera
        self.half_road = self.take(3.5, 7.0)
        self.add("sky", self.xyz(-1500, -1000, 500), self.xyz(3000, 0, 0), self.xyz(0, 1500, 0), metres=800)
        self.add("ground", self.xyz(-250, self.ground, -20), self.xyz(500, 0, 0), self.xyz(0, 0, 500), metres=3)
        self.rise = self.ground - 0.03
        shift = self.take(-1.5, 1.5)
        lanes = self.take(1, 3).round()
        self.add(
            "road",
            self.xyz(-self.half_road + shift, self.rise, -20),
            self.xyz(2 * self.half_road, 0, 0),
            self.xyz(0, 0, 400),
        )
        self.rows[-1]["repeat"] = torch.cat([lanes, 400 / self.take(4, 9)], dim=-1)
        for side in (-1.0, 1.0):
            near = self.take(-8, 4)
            for _ in range(3):
                away = side * (self.half_road + self.take(0.5, 14))
                length, height = self.take(6, 30), self.take(3, 14)
                self.add(
                    "facade",
                    self.xyz(away, self.ground - height, near),
                    self.xyz(side * self.take(-2, 2), 0, length),
                    self.xyz(0, height, 0),
                    metres=6,
                )
                near = near + length + self.take(0, 8)
        self.add(
            "facade",
            self.xyz(self.take(-60, -10), self.ground - 18, self.take(50, 120)),
            self.xyz(self.take(40, 90), 0, 0),
            self.xyz(0, 18, 0),
            metres=10,
        )

    def _vehicle(self, first: bool) -> range:
        """Four sides of a vehicle; the numbers of its planes."""
        width, height, length = self.take(1.6, 2.4), self.take(1.4, 3.2), self.take(3, 7)
        if self.world.subject == "vehicle" and first:
            height, self.near = width, self.take(5, 15)
            centre = self.xyz(self.take(-0.2, 0.2) * self.near, self.rise, self.near)
        elif self.world.subject == "vehicle":  # the others do not hide it or stand in it
            centre = self.xyz(self.take(-1, 1) * (self.half_road + 1), self.ground, self.near + self.take(8, 25))
        else:
            centre = self.xyz(self.take(-1, 1) * (self.half_road + 1), self.ground, self.take(6, 40))
        turn = geometry.rotation(self.xyz(0, self.take(-25, 25), 0))
        across, along, up = turn[..., 0] * width, turn[..., 2] * length, self.xyz(0, -1, 0) * height
        moves = (self.take(0, 1) < 0.7).double()
        velocity = moves * (turn[..., 2] * self.take(-0.6, 1.4) + turn[..., 0] * self.take(-0.15, 0.15))
        corner = centre - across / 2 + up
        self.add("vehicle", corner, across, -up, velocity=velocity)
        self.add("vehicle", corner, along, -up, velocity=velocity)
        self.add("vehicle", corner + across, along, -up, velocity=velocity)
        self.add("vehicle", corner, across, along, velocity=velocity)
        return range(len(self.rows) - 4, len(self.rows))

    def _board(self) -> range:
        """A sign or a poster beside the road; the number of its plane."""
        left_or_right = self.take(0, 1).round() * 2 - 1
        extent = self.take(0.7, 1.6)
        corner = self.xyz(
            left_or_right * (self.half_road + self.take(0.2, 3)), self.ground - self.take(1.8, 3.5), self.take(5, 25)
        )
        turn = geometry.rotation(self.xyz(0, self.take(-25, 25), 0))
        board = "sign" if self.world.subject == "vehicle" else "poster"
        self.add(board, corner, turn[..., 0] * extent, turn[..., 1] * extent)
        return range(len(self.rows) - 1, len(self.rows))

    def _cameras(self) -> tuple[Tensor, Tensor]:
        """Rotations and centres of the two frames' cameras."""
        rotation_0 = geometry.rotation(torch.cat([self.take(-4, 4), self.take(-10, 10), self.take(-2, 2)], dim=-1))
        change = geometry.rotation(
            torch.cat([self.take(-0.5, 0.5), self.take(-1.5, 1.5), self.take(-0.6, 0.6)], dim=-1)
        )
        advance = torch.cat([self.take(-0.08, 0.08), self.take(-0.03, 0.03), self.take(0.1, 1.0)], dim=-1)
        rotations = torch.stack([rotation_0, change @ rotation_0], dim=1)
        centres = torch.stack([torch.zeros_like(advance), advance], dim=1)
        return rotations, centres

    def _subject(self) -> None:
        """A poster or a sign, laid out as the camera sees it, so that it fills a good part of the frame."""
        label, to_camera = self.label, self.rotations[:, 0]
        shorter, focal = min(self.world.size), float(self.world.intrinsics[0, 0])
        frame = torch.tensor([self.world.size[1], self.world.size[0]])
        if label is None:
            depth = self.take(5, 14)
            turn = geometry.rotation(torch.cat([self.take(-8, 8), self.take(-35, 35), self.take(-5, 5)], dim=-1))
            extent = self.take(0.3, 0.5) * shorter * depth / focal
            place = torch.cat([self.take(0.2, 0.8), self.take(0.2, 0.7)], dim=-1) * frame
        else:
            extent, span = self.take(0.6, 1.0), self.take(0.45, 0.85) * shorter  # in metres and in pixels
            depth = extent * focal / span
            turn = geometry.rotation(torch.cat([self.take(-8, 8), self.take(-35, 35), self.take(-5, 5)], dim=-1))
            turn = to_camera.mT @ turn
            place = (frame - 1) / 2 + (frame - span) * self.take(-0.5, 0.5, 2)
        pixel = torch.cat([place, torch.ones_like(depth)], dim=-1)
        ray = (torch.linalg.inv(self.world.intrinsics.double()) @ pixel.unsqueeze(-1)).squeeze(-1)
        middle = (to_camera.mT @ (ray * depth).unsqueeze(-1)).squeeze(-1)
        middle[:, 1:2] = torch.minimum(middle[:, 1:2], self.ground - 0.6 * extent)
        corner = middle - extent * (turn[..., 0] + turn[..., 1]) / 2
        self.add("poster", corner, turn[..., 0] * extent, turn[..., 1] * extent)
        if label is not None:
            variant = (self.take(0, 1) * VARIANTS).long().squeeze(1)
            self.rows[-1]["tile"] = self.world.first_tile["sign"] + label * VARIANTS + variant
