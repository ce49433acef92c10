"""Give every reader of users' files thousands of damaged ones: each must be read, or refused by an error of ours.

    python scripts/maintain/fuzz.py [count=2000] [seed=0] [reader ...]

An input is a valid set of files of which one is mutated, by bytes or by what its format is made of. What ends in
anything else is printed with its number, and ``fuzz.write(name, seed, number, folder)`` makes that input again. A
reader of your own is a line more in ``READERS``.
"""

from __future__ import annotations

import copy
import faulthandler
import functools
import http.server
import json
import logging
import random
import shutil
import sqlite3
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
import yaml
from tqdm import tqdm

from patchattack import checkpoint, pictures
from patchattack.cli import stored
from patchattack.data.coco import Coco
from patchattack.data.depth_folder import DepthFolder
from patchattack.data.frames import Frames
from patchattack.data.kitti import Kitti
from patchattack.data.photographs import Photographs
from patchattack.data.yolo import Yolo
from patchattack.eot.calibrated import Calibrated, Calibration
from patchattack.errors import InputError, VictimError
from patchattack.hand_drawn import standard_textures
from patchattack.patch import Patch
from patchattack.printing.fiducials import layout, load_layouts, save_layouts
from patchattack.regularizers.nps import load_palette
from patchattack.reporting.compare import load_runs, write_comparison
from patchattack.scene import Source
from patchattack.tracking import MetricsCsv
from patchattack.victims.answers import KINDS, AnswerCache
from patchattack.victims.endpoint import build_endpoint
from patchattack.victims.journal import Journal, of_run
from patchattack.victims.own import read_classes
from patchattack.victims.substitute import NOTE, WEIGHTS, Substitute, initial_network
from patchattack.victims.weights import load_weights
from patchattack.webcam.capture import open_source
from patchattack.webcam.pose import Lens
from patchattack.webcam.records import Log, Record
from patchattack.webcam.summary import publish

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


def of_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header changed, or the JSON within it, with the length that it then has."""
    length = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + length], data[8 + length :]
    fields = json.loads(head)
    state = fields.get("__metadata__", {}).get("state")
    if state is not None and rng.random() < 0.7:
        # With the digest that fits, so that what reads it sees it.
        text = of_json(rng, state.partition(" ")[2].encode()).decode(errors="replace")
        fields["__metadata__"]["state"] = f"{checkpoint.digest(text, safetensors.torch.load(data))} {text}"
        head = json.dumps(fields).encode()
    elif rng.random() < 0.7:
        head = of_json(rng, head)
    else:
        values = np.frombuffer(body[: len(body) // 4 * 4], np.float32).copy()
        values[rng.randrange(len(values)) :] = rng.choice((np.nan, np.inf, -7, 1e30))
        body = values.tobytes() + body[values.nbytes :]
    return struct.pack("<Q", len(head)) + head + body


def of_sqlite(rng: random.Random, data: bytes) -> bytes:
    """What the tables hold changed, or the tables."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.sqlite")
        path.write_bytes(data)
        file = sqlite3.connect(path)
        tables = [row[0] for row in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
        table = rng.choice(tables)
        column, blob = "answer", file.execute(f"SELECT answer FROM {table}").fetchone()
        new = rng.choice((b"", None, "text", 7, -1, of_bytes(rng, blob[0] if blob else b"abc")))
        if rng.random() < 0.8:
            file.execute(f"UPDATE {table} SET {column} = ?", [new])
        else:
            file.execute(f"DROP TABLE {table}" if rng.random() < 0.5 else f"ALTER TABLE {table} RENAME answer TO other")
        file.commit()
        file.close()
        return path.read_bytes()


BY_ENDING = {
    ".json": of_json,
    ".png": of_png,
    ".csv": of_lines,
    ".txt": of_lines,
    ".yaml": of_lines,
    ".safetensors": of_safetensors,
    ".sqlite": of_sqlite,
}


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
    """Read ``count`` damaged inputs; a line for each that ended in neither success nor an error of ours."""
    faults = []
    logging.disable(logging.CRITICAL)
    for number in tqdm(range(count), name, delay=2, disable=None):
        folder = Path(tempfile.mkdtemp())
        try:
            damaged = write(name, seed, number, folder)
            READERS[name].read(folder)
        except (InputError, VictimError) as error:
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


def _written(write: Callable[[Path], None]) -> dict[str, bytes]:
    """The files that ``write`` makes in a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _job() -> Any:
    """What a checkpoint asks of a job."""
    patch = Patch.create(resolution=8, size_mm=60)
    optimizer = torch.optim.Adam(patch.parameters())
    patch().sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    fabric = SimpleNamespace(device=torch.device("cpu"), global_rank=0)
    parts = {"patch": patch, "optimizer": optimizer, "schedule": schedule, "fabric": fabric}
    return SimpleNamespace(**parts, queries=3, journal=None, mode=None)


def _save_checkpoint(folder: Path) -> None:
    job = _job()
    progress = checkpoint.Progress(4, job.patch().detach().clamp(0, 1), 2, 0.5, 0.5, hand_drawn=standard_textures()[0])
    checkpoint.save(job, folder, progress)


def _checkpoint(folder: Path) -> None:
    job = _job()
    progress = checkpoint.resume(job, folder)
    assert type(progress.step) is int
    assert progress.best.isfinite().all()
    assert job.patch().isfinite().all()
    job.optimizer.step()
    job.schedule.step()


def _save_run(folder: Path) -> None:
    facts = {"victims": ["a"], "seen": 5, "task": "flow", "primary_metric": ["epe_clean", "outside"]}
    Patch.create(resolution=8, size_mm=60).save(folder / "patch.png", facts)
    row = {"metric": "epe_clean", "region": "outside", "mean": 1.0, "low": 0.5, "high": 1.5, "n": 8}
    row |= {"label": "change of the flow (px)", "stronger": "higher"}
    (folder / "results.json").write_text(json.dumps([{"condition": one, **row} for one in ("clean", "patch")]))
    attack = {"_target_": "patchattack.attacks.flow.FlowAttack"}
    data = {"_target_": "patchattack.data.world.World", "seed": 0, "scenes": 8}
    config = {"attack": attack, "data": data, "seed": 0, "trainer": {"split": [0.5, 0.25, 0.25]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n")


def _compared(folder: Path) -> None:
    other = Path(tempfile.mkdtemp(dir=folder))
    _save_run(other)
    write_comparison(folder / "comparison.html", load_runs([str(folder), str(other)]), "compare")


def _overrides(folder: Path) -> None:
    assert all(isinstance(one, str) for one in stored.overrides_of_the_run([f"resume={folder}"], "resume"))


def _metrics(folder: Path) -> None:
    table = MetricsCsv(folder / "metrics.csv", ["loss"], 2)
    table.log(3, {"loss": 1.0})
    table.close()
    assert MetricsCsv.read(folder / "metrics.csv")[-1] == {"step": 3, "loss": 1}


def _save_session(folder: Path) -> None:
    log = Log(folder / "frames.csv")
    for number in range(8):
        values = {"distance_m": 1.0 + number, "patch": 2.0, "grey": 1.0, "success": number % 2, "grey_success": 0.0}
        log.write(Record(number, number / 2, "a", "found", 0, "patch", 6, 0.1, light=0.5, **values))
    log.close()
    (folder / "predicted.csv").write_text("frame,value,success\n1,2.5,1\n2,2.5,0\n")
    about = {"title": "t", "setup": [["Patch", "p"]], "command": "c", "versions": {"a": "1"}, "rule": "r", "label": "l"}
    counts = {"frames": 9, "dropped": 1, "gaps": 0}
    (folder / "session.json").write_text(json.dumps({**about, "independent_s": 0.5, "source": counts, "faults": []}))


def _published(folder: Path) -> None:
    publish(folder)


def _save_calibrations(folder: Path) -> None:
    Calibration(torch.rand(2, 2, 2, 3), 0.1, 0.5, 0.01, "").save(folder / "print.json")
    lens = cv2.FileStorage(str(folder / "lens.yaml"), cv2.FILE_STORAGE_WRITE)
    lens.write("image_width", 64)
    lens.write("image_height", 48)
    lens.write("camera_matrix", np.array([[60, 0, 32], [0, 60, 24], [0, 0, 1.0]]))
    lens.write("distortion_coefficients", np.zeros((1, 5)))
    lens.release()


def _calibrations(folder: Path) -> None:
    table = Calibrated(folder / "print.json").calibration.table
    assert table.abs().max() <= 2
    lens = Lens(calibration=str(folder / "lens.yaml"))
    assert np.isfinite(lens.matrix((48, 64))).all()
    assert np.isfinite(lens.distortion).all()
    cv2.undistortPoints(np.ones((4, 1, 2)), lens.matrix((48, 64)), lens.distortion)


def _layouts(folder: Path) -> None:
    for one in load_layouts(folder / "layout.json"):
        assert all(0.01 <= side <= 1e5 for side in (*one.size_mm, one.marker_mm))
        assert all(np.isfinite(corners).all() for corners in one.markers.values())


def _classes(folder: Path) -> None:
    for path in folder.iterdir():
        assert all(isinstance(one, str) for one in read_classes(str(path)) or ())


def _save_weights(folder: Path) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    safetensors.torch.save_file(state, folder / "w.safetensors")
    torch.save({"state_dict": state}, folder / "w.pth")
    safetensors.torch.save_file(initial_network(["a", "b"]).state_dict(), folder / WEIGHTS)
    (folder / NOTE).write_text(json.dumps({"classes": ["a", "b"], "size": [32, 32], "victim": "a"}))


def _weights(folder: Path) -> None:
    for name in ("w.safetensors", "w.pth"):
        load_weights(torch.nn.Linear(3, 2), folder / name)
    Substitute(folder)(torch.rand(1, 1, 3, 32, 32))


def _mean(frames: torch.Tensor) -> torch.Tensor:
    return frames.mean(dim=(-3, -2, -1))


_GREY = torch.full((1, 1, 3, 4, 4), 0.5)


def _save_answers(folder: Path) -> None:
    journal = Journal()
    journal.open(folder)
    journal.keep(_GREY, _mean)
    journal.note(_GREY, _mean)
    journal.remember(b"q", b"a")
    journal.close()
    memory = AnswerCache(folder / "cache.sqlite")
    memory.remember(b"q", b"a")
    memory.file.close()


def _answers(folder: Path) -> None:
    journal = of_run(folder)
    try:
        for ask in (journal.keep, journal.note, journal.note):
            assert ask(_GREY, _mean).isfinite().all()
        journal.recall(b"q")
        journal.remember(b"q", b"a")
        journal.checkpoint()
    finally:
        journal.close()
    memory = AnswerCache(folder / "cache.sqlite")
    try:
        memory.recall(b"q")
        memory.remember(b"r", b"a")
    finally:
        memory.file.close()


class _Service(http.server.BaseHTTPRequestHandler):
    """Answers a request with the file that its path names."""

    folder: Path

    def do_POST(self) -> None:
        """Send it."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write((self.folder / self.path[1:]).read_bytes())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@functools.cache
def _port() -> int:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


_SAID: dict[str, Any] = {
    "logits": [[1, 2, 3.5]],
    "probabilities": [{"a": 0.5, "b": 0.2}],
    "labels": ["a"],
    "depth": [[[1.0, 2], [3, 4]]],
    "flow": [[[[0, 1]] * 128] * 128],
    "boxes": [[[1, 2, 3, 4, 0.5, "a"], [0, 0, 5, 5, 0.1, 1]]],
    "candidates": [[[1, 2, 3, 4, 0.5, 0.1, 0.1]]],
}


def _asked(folder: Path) -> None:
    _Service.folder = folder
    for task, kinds in KINDS.items():
        for kind in kinds:
            classes = ["a", "b", "c"] if task in ("classification", "detection") else None
            side, size = (128, None) if task == "flow" else (16, (16, 16))
            address = f"http://127.0.0.1:{_port()}/{kind}.json"
            victim = build_endpoint(task, address, kind, retries=0, classes=classes, size=size)
            assert victim(torch.rand(1, 2 if task == "flow" else 1, 3, side, side)).isfinite().all()


def _save_videos(folder: Path) -> None:
    for ending, code in ((".avi", "MJPG"), (".mp4", "mp4v")):
        video = cv2.VideoWriter(str(folder / f"a{ending}"), cv2.VideoWriter.fourcc(*code), 10, (32, 24))
        for shift in range(4):
            video.write(np.roll(_RGB, shift, 1))
        video.release()


def _videos(folder: Path) -> None:
    for path in folder.iterdir():
        for shot in open_source(str(path), 2).shots():
            assert shot.number < 200, "more frames than were written"
        _scenes(Frames(str(path)))


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
    "checkpoint": Reader(_written(_save_checkpoint), _checkpoint),
    "overrides": Reader(
        {
            "overrides.yaml": yaml.safe_dump(
                ["attack=flow", "camera=[jpeg]", "data.size=[32,64]", "+victim@victims.a=raft_small", "seed=3"]
            ).encode()
        },
        _overrides,
    ),
    "run": Reader(_written(_save_run), _compared),
    "metrics": Reader({"metrics.csv": b"step,loss\n1,0.5\n2,0.25\n"}, _metrics),
    "session": Reader(_written(_save_session), _published),
    "calibrations": Reader(_written(_save_calibrations), _calibrations),
    "layouts": Reader(
        _written(lambda folder: save_layouts(folder / "layout.json", [layout((60, 40), 0), layout((60, 40), 1)])),
        _layouts,
    ),
    "classes": Reader(
        {"a.txt": b"cat\ndog\nbird\n", "b.json": b'["a", "b"]', "c.json": b'{"0": "a", "1": "b"}'}, _classes
    ),
    "weights": Reader(_written(_save_weights), _weights),
    "answers": Reader(_written(_save_answers), _answers),
    "service": Reader({f"{kind}.json": json.dumps({kind: said}).encode() for kind, said in _SAID.items()}, _asked),
    "videos": Reader(_written(_save_videos), _videos),
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
