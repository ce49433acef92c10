"""The digital patch where the camera has seen the printed one: drawn, and predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchattack import seeding
from patchattack.eot.renderer import Renderer
from patchattack.patch import Patch
from patchattack.scene import Scene
from patchattack.webcam.camera_victim import CameraVictim
from patchattack.webcam.counterfactual import Stencil, coverage
from patchattack.webcam.frames import to_array, to_floats, to_tensor
from patchattack.webcam.records import Kept


class KnownCorners:
    """The placement of a patch whose corners are known.

    Args:
        corners: ``[1, T, 4, 2]`` pixels.
    """

    def __init__(self, corners: Tensor) -> None:
        self.corners = corners

    def draw(self, scene: Scene, patch: Patch, numbers: Tensor) -> Tensor:
        """The corners, whatever the numbers."""
        return self.corners

    def on_surface(self, scene: Scene) -> bool:
        """Nothing is known of what stands in front of it."""
        return False


@dataclass(frozen=True)
class Prediction:
    """Of one shot: the primary metric with the digital patch, and the success (see :class:`CameraVictim`)."""

    value: float
    success: float


@torch.no_grad()
def render(frames: Tensor, corners: np.ndarray, patch: Patch) -> Tensor:
    """The digital patch in ``frames``, by the renderer that trains it, without appearance and camera.

    Args:
        frames: ``[1, T, 3, H, W]`` in [0, 1].
        corners: ``[T, 4, 2]`` pixels.
        patch: on the frames' device.

    Returns:
        ``[1, T, 3, H, W]`` in [0, 1].
    """
    renderer = Renderer(KnownCorners(torch.from_numpy(corners)[None]))
    scene = Scene(frames, torch.zeros(1, dtype=torch.long))
    return renderer(patch(), patch.mask, scene, renderer.draw(scene, patch, seeding.numbers([[0]]))).frames


def draw_patch(images: list[np.ndarray], corners: np.ndarray, patch: Patch) -> list[np.ndarray]:
    """``T`` images ``[H, W, 3]`` uint8 RGB with the digital patch at ``corners [T, 4, 2]``."""
    rendered = render(to_floats(to_tensor(images)[None]), corners, patch)[0]
    return [to_array((frame * 255).round().byte()) for frame in rendered]


def predict(
    shots: Iterable[Kept], trials: Sequence[CameraVictim], patch: Patch, stencil: Stencil
) -> Iterator[tuple[int, Prediction]]:
    """What the digital patch does at the places where the printed one was measured, shot by shot: frame and prediction.

    It is rendered into the inpainted frames, so that everything but the patch's own pixels is as the camera saw it.

    Raises:
        InputError: a frame is gone.
        VictimError: the victim fails.
    """
    named = {trial.name: trial for trial in trials}
    for shot in shots:
        images = shot.images()
        without = [stencil.replace(*one) for one in zip(images, shot.corners, shot.whites, strict=True)]
        clean = to_floats(to_tensor([one.inpainted for one in without])[None])
        both = torch.cat([render(clean, shot.corners, patch), clean])
        verdicts = named[shot.record.victim].judge(both, coverage(without), torch.from_numpy(shot.corners)[None])
        yield shot.record.frame, Prediction(verdicts.values[0], verdicts.success[0])
