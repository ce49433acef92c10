"""Non-printability score: a patch keeps to colours that a printer can reproduce."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.files import package_folder


def non_printability(texture: Tensor, palette: Tensor, mask: Tensor) -> Tensor:
    """Mean distance under the mask from a colour to the nearest printable one, min_c ‖p_ij − c‖₁.

    Yamanaka et al. 2020's form of the score of Sharif et al. 2016, divided by the number of texels.

    Args:
        texture: ``[3, h, w]`` in [0, 1].
        palette: ``[C, 3]`` printable colours in [0, 1].
        mask: ``[1, h, w]`` in [0, 1], where the patch is.

    Returns:
        Scalar, the L1 norm over the channels: between 0 and 3.

    Raises:
        InputError: the texture is a batch or has no colours, or the mask has another size.
    """
    if texture.ndim != 3 or len(texture) != 3 or mask.shape != (1, *texture.shape[1:]):
        raise InputError(
            f"regularizer nps: expected one texture [3, h, w] and its mask [1, h, w], "
            f"got {list(texture.shape)} and {list(mask.shape)}; call it once per texture"
        )
    # The nearest colour is found without gradient, so that no distance to any other one is kept for backward.
    nearest = palette[torch.cdist(texture.detach().flatten(1).T, palette, p=1).argmin(dim=1)]  # [h·w, 3]
    difference = (texture - nearest.T.view_as(texture)) * mask
    return torch.linalg.vector_norm(difference, ord=1) / mask.sum()


def load_palette(path: Path) -> Tensor:
    """The colours ``[C, 3]`` in [0, 1] of a CSV file.

    Each line holds one sRGB colour as ``r,g,b`` from 0 to 255; lines that are empty or begin with # are skipped.

    Raises:
        InputError: the file is missing or unreadable, a line is no colour, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected a palette (CSV of r,g,b from 0 to 255), got '{error}'; name such a file or 'default'"
        ) from error
    colours = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            colour = [float(value) for value in line.split(",")]
        except ValueError:
            colour = []
        if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
            raise InputError(f"{path}, line {number}: expected an sRGB colour r,g,b from 0 to 255, got '{line}'")
        colours.append(colour)
    if not colours:
        raise InputError(f"{path}: expected at least one sRGB colour r,g,b from 0 to 255, got none; add a line")
    return torch.tensor(colours) / 255


class NonPrintability(nn.Module):
    """:func:`non_printability` with its palette and its weight in the loss.

    Args:
        weight: factor of this term in the loss.
        palette: "default" (offset printing on coated paper, see the file) or a file that :func:`load_palette` reads.

    Raises:
        InputError: the palette cannot be used.
    """

    palette: Tensor

    def __init__(self, weight: float, palette: str | Path = "default") -> None:
        super().__init__()
        self.weight = weight
        path = (
            package_folder("assets") / "palettes" / "default.csv"
            if palette == "default"
            else Path(palette).expanduser()
        )
        self.register_buffer("palette", load_palette(path))

    def forward(self, texture: Tensor, mask: Tensor) -> Tensor:
        """The scalar of :func:`non_printability`, not weighted."""
        return non_printability(texture, self.palette, mask)
