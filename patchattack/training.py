"""The one loop: every task trains its patch here."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from patchattack import checkpoint, evaluation, seeding, statistics
from patchattack.checkpoint import Progress
from patchattack.controls import controls
from patchattack.job import ORDER, TRAINING, VALIDATION, VICTIM, Fabric, Job
from patchattack.scene import Scene
from patchattack.tracking import Tracker


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


class InterruptedRunError(RuntimeError):
    """Ctrl-C: the run was saved and can be resumed."""


def train(job: Job, folder: Path, tracker: Tracker, progress: Progress) -> Progress:
    """Optimise the patch and return where the run stands at its end.

    Every draw is named by the seed, the step and the place in the batch. So a resumed run goes on to the bit, and
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
    settings, patch, fabric = job.settings, job.patch, job.fabric
    training, validation, _ = settings.parts(len(job.source))
    share = settings.batch // fabric.world_size
    loader = _loader(job, training, progress.step, share)
    failed = torch.zeros((), dtype=torch.bool, device=fabric.device)
    log = _Log(job, tracker, progress.step)
    with log.bar, _Interrupt() as interrupt:
        if progress.step == 0 and math.isnan(progress.random_score):  # else resumed from the checkpoint of step 0
            _validate(job, validation, progress, log, {})
            checkpoint.save(job, folder, progress)
        for step in range(progress.step, settings.steps):
            job.optimizer.zero_grad()
            sums: dict[str, Tensor] = {}
            for part in range(settings.accumulate):
                scene = next(loader)
                first = part * settings.batch + fabric.global_rank * share  # place among all scenes of the update
                generators = [
                    seeding.generator(job.seed, TRAINING, step, place, draw)
                    for place in range(first, first + share)
                    for draw in range(settings.draws)
                ]
                losses = _losses(job, scene, generators, seeding.generator(job.seed, VICTIM, step))
                total = torch.stack(list(losses.values())).sum() / settings.accumulate
                total.backward()
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0) + value.detach() / settings.accumulate
            gradient = patch.free.grad
            assert gradient is not None
            if fabric.world_size > 1:
                gradient.copy_(fabric.all_reduce(gradient, reduce_op="mean"))
            failed |= ~(gradient.isfinite().all() & torch.stack(list(sums.values())).isfinite().all())
            rate = job.optimizer.param_groups[0]["lr"]
            job.optimizer.step()
            job.schedule.step()
            patch.project_()
            progress.step = step + 1
            log.bar.update()

            last = progress.step == settings.steps
            validates = last or progress.step % settings.validate_every == 0
            saves = last or progress.step % settings.checkpoint_every == 0
            # Ctrl-C reaches several processes in different steps: they stop at the next one where all report.
            asked = interrupt.asked and fabric.world_size == 1
            reports = validates or saves or progress.step % settings.log_every == 0
            if reports or asked:
                # The step's only wait for the device.
                values = _reduced(fabric, {"loss": torch.stack(list(sums.values())).sum(), **sums, "failed": failed})
                if values.pop("failed"):
                    raise DivergedError(f"the loss became NaN or infinite by step {progress.step}")
                values["learning_rate"] = rate
                if validates:
                    _validate(job, validation, progress, log, values)
                elif reports:
                    log(progress.step, values)
                stops = _reduced(fabric, {"asked": torch.tensor(interrupt.asked, device=fabric.device)})["asked"]
                if saves or stops:
                    checkpoint.save(job, folder, progress)
                if stops:
                    raise InterruptedRunError(f"interrupted after step {progress.step} of {settings.steps}")
    return progress


class _Log:
    """Numbers and pictures for the tracker, and the progress bar; silent in every process but the first."""

    def __init__(self, job: Job, tracker: Tracker, step: int) -> None:
        self.tracker, self.headline = tracker, job.attack.headline[0]
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
        self.tracker.log(step, values, images)
        names = {
            "loss": "loss",
            "validation/patch": self.headline,
            "validation/random": f"{self.headline} of a random patch",
        }
        self.shown |= {shown: values[name] for name, shown in names.items() if name in values}
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in self.shown.items()})


def _losses(job: Job, scene: Scene, generators: list[torch.Generator], of_victim: torch.Generator) -> dict[str, Tensor]:
    """One batch: the mean attack loss over all views, and every regulariser with its weight."""
    scene = scene.to(job.fabric.device)
    if job.settings.draws > 1:
        scene = scene.select(torch.arange(len(scene)).repeat_interleave(job.settings.draws))
    clean = job.references(scene)
    draw = job.renderer.draw(scene, job.patch, generators)
    texture = job.patch()
    view = job.renderer(texture, job.patch.mask, scene, draw)
    job.victim.draw(of_victim)
    hit = job.predict(view.frames)
    job.victim.draw(None)  # the references and the validation are of all that it can do
    losses = {"attack": job.attack.loss(hit, clean, scene, view).mean()}
    for name, regularizer in job.regularizers.items():
        losses[name] = regularizer.weight * regularizer(texture, job.patch.mask)
    return losses


def _loader(job: Job, numbers: list[int], done: int, share: int) -> Any:
    """Batches from step ``done`` on: an epoch is a permutation that seed and epoch fix."""
    settings, rank = job.settings, job.fabric.global_rank
    batches = []
    epochs: dict[int, Tensor] = {}
    for number in range(done * settings.accumulate, settings.steps * settings.accumulate):
        batch = []
        for slot in range(share):
            epoch, place = divmod(number * settings.batch + rank * share + slot, len(numbers))
            if epoch not in epochs:
                generator = seeding.generator(job.seed, ORDER, epoch)
                epochs = {epoch - 1: epochs[epoch - 1]} if epoch - 1 in epochs else {}
                epochs[epoch] = torch.randperm(len(numbers), generator=generator)
            batch.append(numbers[epochs[epoch][place]])
        batches.append(batch)
    loader: Any = DataLoader(
        job.source,
        batch_sampler=batches,
        collate_fn=_whole,  # type: ignore[arg-type]
        num_workers=settings.workers,
    )
    return iter(loader)


def _whole(scene: Scene) -> Scene:
    """A source gives whole batches. By name, because worker processes that are not forked pickle it."""
    return scene


def _validate(job: Job, numbers: list[int], progress: Progress, log: _Log, values: dict[str, float]) -> None:
    """Compare patch and random patch on held-out scenes and keep the patch if it is the best so far."""
    patch, attack = job.patch, job.attack
    evaluator = job.evaluator(VALIDATION)
    texture = patch().detach().clone()
    textures: dict[str, evaluation.Textures] = {"patch": lambda _: texture}
    if math.isnan(progress.random_score):
        textures["random"] = controls(patch)["random"]
    measured = evaluator.measure(textures, numbers, repetitions=2)
    sign = 1.0 if attack.metrics_known[attack.headline[0]].stronger == "lower" else -1.0

    def mean(condition: str, metric: tuple[str, str]) -> float:
        return statistics.mean(evaluation.per_scene(measured, condition, metric))

    score = sign * mean("patch", attack.headline)
    if "random" in textures:
        progress.random_score = sign * mean("random", attack.headline)
    loss = mean("patch", ("loss", "all"))
    # Where no validation scene has anything to win, as when the victim gets them all wrong, the loss alone decides.
    rank = (math.inf if math.isnan(score) else score, loss)
    if rank < (progress.best_score, progress.best_loss):
        progress.best, progress.best_step = texture, progress.step
        progress.best_score, progress.best_loss = rank
    values = values | {
        "validation/loss": loss,
        "validation/patch": sign * score,
        "validation/random": sign * progress.random_score,
    }
    images = {"patch": texture}
    if job.fabric.global_rank == 0:
        view = next(evaluator.views({"patch": textures["patch"]}, numbers[:1], 0))[4]
        images |= {f"view/{t}": frame for t, frame in enumerate(view.frames[0])}
    log(progress.step, values, images)


def _reduced(fabric: Fabric, values: dict[str, Tensor]) -> dict[str, float]:
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
