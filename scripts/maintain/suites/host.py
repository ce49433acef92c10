"""What the host does in a step: operations that it asks a device for, and its milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchattack.eot.appearance import Brightness, Contrast, Hue, Illumination, PrintNoise, Shadow, WhiteBalance
from patchattack.eot.calibrated import Calibrated
from patchattack.eot.camera import Defocus, Gamma, Jpeg, MotionBlur, SensorNoise
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from suites.measure import Operations, Options, Row, seconds
from suites.step import Step

APPEARANCE = (Contrast, Brightness, Hue, WhiteBalance, Illumination, Shadow, Calibrated, PrintNoise)
CAMERA = (Defocus, MotionBlur, Gamma, SensorNoise, Jpeg)
STACKS = {
    "light": ((Contrast, Brightness), (SensorNoise,)),
    "default": ((Calibrated, PrintNoise, Contrast, Brightness), (Defocus, SensorNoise)),
    "all": (APPEARANCE, CAMERA),
}
_HOST = torch.device("cpu")


def rows(options: Options) -> Iterator[Row]:
    """Yield, for batches and transforms (:data:`STACKS`), what a draw takes; what follows until the gradient beside
    the victim, which gives its input back; and a whole step. On a CPU the host computes in its time too.
    """
    batches, size = ((2, 5), (64, 128)) if options.small else ((8, 16, 64), (128, 256))
    for transforms, stacks in STACKS.items():
        for batch in batches:
            appearance, camera = ({each.__name__: each() for each in group} for group in stacks)
            renderer = Renderer(Uniform(area=0.09), appearance, camera)
            step = Step(nn.Identity(), _brightness, (batch, 2, *size), options.device, renderer)
            parts: dict[str, Callable[[], Any]] = {
                "draw": step.draw,
                "gradient": partial(step.gradient, step.draw()),
                "step": step.whole,
            }
            for part, work in parts.items():
                yield from _of(f"{part}, {transforms}, batch {batch}", work, options)
            # What is left is the host's where a device computes the noise.
            for transform in step.renderer.appearance + step.renderer.camera:
                for sides in {"TILE", "GRAIN"} & set(dir(transform)):
                    setattr(transform, sides, 1)
            yield from _of(f"draw, {transforms}, batch {batch}, noise of one pixel", step.draw, options)


def _brightness(output: Tensor, *_: Any) -> Tensor:
    return output.mean(dim=(1, 2, 3, 4))


def _of(name: str, work: Callable[[], Any], options: Options) -> Iterator[Row]:
    work()
    with Operations() as operations:
        work()
    yield Row.of(name, "operations", [operations.count])
    times = []
    for _ in range(options.pairs):
        times.append(1000 * seconds(work, _HOST))  # until all is asked, not until it is done
        if options.device.type == "cuda":
            torch.cuda.synchronize(options.device)
    yield Row.of(name, "ms", times)
