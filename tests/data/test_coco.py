from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from patchattack.data.coco import Coco
from patchattack.errors import InputError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]


def image(number: int, size: tuple[int, int] = (20, 40)) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}


def annotation(number: int, picture: int, box: list[float], category: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": picture, "bbox": box, "category_id": category, **more}


def write(
    folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], **more: Any
) -> tuple[str, str]:
    """The images, black, and the file; returns what Coco takes."""
    for one in images:
        picture = np.zeros((one["height"], one["width"], 3), np.uint8)
        assert cv2.imwrite(str(folder / one["file_name"]), picture)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES, **more}
    (folder / "instances.json").write_text(json.dumps(content))
    return str(folder), str(folder / "instances.json")


def refusal(*paths: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        Coco(*paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_boxes_are_in_pixels_and_classes_in_the_order_of_their_ids(tmp_path: Path) -> None:
    paths = write(tmp_path, [image(7)], [annotation(1, 7, [10, 5, 10, 10]), annotation(2, 7, [0, 0, 40, 20], 18)])
    source = Coco(*paths, size=(20, 40))
    assert source.classes == ("person", "dog")
    scene = source[0]
    assert scene.frames.shape == (1, 1, 3, 20, 40)
    assert scene.frames.dtype == torch.uint8
    assert scene.boxes is not None
    assert scene.boxes.tolist() == [[[-0.5, -0.5, 39.5, 19.5, 1], [9.5, 4.5, 19.5, 14.5, 0]]]


def test_names_that_json_reads_as_something_else(tmp_path: Path) -> None:
    paths = write(tmp_path, [image(1)], [], categories=[{"id": 1, "name": 30}, {"id": 2, "name": "30 end"}])
    assert Coco(*paths).classes == ("30", "30 end")
    message = refusal(*write(tmp_path, [image(1)], [], categories=[{"id": 1, "name": True}]))
    assert "expected the names of the classes as text, got 'True' for class 0; quote them" in message


def test_boxes_move_with_the_image(tmp_path: Path) -> None:
    scene = Coco(*write(tmp_path, [image(1)], [annotation(1, 1, [10, 5, 10, 10])]), size=(60, 80))[0]
    assert scene.boxes is not None
    assert scene.boxes.tolist() == [[[19.5, 19.5, 39.5, 39.5, 0]]]
    assert scene.frames[0, 0, 0, :, 0].tolist() == [114] * 10 + [0] * 40 + [114] * 10


def test_scenes_of_another_size_and_without_objects_join_in_a_batch(tmp_path: Path) -> None:
    paths = write(tmp_path, [image(1), image(2, (50, 30)), image(3)], [annotation(9, 2, [0, 0, 30, 50])])
    batch = Coco(*paths, size=(64, 64)).__getitems__([2, 1, 0])
    assert batch.frames.shape == (3, 1, 3, 64, 64)
    assert batch.index.tolist() == [2, 1, 0]
    assert batch.boxes is not None
    assert batch.boxes[..., 0].isnan().tolist() == [[True], [False], [True]]


def test_crowds_and_boxes_without_area_are_left_out(tmp_path: Path) -> None:
    annotations = [
        annotation(1, 1, [0, 0, 40, 20], iscrowd=1),
        annotation(2, 1, [5, 5, 0, 3]),
        annotation(3, 1, [10, 5, 10, 10], iscrowd=0),
    ]
    scene = Coco(*write(tmp_path, [image(1)], annotations), size=(20, 40))[0]
    assert scene.boxes is not None
    assert scene.boxes.tolist() == [[[9.5, 4.5, 19.5, 14.5, 0]]]


def test_rounding_is_clipped_and_what_sticks_out_is_refused(tmp_path: Path) -> None:
    scene = Coco(*write(tmp_path, [image(1)], [annotation(1, 1, [0, -0.1, 40.2, 20])]), size=(20, 40))[0]
    assert scene.boxes is not None
    assert scene.boxes[0, 0, :3].tolist() == [-0.5, -0.5, 39.5]
    message = refusal(*write(tmp_path, [image(1)], [annotation(12, 1, [30, 5, 20, 10])]))
    assert "instances.json, annotation 12: expected a box [x, y, width, height] within the 20×40 of 1.png" in message
    assert "got [30, 5, 20, 10]" in message
    assert "annotation 3" in refusal(*write(tmp_path, [image(1)], [annotation(3, 1, [30, 5, -20, 10])]))


def test_images_that_are_missing_or_of_another_size_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write(tmp_path, [image(1), image(2), image(3)], [annotation(5, 3, [0, 0, 40, 20])])
    (tmp_path / "1.png").unlink()
    cv2.imwrite(str(tmp_path / "2.png"), np.zeros((40, 20, 3), np.uint8))
    with caplog.at_level(logging.WARNING):
        source = Coco(*paths)
    assert len(source) == 1
    assert source[0].index.tolist() == [0]
    assert not torch.isnan(source[0].boxes).any()  # type: ignore[arg-type]
    assert "2 image(s) cannot be used, the first is" in caplog.text
    (tmp_path / "1.png").write_bytes((tmp_path / "3.png").read_bytes())
    (tmp_path / "3.png").unlink()
    caplog.clear()
    assert len(Coco(*paths)) == 1
    assert "2.png: expected 20×40 like its labels, got 40×20" in caplog.text


def test_without_any_image_it_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, [image(1)], [])
    message = refusal(str(tmp_path / "elsewhere"), paths[1])
    assert "elsewhere: expected images with boxes, got none; 1 image(s) cannot be used, the first is" in message


@pytest.mark.parametrize(
    "annotations",
    [
        [{"id": 1, "image_id": 1, "caption": "a dog"}],
        [annotation(1, 2, [0, 0, 1, 1])],
        [annotation(1, 1, [0, 0, 1, 1], category=5)],
        [annotation(1, 1, [0, 0, 1])],
        [annotation(1, 1, ["0", "0", "1", "1"])],  # type: ignore[list-item]
    ],
    ids=["a caption", "no such image", "no such category", "three numbers", "text"],
)
def test_other_annotations_are_refused(annotations: list[dict[str, Any]], tmp_path: Path) -> None:
    message = refusal(*write(tmp_path, [image(1)], annotations))
    assert "expected COCO's images, categories and annotations with a bbox" in message
    assert message.endswith("name a file of instances with data.annotations=FILE")


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert "expected a JSON file of annotations" in refusal(str(tmp_path), str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text('{"images": [')
    assert "bad.json: expected a JSON file of annotations" in refusal(str(tmp_path), str(tmp_path / "bad.json"))
    (tmp_path / "list.json").write_text("[1, 2]")
    assert "expected COCO's images" in refusal(str(tmp_path), str(tmp_path / "list.json"))
    assert "got KeyError('name')" in refusal(*write(tmp_path, [image(1)], [], categories=[{"id": 1}]))
    paths = write(tmp_path, [image(1)], [])
    assert "expected data.size=[h,w] of positive numbers, got [0, 0]" in refusal(*paths, size=(0, 0))
