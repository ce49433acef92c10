"""Corners and homographies, the only sampling of textures, the only compositing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack.devices import constant, numbered, transfer

Array = np.ndarray[Any, np.dtype[Any]]


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices from rotation vectors, by Rodrigues' formula: the same to the bit in any batch.

    Args:
        angles: ``[..., 3]`` rotation vectors in degrees (axis times angle, right-handed).

    Returns:
        ``[..., 3, 3]`` rotation matrices.
    """
    vectors = torch.deg2rad(angles)
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    turns = vectors.norm(dim=-1)[..., None, None] / math.pi  # torch.sinc is of half turns, and 1 at 0
    identity = torch.eye(3, dtype=angles.dtype, device=angles.device)
    return identity + torch.sinc(turns) * skew + torch.sinc(turns / 2).square() / 2 * (skew @ skew)


def project(homography: Tensor, points: Tensor) -> Tensor:
    """Apply homographies to points.

    Args:
        homography: ``[..., 3, 3]``.
        points: ``[..., n, 2]``.

    Returns:
        ``[..., n, 2]``.
    """
    places, depth = (F.pad(points, (0, 1), value=1.0) @ homography.mT).split((2, 1), dim=-1)
    return places / depth


def homography_from_corners(corners: Tensor) -> Tensor:
    """The homography that takes the unit square to four corners.

    The square's (0, 0), (1, 0), (1, 1), (0, 1) go to the corners in their order (top-left, top-right, bottom-right,
    bottom-left). Heckbert's closed form (Fundamentals of Texture Mapping, 1989, section 2.2.3) in float64.

    Args:
        corners: ``[..., 4, 2]`` pixels, on the host.

    Returns:
        ``[..., 3, 3]`` float64.
    """
    p0, p1, p2, p3 = np.moveaxis(corners.double().numpy(), -2, 0)  # [..., 2] each
    d1, d2, total = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    with np.errstate(divide="ignore", invalid="ignore"):  # corners on one line have none
        g, h = _cross(total, d2) / _cross(d1, d2), _cross(d1, total) / _cross(d1, d2)
    columns = [p1 - p0 + g[..., None] * p1, p3 - p0 + h[..., None] * p3, p0]
    top, bottom = np.stack(columns, axis=-1), np.stack([g, h, np.ones_like(g)], axis=-1)
    return torch.from_numpy(np.concatenate([top, bottom[..., None, :]], axis=-2))


def _cross(one: Array, other: Array) -> Array:
    """``[...]`` the third component of the product of ``[..., 2]``."""
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]


def border(homography: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners ``[..., 4, 2]`` half a texel beyond those of a texture of ``size`` ``(h, w)``: as far as it is seen.

    ``homography [..., 3, 3]``, on the host, takes the unit square to the texture's corners.
    """
    y, x = (0.5 / side for side in size)
    outline = np.array([[-x, -y, 1], [1 + x, -y, 1], [1 + x, 1 + y, 1], [-x, 1 + y, 1]])
    mapped = outline @ homography.numpy().swapaxes(-1, -2)
    return torch.from_numpy(mapped[..., :2] / mapped[..., 2:])


@dataclass(frozen=True)
class MipAtlas:
    """Textures with all their smaller copies in one image, so that one ``grid_sample`` serves every scale.

    The levels (each half the size of the one before) stand below one another, each with a border of two texels:
    zero, or at first the opposite side where the texture repeats. All samples beside the texture are taken from
    between two zeros, so that rounding cannot bring in a trace of the texture.

    Attributes:
        image: ``[N, C, Ha, Wa]``.
        sizes: ``[L, 2]`` height and width of each level in texels, without the border; on the host.
        tops: ``[L]`` row of each level's first texel; on the host.
        repeats: the texture tiles the plane.
    """

    image: Tensor
    sizes: Tensor
    tops: Tensor
    repeats: bool

    @classmethod
    def build(cls, texture: Tensor, repeats: bool = False, most: int = 64) -> MipAtlas:
        """The atlas of ``texture [N, C, h, w]``, differentiable, with ``most`` levels at most."""
        width = texture.shape[-1]
        levels, sizes, tops, top = [], [], [], 2
        while True:
            height_now, width_now = texture.shape[-2:]
            edge = 1 if repeats else 0  # of the opposite side
            padded = F.pad(texture, (1, 1, 1, 1), mode="circular") if repeats else texture
            levels.append(F.pad(padded, (2 - edge, 2 - edge + width - width_now, 2 - edge, 2 - edge)))
            sizes.append((height_now, width_now))
            tops.append(top)
            top += height_now + 4
            if max(height_now, width_now) == 1 or len(levels) == most:
                break
            texture = F.adaptive_avg_pool2d(texture, ((height_now + 1) // 2, (width_now + 1) // 2))
        host = torch.device("cpu")
        layout = constant(tuple(sizes), torch.int64, host), constant(tuple(tops), torch.int64, host)
        return cls(torch.cat(levels, dim=-2), *layout, repeats)

    def locate(self, uv: Tensor, level: Tensor) -> Tensor:
        """Pixels ``[..., 2]`` of the atlas for ``uv [..., 2]`` (0..1 over the texture) at integer ``level [...]``."""
        sizes, tops = self.sizes.to(uv.device), self.tops.to(uv.device)
        size = sizes[level].flip(-1).to(uv.dtype)
        place = torch.addcmul(uv.new_tensor(-0.5), uv - uv.floor() if self.repeats else uv, size)
        place = torch.clamp(place, uv.new_tensor(-1.5), size + 0.5)
        return place + torch.stack([torch.full_like(level, 2), tops[level]], dim=-1)

    def level(self, footprint: Tensor) -> Tensor:
        """The fractional level at which one sample stands for ``footprint [...]`` texels of level 0."""
        return footprint.clamp(min=1).log2().clamp(max=len(self.tops) - 1)


def sample(image: Tensor, points: Tensor) -> Tensor:
    """``[N, C, h, w]`` bilinear values of ``image [N, C, H, W]`` at ``points [N, h, w, 2]`` in pixels, zero outside."""
    size = constant((image.shape[-1], image.shape[-2]), points.dtype, points.device)
    grid = torch.addcmul(1 / size - 1, points, 2 / size)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def minification(to_texture: Tensor, a: Tensor, b: Tensor, inverse_depth: Tensor) -> Tensor:
    """Area of texture, as a fraction of the whole, that one pixel sees through a homography.

    The longer side of a slanted pixel's footprint would blur the texture and the shorter one alias; the square root
    of the area lies between.

    Args:
        to_texture: ``[..., 3, 3]`` from pixels to ``(a, b, 1)`` times inverse depth.
        a: ``[...]`` texture coordinate in [0, 1] along the width.
        b: ``[...]`` texture coordinate in [0, 1] along the height.
        inverse_depth: ``[...]`` third homogeneous coordinate.

    Returns:
        ``[...]``: the absolute determinant of the Jacobian of ``(a, b)`` in pixels.
    """
    m = to_texture
    a_x, a_y = (m[..., 0, i] - a * m[..., 2, i] for i in range(2))
    b_x, b_y = (m[..., 1, i] - b * m[..., 2, i] for i in range(2))
    return (a_x * b_y - a_y * b_x).abs() / inverse_depth.square()


def highest(values: Tensor, side: int) -> Tensor:
    """The maximum of ``values [N, C, H, W]`` over an odd window around each pixel: over its rows, then its columns."""
    return F.max_pool2d(F.max_pool2d(values, (side, 1), 1, (side // 2, 0)), (1, side), 1, (0, side // 2))


def pixel_grid(size: tuple[int, int], device: torch.device | str = "cpu", supersampling: int = 1) -> Tensor:
    """Pixel coordinates ``[h·s, w·s, 2]`` of ``s × s`` samples spread evenly over each pixel of ``(h, w)``."""
    height, width = size
    y, x = ((torch.arange(n * supersampling, device=device) + 0.5) / supersampling - 0.5 for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def camera_matrix(size: tuple[int, int], field_of_view: float) -> Tensor:
    """``[3, 3]`` camera matrix of a frame ``(h, w)`` whose width spans ``field_of_view`` degrees."""
    height, width = size
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)
    return torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


@dataclass(frozen=True)
class Window:
    """The same-sized part of every frame that a patch can reach.

    Attributes:
        origin: ``[N, 2]`` int64 (x, y) of each part's first pixel.
        size: ``(h, w)`` of the parts.
        frame: ``(H, W)`` of the frames.
    """

    origin: Tensor
    size: tuple[int, int]
    frame: tuple[int, int]

    @classmethod
    def around(cls, corners: Tensor, frame: tuple[int, int], margin: int = 0, block: int = 1) -> Window:
        """The smallest windows of one size around ``corners [N, 4, 2]`` (host) and ``margin`` pixels, inside the frame.

        Origins and size are multiples of ``block`` where the frame's own size is.
        """
        places, limit = corners.numpy(), np.array(frame[::-1])
        first = np.maximum(np.floor((places.min(axis=1) - margin) / block) * block, 0)
        last = np.ceil(places.max(axis=1)) + (margin + 1)
        size = np.clip(np.ceil((last - first).max(axis=0) / block) * block, 1, limit)
        width, height = size.astype(int).tolist()
        return cls(torch.from_numpy(np.minimum(first, limit - size).astype(np.int64)), (height, width), frame)

    def take(self, images: Tensor) -> Tensor:
        """``[N, C, h, w]`` of ``images [N, C, H, W]``."""
        n, x, y = self._places
        return images[n, :, y, x].permute(0, 3, 1, 2)

    def put(self, images: Tensor, parts: Tensor) -> Tensor:
        """``images [N, C, H, W]`` with ``parts [N, C, h, w]`` in place; the gradient touches the parts alone."""
        n, x, y = self._places
        result = images.clone()
        result[n, :, y, x] = parts.permute(0, 2, 3, 1).to(images.dtype)
        return result

    def distance_to_edge(self) -> Tensor:
        """``[N, 1, h, w]``: pixels to the nearest edge of the window that is not an edge of the frame."""
        _, x, y = self._places
        far = max(self.frame)
        sides = []
        for place, extent, limit in ((x, self.size[1], self.frame[1]), (y, self.size[0], self.frame[0])):
            start = place.flatten(1)[:, :1].view(-1, 1, 1)
            sides.append(torch.where(start == 0, far, place - start))
            sides.append(torch.where(start + extent == limit, far, start + extent - 1 - place))
        nearest = torch.minimum(torch.minimum(sides[0], sides[1]), torch.minimum(sides[2], sides[3]))
        return nearest.unsqueeze(1)

    def on(self, device: torch.device) -> Window:
        """The same, for images on ``device``."""
        return replace(self, origin=transfer(self.origin, device))

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the frame, ``[N, 1, 1]``, of the column, ``[N, 1, w]``, and of the row, ``[N, h, 1]``."""
        y, x = (torch.arange(side, device=self.origin.device) for side in self.size)
        left, top = self.origin.view(-1, 2, 1, 1).unbind(1)
        return numbered(len(self.origin), self.origin.device), left + x, top + y.unsqueeze(1)


def warp_texture(
    textures: Tensor,
    homography: Tensor,
    window: Window,
    supersampling: int = 2,
    unbend: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """The textures as seen in the window; zero outside them.

    Every pixel is the mean of ``supersampling²`` samples, each from the level of a :class:`MipAtlas` that fits its
    footprint: texture and edge are antialiased at any scale. There is no gradient to the homography.

    Args:
        textures: ``[B, C, h, w]``.
        homography: ``[B·T, 3, 3]`` from the unit square to where a texture's corners lie, float64 on the host; the
            ``T`` frames of a texture are neighbours.
        window: of ``B·T`` parts, on the host.
        supersampling: samples along each side of a pixel.
        unbend: takes samples ``[B·T, 2, h, w]`` of the square, and how many of them lie along each side of a pixel, to
            the points of the texture that are seen there; None where they are the same.

    Returns:
        ``[B·T, C, h, w]`` on the textures' device.
    """
    count, frames = len(homography), len(homography) // len(textures)
    size = (textures.shape[-2], textures.shape[-1])
    to_texture = np.linalg.inv(homography.numpy())  # a few numbers on the host are numpy's, which does them faster
    level = _level_at_centre(homography.numpy(), size, supersampling)
    atlas = MipAtlas.build(textures, most=int(level.max()) + 1)
    # Of the window's samples: from one to the next, and the first of them.
    corner = window.origin.numpy() + (0.5 / supersampling - 0.5)
    first = to_texture[:, :, :2] @ corner[:, :, None] + to_texture[:, :, 2:]
    steps = to_texture[:, :, :2].transpose(0, 2, 1).reshape(count, 6) / supersampling
    host = np.concatenate([steps, first[:, :, 0], _places_in_atlas(size, len(atlas.tops))[level]], axis=1)
    values = transfer(torch.from_numpy(host).to(textures.dtype), textures.device).view(count, 17, 1, 1)
    x, y, first, low, high, start, scale = values.split((3, 3, 3, 2, 2, 2, 2), dim=1)
    rows, columns = (torch.arange(supersampling * side, device=textures.device) for side in window.size)
    places = torch.addcmul(torch.addcmul(first, y, rows.unsqueeze(1)), x, columns)  # [B·T, 3, h·s, w·s]
    places, depth = places.split((2, 1), dim=1)
    places = places / depth if unbend is None else unbend(places / depth, supersampling)
    points = torch.addcmul(start, places.clamp(low, high), scale).permute(0, 2, 3, 1)
    # The frames of a scene show one texture: they are sampled as one tall image.
    points = points.reshape(len(textures), -1, *points.shape[2:])
    found = F.grid_sample(atlas.image, points, mode="bilinear", padding_mode="zeros", align_corners=False)
    found = F.avg_pool2d(found, supersampling)
    return found if frames == 1 else found.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)


@lru_cache(maxsize=64)
def _places_in_atlas(size: tuple[int, int], levels: int) -> Array:
    """``[L, 8]``, of each level of the atlas of a texture of ``size`` ``(h, w)``, x and y each.

    The least and the greatest coordinate in the texture, from 0 to 1 in it, that are taken there, as in
    :meth:`MipAtlas.locate`; the place of 0, and the length of 1, in the coordinates of ``grid_sample``.
    """
    atlas = MipAtlas.build(torch.zeros(1, 1, *size), most=levels)
    texels, whole = atlas.sizes.flip(-1).numpy(), np.array([atlas.image.shape[-1], atlas.image.shape[-2]])
    first = np.stack([np.full(len(texels), 2), atlas.tops.numpy()], axis=-1) * 2 / whole - 1
    return np.concatenate([-1 / texels, 1 + 1 / texels, first, texels * 2 / whole], axis=1)


def _level_at_centre(homography: Array, size: tuple[int, int], supersampling: int) -> Array:
    """``[N]`` the level whose texels are nearest to the distance of the samples at the texture's middle.

    One level serves the whole patch: a level for each sample costs more than the texture itself, and a tilted patch
    spans less than two.
    """
    # A projective map stretches areas by its determinant over the cube of the third coordinate.
    depth = homography[:, 2] @ (0.5, 0.5, 1)
    texels = np.abs(depth**3 / np.linalg.det(homography)) * (size[0] * size[1] / supersampling**2)
    return (np.log2(np.maximum(texels, 1)) / 2).clip(max=(max(size) - 1).bit_length()).round().astype(int)
