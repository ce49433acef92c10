"""A run from its job to its report: train, measure against the controls, export."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import patchattack
from patchattack import budget, checkpoint, evaluation, files, seeding, training, tuning
from patchattack.assembly import Parts, failure, room
from patchattack.attacks.attack import Attack
from patchattack.checkpoint import Progress
from patchattack.controls import IN_MEDIA, always, controls
from patchattack.errors import DivergedError, InputError, VictimError, out_of_memory
from patchattack.evaluation import Row, Verdict
from patchattack.indicators import indicators
from patchattack.job import TEST, TRAINING, VALIDATION, Job, spread
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.patch import Patch, low_passed
from patchattack.printing.fiducials import save_layouts
from patchattack.reporting.report import Example, Report, example, write_report
from patchattack.reporting.threat_model import RunFacts, threat_model
from patchattack.tracking import MetricsCsv, NullTracker, Tracker

EXAMPLES = 4  # scenes that the report shows
_NO_LOSSES = ("step", "queries", "learning_rate")  # in metrics.csv


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
    tuning.settle(job)
    if not resumes:
        checkpoint.save(job, folder, progress)  # whatever happens from here on, the run can be resumed
    tracker: Tracker
    if is_first:
        tracker = _Trackers(parts, job, folder, origin, progress.step if resumes else None)
    else:
        tracker = NullTracker(folder, origin.config)
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
        fits = room(job, error) if out_of_memory(error) and job.journal is None else ""
        raise VictimError(f"{failure(error)}{fits}, after step {progress.step} of {job.settings.steps}") from error
    finally:
        tracker.close()
        if job.journal is not None:
            job.journal.close()


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
        "primary_metric": list(job.attack.primary_metric),
        "victims": parts.victim.names,
        "step": progress.best_step,
        "seed": parts.seed,
        "seen": 1
        + job.source.original(job.settings.split_indices(len(job.source))[1][-1]),  # scenes, from the data's first
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

    asked, before = budget.queries(job, progress.step), job.queries
    training_scenes, validation, indices = settings.split_indices(len(job.source))
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
    measured = measure(evaluator, textures, indices, settings.test_draws)
    rows = evaluation.summarise(measured, attack)
    verdict = evaluation.judge(measured, attack)
    files.write_json(folder / "results.json", rows)
    first = job.source[indices[0]]
    height, width = first.size
    corners = evaluator.corners(indices, settings.test_draws)
    side = float((corners[0] - corners[0].roll(1, 0)).norm(dim=-1).mean())
    facts = RunFacts(
        outcome=verdict.outcome,
        sentence=verdict.sentence,
        unbeaten=verdict.unbeaten,
        attack=attack,
        victims=parts.victim.names,
        gradients=not isinstance(job.optimizer, GradientFree),
        queries=asked,
        patch=best,
        frame=(height, width),
        frames=first.frames.shape[1],
        corners=corners,
        scenes=(len(training_scenes), len(validation), len(indices)),
        rows=rows,
    )
    model = threat_model(origin.config, facts)
    files.write_json(folder / "evidence.json", model)

    shown = {name: textures[name] for name in ("random", "patch")}
    examples = [_example(attack, evaluator.views(shown, [index], 1)) for index in spread(indices, EXAMPLES)]
    legend, legend_text = attack.legend()
    limit = "" if settings.max_queries is None else f" of at most {settings.max_queries:,}"
    over = "queries" if isinstance(job.optimizer, GradientFree) else "step"
    history = MetricsCsv.read(folder / "metrics.csv")
    dead = None if isinstance(job.optimizer, GradientFree) else _without_gradient(job, texture)
    report = Report(
        title=title[0].upper() + title[1:],
        verdict=verdict.sentence,
        facts=verdict.facts,
        outcome=verdict.outcome,
        threat_model=model,
        rule=verdict.rule,
        rows=rows,
        labels={name: metric.label for name, metric in attack.metric_info.items()} | {"loss": "attack loss"},
        arrows={name: metric.stronger for name, metric in attack.metric_info.items()} | {"loss": "lower"},
        primary_metric=attack.primary_metric,
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
            ("Victim", parts.victim.name + (f", {job.mode}" if job.mode else "")),
            ("Data", f"{type(parts.source).__name__}, {len(indices)} held-out scenes × {settings.test_draws} draws"),
            ("Frames", f"{width} × {height} px, the patch about {side:.0f} px a side"),
            ("On paper", f"{best.size_mm[0]:g} × {best.size_mm[1]:g} mm"),
            ("Training", f"{progress.step} steps of {settings.batch} × {settings.draws} views, seed {parts.seed}"),
            (
                "Chosen",
                f"step {progress.best_step}, the best on validation scenes, used for nothing else",
            ),
            ("Hand-drawn", f"{drawn}, the best of its kind on validation scenes"),
            ("Queries", f"{asked:,}{limit}, and {job.queries - before + len(indices):,} for this report"),
            ("Config", origin.digest),
        ],
        command=origin.command,
        versions=versions(),
    )
    write_report(folder / "report.html", report)
    return verdict, rows


def measure(
    evaluator: evaluation.Evaluator, textures: dict[str, evaluation.Textures], indices: list[int], draws: int
) -> list[evaluation.Measured]:
    """What a run measures in the end: all textures in the same views, and some of them in other media."""

    def bar(what: str, work: Iterable[Any]) -> Iterable[Any]:
        return tqdm(work, desc=f"measuring {what}", unit="batch", dynamic_ncols=True)

    measured = evaluator.measure(textures, indices, draws, progress=partial(bar, "patch and controls"))
    return measured + evaluator.in_media({name: textures[name] for name in IN_MEDIA}, indices, draws, bar)


def _without_gradient(job: Job, texture: Tensor) -> float:
    """Fraction of the printed texels of ``texture [3, h, w]`` in which one training batch's loss has no gradient."""
    indices = job.settings.split_indices(len(job.source))[0][: job.settings.batch]
    scene = job.source.__getitems__(indices)
    keys = [(job.seed, TRAINING, 0, index) for index in indices]
    draw = job.renderer.draw(scene, job.patch, seeding.numbers(keys))
    scene = scene.to(job.fabric.device)
    free = texture.detach().to(job.fabric.device).clone().requires_grad_()
    view = job.renderer(free, job.patch.mask, scene, draw)
    loss = job.attack.loss(job.predict(view.frames), job.references(scene), scene, view).mean()
    (gradient,) = torch.autograd.grad(loss, free)
    return float((gradient == 0).all(dim=0)[job.patch.mask[0] > 0].float().mean())


def _example(attack: Attack, views: Any) -> Example:
    """One scene without a patch, with a random one and with the optimised one."""
    shown = {condition: (view.frames[0].cpu(), output) for condition, _, _, output, view in views}
    order = ["clean", "random", "patch"]
    return example(attack, order, *([shown[name][part] for name in order] for part in range(2)))
