"""How much a whole step costs over the victim's own forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchattack import seeding
from patchattack.attacks.classification import ClassificationAttack
from patchattack.attacks.flow import FlowAttack
from patchattack.eot.renderer import Draw, Renderer
from patchattack.patch import Patch
from patchattack.regularizers.nps import NonPrintability
from patchattack.regularizers.tv import TotalVariation
from patchattack.scene import Scene, Source
from patchattack.victims.torchvision_classifier import TorchvisionClassifier
from patchattack.victims.torchvision_flow import Raft
from suites.measure import Options, Row, ratio
from suites.scale import Training, default_renderer


class Step:
    """A whole step as the loop takes it: draw, render, victim, loss, regularisers, update; and its floor.

    Args:
        victim: frames to an output.
        loss: of the output, the clean output, the scene and the view, ``[B]``.
        shape: of the frames, ``(B, T, H, W)``.
        device: where to run.
        renderer: EoT; that of a run by default.
    """

    def __init__(
        self,
        victim: nn.Module,
        loss: Callable[..., Tensor],
        shape: tuple[int, int, int, int],
        device: torch.device,
        renderer: Renderer | None = None,
    ) -> None:
        batch, frames, height, width = shape
        self.victim, self.loss, self.device = victim.to(device), loss, device
        images = torch.randint(0, 256, (batch, frames, 3, height, width), dtype=torch.uint8)
        self.scene = Scene(images, torch.arange(batch))
        self.patch = Patch.create(resolution=64).to(device)
        self.renderer = renderer or default_renderer()
        self.regularizers = [TotalVariation(0.001).to(device), NonPrintability(0.1).to(device)]
        self.optimizer = torch.optim.Adam(self.patch.parameters(), lr=0.02)
        self.frames = self.scene.to(device).frames.requires_grad_()
        self.clean = self.reference()
        self.count = 0

    @torch.no_grad()
    def reference(self) -> Any:
        """The victim on the clean frames."""
        return self.victim(self.scene.to(self.device).frames)

    @torch.no_grad()
    def draw(self) -> Draw:
        """EoT of another step."""
        self.count += 1
        numbers = seeding.numbers([(0, 1, self.count, row, 0) for row in range(len(self.scene))])
        return self.renderer.draw(self.scene, self.patch, numbers)

    def gradient(self, draw: Draw, recompute: bool = False) -> None:
        """From the scenes on the host to the patch's gradient; with ``recompute`` the clean output is computed again
        instead of remembered.
        """
        scene = self.scene.to(self.device)
        clean = self.reference() if recompute else self.clean
        texture = self.patch()
        view = self.renderer(texture, self.patch.mask, scene, draw)
        total = self.loss(self.victim(view.frames), clean, scene, view).mean()
        for regularizer in self.regularizers:
            total = total + regularizer.weight * regularizer(texture, self.patch.mask)
        total.backward()

    def whole(self, recompute: bool = False) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.gradient(self.draw(), recompute)
        self.optimizer.step()
        self.patch.project_()

    def floor(self) -> None:
        """The victim's forward pass and its backward pass to the input, on the same batch."""
        torch.autograd.grad(self.victim(self.frames).sum(), self.frames)


class LogitsOnly(nn.Module):
    """torchvision's ResNet-18 on single frames."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.network = resnet18(weights=None).eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """``[B, 1, 3, H, W]`` to logits ``[B, 1000]``."""
        return self.network(frames[:, 0])


class Noise(Source):
    """Images that show nothing."""

    def __init__(self, side: int) -> None:
        self.frames = torch.randint(0, 256, (32, 1, 3, side, side), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Scene:
        return Scene(self.frames[index : index + 1], torch.tensor([index]))


def towards(target: int) -> Callable[..., Tensor]:
    """-log P(target), of logits."""
    return lambda output, *_: -output.log_softmax(dim=1)[:, target]


def rows(options: Options) -> Iterator[Row]:
    """Yield a row for each ratio."""
    batch, side, size = (1, 32, (128, 128)) if options.small else (16, 224, (256, 512))
    pairs = 1 if options.small else 2
    logits = Step(LogitsOnly(), towards(0), (batch, 1, side, side), options.device)
    yield ratio(f"step over victim, ResNet-18, {side}×{side}, batch {batch}", logits.whole, logits.floor, options)
    victim = TorchvisionClassifier("resnet18", weights="random")
    victim.size = (side, side)
    attack = ClassificationAttack("targeted", 0)
    tuned = Training(batch, Noise(side), options.device, attack=attack, victim=victim, tune="auto")
    row = ratio("step with the tuned victim over the plain victim, ResNet-18", tuned, logits.floor, options)
    yield replace(row, note=f"{row.note}, {tuned.job.mode}")
    flow = Step(Raft("small", weights="random"), FlowAttack().loss, (pairs, 2, *size), options.device)
    yield ratio(f"step over victim, RAFT-small, {size[0]}×{size[1]}, batch {pairs}", flow.whole, flow.floor, options)
    yield ratio(
        "cached over recomputed clean flow, RAFT-small", flow.whole, lambda: flow.whole(recompute=True), options
    )
