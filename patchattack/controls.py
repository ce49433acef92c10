"""What a patch is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from patchattack.attacks.attack import Textures
from patchattack.patch import Patch, random_texture

# Every condition that tables and figures may have, in their order.
CONDITIONS = {
    "clean": "no patch",
    "grey": "grey card",
    "white": "white card",
    "black": "black card",
    "mean": "card of its mean colour",
    "shuffled": "copy with its texels shuffled",
    "natural": "piece of another scene",
    "photo": "photo of the target",
    "drawn": "best hand-drawn texture",
    "random": "random patch",
    "patch": "optimised patch",
    "coarse": "optimised patch, at half its texels",
}
# How textures are measured once more in the same places, whatever the run's own EoT is: pixels as they are, and after
# the default model of print and camera.
MEDIA = {"digital": "digital, in focus", "photographed": "printed and photographed, by the model"}
_SHORT = {"digital": "digital", "photographed": "photographed by the model"}
IN_MEDIA = ("drawn", "random", "patch")
CONDITIONS |= {
    f"{name}_{medium}": f"{CONDITIONS[name]}, {words}" for medium, words in _SHORT.items() for name in IN_MEDIA
}
# Every other texture a patch must beat.
NO_RIVALS = ("clean", "patch", "coarse", *(f"{name}_{medium}" for medium in MEDIA for name in IN_MEDIA))


def with_article(condition: str) -> str:
    """A condition with its article, in the middle of a sentence."""
    name = CONDITIONS.get(condition, condition)
    article = "" if name.startswith("no ") else "the " if name.startswith("best ") or condition == "patch" else "a "
    return f"{article}{name}"


def always(texture: Tensor) -> Textures:
    """``texture [3, h, w]`` in every repetition."""
    return lambda _: texture


def controls(patch: Patch) -> dict[str, Textures]:
    """Textures that a patch must beat before its pattern can be said to matter, in its resolution.

    Plain cards (grey, white, black and the patch's own mean colour), the patch's own texels in random places, and
    random textures. Every number takes another shuffle and another random texture.
    """
    texture, inside = patch().detach().cpu(), patch.mask.cpu()[0] > 0
    height, width = inside.shape

    def plain(*colour: float) -> Textures:
        return always(torch.tensor(colour).view(3, 1, 1).repeat(1, height, width))

    def shuffle(repetition: int) -> Tensor:
        order = torch.randperm(int(inside.sum()), generator=torch.Generator().manual_seed(repetition))
        result = texture.clone()
        result[:, inside] = texture[:, inside][:, order]
        return result

    return {
        "grey": plain(0.5, 0.5, 0.5),
        "white": plain(1.0, 1.0, 1.0),
        "black": plain(0.0, 0.0, 0.0),
        "mean": plain(*texture[:, inside].mean(dim=1).tolist()),
        "shuffled": shuffle,
        "random": random_patches(patch),
    }


def random_patches(patch: Patch) -> Textures:
    """Another random texture of the patch's resolution in every repetition."""
    height, width = patch.mask.shape[1:]
    return lambda repetition: random_texture(height, width, repetition)
