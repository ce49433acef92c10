"""What a step trains on: scenes in an order that seed and epoch fix, each with its EoT draws."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patchattack import seeding
from patchattack.devices import transfer
from patchattack.eot.renderer import Draw
from patchattack.eot.zoom import zoom_in
from patchattack.job import ORDER, TRAINING, Job
from patchattack.scene import Scene
from patchattack.seeding import Numbers


@dataclass(frozen=True)
class Batch:
    """Scenes, once for each of their draws, with what stays the same whatever the patch is.

    ``shown [B, 1, h, w]`` is 0 where a rectangle hides the patch, 1 elsewhere; None hides nothing.
    """

    scene: Scene
    clean: Any
    draw: Draw
    shown: Tensor | None

    def repeat(self, times: int) -> Batch:
        """All of it, ``times`` times one after another."""
        if times == 1:
            return self
        rows = torch.arange(len(self.scene)).repeat(times)
        shown = None if self.shown is None else self.shown.repeat(times, 1, 1, 1)
        return Batch(self.scene.select(rows), _select(self.clean, rows), self.draw.repeat(times), shown)


def _select(output: Any, rows: Tensor) -> Any:
    """Rows of an output: a tensor, or an ensemble's tuple."""
    if isinstance(output, tuple):
        return tuple(_select(one, rows) for one in output)
    return output[transfer(rows, output.device)]


def batches(job: Job, training: list[int], done: int) -> Iterator[Batch]:
    """This process's fraction of every batch from step ``done`` on, drawn; ``accumulate`` of them make a step.

    Args:
        job: what trains.
        training: indices of the training scenes.
        done: steps that a resumed run has done.
    """
    settings, rank, processes = job.settings, job.fabric.global_rank, job.fabric.world_size
    scenes = _loader(job, training, done)
    for step in range(done, settings.steps):
        count = settings.scenes_at(step)
        share = count // processes
        for part in range(settings.accumulate):
            first = part * count + rank * share  # place among all scenes of the update
            keys = [
                (job.seed, TRAINING, step, place, draw)
                for place in range(first, first + share)
                for draw in range(settings.draws)
            ]
            yield _batch(job, next(scenes), seeding.numbers(keys))


@torch.no_grad()
def _batch(job: Job, scene: Scene, numbers: Numbers) -> Batch:
    """A batch as its source gave it, drawn; ``numbers`` has a row for each draw of each scene."""
    settings, device = job.settings, job.fabric.device
    rows = torch.arange(len(scene)).repeat_interleave(settings.draws)
    if settings.zoom > 1:
        scene = zoom_in(scene.select(rows), settings.zoom, numbers, device)
        clean = job.clean(scene.frames)
    else:
        scene = scene.to(device).select(rows)
        clean = job.references(scene)
    draw = job.renderer.draw(scene, job.patch, numbers)
    return Batch(scene, clean, draw, _visible_texels(job, numbers)).repeat(job.candidates)


def _visible_texels(job: Job, numbers: Numbers) -> Tensor | None:
    """The texels that each view shows, ``[n, 1, h, w]``: all but a rectangle of its own; None where all show all."""
    if not job.settings.cutout:
        return None
    device, (height, width) = job.fabric.device, job.patch.mask.shape[1:]
    y, x, high, wide = numbers.streams({"cutout": 1}, device)[0].unit(4).T[..., None]  # [n, 1] each

    def hidden(texels: int, centre: Tensor, side: Tensor) -> Tensor:
        places = (torch.arange(texels, device=device) + 0.5) / texels
        return (places - centre).abs() < side * job.settings.cutout / 2

    return (~(hidden(height, y, high)[:, :, None] & hidden(width, x, wide)[:, None])).unsqueeze(1).float()


def _loader(job: Job, indices: list[int], done: int) -> Any:
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
            epoch, place = divmod(start + slot, len(indices))
            if epoch not in epochs:
                epochs = {epoch - 1: epochs[epoch - 1]} if epoch - 1 in epochs else {}
                epochs[epoch] = order(job, epoch, len(indices))
            batch.append(indices[epochs[epoch][place]])
        batches.append(batch)
    loader: Any = DataLoader(
        job.source,
        batch_sampler=batches,
        collate_fn=_whole,  # type: ignore[arg-type]
        num_workers=settings.workers,
    )
    return iter(loader)


def order(job: Job, epoch: int, count: int) -> Tensor:
    """``[count]`` places of the training scenes, in the order in which an epoch shows them."""
    return torch.randperm(count, generator=seeding.generator(job.seed, ORDER, epoch))


def _whole(scene: Scene) -> Scene:
    """A source gives whole batches. By name, because worker processes that are not forked pickle it."""
    return scene
