"""How long runs take and what they cost: the parts of a run are measured here, and a plan adds them up."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from patchattack import assembly, checkpoint, pipeline
from patchattack.assembly import Parts
from patchattack.controls import always, controls
from patchattack.errors import InputError
from patchattack.job import TEST, Fabric, Job, Settings, spread
from patchattack.patch import Patch
from patchattack.tracking import NullTracker

STEPS = 4  # measured with each number of candidates: the first is left out as warm-up, the last has a validation
SCENES = 2  # of the small run's test


@dataclass(frozen=True)
class Measured:
    """Seconds that the parts of a run take on this device.

    Attributes:
        start: from the command line to the first step: starts and the first validation are part of it.
        steps: a step on scenes that are remembered, with all candidates, with half of them, ... with one.
        validations: as many.
        scene: what a scene adds that is not remembered: it is read, and the victim answers about it.
        export: of the end, whatever the number of test scenes.
        test_scene: the measurement of one.
        scene_bytes: of a scene in memory.
    """

    start: float
    steps: Sequence[float]
    validations: Sequence[float]
    scene: float
    export: float
    test_scene: float
    scene_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        runs: how many.
        scenes: for training; None for those of the config.
        epochs: how often each is seen; None for what ``trainer.steps`` makes of it.
        steps: of each run; 0 measures without training; None for what the scenes need, or else ``trainer.steps``.
    """

    runs: int = 1
    scenes: int | None = None
    epochs: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        least = {"runs": 1, "scenes": 1, "epochs": 0, "steps": 0}
        for name, value in vars(self).items():
            if value is not None and not value >= least[name]:
                raise InputError(f"plans: expected {name} of {least[name]} or more, got {value}")

    def updates(self, settings: Settings) -> int:
        """Steps of each run."""
        if self.steps is not None:
            return self.steps
        if self.scenes is None:
            return settings.steps
        return math.ceil(self.scenes * (self.epochs or 1) / (settings.batch * settings.accumulate))


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run, by its parts."""

    start: float
    training: float
    validation: float
    measurement: float

    @property
    def total(self) -> float:
        """Of all."""
        return self.start + self.training + self.validation + self.measurement


def estimate(found: Measured, plan: Plan, settings: Settings, scenes: int, test_scenes: int) -> Estimate:
    """One run of a plan.

    Args:
        found: measured parts.
        plan: what is to be done.
        settings: of a run.
        scenes: for training, where the plan names none.
        test_scenes: how many are measured in the end.
    """
    steps = plan.updates(settings)
    every, last = settings.validate_every, len(found.steps) - 1
    # Before each validation there are twice as many candidates as after it, until one is left.
    counts = [max(0, min(steps - every * number, every)) for number in range(last)]
    counts.append(steps - sum(counts))
    shown, unseen = steps * settings.batch * settings.accumulate, plan.scenes or scenes
    if settings.zoom == 1 and unseen * found.scene_bytes <= settings.memory_gb * 1e9:
        shown = min(shown, unseen)
    training = sum(count * one for count, one in zip(counts, found.steps, strict=True)) + shown * found.scene
    checks = math.ceil(steps / every)
    validation = sum(found.validations[min(number, last)] for number in range(checks))
    return Estimate(
        start=found.start,
        training=training,
        validation=validation,
        measurement=found.export + test_scenes * found.test_scene,
    )


class _Timer(NullTracker):
    """When each step was over."""

    def __init__(self) -> None:
        super().__init__(Path(), {})
        self.times: list[float] = []

    def log(self, step: int, scalars: dict[str, float], images: Any = None) -> None:
        self.times.append(time.perf_counter())


def measure(parts: Parts, fabric: Fabric, config: dict[str, Any], began: float) -> Measured:
    """Do a run of a few steps, in a folder that is gone afterwards.

    Args:
        parts: of the run that is to be known; none of it changes but the patch.
        fabric: device.
        config: of the run.
        began: when the command was started, by ``time.perf_counter``.

    Raises:
        InputError: the parts do not fit together, or the steps are several processes' work.
        DivergedError, VictimError: of the few steps.
    """
    if fabric.world_size > 1:
        raise InputError(f"trainer.devices: expected 1, of which the cost is measured, got {fabric.world_size}")
    timer = _Timer()
    given = replace(parts, tracker=lambda **_: timer)
    job = assembly.assemble(given, fabric)
    halvings = round(math.log2(job.plan.candidates))
    few = replace(
        parts.settings,
        steps=STEPS * (halvings + 1),
        validate_every=STEPS,
        checkpoint_every=STEPS,
        log_every=1,
        test_scenes=SCENES,
        max_queries=None,
    )
    given = replace(given, settings=few)
    job.settings = few
    with tempfile.TemporaryDirectory() as folder:
        pipeline.run(given, job, Path(folder), pipeline.Origin(config, ""), resumes=False)
        ended = time.perf_counter()
        best = Patch(checkpoint.resume(job, Path(folder)).best.cpu(), job.patch.mask.cpu(), job.patch.size_mm)
    scene = _unseen_scene(job, parts)
    gaps = [after - before for before, after in zip(timer.times, timer.times[1:], strict=False)]
    per_step, training = few.batch * few.accumulate, len(few.split_indices(len(job.source))[0])
    gaps = [max(0.0, gap - scene * min(per_step, max(0, training - per_step * step))) for step, gap in enumerate(gaps)]
    phases = [gaps[first : first + STEPS] for first in range(0, len(gaps), STEPS)]
    steps = [statistics.median(phase[1:-1]) for phase in phases]
    test_scene = _test_scene(job, best)
    return Measured(
        start=timer.times[0] - began,
        steps=steps,
        validations=[max(0.0, phase[-1] - step) for phase, step in zip(phases, steps, strict=True)],
        scene=scene,
        export=max(0.0, ended - timer.times[-1] - SCENES * test_scene),
        test_scene=test_scene,
        scene_bytes=job.source[0].nbytes,
    )


def _test_scene(job: Job, best: Patch) -> float:
    texture = always(best().detach())
    textures = {**controls(best), **job.attack.controls(job.source, best), "drawn": texture, "patch": texture}
    seen = job.settings.split_indices(len(job.source))[2]
    unseen = [number for number in _all_test(job) if number not in seen]
    indices = spread(unseen or seen, SCENES)
    began = time.perf_counter()
    pipeline.measure(job.evaluator(TEST), textures | {"coarse": texture}, indices, job.settings.test_draws)
    return (time.perf_counter() - began) / len(indices)


def _all_test(job: Job) -> list[int]:
    return replace(job.settings, test_scenes=len(job.source)).split_indices(len(job.source))[2]


@torch.no_grad()
def _unseen_scene(job: Job, parts: Parts) -> float:
    """To read a training scene and to have the victim answer about it, as the first to see it does."""
    indices = job.settings.split_indices(len(job.source))[0][-SCENES:]
    began = time.perf_counter()
    for index in indices:
        scene = parts.source.__getitems__([index]).to(job.fabric.device)
        job.predict_once(scene.frames)
    if job.fabric.device.type == "cuda":
        torch.cuda.synchronize(job.fabric.device)
    return (time.perf_counter() - began) / len(indices)


def device_name(device: torch.device) -> str:
    """As its maker calls it; of a CPU, ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def price(prices: Mapping[str, float], device: torch.device) -> tuple[str, float]:
    """Which line of a table of prices a device is, and what it costs an hour: of a CPU, all cores that torch uses.

    Raises:
        InputError: a price below 0, or none for this device.
    """
    if wrong := [name for name, value in prices.items() if not value >= 0]:
        raise InputError(f"prices.{wrong[0]}: expected a price of 0 or more an hour, got {prices[wrong[0]]}")
    if device.type == "cpu" and "cpu" in prices:
        return "cpu", prices["cpu"] * min(torch.get_num_threads(), os.cpu_count() or 1)
    known = [name for name in prices if name.lower() in device_name(device).lower()]
    if not known:
        raise InputError(
            f"prices: expected one of {device_name(device)}, got {', '.join(prices) or 'none'}; give it, per hour, as "
            f"'+prices.\"{device_name(device)}\"=PRICE'"
        )
    name = max(known, key=len)
    return name, prices[name]


def table(estimates: Mapping[str, tuple[Plan, int, Estimate]], per_hour: float, devices: int, currency: str) -> str:
    """Plans as lines: runs, steps of each, hours of one run, of all on one device, of all on ``devices``, money."""
    lines = [["plan", "runs", "steps", "hours a run", "hours in all", f"with devices={devices}", currency]]
    for name, (plan, steps, one) in estimates.items():
        hours = one.total / 3600
        in_all, side_by_side = plan.runs * hours, math.ceil(plan.runs / devices) * hours
        numbers = (f"{plan.runs:,}", f"{steps:,}", f"{hours:,.2f}", f"{in_all:,.1f}", f"{side_by_side:,.1f}")
        lines.append([name, *numbers, f"{in_all * per_hour:,.2f}"])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )
