"""One scene of another source, again and again: what a fixed camera sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from patchattack.errors import InputError
from patchattack.scene import Scene, Source


class OneScene(Source):
    """A patch for one scene. Training, validation and test share it and differ in their draws of EoT alone.

    Args:
        source: where the scene comes from.
        number: of the scene in it.
        scenes: how often it comes.

    Raises:
        InputError: there is no such scene.
    """

    def __init__(self, source: Source, number: int = 0, scenes: int = 32) -> None:
        if scenes < 1 or not 0 <= number < len(source):
            raise InputError(
                f"data=one_scene: expected a number from 0 to {len(source) - 1} and scenes >= 1, got "
                f"number={number} and scenes={scenes}"
            )
        self.scene, self.scenes, self.classes = source[number], scenes, source.classes
        self._files = source.files(number)

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.scenes:
            raise IndexError(index)
        return replace(self.scene, index=torch.tensor([index]))

    def files(self, index: int) -> tuple[Path, ...]:
        """Those of the one scene."""
        return self._files
