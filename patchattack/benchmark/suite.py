"""A suite: which victims meet which patches, behind which defences and at which sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from patchattack import cells
from patchattack.controls import MEDIA
from patchattack.errors import InputError, nearest

UNDEFENDED = "none"
ANY = "any"
Values = Mapping[str, Any]  # dotted keys of the renderer's config to values
Made = TypeVar("Made")


@dataclass(frozen=True)
class Task:
    """What a suite measures of one task.

    Attributes:
        victims: name to the option of the group ``victim``; or a list of options.
        patches: patch files, and folders of them or of runs. ``shipped`` is the folder of those that the package has.
        overrides: of a training of this task, as they are typed: the data, the attack and the options of
            ``victims.NAME`` and ``defenses.NAME``.
        defenses: options of the group ``defense``, each by itself; every victim is also measured without any.
        sizes: name to the keys of the placement that it sets; ``{}`` leaves the task's own.
        defended: sizes at which the defences are tried; None for all.
        poses: bins of the pose, name to the keys of the placement that it sets.
    """

    victims: Mapping[str, str]
    patches: Sequence[str] = ()
    overrides: Sequence[str] = ()
    defenses: Sequence[str] = ()
    sizes: Mapping[str, Values] = field(default_factory=lambda: {"default": {}})
    defended: Sequence[str] | None = None
    poses: Mapping[str, Values] = field(default_factory=lambda: {ANY: {}})


@dataclass(frozen=True)
class Suite:
    """All that is measured.

    Attributes:
        name: on boards.
        tasks: name of the task to what is measured of it.
        scenes: test scenes at most.
        draws: of each scene.
        validation: scenes at most on which the hand-drawn texture is chosen.
        media: of :data:`MEDIA`.
        seed: of the draws.
    """

    name: str
    tasks: Mapping[str, Task]
    scenes: int
    draws: int = 1
    validation: int = 8
    media: Sequence[str] = tuple(MEDIA)
    seed: int = 0


@dataclass(frozen=True, order=True)
class Spot:
    """One victim behind one defence, or none, at one size: what is measured at a time."""

    task: str
    victim: str
    defense: str
    size: str

    @property
    def words(self) -> tuple[str, ...]:
        """Its four names."""
        return self.task, self.victim, self.defense, self.size

    def folder(self, digest: str) -> str:
        """The name of its folder; ``digest`` is of all that its numbers depend on."""
        return cells.name_of([*self.words, digest], [], self.words)


def read(node: Any) -> Suite:
    """A suite as its YAML has it.

    Raises:
        InputError: a key that does not exist or is missing, a value that cannot be, or nothing to measure.
    """
    suite = _make(Suite, node, "suite")
    tasks = {str(name): _task(one, f"suite.tasks.{name}") for name, one in _mapping(suite.tasks, "suite.tasks").items()}
    for name in ("scenes", "draws", "validation", "seed"):
        value, least = getattr(suite, name), 0 if name == "seed" else 1
        if type(value) is not int or value < least:
            raise InputError(f"suite.{name}: expected an integer >= {least}, got {value}")
    media = _names(suite.media, "suite.media")
    for medium in media:
        _check_known(medium, MEDIA, "suite.media")
    if not (tasks and media):
        raise InputError("suite: expected at least one task and one medium, got none; give it tasks and media")
    return Suite(str(suite.name), tasks, suite.scenes, suite.draws, suite.validation, media, suite.seed)


def _task(node: Any, key: str) -> Task:
    task = _make(Task, node, key)
    victims = _mapping(task.victims, f"{key}.victims")
    if not victims:
        raise InputError(f"{key}.victims: expected at least one option of the group victim, got none")
    sizes, poses = (
        {str(name): _mapping(sets, f"{key}.{what}.{name}") for name, sets in _mapping(given, f"{key}.{what}").items()}
        for what, given in (("sizes", task.sizes), ("poses", task.poses))
    )
    for what, given in (("sizes", sizes), ("poses", poses)):
        if not given:
            raise InputError(f"{key}.{what}: expected at least one, got none")
    defenses = _names(task.defenses, f"{key}.defenses")
    if UNDEFENDED in defenses:
        raise InputError(f"{key}.defenses: expected options of the group defense, got {UNDEFENDED}, which is always in")
    defended = None if task.defended is None else _names(task.defended, f"{key}.defended")
    for size in defended or ():
        _check_known(size, sizes, f"{key}.defended")
    return Task(
        {name: str(option) for name, option in victims.items()},
        _names(task.patches, f"{key}.patches"),
        _names(task.overrides, f"{key}.overrides"),
        defenses,
        sizes,
        defended,
        poses,
    )


def _make(kind: type[Made], node: Any, key: str) -> Made:
    """``kind`` of the values of ``node``, whose keys are checked."""
    given = _mapping(node, key)
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        _check_known(name, known, key)
    required = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    if missing := [name for name in required if name not in given]:
        raise InputError(f"{key}: expected {', '.join(required)}, got no {missing[0]}")
    return kind(**given)


def _check_known(name: str, known: Mapping[str, Any] | Sequence[str], key: str) -> None:
    if name not in known:
        raise InputError(
            f"{key}: expected one of {', '.join(known)}, got {name}; did you mean {nearest(name, [*known])}?"
        )


def _mapping(node: Any, key: str) -> dict[str, Any]:
    """A mapping as it is; of a list, each name to itself."""
    if isinstance(node, list | tuple):
        return {name: name for name in _names(node, key)}
    if not isinstance(node, Mapping):
        raise InputError(f"{key}: expected names with their values, got {node!r}")
    return {str(name): value for name, value in node.items()}


def _names(node: Any, key: str) -> list[str]:
    if not isinstance(node, list | tuple) or not all(isinstance(one, str | int | float) for one in node):
        raise InputError(f"{key}: expected a list of names, got {node!r}")
    names = list(map(str, node))
    if len(set(names)) < len(names):
        raise InputError(f"{key}: expected each name once, got {', '.join(names)}")
    return names


def training(name: str, task: Task) -> list[str]:
    """The overrides that compose a training of the task ``name`` with all of its victims and defences."""
    victims = [f"+victim@victims.{victim}={option}" for victim, option in task.victims.items()]
    defenses = [f"defenses=[{','.join(task.defenses)}]"] if task.defenses else []
    return [f"attack={name}", *victims, *defenses, *task.overrides]


def spots(suite: Suite, only: Sequence[str] = (), part: str | None = None) -> list[Spot]:
    """What is measured, in the suite's order.

    Args:
        suite: with the names.
        only: names of tasks, victims, defences and sizes; of a kind of which none is named, all.
        part: ``2/8``: of eight parts that take turns, the second, which may be empty.

    Raises:
        InputError: a name that the suite has not, names that leave nothing, or no such part.
    """
    every = [
        Spot(name, victim, defense, size)
        for name, task in suite.tasks.items()
        for victim in task.victims
        for defense in (UNDEFENDED, *task.defenses)
        for size in task.sizes
        if defense == UNDEFENDED or task.defended is None or size in task.defended
    ]
    chosen = every
    kinds = [list(dict.fromkeys(names)) for names in zip(*(spot.words for spot in every), strict=True)]
    for name in only:
        _check_known(name, list(dict.fromkeys(word for names in kinds for word in names)), "only")
    for kind, names in enumerate(kinds):
        if wanted := {*only} & {*names}:
            chosen = [spot for spot in chosen if spot.words[kind] in wanted]
    if not chosen:
        raise InputError(f"only: expected names that occur together, got {', '.join(only)}, which leave nothing")
    first, of = _part(part)
    return chosen[first::of]


def _part(part: str | None) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", "1/1" if part is None else str(part))
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise InputError(f"part: expected K/N with K from 1 to N, as 2/8, got {part}")
    return number - 1, of
