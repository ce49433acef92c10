"""The Adversarial Robustness Toolbox's ``AdversarialPatchPyTorch`` on the same victim, images, patch and EoT.

Its code as shipped never sets the patch's gradient to zero, so that a step goes by the sum of all gradients before it,
and computes the weights' gradients too. It is measured as it is shipped, and with both mended.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from patchattack import seeding
from patchattack.data.photographs import Photographs
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.patch import Patch
from patchattack.scene import Scene
from patchattack.victims.torchvision_classifier import TorchvisionClassifier
from suites.measure import Options, Row, ratio, seconds
from suites.step import Step, towards

TARGET = 859  # ImageNet's toaster
TEXELS = 64
RATE = 0.02  # of Adam, on both sides; the toolbox's own is 5 of 255
GOAL = 0.8  # of held-out images


class _Images(nn.Module):
    """A victim of images ``[B, 3, H, W]``, which the toolbox asks."""

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        return self.victim(images.unsqueeze(1))


class Toolbox:
    """The toolbox's attack, step by step.

    Args:
        victim: frames to logits; it is copied.
        scale: the patch's side as a fraction of the image's.
        side: of the images, pixels.
        batch: images of a step.
        device: where to run.
        shipped: as it is shipped; else with frozen weights, and the gradient set to zero before each step.
    """

    def __init__(
        self, victim: nn.Module, scale: float, side: int, batch: int, device: torch.device, shipped: bool
    ) -> None:
        from art.attacks.evasion import AdversarialPatchPyTorch
        from art.estimators.classification import PyTorchClassifier

        self.shipped, self.device = shipped, device
        model = _Images(copy.deepcopy(victim).requires_grad_(shipped)).eval()
        classifier: Any = PyTorchClassifier(
            model,
            loss=nn.CrossEntropyLoss(),
            input_shape=(3, side, side),
            nb_classes=1000,
            clip_values=(0.0, 1.0),
            device_type="gpu" if device.type == "cuda" else "cpu",
        )
        self.attack: Any = AdversarialPatchPyTorch(
            classifier,
            rotation_max=10,
            scale_min=0.95 * scale,
            scale_max=1.05 * scale,
            learning_rate=RATE,
            batch_size=batch,
            patch_shape=(3, TEXELS, TEXELS),
            patch_type="square",
            verbose=False,
        )
        self.attack.use_logits = True
        self.goal = torch.zeros(1, 1000, device=device)
        self.goal[:, TARGET] = 1

    def step(self, frames: Tensor) -> None:
        """One, on uint8 ``frames [B, 1, 3, H, W]``."""
        if not self.shipped:
            self.attack._optimizer.zero_grad()
        images = frames[:, 0].to(self.device).float() / 255
        self.attack._train_step(images, self.goal.expand(len(images), -1))

    def texture(self) -> Tensor:
        """``[3, h, w]``."""
        texture: Tensor = self.attack._patch.detach().float()
        return texture


class Ours:
    """Our step with nothing but what the toolbox does: placement alone, from grey, the same optimiser.

    Args:
        victim: frames to logits.
        area: the patch's fraction of the image's.
        side: of the images, pixels.
        batch: images of a step.
        device: where to run.
        seed: of the draws.
    """

    def __init__(
        self, victim: nn.Module, area: float, side: int, batch: int, device: torch.device, seed: int = 0
    ) -> None:
        self.whole = Step(victim, towards(TARGET), (batch, 1, side, side), device, Renderer(Uniform(area=area)))
        self.whole.regularizers = []
        self.whole.patch.set_texture(torch.full((3, TEXELS, TEXELS), 0.5, device=device))
        self.whole.optimizer = torch.optim.Adam(self.whole.patch.parameters(), lr=RATE)
        self.whole.count = seed * 10**6

    def step(self, frames: Tensor) -> None:
        """One, on uint8 ``frames [B, 1, 3, H, W]``."""
        self.whole.scene = Scene(frames, torch.arange(len(frames)))
        self.whole.whole()

    def texture(self) -> Tensor:
        """``[3, h, w]``."""
        return self.whole.patch().detach()


def rows(options: Options) -> Iterator[Row]:
    """Yield the ratios of steps, and the seconds to a success where there are weights and images."""
    batch, side = (2, 32) if options.small else (16, 224)
    victim = TorchvisionClassifier("resnet18", weights="random").to(options.device)
    victim.size = (side, side)
    ours = Ours(victim, 0.09, side, batch, options.device)
    frames = ours.whole.scene.frames
    for what, shipped in (("with frozen weights", False), ("as shipped", True)):
        toolbox = Toolbox(victim, 0.3, side, batch, options.device, shipped)
        name = f"ours over ART {what}, a step, ResNet-18, {side}×{side}, batch {batch}, 9 % of the area"
        yield ratio(name, partial(ours.step, frames), partial(toolbox.step, frames), options)
    if options.weights is None or options.images is None:
        tqdm.write("seconds to a success: left out, as they need --weights and --images")
        return
    yield from race(options)


def race(options: Options) -> Iterator[Row]:
    """Yield the seconds of training until enough held-out images are seen as the target; all contestants in turn."""
    assert options.images is not None
    batch, side, every, most = (2, 64, 1, 1) if options.small else (16, 224, 2, 600)
    victim = TorchvisionClassifier("squeezenet1_0", weights=str(options.weights)).to(options.device)
    victim.size = (side, side)
    frames = Photographs(str(options.images), size=(side, side), labels="none").frames
    assert frames is not None
    with torch.no_grad():
        clean = [victim(Scene(part, torch.arange(len(part))).to(options.device).frames) for part in frames.split(32)]
    winnable = (torch.cat(clean).argmax(dim=1) != TARGET).cpu()
    held_out, training = frames[::3][winnable[::3]], torch.cat([frames[1::3], frames[2::3]])
    spent: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    steps: dict[str, list[int]] = {}
    for seed in range(max(1, options.pairs // 5)):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # which the toolbox draws from
        contestants: dict[str, Ours | Toolbox] = {"ours": Ours(victim, 0.1, side, batch, options.device, seed)}
        for what, shipped in (("with frozen weights and its gradient set to zero", False), ("as shipped", True)):
            contestants[f"ART {what}"] = Toolbox(victim, 0.1**0.5, side, batch, options.device, shipped)
        times, reached = dict.fromkeys(contestants, 0.0), dict.fromkeys(contestants, 0.0)
        taken = dict.fromkeys(contestants, 0)
        for number in tqdm(range(1, most + 1), desc=f"race {seed}", leave=False, disable=None):
            chosen = training[torch.randint(len(training), (batch,))]
            for name, contestant in contestants.items():
                if reached[name] >= GOAL:
                    continue
                taken[name] += 1
                times[name] += seconds(partial(contestant.step, chosen), options.device)
                if number % every == 0:
                    reached[name] = success(victim, contestant.texture(), held_out, 0.1, options.device)
        for name in contestants:
            spent.setdefault(name, []).append(times[name])
            shares.setdefault(name, []).append(reached[name])
            steps.setdefault(name, []).append(taken[name])
    for name, values in spent.items():
        short = min(shares[name])
        note = f"{', '.join(map(str, steps[name]))} steps"
        note = note if short >= GOAL else f"at least: {short:.0%} after {note}"
        yield Row.of(f"{name}: to {GOAL:.0%} of held-out images, SqueezeNet, 10 % of the area", "s", values, note)


@torch.no_grad()
def success(victim: nn.Module, texture: Tensor, frames: Tensor, area: float, device: torch.device) -> float:
    """Share of ``frames [N, 1, 3, H, W]`` that are seen as the target with the patch.

    Each with a draw of its own, which is the same for all textures.
    """
    renderer, patch = Renderer(Uniform(area=area)), Patch.create(resolution=TEXELS).to(device)
    hits = []
    for first, part in zip(range(0, len(frames), 32), frames.split(32), strict=True):
        scene = Scene(part, torch.arange(len(part))).to(device)
        draw = renderer.draw(scene, patch, seeding.numbers([(0, 3, first + row) for row in range(len(part))]))
        shown = renderer(texture.to(device), patch.mask, scene, draw).frames
        hits.append(victim(shown).argmax(dim=1) == TARGET)
    return float(torch.cat(hits).float().mean())
