"""The one loop: every task trains its patch here."""

from __future__ import annotations

import itertools
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from patchattack import budget, checkpoint, evaluation, seeding, statistics
from patchattack.batches import batches
from patchattack.checkpoint import Progress
from patchattack.controls import always, random_patches
from patchattack.errors import DivergedError, InterruptedRunError
from patchattack.job import SEARCH, STARTS, VALIDATION, Fabric, Job
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.search import find_starts
from patchattack.tracking import Tracker
from patchattack.update import Update


def train(job: Job, folder: Path, tracker: Tracker, progress: Progress) -> Progress:
    """Optimise the patch and return where the run stands at its end.

    Every draw is named by the seed, the step and the place in the batch. So a resumed run is exact to the bit, and
    processes that share a batch see what one process would.

    Args:
        job: what to train with.
        folder: of the run; ``checkpoint.safetensors`` and ``state.json`` are written there.
        tracker: of scalars and pictures.
        progress: from :func:`checkpoint.begin` or :func:`checkpoint.resume`.

    Raises:
        DivergedError: the loss became NaN or infinite; ``progress.best`` is the last good patch.
        InterruptedRunError: Ctrl-C, after a checkpoint.
    """
    settings, patch, fabric, optimizer = job.settings, job.patch, job.fabric, job.optimizer
    training, validation, _ = settings.split_indices(len(job.source))
    drawn = batches(job, training, progress.step)
    failed = torch.zeros((), dtype=torch.bool, device=fabric.device)
    log = _Log(job, tracker, progress.step)
    with log.bar, _Interrupt() as interrupt:
        if progress.step == 0 and progress.best_loss == math.inf:  # else resumed from the checkpoint of step 0
            _start(job, training, progress)
            _validate(job, validation, progress, log, {})
            checkpoint.save(job, folder, progress)
        for step in range(progress.step, settings.steps):
            if not budget.affords(job, step):
                break
            _refine(job, step)
            update = Update(job, step, list(itertools.islice(drawn, settings.accumulate)))
            if isinstance(optimizer, GradientFree):
                optimizer.draw(seeding.generator(job.seed, SEARCH, step))
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step(update)  # type: ignore[arg-type]  # torch's closures return tensors too
            job.schedule.step()
            patch.project_()
            failed |= update.failed
            progress.step = step + 1
            log.bar.update()

            last = progress.step == settings.steps or not budget.affords(job, progress.step)
            validates = last or progress.step % settings.validate_every == 0
            # A step that asks a victim many times is dear, and a checkpoint is cheap.
            saves = last or progress.step % settings.checkpoint_every == 0 or job.journal is not None
            # Ctrl-C reaches several processes in different steps: they stop at the next one where all report.
            asked = interrupt.asked and fabric.world_size == 1
            reports = validates or saves or progress.step % settings.log_every == 0
            if reports or asked:
                losses = update.losses()
                # The step's only wait for the device.
                values = _reduce(fabric, {"loss": torch.stack(list(losses.values())).sum(), **losses, "failed": failed})
                if values.pop("failed"):
                    raise DivergedError(f"by step {progress.step}")
                values["learning_rate"] = rate
                if validates:
                    _validate(job, validation, progress, log, values)
                elif reports:
                    log(progress.step, values)
                stops = _reduce(fabric, {"asked": torch.tensor(interrupt.asked, device=fabric.device)})["asked"]
                if saves or stops:
                    checkpoint.save(job, folder, progress)
                if stops:
                    raise InterruptedRunError(f"interrupted after step {progress.step} of {settings.steps}")
    if interrupt.asked:  # while the last checkpoint was written
        raise InterruptedRunError(f"interrupted after step {progress.step} of {settings.steps}")
    if progress.step < settings.steps and not log.silent:
        queries = budget.queries(job, progress.step)
        print(
            f"stopped after step {progress.step} of {settings.steps} and {queries:,} queries: "
            f"another step would exceed trainer.max_queries={settings.max_queries}"
        )
    return progress


@torch.no_grad()
def _start(job: Job, training: list[int], progress: Progress) -> None:
    """Begin with the best of several textures."""
    rows = [training[place] for place in budget.start_scenes(job, len(training))]
    if not rows:
        return
    scene = job.source.__getitems__(rows)
    draw = job.renderer.draw(scene, job.patch, seeding.numbers([(job.seed, STARTS, row) for row in rows]))
    scene = scene.to(job.fabric.device)
    clean = job.references(scene)

    def losses(textures: list[Tensor]) -> list[float]:
        found = []
        for texture in textures:
            view = job.renderer(texture, job.patch.mask, scene, draw)
            found.append(job.attack.loss(job.predict(view.frames), clean, scene, view).mean())
            bar.update()
        return torch.stack(found).tolist()

    silent = job.fabric.global_rank > 0
    with tqdm(desc="trying starts", total=job.plan.starts + 1, disable=silent, dynamic_ncols=True) as bar:
        starts = find_starts(job.plan, job.patch, seeding.generator(job.seed, STARTS), losses)
    progress.hand_drawn = starts.hand_drawn
    job.patch.set_texture(starts.textures if len(starts.textures) > 1 else starts.textures[0])


def _refine(job: Job, step: int) -> None:
    """Where a stage begins with this step, make the patch as fine as the stage is."""
    scale = job.plan.scale(step, job.settings.steps)
    if scale != (job.plan.scale(step - 1, job.settings.steps) if step else 1):
        job.patch.set_texture(job.patch().detach(), scale)
        job.optimizer.state.clear()  # of other texels


def _halve(job: Job, ranks: list[tuple[float, float]]) -> None:
    """Go on with the better half of the candidates."""
    kept = sorted(range(len(ranks)), key=lambda number: ranks[number])[: len(ranks) // 2]
    rows = torch.tensor(kept) if len(kept) > 1 else kept[0]
    shape = job.patch.parameter.shape
    job.patch.hold(job.patch.parameter.detach()[rows])
    for memory in job.optimizer.state.values():
        memory |= {
            name: value[rows].clone()
            for name, value in memory.items()
            if isinstance(value, Tensor) and value.shape == shape
        }


class _Log:
    """Numbers and pictures for the tracker, and the progress bar; silent in every process but the first."""

    def __init__(self, job: Job, tracker: Tracker, step: int) -> None:
        self.job, self.tracker, self.primary_metric = job, tracker, job.attack.primary_metric[0]
        self.silent = job.fabric.global_rank > 0
        self.shown: dict[str, float] = {}
        self.bar = tqdm(
            total=job.settings.steps,
            initial=step,
            desc="optimising the patch",
            unit="step",
            disable=self.silent,
            dynamic_ncols=True,
        )

    def __call__(self, step: int, values: dict[str, float], images: dict[str, Tensor] | None = None) -> None:
        if self.silent:
            return
        values = values | {"queries": budget.queries(self.job, step)}
        self.tracker.log(step, values, images)
        names = {
            "loss": "loss",
            "validation/patch": self.primary_metric,
            "validation/random": f"{self.primary_metric} of a random patch",
        }
        self.shown |= {shown: values[name] for name, shown in names.items() if name in values}
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in self.shown.items()})


def _validate(job: Job, indices: list[int], progress: Progress, log: _Log, values: dict[str, float]) -> None:
    """Compare patches and random patch on held-out scenes, keep the best of all so far, and drop the worse half."""
    patch, attack = job.patch, job.attack
    evaluator = job.evaluator(VALIDATION)
    candidates = list(patch().detach().clone().unflatten(-3, (1, 3)).flatten(0, -4))
    textures: dict[str, evaluation.Textures] = {f"patch {n}": always(one) for n, one in enumerate(candidates)}
    if progress.best_loss == math.inf:
        textures["random"] = random_patches(patch)
    measured = evaluator.measure(textures, indices, repetitions=budget.REPETITIONS)
    sign = 1.0 if attack.metric_info[attack.primary_metric[0]].stronger == "lower" else -1.0

    def mean(condition: str, metric: tuple[str, str]) -> float:
        return statistics.mean(evaluation.per_scene(measured, condition, metric))

    if "random" in textures:
        progress.random_score = sign * mean("random", attack.primary_metric)
    scores = [sign * mean(f"patch {n}", attack.primary_metric) for n in range(len(candidates))]
    losses = [mean(f"patch {n}", ("loss", "all")) for n in range(len(candidates))]
    # Where no validation scene has anything to win, as when the victim gets them all wrong, the loss alone decides.
    ranks = [(math.inf if math.isnan(score) else score, loss) for score, loss in zip(scores, losses, strict=True)]
    first = min(ranks)
    number = ranks.index(first)
    texture = candidates[number]
    if first < (progress.best_score, progress.best_loss):
        progress.best, progress.best_step = texture, progress.step
        progress.best_score, progress.best_loss = first
    if len(candidates) > 1 and progress.step > 0:
        _halve(job, ranks)
    values = values | {
        "validation/loss": losses[number],
        "validation/patch": sign * scores[number],
        "validation/random": sign * progress.random_score,
    }
    images = {"patch": texture}
    if job.fabric.global_rank == 0:
        unasked = replace(evaluator, victim=lambda _: None)  # a picture needs no answer
        view = next(unasked.views({"patch": always(texture)}, indices[:1], 0))[4]
        images |= {f"view/{t}": frame for t, frame in enumerate(view.frames[0])}
    log(progress.step, values, images)


def _reduce(fabric: Fabric, values: dict[str, Tensor]) -> dict[str, float]:
    """Means over all processes, on the host."""
    stacked = torch.stack([value.float() for value in values.values()])
    if fabric.world_size > 1:
        stacked = fabric.all_reduce(stacked, reduce_op="mean")
    return dict(zip(values, stacked.tolist(), strict=True))


class _Interrupt:
    """Ctrl-C asks the loop to stop after the step it is in; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupt:
        try:
            self._previous: Any = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread: whoever started it handles Ctrl-C
            self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, *_: int | FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write("stopping after this step; Ctrl-C again to stop at once")
