"""How a step grows with its batch, the patch, the draws, the candidates and the processes, with the peak memory.

python -m suites.scale PROCESSES DEVICE SMALL

is a worker of the last: one training process, or several, that take a step for each line on the standard input.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from patchattack import assembly, processes, tuning
from patchattack.attacks.attack import Attack
from patchattack.attacks.flow import FlowAttack
from patchattack.batches import batches
from patchattack.data.cached import CachedSource
from patchattack.data.world import World
from patchattack.eot.appearance import Brightness, Contrast, PrintNoise
from patchattack.eot.calibrated import Calibrated
from patchattack.eot.camera import Defocus, SensorNoise
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.job import Fabric, Settings
from patchattack.patch import Patch
from patchattack.printing.sheet import Sheet
from patchattack.regularizers.nps import NonPrintability
from patchattack.regularizers.tv import TotalVariation
from patchattack.scene import Source
from patchattack.tracking import NullTracker
from patchattack.update import Update
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.victim import Victim
from suites.measure import Options, Row, ratio, seconds

FOLDERS = (Path(__file__).parents[1], Path(__file__).parents[3])
_STEPS = 1000  # more than any measurement takes


def default_renderer(area: float = 0.09) -> Renderer:
    """Make the EoT of a run's defaults."""
    appearance = {"calibrated": Calibrated(), "print_noise": PrintNoise()}
    light = {"contrast": Contrast(), "brightness": Brightness()}
    camera = {"defocus": Defocus(), "sensor_noise": SensorNoise()}
    return Renderer(Uniform(area=area), appearance | light, camera)


class Training:
    """The run's own step, again and again, scenes and clean outputs remembered; of the default flow attack.

    Args:
        batch: scenes over all processes.
        source: of the scenes.
        area: the patch's fraction of the frame.
        draws: of each scene.
        candidates: patches side by side.
        device: where to run.
        devices: processes.
        attack, victim: the default ones.
        tune: as ``trainer.tune``.
    """

    def __init__(
        self,
        batch: int,
        source: Source,
        device: torch.device,
        area: float = 0.09,
        draws: int = 1,
        candidates: int = 1,
        devices: int = 1,
        attack: Attack | None = None,
        victim: Victim | None = None,
        tune: str = "off",
    ) -> None:
        settings = Settings(
            steps=_STEPS,
            batch=batch,
            draws=draws,
            starts=0,
            candidates=1,
            stages=1,
            accelerator=device.type,
            devices=devices,
            tune=tune,
        )
        patch = Patch.create(resolution=64)
        parts = assembly.Parts(
            attack=attack or FlowAttack(),
            victim=victim or CompactFlow("correlation"),
            source=source,
            renderer=default_renderer(area),
            patch=patch,
            regularizers={"tv": TotalVariation(0.001), "nps": NonPrintability(0.1)},
            optimizer=functools.partial(torch.optim.Adam, lr=0.02),
            schedule=functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
            tracker=lambda folder, config, run_id: NullTracker(folder, config, run_id),
            settings=settings,
            sheet=Sheet(),
            seed=0,
        )
        self.fabric: Fabric = processes.start(settings)
        self.job = assembly.assemble(parts, self.fabric)
        tuning.settle(self.job)
        if candidates > 1:
            patch.set_texture(torch.stack([patch().detach()] * candidates))
        training, *_ = settings.split_indices(len(self.job.source))
        for row in training:
            self.job.references(self.job.source[row].to(self.fabric.device))
        self.batches = batches(self.job, training, 0)
        self.steps = itertools.count()

    def __call__(self) -> None:
        """One step."""
        update = Update(self.job, next(self.steps), [next(self.batches)])
        self.job.optimizer.step(update)  # type: ignore[arg-type]  # torch's closures return tensors too
        self.job.patch.project_()


def scenes(small: bool) -> Source:
    """Of the default flow attack."""
    return CachedSource(World(scenes=8 if small else 32, size=(64, 64) if small else (128, 256)), 1e9)


def rows(options: Options) -> Iterator[Row]:
    """Yield a ratio, and the peak memory above what is there before the step, for each change of a step."""
    make = functools.partial(Training, source=scenes(options.small), device=options.device)
    few, some, many = (1, 2, 4) if options.small else (4, 16, 64)
    plain = make(some)
    yield from _memory(f"batch {some}", plain, options)
    changes: tuple[tuple[str, float, dict[str, Any]], ...] = (
        (f"a scene in batch {few} over one in batch {some}", few / some, {"batch": few}),
        (f"a scene in batch {many} over one in batch {some}", many / some, {"batch": many}),
        ("a patch of 2 % over one of 9 %", 1, {"batch": some, "area": 0.02}),
        ("a patch of 30 % over one of 9 %", 1, {"batch": some, "area": 0.3}),
        (f"{some // 2} scenes × 2 draws over {some} × 1", 1, {"batch": some // 2, "draws": 2}),
        (f"2 patches × {some // 2} scenes over 1 × {some}", 1, {"batch": some // 2, "candidates": 2}),
    )
    for name, per, change in changes:
        changed = make(**change)
        yield ratio(name, changed, plain, options, per)
        yield from _memory(", ".join(f"{key} {value}" for key, value in change.items()), changed, options)
    if options.device.type == "cuda" and torch.cuda.device_count() < 2:
        tqdm.write("two processes: left out, as there is one GPU")
        return
    yield _processes(options)


def _memory(name: str, step: Callable[[], None], options: Options) -> Iterator[Row]:
    if (found := peak(step, options.device)) is not None:
        yield Row.of(f"peak memory of a step, {name}", "MB", [found / 1e6])


def peak(work: Callable[[], None], device: torch.device) -> float | None:
    """Bytes that ``work`` needs at most above what is there before; None where it cannot be known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return float(torch.cuda.max_memory_allocated(device) - before)
    if sys.platform != "linux":
        return None
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would be taken for needed before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what is there now
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    return float(max(0, _resident("VmHWM") - before))


def _resident(key: str) -> int:
    (found,) = re.findall(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return 1024 * int(found)


class Worker:
    """Processes that train together, started once and asked for each step."""

    def __init__(self, devices: int, options: Options) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(2 // devices), "OMP_WAIT_POLICY": "PASSIVE"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, FOLDERS))
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(devices), options.device.type, str(int(options.small))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def seconds(self) -> float:
        """Of a step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("took "):
                return float(line.split()[1])
        raise RuntimeError(f"the processes ended with status {self.process.wait()}")

    def close(self) -> None:
        """No more steps."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _processes(options: Options) -> Row:
    two, one = Worker(2, options), Worker(1, options)
    try:
        for worker in (two, one):
            worker.seconds()
        work = range(options.pairs)
        pairs = [(two.seconds(), one.seconds()) for _ in tqdm(work, "processes", leave=False, disable=None)]
    finally:
        two.close()
        one.close()
    note = " / ".join(f"{sum(values) / len(values) * 1000:.3g} ms" for values in zip(*pairs, strict=True))
    name = "two processes of one thread over one of two"
    return Row.of(name, "ratio", [first / second for first, second in pairs], note)


def serve(training: Training, lines: Iterator[str], out: TextIO) -> None:
    """A step for each line that the first process reads; it writes how long each took."""
    fabric, is_first = training.fabric, training.fabric.global_rank == 0
    while fabric.broadcast(is_first and next(lines, None) is not None):
        took = seconds(training, fabric.device)
        if is_first:
            out.write(f"took {took}\n")
            out.flush()


if __name__ == "__main__":
    SMALL = bool(int(sys.argv[3]))
    STEP = Training(2 if SMALL else 16, scenes(SMALL), torch.device(sys.argv[2]), devices=int(sys.argv[1]))
    serve(STEP, iter(sys.stdin), sys.stdout)
