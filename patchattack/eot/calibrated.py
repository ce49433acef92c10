"""What a printer and a camera make of colours: a measured map, and the transform that applies it to the texture."""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import files
from patchattack.devices import constant, numbered, transfer
from patchattack.eot.transform import Transform, check_range
from patchattack.errors import InputError
from patchattack.seeding import Numbers

FORMAT = 1  # of the file
COARSE = 3  # colours along each side of the grid of random errors


def look_up(table: Tensor, colours: Tensor) -> Tensor:
    """Trilinear values of colour tables. Beyond [0, 1] they go on as straight lines.

    ``grid_sample`` has no gradient at its border, where black and white are; this has one everywhere.

    Args:
        table: ``[N, s, s, s, 3]``, the value of each colour of a regular grid: red, green, blue from 0 to 1.
        colours: ``[N, n, 3]``.

    Returns:
        ``[N, n, 3]``, differentiable with respect to both.
    """
    count, side = len(table), table.shape[1]
    place = colours * (side - 1)
    cell = place.detach().floor().clamp(0, side - 2)
    share = (place - cell).unsqueeze(-2)  # [N, n, 1, 3]
    strides = (side * side, side, 1)
    corners = tuple(itertools.product((0, 1), repeat=3))
    steps = tuple(sum(map(operator.mul, corner, strides)) for corner in corners)
    index = (cell * constant(strides, colours.dtype, colours.device)).sum(dim=-1, keepdim=True).long()
    index = index + constant(steps, torch.int64, colours.device)  # [N, n, 8]
    values = table.flatten(1, 3)[numbered(count, table.device), index]  # [N, n, 8, 3]
    # A corner's weight along each axis: the share on the far side of the cell, 1 less the share on the near one.
    at_zero, slope = (
        constant(tuple(tuple(values[far] for far in corner) for corner in corners), colours.dtype, colours.device)
        for values in ((1, 0), (-1, 1))
    )  # [8, 3]
    red, green, blue = torch.addcmul(at_zero, share, slope).unbind(-1)
    return torch.bmm((red * green * blue).reshape(-1, 1, 8), values.view(-1, 8, 3)).view(colours.shape)


@dataclass(frozen=True)
class Calibration:
    """What is known of a printer and a camera; a file of it is data only.

    Attributes:
        table: ``[s, s, s, 3]`` float32, the sRGB as seen of each printed sRGB of a regular grid (red, green, blue).
        spread: standard deviation of a colour as seen about the table, per channel.
        blur: standard deviation in the photograph's pixels of what lens and focus smear; None where not measured.
        noise: standard deviation of a pixel of an even area; None where not measured.
        note: where it comes from, in words.
    """

    table: Tensor
    spread: float
    blur: float | None
    noise: float | None
    note: str

    def predict(self, colours: Tensor) -> Tensor:
        """The sRGB as seen, ``[n, 3]``, of the printed ``colours [n, 3]``; differentiable."""
        return look_up(self.table[None], colours[None])[0]

    def inverse(self, wanted: Tensor) -> Tensor:
        """The sRGB to print, ``[n, 3]`` in [0, 1], that is seen as ``wanted [n, 3]``.

        What no print shows becomes the one that is seen nearest to it (Euclid in sRGB). From the nearest of a fine
        grid, by Gauss and Newton with Levenberg's damping; no gradient.
        """
        step = torch.linspace(0, 1, 2 * len(self.table) - 1)
        grid = torch.cartesian_prod(step, step, step)
        colours = grid[torch.cdist(wanted, self.predict(grid)).argmin(dim=1)]
        damping = torch.full((len(wanted), 1, 1), 1e-3)
        identity = torch.eye(3).expand(len(wanted), 3, 3)
        for _ in range(20):
            with torch.enable_grad():
                place = colours.detach().requires_grad_()
                error = self.predict(place) - wanted
                rows = [torch.autograd.grad(error[:, i].sum(), place, retain_graph=True)[0] for i in range(3)]
            jacobian, error = torch.stack(rows, dim=1), error.detach()
            normal = jacobian.mT @ jacobian + damping * identity
            change = torch.linalg.solve(normal, jacobian.mT @ error[..., None])[..., 0]
            moved = (colours - change).clamp(0, 1)
            better = (self.predict(moved) - wanted).norm(dim=1, keepdim=True) < error.norm(dim=1, keepdim=True)
            colours = torch.where(better, moved, colours)
            damping = torch.where(better[..., None], damping / 3, damping * 3).clamp(1e-6, 1e3)
        return colours

    def save(self, path: Path) -> None:
        """Write the calibration as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        rows = ",\n    ".join(
            files.json_text([round(value, 4) for value in row]) for row in self.table.flatten(0, 2).tolist()
        )
        head = {"format": FORMAT, "note": self.note, "spread": self.spread, "blur": self.blur, "noise": self.noise}
        lines = [f'  "{key}": {files.json_text(value)},' for key, value in head.items()]
        files.write(
            path, "\n".join(["{", *lines, f'  "side": {len(self.table)},', f'  "table": [\n    {rows}\n  ]', "}\n"])
        )

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` has written.

        Raises:
            InputError: the file is missing, or no calibration of this format.
        """
        advice = "make one by patchattack calibrate fit photo=PATH"
        try:
            facts = files.read_json(path)
            if facts["format"] != FORMAT:
                raise InputError(f"{path}: expected a calibration of format {FORMAT}, got {facts['format']}; {advice}")
            table = torch.tensor(facts["table"], dtype=torch.float32).view(*[facts["side"]] * 3, 3)
            spread = files.number(facts["spread"], 0, 1)
            blur, noise = (None if facts[key] is None else files.number(facts[key], 0) for key in ("blur", "noise"))
            note = str(facts["note"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
            raise InputError(f"{path}: expected a calibration (JSON), got {error!r}; {advice}") from error
        # Far outside of sRGB lies no colour; NaN lies nowhere.
        if len(table) < 2 or not (table.min() >= -1 and table.max() <= 2):
            raise InputError(f"{path}: expected a calibration of colours in [0, 1] or near, got others; {advice}")
        return cls(table, spread, blur, noise, note)


class Calibrated(Transform):
    """The colours of the texture as a measured printer and camera show them.

    About the measured map lies a random smooth one, so that EoT is over what the calibration does not know: each of
    3³ colours is off by a normal error, and those between are between.

    Args:
        file: of a calibration, or ``default``: offset printing on coated paper, with paper white (see the file).
        spread: standard deviation of the errors, in units of the calibration's own; 0 for none.

    Raises:
        InputError: the file cannot be used, or the spread is below 0.
    """

    def __init__(self, file: str | Path = "default", spread: float = 1.0) -> None:
        self.range = check_range("appearance.calibrated.spread", (0, spread), 0)
        path = (
            files.package_folder("assets") / "print" / "default_print.json"
            if file == "default"
            else Path(file).expanduser()
        )
        self.calibration = Calibration.load(path)
        self._table = self.calibration.table  # where the images were last

    def draw(self, numbers: Numbers) -> Tensor:
        """The errors, ``[N, 3, 3, 3, 3]``: of red, green and blue, at each colour of a coarse grid."""
        sigma = self.range[1] * self.calibration.spread
        return sigma * numbers.normal(3, COARSE, COARSE, COARSE)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`Transform.apply`."""
        if self._table.device != image.device or self._table.dtype != image.dtype:
            self._table = transfer(self.calibration.table, image.device).to(image.dtype)
        table = self._table
        errors = F.interpolate(parameters, size=table.shape[:3], mode="trilinear", align_corners=True)
        seen = look_up(table + errors.movedim(1, -1), image.flatten(2).mT)
        return seen.mT.unflatten(2, image.shape[2:])
