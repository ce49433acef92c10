"""What attacks on single images have in common: one classifier, scenes of the test part, and a goal."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from patchattack.attacks.attack import Attack
from patchattack.attacks.classification import ClassificationAttack
from patchattack.errors import InputError
from patchattack.job import Settings
from patchattack.scene import Scene
from patchattack.victims.victim import Victim


def check_victim(victim: Victim) -> None:
    """Refuse what is no single image classifier.

    Raises:
        InputError: it is for another task, or an ensemble.
    """
    given = None
    if victim.task != "classification":
        given = f"{victim.name} for {victim.task}"
    elif len(victim.names) != 1:
        given = f"the ensemble {victim.name}"
    if given is not None:
        raise InputError(
            f"victim: expected one image classifier, got {given}; choose one, such as victim=classifier_residual"
        )


def choose_scenes(settings: Settings, scenes: int, images: int) -> list[int]:
    """Numbers of ``images`` scenes, evenly spread over the test part that a patch is measured on.

    Raises:
        InputError: there are not as many.
    """
    if not isinstance(images, int) or images < 1:
        raise InputError(f"images: expected an integer >= 1, got {images}")
    indices = replace(settings, test_scenes=images).split_indices(scenes)[2]
    if len(indices) < images:
        raise InputError(
            f"images: expected at most {len(indices)}, which the test part of {scenes} scenes has, got {images}; "
            "give more scenes, or more of them to the test by trainer.split=[0.01,0.01,0.98]"
        )
    return indices


class Goal(ClassificationAttack):
    """What an attack on single images is after: the goals of the classification patch, scene by scene.

    It is bound to a victim and to scenes, as any attack is.
    """

    @classmethod
    def of(cls, attack: Attack) -> Goal:
        """That of a patch's attack.

        Raises:
            InputError: it is for another task.
        """
        if not isinstance(attack, ClassificationAttack):
            raise InputError(f"attack: expected attack=classification, got one for {attack.task}; leave it out")
        return cls(attack.goal, attack.target)

    def aim(self, clean: Tensor, scene: Scene) -> Tensor:
        """``[B]`` the class to go to, or for ``goal=untargeted`` away from, by the logits ``clean [B, K]``."""
        return self._aim(clean, scene)

    def winnable(self, clean: Tensor, scene: Scene) -> Tensor:
        """``[B]`` bool: the victim gets the scene right without the attack, and it is not of the target class."""
        truth = self._truth(clean, scene)
        right = clean.argmax(dim=1) == truth
        return right if self.goal == "untargeted" else right & (self.aim(clean, scene) != truth)

    def succeeds(self, predictions: Tensor, aim: Tensor) -> Tensor:
        """bool, for ``predictions`` of any shape that :meth:`aim` broadcasts to."""
        return predictions != aim if self.goal == "untargeted" else predictions == aim
