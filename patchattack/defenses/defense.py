"""What a defence is: something between the frames and the victim, which an adaptive attack goes through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from patchattack.errors import InputError

Predict = Callable[[Tensor], Any]  # frames [B, T, 3, H, W] to the output of the task


class Defense(ABC):
    """Answers for a victim by asking it, about other frames or more than once.

    It has no weights and works wherever the frames are. Its answer is the task's own, in the frames' own pixels, so
    that attacks, controls and other defences meet a defended victim as they meet any other.

    Attributes:
        name: what tables call it.
        tasks: which victims it fits.
    """

    name: str
    tasks: tuple[str, ...] = ("classification", "depth", "detection", "flow")

    def check(self, victim: Any) -> None:
        """Meet the victim once, before the work starts.

        Args:
            victim: to be defended; its ``task``, ``name`` and ``differentiable``.

        Raises:
            InputError: the defence does not fit it.
        """
        if victim.task not in self.tasks:
            raise InputError(
                f"defense: expected a victim for {' or '.join(self.tasks)}, where {self.name} is defined, "
                f"got {victim.name} for {victim.task}; leave {self.name} out"
            )

    def randomise(self, generator: torch.Generator | None) -> None:  # noqa: B027 - most have nothing random
        """Let what is random come from ``generator`` until the next call.

        None, the state to begin with, makes the answer one of the frames alone: the same in any batch and every time.
        """

    @abstractmethod
    def __call__(self, frames: Tensor, predict: Predict) -> Any:
        """The defended answer.

        Args:
            frames: ``[B, T, 3, H, W]`` float RGB in [0, 1].
            predict: the victim, or the next defence before it.

        Returns:
            What ``predict`` returns for frames of this size, with a gradient to ``frames`` that an attack can follow.
        """

    def certify(self, frames: Tensor, predict: Predict) -> Tensor | None:
        """``[B]`` int64: the class that no patch can change, -1 where there is none; None of a defence without proof.

        Args:
            frames: ``[B, T, 3, H, W]`` without a patch.
            predict: as in the call.
        """
        return None

    def certify_objects(
        self, frames: Tensor, predict: Predict, objects: Tensor, confidence: float
    ) -> Mapping[str, Tensor] | None:
        """Where a patch may lie, to ``[B, N]`` bool: the objects that it cannot hide; None of a defence without proof.

        Args:
            frames: ``[B, T, 3, H, W]`` without a patch.
            predict: as in the call.
            objects: ``[B, N, 5]`` boxes in pixels and the victim's class; rows of NaN or of class -1 are none.
            confidence: lowest score of a detection.

        Raises:
            InputError: nothing is proved of detections with so low a threshold of the defence's own.
        """
        return None


class Preprocessing(Defense):
    """A defence that changes the frames and asks once. One overrides :meth:`cleaned` and nothing else."""

    @abstractmethod
    def clean(self, images: Tensor) -> Tensor:
        """``images [N, 3, H, W]`` in [0, 1] as the victim shall see them; each depends on itself alone."""

    def __call__(self, frames: Tensor, predict: Predict) -> Any:
        """See :meth:`Defense.__call__`."""
        with torch.autocast(frames.device.type, enabled=False):  # what it does to pixels is not the network's business
            cleaned = self.clean(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return predict(cleaned)


def straight_through(value: Tensor, approximation: Tensor) -> Tensor:
    """``value`` with the gradient of ``approximation`` (BPDA, Athalye et al. 2018, section 4.1).

    An attack that would stop at a gradient that is zero or absent goes on along that of something alike.
    """
    return approximation + (value - approximation).detach()


def check_share(key: str, share: float) -> float:
    """``share`` as it came.

    Raises:
        InputError: it is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InputError(f"{key}: expected a number between 0 and 1, got {share}")
    return share


def check_odd(key: str, side: int) -> int:
    """``side`` as it came.

    Raises:
        InputError: it is not an odd number of pixels from 3 on.
    """
    if side < 3 or side % 2 == 0:
        raise InputError(f"{key}: expected an odd number of pixels from 3 on, got {side}")
    return side
