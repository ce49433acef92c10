"""A run from its parts to its report: check, train, measure against the controls, export."""

from __future__ import annotations

import hashlib
import logging
import math
import platform
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import patchattack
from patchattack import checkpoint, evaluation, files, seeding, training
from patchattack.attacks.attack import Attack
from patchattack.attacks.ensemble import EnsembleAttack
from patchattack.checkpoint import Progress
from patchattack.controls import always, controls
from patchattack.data.memory import Memory
from patchattack.eot.renderer import Renderer
from patchattack.errors import DivergedError, InputError, VictimError, one_line, out_of_memory
from patchattack.evaluation import Row, Verdict
from patchattack.indicators import indicators
from patchattack.job import TEST, TRAINING, VALIDATION, Job, Settings
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.patch import Patch, low_passed
from patchattack.printing.fiducials import save_layouts
from patchattack.printing.sheet import Sheet
from patchattack.reporting.report import Example, Report, example, write_report
from patchattack.scene import Source, View
from patchattack.search import Plan
from patchattack.tracking import MetricsCsv, Nothing, Tracker
from patchattack.victims import contract
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.journal import Journal
from patchattack.victims.victim import Victim

EXAMPLES = 4  # scenes that the report shows
COARSE = 1.5  # pixels in the frame along a texel from which a patch is called coarse
_NO_LOSSES = ("step", "queries", "learning_rate")  # in metrics.csv
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


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: what it takes to repeat it.

    Attributes:
        config: composed, plain containers.
        command: that was typed.
    """

    config: dict[str, Any]
    command: str

    @property
    def digest(self) -> str:
        """First twelve digits of the config's SHA-256."""
        return hashlib.sha256(files.json_text(self.config, sort_keys=True).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"patchattack": patchattack.__version__, "torch": torch.__version__, "python": platform.python_version()}


def assemble(parts: Parts, fabric: Any, resumed: Path | None = None) -> Job:
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
    if not victim.differentiable and settings.devices > 1:
        raise InputError(
            f"trainer.devices: expected 1 for {victim.name}, a black-box victim, got {settings.devices}; "
            "a run asks it in one process"
        )
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
        source=Memory(parts.source, settings.memory_gb * 1e9),
        settings=settings,
        plan=Plan.of(settings.starts, settings.candidates, settings.stages, optimizer, patch),
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
        training_part, validation, _ = settings.parts(len(job.source))
        training.check_budget(job)
        trial = replace(job.evaluator(TRAINING), victim=tried if isinstance(optimizer, GradientFree) else followed)
        (_, scene, clean, _, view), _ = trial.views({"patch": lambda _: patch().detach()}, training_part[:1], 0)
        contract.check_output(victim, scene.frames, clean)
        _compare_resolution(patch, view)
        _check_winnable(job, validation)
    except (VictimError, MemoryError, RuntimeError) as error:
        if not isinstance(error, VictimError) and not out_of_memory(error):
            raise
        raise InputError(f"{_failure(error)}, before the work started") from error
    parts.sheet.check(patch.size_mm)
    return job


def _check_winnable(job: Job, numbers: list[int]) -> None:
    """Say it where the victim leaves no patch anything to win in scenes ``numbers``: there is nothing to measure."""
    unasked = replace(job.evaluator(VALIDATION), victim=lambda _: None)
    texture = job.patch().detach()
    for number in numbers:  # what they cost is kept for the validation
        *_, (_, scene, clean, _, view) = unasked.views({"patch": always(texture)}, [number], 0)
        metrics = job.attack.metrics(clean, clean, scene, view)
        won = [values for (name, _), values in metrics.items() if name == "success"] or [metrics[job.attack.headline]]
        if any(not values.isnan().all() for values in won):
            return
    _log.warning(
        "victim %s: a patch has nothing to win in any of %d validation scenes: %s; check the victim and the data",
        *(job.victim.name, len(numbers), job.attack.nothing_to_win),
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


def run(parts: Parts, job: Job, folder: Path, origin: Origin, resumes: bool) -> Verdict | None:
    """Train, measure and export; everything lands in ``folder``.

    Returns:
        The verdict, on the first process only.

    Raises:
        DivergedError: after the last good patch was saved.
        VictimError: the victim failed or a step ran out of memory, after a checkpoint and the best patch were saved.
        InterruptedRunError: Ctrl-C, after a checkpoint.
    """
    is_first = job.fabric.global_rank == 0
    if job.journal is not None:
        job.journal.open(folder)
    start = checkpoint.begin(job).best
    progress = checkpoint.resume(job, folder) if resumes else checkpoint.begin(job)
    if not resumes:
        checkpoint.save(job, folder, progress)  # whatever happens from here on, the run can be resumed
    tracker: Tracker
    if is_first:
        tracker = _Trackers(parts, job, folder, origin, progress.step if resumes else None)
    else:
        tracker = Nothing(folder, origin.config)
    try:
        training.train(job, folder, tracker, progress)
        if not is_first:
            return None
        verdict, rows = _export(parts, job, folder, origin, progress, start)
        tracker.finish(rows, [folder / "patch.png", folder / "patch.json"])
        if job.journal is not None:
            job.journal.checkpoint()
        return verdict
    except DivergedError as stop:
        if is_first:
            _save_patch(parts, job, folder, origin, progress)
        raise DivergedError(stop.when, folder / "patch.png") from stop
    except (VictimError, MemoryError, RuntimeError) as error:
        if not isinstance(error, VictimError) and not out_of_memory(error):
            raise
        if is_first:
            _save_patch(parts, job, folder, origin, progress)
        raise VictimError(f"{_failure(error)}, after step {progress.step} of {job.settings.steps}") from error
    finally:
        tracker.close()
        if job.journal is not None:
            job.journal.close()


def _failure(error: Exception) -> str:
    """A victim's failure, or a step without room, and what needs less of that."""
    said = str(error) if isinstance(error, VictimError) else f"expected room for a step, got '{one_line(error)}'"
    needs = "; free memory, or start a new run with a smaller trainer.candidates, trainer.batch or trainer.draws"
    return said + needs * out_of_memory(error)


def _run_id(note: Path) -> str:
    """The name of a run to its tracker, which becomes part of names of files.

    Raises:
        InputError: there is none.
    """
    try:
        run_id = files.read_json(note)["run_id"]
        if not (isinstance(run_id, str) and re.fullmatch(r"[\w-]{1,128}", run_id, re.ASCII)):
            raise ValueError(f"expected letters and digits, got {run_id!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{note}: expected the name of the run to its tracker, got {error!r}; delete the file to start another"
        ) from error
    return run_id


class _Trackers:
    """The run's own metrics.csv and the tracker of the user's choice."""

    def __init__(self, parts: Parts, job: Job, folder: Path, origin: Origin, resume_at: int | None) -> None:
        note = folder / "tracker.json"
        known = _run_id(note) if resume_at is not None and note.is_file() else None
        self.metrics = MetricsCsv(folder / "metrics.csv", job.columns, resume_at)
        try:
            self.tracker = parts.tracker(folder=folder, config=origin.config, run_id=known)
        except BaseException:
            self.metrics.close()
            raise
        self.run_id = self.tracker.run_id
        if self.run_id is not None:
            files.write_json(note, {"run_id": self.run_id})

    def log(self, step: int, scalars: dict[str, float], images: Any = None) -> None:
        self.metrics.log(step, scalars)
        self.tracker.log(step, scalars, images)

    def finish(self, rows: list[Row], files: list[Path]) -> None:
        self.tracker.finish(rows, files)

    def close(self) -> None:
        self.metrics.close()
        self.tracker.close()


def _save_patch(parts: Parts, job: Job, folder: Path, origin: Origin, progress: Progress) -> Patch:
    """``patch.png`` and ``patch.json`` of the best texture, whatever the last step's is."""
    best = Patch(progress.best.cpu().clamp(0, 1), job.patch.mask.cpu(), job.patch.size_mm)
    facts = {
        "attack": origin.config["attack"],
        "task": job.attack.task,
        "headline": list(job.attack.headline),
        "victims": parts.victim.names,
        "step": progress.best_step,
        "seed": parts.seed,
        "seen": 1 + job.source.original(job.settings.parts(len(job.source))[1][-1]),  # scenes, from the data's first
        "config": origin.digest,
        "versions": versions(),
    }
    best.save(folder / "patch.png", facts)
    return best


def _export(
    parts: Parts, job: Job, folder: Path, origin: Origin, progress: Progress, start: Tensor
) -> tuple[Verdict, list[Row]]:
    """Measure the best patch and its controls on the test scenes and write all that the folder shall hold."""
    settings, attack = job.settings, job.attack
    best = _save_patch(parts, job, folder, origin, progress)
    title = f"{attack.task} patch against {parts.victim.name}"
    parts.sheet.write(
        folder / "print" / f"{parts.sheet.page}.pdf",
        best().detach(),
        best.mask,
        best.size_mm,
        title,
        f"run {folder.name}, config {origin.digest}, {best.size_mm[0]:g} × {best.size_mm[1]:g} mm",
    )
    # The sheet after the patch's is the control's, which is printed on request.
    sheets = [parts.sheet.layout(best.size_mm, parts.sheet.number + extra) for extra in (0, 1)]
    save_layouts(folder / "print" / "layout.json", sheets)

    asked, before = training.queries(job, progress.step), job.queries
    _, validation, numbers = settings.parts(len(job.source))
    more = [] if progress.hand_drawn is None else [progress.hand_drawn]
    drawn = job.evaluator(VALIDATION).best_drawn(validation, more)
    texture = progress.best
    textures = {
        **controls(best),
        **attack.controls(job.source, best),
        "drawn": always(drawn.texture(*best.mask.shape[1:])),
        "patch": always(texture),
        "coarse": always(low_passed(texture)),
    }
    evaluator = job.evaluator(TEST)
    measured = evaluator.measure(
        textures,
        numbers,
        settings.test_draws,
        progress=lambda work: tqdm(work, desc="measuring patch and controls", unit="batch", dynamic_ncols=True),
    )
    measured += evaluator.photographed(texture, numbers, settings.test_draws)
    rows = evaluation.summarise(measured, attack)
    verdict = evaluation.judge(measured, attack)
    files.write_json(folder / "results.json", rows)

    examples = [_example(attack, evaluator.views(textures, [number], 1)) for number in _evenly(numbers, EXAMPLES)]
    legend, legend_text = attack.legend()
    height, width = job.source[numbers[0]].size
    corners = next(evaluator.views({"grey": textures["grey"]}, numbers[:1], 0))[4].corners
    side = float((corners[0, 0] - corners[0, 0].roll(1, 0)).norm(dim=-1).mean())
    limit = "" if settings.max_queries is None else f" of at most {settings.max_queries:,}"
    over = "queries" if isinstance(job.optimizer, GradientFree) else "step"
    history = MetricsCsv.read(folder / "metrics.csv")
    dead = None if isinstance(job.optimizer, GradientFree) else _without_gradient(job, texture)
    report = Report(
        title=title[0].upper() + title[1:],
        verdict=verdict.sentence,
        facts=verdict.facts,
        outcome=verdict.outcome,
        rule=verdict.rule,
        rows=rows,
        labels={name: metric.label for name, metric in attack.metrics_known.items()} | {"loss": "attack loss"},
        arrows={name: metric.stronger for name, metric in attack.metrics_known.items()} | {"loss": "lower"},
        headline=attack.headline,
        over=over,
        history=[
            {name: value for name, value in row.items() if name == over or name not in _NO_LOSSES} for row in history
        ],
        examples=examples,
        legend=legend,
        legend_text=legend_text,
        changes_legend=attack.changes_legend(),
        indicators=indicators(history, texture, start, best.mask, dead, progress.best_step, progress.step),
        patch=torch.cat([best(), best.mask]).detach(),
        setup=[
            ("Victim", parts.victim.name),
            ("Data", f"{type(parts.source).__name__}, {len(numbers)} held-out scenes × {settings.test_draws} draws"),
            ("Frames", f"{width} × {height} px, the patch about {side:.0f} px a side"),
            ("On paper", f"{best.size_mm[0]:g} × {best.size_mm[1]:g} mm"),
            ("Training", f"{progress.step} steps of {settings.batch} × {settings.draws} views, seed {parts.seed}"),
            (
                "Chosen",
                f"step {progress.best_step}, the best on validation scenes, used for nothing else",
            ),
            ("Hand-drawn", f"{drawn}, the best of its kind on validation scenes"),
            ("Queries", f"{asked:,}{limit}, and {job.queries - before + len(numbers):,} for this report"),
            ("Config", origin.digest),
        ],
        command=origin.command,
        versions=versions(),
    )
    write_report(folder / "report.html", report)
    return verdict, rows


def _without_gradient(job: Job, texture: Tensor) -> float:
    """Share of the printed texels of ``texture [3, h, w]`` in which the loss of one training batch has no gradient."""
    numbers = job.settings.parts(len(job.source))[0][: job.settings.batch]
    scene = job.source.__getitems__(numbers)
    keys = [(job.seed, TRAINING, 0, number) for number in numbers]
    draw = job.renderer.draw(scene, job.patch, seeding.numbers(keys))
    scene = scene.to(job.fabric.device)
    free = texture.detach().to(job.fabric.device).clone().requires_grad_()
    view = job.renderer(free, job.patch.mask, scene, draw)
    loss = job.attack.loss(job.predict(view.frames), job.references(scene), scene, view).mean()
    (gradient,) = torch.autograd.grad(loss, free)
    return float((gradient == 0).all(dim=0)[job.patch.mask[0] > 0].float().mean())


def _example(attack: Attack, views: Any) -> Example:
    """One scene without a patch, with a random one and with the optimised one."""
    shown = {condition: (view.frames[0].cpu(), hit) for condition, _, _, hit, view in views}
    order = [name for name in ("clean", "random", "patch") if name in shown]
    return example(attack, order, *([shown[name][part] for name in order] for part in range(2)))


def _evenly(numbers: list[int], count: int) -> list[int]:
    """``count`` of ``numbers``, or all where there are fewer, evenly spread."""
    count = min(count, len(numbers))
    return [numbers[i * len(numbers) // count] for i in range(count)]
