"""What a network must offer to be attacked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.devices import constant
from patchattack.errors import InputError
from patchattack.names import class_names

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of red, green and blue
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Victim(nn.Module, ABC):
    """A network under test: frozen, always in eval mode, differentiable with respect to its input.

    An adapter builds its network, hands it to this constructor and maps frames to the output of its task. It owns
    normalising, resizing, padding and un-padding; nobody else does any of it.

    Args:
        network: the network with its weights; they are frozen here.
        name: what tables and files call this victim.

    Attributes:
        network: the network itself.
        task: what the output is, such as "flow"; set by the class of the task.
        frames: how many frames of a scene the victim takes; set by the class of the task.
        classes: names of what it tells apart, in the order of its outputs; empty where it tells nothing apart.
        differentiable: its output has a gradient to the frames; False for a black-box (query-only) victim.
    """

    task: str
    frames: int
    network: nn.Module
    classes: tuple[str, ...] = ()
    differentiable: bool = True

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = network.requires_grad_(False).eval()

    @property
    def names(self) -> list[str]:
        """Names of the networks that it is made of."""
        return [self.name]

    def train(self, mode: bool = True) -> Victim:
        """Stay in eval mode: statistics and dropout of a network under test do not change."""
        return super().train(False)

    @contextmanager
    def randomised(self, generator: torch.Generator) -> Iterator[None]:
        """Inside, what is random in the victim comes from ``generator``; else it takes all that the victim could do."""
        self.randomise(generator)
        try:
            yield
        finally:
            self.randomise(None)

    def randomise(self, generator: torch.Generator | None) -> None:
        """What :meth:`randomised` calls at its beginning and, with None, at its end; most have nothing random."""

    def check(self, frames: Tensor) -> Tensor:
        """``frames`` as they came.

        Raises:
            InputError: they are not ``[B, T, 3, H, W]`` floats with as many frames as the victim takes.
        """
        if frames.ndim != 5 or frames.shape[1:3] != (self.frames, 3) or not frames.is_floating_point():
            raise InputError(
                f"victim {self.name}: expected frames [B, {self.frames}, 3, H, W] as floats in [0, 1], "
                f"got {list(frames.shape)} of {frames.dtype}; choose data with {self.frames} frame(s) per scene"
            )
        return frames

    @abstractmethod
    def forward(self, frames: Tensor) -> Any:
        """The prediction for ``frames [B, T, 3, H, W]``, float RGB in [0, 1], with gradient to them."""


class FlowVictim(Victim):
    """A network for optical flow. An adapter overrides :meth:`flow` and nothing else::

        class MyFlow(FlowVictim):
            def __init__(self, weights: str) -> None:
                network = MyNetwork()
                load_weights(network, weights)
                super().__init__(network, "my_flow", multiple=32)

            def flow(self, frames: Tensor) -> Tensor:
                first, second = (frames * 255).unbind(1)
                return self.network(first, second)

    Args:
        network: the network with its weights.
        name: what tables and files call this victim.
        multiple: both sides of the network's input are divisible by it.
        minimum: the smallest side of the network's input, pixels.
    """

    task = "flow"
    frames = 2

    def __init__(self, network: nn.Module, name: str, multiple: int = 1, minimum: int = 1) -> None:
        super().__init__(network, name)
        self.multiple, self.minimum = multiple, minimum

    @abstractmethod
    def flow(self, frames: Tensor) -> Tensor:
        """``[B, 2, H, W]`` pixels from frame 0 to frame 1, for padded ``frames [B, 2, 3, H, W]`` in [0, 1]."""

    def forward(self, frames: Tensor) -> Tensor:
        """Flow from the first frame to the second.

        Args:
            frames: ``[B, 2, 3, H, W]`` float RGB in [0, 1], any size.

        Returns:
            ``[B, 2, H, W]`` pixels, x right and y down, in the frames' own precision, under autocast too.

        Raises:
            InputError: the frames have another shape or are not floats.
        """
        height, width = self.check(frames).shape[-2:]
        padded, top, left = pad_to(frames.flatten(0, 1), self.multiple, self.minimum)
        flow = self.flow(padded.unflatten(0, (-1, 2)))
        return flow[..., top : top + height, left : left + width].to(frames.dtype)


class ClassificationVictim(Victim):
    """An image classifier. An adapter overrides :meth:`logits`.

    Args:
        network: the network with its weights.
        name: what tables and files call this victim.
        classes: names in the order of the logits.
        size: ``(h, w)`` of the network's input, to which other frames are resized; None takes frames as they are.
        mean: of red, green and blue, which the network's input has subtracted.
        std: which it is divided by then.
    """

    task = "classification"
    frames = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        name: str,
        classes: Sequence[str],
        size: tuple[int, int] | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(network, name)
        self.classes, self.size = class_names(classes, f"victim {name}"), size
        _normalising(self, mean, std)

    def logits(self, images: Tensor) -> Tensor:
        """``[B, K]`` for normalised ``images [B, 3, h, w]`` of the network's size."""
        return self.network(images)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits ``[B, K]`` of ``frames [B, 1, 3, H, W]``, in the frames' own precision."""
        images = self.check(frames)[:, 0]
        if self.size is not None:
            images = resize(images, self.size)
        return self.logits((images - self.mean) / self.std).to(frames.dtype)


class DepthVictim(Victim):
    """A network for monocular depth. An adapter overrides :meth:`depth`.

    Args:
        network: the network with its weights.
        name: what tables and files call this victim.
        is_metric: the output is metres; otherwise it is inverse depth up to scale and shift, larger where nearer.
        depth_range: nearest and farthest metres that it can express, for a metric victim.
        size: ``(h, w)`` of the network's input, to which other frames are resized; None pads frames to ``multiple``.
        multiple: both sides of the network's input are divisible by it.
        mean: of red, green and blue, which the network's input has subtracted.
        std: which it is divided by then.
    """

    task = "depth"
    frames = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        name: str,
        is_metric: bool,
        depth_range: tuple[float, float] = (0.0, math.inf),
        size: tuple[int, int] | None = None,
        multiple: int = 1,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(network, name)
        self.is_metric, self.depth_range, self.size, self.multiple = is_metric, depth_range, size, multiple
        _normalising(self, mean, std)

    def depth(self, images: Tensor) -> Tensor:
        """``[B, 1, h', w']`` of any size for normalised ``images [B, 3, h, w]`` of the network's size."""
        return self.network(images)

    def forward(self, frames: Tensor) -> Tensor:
        """Metres, or relative inverse depth, ``[B, 1, H, W]`` of ``frames [B, 1, 3, H, W]``, in their precision."""
        images = self.check(frames)[:, 0]
        height, width = images.shape[-2:]
        if self.size is not None:
            depth = self.depth((resize(images, self.size) - self.mean) / self.std)
            return resize(depth, (height, width)).to(frames.dtype)
        padded, top, left = pad_to(images, self.multiple)
        depth = resize(self.depth((padded - self.mean) / self.std), (padded.shape[-2], padded.shape[-1]))
        return depth[..., top : top + height, left : left + width].to(frames.dtype)


class DetectionVictim(Victim):
    """An object detector before non-maximum suppression. An adapter overrides :meth:`candidates`.

    Args:
        network: the network with its weights.
        name: what tables and files call this victim.
        classes: names in the order of the scores.
        size: ``(h, w)`` of the network's input, into which frames are fitted in their proportions, with grey beside
            them; None pads frames to ``multiple``.
        multiple: both sides of the network's input are divisible by it.
    """

    task = "detection"
    frames = 1

    def __init__(
        self,
        network: nn.Module,
        name: str,
        classes: Sequence[str],
        size: tuple[int, int] | None = None,
        multiple: int = 32,
    ) -> None:
        super().__init__(network, name)
        self.classes, self.size, self.multiple = class_names(classes, f"victim {name}"), size, multiple

    @abstractmethod
    def candidates(self, images: Tensor) -> Tensor:
        """``[B, A, 4 + K]``: left, top, right and bottom, then a score in [0, 1] for each class.

        Boxes are in pixels of ``images [B, 3, h, w]`` (in [0, 1]), which spans ``[0, w] × [0, h]`` here. Where a head
        has an objectness, the score is its product with the class's probability.
        """

    def forward(self, frames: Tensor) -> Tensor:
        """Candidates ``[B, A, 4 + K]`` of ``frames [B, 1, 3, H, W]``, in pixels of the frames (a centre is an integer).

        No candidate is left out: whoever reads them applies a threshold and non-maximum suppression.
        """
        images = self.check(frames)[:, 0]
        scale, grey = 1.0, 114 / 255  # what YOLO pads with
        height, width = images.shape[-2:]
        if self.size is not None:
            scale = min(self.size[0] / height, self.size[1] / width)
            images = resize(images, (round(height * scale), round(width * scale)))
            missing = [full - side for full, side in zip(self.size, images.shape[-2:], strict=True)]
        else:
            missing = [-side % self.multiple for side in (height, width)]
        top, left = (side // 2 for side in missing)
        images = F.pad(images, (left, missing[1] - left, top, missing[0] - top), value=grey)
        found = self.candidates(images).to(frames.dtype)
        shift = constant((left, top, left, top), found.dtype, found.device)
        return torch.cat([(found[..., :4] - shift) / scale - 0.5, found[..., 4:]], dim=-1)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``images [B, C, h, w]`` at ``size``, antialiased; as they are where that is their size."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def check_side(side: int, multiple: int) -> int:
    """``side`` as it came.

    Raises:
        InputError: it is shorter than ``multiple``.
    """
    if side < multiple:
        raise InputError(f"victim.side: expected at least {multiple} pixels, got {side}; null takes the training's")
    return side


def in_proportion(images: Tensor, side: int, multiple: int) -> Tensor:
    """``images [B, 3, H, W]`` whose shorter side is ``side``, both sides rounded to a multiple of ``multiple``."""
    shorter = min(images.shape[-2:])
    height, width = (max(round(side * n / shorter / multiple), 1) * multiple for n in images.shape[-2:])
    return resize(images, (height, width))


def pad_to(images: Tensor, multiple: int, minimum: int = 1) -> tuple[Tensor, int, int]:
    """``images [N, C, H, W]`` with their edges repeated until both sides fit, and the rows above and columns left.

    Half on each side, as RAFT's InputPadder does: no border of the frame is worse off than the one opposite.
    """
    rows, columns = (-(-max(side, minimum) // multiple) * multiple - side for side in images.shape[-2:])
    top, left = rows // 2, columns // 2
    return F.pad(images, (left, columns - left, top, rows - top), mode="replicate"), top, left


def _normalising(victim: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        victim.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
