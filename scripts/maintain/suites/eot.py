"""Milliseconds that each transform adds to a render, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.eot.transform import Transform
from suites.host import APPEARANCE, CAMERA
from suites.measure import Options, Row, difference, milliseconds
from suites.step import Step


def rows(options: Options) -> Iterator[Row]:
    """Yield the render without transforms, then what each adds to it."""
    batch, size = (1, (48, 64)) if options.small else (16, (224, 224))

    def render(appearance: dict[str, Transform], camera: dict[str, Transform]) -> Callable[[], None]:
        renderer = Renderer(Uniform(area=0.09), appearance, camera)
        step = Step(nn.Identity(), lambda output, *_: output.mean(dim=(1, 2, 3, 4)), (batch, 1, *size), options.device)
        step.renderer, step.regularizers = renderer, []
        draw = step.draw()
        return lambda: step.gradient(draw)

    plain = render({}, {})
    yield milliseconds("render without transforms", plain, options)
    looks: dict[str, Transform] = {each.__name__: each() for each in APPEARANCE}
    cameras: dict[str, Transform] = {each.__name__: each() for each in CAMERA}
    for name, transform in looks.items():
        yield difference(name, render({"it": transform}, {}), plain, options)
    for name, transform in cameras.items():
        yield difference(name, render({}, {"it": transform}), plain, options)
