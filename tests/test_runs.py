"""What a run has seen is not what it is measured on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate

from patchattack import runs
from patchattack.attacks.objects import Objects
from patchattack.data.cached import CachedSource
from patchattack.data.photographs import Photographs
from patchattack.data.world import World
from patchattack.errors import InputError
from patchattack.job import Settings
from patchattack.scene import Source

SETTINGS = Settings(steps=1, batch=1, split=(0.5, 0.2, 0.3))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photographs of which no two are alike."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.png"), pixels)
    return folder


def config(root: Path, **changes: Any) -> dict[str, Any]:
    known = {"_target_": "photographs", "root": str(root), "size": [8, 8], "crop": 1.0, "shuffle": True, "seed": 0}
    return known | changes


def build(data: Any) -> Source:
    kinds: dict[str, Callable[..., Source]] = {"photographs": Photographs, "world": World}
    return kinds[data["_target_"]](**{key: value for key, value in data.items() if key != "_target_"})


def finished(folder: Path, data: dict[str, Any], seen: int | None = None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data, "trainer": {"split": [0.5, 0.2, 0.3]}}))
    (folder / "patch.json").write_text(json.dumps({} if seen is None else {"seen": seen}))
    return folder


def pictures(source: Source, numbers: Any) -> set[bytes]:
    return {source[number].frames.numpy().tobytes() for number in numbers}


def test_a_runs_own_test_part_is_held_out_and_no_more(tmp_path: Path, photographs: Path) -> None:
    data = config(photographs)
    source = build(data)
    for number, seen in enumerate((None, 14)):  # earlier versions did not write it down
        held_out = runs.HeldOut([str(finished(tmp_path / str(number), data, seen))], data, source, build)
        assert held_out(source, SETTINGS) == SETTINGS.split_indices(20)[2] == list(range(14, 20))
        held_out.check(source, range(14, 20))
        with pytest.raises(
            InputError, match=r"got 1 of 2 that it was trained or validated on; give the run's own seed"
        ):
            held_out.check(source, [13, 14])


@pytest.mark.parametrize("size", [[8, 8], [6, 6]], ids=["same size", "another size"])
def test_photographs_in_another_order_are_known_again(
    tmp_path: Path, photographs: Path, caplog: pytest.LogCaptureFixture, size: list[int]
) -> None:
    run = finished(tmp_path / "run", config(photographs, seed=1))
    data = config(photographs, size=size)
    source = build(data)
    found = runs.HeldOut([str(run)], data, source, build)(source, SETTINGS)
    trained = pictures(build(config(photographs, seed=1, size=size)), range(14))
    assert pictures(source, range(14, 20)) & trained  # else there is nothing to leave out
    assert found
    assert pictures(source, found) == pictures(source, range(14, 20)) - trained
    assert f"{6 - len(found)} of 6 test scenes are left out: {run} was trained or validated on them" in caplog.text


def test_where_everything_was_seen_nothing_is_measured(tmp_path: Path, photographs: Path) -> None:
    data = config(photographs)
    source = build(data)
    held_out = runs.HeldOut([str(finished(tmp_path / "run", data, seen=20))], data, source, build)
    with pytest.raises(InputError, match="expected test scenes that no run has seen, got 6 that were all trained"):
        held_out(source, SETTINGS)


def test_scenes_of_another_world_are_new(tmp_path: Path) -> None:
    data = {"_target_": "world", "scenes": 10, "size": [16, 16], "seed": 0, "supersampling": 1}
    source = build(data)
    for seed, expected in ((1, [7, 8, 9]), (0, [9])):
        run = finished(tmp_path / str(seed), data | {"seed": seed, "size": [32, 32]}, seen=9)
        assert runs.HeldOut([str(run)], data, source, build)(source, SETTINGS) == expected


@pytest.mark.parametrize("nested", [False, True], ids=["coco", "one scene of coco"])
def test_photographs_are_known_again_by_another_kind_of_source(tmp_path: Path, photographs: Path, nested: bool) -> None:
    """Trained on boxes of COCO, measured on the same files in a folder."""
    images = [{"id": n, "file_name": f"{n:02}.png", "height": 8, "width": 8} for n in range(20)]
    facts = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    shutil.copytree(photographs, tmp_path / "copy")
    coco: dict[str, Any] = {"_target_": "patchattack.data.coco.Coco", "root": str(tmp_path / "copy")}
    coco |= {"annotations": str(tmp_path / "a.json"), "size": [16, 16]}
    if nested:
        coco = {"_target_": "patchattack.data.one_scene.OneScene", "source": coco, "number": 17, "scenes": 4}
    data = config(photographs, shuffle=False)
    source = build(data)

    def either(given: Any) -> Source:
        return build(given) if given["_target_"] == "photographs" else instantiate(given)

    found = runs.HeldOut([str(finished(tmp_path / "run", coco, seen=16))], data, CachedSource(source, 1e9), either)
    assert found(source, SETTINGS) == ([14, 15, 16, 18, 19] if nested else [16, 17, 18, 19])


@pytest.mark.parametrize(
    "target", ["os.system", "patchattack.data.photographs.os.system", "patchattack.data.coco.Path"]
)
def test_the_data_of_a_stranger_is_not_made(tmp_path: Path, photographs: Path, target: str) -> None:
    data = config(photographs)
    source = build(data)
    run = finished(tmp_path / "run", {"_target_": target, "root": "x"}, seen=20)

    made: list[Any] = []
    assert len(runs.HeldOut([str(run)], data, source, made.append)(source, SETTINGS)) == 6  # type: ignore[arg-type]
    assert not made


def test_data_that_is_gone_is_said(tmp_path: Path, photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = config(photographs)
    source = build(data)
    run = finished(tmp_path / "run", config(tmp_path / "gone"))
    assert len(runs.HeldOut([str(run)], data, source, build)(source, SETTINGS)) == 6
    assert "which scenes it has seen cannot be told, for its data cannot be read" in caplog.text
    (run / "config.yaml").write_text("data: 3")
    with pytest.raises(
        InputError, match=r"expected the folder of a run, whose config\.yaml has data and trainer\.split"
    ):
        runs.HeldOut([str(run)], data, source, build)


def test_an_object_belongs_to_the_scene_that_shows_it() -> None:
    world = World(scenes=6, size=(64, 128), supersampling=1, frames=1, subject="vehicle")

    def find(scene: Any) -> torch.Tensor:  # two objects in every scene but the first
        return torch.tensor([[4.0, 4, 20, 20, 0], [30, 4, 50, 20, 0]])[: 0 if scene.index.item() == 0 else 2]

    objects = Objects(CachedSource(world, 1e9), lambda boxes: boxes[:, 4] == 0, ("vehicle",), find=find)
    assert [objects.original(number) for number in range(len(objects))] == [n for n in range(1, 6) for _ in range(2)]
