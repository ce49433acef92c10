"""The loop: what one update is, what it leaves alone, and where it goes on."""

from __future__ import annotations

import functools
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchattack import assembly, batches, budget, checkpoint, processes, seeding, training, update
from patchattack.attacks.flow import FlowAttack
from patchattack.checkpoint import Progress
from patchattack.data.world import World
from patchattack.eot.appearance import Brightness, Contrast
from patchattack.eot.camera import Defocus, SensorNoise
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError
from patchattack.job import TEST, TRAINING, Job, Settings
from patchattack.optimizers.sign import SignMomentum
from patchattack.patch import Patch
from patchattack.printing.sheet import Sheet
from patchattack.regularizers.tv import TotalVariation
from patchattack.tracking import NullTracker
from patchattack.training import DivergedError, InterruptedRunError
from patchattack.victims.victim import FlowVictim

SETTINGS = Settings(
    steps=6,
    batch=2,
    log_every=2,
    starts=0,
    candidates=1,
    stages=1,
    validate_every=3,
    checkpoint_every=3,
    split=(0.5, 0.25, 0.25),
    accelerator="cpu",
)


class SmoothFlow(FlowVictim):
    """A network without kinks, so that gradients can be compared to the last digits; it remembers its inputs."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(6, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 2, 3, padding=1))
        super().__init__(network, "smooth")
        self.seen: list[Tensor] = []

    def flow(self, frames: Tensor) -> Tensor:
        self.seen.append(frames.detach().clone())
        flow: Tensor = 10 * self.network(frames.flatten(1, 2))
        return flow


class Recorded(NullTracker):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(Path(), {})
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, scalars: dict[str, float], images: dict[str, Tensor] | None = None) -> None:
        self.lines.append((step, scalars))


@pytest.fixture(scope="module")
def world() -> World:
    return World(scenes=8, size=(32, 64), supersampling=1)


@pytest.fixture
def make(world: World) -> Callable[..., Job]:
    def make(settings: Settings = SETTINGS, optimizer: Any = None, schedule: Any = None, **changes: Any) -> Job:
        parts = assembly.Parts(
            attack=FlowAttack(region="all"),
            victim=SmoothFlow(),
            source=world,
            renderer=Renderer(
                Uniform(area=0.1),
                {"contrast": Contrast(), "brightness": Brightness()},
                {"defocus": Defocus(), "noise": SensorNoise()},
            ),
            patch=Patch.create(resolution=16, size_mm=60),
            regularizers={"tv": TotalVariation(0.01)},
            optimizer=optimizer or functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9),
            schedule=schedule or functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=settings.steps),
            tracker=lambda folder, config, run_id: NullTracker(folder, config, run_id),
            settings=settings,
            sheet=Sheet(),
            seed=5,
        )
        return assembly.assemble(replace(parts, **changes), processes.start(settings))

    return make


def finish(job: Job, folder: Path) -> tuple[Recorded, Progress]:
    tracker = Recorded()
    return tracker, training.train(job, folder, tracker, checkpoint.begin(job))


def updates(job: Job) -> list[tuple[Tensor, Tensor]]:
    """Filled while the job trains: the free pixels before every update, and the gradient that it went by."""
    before: list[Tensor] = []
    found: list[tuple[Tensor, Tensor]] = []

    def note_pixels(*_: object) -> None:
        before.append(job.patch.parameter.detach().clone())

    def note_gradient(*_: object) -> None:
        assert job.patch.parameter.grad is not None
        found.append((before[-1], job.patch.parameter.grad.clone()))

    job.optimizer.register_step_pre_hook(note_pixels)
    job.optimizer.register_step_post_hook(note_gradient)
    return found


def test_every_update_has_the_gradient_of_its_own_batch(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make(replace(SETTINGS, draws=3))
    found = updates(job)
    finish(job, tmp_path)
    assert len(found) == 6
    numbers = job.settings.split_indices(8)[0]
    shown = list(batches._loader(job, numbers, 0))
    for step in (0, 4):
        fresh = make(replace(SETTINGS, draws=3))
        with torch.no_grad():
            fresh.patch.parameter.copy_(found[step][0])
        keys = [(job.seed, TRAINING, step, place, draw) for place in (0, 1) for draw in range(3)]
        batch = batches._batch(fresh, shown[step], seeding.numbers(keys))
        losses = update.losses_of(fresh, batch, seeding.generator(0))
        assert losses.keys() == {"attack", "tv"}
        sum(losses.values()).backward()  # type: ignore[union-attr]
        assert fresh.patch.parameter.grad is not None
        assert fresh.patch.parameter.grad.abs().max() > 0
        torch.testing.assert_close(found[step][1], fresh.patch.parameter.grad, rtol=1e-4, atol=1e-7)


def test_accumulated_batches_are_one_batch(make: Callable[..., Job], tmp_path: Path) -> None:
    results = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        job = make(replace(SETTINGS, batch=batch, accumulate=accumulate, draws=2, log_every=1))
        found = updates(job)
        tracker, _ = finish(job, tmp_path)
        results.append((torch.stack([gradient for _, gradient in found]), job.patch().detach(), tracker.lines))
    for gradients, texture, lines in results[1:]:
        torch.testing.assert_close(gradients, results[0][0], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(texture, results[0][1], rtol=0, atol=1e-5)
        for (step, scalars), (expected_step, expected) in zip(lines, results[0][2], strict=True):
            assert step == expected_step
            assert scalars == pytest.approx(expected, abs=1e-5)


def test_channels_may_come_last_in_memory(make: Callable[..., Job], tmp_path: Path) -> None:
    textures = []
    for last in (False, True):
        job = make(replace(SETTINGS, channels_last=last))
        layouts = {value.is_contiguous() for value in job.victim.parameters() if value.ndim == 4}
        assert layouts == {not last}
        finish(job, tmp_path)
        textures.append(job.patch().detach())
    torch.testing.assert_close(*textures, rtol=0, atol=1e-4)


@pytest.mark.parametrize("resolution", [16, 4])
def test_a_scene_is_rendered_alike_in_every_batch(make: Callable[..., Job], resolution: int) -> None:
    job = make(patch=Patch.create(resolution=resolution, size_mm=60))

    def render(numbers: list[int]) -> Tensor:
        scene = job.source.__getitems__(numbers)  # type: ignore[attr-defined]
        draw = job.renderer.draw(scene, job.patch, seeding.numbers([[number] for number in numbers]))
        return job.renderer(job.patch(), job.patch.mask, scene.to("cpu"), draw).frames.detach()

    together = render([0, 1, 2, 3])
    for number in range(4):
        torch.testing.assert_close(together[number], render([number])[0], rtol=0, atol=1e-5)


def test_training_makes_the_attack_stronger(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make(replace(SETTINGS, steps=40, validate_every=10), functools.partial(torch.optim.Adam, lr=0.3))
    tracker, progress = finish(job, tmp_path)
    scores = [scalars["validation/patch"] for _, scalars in tracker.lines if "validation/patch" in scalars]
    assert progress.best_score == min(scores) < scores[0] - 0.005
    assert progress.best_score < progress.random_score
    assert progress.best_step > 0
    assert 0 <= progress.best.min() <= progress.best.max() <= 1


def test_free_pixels_stay_in_range(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make(optimizer=functools.partial(torch.optim.SGD, lr=1e9))
    finish(job, tmp_path)
    assert set(job.patch().unique().tolist()) <= {0.0, 1.0} | set(make().patch().unique().tolist())
    assert job.patch().min() == 0
    assert job.patch().max() == 1


def test_clean_references_are_computed_once_per_scene(make: Callable[..., Job], tmp_path: Path) -> None:
    def clean_passes(job: Job) -> dict[int, int]:
        scenes = [job.source[number].to("cpu").frames for number in range(8)]
        seen: list[Tensor] = []

        def counted(frames: Tensor) -> Any:
            seen.append(frames)
            return job.predict(frames)

        job.references.victim = counted
        finish(job, tmp_path)
        return {
            number: sum(torch.equal(frames, scene) for frames in seen)
            for number, scene in enumerate(scenes)
            if any(torch.equal(frames, scene) for frames in seen)
        }

    settings = replace(SETTINGS, steps=12, draws=2)
    # Scene 0 is known from the trial before the work, and scene 4 from what there is to win; 6 and 7 are the test's.
    assert clean_passes(make(settings)) == dict.fromkeys((1, 2, 3, 5), 1)
    # Without room to remember, a step still asks once for all draws of a scene.
    forgetful = clean_passes(make(replace(settings, memory_gb=0)))
    assert sum(forgetful[number] for number in range(4)) == 12 * 2


def test_a_step_is_one_forward_pass_of_the_victim(make: Callable[..., Job], tmp_path: Path) -> None:
    victim = SmoothFlow()
    job = make(replace(SETTINGS, steps=5, draws=3, validate_every=100), victim=victim)
    finish(job, tmp_path)
    assert [len(frames) for frames in victim.seen].count(2 * 3) == 5
    assert not any(parameter.grad is not None for parameter in victim.parameters())


def test_evaluation_does_not_disturb_training(make: Callable[..., Job], tmp_path: Path) -> None:
    textures = []
    for every in (1, 100):
        job = make(replace(SETTINGS, validate_every=every))
        finish(job, tmp_path)
        job.evaluator(TEST).measure({"patch": lambda _, job=job: job.patch().detach()}, [6, 7], 2)
        textures.append(job.patch().detach())
    assert torch.equal(*textures)


def test_every_call_of_a_closure_sees_the_same_views(make: Callable[..., Job], tmp_path: Path) -> None:
    losses: list[Tensor] = []

    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            losses.extend(closure() for _ in range(2))

    victim = SmoothFlow()
    settings = replace(SETTINGS, steps=1, draws=2, accumulate=2)
    job = make(settings, functools.partial(Twice, lr=1.0), victim=victim)
    untouched = job.patch().detach().clone()
    tracker, _ = finish(job, tmp_path)
    views = [frames for frames in victim.seen if len(frames) == 4]
    assert len(views) == 4  # two calls of two batches
    assert torch.equal(torch.stack(views[:2]), torch.stack(views[2:]))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(job.patch().detach(), untouched)
    assert tracker.lines[-1][1]["loss"] == pytest.approx(losses[0].item(), rel=1e-6)


def test_lbfgs_asks_several_times_a_step_and_every_query_counts(make: Callable[..., Job], tmp_path: Path) -> None:
    victim = SmoothFlow()
    job = make(replace(SETTINGS, steps=2, validate_every=100), OPTIMIZERS["lbfgs"], victim=victim)
    before = job.patch().detach().clone()
    tracker, _ = finish(job, tmp_path)
    seen = sum(map(len, victim.seen))
    assert tracker.lines[-1][1]["queries"] == seen == budget.queries(job, 2)
    assert tracker.lines[-1][1]["queries"] - tracker.lines[0][1]["queries"] > 2 * 2 * 2 + 3
    assert not torch.equal(job.patch().detach(), before)


def test_queries_are_counted_and_a_resumed_run_counts_no_clean_frame_again(
    make: Callable[..., Job], tmp_path: Path
) -> None:
    victim = SmoothFlow()
    job = make(replace(SETTINGS, draws=3), victim=victim)
    tracker, _ = finish(job, tmp_path)
    # 4 training and 2 validation scenes; a trial; 2 × 2 views of a random patch, and of the patch at 0, 3 and 6.
    assert tracker.lines[-1][1]["queries"] == sum(map(len, victim.seen)) == 6 + 1 + 4 + 3 * 4 + 6 * 2 * 3


def test_an_enlarged_scene_has_an_answer_of_its_own(make: Callable[..., Job], tmp_path: Path) -> None:
    victim = SmoothFlow()
    job = make(replace(SETTINGS, draws=3, zoom=2.0), victim=victim)
    tracker, _ = finish(job, tmp_path)
    # As above, but for the training scenes: each of 6 × 2 × 3 views has its clean frames, and no two are the same.
    assert tracker.lines[-1][1]["queries"] == sum(map(len, victim.seen)) == 1 + 2 + 1 + 4 + 3 * 4 + 2 * (6 * 2 * 3)
    seen = {frames[row].numpy().tobytes() for frames in victim.seen for row in range(len(frames))}
    assert len(seen) == 1 + 2 + 1 + 4 + 3 * 4 + 2 * (6 * 2 * 3)


def test_what_is_logged(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make(replace(SETTINGS, steps=7, validate_every=5, checkpoint_every=3))
    tracker, _ = finish(job, tmp_path)
    assert [step for step, _ in tracker.lines] == [0, 2, 3, 4, 5, 6, 7]
    by_step = dict(tracker.lines)
    validated = [step for step, scalars in tracker.lines if "validation/patch" in scalars]
    assert validated == [0, 5, 7]
    for step in (2, 3, 4, 6):
        assert by_step[step].keys() == {"loss", "attack", "tv", "learning_rate", "queries"}
        assert by_step[step]["loss"] == pytest.approx(by_step[step]["attack"] + by_step[step]["tv"], rel=1e-5)
        assert by_step[step]["learning_rate"] == pytest.approx((1 + math.cos(math.pi * (step - 1) / 7)) / 2)
    assert by_step[5].keys() | {"step"} == set(job.columns) | {"step"}
    assert len({scalars["validation/random"] for scalars in by_step.values() if "validation/random" in scalars}) == 1


OPTIMIZERS = {
    "adam": functools.partial(torch.optim.Adam, lr=0.02),
    "sgd": functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "sign": functools.partial(SignMomentum, lr=0.01),
    "lbfgs": functools.partial(torch.optim.LBFGS, lr=1.0, max_iter=3, line_search_fn="strong_wolfe"),
}
SCHEDULES = {
    "cosine": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
    "onecycle": functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=6, cycle_momentum=False),
    "step": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
}


SEARCH = {"starts": 6, "candidates": 4, "stages": 2, "validate_every": 2}


@pytest.mark.parametrize(
    ("optimizer", "schedule", "variable", "changes"),
    [
        ("adam", "cosine", "tanh", {}),
        ("sgd", "onecycle", "pixels", {}),
        ("sign", "step", "pixels", {"zoom": 2.0}),
        ("lbfgs", "cosine", "pixels", {}),
        ("lbfgs", "step", "tanh", {}),
        ("adam", "cosine", "pixels", SEARCH | {"validate_every": 5}),  # stopped with four candidates
        ("sgd", "step", "palette", SEARCH),  # and with one, as fine as the patch
        ("sign", "cosine", "tanh", SEARCH | {"zoom": 2.0, "stages": 1}),
        ("adam", "step", "pixels", SEARCH | {"grow": 4.0, "cutout": 0.5}),
    ],
)
def test_a_resumed_run_is_the_same_to_the_bit(
    make: Callable[..., Job], tmp_path: Path, optimizer: str, schedule: str, variable: str, changes: dict[str, Any]
) -> None:
    def fresh() -> Job:
        patch = Patch.create(resolution=16, size_mm=60, parameterisation=variable)
        settings = replace(SETTINGS, **changes)
        return make(settings, optimizer=OPTIMIZERS[optimizer], schedule=SCHEDULES[schedule], patch=patch)

    whole = fresh()
    expected, end = finish(whole, tmp_path)

    stopped = fresh()
    original = training._refine

    def interrupted(job: Job, step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        original(job, step)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(training, "_refine", interrupted)
        with pytest.raises(InterruptedRunError, match="after step 5 of 6"):
            finish(stopped, tmp_path / "stopped")

    again = fresh()
    progress = checkpoint.resume(again, tmp_path / "stopped")
    assert progress.step == 5  # where no line of metrics is due
    tracker = Recorded()
    training.train(again, tmp_path / "stopped", tracker, progress)
    assert torch.equal(again.patch.parameter, whole.patch.parameter)
    assert torch.equal(progress.best, end.best)
    assert (progress.best_step, progress.best_score) == (end.best_step, end.best_score)
    assert tracker.lines == [line for line in expected.lines if line[0] > 5]
    for file in ("checkpoint.safetensors", "state.json"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_candidates_are_optimised_as_each_would_be_alone(make: Callable[..., Job], tmp_path: Path) -> None:
    settings = replace(SETTINGS, draws=2, stages=2, validate_every=100)
    together = make(replace(settings, candidates=3), OPTIMIZERS["adam"])
    starts: list[Tensor] = []
    together.optimizer.register_step_pre_hook(lambda *_: starts.append(together.patch().detach().clone()))
    original, ranks = training._halve, []
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(training, "_halve", lambda job, found: ranks.extend(found) or original(job, found))
        tracker, _ = finish(together, tmp_path)
    alone = []
    for start in starts[0]:
        job = make(settings, OPTIMIZERS["adam"])
        job.patch.set_texture(start)
        alone.append((job, *finish(job, tmp_path)))
    best = min(range(3), key=lambda number: ranks[number])
    torch.testing.assert_close(together.patch().detach(), alone[best][0].patch().detach(), rtol=0, atol=1e-4)
    losses = [lines[-1][1]["attack"] for lines in (one.lines for _, one, _ in alone)]
    assert tracker.lines[-1][1]["attack"] == pytest.approx(sum(losses) / 3, abs=1e-5)
    assert tracker.lines[-1][1]["validation/patch"] == pytest.approx(
        min(one.lines[-1][1]["validation/patch"] for _, one, _ in alone), abs=1e-5
    )


def test_each_validation_drops_the_worse_half_and_each_stage_is_finer(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make(replace(SETTINGS, candidates=4, stages=2, validate_every=2), OPTIMIZERS["adam"])
    shapes: list[tuple[tuple[int, ...], ...]] = []

    def note(*_: object) -> None:
        memory = job.optimizer.state[job.patch.parameter]
        shapes.append((tuple(job.patch.parameter.shape), tuple(memory["exp_avg"].shape)))

    job.optimizer.register_step_post_hook(note)
    finish(job, tmp_path)
    sizes = [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8), (2, 3, 16, 16), (3, 16, 16), (3, 16, 16)]
    assert shapes == [(size, size) for size in sizes]


def test_the_best_start_is_kept_where_no_step_beats_it(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make(replace(SETTINGS, starts=9, candidates=2), functools.partial(torch.optim.SGD, lr=0.0))
    tracker, progress = finish(job, tmp_path)
    assert progress.best_step == 0
    assert progress.hand_drawn is not None
    assert progress.best_score <= min(
        line["validation/patch"] for _, line in tracker.lines if "validation/patch" in line
    )


def test_starts_and_candidates_are_queries_and_keep_within_the_budget(make: Callable[..., Job], tmp_path: Path) -> None:
    victim = SmoothFlow()
    settings = replace(SETTINGS, starts=6, candidates=2)
    tracker, _ = finish(make(settings, victim=victim), tmp_path)
    # 6 clean scenes and a trial; 7 starts on 4 scenes; 2 × 2 views of a random patch, of two patches at 0 and 3, and of
    # one at 6; three steps of two patches and three of one.
    queries = 6 + 1 + 7 * 4 + 4 + 4 * (2 + 2 + 1) + 2 * (3 * 2 + 3)
    assert tracker.lines[-1][1]["queries"] == sum(map(len, victim.seen)) == queries
    victim.seen.clear()
    tracker, _ = finish(make(replace(settings, max_queries=queries - 1), victim=victim), tmp_path)
    assert tracker.lines[-1][1]["queries"] == sum(map(len, victim.seen)) < queries
    with pytest.raises(InputError, match=r"trainer\.max_queries: expected at least \d+ "):
        make(replace(settings, max_queries=50), victim=victim)


def test_batches_that_grow_show_as_many_scenes_in_all(make: Callable[..., Job], tmp_path: Path) -> None:
    settings = Settings(steps=100, batch=4, grow=4.0)
    sizes = list(map(settings.scenes_at, range(100)))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1], sum(sizes)) == (2, 7, pytest.approx(400, rel=0.02))
    tracker, _ = finish(make(replace(SETTINGS, grow=4.0)), tmp_path)
    shown = sum(map(replace(SETTINGS, grow=4.0).scenes_at, range(6)))
    assert tracker.lines[-1][1]["queries"] == 6 + 1 + 4 + 3 * 4 + shown


def test_a_cutout_hides_another_rectangle_in_every_view_of_the_training(make: Callable[..., Job]) -> None:
    job = make(replace(SETTINGS, cutout=0.9, draws=3))
    keys = [(0, place, draw) for place in range(2) for draw in range(3)]
    shown = batches._visible_texels(job, seeding.numbers(keys))
    assert shown is not None
    assert shown.shape == (6, 1, 16, 16)
    assert len({tuple(one.flatten().tolist()) for one in shown}) == 6
    part = batches._visible_texels(job, seeding.numbers(keys[4:]))
    assert part is not None
    assert torch.equal(part, shown[4:])
    for hidden in 1 - shown[:, 0]:  # one rectangle
        assert torch.equal(hidden, hidden.amax(dim=1, keepdim=True) * hidden.amax(dim=0))
    batch = batches._batch(job, job.source.__getitems__([0, 1]), seeding.numbers(keys))
    assert batch.shown is not None
    assert torch.equal(batch.shown, shown)

    def gradient(shown: Tensor | None) -> Tensor:
        job.patch.zero_grad()
        update.losses_of(job, replace(batch, shown=shown), seeding.generator(0))["attack"].backward()
        assert job.patch.parameter.grad is not None
        return job.patch.parameter.grad.clone()

    half = torch.ones(6, 1, 16, 16)
    half[..., :8] = 0
    assert gradient(None)[..., :7].abs().min() > 0
    assert gradient(half)[..., :8].abs().max() == 0 < gradient(half)[..., 8:].abs().max()


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with training._Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_trains_without_touching_the_signals() -> None:
    failures = []

    def enter() -> None:
        try:
            with training._Interrupt() as interrupt:
                assert not interrupt.asked
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failures == []


class Breaks(FlowAttack):
    """Its loss is NaN from an update on, or infinite in its gradient alone."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.left, self.how = at, how

    def loss(self, output: Tensor, clean: Tensor, scene: Any, view: Any) -> Tensor:
        loss = super().loss(output, clean, scene, view)
        if loss.requires_grad:
            self.left -= 1
            if self.left < 0:
                return loss * math.nan if self.how == "loss" else loss + (loss.detach() - loss).abs().sqrt()
        return loss


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_loss_that_breaks_stops_the_run_and_keeps_the_last_good_patch(
    make: Callable[..., Job], tmp_path: Path, how: str
) -> None:
    job = make(replace(SETTINGS, steps=20, log_every=4), attack=Breaks(4, how))
    progress = checkpoint.begin(job)
    tracker = Recorded()
    # The fifth update breaks; it is noticed when the next line of metrics is due.
    with pytest.raises(DivergedError, match="by step 6"):
        training.train(job, tmp_path, tracker, progress)
    assert [step for step, _ in tracker.lines] == [0, 3, 4]
    assert progress.best.isfinite().all()
    assert progress.best_step in (0, 3)
    assert checkpoint.resume(make(replace(SETTINGS, steps=20)), tmp_path).step == 3


def test_a_victim_of_another_task_is_refused(make: Callable[..., Job]) -> None:
    victim = SmoothFlow()
    victim.task = "depth"
    with pytest.raises(InputError, match="attack: expected a victim for flow, got smooth for depth"):
        make(victim=victim)


def test_a_patch_that_no_page_takes_is_refused(make: Callable[..., Job]) -> None:
    with pytest.raises(InputError, match="print=a4: expected a patch that fits on 24 pages"):
        make(patch=Patch.create(resolution=16, size_mm=5000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"trainer\.steps: expected at least 1, got 0"),
        ({"accumulate": 0}, r"trainer\.accumulate: expected at least 1, got 0"),
        ({"batch": 3, "devices": 2}, r"trainer\.batch: expected a multiple of trainer\.devices=2, got 3"),
        ({"split": (0.5, 0.5)}, r"trainer\.split: expected three positive shares"),
        ({"split": (0.6, 0.0, 0.4)}, r"trainer\.split: expected three positive shares"),
        ({"split": (0.6, 0.3, 0.2)}, r"of at most 1 in all, got \[0\.6, 0\.3, 0\.2\]"),
        ({"starts": -1}, r"trainer\.starts: expected at least 0, or null, got -1"),
        ({"candidates": 0}, r"trainer\.candidates: expected at least 1, or null, got 0"),
        ({"stages": 0}, r"trainer\.stages: expected at least 1, or null, got 0"),
        ({"zoom": 0.5}, r"trainer\.zoom: expected a factor of 1 or more, got 0\.5"),
        ({"grow": 0.5}, r"trainer\.grow: expected a factor of 1 or more, got 0\.5"),
        ({"grow": 2.0, "devices": 2}, r"trainer\.grow: expected 1 for 2 processes"),
        ({"cutout": 1.0}, r"trainer\.cutout: expected a fraction of 0 or more and less than 1, got 1"),
        ({"workers": -1}, "expected workers and memory_gb of 0 or more, got -1"),
        ({"memory_gb": -0.5}, r"got 0 and -0\.5"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize("scenes", [3, 4, 10, 11, 97, 240])
@pytest.mark.parametrize("split", [(0.6, 0.1, 0.3), (0.34, 0.33, 0.33), (0.5, 0.2, 0.2)])
def test_parts_share_no_scene(scenes: int, split: tuple[float, float, float]) -> None:
    settings = replace(SETTINGS, split=split, validation_scenes=1000, test_scenes=1000)
    try:
        parts = settings.split_indices(scenes)
    except InputError:
        assert scenes < 10  # a tenth of fewer scenes may be none
        return
    numbers = [number for part in parts for number in part]
    assert all(parts)
    assert numbers == list(range(len(numbers)))  # in the source's order, none twice
    assert len(numbers) == round(scenes * sum(split))


def test_large_parts_are_thinned_evenly() -> None:
    settings = replace(SETTINGS, split=(0.2, 0.4, 0.4), validation_scenes=4, test_scenes=8)
    training_part, validation, test = settings.split_indices(100)
    assert training_part == list(range(20))
    assert validation == [20, 30, 40, 50]
    assert test == [60, 65, 70, 75, 80, 85, 90, 95]


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(InputError, match="got 5 scenes split into 5, 0, 0; give more scenes"):
        replace(SETTINGS, split=(0.96, 0.02, 0.02)).split_indices(5)


def test_an_epoch_takes_every_scene_once_wherever_it_is_entered(make: Callable[..., Job]) -> None:
    job = make(replace(SETTINGS, steps=8, batch=3))
    numbers = [0, 1, 2, 3, 4]

    def order(done: int) -> list[int]:
        return [number for scene in batches._loader(job, numbers, done) for number in scene.index.tolist()]

    whole = order(0)
    assert len(whole) == 24
    for first in range(0, 20, 5):
        assert sorted(whole[first : first + 5]) == numbers
    assert whole[:5] != whole[5:10] or whole[5:10] != whole[10:15]
    assert order(5) == whole[15:]


@pytest.mark.parametrize("score", [0.5, math.nan])
def test_the_loss_decides_where_the_primary_metric_does_not(
    make: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    def undecided(_: FlowAttack, output: Tensor, *__: Any) -> dict[tuple[str, str], Tensor]:
        return {FlowAttack().primary_metric: torch.full((len(output),), score)}

    monkeypatch.setattr(FlowAttack, "metrics", undecided)
    optimizer = functools.partial(torch.optim.Adam, lr=0.3)
    tracker, progress = finish(make(replace(SETTINGS, validate_every=1), optimizer), tmp_path)
    losses = {step: line["validation/loss"] for step, line in tracker.lines}
    assert progress.best_step == min(losses, key=losses.__getitem__) > 0
    assert progress.best_loss == losses[progress.best_step]
