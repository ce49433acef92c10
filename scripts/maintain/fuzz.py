"""Give every reader of users' files thousands of damaged ones: each must be read, or refused by an InputError.

    python scripts/maintain/fuzz.py [count=2000] [seed=0] [reader ...]

An input is a valid set of files of which one is mutated, by bytes or by what its format is made of. What ends in
anything else is printed with its number, and ``fuzz.write(name, seed, number, folder)`` makes that input again. A
reader of your own is a line more in ``READERS``.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import logging
import random
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from patchattack import pictures
from patchattack.data.coco import Coco
from patchattack.data.depth_folder import DepthFolder
from patchattack.data.frames import Frames
from patchattack.data.kitti import Kitti
from patchattack.data.photographs import Photographs
from patchattack.data.yolo import Yolo
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.regularizers.nps import load_palette
from patchattack.scene import Source

VALUES: tuple[Any, ...] = (
    *(
        float("nan"),
        float("inf"),
        -1,
        0,
        1,
        3,
        0.5,
        1e308,
        10**400,
        -(10**400),
        2**31,
        2**64,
        True,
        None,
        "",
        "x",
        "30",
    ),
    *("1e309", "a\0b", "\ud800", "A" * 10_000, "../../etc/passwd", "$" + "{oc.env:HOME}", [], {}, [[]], [None], [1, 2]),
    *([float("nan"), 1], ["a", "b"], {"a": 1}, {"_target_": "os.system"}),
)
WORDS = (
    *("nan", "-inf", "-1", "0", "1e309", "", "abc", "9" * 5000, "ü", "\0", "0x10", "1_000", '"', "'", ",", ",,,", "\t"),
    *("!!python/object/apply:os.system [true]", "&a [*a]", "{", "[" * 3000, "true", "~", "=1+1", "٣", "#", "- " * 3000),
)
NUMBERS = (0, 1, 17, 5000, 40_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def of_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few bytes flipped, cut away, repeated or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, n = rng.randrange(len(changed) + 1), rng.choice((1, 4, 64))
        act = rng.randrange(7)
        if act == 0:
            del changed[at:]
        elif act == 1:
            del changed[at : at + n]
        elif act == 2:
            changed[at:at] = rng.randbytes(n)
        elif act == 3:
            changed[at:at] = changed[at : at + n]
        elif act == 4:
            changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS))
        elif changed:
            for _ in range(n):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def of_lines(rng: random.Random, data: bytes) -> bytes:
    """Lines doubled, lost or given other words."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, act = rng.randrange(len(lines) + 1), rng.randrange(5)
        if act == 0:
            del lines[at : at + 1]
        elif act == 1:
            lines.insert(at, rng.choice(lines or [""]))
        elif act == 2 or at == len(lines):
            lines.insert(at, rng.choice(WORDS))
        else:
            mark = "," if "," in lines[at] else " "
            words = lines[at].split(mark)
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            lines[at] = mark.join(words)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def of_json(rng: random.Random, data: bytes) -> bytes:
    """Values replaced, lost or repeated at any depth."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        parent: Any = None
        key: Any = None
        node = value
        while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.8):
            parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = node[key]
        act, other = rng.randrange(6), copy.deepcopy(rng.choice(VALUES))
        if parent is None:
            value = other
        elif act == 0:
            del parent[key]
        elif act == 1:
            parent[key] = [node] * rng.choice((0, 2, 100))
        elif act == 2 and isinstance(node, int | float):
            parent[key] = float(max(-1e300, min(node, 1e300))) * rng.choice((-1, 0, 1e-9, 1e6, 1e300))
        else:
            parent[key] = other
    text = json.dumps(value) if rng.random() < 0.98 else "[" * 100_000
    return text.encode("utf-8", "surrogatepass")


def of_png(rng: random.Random, data: bytes) -> bytes:
    """Chunks changed, with right checksums."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], bytearray(data[at + 8 : at + 8 + length])))
        at += 12 + length
    which, act = rng.randrange(len(chunks)), rng.randrange(6)
    kind, body = chunks[which]
    if act == 0:
        del chunks[which]
    elif act == 1:
        chunks.insert(which, chunks[which])
    elif act in (2, 3):
        place, head = rng.choice((0, 4, 8, 9, 12)), chunks[0][1]
        head[place : place + (4 if place < 8 else 1)] = (
            struct.pack(">I", rng.choice(NUMBERS)) if place < 8 else bytes([rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))])
        )
    elif act == 4:
        new = rng.choice((b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"PLTE", b"tRNS", b"gAMA", b"IDAT"))
        filling = rng.choice((b"", b"a\0\0" + zlib.compress(bytes(10**6)), bytes(9), bytes(range(256))))
        chunks.insert(max(which, 1), (new, bytearray(filling)))
    else:
        chunks[which] = (kind, bytearray(of_bytes(rng, bytes(body))))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


BY_ENDING = {".json": of_json, ".png": of_png, ".csv": of_lines, ".txt": of_lines, ".yaml": of_lines}


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        files: a valid input, by name in its folder.
        read: all of what is in the folder, with assertions on what comes out.
    """

    files: Mapping[str, bytes]
    read: Callable[[Path], None]


def write(name: str, seed: int, number: int, folder: Path) -> str:
    """Write input ``number`` of reader ``name`` into an empty folder; returns the file that is damaged."""
    rng = random.Random(f"{seed} {name} {number}")
    files = READERS[name].files
    damaged = rng.choice(sorted(files))
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file == damaged:
            data = (of_bytes if rng.random() < 0.3 else BY_ENDING.get(path.suffix, of_bytes))(rng, data)
        path.write_bytes(data)
    return damaged


def run(name: str, count: int, seed: int) -> list[str]:
    """Read ``count`` damaged inputs; a line for each that ended in neither success nor an InputError."""
    faults = []
    logging.disable(logging.CRITICAL)
    for number in tqdm(range(count), name, delay=2, disable=None):
        folder = Path(tempfile.mkdtemp())
        try:
            damaged = write(name, seed, number, folder)
            READERS[name].read(folder)
        except InputError as error:
            if "\n" in str(error):
                faults.append(f"{name} {number} ({damaged}): a message of several lines")
        except Exception as error:  # this is what is looked for
            faults.append(f"{name} {number} ({damaged}): {type(error).__name__}: {str(error)[:200]}")
        finally:
            shutil.rmtree(folder)
    logging.disable(logging.NOTSET)
    return faults


def _encoded(ending: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


def _pictures(folder: Path) -> None:
    for path in folder.iterdir():
        size = pictures.header(path).size
        image = pictures.read(path)
        assert image.shape == (3, *size), "a picture of another size than its header's"
        assert pictures.read_rgba(path).shape == (4, *size)


def _numbers(folder: Path) -> None:
    assert pictures.read_16_bit(folder / "depth.png").isfinite().all()
    assert pictures.read_16_bit(folder / "flow.png", channels=3).ndim == 3


def _patch(folder: Path) -> None:
    patch = Patch.load(folder / "patch.png")
    assert 0 <= patch().min() <= patch().max() <= 1


def _palette(folder: Path) -> None:
    palette = load_palette(folder / "palette.csv")
    assert 0 <= palette.min() <= palette.max() <= 1


def _scenes(source: Source) -> None:
    assert all(isinstance(name, str) for name in source.classes), "names of classes that are no text"
    for number in range(len(source)):
        scene = source[number]
        assert scene.frames.dtype == torch.uint8
        for truth in (scene.depth, scene.flow):
            assert truth is None or truth.shape[-2:] == scene.size, "ground truth of another size"
        assert scene.boxes is None or not (scene.boxes[..., :4].abs() > 1000).any(), "a box far outside"
        for finite in (scene.motion, scene.intrinsics):
            assert finite is None or finite.isfinite().all(), "geometry that is not finite"


_RGB = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (32, 24))
_ALPHA = np.dstack([_RGB, _RGB[..., 0]])
_FLOW = np.full((24, 32, 3), 2**15 + 64, np.uint16)
_DATE, _DRIVE = "2011_09_26/", "2011_09_26/2011_09_26_drive_0001_sync/"
_DEPTHS = "proj_depth/groundtruth/image_02"

READERS = {
    **{
        f"picture{ending}": Reader({f"a{ending}": _encoded(ending, pixels)}, _pictures)
        for ending, pixels in (
            *((ending, _RGB) for ending in (".jpg", ".bmp", ".ppm", ".tiff")),
            *((ending, _ALPHA) for ending in (".png", ".webp")),
        )
    },
    "numbers": Reader({"depth.png": _encoded(".png", _FLOW[..., 0]), "flow.png": _encoded(".png", _FLOW)}, _numbers),
    "patch": Reader(
        {
            "patch.png": _encoded(".png", _ALPHA),
            "patch.json": b'{"size_mm": [150.0, 112.5], "dpi": [5.42, 5.42], "texels": [24, 32], "victims": ["a"]}',
        },
        _patch,
    ),
    "palette": Reader({"palette.csv": b"# colours\n255,255,255\n0,0,0\n12,200,9\n"}, _palette),
    "yolo": Reader(
        {
            "images/a.png": _encoded(".png", _RGB),
            "labels/a.txt": b"0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.2 0.9\n0 0.1 0.1 0.5 0.1 0.5 0.4\n",
            "data.yaml": b"names:\n  0: person\n  1: 30\n",
        },
        lambda folder: _scenes(Yolo(str(folder), size=(32, 32))),
    ),
    "coco": Reader(
        {
            "a.png": _encoded(".png", _RGB),
            "a.json": json.dumps(
                {
                    "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}],
                    "categories": [{"id": 1, "name": "car"}, {"id": 7, "name": 30}],
                    "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 6, 20, 10], "iscrowd": 0}],
                }
            ).encode(),
        },
        lambda folder: _scenes(Coco(str(folder), str(folder / "a.json"), size=(32, 32))),
    ),
    "images": Reader(
        {
            **{f"{place}.png": _encoded(".png", _RGB) for place in "ab"},
            "labels.csv": b"file,class\na.png,cat\nb.png,traffic light\n",
            "classes.txt": b"cat Felis\ntraffic light\n",
        },
        lambda folder: _scenes(
            Photographs(
                str(folder), size=(8, 8), labels=str(folder / "labels.csv"), classes=str(folder / "classes.txt")
            )
        ),
    ),
    "frames": Reader(
        {f"{number}.png": _encoded(".png", _RGB) for number in range(3)}, lambda folder: _scenes(Frames(str(folder)))
    ),
    "depth": Reader(
        {"a.jpg": _encoded(".jpg", _RGB), "a_depth.png": _encoded(".png", _FLOW[..., 0])},
        lambda folder: _scenes(DepthFolder(str(folder))),
    ),
    "kitti_flow": Reader(
        {
            **{f"training/image_2/000000_1{n}.png": _encoded(".png", _RGB) for n in (0, 1)},
            **{f"training/flow_{kind}/000000_10.png": _encoded(".png", _FLOW) for kind in ("occ", "noc")},
        },
        lambda folder: _scenes(Kitti(str(folder))),
    ),
    "kitti_raw": Reader(
        {
            **{f"{_DRIVE}image_02/data/{n:010d}.png": _encoded(".png", _RGB) for n in (0, 1)},
            **{
                f"{_DRIVE}proj_depth/groundtruth/image_02/{n:010d}.png": _encoded(".png", _FLOW[..., 0]) for n in (0, 1)
            },
            **{f"{_DRIVE}oxts/data/{n:010d}.txt": f"49.01{n} 8.43 112.8 0.03 0.01 1.4 0".encode() for n in (0, 1)},
            f"{_DATE}calib_cam_to_cam.txt": b"P_rect_02: 70 0 16 4 0 70 12 1 0 0 1 0\nR_rect_00: 1 0 0 0 1 0 0 0 1\n",
            f"{_DATE}calib_velo_to_cam.txt": b"R: 1 0 0 0 1 0 0 0 1\nT: 0.1 0.2 0.3\n",
            f"{_DATE}calib_imu_to_velo.txt": b"R: 1 0 0 0 1 0 0 0 1\nT: 0.1 0.2 0.3\n",
        },
        lambda folder: _scenes(Kitti(str(folder))),
    ),
}


def main() -> None:
    """Read the command line; exit with 1 where anything was found."""
    faulthandler.enable()  # a library that ends the process says where
    options = dict(one.split("=", 1) for one in sys.argv[1:] if "=" in one)
    names = [one for one in sys.argv[1:] if "=" not in one] or list(READERS)
    found = 0
    for name in names:
        faults = run(name, int(options.get("count", 2000)), int(options.get("seed", 0)))
        found += len(faults)
        print(f"{name}: {len(faults)} faults", *faults[:20], sep="\n  ", flush=True)
    sys.exit(int(found > 0))


if __name__ == "__main__":
    main()
