"""The one loop: every task trains its patch here."""

from __future__ import annotations

import itertools
import math
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from patchattack import checkpoint, evaluation, seeding, statistics
from patchattack.checkpoint import Progress
from patchattack.controls import always, random_patches
from patchattack.devices import transfer
from patchattack.eot.renderer import Draw
from patchattack.eot.zoom import zoomed
from patchattack.errors import DivergedError, InputError, InterruptedRunError
from patchattack.job import ORDER, SEARCH, STARTS, TRAINING, VALIDATION, VICTIM, Fabric, Job
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.scene import Scene
from patchattack.search import find_starts
from patchattack.seeding import Numbers
from patchattack.tracking import Tracker

_REPETITIONS = 2  # EoT draws of each validation scene
_START_VIEWS = 8  # training scenes, each drawn once, on which starts are compared


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
    training, validation, _ = settings.parts(len(job.source))
    loader = _loader(job, training, progress.step)
    failed = torch.zeros((), dtype=torch.bool, device=fabric.device)
    log = _Log(job, tracker, progress.step)
    with log.bar, _Interrupt() as interrupt:
        if progress.step == 0 and progress.best_loss == math.inf:  # else resumed from the checkpoint of step 0
            _start(job, training, progress)
            _validate(job, validation, progress, log, {})
            checkpoint.save(job, folder, progress)
        for step in range(progress.step, settings.steps):
            if not _affords(job, step):
                break
            _refine(job, step)
            batches, scenes = [], settings.scenes_at(step)
            share = scenes // fabric.world_size
            for part in range(settings.accumulate):
                first = part * scenes + fabric.global_rank * share  # place among all scenes of the update
                numbers = seeding.numbers(
                    [
                        (job.seed, TRAINING, step, place, draw)
                        for place in range(first, first + share)
                        for draw in range(settings.draws)
                    ]
                )
                batches.append(_batch(job, next(loader), numbers))
            update = _Update(job, step, batches)
            if isinstance(optimizer, GradientFree):
                optimizer.draw(seeding.generator(job.seed, SEARCH, step))
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step(update)  # type: ignore[arg-type]  # torch's closures return tensors too
            job.schedule.step()
            patch.project_()
            failed |= update.failed
            progress.step = step + 1
            log.bar.update()

            last = progress.step == settings.steps or not _affords(job, progress.step)
            validates = last or progress.step % settings.validate_every == 0
            # A step that asks a victim many times is dear, and a checkpoint is cheap.
            saves = last or progress.step % settings.checkpoint_every == 0 or job.journal is not None
            # Ctrl-C reaches several processes in different steps: they stop at the next one where all report.
            asked = interrupt.asked and fabric.world_size == 1
            reports = validates or saves or progress.step % settings.log_every == 0
            if reports or asked:
                losses = update.losses()
                # The step's only wait for the device.
                values = _reduced(
                    fabric, {"loss": torch.stack(list(losses.values())).sum(), **losses, "failed": failed}
                )
                if values.pop("failed"):
                    raise DivergedError(f"by step {progress.step}")
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
    if interrupt.asked:  # while the last checkpoint was written
        raise InterruptedRunError(f"interrupted after step {progress.step} of {settings.steps}")
    if progress.step < settings.steps and not log.silent:
        print(
            f"stopped after step {progress.step} of {settings.steps} and {queries(job, progress.step):,} queries: "
            f"another step would exceed trainer.max_queries={settings.max_queries}"
        )
    return progress


def queries(job: Job, steps: int) -> int:
    """How much the victim was asked by the end of ``steps`` steps, over all processes.

    A query is one view of a frame, or of a pair, that it answered about: patched ones in validation and in training,
    and the clean frames of each scene that the steps showed and of the validation scenes, once. What it took to choose
    the scenes and to try one before the work is part of it; the final measurement is not.
    """
    settings = job.settings
    training, validation, _ = settings.parts(len(job.source))
    shown = settings.accumulate * sum(map(settings.scenes_at, range(steps)))
    clean, starts = len(training), _start_scenes(job, len(training))
    if settings.zoom > 1:  # no scene is seen twice
        clean = shown * settings.draws + len({0, *starts})
    elif shown < clean:
        clean = len({0, *starts, *_order(job, 0, clean)[:shown].tolist()})  # the first was tried before the work
    return job.queries + clean + len(validation)


def check_budget(job: Job) -> None:
    """Before the work, of which the trial of one view is still to come.

    Raises:
        InputError: ``trainer.max_queries`` is too few for a single step and the validation around it.
    """
    settings = job.settings
    if settings.max_queries is None:
        return
    training, validation, _ = settings.parts(len(job.source))
    plan, view = job.plan, len(validation) * _REPETITIONS
    before = queries(job, 1) + 1 + (plan.candidates + 1) * view  # the patches and a random one
    before += (plan.starts + 1) * len(_start_scenes(job, len(training))) if plan.starts else 0
    step, after = plan.candidates * _most_of_a_step(job, 0), plan.candidates * view
    if before + step + after > settings.max_queries:
        raise InputError(
            f"trainer.max_queries: expected at least {before + step + after} ({before} for clean scenes, starts and "
            f"the first validation, {step} for one step, {after} for the last validation), got {settings.max_queries}; "
            "raise it, or lower trainer.batch, trainer.draws, trainer.starts, trainer.validation_scenes or what the "
            "optimizer tries in a step"
        )


def _most_of_a_step(job: Job, step: int) -> int:
    """Views that ``step`` asks about at most, for each candidate."""
    optimizer, settings = job.optimizer, job.settings
    if isinstance(optimizer, GradientFree):
        calls = optimizer.evaluations
    else:  # torch's L-BFGS is the only other that asks more than once; its line search may end 25 calls later
        group = optimizer.param_groups[0]
        calls = group.get("max_eval", 1) + (25 if group.get("line_search_fn") else 0)
    return calls * settings.accumulate * settings.scenes_at(step) * settings.draws


def _affords(job: Job, step: int) -> bool:
    """Whether the budget has room for this step and a validation after it."""
    if job.settings.max_queries is None:
        return True
    _, validation, _ = job.settings.parts(len(job.source))
    after = len(validation) * _REPETITIONS
    needed = _candidates(job) * (_most_of_a_step(job, step) + after)
    return queries(job, step + 1) + needed <= job.settings.max_queries


def _candidates(job: Job) -> int:
    """How many patches are optimised side by side now."""
    return len(job.patch.free) if job.patch.free.ndim == 4 else 1


def _start_scenes(job: Job, count: int) -> list[int]:
    """Places, among ``count`` training scenes, of those on which starts are compared: evenly spread."""
    views = min(count, _START_VIEWS if job.plan.starts or job.plan.candidates > 1 else 0)
    return [place * count // views for place in range(views)]


@torch.no_grad()
def _start(job: Job, training: list[int], progress: Progress) -> None:
    """Begin with the best of several textures."""
    rows = [training[place] for place in _start_scenes(job, len(training))]
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
    job.patch.begin_with(starts.textures if len(starts.textures) > 1 else starts.textures[0])


def _refine(job: Job, step: int) -> None:
    """Where a stage begins with this step, make the patch as fine as the stage is."""
    scale = job.plan.scale(step, job.settings.steps)
    if scale != (job.plan.scale(step - 1, job.settings.steps) if step else 1):
        job.patch.begin_with(job.patch().detach(), scale)
        job.optimizer.state.clear()  # of other texels


def _halve(job: Job, ranks: list[tuple[float, float]]) -> None:
    """Go on with the better half of the candidates."""
    kept = sorted(range(len(ranks)), key=lambda number: ranks[number])[: len(ranks) // 2]
    rows = torch.tensor(kept) if len(kept) > 1 else kept[0]
    shape = job.patch.free.shape
    job.patch.hold(job.patch.free.detach()[rows])
    for memory in job.optimizer.state.values():
        memory |= {
            name: value[rows].clone()
            for name, value in memory.items()
            if isinstance(value, Tensor) and value.shape == shape
        }


class _Log:
    """Numbers and pictures for the tracker, and the progress bar; silent in every process but the first."""

    def __init__(self, job: Job, tracker: Tracker, step: int) -> None:
        self.job, self.tracker, self.headline = job, tracker, job.attack.headline[0]
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
        values = values | {"queries": queries(self.job, step)}
        self.tracker.log(step, values, images)
        names = {
            "loss": "loss",
            "validation/patch": self.headline,
            "validation/random": f"{self.headline} of a random patch",
        }
        self.shown |= {shown: values[name] for name, shown in names.items() if name in values}
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in self.shown.items()})


@dataclass(frozen=True)
class _Batch:
    """Scenes, once for each of their draws, with what stays the same whatever the patch is.

    ``shown [B, 1, h, w]`` is 0 where a rectangle hides the patch, 1 elsewhere; None hides nothing.
    """

    scene: Scene
    clean: Any
    draw: Draw
    shown: Tensor | None

    def repeat(self, times: int) -> _Batch:
        """All of it, ``times`` times one after another."""
        if times == 1:
            return self
        rows = torch.arange(len(self.scene)).repeat(times)
        shown = None if self.shown is None else self.shown.repeat(times, 1, 1, 1)
        return _Batch(self.scene.select(rows), _selected(self.clean, rows), self.draw.repeat(times), shown)


def _selected(output: Any, rows: Tensor) -> Any:
    """Rows of an output: a tensor, or an ensemble's tuple."""
    if isinstance(output, tuple):
        return tuple(_selected(one, rows) for one in output)
    return output[transfer(rows, output.device)]


@torch.no_grad()
def _batch(job: Job, scene: Scene, numbers: Numbers) -> _Batch:
    """A batch as its source gave it, drawn; ``numbers`` has a row for each draw of each scene."""
    settings, device = job.settings, job.fabric.device
    rows = torch.arange(len(scene)).repeat_interleave(settings.draws)
    if settings.zoom > 1:
        scene = zoomed(scene.select(rows), settings.zoom, numbers, device)
        clean = job.clean(scene.frames)
    else:
        scene = scene.to(device).select(rows)
        clean = job.references(scene)
    draw = job.renderer.draw(scene, job.patch, numbers)
    return _Batch(scene, clean, draw, _shown(job, numbers)).repeat(_candidates(job))


def _shown(job: Job, numbers: Numbers) -> Tensor | None:
    """The texels that each view shows, ``[n, 1, h, w]``: all but a rectangle of its own; None where all show all."""
    if not job.settings.cutout:
        return None
    device, (height, width) = job.fabric.device, job.patch.mask.shape[1:]
    y, x, high, wide = numbers.streams({"cutout": 1}, device)[0].unit(4).T[..., None]  # [n, 1] each

    def hidden(texels: int, centre: Tensor, side: Tensor) -> Tensor:
        places = (torch.arange(texels, device=device) + 0.5) / texels
        return (places - centre).abs() < side * job.settings.cutout / 2

    return (~(hidden(height, y, high)[:, :, None] & hidden(width, x, wide)[:, None])).unsqueeze(1).float()


class _Update:
    """The closure that a step hands its optimiser: the loss of what the patch is now, on the step's own batches.

    It may be called several times; batches and draws are the same each time, so that the losses can be compared.

    Args:
        job: what trains.
        step: number of the step.
        batches: of this process, all that make the update.
    """

    def __init__(self, job: Job, step: int, batches: list[_Batch]) -> None:
        self.job, self.step, self.batches = job, step, batches
        self.failed = torch.zeros((), dtype=torch.bool, device=job.fabric.device)
        self._sums: dict[str, Tensor] = {}
        self._calls = 0

    def losses(self) -> dict[str, Tensor]:
        """Each loss with its weight, the mean over all calls."""
        return {name: value / self._calls for name, value in self._sums.items()}

    def __call__(self) -> Tensor:
        """The loss over all processes; and, for an optimiser that needs it, its gradient in the patch.

        Raises:
            DivergedError: it is not finite, and the optimiser has nothing else to go by.
        """
        job, fabric = self.job, self.job.fabric
        needs_gradient = not isinstance(job.optimizer, GradientFree)
        job.patch.project_()  # what the optimiser tries may lie outside of what can be printed
        job.optimizer.zero_grad()
        found: dict[str, Tensor] = {}
        with torch.set_grad_enabled(needs_gradient):
            for batch in self.batches:
                losses = _losses(job, batch, seeding.generator(job.seed, VICTIM, self.step))
                # The sum over the candidates: each has the gradient that it would have alone.
                total = torch.stack(list(losses.values())).sum() * _candidates(job) / len(self.batches)
                if needs_gradient:
                    total.backward()
                for name, value in losses.items():
                    found[name] = found.get(name, 0) + value.detach() / len(self.batches)
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._calls += 1
        loss = torch.stack(list(found.values())).sum()
        if fabric.world_size > 1:
            loss = fabric.all_reduce(loss, reduce_op="mean")
        if not needs_gradient:
            if not loss.isfinite():
                raise DivergedError(f"in step {self.step + 1}")
            return loss
        gradient = job.patch.free.grad
        assert gradient is not None
        if fabric.world_size > 1:
            gradient.copy_(fabric.all_reduce(gradient, reduce_op="mean"))
        self.failed |= ~(gradient.isfinite().all() & loss.isfinite())
        return loss


def _losses(job: Job, batch: _Batch, of_victim: torch.Generator) -> dict[str, Tensor]:
    """One batch: the mean attack loss over all views, and every regulariser with its weight; means over candidates."""
    textures = job.patch().unflatten(-3, (1, 3)).flatten(0, -4)  # [P, 3, h, w]
    each = textures.repeat_interleave(len(batch.scene) // len(textures), dim=0) if len(textures) > 1 else textures[0]
    if batch.shown is not None:
        each = torch.lerp(torch.full_like(batch.shown, 0.5), each, batch.shown)
    view = job.renderer(each, job.patch.mask, batch.scene, batch.draw)
    with job.victim.randomised(of_victim):  # the references and the validation are of all that it can do
        hit = job.predict(view.frames)
    job.queries += (job.fabric.world_size - 1) * len(batch.scene)  # of the other processes
    losses = {"attack": job.attack.loss(hit, batch.clean, batch.scene, view).mean()}
    for name, regularizer in job.regularizers.items():
        values: Any = torch.stack([regularizer(texture, job.patch.mask) for texture in textures])
        losses[name] = regularizer.weight * values.mean()
    return losses


def _loader(job: Job, numbers: list[int], done: int) -> Any:
    """Batches from step ``done`` on: an epoch is a permutation that seed and epoch fix."""
    settings, rank, processes = job.settings, job.fabric.global_rank, job.fabric.world_size
    batches = []
    epochs: dict[int, Tensor] = {}
    sizes = [settings.scenes_at(step) for step in range(settings.steps) for _ in range(settings.accumulate)]
    starts = [0, *itertools.accumulate(sizes)]
    for start, size in list(zip(starts, sizes, strict=False))[done * settings.accumulate :]:
        batch = []
        share = size // processes
        for slot in range(rank * share, (rank + 1) * share):
            epoch, place = divmod(start + slot, len(numbers))
            if epoch not in epochs:
                epochs = {epoch - 1: epochs[epoch - 1]} if epoch - 1 in epochs else {}
                epochs[epoch] = _order(job, epoch, len(numbers))
            batch.append(numbers[epochs[epoch][place]])
        batches.append(batch)
    loader: Any = DataLoader(
        job.source,
        batch_sampler=batches,
        collate_fn=_whole,  # type: ignore[arg-type]
        num_workers=settings.workers,
    )
    return iter(loader)


def _order(job: Job, epoch: int, count: int) -> Tensor:
    """``[count]`` places of the training scenes, in the order in which an epoch shows them."""
    return torch.randperm(count, generator=seeding.generator(job.seed, ORDER, epoch))


def _whole(scene: Scene) -> Scene:
    """A source gives whole batches. By name, because worker processes that are not forked pickle it."""
    return scene


def _validate(job: Job, numbers: list[int], progress: Progress, log: _Log, values: dict[str, float]) -> None:
    """Compare patches and random patch on held-out scenes, keep the best of all so far, and drop the worse half."""
    patch, attack = job.patch, job.attack
    evaluator = job.evaluator(VALIDATION)
    candidates = list(patch().detach().clone().unflatten(-3, (1, 3)).flatten(0, -4))
    textures: dict[str, evaluation.Textures] = {f"patch {n}": always(one) for n, one in enumerate(candidates)}
    if progress.best_loss == math.inf:
        textures["random"] = random_patches(patch)
    measured = evaluator.measure(textures, numbers, repetitions=_REPETITIONS)
    sign = 1.0 if attack.metrics_known[attack.headline[0]].stronger == "lower" else -1.0

    def mean(condition: str, metric: tuple[str, str]) -> float:
        return statistics.mean(evaluation.per_scene(measured, condition, metric))

    if "random" in textures:
        progress.random_score = sign * mean("random", attack.headline)
    scores = [sign * mean(f"patch {n}", attack.headline) for n in range(len(candidates))]
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
        view = next(unasked.views({"patch": always(texture)}, numbers[:1], 0))[4]
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
