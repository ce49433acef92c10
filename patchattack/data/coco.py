"""Images with boxes in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from patchattack.data.boxes import BoxedImages, Labelled, clip
from patchattack.errors import InputError


class Coco(BoxedImages):
    """COCO's instances (Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014), or a set in their format.

    The classes are the file's categories in the order of their ids. Crowds, which are no single object, and boxes
    without area, of which COCO has a few, are left out.

    Args:
        root: the folder of the images, such as ``val2017``.
        annotations: the JSON file that belongs to it, such as ``annotations/instances_val2017.json``.
        size: ``(h, w)`` of the frames, into which images are fitted in their proportions, with grey beside them.

    Raises:
        InputError: the file cannot be read or is of another format, a box does not lie within its image, or no image
            can be used.
    """

    def __init__(self, root: str, annotations: str, size: tuple[int, int] = (640, 640)) -> None:
        folder, file = Path(root).expanduser(), Path(annotations).expanduser()
        content = _read(file)
        try:
            categories = sorted(content["categories"], key=lambda category: category["id"])
            names = [category["name"] for category in categories]
            numbers = {category["id"]: number for number, category in enumerate(categories)}
            pictures = {
                one["id"]: (folder / one["file_name"], one["height"], one["width"]) for one in content["images"]
            }
            rows: dict[int, list[list[float]]] = {picture: [] for picture in pictures}
            for one in content["annotations"]:
                x, y, across, down = one["bbox"]
                if one.get("iscrowd") or not (across and down):
                    continue
                path, height, width = pictures[one["image_id"]]
                box = clip(x / width, y / height, (x + across) / width, (y + down) / height)
                if box is None:
                    raise InputError(
                        f"{file}, annotation {one['id']}: expected a box [x, y, width, height] within the "
                        f"{height}×{width} of {path.name}, got {one['bbox']}; correct it or take it away"
                    )
                rows[one["image_id"]].append([*box, numbers[one["category_id"]]])
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(
                f"{file}: expected COCO's images, categories and annotations with a bbox, got {error!r}; "
                "name a file of instances with data.annotations=FILE"
            ) from error
        labelled = [
            Labelled(path, torch.tensor(rows[picture], dtype=torch.float64).view(-1, 5), (height, width))
            for picture, (path, height, width) in pictures.items()
        ]
        super().__init__(labelled, names, size, folder)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: expected a JSON file of annotations, got '{error}'; name one with data.annotations=FILE"
        ) from error
