"""What scenes cost before the step: decoding, rendering, remembering and moving them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import torch

from patchattack import pictures
from patchattack.data.cached import CachedSource
from patchattack.data.world import World
from patchattack.scene import Scene
from suites.measure import Options, Row, milliseconds, ratio


def rows(options: Options) -> Iterator[Row]:
    """Yield a row for each."""
    size, batch = ((64, 128), 2) if options.small else ((720, 1280), 16)
    height, width = size
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 16), size=size, mode="bicubic", align_corners=False)
    pixels = (smooth[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("jpg", "png"):
            path = Path(folder) / f"picture.{ending}"
            path.write_bytes(cv2.imencode(f".{ending}", pixels)[1].tobytes())
            yield milliseconds(f"decode a {ending} of {width}×{height}", partial(pictures.read, path), options)
    size = (32, 64) if options.small else (128, 256)
    world = World(scenes=8, size=size)
    yield milliseconds(f"render a scene of the world, {size[1]}×{size[0]}", lambda: world[3], options)
    kept = CachedSource(world, 1e9)
    few = list(range(2 if options.small else 8))
    yield ratio(
        f"{len(few)} scenes remembered over rendered",
        lambda: kept.__getitems__(few),
        lambda: world.__getitems__(few),
        options,
    )
    frames = torch.randint(0, 256, (batch, 1, 3, height, width), dtype=torch.uint8)
    scene = Scene(frames, torch.arange(batch))
    floats = replace(scene, frames=frames.float() / 255)
    where = options.device.type
    yield milliseconds(f"{batch} frames of {width}×{height} to {where}, as integers", lambda: scene.to(where), options)
    yield ratio(
        f"{batch} frames to {where}, as integers over as floats",
        lambda: scene.to(where),
        lambda: floats.to(where),
        options,
    )
