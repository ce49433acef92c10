"""The parts of a run put together, and one scene tried, so that what does not fit is said before the work starts."""

from __future__ import annotations

import logging
import math
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchattack import budget
from patchattack.attacks.attack import Attack
from patchattack.attacks.ensemble import EnsembleAttack
from patchattack.controls import always
from patchattack.data.cached import CachedSource
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError, VictimError, one_line, out_of_memory
from patchattack.job import TRAINING, VALIDATION, Fabric, Job, Settings
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.patch import Patch
from patchattack.printing.sheet import Sheet
from patchattack.scene import Source, View
from patchattack.search import SearchPlan
from patchattack.tracking import Tracker
from patchattack.victims import contract
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.journal import Journal
from patchattack.victims.victim import Victim

COARSE = 1.5  # pixels in the frame along a texel from which a patch is called coarse
GRADIENT_FREE = ("random_search", "evolution", "nes", "spsa", "zoo")  # options of the group optimizer
_ABOVE_0 = ("step_size", "gamma", "T_max", "total_steps", "max_lr")  # of a schedule; torch does not look at all of them

_log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a config describes.

    Attributes:
        attack, victim, source, renderer, patch, settings, sheet: as their modules say.
        regularizers: name to module.
        optimizer: makes an optimiser of parameters.
        schedule: makes a schedule of an optimiser.
        tracker: makes a tracker of ``folder``, ``config`` and ``run_id``.
        seed: of every draw.
        journal: under which the victim was made; None begins one.
    """

    attack: Attack
    victim: Victim
    source: Source
    renderer: Renderer
    patch: Patch
    regularizers: Mapping[str, nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler]
    tracker: Callable[..., Tracker]
    settings: Settings
    sheet: Sheet
    seed: int
    journal: Journal | None = None


def assemble(parts: Parts, fabric: Fabric, resumed: Path | None = None) -> Job:
    """Put the parts on the device and try one scene, so that what does not fit is said before the work starts.

    Args:
        parts: what a config describes.
        fabric: from :func:`patchattack.processes.start`.
        resumed: folder of the run that is resumed, whose victim is not asked again what it has answered.

    Raises:
        InputError: the parts do not fit together.
    """
    attack, victim, patch, settings = parts.attack, parts.victim, parts.patch, parts.settings
    if victim.task != attack.task:
        raise InputError(
            f"attack: expected a victim for {attack.task}, got {victim.name} for {victim.task}; "
            f"choose attack={victim.task} or another victim"
        )
    if isinstance(victim, Ensemble):
        attack = EnsembleAttack(attack, victim.members, victim.combine)
    attack = attack.bound(victim, parts.source)
    if not victim.differentiable and settings.processes > 1:
        raise InputError(
            f"trainer.devices: expected 1 for {victim.name}, a black-box victim, got {settings.processes}; "
            "a run asks it in one process"
        )
    made = getattr(parts.tracker, "func", parts.tracker)
    if check := getattr(made, "check", None):
        check(**getattr(parts.tracker, "keywords", {}))
    victim.to(fabric.device)
    if settings.channels_last:
        victim.to(memory_format=torch.channels_last)
    patch.to(fabric.device)
    _check_schedule(parts)
    optimizer = parts.optimizer(patch.parameters())
    schedule = parts.schedule(optimizer)
    if not (victim.differentiable or isinstance(optimizer, GradientFree)):
        raise InputError(
            f"optimizer: expected one that needs no gradient for {victim.name}, a black-box victim, got "
            f"{type(optimizer).__name__}; choose optimizer={', '.join(GRADIENT_FREE[:-1])} or {GRADIENT_FREE[-1]}"
        )
    job = Job(
        patch=patch,
        victim=victim,
        attack=attack,
        renderer=parts.renderer,
        regularizers={name: module.to(fabric.device) for name, module in parts.regularizers.items()},
        optimizer=optimizer,
        schedule=schedule,
        source=CachedSource(parts.source, settings.memory_gb * 1e9),
        settings=settings,
        plan=SearchPlan.of(settings.starts, settings.candidates, settings.stages, optimizer, patch),
        seed=parts.seed,
        fabric=fabric,
        journal=None if victim.differentiable else parts.journal or Journal(),
    )
    if job.journal is not None and resumed is not None:
        job.journal.open(resumed)

    def tried(frames: Tensor) -> Any:
        output = job.predict_once(frames)
        contract.check_output(victim, frames, output)
        return output

    @torch.enable_grad()
    def followed(frames: Tensor) -> Any:
        frames = frames.detach().requires_grad_()
        output = tried(frames)
        contract.check_gradient(victim, frames, output)
        return output

    try:
        job.source = attack.scenes(job.source, tried)
        training_part, validation, _ = settings.split_indices(len(job.source))
        budget.check_budget(job)
        trial = replace(job.evaluator(TRAINING), victim=tried if isinstance(optimizer, GradientFree) else followed)
        (_, scene, clean, _, view), _ = trial.views({"patch": lambda _: patch().detach()}, training_part[:1], 0)
        contract.check_output(victim, scene.frames, clean)
        _look_for_a_sigmoid(victim, clean)
        _compare_resolution(patch, view)
        _check_winnable(job, validation)
    except (VictimError, MemoryError, RuntimeError) as error:
        if not isinstance(error, VictimError) and not out_of_memory(error):
            raise
        raise InputError(f"{failure(error)}, before the work started") from error
    parts.sheet.check(patch.size_mm)
    return job


def _check_winnable(job: Job, indices: list[int]) -> None:
    """Say it where the victim leaves no patch anything to win in scenes ``indices``: there is nothing to measure."""
    unasked = replace(job.evaluator(VALIDATION), victim=lambda _: None)
    texture = job.patch().detach()
    for index in indices:  # what they cost is kept for the validation
        *_, (_, scene, clean, _, view) = unasked.views({"patch": always(texture)}, [index], 0)
        contract.check_output(job.victim, scene.frames, clean)
        metrics = job.attack.metrics(clean, clean, scene, view)
        won = [values for (name, _), values in metrics.items() if name == "success"] or [
            metrics[job.attack.primary_metric]
        ]
        if any(not values.isnan().all() for values in won):
            return
    _log.warning(
        "victim %s: a patch has nothing to win in any of %d validation scenes: %s; check the victim and the data",
        *(job.victim.name, len(indices), job.attack.nothing_to_win),
    )


def _look_for_a_sigmoid(victim: Victim, clean: Any) -> None:
    """Say it where all that a classifier answers may be fractions of their own: no logits, and not refused as such."""
    for member, found in contract.members(victim, clean):
        if member.task == "classification" and found.min() >= 0 and found.max() <= 1:
            _log.warning(
                "victim %s: expected logits, got numbers from %.3g to %.3g, as after a sigmoid; where the network ends "
                "in one, take it off",
                *(member.name, found.min().item(), found.max().item()),
            )


def _compare_resolution(patch: Patch, view: View) -> None:
    """Say it where the frame shows finer detail than the patch has: a coarse patch attacks far less."""
    texels = max(patch.mask.shape)
    pixels = round((view.corners - view.corners.roll(1, dims=-2)).norm(dim=-1).max().item())
    if pixels > COARSE * texels:
        _log.warning(
            "patch.resolution: %d texels along the patch's longer side, which is about %d px long in the frame; "
            "patch.resolution=%d would leave more to optimise",
            *(texels, pixels, pixels),
        )


def _check_schedule(parts: Parts) -> None:
    """Go through all its steps: torch takes numbers that fail, or turn the steps around, in the middle of the work.

    Raises:
        InputError: a number that cannot be.
    """
    for name, value in getattr(parts.schedule, "keywords", {}).items():
        if name in _ABOVE_0 and isinstance(value, int | float) and value <= 0:
            raise InputError(f"schedule.{name}: expected a number above 0, got {value}")
    try:
        optimizer = parts.optimizer(parts.patch.parameters())
        schedule = parts.schedule(optimizer)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that the optimizer stands still
            for step in range(parts.settings.steps):
                if not 0 <= (rate := optimizer.param_groups[0]["lr"]) < math.inf:
                    raise InputError(f"schedule: expected learning rates of 0 or more, got {rate} in step {step + 1}")
                schedule.step()
    except (ValueError, ZeroDivisionError) as error:  # torch has limits of its own
        raise InputError(f"optimizer and schedule: expected values that torch accepts, got '{error}'") from error


def failure(error: Exception) -> str:
    """A victim's failure, or a step without room, and what needs less of that."""
    said = str(error) if isinstance(error, VictimError) else f"expected room for a step, got '{one_line(error)}'"
    needs = "; free memory, or start a new run with a smaller trainer.candidates, trainer.batch or trainer.draws"
    return said + needs * out_of_memory(error)


def room(job: Job, error: BaseException) -> str:
    """What fits, after a step without room: the views of a step are halved until the victim finds room for them.

    Args:
        job: whose step it was.
        error: what it ended with, which holds what it had until then.
    """
    views = asked = job.candidates * job.rows
    follows, shape = not isinstance(job.optimizer, GradientFree), job.source[0].frames.shape[1:]
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__
    while views > 1:
        views //= 2
        try:
            with torch.set_grad_enabled(follows):
                frames = torch.zeros(views, *shape, device=job.fabric.device, requires_grad=follows)
                outputs = [found for _, found in contract.members(job.victim, job.clean(frames))]
                if follows:
                    torch.autograd.grad(torch.stack([found.sum() for found in outputs]).sum(), frames)
        except (MemoryError, RuntimeError) as trouble:
            if not out_of_memory(trouble):
                return ""
            continue
        return f": the victim has room for {views} views at once, a step has {asked}"
    return ""
