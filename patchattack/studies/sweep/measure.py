"""The measurements: the same bytes for the same seed, whatever the batch and the number of processes.

The unit of work is one scene and one draw at one point: all of its conditions go through the victim as one batch,
whose composition nothing changes, on one thread. Units come in a fixed order and are appended to a table of one row
per condition, so that memory does not grow with their number and a sweep resumes where it was interrupted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from patchattack import files
from patchattack.eot.renderer import Draw
from patchattack.errors import InputError, VictimError
from patchattack.studies.sweep.axis import Point
from patchattack.studies.sweep.bench import Bench

WRITTEN_OUT = 4  # numbers of a transform's draw that have columns of their own; of more there is the root mean square
KEYS = ("victim", "patch", "axis", "level", "scene", "draw", "condition")
CORNERS = tuple(f"{axis}{corner}" for corner in range(4) for axis in "xy")


class ViewTable(Dataset[str]):
    """All units in their order: by bench, point, scene and draw. An item is a unit's rows as CSV.

    Args:
        benches: victims with patches.
        points: that fit.

    Attributes:
        known: of each bench the metrics, ``metric/region``.
        metrics: of all benches.
        columns: names of all columns.
    """

    def __init__(self, benches: Sequence[Bench], points: Sequence[Point]) -> None:
        self.benches, self.points = benches, points
        self.known = [list(bench.measure(points[0].renderer, 0, 0)[0]) for bench in benches]
        self.metrics = list(dict.fromkeys(itertools.chain(*self.known)))
        drawn = [_parameters(point, benches[0].draw(point.renderer, 0, 0)[1]) for point in points]
        self.parameters = list(dict.fromkeys(itertools.chain(*drawn)))
        self.columns = [*KEYS, *self.metrics, *CORNERS, *self.parameters]
        self._sizes = [len(points) * len(bench.indices) * bench.draws for bench in benches]  # units of each bench

    def __len__(self) -> int:
        return sum(self._sizes)

    def _bench(self, unit: int) -> tuple[Bench, int]:
        """The bench of a unit, and the unit's place among those of the bench."""
        for bench, size in zip(self.benches, self._sizes, strict=True):
            if unit < size:
                return bench, unit
            unit -= size
        raise IndexError(unit)

    def height(self, unit: int) -> int:
        """Rows of a unit."""
        return len(self._bench(unit)[0].conditions)

    def views(self, units: Iterable[int] | None = None) -> int:
        """Rows of some units, or of all."""
        return sum(map(self.height, range(len(self)) if units is None else units))

    def __getitem__(self, index: int) -> str:
        bench, unit = self._bench(index)
        rest, repetition = divmod(unit, bench.draws)
        number, place = divmod(rest, len(bench.indices))
        point = self.points[number]
        values, draw = bench.measure(point.renderer, place, repetition)
        drawn = _parameters(point, draw)
        shared = [*draw.corners[0, 0].flatten().tolist(), *(drawn.get(name) for name in self.parameters)]
        head = (bench.victim, bench.crafted, point.axis, point.text, bench.indices[place], repetition)
        lines = (
            (*head, condition, *map(_number, [values[m][row] if m in values else None for m in self.metrics] + shared))
            for row, condition in enumerate(bench.conditions)
        )
        return _csv(lines)

    def __getitems__(self, indices: list[int]) -> list[str]:
        return [self[index] for index in indices]

    def header(self) -> str:
        """The first line."""
        return _csv([self.columns])


def _parameters(point: Point, draw: Draw) -> dict[str, float]:
    """What was drawn for each transform, in frame 0, but of noise in all frames; and for the bend."""
    result: dict[str, float] = {}
    of_patch = [one[0] for one in draw.appearance]
    of_frames = [
        one[0] if transform.per_frame else one[0, 0]
        for transform, one in zip(point.renderer.camera, draw.camera, strict=True)
    ]
    drawn = dict(zip(point.transforms, of_patch + of_frames, strict=True))
    for name, values in (drawn if draw.bend is None else drawn | {"bend": draw.bend[0]}).items():
        if values.numel() > WRITTEN_OUT:
            result[name] = float(values.square().mean().sqrt())
        elif values.numel() == 1:
            result[name] = float(values)
        else:
            result |= {f"{name}.{place}": float(value) for place, value in enumerate(values.flatten())}
    return result


def _number(value: float | None) -> str:
    """Nine digits give a float32 back; nothing where it is unknown."""
    return "" if value is None or value != value else f"{value:.9g}"


def _csv(lines: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def plan(table: ViewTable) -> dict[str, Any]:
    """What makes a sweep this one and no other."""
    of_benches = [
        {"victim": bench.victim, "patch": bench.crafted, "conditions": bench.conditions, "scenes": list(bench.indices)}
        for bench in table.benches
    ]
    of_points = [{"axis": point.axis, "level": point.text, "renderer": point.config} for point in table.points]
    seeds = {"seed": table.benches[0].seed, "draws": table.benches[0].draws}
    textures = {bench.crafted: _hash(torch.cat([bench.patch(), bench.patch.mask]).detach()) for bench in table.benches}
    return {**seeds, "patches": textures, "benches": of_benches, "points": of_points}


def _hash(values: Tensor) -> str:
    """First twelve digits of the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).hexdigest()[:12]


def begin(folder: Path, table: ViewTable) -> int:
    """Units whose rows ``views.csv`` of ``folder`` holds already; what was written of the next one is cut off.

    Raises:
        InputError: it holds another table.
    """
    path = folder / "views.csv"
    if not path.exists():
        files.write(path, table.header())
        return 0
    with path.open("r+b") as views:
        if views.readline() != table.header().encode():
            raise InputError(f"{path}: expected the columns of this evaluation, got others; name another output=FOLDER")
        units, whole = 0, views.tell()
        for unit in range(len(table)):
            *_, last = [views.readline() for _ in range(table.height(unit))]
            if not last.endswith(b"\n"):
                break
            units, whole = units + 1, views.tell()
        views.truncate(whole)
    return units


def measure(folder: Path, table: ViewTable, first: int, batch: int, workers: int) -> None:
    """Append the rows of all units from ``first`` on to ``views.csv``.

    Args:
        folder: with what :func:`begin` wrote.
        table: of all units.
        first: unit that is not there yet.
        batch: units that a process gets, and that are written, at a time.
        workers: processes.

    Raises:
        InputError: several processes where there can be only one.
        VictimError: a victim failed; what was measured before is there.
    """
    if workers > 1 and (table.benches[0].device.type != "cpu" or not hasattr(os, "fork")):
        raise InputError(
            f"workers: expected 1 on a GPU, and where processes cannot fork, got {workers}; give workers=1"
        )
    starts = range(first, len(table), batch)
    loader: Any = DataLoader(
        table,
        batch_sampler=(list(range(start, min(start + batch, len(table)))) for start in starts),
        collate_fn=_whole,
        num_workers=workers if workers > 1 else 0,
        multiprocessing_context="fork" if workers > 1 else None,  # they share the scenes and the clean outputs
    )
    bar = tqdm(
        total=table.views(),
        initial=table.views(range(first)),
        desc="measuring",
        unit="view",
        smoothing=0.05,
        dynamic_ncols=True,
    )
    with bar, (folder / "views.csv").open("ab") as views:
        for texts in given(loader):
            if not (folder / "views.csv").exists():
                raise InputError(
                    f"{views.name}: expected the rows so far, got none: they were deleted; start a new sweep"
                )
            try:
                views.write("".join(texts).encode())
                views.flush()
            except OSError as error:
                raise InputError(
                    f"{views.name}: expected room for more rows, got '{error.strerror}'; free some and resume with "
                    f"resume={folder}"
                ) from error
            bar.update(sum(text.count("\n") for text in texts))


def given(loader: Iterable[list[str]]) -> Iterator[list[str]]:
    """What a loader gives. An error of one of its processes has a traceback before its message."""
    try:
        yield from loader
    except (InputError, VictimError) as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__module__}.{kind.__name__}: ")[2]) from error


def _whole(texts: list[str]) -> list[str]:
    return texts


@contextmanager
def one_thread() -> Iterator[None]:
    """Everything that is measured runs on one thread: sums of several depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
