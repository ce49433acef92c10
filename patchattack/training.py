"""The one loop: every task trains its patch here."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from patchattack import evaluation, files, seeding
from patchattack.attacks.attack import Attack
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError
from patchattack.evaluation import Evaluator, References
from patchattack.patch import Patch
from patchattack.scene import Scene
from patchattack.tracking import Tracker

ORDER, TRAINING, VALIDATION, TEST = range(4)  # what a generator is for, beside the seed


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: updates of the patch.
        batch: scenes per update, over all processes.
        draws: EoT draws of each scene in a batch.
        accumulate: batches whose gradients make one update.
        log_every: steps between two rows of the metrics.
        validate_every: steps between two comparisons with the random patch on held-out scenes.
        checkpoint_every: steps between two checkpoints.
        split: shares of the scenes for training, validation and test, in the source's order, so that neighbouring
            frames of a video do not fall on both sides.
        validation_scenes: at most this many of the validation scenes are used.
        test_scenes: at most this many of the test scenes are used.
        test_draws: EoT draws of each test scene.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: how many processes.
        precision: ``auto``, or one that Lightning Fabric knows, such as ``32-true`` and ``bf16-mixed``.
        workers: processes that load scenes.
        memory_gb: of scenes and clean references to remember.

    Raises:
        InputError: a number that cannot be.
    """

    steps: int
    batch: int
    draws: int = 1
    accumulate: int = 1
    log_every: int = 10
    validate_every: int = 50
    checkpoint_every: int = 50
    split: Sequence[float] = (0.6, 0.1, 0.3)
    validation_scenes: int = 16
    test_scenes: int = 64
    test_draws: int = 4
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "auto"
    workers: int = 0
    memory_gb: float = 2.0

    def __post_init__(self) -> None:
        for name in (
            *("steps", "batch", "draws", "accumulate", "log_every", "validate_every", "checkpoint_every"),
            *("validation_scenes", "test_scenes", "test_draws", "devices"),
        ):
            if getattr(self, name) < 1:
                raise InputError(f"trainer.{name}: expected at least 1, got {getattr(self, name)}")
        if self.batch % self.devices:
            raise InputError(
                f"trainer.batch: expected a multiple of trainer.devices={self.devices}, got {self.batch}; "
                "every process takes the same share"
            )
        if len(self.split) != 3 or min(self.split) <= 0 or sum(self.split) > 1 + 1e-6:
            raise InputError(
                "trainer.split: expected three positive shares [training, validation, test] of at most 1 in all, "
                f"got {list(self.split)}"
            )
        if self.workers < 0 or self.memory_gb < 0:
            raise InputError(
                f"trainer: expected workers and memory_gb of 0 or more, got {self.workers} and {self.memory_gb}"
            )

    def parts(self, scenes: int) -> tuple[list[int], list[int], list[int]]:
        """Numbers of the scenes for training, validation and test.

        Raises:
            InputError: too few scenes for all three.
        """
        ends = [round(scenes * sum(self.split[: n + 1])) for n in range(3)]
        numbers = list(range(scenes))
        parts = numbers[: ends[0]], numbers[ends[0] : ends[1]], numbers[ends[1] : ends[2]]
        if not all(parts):
            raise InputError(
                f"data: expected at least one scene each for training, validation and test, got {scenes} scenes split "
                f"into {', '.join(str(len(part)) for part in parts)}; give more scenes or another trainer.split"
            )
        return parts[0], _spread(parts[1], self.validation_scenes), _spread(parts[2], self.test_scenes)


class Fabric(Protocol):
    """What the loop asks of Lightning Fabric."""

    device: torch.device
    global_rank: int
    world_size: int

    def all_reduce(self, data: Any, *, reduce_op: str) -> Any:
        """Combine a tensor over all processes."""


@dataclass
class Job:
    """Everything that one run trains with.

    Attributes:
        patch: to be optimised, on the victim's device.
        predict: the victim, with the precision that it runs in.
        attack: loss and metrics.
        renderer: EoT.
        regularizers: name to a module ``(texture, mask) -> scalar`` with a ``weight``.
        optimizer: of the patch's parameters.
        schedule: of the optimizer's learning rate, one step per update.
        source: of scenes.
        settings: how to train.
        seed: of every draw.
        fabric: device and processes.
    """

    patch: Patch
    predict: Callable[[Tensor], Any]
    attack: Attack
    renderer: Renderer
    regularizers: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    source: Dataset[Scene]
    settings: Settings
    seed: int
    fabric: Fabric
    references: References = field(init=False)

    def __post_init__(self) -> None:
        self.references = References(self.predict, self.settings.memory_gb * 1e9)

    @property
    def columns(self) -> list[str]:
        """Names of the scalars that the loop logs."""
        losses = ["loss", "attack", *self.regularizers]
        return [*losses, "learning_rate", "validation/loss", "validation/patch", "validation/random"]

    def evaluator(self, purpose: int) -> Evaluator:
        """Measures on fixed draws of their own for each purpose."""
        return Evaluator(
            self.predict,
            self.attack,
            self.renderer,
            self.references,
            self.patch,
            self.source,
            self.fabric.device,
            (self.seed, purpose),
        )


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: updates done.
        best: ``[3, h, w]`` the texture that validation chose.
        best_step: when it was found.
        best_score: its headline metric on the validation scenes, signed so that lower is stronger.
        random_score: the random patch's.
    """

    step: int
    best: Tensor
    best_step: int = 0
    best_score: float = math.inf
    random_score: float = math.nan


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
        progress: from :func:`begin` or :func:`resume`.

    Raises:
        DivergedError: the loss became NaN or infinite; ``progress.best`` is the last good patch.
        InterruptedRunError: Ctrl-C, after a checkpoint.
    """
    settings, patch, fabric = job.settings, job.patch, job.fabric
    training, validation, _ = settings.parts(len(job.source))  # type: ignore[arg-type]
    is_first = fabric.global_rank == 0
    share = settings.batch // fabric.world_size
    loader = _loader(job, training, progress.step, share)
    failed = torch.zeros((), dtype=torch.bool, device=fabric.device)
    bar = tqdm(
        total=settings.steps,
        initial=progress.step,
        desc="optimising the patch",
        unit="step",
        disable=not is_first,
        dynamic_ncols=True,
    )
    with bar, _Interrupt() as interrupt:
        if progress.step == 0 and math.isnan(progress.random_score):  # else resumed from the checkpoint of step 0
            _validate(job, validation, progress, tracker, {}, bar)
            save(job, folder, progress)
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
                losses = _losses(job, scene, generators)
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
            bar.update()

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
                    _validate(job, validation, progress, tracker, values, bar)
                elif reports:
                    _report(job, progress, tracker, values, bar)
                stops = _reduced(fabric, {"asked": torch.tensor(interrupt.asked, device=fabric.device)})["asked"]
                if saves or stops:
                    save(job, folder, progress)
                if stops:
                    raise InterruptedRunError(f"interrupted after step {progress.step} of {settings.steps}")
    return progress


def _losses(job: Job, scene: Scene, generators: list[torch.Generator]) -> dict[str, Tensor]:
    """One batch: the mean attack loss over all views, and every regulariser with its weight."""
    scene = scene.to(job.fabric.device)
    clean = job.references(scene)
    if job.settings.draws > 1:
        rows = torch.arange(len(scene)).repeat_interleave(job.settings.draws)
        scene, clean = scene.select(rows), clean[rows.to(clean.device)]
    draw = job.renderer.draw(scene, job.patch, generators)
    texture = job.patch()
    view = job.renderer(texture, job.patch.mask, scene, draw)
    hit = job.predict(view.frames)
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


def _validate(
    job: Job, numbers: list[int], progress: Progress, tracker: Tracker, values: dict[str, float], bar: tqdm
) -> None:
    """Compare patch and random patch on held-out scenes and keep the patch if it is the best so far."""
    patch, attack = job.patch, job.attack
    evaluator = job.evaluator(VALIDATION)
    texture = patch().detach().clone()
    textures: dict[str, evaluation.Textures] = {"patch": lambda _: texture}
    if math.isnan(progress.random_score):
        textures["random"] = evaluation.controls(patch)["random"]
    measured = evaluator.measure(textures, numbers, repetitions=2)
    sign = 1.0 if attack.metrics_known[attack.headline[0]].stronger == "lower" else -1.0

    def mean(condition: str, metric: tuple[str, str]) -> float:
        return evaluation.mean(evaluation.per_scene(measured, condition, metric))

    score = sign * mean("patch", attack.headline)
    if "random" in textures:
        progress.random_score = sign * mean("random", attack.headline)
    if score < progress.best_score:
        progress.best, progress.best_step, progress.best_score = texture, progress.step, score
    values = values | {
        "validation/loss": mean("patch", ("loss", "all")),
        "validation/patch": sign * score,
        "validation/random": sign * progress.random_score,
    }
    images = {"patch": texture}
    if job.fabric.global_rank == 0:
        view = next(evaluator.views({"patch": textures["patch"]}, numbers[:1], 0))[4]
        images |= {f"view/{t}": frame for t, frame in enumerate(view.frames[0])}
    _report(job, progress, tracker, values, bar, images)


def _report(
    job: Job,
    progress: Progress,
    tracker: Tracker,
    values: dict[str, float],
    bar: tqdm,
    images: dict[str, Tensor] | None = None,
) -> None:
    if job.fabric.global_rank > 0:
        return
    tracker.log(progress.step, values, images)
    shown = {"loss": values["loss"]} if "loss" in values else {}
    if "validation/patch" in values:
        name = job.attack.headline[0]
        shown |= {name: values["validation/patch"], f"{name} of random": values["validation/random"]}
        bar.postfix_kept = shown
    bar.set_postfix({name: f"{value:.3f}" for name, value in (getattr(bar, "postfix_kept", {}) | shown).items()})


def _reduced(fabric: Fabric, values: dict[str, Tensor]) -> dict[str, float]:
    """Means over all processes, on the host."""
    stacked = torch.stack([value.float() for value in values.values()])
    if fabric.world_size > 1:
        stacked = fabric.all_reduce(stacked, reduce_op="mean")
    return dict(zip(values, stacked.tolist(), strict=True))


def _spread(numbers: list[int], most: int) -> list[int]:
    """At most ``most`` of ``numbers``, evenly spread."""
    if len(numbers) <= most:
        return numbers
    return [numbers[i * len(numbers) // most] for i in range(most)]


def begin(job: Job) -> Progress:
    """The state of a run that has not begun."""
    return Progress(0, job.patch().detach().clone())


def save(job: Job, folder: Path, progress: Progress) -> None:
    """Write ``checkpoint.safetensors``, all that a resumed run needs, and ``state.json``, the same numbers to read.

    The checkpoint is one file, so that it is whole at any moment: numbers travel in its header as JSON.
    """
    if job.fabric.global_rank > 0:
        return
    optimizer = job.optimizer.state_dict()
    tensors = {"free": job.patch.free.detach(), "best": progress.best}
    for row, values in optimizer["state"].items():
        tensors |= {f"optimizer.{row}.{name}": value for name, value in values.items() if isinstance(value, Tensor)}
    state = {
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "random_score": progress.random_score,
        "optimizer": optimizer["param_groups"],
        "schedule": job.schedule.state_dict(),
    }
    text = json.dumps(state, indent=2)
    whole = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()}, {"state": text})
    files.write(folder / "checkpoint.safetensors", whole)
    files.write(folder / "state.json", text + "\n")


def resume(job: Job, folder: Path) -> Progress:
    """Restore the job from ``checkpoint.safetensors`` and return where the run stood.

    Raises:
        InputError: there is no checkpoint, or it is another patch's.
    """
    path = folder / "checkpoint.safetensors"
    try:
        with safetensors.safe_open(path, "pt", device=str(job.fabric.device)) as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.no_grad():
            job.patch.free.copy_(tensors["free"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: expected the checkpoint of a run, got {error!r}; start anew without resume"
        ) from error
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, row, key = name.split(".", 2)
            values.setdefault(int(row), {})[key] = tensor
    job.optimizer.load_state_dict({"state": values, "param_groups": state["optimizer"]})
    job.schedule.load_state_dict(state["schedule"])
    return Progress(state["step"], tensors["best"], state["best_step"], state["best_score"], state["random_score"])


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
