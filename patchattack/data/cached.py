"""Scenes are read or rendered once."""

from __future__ import annotations

from pathlib import Path

from patchattack.scene import Scene, Source


class CachedSource(Source):
    """A source that keeps what another source gave, as long as there is room.

    Args:
        source: the other source.
        budget: bytes of scenes to keep on the host.
    """

    def __init__(self, source: Source, budget: float) -> None:
        self.source, self.budget = source, budget
        self.classes = source.classes
        self._kept: dict[int, Scene] = {}

    def __len__(self) -> int:
        return len(self.source)

    def original(self, index: int) -> int:
        """As the other source has it."""
        return self.source.original(index)

    def files(self, index: int) -> tuple[Path, ...]:
        """As the other source has them."""
        return self.source.files(index)

    def __getitem__(self, index: int) -> Scene:
        if index in self._kept:
            return self._kept[index]
        scene: Scene = self.source[index]
        self.budget -= scene.nbytes
        if self.budget > 0:
            self._kept[index] = scene
        return scene
