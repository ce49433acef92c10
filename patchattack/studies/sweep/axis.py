"""What is varied: an axis names the keys of the renderer's config that its levels set."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError

KINDS = ("line", "grid", "half_sphere", "category")
AZIMUTHS = tuple(range(0, 360, 45))  # degrees, of the poses of a half-sphere
PLACES = ("frame", "surface")
STACKS = ("appearance", "camera")  # parts of the renderer's config whose entries may be added and taken away
BASELINE = "baseline"
CROSS = " × "  # between the names, and the levels, of crossed axes
Level = float | str | tuple[int, int] | tuple[float, int]
Config = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One condition to vary around the run's own ranges.

    Attributes:
        label: in words, with its unit.
        kind: ``line`` of numbers, ``grid`` of places, ``half_sphere`` of poses, or ``category``.
        levels: of a line its numbers; of a grid its rows and columns; of a half-sphere its polar angles in degrees,
            each with every azimuth of :data:`AZIMUTHS`; of a category each name with what it sets.
        sets: dotted keys of the renderer's config to values, in which ``level`` stands for the number, ``row`` and
            ``column`` for the place from 0 to 1, and ``pitch`` and ``yaw`` for the pose in degrees. null takes a
            transform away.
        adds: transforms that are put last in ``appearance`` or ``camera`` where the run has none of their name.
        placed: ``frame`` or ``surface``: where the patch must lie for the axis to mean something; null: anywhere.
        breaks: of a line along which a patch gets stronger or weaker throughout: the level at which half of the scenes
            are won is reported.

    Raises:
        InputError: a value that does not exist, or too few levels.
    """

    label: str
    kind: str
    levels: Sequence[float] | Mapping[str, Mapping[str, Any]]
    sets: Mapping[str, Any]
    adds: Mapping[str, Mapping[str, Any]]
    placed: str | None
    breaks: bool

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.placed not in (*PLACES, None):
            raise InputError(
                f"axes: expected kind of {', '.join(KINDS)} and placed of {', '.join(PLACES)} or null, "
                f"got {self.kind} and {self.placed} for {self.label}"
            )
        if isinstance(self.levels, Mapping) != (self.kind == "category"):
            expected = "names with what they set" if self.kind == "category" else "numbers"
            raise InputError(f"axes: expected {expected} as levels of {self.label}, got {self.levels}")
        if not self.levels or (self.kind == "grid" and not _is_grid(self.levels)):
            expected = "the rows and columns of its grid" if self.kind == "grid" else "at least one level"
            raise InputError(f"axes: expected {expected} for {self.label}, got {self.levels}")
        if self.breaks and self.kind != "line":
            raise InputError(f"axes: expected kind=line where breaks=true, got {self.kind} for {self.label}")

    def steps(self) -> list[tuple[Level, Config]]:
        """Each level with the dotted keys that it sets."""
        if isinstance(self.levels, Mapping):
            return [(name, {**self.sets, **sets}) for name, sets in self.levels.items()]
        if self.kind == "line":
            return [(float(level), _fill(self.sets, {"level": float(level)})) for level in self.levels]
        if self.kind == "half_sphere":
            return [(pose, _fill(self.sets, _turn(*pose))) for pose in _poses(self.levels)]
        rows, columns = (int(count) for count in self.levels)
        shares = [[place / max(count - 1, 1) for place in range(count)] for count in (rows, columns)]
        return [
            ((row, column), _fill(self.sets, {"row": shares[0][row], "column": shares[1][column]}))
            for row in range(rows)
            for column in range(columns)
        ]


@dataclass(frozen=True)
class Point:
    """One combination of levels.

    Attributes:
        axis: its name; :data:`BASELINE` is the run's own ranges.
        level: on the axis; empty at the baseline.
        config: of the renderer.
        renderer: made of the config.
        placed: where the patch must lie: ``frame``, ``surface``, either or both.
        missing: key of the renderer's config that an axis sets and the run's renderer does not have.
    """

    axis: str
    level: Level
    config: Config
    renderer: Renderer
    placed: frozenset[str]
    missing: str | None = None

    @property
    def text(self) -> str:
        """The level as files have it; of a grid ``row/column``."""
        return _text(self.level)

    @property
    def transforms(self) -> list[str]:
        """Names of the renderer's transforms, in the order of its draws."""
        return [f"{stack}.{name}" for stack in STACKS for name in self.config.get(stack) or {}]


def points(
    axes: Mapping[str, Axis], renderer: Config, build: Callable[[Config], Renderer], factorial: bool = False
) -> list[Point]:
    """The run's own ranges, and every level of every axis by itself; or all combinations of levels.

    Args:
        axes: name to axis.
        renderer: config of the run's renderer.
        build: makes a renderer of a config.
        factorial: the axes are crossed.

    Raises:
        InputError: the renderer refuses a value.
    """
    result = [Point(BASELINE, "", renderer, build(renderer), frozenset())]
    crossed = [tuple(axes)] if factorial and axes else [(name,) for name in axes]
    for names in crossed:
        placed = frozenset(place for name in names if (place := axes[name].placed) is not None)
        for steps in itertools.product(*(axes[name].steps() for name in names)):
            levels = [level for level, _ in steps]
            level = levels[0] if len(levels) == 1 else CROSS.join(map(_text, levels))
            config, missing = copy.deepcopy(renderer), None
            for name, (_, sets) in zip(names, steps, strict=True):
                missing = missing or change(config, axes[name].adds, sets)
            made = result[0].renderer if missing else build(config)
            result.append(Point(CROSS.join(names), level, config, made, placed, missing))
    return result


def _text(level: Level) -> str:
    if isinstance(level, tuple):
        return "/".join(f"{part:g}" for part in level)
    return level if isinstance(level, str) else f"{level:g}"


def _poses(polar: Sequence[float]) -> list[tuple[float, int]]:
    """Polar angle and azimuth of each; straight from the front, where all azimuths are one, only once."""
    return [(float(angle), azimuth) for angle in polar for azimuth in (AZIMUTHS if angle else AZIMUTHS[:1])]


def _turn(polar: float, azimuth: float) -> dict[str, float]:
    """The rotation vector, in degrees, of a patch whose normal leans by ``polar`` away from the camera.

    Azimuth 0 is a camera to the right of the normal, 90 one above it.
    """
    way = math.radians(azimuth)
    return {"pitch": round(polar * math.sin(way), 9), "yaw": round(polar * math.cos(way), 9)}


def _is_grid(levels: Any) -> bool:
    return len(levels) == 2 and all(isinstance(count, int) and count > 0 for count in levels)


def _fill(node: Any, values: Mapping[str, float]) -> Any:
    """``node`` with every word that ``values`` has in its value's place."""
    if isinstance(node, Mapping):
        return {key: _fill(value, values) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_fill(value, values) for value in node]
    return values.get(node, node) if isinstance(node, str) else node


def change(config: Config, adds: Mapping[str, Mapping[str, Any]], sets: Config) -> str | None:
    """Bring transforms and values into the config of a renderer; the first key that it does not have, if any."""
    for stack, transforms in adds.items():
        own = config.get(stack) or {}
        config[stack] = own | {name: copy.deepcopy(one) for name, one in transforms.items() if name not in own}
    for key, value in sets.items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node.get(part) or {}
        if last not in node:
            return key
        if value is None and path in ([stack] for stack in STACKS):
            del node[last]
        else:
            node[last] = value
    return None
