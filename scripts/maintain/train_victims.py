"""Train a compact victim on procedural scenes and write its weights and model card to assets/.

python scripts/maintain/train_victims.py flow_matching
python scripts/maintain/train_victims.py detector_yolo --steps 2000

A long training goes on where it stopped, if it was killed:

python scripts/maintain/train_victims.py flow_correlation --checkpoint flow_correlation.checkpoint

With a defence that is trained in, for victim.weights=FILE:

python scripts/maintain/train_victims.py classifier_residual --adversarial 0.09 --output hardened
python scripts/maintain/train_victims.py classifier_residual --mix cutmix --output hardened

or, where that would be too hard to begin with, from trained weights on:

python scripts/maintain/train_victims.py classifier_residual --mix greedy_cutout --start FILE --output hardened
"""

from __future__ import annotations

import argparse
import io
import math
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou
from torchvision.transforms import v2
from tqdm import tqdm

import patchattack
from patchattack import files, geometry, seeding
from patchattack.data.flying_shapes import FlyingShapes
from patchattack.data.world import World
from patchattack.defenses.patch_cleanser import mask_out, mask_set
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.patch import Patch
from patchattack.scene import Scene
from patchattack.victims.compact import classification, depth, detection, flow
from patchattack.victims.compact.classification import CompactClassifier
from patchattack.victims.compact.depth import CompactDepth
from patchattack.victims.compact.depth_networks import REACH
from patchattack.victims.compact.detection import CompactDetector
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.victim import Victim
from patchattack.victims.weights import load_weights

WORLDS_OF_TRAINING = 1000  # seeds from here on; the default data use small ones
WORLD_OF_VALIDATION = 999  # seeds from here down
ULTRALYTICS = "architecture and training loss are ultralytics', AGPL-3.0"
SCENES_PER_WORLD, SCENES_OF_VALIDATION = 50, 200  # then the textures change

# Augmentations that are said to help against patches: DeVries & Taylor 2017, Zhang et al. 2018, Yun et al. 2019.
MIXES: dict[str, Any] = {"cutout": v2.RandomErasing, "mixup": v2.MixUp, "cutmix": v2.CutMix}
# Two grey squares, each at most as large as a mask of defense=patch_cleanser by default (after Xiang et al. 2022).
CUTOUT: dict[str, Any] = {"p": 0.5, "scale": (0.02, 0.18), "ratio": (1, 1), "value": 0.5}
# Two masks of defense=patch_cleanser for a patch of one of these areas, each the worst of a few (Saha et al. 2023).
GREEDY_CUTOUT = "greedy_cutout"
GREEDY_AREAS, GREEDY_MASKS, GREEDY_TRIED = (0.02, 0.05, 0.09), 6, 6
SHARPNESS = 10.0  # of the softmax of correlations
CHECKPOINT_EVERY = 250  # steps
OPPONENT_RATE, OPPONENT_STEPS = 0.05, 250  # of full-scale colour per step; steps before another patch begins


@dataclass(frozen=True)
class Recipe(ABC):
    """How a network of one task is trained and measured.

    Attributes:
        network: its name among those of the task.
        steps: of the optimiser.
        scenes: that it learns from.
        rate: the highest learning rate of the one-cycle schedule.
        batch: scenes in a step.
        licence: of the network.
        adversarial: fraction of the frame that an :class:`Opponent` takes, or None.
        networks: those of the task.
        victims: the class of their victims.
        data: where the scenes come from.
        options: of these data.
        held_out: scenes on which it is measured.
        given: what it takes, in words.
        output: what it makes of that.
        growth: fraction of the steps in which the scenes of training grow from the easier half to all; 0 without order.
    """

    network: str
    steps: int
    scenes: int
    rate: float
    batch: int = 8
    licence: str = "that of the project"
    adversarial: float | None = None

    networks: ClassVar[Mapping[str, Callable[[], nn.Module]]]
    victims: ClassVar[type[CompactFlow | CompactClassifier | CompactDepth | CompactDetector]]
    data: ClassVar[type[World] | type[FlyingShapes]] = World
    options: ClassVar[dict[str, Any]]
    held_out: ClassVar[int] = 200
    given: ClassVar[str]
    output: ClassVar[str]
    growth: ClassVar[float] = 0.0

    @abstractmethod
    def kept(self, scene: Scene) -> Scene:
        """What training needs of a scene, in few bytes."""

    @abstractmethod
    def augmented(self, scene: Scene, generator: torch.Generator) -> Scene:
        """Scenes that vary at random, each with its truth."""

    @abstractmethod
    def loss(self, network: Any, scene: Scene) -> Tensor:
        """The loss of a batch, a scalar."""

    @abstractmethod
    def measured(self, victim: Victim, scenes: Iterator[Scene]) -> str:
        """The model card's table of errors on held-out scenes."""


class FlowRecipe(Recipe):
    """The mean end-point error of all the network's outputs."""

    networks = flow.NETWORKS
    victims = CompactFlow
    options: ClassVar = {"size": (128, 256)}
    given = "pairs of frames, RGB in [0, 1], any size"
    output = "optical flow in pixels from the first frame to the second"

    def kept(self, scene: Scene) -> Scene:
        """The flow."""
        return Scene(scene.frames, scene.index, flow=known(scene.flow).half())

    def augmented(self, scene: Scene, generator: torch.Generator) -> Scene:
        """In a mirror, in any colours."""
        return recoloured(mirrored(scene, generator), generator, permute=True)

    def loss(self, network: Any, scene: Scene) -> Tensor:
        """The finest output counts most."""
        # torch's own norm is slow over two channels.
        squares = [(output - scene.flow).square().sum(dim=1) for output in network(scene.frames)]
        errors = [square.add(1e-8).sqrt().mean() for square in squares]
        return torch.stack([error * 0.6**k for k, error in enumerate(reversed(errors))]).sum()

    def measured(self, victim: Victim, scenes: Iterator[Scene]) -> str:
        """End-point error beside that of zero flow."""
        rows = []
        for scene in scenes:
            truth, visible = known(scene.flow), ~known(scene.occluded)[:, 0]
            error, zero = (victim(scene.frames) - truth).norm(dim=1), truth.norm(dim=1)
            rows.append([error.mean(), zero.mean(), error[visible].mean(), zero[visible].mean()])
        error, zero, seen, zero_seen = torch.tensor(rows).mean(dim=0).tolist()
        return f"""\
| end-point error | network | zero flow | ratio |
| --- | --- | --- | --- |
| all pixels | {error:.2f} px | {zero:.2f} px | {error / zero:.1%} |
| pixels visible in both frames | {seen:.2f} px | {zero_seen:.2f} px | {seen / zero_seen:.1%} |"""


class FlyingRecipe(FlowRecipe):
    """Flow learned from flying shapes, small motions first, and measured on the driving world too."""

    data = FlyingShapes
    options: ClassVar = {"size": (128, 128), "speed": (1.0, 12.0)}
    growth = 0.3

    def augmented(self, scene: Scene, generator: torch.Generator) -> Scene:
        """In mirrors along both axes and the diagonal, in any colours, of low contrast, in frames of three sizes."""
        scene = super().augmented(transposed(mirrored(scene, generator), generator), generator)
        return faint(mosaic(scene, int(torch.randint(3, (), generator=generator))), generator)

    def loss(self, network: Any, scene: Scene) -> Tensor:
        """With the cross-entropy of the correlation, from which features learn to match long before flow appears."""
        seen: list[Tensor] = []
        hook = network.correlation.register_forward_hook(lambda _, __, result: seen.append(result))
        error = super().loss(network, scene)
        hook.remove()
        return error + 0.5 * matching_loss(seen[0], known(scene.flow)[:, :, ::8, ::8].float() / 8, network.reach)

    def measured(self, victim: Victim, scenes: Iterator[Scene]) -> str:
        """On flying shapes, and on the driving world, which it never saw."""
        world = RECIPES["flow_matching"]
        driving = super().measured(victim, held_out(world, next(victim.parameters()).device))
        return f"""\
{super().measured(victim, scenes)}

On {world.held_out} scenes of the driving world, 128×256 px, which it was not trained on:

{driving}"""


@dataclass(frozen=True)
class ClassificationRecipe(Recipe):
    """Cross-entropy with smoothed labels.

    Attributes:
        mix: one of :data:`MIXES`, :data:`GREEDY_CUTOUT` or None.
    """

    mix: str | None = None

    networks = classification.NETWORKS
    victims = CompactClassifier
    options: ClassVar = {"subject": "sign", "frames": 1, "size": (64, 64)}
    held_out = 1000
    given = "images, RGB in [0, 1], any size (resized to 64×64 px)"
    output = f"logits of {len(classification.CLASSES)} traffic signs: {', '.join(classification.CLASSES)}"

    def kept(self, scene: Scene) -> Scene:
        """The label."""
        return Scene(scene.frames, scene.index, label=scene.label)

    def augmented(self, scene: Scene, generator: torch.Generator) -> Scene:
        """Turned and moved a little; not in a mirror, where some signs are others."""
        return recoloured(moved(scene, generator), generator)

    def loss(self, network: Any, scene: Scene) -> Tensor:
        """Of the smoothed labels."""
        images, labels = scene.frames[:, 0], known(scene.label)
        if self.mix == "cutout":
            hide = v2.RandomErasing(**CUTOUT)
            images = torch.stack([hide(hide(image)) for image in images])
        elif self.mix == GREEDY_CUTOUT:
            images = greedily_masked(network, images, labels)
        elif self.mix is not None:
            images, labels = MIXES[self.mix](num_classes=len(classification.CLASSES))(images, labels)
        return F.cross_entropy(network(images), labels, label_smoothing=0.1)

    def measured(self, victim: Victim, scenes: Iterator[Scene]) -> str:
        """Fraction of signs that are recognised."""
        pairs = [(victim(scene.frames).argmax(dim=1), known(scene.label)) for scene in scenes]
        answers, labels = (torch.cat(column).tolist() for column in zip(*pairs, strict=True))
        right = [answer == label for answer, label in zip(answers, labels, strict=True)]
        each = {
            name: sum(hits) / len(hits)
            for number, name in enumerate(victim.classes)
            if (hits := [hit for hit, label in zip(right, labels, strict=True) if label == number])
        }
        worst = min(each, key=lambda name: each[name])
        return f"""\
| accuracy | network | chance |
| --- | --- | --- |
| all signs | {sum(right) / len(right):.1%} | {1 / len(victim.classes):.1%} |
| the worst, {worst} | {each[worst]:.1%} | {1 / len(victim.classes):.1%} |"""


class DepthRecipe(Recipe):
    """The mean absolute error of the logarithm of the depth."""

    networks = depth.NETWORKS
    victims = CompactDepth
    options: ClassVar = {"subject": "none", "frames": 1, "size": (128, 256), "camera_height": (1.5, 1.5)}
    given = "images from 1.5 m above the road, 90° wide, RGB in [0, 1], any size (resized to 128×256 px)"
    output = f"depth in metres, {REACH[0]:g} to {REACH[1]:g}"

    def kept(self, scene: Scene) -> Scene:
        """The depth, up to as far as a network reaches."""
        return Scene(scene.frames, scene.index, depth=known(scene.depth).clamp(*REACH).half())

    def augmented(self, scene: Scene, generator: torch.Generator) -> Scene:
        """In a mirror, in any colours."""
        return recoloured(mirrored(scene, generator), generator, permute=True)

    def loss(self, network: Any, scene: Scene) -> Tensor:
        """The sky counts: it is where the network's reach ends."""
        return (network(scene.frames[:, 0]).log() - known(scene.depth).float().log()).abs().mean()

    def measured(self, victim: Victim, scenes: Iterator[Scene]) -> str:
        """Relative error beside that of a constant."""
        pairs = [(victim(scene.frames), known(scene.depth)) for scene in scenes]
        found, truth = (torch.cat(column) for column in zip(*pairs, strict=True))
        near = truth < REACH[1]
        ratio, constant = found[near] / truth[near], truth[near].median() / truth[near]
        return f"""\
| pixels nearer than {REACH[1]:g} m | network | their median everywhere |
| --- | --- | --- |
| mean relative error | {(ratio - 1).abs().mean():.1%} | {(constant - 1).abs().mean():.1%} |
| within a factor of 1.25 | {share(ratio):.1%} | {share(constant):.1%} |"""


class DetectionRecipe(Recipe):
    """The network's own loss."""

    networks = detection.NETWORKS
    victims = CompactDetector
    options: ClassVar = {"subject": "vehicle", "frames": 1, "size": (128, 256)}
    given = "images, RGB in [0, 1], any size (padded to a multiple of 32)"
    output = "boxes in pixels and their scores for vehicle and sign, before non-maximum suppression"

    def kept(self, scene: Scene) -> Scene:
        """The boxes."""
        return Scene(scene.frames, scene.index, boxes=scene.boxes)

    def augmented(self, scene: Scene, generator: torch.Generator) -> Scene:
        """In a mirror, in similar colours."""
        return recoloured(mirrored(scene, generator), generator)

    def loss(self, network: Any, scene: Scene) -> Tensor:
        """An image begins at 0 to a network and at -0.5 to a scene."""
        boxes = known(scene.boxes)
        return network.loss(scene.frames[:, 0], boxes + boxes.new_tensor([0.5, 0.5, 0.5, 0.5, 0]))

    def measured(self, victim: Victim, scenes: Iterator[Scene]) -> str:
        """Average precision at an IoU of 0.5."""
        found, truth = [], []
        for scene in scenes:
            found += [detections(candidates) for candidates in victim(scene.frames)]
            truth += list(known(scene.boxes))
        lines = ["| AP50 after non-maximum suppression | objects | network |", "| --- | --- | --- |"]
        precision = []
        for number, name in enumerate(victim.classes):
            objects = sum(int((boxes[:, 4] == number).sum()) for boxes in truth)
            precision.append(average_precision(found, truth, number))
            lines.append(f"| {name} | {objects} | {precision[-1]:.3f} |")
        return "\n".join([*lines, f"| mean | | {sum(precision) / len(precision):.3f} |"])


RECIPES: dict[str, Recipe] = {
    "flow_matching": FlowRecipe("matching", steps=5000, scenes=3000, rate=6e-4),
    "flow_correlation": FlyingRecipe("correlation", steps=4200, scenes=3500, rate=2e-3),
    "flow_encoder_decoder": FlowRecipe("encoder_decoder", steps=1000, scenes=1500, rate=1e-3),
    "classifier_residual": ClassificationRecipe("residual", steps=1500, scenes=2000, rate=3e-3, batch=32),
    "classifier_transformer": ClassificationRecipe("transformer", steps=4000, scenes=2000, rate=1e-3, batch=32),
    "depth_unet": DepthRecipe("unet", steps=2500, scenes=2000, rate=2e-3),
    "depth_transformer": DepthRecipe("transformer", steps=4000, scenes=2000, rate=2e-3),
    "detector_yolo": DetectionRecipe("yolo", steps=3000, scenes=2000, rate=2e-3, licence=ULTRALYTICS),
    "detector_centre": DetectionRecipe("centre", steps=3000, scenes=2000, rate=2e-3),
}


class Opponent:
    """A universal patch that climbs the loss which the network descends (Shafahi et al. 2020, algorithm 2).

    It lies anywhere on every second scene, whose truth stays what it is: the network learns to look past it. After
    :data:`OPPONENT_STEPS` steps another patch begins, so that the network does not learn one patch by heart.
    """

    def __init__(self, area: float, seed: int, device: torch.device) -> None:
        self.renderer = Renderer(Uniform(area=area, rotation=(-20, 20), scale=(0.7, 1.2)), {}, {})
        self.seed, self.device, self.step = seed, device, 0

    def over(self, scene: Scene) -> Scene:
        """``scene`` with the patch."""
        if self.step % OPPONENT_STEPS == 0:
            number = self.seed * 1000 + self.step // OPPONENT_STEPS
            self.patch = Patch.create(resolution=32, seed=number).to(self.device)
        keys = [(self.seed, 2, self.step, place) for place in range(len(scene))]
        draw = self.renderer.draw(scene, self.patch, seeding.numbers(keys))
        frames = self.renderer(self.patch(), self.patch.mask, scene, draw).frames
        second = (torch.arange(len(scene), device=self.device) % 2 == 1).view(-1, 1, 1, 1, 1)
        self.step += 1
        return replace(scene, frames=torch.where(second, frames, scene.frames))

    @torch.no_grad()
    def climb(self) -> None:
        """A step up the gradient that the network's loss has left."""
        gradient = self.patch.parameter.grad
        assert gradient is not None
        self.patch.parameter.add_(gradient.sign(), alpha=OPPONENT_RATE)
        self.patch.parameter.grad = None
        self.patch.project_()


@torch.no_grad()
def greedily_masked(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Images under two masks each, the second chosen under the first; every fourth as it is.

    After Saha et al. 2023, who try all masks: here each is the worst for the network of :data:`GREEDY_TRIED` at random.

    Args:
        network: that learns; asked in eval mode.
        images: ``[B, 3, h, w]`` in [0, 1].
        labels: ``[B]``.
    """
    area = GREEDY_AREAS[int(torch.randint(len(GREEDY_AREAS), ()))]
    size = (images.shape[-2], images.shape[-1])
    masks = mask_set(size, math.ceil(area**0.5 * min(size)), GREEDY_MASKS)[:, 0].to(images.device)  # [masks, 1, h, w]
    masked = images
    network.eval()
    for _ in range(2):
        tried = masks[torch.randperm(len(masks))[:GREEDY_TRIED]]
        logits = network(mask_out(masked, tried.unsqueeze(1)).flatten(0, 1))
        losses = F.cross_entropy(logits, labels.repeat(len(tried)), reduction="none").view(len(tried), -1)
        masked = mask_out(masked, tried[losses.argmax(dim=0)])
    network.train()
    whole = (torch.arange(len(images), device=images.device) % 4 == 0).view(-1, 1, 1, 1)
    return torch.where(whole, images, masked)


def known(truth: Tensor | None) -> Tensor:
    """A ground truth that the world has."""
    assert truth is not None
    return truth


def share(ratio: Tensor) -> Tensor:
    """Of ratios ``[n]`` between 0.8 and 1.25."""
    return ((ratio > 0.8) & (ratio < 1.25)).float().mean()


def mirrored(scene: Scene, generator: torch.Generator) -> Scene:
    """Each scene as it is or in a mirror, with its flow, depth and boxes."""
    chosen = (torch.rand(len(scene), generator=generator) < 0.5).to(scene.frames.device)
    values = {"frames": scene.frames.flip(-1)}
    if scene.flow is not None:
        values["flow"] = scene.flow.flip(-1) * scene.flow.new_tensor([-1, 1]).view(1, 2, 1, 1)
    if scene.depth is not None:
        values["depth"] = scene.depth.flip(-1)
    if scene.boxes is not None:
        left, top, right, bottom, kind = scene.boxes.unbind(-1)
        last = scene.size[1] - 1
        values["boxes"] = torch.stack([last - right, top, last - left, bottom, kind], dim=-1)
    for name, value in values.items():
        values[name] = torch.where(chosen.view(-1, *[1] * (value.ndim - 1)), value, getattr(scene, name))
    return replace(scene, **values)


def transposed(scene: Scene, generator: torch.Generator) -> Scene:
    """Each square scene as it is or with x and y swapped, with its flow."""
    chosen = (torch.rand(len(scene), generator=generator) < 0.5).to(scene.frames.device).view(-1, 1, 1, 1)
    flow = torch.where(chosen, known(scene.flow).transpose(-1, -2).flip(1), known(scene.flow))
    return replace(
        scene, frames=torch.where(chosen[..., None], scene.frames.transpose(-1, -2), scene.frames), flow=flow
    )


def mosaic(scene: Scene, axis: int) -> Scene:
    """Scenes as they are, or half of an even number of twice the height (axis 1) or the width (2), with their flow."""
    if axis == 0 or len(scene) % 2:
        return scene
    frames, flow = (torch.cat(value.chunk(2), dim=axis - 3) for value in (scene.frames, known(scene.flow)))
    return Scene(frames, scene.index[: len(frames)], flow=flow)


def faint(scene: Scene, generator: torch.Generator) -> Scene:
    """Scenes of 0.15 to 0.5 of their contrast: photographs are fainter than saturated shapes, and than print."""
    contrast = (0.15 * (0.5 / 0.15) ** torch.rand(len(scene), 1, 1, 1, 1, generator=generator)).to(scene.frames.device)
    return replace(scene, frames=torch.lerp(scene.frames.mean(dim=(1, 3, 4), keepdim=True), scene.frames, contrast))


def moved(scene: Scene, generator: torch.Generator) -> Scene:
    """Single frames turned by up to 10°, scaled by 0.8 to 1.25 and shifted by up to a tenth, with repeated edges."""
    batch, frames = len(scene), scene.frames[:, 0]
    turn = torch.deg2rad(seeding.uniform(generator, (batch,), -10, 10))
    scale = seeding.uniform(generator, (batch,), 0.8, 1.25)
    shift = seeding.uniform(generator, (batch, 2), -0.2, 0.2)  # the frame spans [-1, 1]
    across, along = turn.cos() * scale, turn.sin() * scale
    matrix = torch.stack([across, -along, shift[:, 0], along, across, shift[:, 1]], dim=1).view(batch, 2, 3)
    grid = F.affine_grid(matrix.to(frames.device), list(frames.shape), align_corners=False)
    frames = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return replace(scene, frames=frames.unsqueeze(1))


def recoloured(scene: Scene, generator: torch.Generator, permute: bool = False) -> Scene:
    """Stretch the colours and add noise, once per scene; with ``permute`` the channels swap their places before."""
    frames, batch = scene.frames, len(scene)
    if permute:
        order = torch.rand(batch, 3, generator=generator).argsort(dim=1).to(frames.device)
        frames = frames[torch.arange(batch, device=frames.device)[:, None], :, order].transpose(1, 2)
    gain = seeding.uniform(generator, (batch, 1, 3, 1, 1), 0.7, 1.3).to(frames.device)
    gamma = seeding.uniform(generator, (batch, 1, 1, 1, 1), 0.7, 1.4).to(frames.device)
    sigma = seeding.uniform(generator, (batch, 1, 1, 1, 1), 0.0, 0.03).to(frames.device)
    frames = frames.clamp(min=1e-4) ** gamma * gain + sigma * torch.randn_like(frames)
    return replace(scene, frames=frames.clamp(0, 1))


def matching_loss(correlation: Tensor, displacement: Tensor, reach: tuple[int, int]) -> Tensor:
    """Cross-entropy of the displacements under a softmax of their correlations, a scalar.

    Args:
        correlation: ``[B, (2·dy + 1)·(2·dx + 1), h, w]``, row by row.
        displacement: ``[B, 2, h, w]`` the true ones in cells; the four around it share the truth.
        reach: ``(dy, dx)`` in cells. What goes farther, or out of the frame, does not count.
    """
    (dy, dx), size = reach, correlation.shape[-2:]
    likelihood = (SHARPNESS * correlation).log_softmax(dim=1)
    low = displacement.floor()
    right, down = (displacement - low).unbind(1)
    x, y = low.long().unbind(1)
    there = displacement + geometry.pixel_grid((size[0], size[1]), displacement.device).permute(2, 0, 1)
    last = displacement.new_tensor([size[1] - 1, size[0] - 1]).view(1, 2, 1, 1)
    counts = ((there >= 0) & (there <= last)).all(dim=1) & (x >= -dx) & (x < dx) & (y >= -dy) & (y < dy)
    total = torch.zeros_like(right)
    for row, share_y in ((y, 1 - down), (y + 1, down)):
        for column, share_x in ((x, 1 - right), (x + 1, right)):
            cell = ((row + dy) * (2 * dx + 1) + column + dx).clamp(0, correlation.shape[1] - 1)
            total = total - share_y * share_x * likelihood.gather(1, cell.unsqueeze(1)).squeeze(1)
    return (total * counts).sum() / counts.sum().clamp(min=1)


def detections(candidates: Tensor) -> Tensor:
    """``[n, 6]`` of ``candidates [A, 4 + K]``: box, score and class after non-maximum suppression, the best first."""
    boxes, (scores, classes) = candidates[:, :4], candidates[:, 4:].max(dim=1)
    rows = batched_nms(boxes, scores, classes, iou_threshold=0.6)[:100]
    return torch.cat([boxes[rows], scores[rows, None], classes[rows, None]], dim=1)


def average_precision(found: list[Tensor], truth: list[Tensor], number: int) -> float:
    """Area under the precision that a recall or more still has, as in PASCAL VOC 2010; NaN without an object.

    Args:
        found: of each scene ``[n, 6]``, the best first: box, score, class.
        truth: of each scene ``[m, 5]``: box, class; rows of NaN are none. Each object is found once, by the best box
            with an intersection over union of 0.5 or more.
        number: of the class.
    """
    hits, objects = [], 0
    for boxes, real in zip(found, truth, strict=True):
        boxes, real = boxes[boxes[:, 5] == number], real[real[:, 4] == number]
        objects += len(real)
        overlaps = box_iou(boxes[:, :4], real[:, :4])
        for score, row in zip(boxes[:, 4].tolist(), overlaps, strict=True):
            hit = len(row) > 0 and row.max().item() >= 0.5
            hits.append((score, float(hit)))
            if hit:
                overlaps[:, row.argmax()] = 0
    if not objects or not hits:
        return 0.0 if objects else math.nan
    right = torch.tensor([hit for _, hit in sorted(hits, reverse=True)])
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    return (precision.flip(0).cummax(0).values.flip(0) * right).sum().item() / objects


def pool(recipe: Recipe, seed: int, device: torch.device) -> Scene:
    """What the recipe keeps of its scenes, which come from many seeds; the easier ones first where it grows."""
    parts = []
    for first in tqdm(range(0, recipe.scenes, SCENES_PER_WORLD), desc="rendering scenes", unit_scale=SCENES_PER_WORLD):
        seed_here = WORLDS_OF_TRAINING * (seed + 1) + first
        data = recipe.data(scenes=SCENES_PER_WORLD, seed=seed_here, device=str(device), **recipe.options)
        parts.append(recipe.kept(data.__getitems__(list(range(SCENES_PER_WORLD)))))
    scenes = Scene.concatenate(parts)
    if recipe.growth:
        motion = torch.cat([known(part.flow).float().norm(dim=1).mean(dim=(1, 2)) for part in parts])
        scenes = scenes.select(motion.argsort().cpu())
    return scenes


def train(
    recipe: Recipe, seed: int, device: torch.device, checkpoint: Path | None = None, start: Path | None = None
) -> tuple[nn.Module, float]:
    """A network trained with AdamW and a one-cycle schedule, and the minutes that it took.

    With ``checkpoint`` the state is kept in this file, and a training that finds one there goes on from it. With
    ``start`` the network begins with these weights.
    """
    torch.manual_seed(seed)
    network = recipe.networks[recipe.network]().to(device)
    if start is not None:
        load_weights(network, start)
    source = pool(recipe, seed, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=1e-4)
    generator = seeding.generator(seed, 1)
    opponent = None if recipe.adversarial is None else Opponent(recipe.adversarial, seed, device)
    begun, minutes, smooth = 0, 0.0, None
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        begun, minutes = state["step"], state["minutes"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["rng"].cpu())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, recipe.steps, pct_start=0.05, last_epoch=begun - 1
    )
    begin = time.monotonic()
    progress = tqdm(range(begun, recipe.steps), desc="training", mininterval=5)
    for step in progress:
        share_now = min(1.0, 0.5 + 0.5 * step / (recipe.growth * recipe.steps)) if recipe.growth else 1.0
        rows = torch.randint(math.ceil(recipe.scenes * share_now), (recipe.batch,), generator=generator)
        scene = recipe.augmented(source.select(rows).to(device), generator)
        loss = recipe.loss(network, scene if opponent is None else opponent.over(scene))
        optimizer.zero_grad()
        loss.backward()
        if opponent is not None:
            opponent.climb()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
            progress.set_postfix(loss=f"{smooth:.3f}")
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            state = {
                "step": step + 1,
                "minutes": minutes + (time.monotonic() - begin) / 60,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "rng": torch.get_rng_state(),
            }
            buffer = io.BytesIO()
            torch.save(state, buffer)
            files.write(checkpoint, buffer.getvalue())
    return network.eval(), minutes + (time.monotonic() - begin) / 60


def held_out(recipe: Recipe, device: torch.device) -> Iterator[Scene]:
    """Scenes of seeds that training never saw, in batches of 10."""
    for number in range(0, recipe.held_out, 10):
        row, first = divmod(number, SCENES_OF_VALIDATION)
        if first == 0:
            seed = WORLD_OF_VALIDATION - row
            data = recipe.data(scenes=SCENES_OF_VALIDATION, seed=seed, device=str(device), **recipe.options)
        yield data.__getitems__(list(range(first, first + 10))).to(device)


CARD = """# {name}

{summary}

| | |
| --- | --- |
| network | `{network}`, {parameters:,} parameters, stored as float16 |
| input | {given} |
| output | {output} |
| data | `{data}({options})`, {scenes:,} scenes, {worlds} sets of textures |
| command | `{command}` |
| seed | {seed} |
| versions | patchattack {version}, torch {torch}, Python {python}, {device}, {minutes:.0f} min |
| licence | {licence}; no other data or weights went into it |

On {held_out:,} held-out scenes with textures that training never saw:

{table}

It knows procedural scenes and nothing else: do not expect it to work on real images.
"""


def main() -> None:
    """Parse the command line, train, save in half precision, measure what was saved, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--scenes", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adversarial", type=float, metavar="AREA", help="train against a patch of this share")
    parser.add_argument("--mix", choices=(*MIXES, GREEDY_CUTOUT), help="augmentation of a classifier")
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights of the same network to begin with")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", type=Path, help="file that keeps the state, to go on from if it exists")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "assets" / "victims")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name, seed, device = arguments.name, arguments.seed, torch.device(arguments.device)
    if arguments.mix and not isinstance(RECIPES[name], ClassificationRecipe):
        parser.error(f"--mix: expected a classifier, got {name}; its labels could not be mixed")
    if arguments.adversarial is not None and not 0 < arguments.adversarial < 1:
        parser.error(f"--adversarial: expected a fraction of the frame in (0, 1), got {arguments.adversarial}")
    keys = ("steps", "batch", "scenes", "adversarial", "mix")
    chosen = {key: value for key in keys if (value := getattr(arguments, key))}
    recipe = replace(RECIPES[name], **chosen)
    trained, minutes = train(recipe, seed, device, arguments.checkpoint, arguments.start)

    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / f"{name}.safetensors"
    state = {key: value.detach().cpu().contiguous() for key, value in trained.state_dict().items()}
    weights = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    safetensors.torch.save_file(weights, file)
    victim = recipe.victims(recipe.network, file).to(device)
    with torch.no_grad():
        table = recipe.measured(victim, held_out(recipe, device))
    command = f"python scripts/maintain/train_victims.py {name} --steps {recipe.steps} --batch {recipe.batch}"
    command += "".join(f" --{key} {chosen[key]}" for key in ("adversarial", "mix") if key in chosen)
    command += f" --start {arguments.start}" if arguments.start else ""
    kind = type(victim.network)
    card = CARD.format(
        name=name,
        summary=(kind.__doc__ or "").split("\n")[0],
        network=f"{kind.__module__}.{kind.__name__}",
        parameters=sum(p.numel() for p in victim.parameters()),
        given=recipe.given,
        output=recipe.output,
        data=f"{recipe.data.__module__}.{recipe.data.__name__}",
        options=", ".join(f"{key}={value!r}" for key, value in recipe.options.items()),
        scenes=recipe.scenes,
        worlds=-(-recipe.scenes // SCENES_PER_WORLD),
        command=f"{command} --scenes {recipe.scenes} --seed {seed}",
        seed=seed,
        version=patchattack.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        minutes=minutes,
        licence=recipe.licence,
        held_out=recipe.held_out,
        table=table,
    )
    file.with_suffix(".md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
