"""One victim before the camera, and when a frame counts as won."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchattack.attacks.attack import Attack
from patchattack.errors import InputError, VictimError, one_line
from patchattack.job import Fabric, asking
from patchattack.scene import Scene, Source, View
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.victim import Victim
from patchattack.webcam.frames import to_floats


class SingleScene(Source):
    """A source of one scene: what the camera sees now."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Scene:
        return self.scene


@dataclass(frozen=True)
class Verdicts:
    """What the victim made of several versions of the same frames, the last of which has no patch.

    Attributes:
        outputs: of the victim, ``N`` rows.
        values: ``N`` values of the attack's primary metric; NaN where there is nothing to measure.
        success: ``N`` in [0, 1]; NaN where there is nothing to win.
    """

    outputs: Any
    values: list[float]
    success: list[float]


class CameraVictim:
    """A victim, and the attack's primary metric as a success in each frame.

    A frame's success is :meth:`Attack.success` against the same frame without the patch.

    The scene that the attack gets has the frame without the patch as its clean one and the patch's corners as the
    surface. An attack that chooses objects (:meth:`Attack.scenes`) chooses among those that the victim finds without
    the patch, and the one that overlaps the patch most is the scene's; without one there is nothing to measure.

    Args:
        name: of the victim in tables.
        victim: on its device.
        attack: is copied.
        predict: the victim's output for float frames on the device.
        device: of the victim.
        margin: see above.

    Raises:
        InputError: victim and attack do not fit together.
    """

    def __init__(
        self,
        name: str,
        victim: Victim,
        attack: Attack,
        predict: Callable[[Tensor], Any],
        device: torch.device,
        margin: float = 0.1,
    ) -> None:
        if victim.task != attack.task:
            raise InputError(f"attack: expected a victim for {attack.task}, got {name} for {victim.task}")
        if margin < 0:
            raise InputError(f"margin: expected a fraction of the primary metric of 0 or more, got {margin}")
        self.name, self.frames, self.predict, self.device, self.margin = name, victim.frames, predict, device, margin
        nothing = torch.zeros(1, self.frames, 3, 16, 16, dtype=torch.uint8)
        scene = Scene(nothing, torch.zeros(1).long(), surface=torch.zeros(1, self.frames, 4, 2))
        self.attack = attack.bound(victim, SingleScene(scene))
        self.metric = self.attack.metric_info[self.attack.primary_metric[0]]

    @property
    def rule(self) -> str:
        """When a frame counts as won, in words."""
        return self.attack.success_in_words(self.margin)

    @torch.no_grad()
    def outputs(self, frames: Tensor) -> Any:
        """The victim's output for ``frames [N, T, 3, H, W]`` uint8, or float in [0, 1].

        Raises:
            VictimError: the victim fails.
        """
        return self._ask(frames)[1]

    @torch.no_grad()
    def judge(self, frames: Tensor, coverage: Tensor, corners: Tensor) -> Verdicts:
        """The victim on versions of the same frames.

        Args:
            frames: ``[N, T, 3, H, W]`` uint8, or float in [0, 1]; the last version has no patch.
            coverage: ``[1, T, 1, H, W]`` uint8, or float in [0, 1], how much of a pixel shows the patch.
            corners: ``[1, T, 4, 2]`` of the patch.

        Raises:
            VictimError: the victim fails.
        """
        frames, outputs = self._ask(frames)
        count = len(frames)
        clean = outputs[count - 1 :]
        scene = self._scene(Scene(frames[count - 1 :], torch.zeros(1).long(), surface=corners.float()), clean)
        if scene is None:
            return Verdicts(outputs, [float("nan")] * count, [float("nan")] * count)
        scene, coverage = scene.to(self.device), to_floats(coverage.to(self.device))
        measured = []
        for row in range(count):
            view = View(frames[row : row + 1], coverage, corners)
            metrics = self.attack.metrics(outputs[row : row + 1], clean, scene, view)
            measured.append({key: float(value) for key, value in metrics.items()})
        return Verdicts(
            outputs,
            [metrics[self.attack.primary_metric] for metrics in measured],
            [float(self.attack.success(metrics, measured[-1], self.margin)) for metrics in measured],
        )

    def _ask(self, frames: Tensor) -> tuple[Tensor, Any]:
        """The frames as the victim gets them, and its output."""
        height, width = frames.shape[-2:]
        try:
            frames = to_floats(frames.to(self.device))
            return frames, self.predict(frames)
        except (InputError, VictimError):
            raise
        except Exception as error:  # of somebody else's network
            memory = isinstance(error, MemoryError) or re.search("(out of|not enough|allocate) memory", str(error))
            hint = f"; ask about smaller frames than {height} × {width}: size=[height,width]" if memory else ""
            raise VictimError(
                f"victim {self.name}: expected an output for {len(frames)} scenes at once, got "
                f"{type(error).__name__}: {one_line(error)}{hint}"
            ) from error

    def _scene(self, scene: Scene, clean: Any) -> Scene | None:
        """The scene as the attack wants it, with the object that overlaps the patch most; None where there is none."""
        try:
            chosen = self.attack.scenes(SingleScene(scene), lambda _: clean)
        except InputError:  # nothing in sight that could be attacked
            return None
        scenes = [chosen[number] for number in range(len(chosen))]
        if scenes[0].boxes is None:
            return scenes[0]
        assert scene.surface is not None
        best = max(scenes, key=lambda one: _overlap(one, scene.surface))
        return best if _overlap(best, scene.surface) > 0 else None


def select_victims(victims: Mapping[str, Victim], victim: Victim) -> dict[str, Victim]:
    """The victims to cycle through: those that are named, or the run's own; of an ensemble each member."""
    chosen = dict(victims) or {victim.name: victim}
    return {
        name: member
        for key, one in chosen.items()
        for name, member in (one.members.items() if isinstance(one, Ensemble) else [(key, one)])
    }


def camera_victims(victims: Mapping[str, Victim], attack: Attack, fabric: Fabric, margin: float) -> list[CameraVictim]:
    """Each victim as one before the camera, on the fabric's device and in its precision."""
    return [
        CameraVictim(name, victim, attack, asking(victim.to(fabric.device), fabric), fabric.device, margin)
        for name, victim in victims.items()
    ]


def _overlap(scene: Scene, surface: Tensor | None) -> float:
    """Intersection over union of the scene's first box and the upright one around the patch in frame 0."""
    from torchvision.ops import box_iou

    assert scene.boxes is not None
    assert surface is not None
    around = torch.cat([surface[0, 0].amin(dim=0), surface[0, 0].amax(dim=0)]).to(scene.boxes)
    return float(box_iou(scene.boxes[0, :1, :4], around[None]))
