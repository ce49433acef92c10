"""What a network must offer to be attacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.errors import InputError


class Victim(nn.Module, ABC):
    """A network under test: frozen, in eval mode for ever, differentiable with respect to its input.

    An adapter builds its network, hands it to this constructor and maps frames to the output of its task. It owns
    normalising, resizing, padding and un-padding; nobody else does any of it.

    Args:
        network: the network with its weights; they are frozen here.
        name: what tables and files call this victim.

    Attributes:
        network: the network itself.
        task: what the output is, such as "flow"; set by the class of the task.
        frames: how many frames of a scene the victim takes; set by the class of the task.
    """

    task: str
    frames: int
    network: nn.Module

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Victim:
        """Stay in eval mode: statistics and dropout of a network under test do not change."""
        return super().train(False)

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
        if frames.ndim != 5 or frames.shape[1:3] != (2, 3) or not frames.is_floating_point():
            raise InputError(
                f"victim {self.name}: expected pairs of frames [B, 2, 3, H, W] as floats in [0, 1], "
                f"got {list(frames.shape)} of {frames.dtype}; choose data with two frames per scene"
            )
        height, width = frames.shape[-2:]
        rows, columns = (self._missing(side) for side in (height, width))
        # Half on each side, as RAFT's InputPadder does: no border of the frame is worse off than the one opposite.
        top, left = rows // 2, columns // 2
        padded = F.pad(frames.flatten(0, 1), (left, columns - left, top, rows - top), mode="replicate")
        flow = self.flow(padded.unflatten(0, (-1, 2)))
        return flow[..., top : top + height, left : left + width].to(frames.dtype)

    def _missing(self, side: int) -> int:
        """How many pixels ``side`` lacks."""
        return -(-max(side, self.minimum) // self.multiple) * self.multiple - side
