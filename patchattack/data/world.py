"""A procedural driving world, ray-cast in torch, with exact depth, flow, occlusion and planes that can carry a patch.

Everything in the world is a textured parallelogram ``{o + a·u + b·v : 0 <= a, b <= 1}`` in metres: sky, ground,
road, facades, the faces of vehicles, posters, and one subject that the scene is about. A camera that sees such a plane
sees it through a homography, so one 3×3 product per plane and pixel gives the plane's coordinates and its inverse
depth, the largest inverse depth is what is seen, and the ground truth follows in closed form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.data import signs, textures
from patchattack.data.world_layout import VARIANTS, Planes, WorldLayout
from patchattack.errors import InputError
from patchattack.scene import Scene, Source

TILE = 96  # texels along a texture's side
COUNTS = {"sky": 6, "ground": 8, "road": 8, "facade": 20, "vehicle": 20, "poster": 34}
NEAR = 0.1  # metres; a plane that is nearer is not seen
WIDEST = 110.0  # degrees that sky and ground are sure to fill
LAYOUT, TEXTURES, LABELS, SIGNS = 0, 1, 2, 3  # what a generator is for, besides the seed
CLASSES = {"billboard": (), "sign": tuple(signs.SIGNS), "vehicle": ("vehicle", "sign"), "none": ()}  # by subject
SMALLEST = 6  # pixels along both sides of an object that is worth a box
SEEN = 0.4  # fraction of an object's pixels in the frame that nothing hides, if it is worth a box


class World(Source):
    """Driving scenes with exact ground truth, rendered when they are asked for.

    Scene ``i`` of a seed is always the same scene, whatever batch it comes in. What a scene is about, and what can
    carry the patch, is its subject:

    - ``billboard``: a board with random shapes, 5 to 14 m away.
    - ``sign``: a traffic sign that spans 0.45 to 0.85 of the frame's shorter side, for classification. Its kind is the
      scene's label; every ``len(classes)`` scenes show each kind once. There is one box, the sign's.
    - ``vehicle``: the square rear of a vehicle 5 to 15 m ahead on the road, for detection. The boxes are those of
      vehicles and of the signs beside the road, bounds of the pixels whose centres show them. Objects narrower or
      lower than 6 px, or with less than 0.4 of their pixels in the frame in sight, have no box; the subject always has.
    - ``none``: there is no surface, as for depth.

    Depth is exact everywhere, and the sky's too: it is a wall 500 m straight ahead.

    Args:
        scenes: how many scenes there are.
        size: ``(h, w)`` of a frame in pixels.
        seed: of the scenes and of their textures.
        field_of_view: of the frame's width, degrees.
        supersampling: rays along each side of a pixel.
        device: where scenes are rendered.
        frames: 2, or 1 without flow, occlusion and motion: then it is frame 0 of the two.
        subject: ``billboard``, ``sign``, ``vehicle`` or ``none``.
        camera_height: range in metres above the ground. Depth from one image is known up to this height only.

    Raises:
        InputError: an option does not exist or a number is out of range.
    """

    def __init__(
        self,
        scenes: int = 160,
        size: tuple[int, int] = (128, 256),
        seed: int = 0,
        field_of_view: float = 90.0,
        supersampling: int = 2,
        device: str = "cpu",
        frames: int = 2,
        subject: str = "billboard",
        camera_height: Sequence[float] = (1.2, 2.0),
    ) -> None:
        if scenes < 1 or len(size) != 2 or min(size) < 16 or seed < 0 or supersampling < 1:
            raise InputError(
                f"data=world: expected scenes >= 1, size [h, w] >= [16, 16], seed >= 0 and supersampling >= 1, "
                f"got scenes={scenes}, size={list(size)}, seed={seed}, supersampling={supersampling}"
            )
        if not 0 < field_of_view <= WIDEST:
            raise InputError(f"data.field_of_view: expected degrees in (0, {WIDEST:g}], got {field_of_view:g}")
        upright = 2 * math.degrees(math.atan(math.tan(math.radians(field_of_view) / 2) * size[0] / size[1]))
        if upright > WIDEST:
            raise InputError(
                f"data.size: expected frames at most {WIDEST:g}° high, got {upright:.0f}° for {list(size)}; "
                "lower data.field_of_view or the height"
            )
        if subject not in CLASSES or frames not in (1, 2):
            raise InputError(
                f"data=world: expected subject of {', '.join(CLASSES)} and frames 1 or 2, got {subject} and {frames}"
            )
        if subject == "sign" and frames == 2:
            raise InputError("data.frames: expected 1 with data.subject=sign, got 2; the camera would drive past it")
        if subject == "vehicle" and field_of_view < 75:
            raise InputError(
                f"data.field_of_view: expected at least 75° with data.subject=vehicle, got {field_of_view:g}; "
                "the vehicle would leave the frame"
            )
        if len(camera_height) != 2 or not 0.5 <= camera_height[0] <= camera_height[1] <= 3:
            raise InputError(
                f"data.camera_height: expected [low, high] in metres within [0.5, 3], got {list(camera_height)}"
            )
        self.scenes, self.size, self.seed, self.supersampling = scenes, (size[0], size[1]), seed, supersampling
        self.frames, self.subject, self.camera_height = frames, subject, (camera_height[0], camera_height[1])
        self.classes = CLASSES[subject]
        self.device = torch.device(device)
        self.intrinsics = geometry.camera_matrix(self.size, field_of_view)
        self.atlas = _atlas(seed, bool(self.classes), self.device)
        self.bank = self.atlas.image.transpose(0, 1).flatten(1, 2).unsqueeze(0)  # all tiles below one another
        self.counts = COUNTS | {"sign": VARIANTS * len(signs.SIGNS)}
        starts = torch.tensor([0, *self.counts.values()]).cumsum(0)
        self.first_tile = dict(zip(self.counts, starts.tolist(), strict=False))

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.scenes:
            raise IndexError(index)
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Scene:
        """The scenes at ``indices`` as one batch, frames uint8."""
        if self.device.type == "cpu":  # one scene at a time stays in the cache: more than twice as fast
            return Scene.concatenate([self._scenes([i]) for i in indices])
        return self._scenes(list(indices))

    @torch.no_grad()
    def _scenes(self, indices: list[int]) -> Scene:
        draws = torch.stack([torch.rand(320, generator=seeding.generator(self.seed, LAYOUT, i)) for i in indices])
        label = torch.tensor([self._label(i) for i in indices]) if self.subject == "sign" else None
        planes, rotations, centres = self._lay_out(draws, label)
        to_pixels = torch.stack(
            [self._to_pixels(planes, t, rotations[:, t], centres[:, t]) for t in range(self.frames)], dim=1
        )  # [B, T, P, 3, 3] in float64: (a, b, 1) to pixels times depth
        to_planes = torch.linalg.inv(to_pixels).float().to(self.device)
        gain, repeat, tile = (x.to(self.device) for x in (planes.gain, planes.repeat, planes.tile))
        frames = torch.stack([self._render(to_planes[:, t], gain, repeat, tile) for t in range(self.frames)], dim=1)

        grid = geometry.pixel_grid(self.size, self.device)  # [H, W, 2]
        hits = [_cast(to_planes[:, t], grid[:1, :, 0], grid[:, :1, 1]) for t in range(self.frames)]
        truth: dict[str, Tensor] = {}
        if self.frames == 2:
            truth |= self._motion(to_pixels, to_planes, hits[0], rotations, centres)
        if planes.objects:
            truth |= self._surface(planes.objects[0][0], to_pixels, to_planes, hits)
        if self.classes:
            truth["boxes"] = self._boxes(planes, to_planes[:, 0], hits[0])
        if label is not None:
            truth["label"] = label
        return Scene(
            frames=frames,
            index=torch.tensor(indices),
            depth=(1 / hits[0].inverse_depth).unsqueeze(1),
            intrinsics=self.intrinsics.repeat(len(indices), 1, 1),
            **truth,
        )

    def _label(self, index: int) -> int:
        """The sign in scene ``index``: every round of scenes shows each kind once, in an order of its own."""
        turn, place = divmod(index, len(self.classes))
        order = torch.randperm(len(self.classes), generator=seeding.generator(self.seed, LABELS, turn))
        return int(order[place])

    def _motion(
        self, to_pixels: Tensor, to_planes: Tensor, first: _Hit, rotations: Tensor, centres: Tensor
    ) -> dict[str, Tensor]:
        """Flow, what is occluded in frame 1 and the camera's motion; ``first`` is what frame 0 shows."""
        grid = geometry.pixel_grid(self.size, self.device)
        target, target_depth = self._follow(to_pixels[:, 1], first)
        there = _cast(to_planes[:, 1], target[:, None, ..., 0], target[:, None, ..., 1])
        last = torch.tensor([self.size[1] - 0.5, self.size[0] - 0.5], device=self.device)
        left = ((target < -0.5) | (target > last)).any(-1) | (target_depth <= 0)
        hidden = (there.plane != first.plane) & (there.inverse_depth * target_depth > 1 + 1e-4)
        motion = torch.eye(4, dtype=torch.float64).repeat(len(to_pixels), 1, 1)
        motion[:, :3, :3] = rotations[:, 1] @ rotations[:, 0].mT
        motion[:, :3, 3] = (rotations[:, 1] @ (centres[:, 0] - centres[:, 1]).unsqueeze(-1)).squeeze(-1)
        return {
            "flow": (target - grid).permute(0, 3, 1, 2),
            "occluded": (left | hidden).unsqueeze(1),
            "motion": motion.float(),
        }

    def _surface(self, plane: int, to_pixels: Tensor, to_planes: Tensor, hits: list[_Hit]) -> dict[str, Tensor]:
        """The corners of plane ``plane`` in every frame, and where something else is seen in its place."""
        grid = geometry.pixel_grid(self.size, self.device)
        square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
        occluder = [
            (_cast(to_planes[:, t, plane].unsqueeze(1), grid[:1, :, 0], grid[:, :1, 1]).inverse_depth > 0)
            & (hit.plane != plane)
            for t, hit in enumerate(hits)
        ]
        return {
            "surface": geometry.project(to_pixels[:, :, plane], square).float(),
            "occluder": torch.stack(occluder, dim=1).unsqueeze(2),
        }

    def _boxes(self, planes: Planes, to_planes: Tensor, hit: _Hit) -> Tensor:
        """``[B, N, 5]`` of what ``hit`` shows of the objects, those without a box last."""
        grid = geometry.pixel_grid(self.size, self.device)
        boxes, kept = [], []
        for rows in planes.objects:
            own = slice(rows.start, rows.stop)
            alone = _cast(to_planes[:, own], grid[:1, :, 0], grid[:, :1, 1]).inverse_depth > 0  # [B, H, W]
            seen = (hit.plane >= rows.start) & (hit.plane < rows.stop)
            (left, right), (top, bottom) = _bounds(seen.any(dim=1)), _bounds(seen.any(dim=2))
            boxes.append(torch.stack([left, top, right, bottom], dim=-1))
            big = torch.minimum(right - left, bottom - top) >= SMALLEST
            kept.append(big & (seen.sum(dim=(1, 2)) >= SEEN * alone.sum(dim=(1, 2))))
        kept[0] = boxes[0][:, 0] < boxes[0][:, 2]  # the subject, wherever a pixel of it is seen
        keep = torch.stack(kept, dim=1)
        table = torch.cat([torch.stack(boxes, dim=1), planes.kinds.to(self.device).unsqueeze(-1)], dim=-1)
        table = table.where(keep.unsqueeze(-1), torch.nan)
        order = keep.int().argsort(dim=1, descending=True, stable=True)
        return table.gather(1, order.unsqueeze(-1).expand_as(table))

    def _to_pixels(self, planes: Planes, t: int, rotation: Tensor, centre: Tensor) -> Tensor:
        """``[B, P, 3, 3]`` from plane coordinates ``(a, b, 1)`` to pixels of frame ``t`` times depth."""
        origin = planes.origin + t * planes.velocity - centre.unsqueeze(1)
        axes = torch.stack([planes.u, planes.v, origin], dim=-1)
        return self.intrinsics.double() @ rotation.unsqueeze(1) @ axes

    def _render(self, to_planes: Tensor, gain: Tensor, repeat: Tensor, tile: Tensor) -> Tensor:
        """uint8 ``[B, 3, H, W]``, the mean of ``supersampling²`` rays per pixel."""
        s = self.supersampling
        grid = geometry.pixel_grid(self.size, self.device, s)
        hit = _cast(to_planes, grid[:1, :, 0], grid[:, :1, 1])
        rows = torch.arange(len(tile), device=self.device).view(-1, 1, 1)
        scale = repeat[rows, hit.plane]
        area = geometry.minification(to_planes[rows, hit.plane], hit.a, hit.b, hit.inverse_depth)
        level = self.atlas.level((area * scale.prod(-1)).sqrt() * TILE / s)
        low = level.floor().long()
        uv = torch.stack([hit.a, hit.b], dim=-1) * scale
        top = tile[rows, hit.plane] * self.atlas.image.shape[-2]
        taps = []
        for one in (low, (low + 1).clamp(max=len(self.atlas.tops) - 1)):
            x, y = self.atlas.locate(uv, one).unbind(-1)
            taps.append(geometry.sample(self.bank, torch.stack([x, y + top], dim=-1).flatten(0, 1).unsqueeze(0))[0])
        colour = torch.lerp(taps[0], taps[1], (level - low).flatten(0, 1)).unflatten(1, (len(tile), -1)).transpose(0, 1)
        colour = torch.nn.functional.avg_pool2d(colour * gain[rows, hit.plane].permute(0, 3, 1, 2), s)
        return (colour.clamp(0, 1) * 255).round().to(torch.uint8)

    def _follow(self, to_pixels: Tensor, hit: _Hit) -> tuple[Tensor, Tensor]:
        """Where the points of ``hit`` are in the other frame: pixels ``[B, H, W, 2]`` and depth ``[B, H, W]``."""
        rows = torch.arange(len(to_pixels), device=self.device).view(-1, 1, 1)
        matrix = to_pixels.float().to(self.device)[rows, hit.plane]
        there = matrix[..., 0] * hit.a.unsqueeze(-1) + matrix[..., 1] * hit.b.unsqueeze(-1) + matrix[..., 2]
        return there[..., :2] / there[..., 2:], there[..., 2]

    def _lay_out(self, draws: Tensor, label: Tensor | None) -> tuple[Planes, Tensor, Tensor]:
        """Planes, rotations to cameras ``[B, 2, 3, 3]`` and their centres ``[B, 2, 3]``; arguments as of Layout."""
        layout = WorldLayout(self, draws, label)
        return layout.planes, layout.rotations, layout.centres


@functools.lru_cache(maxsize=2)
def _atlas(seed: int, with_signs: bool, device: torch.device) -> geometry.MipAtlas:
    """The textures of a seed, drawn once for all its worlds."""
    generator = seeding.generator(seed, TEXTURES)
    tiles = [textures.bank(kind, count, TILE, generator) for kind, count in COUNTS.items()]
    if with_signs:
        generator = seeding.generator(seed, SIGNS)
        tiles += [signs.bank(kind, VARIANTS, TILE, generator) for kind in signs.SIGNS]
    return geometry.MipAtlas.build(torch.cat(tiles).to(device), repeats=True)


@dataclass(frozen=True)
class _Hit:
    """What rays meet first: the plane's number, a and b on it and the inverse depth, each ``[B, H, W]``."""

    plane: Tensor
    a: Tensor
    b: Tensor
    inverse_depth: Tensor


def _cast(to_planes: Tensor, x: Tensor, y: Tensor) -> _Hit:
    """Cast rays through pixels ``x`` and ``y``, which broadcast to ``[B, P, H, W]``; inverse depth 0 is no hit."""
    m = to_planes[..., None, None]  # [B, P, 3, 3, 1, 1]
    # Sums of a row and a column where x and y are a grid's: a product with every pixel's ray costs three times as much.
    a, b, w = (m[:, :, i, 0] * x + (m[:, :, i, 1] * y + m[:, :, i, 2]) for i in range(3))
    inside = torch.minimum(torch.minimum(a, w - a), torch.minimum(b, w - b)) >= 0
    inverse_depth, plane = torch.where(inside & (w < 1 / NEAR), w, 0).max(dim=1)
    a, b = (values.gather(1, plane.unsqueeze(1)).squeeze(1) / inverse_depth for values in (a, b))
    return _Hit(plane, a, b, inverse_depth)


def _bounds(shown: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixels of rows ``[B, n]`` that are shown begin and end, ``[B]``; the end is first where none is."""
    places = torch.arange(shown.shape[1], device=shown.device)
    first = torch.where(shown, places, shown.shape[1]).amin(dim=1)
    last = torch.where(shown, places, -1).amax(dim=1)
    return first - 0.5, last + 0.5
