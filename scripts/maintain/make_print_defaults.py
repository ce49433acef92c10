"""Derive the shipped palette and print model from the solid inks of a common printing condition.

python scripts/maintain/make_print_defaults.py
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from patchattack import files
from patchattack.eot.calibrated import Calibration
from patchattack.printing.colour import encode, linear

# CIELAB (D50, 2 degrees) of solid inks: the source is told in the palette's header.
SOLIDS = {
    "paper": (95, 0, -2),
    "C": (55, -37, -50),
    "M": (48, 74, -3),
    "Y": (89, -5, 93),
    "MY": (47, 68, 48),
    "CY": (50, -65, 27),
    "CM": (24, 22, -46),
    "CMY": (23, 0, 0),
    "K": (16, 0, 0),
}
D50 = (0.9642, 1.0, 0.8249)
# XYZ under D50 to linear sRGB, Bradford's adaptation to D65 included (Lindbloom).
TO_SRGB = (
    (3.1338561, -1.6168667, -0.4906146),
    (-0.9787684, 1.9161415, 0.0334540),
    (0.0719453, -0.2289914, 1.4052427),
)
SIDE = 9  # colours along each side of the print model's table
SPREAD = 0.04  # an assumption: presses may miss the aims by 5 ΔE*ab, and no printer was measured

HEADER = """\
# Colours that four-colour offset printing on coated paper can reproduce: a stand-in until you measure your own printer.
# sRGB r,g,b from 0 to 255, one colour per line.
#
# Computed, not measured, by the Neugebauer equations from these CIELAB colours (D50, 2 degrees) of solid inks:
{solids}
# They are the rounded aims commonly quoted for ISO 12647-2:2004 and its characterisation Fogra39. They were not checked
# against the standard itself, whose editions differ by a few units in the overprints MY, CY and CM.
#
# A mixture is the mean of the inks' XYZ weighted by the area that each overprint covers (Demichel). XYZ is divided by
# the paper's and multiplied by that of D50 (0.9642 1 0.8249), so bare paper is white; then Bradford's adaptation to
# D65, linear sRGB clipped to [0, 1] (solid cyan, for one, lies outside), and the curve of sRGB.
# Rows: cyan, magenta and yellow each covering 0, 1/2 and 1 of the area (effective coverage, after dot gain), yellow
# changing fastest; then black alone at 1/2 and 1.
"""
NOTE = (
    "Offset printing on coated paper, computed from the inks of assets/palettes/default.csv by "
    "scripts/maintain/make_print_defaults.py, with paper white; no camera. Each sRGB colour, its black brought up to "
    "solid black, becomes the mixture of cyan, magenta, yellow and black nearest in CIELAB. The spread is an "
    "assumption."
)


def main() -> None:
    """Write assets/palettes/default.csv and assets/print/default_print.json."""
    assets = files.package_folder("assets")
    files.write(assets / "palettes" / "default.csv", palette())
    print_model().save(assets / "print" / "default_print.json")


def palette() -> str:
    """The palette's CSV."""
    solids = "\n".join(f"#   {name:5} {' '.join(map(str, colour))}" for name, colour in SOLIDS.items())
    areas = [(*inks, 0.0) for inks in itertools.product((0.0, 0.5, 1.0), repeat=3)] + [(0, 0, 0, 0.5), (0, 0, 0, 1.0)]
    rows = (_srgb(mixture(torch.tensor(areas, dtype=torch.float64))) * 255).round().int().tolist()
    return HEADER.format(solids=solids) + "".join(f"{red},{green},{blue}\n" for red, green, blue in rows)


def print_model(steps: int = 600) -> Calibration:
    """The print model: relative colorimetry with black point compensation, as printer drivers do it by default."""
    grid = torch.linspace(0, 1, SIDE, dtype=torch.float64)
    told = torch.cartesian_prod(grid, grid, grid)
    white, black = torch.tensor(D50, dtype=torch.float64), _relative("K")
    wanted = _lab((linear(told) @ _matrix().inverse().T) * (1 - black / white) + black)
    # Coverages as squares of sines stay in [0, 1]; from the complements of red, green and blue.
    start = torch.cat([1 - told, torch.zeros_like(told[:, :1])], dim=1).clamp(0.02, 0.98)
    free = torch.asin(start.sqrt()).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (_lab(mixture(free.sin() ** 2)) - wanted).square().sum().backward()
        optimizer.step()
    seen = _srgb(mixture(free.detach().sin() ** 2)).float()
    return Calibration(seen.view(SIDE, SIDE, SIDE, 3), SPREAD, None, None, NOTE)


def mixture(areas: Tensor) -> Tensor:
    """XYZ, ``[n, 3]``, where cyan, magenta, yellow and black cover ``areas [n, 4]``; black hides what is under it."""
    total = areas[:, 3:] * _relative("K")
    for inks in itertools.product((False, True), repeat=3):
        name = "".join(ink for ink, on in zip("CMY", inks, strict=True) if on) or "paper"
        share = torch.where(torch.tensor(inks), areas[:, :3], 1 - areas[:, :3]).prod(dim=1, keepdim=True)
        total = total + (1 - areas[:, 3:]) * share * _relative(name)
    return total


def _relative(name: str) -> Tensor:
    """XYZ under D50 of a solid, with paper as white."""

    def xyz(colour: tuple[float, float, float]) -> Tensor:
        y = (colour[0] + 16) / 116
        f = torch.tensor([y + colour[1] / 500, y, y - colour[2] / 200], dtype=torch.float64)
        return torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))

    return xyz(SOLIDS[name]) / xyz(SOLIDS["paper"]) * torch.tensor(D50, dtype=torch.float64)


def _lab(xyz: Tensor) -> Tensor:
    """CIELAB under D50 of ``xyz [n, 3]``."""
    share = xyz / torch.tensor(D50, dtype=torch.float64)
    f = torch.where(share > (6 / 29) ** 3, share.clamp(min=1e-6) ** (1 / 3), share / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def _matrix() -> Tensor:
    return torch.tensor(TO_SRGB, dtype=torch.float64)


def _srgb(xyz: Tensor) -> Tensor:
    """sRGB, ``[n, 3]`` in [0, 1], of ``xyz [n, 3]`` under D50."""
    return encode((xyz @ _matrix().T).clamp(0, 1))


if __name__ == "__main__":
    main()
