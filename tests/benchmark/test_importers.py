from __future__ import annotations

import csv
import gzip
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack.benchmark import patch_file
from patchattack.benchmark.importers import KINDS, Details
from patchattack.benchmark.patch_file import PatchFile
from patchattack.data.pack import Pack, read
from patchattack.errors import InputError

SIZE = Details(size_mm=200)


def picture(path: Path, channels: int = 3) -> Path:
    """6 × 4 pixels of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8))
    return path


def written(kind: str, path: Path, folder: Path, details: Details = SIZE) -> dict[str, PatchFile]:
    """What an importer wrote, read again, by name."""
    return {one.name: one for one in map(patch_file.read, KINDS[kind].write(path, folder, details))}


def test_every_importer_names_source_and_licence() -> None:
    for name, one in KINDS.items():
        assert one.name == name
        assert one.source
        assert one.licence


def test_any_picture_with_what_it_does_not_say(tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", channels=4)
    told = Details(
        size_mm=120, task="flow", victims=["raft_large"], licence="CC0", source="me", goal="reverse", target="zero"
    )
    (one,) = written("picture", path, tmp_path / "out", told).values()
    assert (one.name, one.task, one.victims, one.knowledge) == ("mine", "flow", ["raft_large"], "white box")
    assert (one.goal, one.target, one.licence, one.source) == ("reverse", "zero", "CC0", "me")
    assert one.patch.size_mm == (120, 80)
    bgra = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert bgra is not None
    expected = torch.from_numpy(bgra[..., [2, 1, 0, 3]]).permute(2, 0, 1) / 255
    assert torch.equal(torch.cat([one.patch(), one.patch.mask]), expected)


@pytest.mark.parametrize(
    ("kind", "name", "facts"),
    [
        ("eavise", "object_score.png", ("detection", ["yolov2"], [], "hide", "person")),
        ("t_sea", "v5-combine-scale-1.png", ("detection", ["yolov5"], [], "hide", "person")),
        ("t_sea", "faster_rcnn-baseline-1.png", ("detection", ["faster_rcnn"], [], "hide", "person")),
        ("detection_defenses", "FlowNetCRobust_ilp.png", ("flow", ["FlowNetCRobust"], ["inpainting"], None, None)),
        ("detection_defenses", "RAFT_none.png", ("flow", ["RAFT"], [], None, None)),
        ("flowattack", "Upatch1.png", ("flow", [], [], None, None)),
    ],
)
def test_pictures_of_a_repository(tmp_path: Path, kind: str, name: str, facts: tuple[Any, ...]) -> None:
    picture(tmp_path / "their" / "patches" / name)
    (tmp_path / "their" / "README.md").touch()
    (one,) = written(kind, tmp_path / "their", tmp_path / "out").values()
    assert (one.task, one.victims, one.defenses, one.goal, one.target) == facts
    assert (one.knowledge, one.source) == ("white box", KINDS[kind].source)
    assert one.licence == KINDS[kind].licence
    assert Path(name).stem in one.name
    circle = kind in ("detection_defenses", "flowattack")
    assert (one.patch.mask[0, 0, 0] < 0.5) == circle
    assert one.patch.mask[0, 2, 3] == 1


@pytest.mark.parametrize(
    ("kind", "name", "details", "message"),
    [
        ("picture", "a.png", SIZE, "task, licence, source: expected what the picture does not say"),
        ("picture", "a.png", Details(task="flow", licence="", source=""), "size_mm: expected the patch's width"),
        ("picture", "a.png", Details(-1, "flow", licence="", source=""), "expected millimetres above 0"),
        ("picture", "a.png", Details(5, "text", licence="", source=""), "expected task to be classification"),
        ("eavise", "a.png", Details(), "size_mm: expected the patch's width"),
        ("t_sea", "random.png", SIZE, "expected a name that begins with v2, v3"),
        ("detection_defenses", "RAFT.png", SIZE, "expected NETWORK_DEFENCE.png"),
        ("detection_defenses", "RAFT_jpeg.png", SIZE, "expected NETWORK_DEFENCE.png"),
    ],
)
def test_pictures_that_do_not_say_enough(tmp_path: Path, kind: str, name: str, details: Details, message: str) -> None:
    with pytest.raises(InputError) as error:
        written(kind, picture(tmp_path / name), tmp_path / "out", details)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a picture or a folder of pictures, got none"):
        written("eavise", tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="expected a readable image file"):
        written("eavise", tmp_path / "none.png", tmp_path / "out")


def archive(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(gzip.compress(pickle.dumps(content, protocol=protocol)))
    return path


def images() -> Tensor:
    """Two of 60 × 64 with noise where the patch is."""
    result = torch.zeros(2, 3, 60, 64)
    result[:, :, 5:55, 7:57] = torch.randint(0, 256, (2, 3, 50, 50), generator=torch.Generator().manual_seed(0)) / 255
    return result


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_archive_of_image_net_patch(tmp_path: Path, protocol: int) -> None:
    path = archive(tmp_path / "patches.gz", (images(), torch.tensor([804, 513])), protocol)
    found = written("image_net_patch", path, tmp_path / "out", Details(size_mm=50))
    assert list(found) == ["image_net_patch 804", "image_net_patch 513"]
    one = found["image_net_patch 513"]
    assert torch.equal(one.patch(), images()[1, :, 5:55, 7:57])
    assert (one.target, one.goal, one.task) == ("513", "targeted", "classification")
    assert one.victims == ["alexnet", "resnet18", "squeezenet"]
    assert one.patch.size_mm == (50, 50)


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


class NestedEvil:
    """A tensor whose storage would run something once torch unpickles it."""

    def __reduce__(self) -> Any:
        return (torch.storage._load_from_bytes, (pickle.dumps(Evil(), protocol=2),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "a call of posix mkdir"),
        ((images(), Evil()), "a call of posix mkdir"),
        ((images(), NestedEvil()), "a storage that cannot be read"),
        (images(), "expected ImageNet-Patch's assets/patches.gz"),
        ({"patches": images()}, "the opcode EMPTY_DICT"),
        ((images(), torch.tensor([1])), r"tensors [2, 3, 60, 64] and [1]"),
        ((images()[:, :, :40], torch.tensor([1, 2])), "tensors [2, 3, 40, 64]"),
        ((images() + 1, torch.tensor([1, 2])), "images that are not in [0, 1]"),
        ((images() * torch.nan, torch.tensor([1, 2])), "images that are not in [0, 1]"),
        ((images(), torch.tensor([1.0, torch.nan])), "targets of torch.float32"),
        (("images", "targets"), "something else than two tensors"),
    ],
)
def test_other_archives_are_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        written("image_net_patch", archive(tmp_path / "patches.gz", content), tmp_path / "out")
    assert message in str(error.value)
    assert not Path("executed").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        gzip.compress(b""),
        gzip.compress(b"\x80\x04]"),
        gzip.compress(b"\x80\x04R."),
        gzip.compress(b"\x80\x04h\x05."),
    ],
)
def test_damaged_archives_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "patches.gz").write_bytes(data)
    with pytest.raises(InputError, match=r"patches\.gz: expected ImageNet-Patch's"):
        written("image_net_patch", tmp_path / "patches.gz", tmp_path / "out")
    whole = archive(tmp_path / "patches.gz", (images(), torch.tensor([1, 2]))).read_bytes()
    (tmp_path / "patches.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"patches\.gz: expected ImageNet-Patch's"):
        written("image_net_patch", tmp_path / "patches.gz", tmp_path / "out")


COLUMNS = ["filename", "object_id", "final_shape", "tgt_points", "color_transfer_coeffs", "percentile_coeffs"]
EDGE = 10 * (1 - math.sqrt(0.5))
SQUARE = [[10, 20], [20, 20], [20, 30], [10, 30]]


def table(path: Path, *rows: tuple[str, str, object], columns: list[str] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, (name, shape, points) in enumerate(rows):
            writer.writerow([name, number, shape, json.dumps(points), "", "[[0.5, 0.25]]" if number == 0 else ""])
    return path


@pytest.mark.parametrize(
    ("shape", "points", "square"),
    [
        ("square", SQUARE, (10, 20, 10)),
        ("circle", SQUARE, (10 + 5 - 5 * math.sqrt(0.5), 20 + 5 - 5 * math.sqrt(0.5), 10 * math.sqrt(0.5))),
        ("circle-750.0", SQUARE, (10 + 5 - 5 * math.sqrt(0.5), 20 + 5 - 5 * math.sqrt(0.5), 10 * math.sqrt(0.5))),
        ("diamond-l", [[10, 25], [15, 20], [20, 25], [15, 30]], (12.5, 22.5, 5)),
        (
            "octagon",
            [[10 + EDGE, 20], [20, 20 + EDGE], [20 - EDGE, 30], [10, 30 - EDGE]],
            (11.464466, 21.464466, 7.0710678),
        ),
        ("pentagon", [[10, 25], [20, 25], [20, 30], [10, 30]], (10 + 10 / 6, 20 + 10 / 3, 20 / 3)),
        ("rect-l", [[0, 0], [9.15, 0], [9.15, 12.2], [0, 12.2]], (0, 1.525, 9.15)),
        ("triangle", [[4.5, 0], [9, 7.89], [0, 7.89]], (4.5 - 2.1021314, 7.89 - 4.2042629, 4.2042629)),
        ("up-triangle", [[0, 0], [12.2, 0], [6.1, 10.723]], (6.1 - 2.8534790, 0, 5.7069581)),
    ],
)
def test_the_largest_upright_square_on_a_sign_of_reap(
    tmp_path: Path, shape: str, points: object, square: tuple[float, float, float]
) -> None:
    picture(tmp_path / "vistas" / "a.png")
    path = table(
        tmp_path / "reap.csv", ("a.png", shape, points), ("a.png", "other", points), ("b.png", "circle", points)
    )
    (pack,) = KINDS["reap"].write(path, tmp_path / "pack", Details(frames=tmp_path / "vistas"))
    head, (line,) = read(pack)
    left, top, side = square
    expected = [left, top, left + side, top, left + side, top + side, left, top + side]
    assert line.corners == pytest.approx(expected, abs=1e-5)
    assert (line.object_id, line.alpha, line.beta, line.filename) == ("0", 0.5, 0.25, "frames/a.png")
    assert line.label == shape.removesuffix("-750.0")
    assert head["licence"].startswith("CC BY-NC-SA 4.0")
    assert len(Pack(str(pack))) == 1


def test_a_sign_seen_from_the_side_keeps_its_perspective(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    edges = [[0, 0], [100, 20], [100, 80], [0, 100]]
    path = table(tmp_path / "reap.csv", ("a.png", "circle", edges))
    (pack,) = KINDS["reap"].write(path, tmp_path / "pack", Details(frames=tmp_path))
    corners = torch.tensor(read(pack)[1][0].corners).view(4, 2).numpy()
    to_sign = cv2.getPerspectiveTransform(
        np.array(edges, np.float32), np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    )
    low, high = 0.5 - math.sqrt(0.125), 0.5 + math.sqrt(0.125)
    on_sign = cv2.perspectiveTransform(corners[None].astype(np.float32), to_sign)[0]
    assert on_sign == pytest.approx(np.array([[low, low], [high, low], [high, high], [low, high]]), abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("a.png", "circle", SQUARE)], [*COLUMNS[:3], "points", *COLUMNS[4:]], "expected a table with filename"),
        ([], COLUMNS, "expected a table with filename, object_id, final_shape, tgt_points, got no lines"),
        ([("a.png", "heptagon", SQUARE)], COLUMNS, "line 2: expected a shape of circle"),
        ([("a.png", "circle", SQUARE[:3])], COLUMNS, "line 2: expected 4 tgt_points of a circle"),
        ([("a.png", "circle", [[0, "a"]] * 4)], COLUMNS, "expected a finite number, got 'a'"),
        ([("a.png", "circle", [[0, 0]] * 4)], COLUMNS, "expected tgt_points clockwise around a sign"),
        ([("a.png", "circle", SQUARE[::-1])], COLUMNS, "expected tgt_points clockwise around a sign"),
        ([("none.png", "circle", SQUARE)], COLUMNS, "expected frames for a scene pack, got none"),
        ([("../a.png", "circle", SQUARE)], COLUMNS, "expected files in its folder, got 'frames/../a.png'"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, rows: Any, columns: list[str], message: str) -> None:
    picture(tmp_path / "vistas" / "a.png")
    picture(tmp_path / "a.png")
    with pytest.raises(InputError) as error:
        KINDS["reap"].write(
            table(tmp_path / "reap.csv", *rows, columns=columns), tmp_path / "pack", Details(frames=tmp_path / "vistas")
        )
    assert message in str(error.value)
    assert not (tmp_path / "pack" / "scenes.json").exists()


def test_a_table_needs_its_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frames: expected the folder of Mapillary's pictures"):
        KINDS["reap"].write(table(tmp_path / "reap.csv", ("a.png", "circle", SQUARE)), tmp_path / "pack", Details())
    with pytest.raises(InputError, match=r"expected reap_annotations\.csv"):
        KINDS["reap"].write(tmp_path / "none.csv", tmp_path / "pack", Details(frames=tmp_path))
