"""The traffic signs of REAP, as a scene pack.

Source: Hingun, Sitawarin, Li, Wagner, REAP: A Large-Scale Realistic Adversarial Patch Benchmark, ICCV 2023;
``reap_annotations.csv`` of https://github.com/wagner-group/reap-benchmark, and the pictures of Mapillary Vistas
that it names (https://www.mapillary.com/dataset/vistas), in one folder.
Licence: CC BY-NC-SA 4.0 of the table; Mapillary's own of the pictures.

The table has a line for each sign: ``filename``, ``object_id``, ``final_shape``, the pixels ``tgt_points`` at which
three or four points of the shape lie, and relighting. ``percentile_coeffs`` are alpha and beta; tables of earlier
versions have columns ``alpha`` and ``beta``, and millimetres behind the shape. Signs of the shape ``other`` are left
out.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchattack import files, geometry
from patchattack.benchmark import scene_pack
from patchattack.benchmark.importers.importer import Details, Importer
from patchattack.data.pack import Frame, is_convex
from patchattack.errors import InputError

_log = logging.getLogger(__name__)

# Height and width in millimetres of REAP's classes, as its code takes them: of a diamond, from corner to corner.
_SIZES = {
    "circle": (750, 750),
    "triangle": (789, 900),
    "up-triangle": (1072.3, 1220),
    "diamond-s": (600, 600),
    "diamond-l": (915, 915),
    "square": (600, 600),
    "rect-s": (610, 458),
    "rect-m": (915, 762),
    "rect-l": (1220, 915),
    "pentagon": (915, 915),
    "octagon": (915, 915),
}
_EARLIER = {  # names of the classes in earlier versions
    "circle-750.0": "circle",
    "triangle-900.0": "triangle",
    "triangle_inverted-1220.0": "up-triangle",
    "diamond-600.0": "diamond-s",
    "diamond-915.0": "diamond-l",
    "square-600.0": "square",
    "rect-458.0-610.0": "rect-s",
    "rect-762.0-915.0": "rect-m",
    "rect-915.0-1220.0": "rect-l",
    "pentagon-915.0": "pentagon",
    "octagon-915.0": "octagon",
    "other-0.0-0.0": "other",
}
_EDGE = 1 - math.sqrt(0.5)  # of an octagon, from the corner of its square to its own


def _plan(shape: str) -> tuple[tuple[tuple[float, float], ...], tuple[float, float, float]]:
    """Where the table's points lie on a sign of width 1, and left, top and side of the largest upright square on it."""
    height = _SIZES[shape][0] / _SIZES[shape][1]
    box = ((0.0, 0.0), (1.0, 0.0), (1.0, height), (0.0, height))
    round_side = math.sqrt(0.5)
    inside = ((1 - round_side) / 2, (1 - round_side) / 2, round_side)
    on_base = height / (1 + height)  # side of the square on the base of a triangle
    match shape.partition("-")[0]:
        case "circle":
            return box, inside
        case "octagon":
            return ((_EDGE, 0), (1, _EDGE), (1 - _EDGE, 1), (0, 1 - _EDGE)), inside
        case "diamond":
            return ((0, 0.5), (0.5, 0), (1, 0.5), (0.5, 1)), (0.25, 0.25, 0.5)
        case "pentagon":
            return ((0, 0.5), (1, 0.5), (1, 1), (0, 1)), (1 / 6, 1 / 3, 2 / 3)
        case "triangle":
            return ((0.5, 0), (1, height), (0, height)), ((1 - on_base) / 2, height - on_base, on_base)
        case "up":
            return ((0, 0), (1, 0), (0.5, height)), ((1 - on_base) / 2, 0, on_base)
        case _:  # squares and rectangles, which are higher than wide
            return box, (0, (height - 1) / 2, 1)


class Reap(Importer):
    """``reap_annotations.csv`` and ``frames=FOLDER`` of Mapillary's pictures; those that are not there are left out."""

    name = "reap"
    source = "Hingun et al., ICCV 2023, https://github.com/wagner-group/reap-benchmark; pictures of Mapillary Vistas"
    licence = "CC BY-NC-SA 4.0; the pictures Mapillary Vistas' own"

    def write(self, path: Path, folder: Path, details: Details) -> list[Path]:
        """As :class:`Importer` says."""
        if details.frames is None:
            raise InputError("frames: expected the folder of Mapillary's pictures, got none; give frames=FOLDER")
        lines: list[Frame] = []
        originals: dict[str, Path] = {}
        lacking: set[str] = set()
        for number, row in enumerate(_read(path), 2):
            shape = _EARLIER.get(row["final_shape"], row["final_shape"])
            if shape == "other":
                continue
            original = details.frames / row["filename"]
            if not original.is_file():
                lacking.add(row["filename"])
                continue
            try:
                lines.append(_frame(len(lines), shape, row))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: {error}; download the table again") from error
            originals[lines[-1].filename] = original
        if lacking:
            _log.warning(
                "%s: %d picture(s) of the table are not there, the first is %s",
                details.frames,
                len(lacking),
                min(lacking),
            )
        return [scene_pack.write(folder, lines, originals, self.source, self.licence)]


def _read(path: Path) -> list[dict[str, str]]:
    needed = ("filename", "object_id", "final_shape", "tgt_points")
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), restval="", strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: expected reap_annotations.csv, got {error!r}; download it again") from error
    if not rows or not {*needed} <= rows[0].keys() or any(None in row for row in rows):
        raise InputError(
            f"{path}: expected a table with {', '.join(needed)}, got "
            f"{', '.join(map(str, rows[0]))[:200] if rows else 'no lines'}; name reap_annotations.csv"
        )
    return rows


def _frame(scene: int, shape: str, row: Mapping[str, str]) -> Frame:
    if shape not in _SIZES:
        raise ValueError(f"expected a shape of {', '.join(_SIZES)} or other, got {shape!r:.60}")
    points, (left, top, side) = _plan(shape)
    target = json.loads(row["tgt_points"])
    if not isinstance(target, list) or len(target) != len(points):
        raise ValueError(f"expected {len(points)} tgt_points of a {shape}, got {row['tgt_points']:.100}")
    pixels = [files.numbers(point, 2) for point in target]
    square = torch.tensor([(left, top), (left + side, top), (left + side, top + side), (left, top + side)])
    to_pixels = _from_unit(pixels) @ torch.linalg.inv(_from_unit(points))
    corners = tuple(geometry.project(to_pixels, square.double()).flatten().tolist())
    if not is_convex(corners):
        raise ValueError(f"expected tgt_points clockwise around a sign, got {row['tgt_points']:.100}")
    alpha, beta = _relighting(row)
    return Frame(
        scene=scene,
        frame=0,
        filename=f"frames/{row['filename']}",
        corners=corners,
        object_id=row["object_id"],
        label=shape,
        side_mm=side * _SIZES[shape][1],
        alpha=alpha,
        beta=beta,
    )


def _from_unit(points: Sequence[Sequence[float]]) -> Tensor:
    """``[3, 3]`` from the unit square to four points, or to the parallelogram that three of them span."""
    given = torch.tensor(points, dtype=torch.float64)
    if len(given) == 3:
        given = torch.cat([given, (given[0] + given[2] - given[1])[None]])
    return geometry.homography_from_corners(given)


def _relighting(row: Mapping[str, Any]) -> tuple[float, float]:
    """Alpha and beta; NaN where the table has none."""
    if row.get("alpha") and row.get("beta"):
        return files.number(float(row["alpha"])), files.number(float(row["beta"]))
    if not row.get("percentile_coeffs"):
        return math.nan, math.nan
    (pair,) = json.loads(row["percentile_coeffs"])
    alpha, beta = files.numbers(pair, 2)
    return alpha, beta
