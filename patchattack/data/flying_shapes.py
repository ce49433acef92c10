"""Random textured shapes that fly over a random textured background, with exact flow, as FlyingChairs has chairs.

A scene is a stack of layers, the background first. Each layer is a texture on the whole plane, cut out by a shape, and
lies in either frame by an affine map of its own: so what is on top at a pixel, where it goes and what hides it there
follow in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.data.textures import noise
from patchattack.errors import InputError
from patchattack.scene import Scene, Source

TILE = 128  # texels along a texture's side
BANK = {"noise": 20, "leaves": 30, "gradient": 8, "plain": 6}  # textures of a seed
ANGLES = 256  # at which a shape's radius is drawn
TURN, GROWTH = 10.0, 0.06  # of a layer from frame 0 to frame 1, at a speed of 8 px: degrees and share, at most
LAYOUT, TEXTURES = 0, 1  # what a generator is for, besides the seed


class FlyingShapes(Source):
    """Pairs of frames with exact flow, rendered when they are asked for, after FlyingChairs (Dosovitskiy et al. 2015).

    The background shifts, turns and grows a little from frame 0 to frame 1; shapes (polygons, stars, blobs and
    ellipses, some with a hole) move with it and on their own. Textures are noise, fallen leaves (discs of all sizes
    over one another, whose statistics are those of photographs), gradients and plain colours. None has a short period,
    as little in photographs has.

    Scene ``i`` of a seed is always the same scene, whatever batch it comes in.

    Args:
        scenes: how many scenes there are.
        size: ``(h, w)`` of a frame in pixels.
        seed: of the scenes and of their textures.
        shapes: range of their number.
        speed: range of a scene's speed, px: the mean length of the background's shift, and of each shape's own. A
            single shift has up to three times this length, and small ones are frequent.
        supersampling: rays along each side of a pixel.
        device: where scenes are rendered.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        scenes: int = 160,
        size: tuple[int, int] = (128, 256),
        seed: int = 0,
        shapes: Sequence[int] = (3, 9),
        speed: Sequence[float] = (1.0, 12.0),
        supersampling: int = 2,
        device: str = "cpu",
    ) -> None:
        if scenes < 1 or len(size) != 2 or min(size) < 16 or seed < 0 or supersampling < 1:
            raise InputError(
                f"data=flying_shapes: expected scenes >= 1, size [h, w] >= [16, 16], seed >= 0 and supersampling >= 1, "
                f"got scenes={scenes}, size={list(size)}, seed={seed}, supersampling={supersampling}"
            )
        if len(shapes) != 2 or not 0 <= shapes[0] <= shapes[1] or shapes[1] > 30:
            raise InputError(f"data.shapes: expected [low, high] within [0, 30], got {list(shapes)}")
        if len(speed) != 2 or not 0 <= speed[0] <= speed[1] <= min(size) / 3:
            raise InputError(
                f"data.speed: expected [low, high] in pixels within [0, {min(size) / 3:g}], a third of the frame's "
                f"shorter side, got {list(speed)}"
            )
        self.scenes, self.size, self.seed, self.supersampling = scenes, (size[0], size[1]), seed, supersampling
        self.shapes, self.speed = (int(shapes[0]), int(shapes[1])), (float(speed[0]), float(speed[1]))
        self.device = torch.device(device)
        generator = seeding.generator(seed, TEXTURES)
        tiles = [_textures(kind, count, generator) for kind, count in BANK.items()]
        self.bank = F.pad(torch.cat(tiles), (0, 1, 0, 1), mode="circular").to(self.device)  # tiles are sampled as tori

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.scenes:
            raise IndexError(index)
        return self._scene(index)

    @torch.no_grad()
    def _scene(self, index: int) -> Scene:
        generator = seeding.generator(self.seed, LAYOUT, index)
        to_pixels, radii, tile, colour = self._lay_out(generator)
        to_layers = torch.linalg.inv(to_pixels).float().to(self.device)  # [2, N, 3, 3]
        radii = radii.to(self.device)
        grid = geometry.pixel_grid(self.size, self.device)
        frames = torch.stack([self._render(to_layers[t], radii, tile, colour.to(self.device)) for t in range(2)])

        top = _cast(to_layers[0], radii, grid[:1, :, 0], grid[:, :1, 1])
        move = (to_pixels[1] @ torch.linalg.inv(to_pixels[0])).float().to(self.device)[top]  # [H, W, 3, 3]
        target = (move[..., :2, :2] @ grid.unsqueeze(-1)).squeeze(-1) + move[..., :2, 2]
        last = torch.tensor([self.size[1] - 0.5, self.size[0] - 0.5], device=self.device)
        left = ((target < -0.5) | (target > last)).any(-1)
        hidden = _cast(to_layers[1], radii, target[..., 0], target[..., 1]) > top
        return Scene(
            frames=frames.unsqueeze(0),
            index=torch.tensor([index]),
            flow=(target - grid).permute(2, 0, 1).unsqueeze(0),
            occluded=(left | hidden)[None, None],
        )

    def _lay_out(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The ``N`` layers of a scene, the background first.

        Returns:
            ``[2, N, 3, 3]`` float64 from a layer's coordinates to pixels of either frame, ``[N, 2, ANGLES]`` where the
            layer begins and ends from its centre outwards, ``[N]`` its texture, ``[N, 3, 4]`` its colours' affine map.
        """

        def draw(low: float, high: float, *shape: int) -> Tensor:
            return seeding.uniform(generator, shape, low, high)

        count = int(torch.randint(self.shapes[0], self.shapes[1] + 1, (), generator=generator)) + 1
        speed = self.speed[0] + (self.speed[1] - self.speed[0]) * draw(0, 1)
        shorter = min(self.size)
        frame = torch.tensor([self.size[1], self.size[0]])

        # A layer's coordinates are texels, about a pixel each.
        stretch = 2 ** draw(-0.5, 0.5, count)
        axes = torch.stack([stretch, 1 / stretch], dim=-1) * draw(0.8, 1.6, count, 1)
        centre = draw(-0.05, 1.05, count, 2) * frame - 0.5
        before = _affine(centre, draw(0, 360, count), axes)

        length = 3 * speed * draw(0, 1, count).square()  # its mean is the speed
        direction = draw(0, 2 * math.pi, count)
        shift = length.unsqueeze(-1) * torch.stack([direction.cos(), direction.sin()], dim=-1)
        rate = speed / 8
        turn, growth = draw(-TURN, TURN, count) * rate, 1 + draw(-GROWTH, GROWTH, count, 2) * rate
        turn[0], growth[0] = turn[0] / 4, 1 + (growth[0, :1] - 1) / 2  # the frame's edge is far from its middle
        centre[0] = (frame - 1) / 2
        unmoved = _affine(centre, torch.zeros(count), torch.ones(count, 2))
        own = _affine(centre + shift, turn, growth) @ torch.linalg.inv(unmoved)
        own[1:] = own[0] @ own[1:]
        to_pixels = torch.stack([before, own @ before])

        harmonics = torch.arange(1, 6).view(-1, 1)
        angle = torch.arange(ANGLES) * (2 * math.pi / ANGLES)
        waves = (harmonics * angle + draw(0, 2 * math.pi, count, 5, 1)).cos() * draw(0, 0.5, count, 5, 1) / harmonics
        outer = 1 + waves.sum(dim=1) * draw(0, 1, count, 1)  # ellipses to blobs
        for row in range(1, count):
            if draw(0, 1) < 0.5:
                outer[row] = _polygon(generator, angle)
        inner = outer * (draw(-0.8, 0.7, count, 1)).clamp(min=0) * (draw(0, 1, count, 1) < 0.3)
        extent = shorter * 0.4 * 0.15 ** draw(0, 1, count, 1, 1)
        radii = torch.stack([inner, outer], dim=1) * extent
        radii[0] = torch.tensor([[0.0], [math.inf]])

        tile = torch.randint(len(self.bank), (count,), generator=generator)
        mix = torch.eye(3)[torch.stack([torch.randperm(3, generator=generator) for _ in range(count)])]
        contrast = draw(0.4, 1.1, count, 1, 1) * (draw(0, 1, count, 1, 1) < 0.5).float().mul(2).sub(1)
        mix = mix * contrast * draw(0.7, 1.0, count, 3, 1)
        offset = draw(0.2, 0.8, count, 1, 1) + draw(-0.15, 0.15, count, 3, 1)
        return to_pixels, radii, tile, torch.cat([mix, offset], dim=-1)

    def _render(self, to_layers: Tensor, radii: Tensor, tile: Tensor, colour: Tensor) -> Tensor:
        """uint8 ``[3, H, W]``, the mean of ``supersampling²`` rays per pixel."""
        s = self.supersampling
        grid = geometry.pixel_grid(self.size, self.device, s)
        top = _cast(to_layers, radii, grid[:1, :, 0], grid[:, :1, 1])
        image = torch.zeros(3, *top.shape, device=self.device)
        for layer in range(len(tile)):
            seen = top == layer
            texel = (grid[seen] @ to_layers[layer, :2, :2].mT + to_layers[layer, :2, 2]) % TILE  # [n, 2]
            values = geometry.sample(self.bank[tile[layer]].unsqueeze(0), texel[None, None])[0, :, 0]
            image[:, seen] = colour[layer, :, :3] @ (values - 0.5) + colour[layer, :, 3:]
        return (F.avg_pool2d(image.clamp(0, 1), s) * 255).round().to(torch.uint8)


def _affine(centre: Tensor, turn: Tensor, scale: Tensor) -> Tensor:
    """``[N, 3, 3]`` float64: scale by ``[N, 2]``, turn by ``[N]`` degrees, move to ``[N, 2]``."""
    angle = torch.deg2rad(turn.double())
    matrix = torch.zeros(len(turn), 3, 3, dtype=torch.float64)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin(), angle.sin()
    matrix[:, :2, :2] = matrix[:, :2, :2] * scale.double().unsqueeze(1)
    matrix[:, :2, 2], matrix[:, 2, 2] = centre.double(), 1
    return matrix


def _polygon(generator: torch.Generator, angle: Tensor) -> Tensor:
    """Radius at each ``angle`` of a polygon of 3 to 9 corners around the centre, convex or a star."""
    corners = int(torch.randint(3, 10, (), generator=generator))
    step = 2 * math.pi / corners
    at = (torch.arange(corners) + seeding.uniform(generator, (corners,), -0.25, 0.25)) * step
    radius = 1 - seeding.uniform(generator, (corners,), 0, 1) * seeding.uniform(generator, (), 0, 0.7)
    x, y = radius * at.cos(), radius * at.sin()
    ray_x, ray_y = angle.cos().unsqueeze(-1), angle.sin().unsqueeze(-1)
    edge_x, edge_y = x.roll(-1) - x, y.roll(-1) - y
    # The ray from the centre meets one edge: the side of the two corners changes there.
    across, beyond = ray_x * y - ray_y * x, ray_x * y.roll(-1) - ray_y * x.roll(-1)
    distance = (x * edge_y - y * edge_x) / (ray_x * edge_y - ray_y * edge_x)
    meets = (across <= 0) & (beyond > 0) & (distance > 0)
    return torch.where(meets, distance, 0).amax(dim=-1).clamp(min=0.05)


def _cast(to_layers: Tensor, radii: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The number of the top layer ``[H, W]`` at ``x`` and ``y``, which broadcast to ``[H, W]``."""
    top = torch.zeros_like(x + y, dtype=torch.long)
    for layer, matrix in enumerate(to_layers[1:], start=1):
        # Sums of a row and a column where x and y are a grid's.
        a, b = (matrix[i, 0] * x + (matrix[i, 1] * y + matrix[i, 2]) for i in range(2))
        near = torch.where(a * a + b * b < radii[layer, 1].amax() ** 2)
        a, b = a[near], b[near]
        angle = torch.atan2(b, a) * (ANGLES / (2 * math.pi))
        inner, outer = radii[layer][:, angle.round().long() % ANGLES].square().unbind(0)
        distance = a * a + b * b
        top[near] = torch.where((distance < outer) & (distance >= inner), layer, top[near])
    return top


def _textures(kind: str, count: int, generator: torch.Generator) -> Tensor:
    """``count`` textures of a kind of :data:`BANK`, ``[count, 3, TILE, TILE]`` in [0, 1], which tile the plane."""

    def each(low: float, high: float, *shape: int) -> Tensor:
        return seeding.uniform(generator, (count, *shape), low, high)

    axis = torch.arange(TILE) / TILE
    texture = each(0, 1, 3, 1, 1).expand(-1, -1, TILE, TILE)
    if kind == "noise":
        fields = noise(3 * count, TILE, generator, 0.6, 2.0).view(count, 3, TILE, TILE)
        texture = 0.5 + torch.einsum("nij,njhw->nihw", each(-0.15, 0.15, 3, 3), fields)
    elif kind == "leaves":
        texture = texture.clone()
        for _ in range(200):
            x, y = ((axis - each(0, 1, 1) + 0.5) % 1 - 0.5 for _ in range(2))  # [count, TILE], the nearest way round
            radius = 0.02 / (1 - 0.96 * each(0, 1, 1, 1)).sqrt()  # of density 1 / radius³
            disc = (x.unsqueeze(1) ** 2 + y.unsqueeze(2) ** 2 < radius**2).unsqueeze(1)
            texture = torch.where(disc, each(0, 1, 3, 1, 1), texture)
        texture = texture + 0.04 * noise(count, TILE, generator)
    elif kind == "gradient":
        wave = (2 * math.pi * (axis + each(0, 1, 1))).cos()
        other = (2 * math.pi * (axis + each(0, 1, 1))).cos()
        texture = texture + (wave.view(-1, 1, 1, TILE) + other.view(-1, 1, TILE, 1)) * each(-0.3, 0.3, 3, 1, 1)
    return texture.clamp(0, 1)
