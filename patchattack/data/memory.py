"""Scenes are read or rendered once."""

from __future__ import annotations

from torch.utils.data import Dataset

from patchattack.scene import Scene


class Memory(Dataset[Scene]):
    """A source that keeps what another source gave, as long as there is room.

    Args:
        source: the other source.
        budget: bytes of scenes to keep on the host.
    """

    def __init__(self, source: Dataset[Scene], budget: float) -> None:
        self.source, self.budget = source, budget
        self._kept: dict[int, Scene] = {}

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Scene:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Scene:
        """The scenes at ``indices`` as one batch."""
        return Scene.concatenate([self._one(index) for index in indices])

    def _one(self, index: int) -> Scene:
        if index in self._kept:
            return self._kept[index]
        scene: Scene = self.source[index]
        self.budget -= scene.nbytes
        if self.budget > 0:
            self._kept[index] = scene
        return scene
