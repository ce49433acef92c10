"""Per-image baselines compared with the patch: digital success, size, and what print and camera leave of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchattack import files, seeding, statistics
from patchattack.eot.bend import Bend
from patchattack.eot.placement import Placement
from patchattack.eot.renderer import Renderer
from patchattack.eot.transform import Transform, saturate
from patchattack.errors import InputError, nearest
from patchattack.job import TEST, Settings, spread
from patchattack.patch import Patch, random_texture
from patchattack.scene import Scene, Source
from patchattack.seeding import Numbers
from patchattack.studies.single_image.baselines import BASELINES, Limits, Subject, craft
from patchattack.studies.single_image.subject import Goal, check_victim, choose_scenes
from patchattack.victims.victim import Victim

Row = dict[str, Any]
RATES = ("success", "left", "destroyed")
PATCHES = ("random", "patch")


class Photograph:
    """Print whole images and photograph them: the models of print and camera that a patch is trained through.

    The file that is printed has 8 bits. There is no new viewpoint, so it is the mildest of photographs.

    Args:
        printed: transforms of what is printed, in their order.
        photographed: transforms of what the camera takes, in their order.
    """

    def __init__(self, printed: Mapping[str, Transform], photographed: Mapping[str, Transform]) -> None:
        self.transforms = [*printed.values(), *photographed.values()]
        self._streams = [f"printed/{name}" for name in printed] + [f"photographed/{name}" for name in photographed]

    def __call__(self, images: Tensor, numbers: Numbers) -> Tensor:
        """``images [n, 3, H, W]`` in [0, 1], each by the draw of its own row of ``numbers``."""
        images = images.mul(255).round() / 255
        nowhere = torch.zeros(len(images), 2, dtype=torch.long)
        streams = numbers.streams(dict.fromkeys(self._streams, 1), images.device)
        for transform, stream in zip(self.transforms, streams, strict=True):
            images = saturate(transform.apply(images, transform.draw(stream), nowhere))
        return images


def destruction_rate(truth: Tensor, won: Tensor, after: Tensor) -> np.ndarray:
    """Destruction rate (Kurakin et al. 2016, section 3.1): which adversarial images a transformation makes correct.

    Args:
        truth: ``[n]`` the classes, of images that the victim gets right without the attack.
        won: ``[n]`` bool: the attack succeeded before the transformation.
        after: ``[draws, n]`` the victim's classes after it.

    Returns:
        ``[n]`` the fraction of the draws in which the class is the true one again, NaN where nothing was won. Its mean
        is the rate.
    """
    correct = (after == truth).float().mean(dim=0)
    return torch.where(won, correct, torch.nan).numpy()


@dataclass(frozen=True)
class BaselinesStudy:
    """What is tested on what.

    Attributes:
        victim: under test, on its device.
        goal: of the targeted rows, and of the patch's; an untargeted one makes no targeted rows.
        source: of scenes.
        settings: the split; attacks see the test part, the universal perturbation learns on the training part.
        images: how many of each.
        attacks: names of :data:`BASELINES`.
        limits: how far they may go.
        photograph: what their images go through.
        draws: of the photograph, for each image.
        batch: images at once.
        seed: of every draw.
        patch: beside them, with the random patch; None for neither.
        placement: of the patch.
        bend: what it lies on; None is flat.

    Raises:
        InputError: something does not fit the rest.
    """

    victim: Victim
    goal: Goal
    source: Source
    settings: Settings
    images: int
    attacks: Sequence[str]
    limits: Limits
    photograph: Photograph
    draws: int
    batch: int
    seed: int
    placement: Placement
    bend: Bend | None = None
    patch: Patch | None = None

    def __post_init__(self) -> None:
        check_victim(self.victim)
        if unknown := [name for name in self.attacks if name not in BASELINES]:
            raise InputError(
                f"attacks: expected some of {', '.join(BASELINES)}, got {unknown[0]}; "
                f"perhaps {nearest(unknown[0], [*BASELINES])}"
            )
        for name in ("draws", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        self.goal.bound(self.victim, self.source)
        choose_scenes(self.settings, len(self.source), self.images)

    @property
    def goals(self) -> dict[str, Goal]:
        """Bound, by the name of each goal that has rows in the table."""
        found = {"untargeted": Goal("untargeted"), "least_likely": Goal("least_likely"), self.goal.goal: self.goal}
        return {name: goal.bound(self.victim, self.source) for name, goal in found.items()}


def measure(
    study: BaselinesStudy, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter, path: Path | None = None
) -> list[Row]:
    """Every attack with every goal that it has, on images that the victim gets right without it.

    Args:
        study: what is tested on what.
        progress: wraps the attacks and goals that are left.
        path: of a JSON file of the rows, written after each; those that it holds are not measured again.

    Returns:
        Rows of attack, goal and n (images that count), and where there are any the rates of :data:`RATES` with
        ``_low``, ``_high`` and ``_n`` (95 %, Wilson), and the mean size ``l2`` and ``linf`` of the change where it
        succeeded, of values in [0, 1]. ``left`` is the success after print and photograph, ``destroyed`` the rate of
        :func:`destroyed`.

    Raises:
        InputError: as :class:`Subject`; there is no image that counts; or the file cannot be read.
    """
    indices = choose_scenes(study.settings, len(study.source), study.images)
    scene = study.source.__getitems__(indices).to("cpu")
    lessons = study.source.__getitems__(_lessons(study)).to("cpu").frames[:, 0]
    subject = Subject(study.victim, lessons, study.limits, study.batch, study.seed)
    clean = subject.logits(scene.frames[:, 0])
    goals = study.goals
    if not goals["untargeted"].winnable(clean, scene).any():
        raise InputError(
            f"data: expected an image that {study.victim.name} gets right, got none of {len(indices)}; "
            "choose data that it knows"
        )
    wanted: list[tuple[str, str]] = [
        ("none", "untargeted"),
        *((name, aimed) for name in study.attacks for aimed in goals if aimed in BASELINES[name].goals),
        *((name, study.goal.goal) for name in PATCHES if study.patch is not None),
    ]
    rows: list[Row] = [] if path is None or not path.exists() else files.read_again(path, partial(_read, wanted=wanted))
    done = {(row["attack"], row["goal"]) for row in rows}
    for name, aimed in progress([one for one in wanted if one not in done]):
        goal = goals[aimed]
        counted = goal.winnable(clean, scene).nonzero().squeeze(1)
        row: Row = {"attack": name, "goal": aimed, "n": len(counted)}
        if len(counted) > 0:
            part, outputs = scene.select(counted), clean[counted]
            aim = goal.aim(outputs, part)
            if name in PATCHES:
                changed = _apply_patch(study, part, name)
            elif name == "none":
                changed = part.frames[:, 0]
            else:
                changed = craft(name, subject, part.frames[:, 0], aim, aimed != "untargeted")
            row |= _measure(study, subject, goal, part, changed, outputs.argmax(dim=1), aim)
        rows.append(row)
        if path is not None:
            files.write_json(path, rows)
    return rows


def _read(path: Path, wanted: list[tuple[str, str]]) -> list[Row]:
    """What :func:`measure` has written of what is ``wanted``.

    Raises:
        ValueError: it is not that.
    """
    rows = files.read_rows(path, ("attack", "goal"))
    left = list(wanted)
    for row in rows:
        left.remove((row["attack"], row["goal"]))
        numbers = [name + end for name in RATES for end in ("", "_low", "_high")] + ["l2", "linf"]
        counts = [f"{name}_n" for name in RATES]
        for name in ["n", *counts] if files.integer(row.get("n")) else []:
            files.integer(row.get(name))
        if row["n"] and any(not isinstance(row.get(name), int | float) for name in numbers):
            raise ValueError(f"expected numbers, got {row}")
    return rows


def _lessons(study: BaselinesStudy) -> list[int]:
    """Numbers of scenes of the training part, as many as are attacked, or all."""
    return spread(study.settings.split_indices(len(study.source))[0], study.images)


def _apply_patch(study: BaselinesStudy, scene: Scene, name: str) -> Tensor:
    """``[n, 3, H, W]`` with the patch, or for each image another random one, at the same places; nothing else."""
    assert study.patch is not None
    patch, mask = study.patch, study.patch.mask
    renderer = Renderer(study.placement, bend=study.bend)
    frames = []
    for row, place in enumerate(scene.index.tolist()):
        one = scene.select(slice(row, row + 1))
        draw = renderer.draw(one, patch, seeding.numbers([(study.seed, TEST, place, 0)]))
        texture = patch().detach() if name == "patch" else random_texture(mask.shape[1], mask.shape[2], place)
        frames.append(renderer(texture, mask, one, draw).frames[:, 0])
    return torch.cat(frames)


def _measure(
    study: BaselinesStudy, subject: Subject, goal: Goal, scene: Scene, changed: Tensor, truth: Tensor, aim: Tensor
) -> Row:
    """The rates and sizes of the ``changed [n, 3, H, W]`` images of ``scene``, which has ``truth [n]``."""
    won = goal.succeeds(subject.logits(changed).argmax(dim=1), aim)
    after = torch.stack([_after(study, subject, scene, changed, draw) for draw in range(study.draws)])
    size = (changed - scene.frames[:, 0]).flatten(1)[won]
    row: Row = {
        "l2": statistics.mean(size.norm(dim=1).numpy()),
        "linf": statistics.mean(size.norm(dim=1, p=torch.inf).numpy()),
    }
    rates = {
        "success": won.float().numpy(),
        "left": goal.succeeds(after, aim).float().mean(dim=0).numpy(),
        "destroyed": destruction_rate(truth, won, after),
    }
    for name, values in rates.items():
        mean, low, high = statistics.wilson(values)
        row |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": int((~np.isnan(values)).sum())}
    return row


def _after(study: BaselinesStudy, subject: Subject, scene: Scene, changed: Tensor, draw: int) -> Tensor:
    """``[n]`` the victim's classes after one draw of print and photograph, the same for every attack."""
    keys = [(study.seed, TEST, place, 1 + draw) for place in scene.index.tolist()]
    return subject.logits(study.photograph(changed, seeding.numbers(keys))).argmax(dim=1)
