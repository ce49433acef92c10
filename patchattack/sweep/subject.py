"""What is evaluated: any image as a patch."""

from __future__ import annotations

from pathlib import Path

from patchattack.errors import InputError
from patchattack.patch import Patch, read_facts, read_image, resize

LONGEST = 512  # texels along the longer side: a photograph has more than any frame shows


def load_image(path: Path, width_mm: float) -> Patch:
    """A patch from an image file: with the JSON that a run has written beside it, or without.

    Args:
        path: of the image, whose alpha is the mask. Without a JSON it keeps its proportions.
        width_mm: on paper, where there is no JSON.

    Raises:
        InputError: it is no image, the JSON beside it is not this patch's, or there is no such size.
    """
    if path.with_suffix(".json").exists():
        patch = Patch.load(path)
        texels = read_facts(path).get("texels", list(patch.mask.shape[1:]))
        if texels != list(patch.mask.shape[1:]):
            raise InputError(
                f"{path.with_suffix('.json')}: expected the JSON of this patch of {list(patch.mask.shape[1:])} texels, "
                f"got that of one of {texels}; keep patch.png and patch.json of one run together"
            )
        return patch
    image = read_image(path, "patch")
    height, width = image.shape[1:]
    scale = min(1.0, LONGEST / max(height, width))
    if scale < 1:
        image = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    return Patch(image[:3], image[3:], (width_mm, width_mm * height / width))
