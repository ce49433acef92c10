"""From photographs of the printed chart to a calibration of the printer and the camera that took them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchattack import files, pictures
from patchattack.eot.calibrated import Calibration, look_up
from patchattack.errors import InputError
from patchattack.printing import chart, chart_photo
from patchattack.printing.colour import delta_e, encode, lab, linear

SIDE = 9  # colours along each side of the fitted table
SMOOTHNESS = 1e-2  # weight of the table's curvature against the cells' errors
GOOD = 4.0  # largest mean ΔE2000 of cells that were left out of the fit
STRANGE = 12.0  # mean ΔE2000 of left-out cells from which on the colours are another chart's
UNEVEN = 3.0  # largest difference in lightness L* of neighbouring cells, together, from the map of all
FEWEST = 16  # colours that a palette is chosen from
KEPT = 3.0  # largest ΔE2000 from a colour of the palette to what its print is seen as
DISTINCT = 5.0  # smallest ΔE2000 between two colours of the palette

GLARE = "glare at the {}; turn the page away from windows and lamps, without flash"
SHADOW = "a shadow or an edge of light at the {}; light the page evenly"


@dataclass(frozen=True)
class Fit:
    """A calibration, and what it was fitted to.

    Attributes:
        calibration: what ``appearance=calibrated`` reads.
        palette: ``[n, 3]`` sRGB, see :func:`palette`.
        changes: ``[n]`` ΔE2000 from each of them to what its print is seen as.
        seen: ``[280, 3]`` sRGB of the chart's cells in even light, mean of all photographs.
        errors: ``[280]`` ΔE2000 of the map at each cell.
        left_out: ``[280]`` the same of the map that is fitted to all the other cells.
        rectified: the first photograph, or the first with a fault, as the chart lies on paper, uint8 ``[h, w, 3]``.
        verdict: "good", or "retake: " and why.
    """

    calibration: Calibration
    palette: Tensor
    changes: Tensor
    seen: Tensor
    errors: Tensor
    left_out: Tensor
    rectified: np.ndarray
    verdict: str


@dataclass(frozen=True)
class Reading:
    """What one photograph says of the chart.

    Attributes:
        seen: ``[280, 3]`` sRGB of the cells in the light at the middle of the photograph.
        blur: standard deviation of the smear at the fiducials' edges, pixels.
        noise: standard deviation of a pixel within a cell.
        rectified: the chart as it lies on paper, RGB uint8.
        fault: why it should be taken again, or None.
    """

    seen: Tensor
    blur: float
    noise: float
    rectified: np.ndarray
    fault: str | None


def fit(paths: Sequence[Path]) -> Fit:
    """Fit a calibration to one or more photographs of one print of the chart.

    The colour map is a table of 9³ colours, least squares with a penalty on its second differences; then each channel
    is put into rising order along its own axis, which brings it no farther from a map that rises (Chernozhukov,
    Fernández-Val & Galichon 2009). Its errors at cells that were left out are exact, by the leverage of a linear fit.

    Raises:
        InputError: no photograph, or one on which the chart cannot be read: missing, cropped, too dark, another print.
    """
    if not paths:
        raise InputError("photo: expected a photograph of the printed chart, got none; give photo=PATH")
    readings = [read(path) for path in paths]
    seen = _together([reading.seen for reading in readings])
    table, left_out = _table(seen)
    calibration = Calibration(
        table=table,
        spread=round(float((seen - left_out).square().mean().sqrt()), 4),
        blur=round(float(np.median([reading.blur for reading in readings])), 2),
        noise=round(float(np.median([reading.noise for reading in readings])), 4),
        note=f"chart version {chart.VERSION}, fitted to {', '.join(path.name for path in paths)}",
    )
    own, changes = palette(calibration)
    seen_lab = lab(seen)
    errors, left_out_errors = (
        delta_e(lab(calibration.predict(_chart_colours())), seen_lab),
        delta_e(lab(left_out), seen_lab),
    )
    faults = [f"{reading.fault} ({path.name})" for path, reading in zip(paths, readings, strict=True) if reading.fault]
    if not faults and left_out_errors.mean() > GOOD:
        faults = [
            f"the colours do not follow the chart (ΔE {left_out_errors.mean():.1f}, expected at most {GOOD:g}): "
            "print it anew if it has stripes, and hold the camera still"
        ]
    verdict = f"retake: {faults[0]}" if faults else "good"
    shown = next((reading for reading in readings if reading.fault), readings[0])
    return Fit(calibration, own, changes, seen, errors, left_out_errors, shown.rectified, verdict)


def palette(calibration: Calibration, most: int = 48) -> tuple[Tensor, Tensor]:
    """The user's own palette for the non-printability score.

    The score pulls the texels of a patch, which are what the printer is told, to the palette. So the palette holds
    the colours that come out as themselves: told to print one, this printer shows this camera the same, within
    ΔE2000 3, when paper is taken for white (the light's level and colour are no printer's; EoT varies them). What the
    printer cannot reach or shifts is not in it. A printer that shifts nearly everything keeps few colours; the
    palette then holds those that change least, and ``appearance=calibrated`` without the score is the better choice.

    Args:
        calibration: of the printer and the camera.
        most: colours at most.

    Returns:
        ``[n, 3]`` sRGB in [0, 1], distinct, white first, and ``[n]``, how much each changes (ΔE2000).
    """
    step = torch.linspace(0, 1, 2 * SIDE - 1)
    told = torch.cartesian_prod(step, step, step).flip(0)
    paper = linear(calibration.predict(torch.ones(1, 3))).clamp(min=1e-3)
    changes = delta_e(lab(told), lab(encode(linear(calibration.predict(told)) / paper).clamp(0, 1))).float()
    limit = max(KEPT, float(changes.sort().values[FEWEST]))
    told, changes = told[changes <= limit], changes[changes <= limit]
    colours = lab(told)
    chosen, distance = [0], delta_e(colours, colours[0])  # white, which is its own print
    while len(chosen) < most and distance.max() >= DISTINCT:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, delta_e(colours, colours[chosen[-1]]))
    return told[chosen], changes[chosen]


def read(path: Path) -> Reading:
    """Find the chart in a photograph and average its cells.

    Raises:
        InputError: the photograph cannot be read, or the chart not be found whole, large and light enough in it.
    """
    import cv2

    pixels = pictures.read(path).permute(1, 2, 0).numpy()
    to_photo = chart_photo.find(pixels, path)
    cells, noise = chart_photo.average_cells(pixels, to_photo, path)
    seen, light = chart_photo.even_light(cells, to_photo, pixels.shape)
    paper = float(np.median(cells[(chart.colours() == 1).all(axis=1)]))
    if paper < 0.3:
        raise InputError(
            f"{path}: retake: too dark: expected paper at 30 % of full scale or more, got {paper:.0%}; use more light"
        )
    blur = chart_photo.edge_blur(pixels, to_photo)
    _, left_out = _table(seen)
    flat = np.diag([4.0, 4.0, 1.0]) @ np.linalg.inv(to_photo)
    rectified = cv2.warpPerspective(pixels, flat, (4 * chart.SIZE[0], 4 * chart.SIZE[1]), flags=cv2.INTER_AREA)
    fault = _fault(seen, left_out, light, blur, to_photo, pixels.shape)
    return Reading(seen, blur, noise, rectified, fault)


def _fault(
    seen: Tensor, left_out: Tensor, light: np.ndarray, blur: float, to_photo: np.ndarray, size: tuple[int, ...]
) -> str | None:
    """Why a photograph on which the chart was read should be taken again."""
    import cv2

    if (strange := float(delta_e(lab(seen), lab(left_out)).mean())) > STRANGE:
        return f"wrong chart: its colours are not those of version {chart.VERSION} (mean ΔE2000 {strange:.0f})"
    # A reflection covers cells of many colours; what the map does not follow is one colour, alone on the page.
    lightness = lab(left_out)[:, 0].numpy()
    lighter = lab(seen)[:, 0].numpy() - lightness
    page = np.pad(lighter.reshape(chart.ROWS, chart.COLUMNS), 1, mode="reflect")
    field = cv2.medianBlur(page, 3)[1:-1, 1:-1].ravel()
    # Glare is added and lifts dark cells most; more light multiplies and lifts light cells most.
    lifted = field > field.max() / 2
    glare = field.max() > UNEVEN and np.cov(lighter[lifted], lightness[lifted])[0, 1] < 0
    strength = field if glare else abs(field)
    if strength.max() > UNEVEN:
        part = strength > strength.max() / 2
        x, y = np.average(chart_photo.project(to_photo, chart.centres()[part]), axis=0, weights=strength[part])
        return (GLARE if glare else SHADOW).format(_where(x / size[1], y / size[0]))
    levels = {grey: seen[(chart.colours() == grey / 255).all(axis=1)].median(dim=0).values for grey in (255, 204)}
    if levels[204].min() > 0.95 and (levels[255] - levels[204]).min() < 0.02:
        return "too bright: light grey is as white as paper; use less exposure"
    cell = 10 * float(np.sqrt(abs(np.linalg.det(to_photo[:2, :2]))))
    if blur > 0.1 * cell:
        return f"out of focus: expected edges within {0.1 * cell:.1f} pixels, got {blur:.1f}; focus, and hold still"
    if light.min() < 0.25 * light.max():
        return "uneven light: part of the page gets less than a quarter of the light of another"
    return None


def _where(x: float, y: float) -> str:
    """The part of the photograph at ``x, y`` in [0, 1], in words."""
    across, down = (
        names[min(int(3 * place), 2)] for names, place in ((("left", "", "right"), x), (("upper", "", "lower"), y))
    )
    if across and down:
        return f"{down} {across}"
    return {"upper": "top", "lower": "bottom"}.get(down, across) or "middle"


@cache
def _smoother() -> tuple[Tensor, Tensor]:
    """``[9³, 280]`` from the cells' values to the table, and ``[280, 280]`` to the fit at the cells, float64."""
    count = SIDE**3
    units = torch.eye(count, dtype=torch.float64).view(SIDE, SIDE, SIDE, count)
    cells = _chart_colours().double()
    # look_up is linear in its table: three columns of the identity at a time.
    columns = [look_up(units[None, ..., i : i + 3], cells[None])[0] for i in range(0, count, 3)]
    design = torch.cat(columns, dim=1)
    curvature = torch.cat([units.diff(n=2, dim=axis).reshape(-1, count) for axis in range(3)])
    solution = torch.linalg.solve(design.mT @ design + SMOOTHNESS * curvature.mT @ curvature, design.mT)
    return solution, design @ solution


def _table(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The table ``[9, 9, 9, 3]`` fitted to the cells ``seen [280, 3]``, and ``[280, 3]``, each from all the others."""
    solution, hat = _smoother()
    values = seen.double()
    table = (solution @ values).view(SIDE, SIDE, SIDE, 3)
    rising = torch.stack([table[..., channel].sort(dim=channel).values for channel in range(3)], dim=-1)
    left_out = values - (values - hat @ values) / (1 - hat.diagonal())[:, None]
    return rising.clamp(0, 1).float(), left_out.clamp(0, 1).float()


def _together(seen: list[Tensor]) -> Tensor:
    """The mean of several readings ``[280, 3]``, each first brought to the mean exposure by its greys."""
    light = torch.stack([linear(one) for one in seen])
    level = light[:, chart.is_repeated()].mean(dim=1, keepdim=True)
    return encode((light * level.mean(dim=0) / level).mean(dim=0)).clamp(0, 1)


def _chart_colours() -> Tensor:
    """The chart's colours, ``[280, 3]`` float32."""
    return torch.from_numpy(chart.colours()).float()


def write_palette(path: Path, fit: Fit) -> None:
    """Write the palette as the CSV that ``regularizers.nps.palette`` reads.

    Raises:
        InputError: the file cannot be written.
    """
    head = (
        f"# Colours that come out as themselves, within ΔE2000 {fit.changes.max():.1f}, when paper counts as white.\n"
        f"# {fit.calibration.note}\n# sRGB r,g,b from 0 to 255, one colour per line.\n"
    )
    rows = (fit.palette * 255).round().int().tolist()
    files.write(path, head + "".join(f"{red},{green},{blue}\n" for red, green, blue in rows))


def write_picture(path: Path, fit: Fit) -> None:
    """Write a PNG: the chart as photographed, what was seen compared with what the map says, and the map's errors.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.6), layout="constrained")
    figure.suptitle(fit.verdict, x=0.01, ha="left", fontsize=13, fontweight="bold")
    photo, cells, errors, right = figure.subplots(1, 4, width_ratios=(1, 1, 1.15, 1.3))
    photo.imshow(fit.rectified)
    photo.set_title("as photographed", fontsize=10)
    fitted = fit.calibration.predict(_chart_colours())
    both = torch.stack([fit.seen, fitted], dim=1).view(chart.ROWS, 2 * chart.COLUMNS, 3)
    cells.imshow(both.numpy(), aspect="auto", interpolation="nearest")
    for column in range(1, chart.COLUMNS):
        cells.axvline(2 * column - 0.5, color="white", linewidth=1)
    cells.set_title("each cell: seen | fitted", fontsize=10)
    shown = errors.imshow(
        fit.errors.view(chart.ROWS, chart.COLUMNS).numpy(), vmin=0, vmax=10, cmap="magma_r", aspect="auto"
    )
    errors.set_title(f"ΔE2000 of the map: mean {fit.errors.mean():.2f}", fontsize=10)
    figure.colorbar(shown, ax=errors, shrink=0.6)
    for axes in (photo, cells, errors):
        axes.set_xticks([])
        axes.set_yticks([])
    greys = torch.linspace(0, 1, 65)[:, None].expand(-1, 3)
    for channel, name in enumerate(("red", "green", "blue")):
        right.plot(greys[:, 0], fit.calibration.predict(greys)[:, channel], color=name, label=name)
    right.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    right.set(xlabel="grey, as printed", ylabel="as seen", title="tones, and the palette", xlim=(0, 1), ylim=(0, 1.12))
    right.title.set_fontsize(10)
    right.set_aspect("equal")
    order = lab(fit.palette)[:, 0].argsort()
    right.imshow(fit.palette[order][None].numpy(), extent=(0, 1, 1.04, 1.12), aspect="auto", interpolation="nearest")
    right.legend(frameon=False, loc="lower right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    files.write(path, stream.getvalue())
