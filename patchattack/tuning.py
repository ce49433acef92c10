"""How the victim computes fastest: measured before the first step, for this victim and this batch.

With ``trainer.tune=auto`` the victim is tried with the channels last in memory, under autocast to bfloat16, compiled,
and on a GPU captured as a CUDA graph, each on top of what was kept before. A trial is a whole step without its update:
render, victim, loss and gradient of one training batch. What is kept agrees with the plain step (:data:`TOLERANCE`) and
is faster (:data:`GAIN`). What the settings decide is not tried, but for ``trainer.execution``, which is kept where it
works.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from patchattack.batches import batches
from patchattack.errors import one_line
from patchattack.job import Job, Mode
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.processes import OneDevice
from patchattack.update import Update
from patchattack.victims.victim import Victim

TOLERANCE = {"channels_last": 0.01, "half": 0.1, "execution": 0.01}  # of the patch's gradient, relative, in L2
GAIN = 0.95  # of the time at most: for less, another rounding is not worth it
SLOW = 3.0  # times as slow: not measured any further
PAIRS = 5


def settle(job: Job) -> None:
    """Choose the victim's mode, or take the one that a resumed run has had, and have the job compute in it.

    Nothing changes where nothing is to be chosen, or where no gradient is followed. What the trials ask the victim is
    not counted, as the run knows nothing of it.
    """
    settings, is_first = job.settings, job.fabric.global_rank == 0
    chooses = settings.tune == "auto" or settings.execution not in (None, "eager")
    if not (chooses or job.mode) or not job.victim.differentiable or isinstance(job.optimizer, GradientFree):
        return
    mode = job.mode
    if is_first and mode is None:
        mode = _choose(job)
    elif is_first and mode is not None and mode.execution != "eager":
        mode = _try_again(job, mode)
    job.mode = mode = job.fabric.broadcast(mode)
    if mode == Mode():
        return
    if mode.channels_last:
        for weight in _filters(job.victim):
            weight.data = weight.data.to(memory_format=torch.channels_last)
    if mode.half:
        job.fabric = OneDevice(job.fabric.device, torch.bfloat16)
    if job.fast is None:  # else the trials have made it
        job.fast = _fast(job.victim, mode)
    job.forget()


def _choose(job: Job) -> Mode:
    """The fastest mode, which one line tells."""
    settings, best, times, said = job.settings, Mode(), 1.0, []
    try:
        trials = _Trials(job)
    except Exception:  # the first step meets it too, where it is answered
        return best
    if not _is_fixed(job) and settings.execution not in (None, "eager"):
        said.append(f"not {settings.execution}: its steps differ")
    for option, value in _options(job):
        candidate = replace(best, **{option: value})
        alone = replace(Mode(), **{option: value})
        try:
            ratio = trials.compare(best, candidate, option)
        except Exception as error:  # of compilers and anybody's network
            reason = one_line(error.__cause__ or error)[:200]
            said.append(f"not {alone}: {reason}")
            continue
        if ratio <= GAIN or (option == "execution" and settings.execution == value):
            best, times = candidate, times * ratio
        elif ratio >= SLOW:
            said.append(f"{alone} is {ratio:.0f} times as slow")
    job.fast = trials.end(best)
    found = f"{best}, {1 / times:.2g} times as fast" if best != Mode() else "plain, the fastest"
    print("; ".join([f"victim: {found}", *said]), flush=True)
    return best


def _try_again(job: Job, mode: Mode) -> Mode:
    """The mode of a run that is resumed; without its execution where that works no more."""
    trials = None
    try:
        trials = _Trials(job)
        trials.run(mode)
    except Exception as error:
        print(f"victim: not {mode.execution}: {one_line(error.__cause__ or error)[:200]}", flush=True)
        mode = replace(mode, execution="eager")
    if trials is not None:
        job.fast = trials.end(mode)
    return mode


def _options(job: Job) -> list[tuple[str, Any]]:
    """What may be tried, in turn."""
    settings, tunes = job.settings, job.settings.tune == "auto"
    found: list[tuple[str, Any]] = []
    if tunes and settings.channels_last is None:
        found.append(("channels_last", True))
    if tunes and settings.precision == "auto" and isinstance(job.fabric, OneDevice) and job.fabric.dtype is None:
        found.append(("half", True))
    if _is_fixed(job):
        every = ("compiled", "captured") if job.fabric.device.type == "cuda" else ("compiled",)
        found += [("execution", each) for each in every if settings.execution in (None, each)]
    return found


def _is_fixed(job: Job) -> bool:
    """No step differs from another in what a compiler or a captured graph takes for granted."""
    return type(job.victim).randomise is Victim.randomise and job.settings.grow == 1


class _Trials:
    """Steps without an update, on a copy of the job that shares its victim and patch."""

    def __init__(self, job: Job) -> None:
        settings, fabric = job.settings, job.fabric
        alone: Any = fabric if isinstance(fabric, OneDevice) else _alone(fabric)
        share = replace(
            settings, batch=settings.batch // fabric.world_size, devices=1, accumulate=1, workers=0, tune="off"
        )
        self.job = replace(job, settings=share, fabric=alone, queries=0)
        self.plain, self.device = alone, fabric.device
        self.layouts = {False: [(weight, weight.data) for weight in _filters(job.victim)]}
        self.executed: dict[str, Callable[[Tensor], Any] | None] = {}
        training, *_ = settings.split_indices(len(job.source))
        self.batch = next(batches(self.job, training, 0))
        self.run(Mode())  # makes what is made once
        self.seconds, self.gradient = self.run(Mode())

    def compare(self, best: Mode, candidate: Mode, option: str) -> float:
        """The time in ``candidate`` over that in ``best``: a median, or that of the first call that is too slow.

        Raises:
            ValueError: its gradient is another than the plain step's.
            Exception: whatever compilers and networks raise.
        """
        took, gradient = self.run(candidate)
        if option == "execution":  # the first made it
            took, gradient = self.run(candidate)
        if took > SLOW * self.seconds:
            return took / self.seconds
        error = float((gradient - self.gradient).norm() / self.gradient.norm())
        most = TOLERANCE["half" if candidate.half else option]
        if not (error <= most or gradient.equal(self.gradient)):
            raise ValueError(f"its gradient differs by {error:.1%}")
        ratios = []
        for number in range(PAIRS):
            order = (best, candidate) if number % 2 else (candidate, best)
            times = {mode: self.run(mode)[0] for mode in order}
            ratios.append(times[candidate] / times[best])
        return statistics.median(ratios)

    def run(self, mode: Mode) -> tuple[float, Tensor]:
        """Seconds of a step in ``mode``, and the patch's gradient."""
        self._have(mode)
        begin = time.perf_counter()
        Update(self.job, 0, [self.batch])()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        took, gradient = time.perf_counter() - begin, self.job.patch.parameter.grad
        assert gradient is not None
        return took, gradient.clone()

    def end(self, mode: Mode) -> Callable[[Tensor], Any] | None:
        """Leave the patch as it was and the victim in ``mode``, and return what executes it there."""
        self._have(mode)
        self.job.optimizer.zero_grad()
        return self.job.fast

    def _have(self, mode: Mode) -> None:
        """Layouts are swapped, not converted back: those of a plain run have its own strides."""
        if mode.channels_last not in self.layouts:
            last = torch.channels_last
            self.layouts[True] = [(one, plain.to(memory_format=last)) for one, plain in self.layouts[False]]
        for weight, data in self.layouts[mode.channels_last]:
            weight.data = data
        self.job.fabric = OneDevice(self.device, torch.bfloat16) if mode.half else self.plain
        if mode.execution not in self.executed:
            self.executed[mode.execution] = _fast(self.job.victim, mode)
        self.job.fast = self.executed[mode.execution]


def _filters(victim: Victim) -> list[nn.Parameter]:
    """The weights whose layout convolutions go by."""
    return [weight for weight in victim.parameters() if weight.ndim == 4]


def _alone(fabric: Any) -> Any:
    """One process in the precision of several."""
    return SimpleNamespace(device=fabric.device, global_rank=0, world_size=1, autocast=fabric.autocast)


def _fast(victim: Victim, mode: Mode) -> Callable[[Tensor], Any] | None:
    """The victim as the mode executes it, made when it is first asked; None as it is."""
    if mode.execution == "compiled":
        return torch.compile(victim, dynamic=False)
    return _Captured(victim) if mode.execution == "captured" else None


class _Captured:
    """Forward and backward pass as CUDA graphs, for frames of the shape that comes first."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.graph: Callable[[Tensor], Any] | None = None

    def __call__(self, frames: Tensor) -> Any:
        if self.graph is None:
            sample = frames.detach().clone().requires_grad_()
            dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
            with torch.autocast("cuda", dtype, enabled, cache_enabled=False):  # as captures need it
                self.graph = torch.cuda.make_graphed_callables(lambda given: self.victim(given), (sample,))
        return self.graph(frames)
