"""What is kept of the ways in which a victim may compute. Its clock is the test's."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchattack import assembly, checkpoint, processes, training, tuning
from patchattack.attacks.flow import FlowAttack
from patchattack.data.world import World
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError
from patchattack.job import Job, Mode, Settings
from patchattack.optimizers.random_search import RandomSearch
from patchattack.patch import Patch
from patchattack.printing.sheet import Sheet
from patchattack.tracking import NullTracker
from patchattack.victims.victim import FlowVictim

SETTINGS = Settings(
    steps=4,
    batch=2,
    starts=0,
    candidates=1,
    stages=1,
    validate_every=2,
    checkpoint_every=2,
    split=(0.5, 0.25, 0.25),
    accelerator="cpu",
    tune="auto",
)
LAST, HALF = Mode(channels_last=True), Mode(half=True)


class Clocked(FlowVictim):
    """Takes as long as ``cost`` says of the mode that it computes in; it remembers the modes of its steps."""

    now = 0.0  # of all

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(6, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 2, 1))
        super().__init__(network, "clocked")
        self.cost: dict[Mode, float] = {}
        self.modes: list[Mode] = []
        self.execution = "eager"

    def flow(self, frames: Tensor) -> Tensor:
        last = self.network[0].weight.stride(1) == 1
        mode = Mode(last, torch.is_autocast_enabled("cpu"), self.execution)
        Clocked.now += self.cost.get(mode, 1.0)
        if torch.is_grad_enabled():
            self.modes.append(mode)
        return 10 * self.network(frames.flatten(1, 2))


@pytest.fixture
def victim(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    """Whose compiler makes it compute as it is, and tells it so."""
    made = Clocked()

    class Compiled:
        """Like torch's, which is asked for its length where its truth is."""

        def __init__(self, given: Clocked, **_: Any) -> None:
            self.given = given

        def __len__(self) -> int:
            raise TypeError

        def __call__(self, frames: Tensor) -> Tensor:
            self.given.execution = "compiled"
            try:
                return self.given(frames)
            finally:
                self.given.execution = "eager"

    monkeypatch.setattr(torch, "compile", Compiled)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: Clocked.now))
    return made


@functools.cache
def world() -> World:
    return World(scenes=8, size=(32, 64), supersampling=1)


def make(victim: Clocked, optimizer: Any = torch.optim.SGD, **changes: Any) -> Job:
    """A job whose victim has asked nothing that counts."""
    settings = replace(SETTINGS, **changes)
    parts = assembly.Parts(
        attack=FlowAttack(region="all"),
        victim=victim,
        source=world(),
        renderer=Renderer(Uniform(area=0.1)),
        patch=Patch.create(resolution=16, size_mm=60),
        regularizers={},
        optimizer=functools.partial(optimizer, lr=1.0),
        schedule=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1),
        tracker=lambda folder, config, run_id: NullTracker(folder, config, run_id),
        settings=settings,
        sheet=Sheet(),
        seed=5,
    )
    job = assembly.assemble(parts, processes.start(settings))
    victim.modes.clear()
    return job


def finish(job: Job, folder: Path, resumes: bool = False) -> Tensor:
    """The last texture of a run."""
    progress = checkpoint.resume(job, folder) if resumes else checkpoint.begin(job)
    tuning.settle(job)
    job.victim.modes.clear()  # type: ignore[operator]
    training.train(job, folder, NullTracker(folder, {}), progress)
    return job.patch().detach()


def test_nothing_is_measured_unless_asked_for(victim: Clocked) -> None:
    for changes in ({"tune": "off"}, {"tune": "off", "execution": "eager"}):
        job = make(victim, **changes)
        tuning.settle(job)
        assert victim.modes == []
        assert job.mode is job.fast is None
    assert Settings(1, 1).tune == "off"


@pytest.mark.parametrize(
    ("cost", "expected", "line"),
    [
        ({}, Mode(), "victim: plain, the fastest\n"),
        ({LAST: 0.5}, LAST, "victim: channels last, 2 times as fast\n"),
        ({LAST: 0.97}, Mode(), "victim: plain, the fastest\n"),
        (
            {LAST: 0.5, Mode(True, True): 20.0, Mode(True, execution="compiled"): 0.25},
            Mode(True, execution="compiled"),
            "victim: channels last, compiled, 4 times as fast; bfloat16 is 20 times as slow\n",
        ),
        ({HALF: 0.8, Mode(False, True, "compiled"): 2.0}, HALF, "victim: bfloat16, 1.2 times as fast\n"),
    ],
)
def test_the_fastest_mode_is_kept(
    victim: Clocked, capsys: pytest.CaptureFixture[str], cost: dict[Mode, float], expected: Mode, line: str
) -> None:
    victim.cost = cost
    job = make(victim)
    texture, queries = job.patch().detach().clone(), job.queries
    tuning.settle(job)
    assert job.mode == expected
    assert capsys.readouterr().out == line
    assert job.queries == queries
    assert torch.equal(job.patch(), texture)
    assert job.patch.parameter.grad is None
    # Abandoned after the first call.
    assert all(victim.modes.count(mode) == 1 for mode in cost if cost[mode] > tuning.SLOW)


def test_what_is_chosen_holds_for_the_run_and_for_the_resumed_one(victim: Clocked, tmp_path: Path) -> None:
    mode = Mode(True, execution="compiled")
    victim.cost = {LAST: 0.5, mode: 0.1}
    whole = finish(make(victim), tmp_path)
    assert victim.modes == [mode] * 4
    second, third = Clocked(), Clocked()
    second.cost, third.cost = victim.cost, {LAST: 9.0}  # nothing is measured again
    stopped = make(second)
    stopped.settings = replace(stopped.settings, steps=2)
    finish(stopped, tmp_path / "stopped")
    assert torch.equal(finish(make(third), tmp_path / "stopped", resumes=True), whole)
    assert third.modes == [mode] * 2


def test_a_run_that_finds_nothing_faster_is_the_plain_one_to_the_bit(victim: Clocked, tmp_path: Path) -> None:
    strides = [weight.stride() for weight in victim.parameters()]
    tuned = finish(make(victim), tmp_path / "tuned")
    assert [weight.stride() for weight in victim.parameters()] == strides
    assert torch.equal(finish(make(Clocked(), tune="off"), tmp_path / "plain"), tuned)


def break_compiler(monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Tensor], Tensor]) -> None:
    monkeypatch.setattr(torch, "compile", lambda given, **_: lambda frames: trouble(given(frames)))


def fail(_: Tensor) -> Tensor:
    raise NotImplementedError("no such\nkernel")


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, flow: Tensor) -> Tensor:
        return flow.clone()

    @staticmethod
    def backward(*_: Any) -> Tensor:
        raise RuntimeError("invalid gradient")


@pytest.mark.parametrize("asked", [{}, {"tune": "off", "execution": "compiled"}])
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (fail, "no such kernel"),
        (Backward.apply, "invalid gradient"),
        (lambda flow: flow + 1, r"its gradient differs by \d+\.\d%"),
        (lambda flow: flow * torch.nan, "its gradient differs by nan%"),
    ],
)
def test_what_fails_or_differs_is_left_out_with_its_reason(
    victim: Clocked,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: dict[str, str],
    trouble: Callable[[Tensor], Tensor],
    reason: str,
) -> None:
    break_compiler(monkeypatch, trouble)
    job = make(victim, **asked)
    tuning.settle(job)
    assert job.mode == Mode()
    assert job.fast is None
    (line,) = capsys.readouterr().out.splitlines()
    start = "victim: plain, the fastest; not compiled: "
    assert line.startswith(start)
    assert re.fullmatch(reason, line.removeprefix(start))


def test_what_is_asked_for_is_kept_where_it_works(victim: Clocked, tmp_path: Path) -> None:
    victim.cost = {Mode(execution="compiled"): 1.5}
    finish(make(victim, tune="off", execution="compiled"), tmp_path)
    assert victim.modes == [Mode(execution="compiled")] * 4
    # In one layout and precision that the settings say, nothing else is tried.
    job = make(victim, channels_last=False, precision="32-true", execution="eager")
    tuning.settle(job)
    assert set(victim.modes) == {Mode()}


def test_what_no_longer_works_is_left_out_of_a_resumed_run(
    victim: Clocked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_compiler(monkeypatch, fail)
    job = make(victim)
    job.mode = Mode(True, execution="compiled")
    tuning.settle(job)
    assert job.mode == LAST
    assert capsys.readouterr().out == "victim: not compiled: no such kernel\n"
    assert victim.network[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]


def test_what_follows_no_gradient_is_left_alone(victim: Clocked) -> None:
    job = make(victim, RandomSearch)
    tuning.settle(job)
    job = make(victim)
    victim.differentiable = False
    tuning.settle(job)
    assert victim.modes == []


def test_what_changes_from_step_to_step_is_not_compiled(victim: Clocked, capsys: pytest.CaptureFixture[str]) -> None:
    job = make(victim, tune="off", execution="compiled", grow=2.0)
    tuning.settle(job)
    assert capsys.readouterr().out == "victim: plain, the fastest; not compiled: its steps differ\n"
    assert Mode(execution="compiled") not in victim.modes


def test_a_victim_that_fails_is_told_by_the_run(victim: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make(victim)
    monkeypatch.setattr(victim, "flow", fail)
    tuning.settle(job)
    assert job.mode == Mode()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": "on"}, "trainer.tune: expected auto or off, got on"),
        ({"execution": "fast"}, "trainer.execution: expected eager, compiled, captured or null, got fast"),
        ({"execution": "captured"}, "trainer.execution=captured: expected a CUDA device, got none"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        processes.start(replace(SETTINGS, **given))


@pytest.mark.parametrize("values", [{"execution": "quick"}, {"half": 1}])
def test_a_mode_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a mode of a victim"):
        Mode(**values)
