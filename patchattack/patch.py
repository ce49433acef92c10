"""The patch: a printable texture, its mask and its size on paper."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchattack import files, pictures
from patchattack.errors import InputError

MILLIMETRES_PER_INCH = 25.4
SIDES_MM = (0.1, 1e5)  # that a patch on paper may have
LONGEST = 4096  # pixels of an image that becomes a texture, a mask or what a texture should look like
CELLS = (8, 16, 32, 64)  # along the longer side of random patches, in turn
BLACK_AND_WHITE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Patch(nn.Module):
    """A texture that an optimiser may change, inside a mask that it may not.

    Args:
        texture: ``[3, h, w]`` in [0, 1] to begin with.
        mask: ``[1, h, w]`` in [0, 1], 1 where the patch is printed.
        size_mm: width and height on paper, millimetres.
        parameterisation: ``pixels`` optimises the texture itself and projects it back to [0, 1]; ``tanh`` optimises
            ``w`` in ``texture = (tanh(w) + 1) / 2`` (Carlini & Wagner 2017, section V.B), which never leaves the range;
            ``palette`` shows the palette's nearest colour of free pixels, which its gradient passes by (Bengio et al.
            2013), as of stickers cut from paper of a few colours (Eykholt et al. 2018).
        palette: ``[n, 3]`` colours in [0, 1], of ``parameterisation=palette`` alone.

    Attributes:
        from_noise: the texture is random, so that any other may stand in its place before the work starts.

    Raises:
        InputError: shapes, values or sizes that no patch can have.
    """

    mask: Tensor
    palette: Tensor

    def __init__(
        self,
        texture: Tensor,
        mask: Tensor,
        size_mm: tuple[float, float],
        parameterisation: str = "pixels",
        palette: Sequence[Sequence[float]] = BLACK_AND_WHITE,
    ) -> None:
        super().__init__()
        if texture.shape[0] != 3 or mask.shape != (1, *texture.shape[1:]):
            raise InputError(
                "patch: expected a texture [3, h, w] and a mask [1, h, w], "
                f"got {list(texture.shape)} and {list(mask.shape)}"
            )
        if not (texture.min() >= 0 and texture.max() <= 1 and mask.min() >= 0 and 0 < mask.max() <= 1):
            raise InputError("patch: expected a texture and a mask in [0, 1], and some of the mask above 0")
        if parameterisation not in ("pixels", "tanh", "palette"):
            raise InputError(f"patch.parameterisation: expected pixels, tanh or palette, got {parameterisation}")
        if len(palette) < 2 or not all(len(c) == 3 and min(c) >= 0 and max(c) <= 1 for c in palette):
            raise InputError(f"patch.palette: expected at least two colours [r, g, b] in [0, 1], got {palette}")
        if not all(0 < side < math.inf for side in size_mm):
            raise InputError(f"patch.size_mm: expected millimetres above 0, got {list(size_mm)}")
        self.parameterisation, self.size_mm = parameterisation, size_mm
        self.fill_ratio = float(mask.mean())  # kept on the host: placements need it in every step
        self.parameter = nn.Parameter(texture.clone())
        self.set_texture(texture)
        self.register_buffer("mask", mask.clone(), persistent=False)
        self.register_buffer("palette", torch.tensor(palette, dtype=texture.dtype), persistent=False)

    def forward(self) -> Tensor:
        """The texture, ``[3, h, w]`` in [0, 1]; ``[P, 3, h, w]`` of P candidates."""
        shown: Tensor = self.parameter
        if self.parameterisation == "tanh":
            shown = (self.parameter.tanh() + 1) / 2
        elif self.parameterisation == "palette":
            colours = self.parameter.detach().movedim(-3, -1)
            nearest = self.palette[torch.cdist(colours.flatten(0, -2), self.palette).argmin(dim=1)]
            shown = nearest.view_as(colours).movedim(-1, -3) + (self.parameter - self.parameter.detach())
        size = self.mask.shape[1:]
        if shown.shape[-2:] == size:
            return shown
        return nn.functional.interpolate(shown.reshape(-1, *shown.shape[-3:]), size=size, mode="nearest-exact").view(
            *shown.shape[:-2], *size
        )

    @torch.no_grad()
    def set_texture(self, texture: Tensor, scale: int = 1) -> None:
        """Become ``texture``, ``[3, h, w]`` or ``[P, 3, h, w]`` of P candidates, in [0, 1].

        With ``scale`` the texels that are free to change are that many times as long as those of the texture.
        """
        if scale > 1:
            height, width = (max(1, -(-side // scale)) for side in self.mask.shape[1:])
            texture = resize(texture, height, width)
        self.from_noise = False
        self.hold(torch.atanh((2 * texture - 1).clamp(-0.999, 0.999)) if self.parameterisation == "tanh" else texture)

    @torch.no_grad()
    def hold(self, parameter: Tensor) -> None:
        """Take ``parameter``, ``[3, h, w]`` or ``[P, 3, h, w]`` of any resolution, as what is optimised.

        The parameter stays the object, and where its shape allows it the memory, that optimisers hold.
        """
        if parameter.shape == self.parameter.shape:
            self.parameter.copy_(parameter)
        else:
            self.parameter.data = parameter.clone()
            self.parameter.grad = None

    @torch.no_grad()
    def project_(self) -> None:
        """Bring free pixels back into [0, 1], in place."""
        if self.parameterisation != "tanh":
            self.parameter.clamp_(0, 1)

    @classmethod
    def create(
        cls,
        shape: str = "square",
        resolution: int = 64,
        size_mm: float | Sequence[float] = 150.0,
        start: str = "random",
        parameterisation: str = "pixels",
        palette: Sequence[Sequence[float]] = BLACK_AND_WHITE,
        seed: int = 0,
    ) -> Patch:
        """A patch to begin with.

        Args:
            shape: ``square``, ``circle``, ``bars`` (the two of Eykholt et al. 2018), or the path of an image whose
                alpha (without alpha, brightness) is the mask; it may have several pieces.
            resolution: texels along the longer side.
            size_mm: width on paper, or width and height; one number keeps the mask image's proportions.
            start: ``random``, ``grey``, or the path of an image.
            parameterisation, palette: as in :class:`Patch`.
            seed: of the random start.
        """
        if resolution < 1:
            raise InputError(f"patch.resolution: expected at least 1 texel, got {resolution}")
        image = (
            None
            if shape in ("square", "circle", "bars")
            else read_image(shape, "patch.shape", "square, circle, bars or ")
        )
        if isinstance(size_mm, int | float):
            proportion = 1.0 if image is None else image.shape[1] / image.shape[2]
            width_mm, height_mm = float(size_mm), size_mm * proportion
        elif not isinstance(size_mm, str) and len(size_mm) == 2:
            width_mm, height_mm = (float(side) for side in size_mm)
        else:
            raise InputError(f"patch.size_mm: expected one number or [width, height], got {list(size_mm)}")
        if not (0 < width_mm < math.inf and 0 < height_mm < math.inf):
            raise InputError(f"patch.size_mm: expected millimetres above 0, got {size_mm}")
        longer = max(width_mm, height_mm)
        height, width = (max(1, round(resolution * side / longer)) for side in (height_mm, width_mm))
        if image is not None:
            mask = resize(image[3:] if image[3].min() < 1 else image[:3].mean(dim=0, keepdim=True), height, width)
        elif shape == "circle":
            mask = ellipse(height, width)
        elif shape == "bars":
            rows = (torch.arange(height) + 0.5) / height
            bars = ((rows - 0.25).abs() < 0.1) | ((rows - 0.75).abs() < 0.1)
            mask = bars.float().view(1, -1, 1).repeat(1, 1, width)
        else:
            mask = torch.ones(1, height, width)
        if start == "random":
            texture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
        elif start == "grey":
            texture = torch.full((3, height, width), 0.5)
        else:
            texture = resize(read_image(start, "patch.start", "random, grey or ")[:3], height, width)
        patch = cls(texture, mask, (width_mm, height_mm), parameterisation, palette)
        patch.from_noise = start == "random"
        return patch

    @property
    def dpi(self) -> tuple[float, float]:
        """Texels per inch on paper, across and down."""
        height, width = self.mask.shape[-2:]
        return width / self.size_mm[0] * MILLIMETRES_PER_INCH, height / self.size_mm[1] * MILLIMETRES_PER_INCH

    def save(self, path: Path, facts: dict[str, object]) -> None:
        """Write the patch as PNG (colour, the mask as alpha, the dpi set) and as JSON of the same name beside it.

        ``facts`` join the size in the JSON (victims, versions and the like).
        """
        write_png(path, self().detach(), self.mask, self.size_mm)
        sheet = {
            "size_mm": list(self.size_mm),
            "dpi": [round(d, 2) for d in self.dpi],
            "texels": list(self.mask.shape[1:]),
        }
        files.write_json(path.with_suffix(".json"), sheet | facts)

    @classmethod
    def load(cls, path: Path) -> Patch:
        """Read a patch written by :meth:`save`. PNG and JSON are data: nothing in them is executed.

        Raises:
            InputError: the image or the JSON is missing or not a patch's.
        """
        with _blame(path, "patch"):
            texels = list(pictures.header(path).size)
        facts, described = read_facts(path), path.with_suffix(".json")
        if facts.get("texels", texels) != texels:
            raise InputError(
                f"{described}: expected the JSON of this patch of {texels} texels, got that of one of "
                f"{str(facts['texels'])[:60]}; keep patch.png and patch.json of one run together"
            )
        with _blame(path, "patch"):
            image = pictures.read_rgba(path).float() / 255
        return cls(image[:3], image[3:], facts["size_mm"])


def read_facts(image: Path) -> dict[str, Any]:
    """What the JSON beside the patch's ``image`` says: ``size_mm`` (width, height), ``victims`` (names), ``versions``
    (package to version) and more.

    Raises:
        InputError: it is missing or not a patch's.
    """
    path = image.with_suffix(".json")
    try:
        facts = files.read_json(path)
        size_mm, victims = files.numbers(facts["size_mm"], 2, *SIDES_MM), facts.get("victims", [])
        if not isinstance(victims, list) or not all(isinstance(name, str) for name in victims):
            raise ValueError(f"expected names of victims, got {victims!r}")
        versions = facts.get("versions", {})
        if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
            raise ValueError(f"expected versions of packages, got {versions!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected JSON with size_mm: [width, height] beside the patch, got {error!r}; "
            "keep patch.png and patch.json together"
        ) from error
    return facts | {"size_mm": size_mm, "victims": victims, "versions": versions}


def write_png(path: Path, texture: Tensor, mask: Tensor, size_mm: tuple[float, float]) -> None:
    """Write what :func:`encode_png` gives."""
    files.write(path, encode_png(texture, mask, size_mm))


def encode_png(texture: Tensor, mask: Tensor, size_mm: tuple[float, float]) -> bytes:
    """``texture [3, h, w]`` and ``mask [1, h, w]`` as a PNG with alpha whose dpi gives ``size_mm`` on paper."""
    from PIL import Image

    pixels = torch.cat([texture, mask]).cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    height, width = pixels.shape[1:]
    stream = io.BytesIO()
    dpi = (width / size_mm[0] * MILLIMETRES_PER_INCH, height / size_mm[1] * MILLIMETRES_PER_INCH)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG", dpi=dpi)
    return stream.getvalue()


def random_texture(height: int, width: int, number: int) -> Tensor:
    """Control texture ``number``: ``[3, h, w]`` of random colours in cells of one of several sizes.

    Fine noise averages to grey when the patch is small in the frame, so a fair control has coarse cells too: the sizes
    of :data:`CELLS` in turn.
    """
    return noise(height, width, CELLS[number % len(CELLS)], torch.Generator().manual_seed(number))


def noise(height: int, width: int, cells: int, generator: torch.Generator) -> Tensor:
    """``[3, height, width]``: random colours in squares, ``cells`` along the longer side."""
    longer = max(height, width)
    shape = [max(1, math.ceil(min(cells, longer) * side / longer)) for side in (height, width)]
    colours = torch.rand(3, *shape, generator=generator)
    return nn.functional.interpolate(colours[None], size=(height, width), mode="nearest-exact")[0]


def ellipse(height: int, width: int, samples: int = 8) -> Tensor:
    """``[1, h, w]``: the fraction of each texel inside the largest ellipse."""
    y, x = ((torch.arange(n * samples) + 0.5) / (n * samples) * 2 - 1 for n in (height, width))
    inside = (y[:, None] ** 2 + x[None] ** 2 <= 1).float()
    return nn.functional.avg_pool2d(inside[None], samples)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """``image [..., C, H, W]`` as ``[..., C, height, width]``, each value the mean of the area that it covers."""
    flat = image.reshape(-1, *image.shape[-3:])
    return nn.functional.interpolate(flat, size=(height, width), mode="area").view(*image.shape[:-2], height, width)


def low_passed(texture: Tensor) -> Tensor:
    """``texture [3, h, w]`` with the detail of half as many texels along each side: as a little out of focus."""
    height, width = texture.shape[-2:]
    coarse = resize(texture, -(-height // 2), -(-width // 2))
    return nn.functional.interpolate(coarse[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def read_image(path: str | Path, key: str, others: str = "") -> Tensor:
    """An image file as ``[4, h, w]`` RGBA in [0, 1], a large one shrunk: as floats, a photograph takes gigabytes.

    Raises:
        InputError: it is missing or damaged; ``key`` says whose it is, and ``others`` what else could stand there.
    """
    with _blame(path, key, others):
        return pictures.read_rgba(Path(path).expanduser(), LONGEST).float() / 255


@contextmanager
def _blame(path: str | Path, key: str, others: str = "") -> Iterator[None]:
    """What is wrong with the picture in ``path`` is said of ``key``."""
    try:
        yield
    except InputError as error:
        why = str(error).removeprefix(f"{Path(path).expanduser()}: ")
        raise InputError(f"{key}: expected {others}a readable image file, got {path} ({why})") from error
