"""What lies at an address or in an archive is the same data, fetched once and kept in bounds."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
import torch

from patchattack.addresses import Cache, Place, open_place, shards
from patchattack.data.frames import Frames
from patchattack.data.photographs import Photographs
from patchattack.errors import InputError
from patchattack.scene import Source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of three frames, one of them with a name that sorts by number; and what is no frame."""
    folder: Path = tmp_path_factory.mktemp("data") / "drive"
    rows = np.arange(32 * 64 * 3, dtype=np.uint8).reshape(32, 64, 3)
    for number, name in enumerate(("a/9.png", "a/10.png", "a/11.png", "b c/1.png", "b c/2.png", "b c/3.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), rows + 20 * number)
    (folder / "a" / "._9.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture(scope="module")
def places(folder: Path) -> Iterator[dict[str, str]]:
    """The same folder at other addresses."""
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/drive", recursive=True)
    archives = {kind: shutil.make_archive(str(folder), kind, folder) for kind in ("tar", "zip", "gztar")}
    memory.put_file(archives["tar"], "/drive.tar")
    yield archives | {"file": f"file://{folder}", "memory": "memory://drive", "chained": "tar://::memory://drive.tar"}
    memory.rm("/", recursive=True)


@pytest.mark.parametrize("place", ["tar", "zip", "gztar", "file", "memory", "chained", "folder"])
@pytest.mark.parametrize("kind", [Frames, Photographs])
def test_scenes_are_those_of_the_folder(
    kind: Callable[..., Source], place: str, places: dict[str, str], folder: Path
) -> None:
    whole = kind(root=str(folder), size=(16, 24))
    streamed = kind(root=str(folder) if place == "folder" else places[place], size=(16, 24), stream=True)
    assert (len(streamed), streamed.classes) == (len(whole), whole.classes)
    indices = [*range(len(whole))][::-1]
    one, other = whole.__getitems__(indices), streamed.__getitems__(indices)
    assert torch.equal(one.frames, other.frames)
    assert one.label is None or torch.equal(one.label, other.label)
    assert bool(streamed.files(0)) == (place == "folder")


def test_a_run_is_the_same_to_the_bit_and_resumes_where_its_address_is_typed(
    folder: Path, places: dict[str, str], tmp_path: Path, command: Callable[..., Any], tiny_training: tuple[str, ...]
) -> None:
    choice = ("attack=flow", "data=frames", "data.size=[32,64]", "trainer.memory_gb=0", *tiny_training)
    for name, root in (("local", str(folder)), ("far", places["chained"])):
        outcome = command(*choice, f"data.root='{root}'", f"output={tmp_path / name}")
        assert outcome.status == 0, outcome.err
    for name in ("patch.png", "results.json", "metrics.csv"):
        assert (tmp_path / "far" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    refused = command(f"resume={tmp_path / 'far'}")
    assert refused.status == 2
    assert "data.root: expected it to be typed" in refused.err
    assert "data.root=" in refused.err
    assert command(f"resume={tmp_path / 'far'}", f"data.root='{places['chained']}'").status == 0


def test_what_was_fetched_is_not_fetched_again_and_does_not_grow(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(places["memory"], cache_gb=1.0)
    files = [name for name in place.listed if name.endswith(".png") and "._" not in name]
    first = [place.read(name) for name in files]
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", None)
    again = Place(places["memory"], cache_gb=1.0)
    assert [again.read(name) for name in files] == first
    kept = tmp_path / "cache" / "patchattack" / "data"
    sizes = [path.stat().st_size for path in kept.iterdir()]
    assert sorted(sizes) == sorted(map(len, first))
    with pytest.raises(InputError, match=r"memory://drive: expected a/9.png to be readable"):
        Place(places["memory"], cache_gb=0).read("a/9.png")


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, most=10)
    for second, key in enumerate("abc"):
        cache.put(key, b"123")
        os.utime(tmp_path / key, (second, second))
    assert cache.get("a") == b"123"  # which is used now
    cache.put("d", b"1234")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    cache.put("e", b"more than ten bytes")
    assert cache.get("e") is None
    assert Cache(tmp_path, most=10).get("c") == b"123"


def test_a_file_that_changes_or_ends_early_is_refused() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/changes/1.png", b"12345")
    place = Place("memory://changes", cache_gb=1.0)
    memory.pipe("/changes/1.png", b"123")
    with pytest.raises(InputError, match=r"memory://changes: expected 5 bytes of 1.png, got 3; copy it again"):
        place.read("1.png")
    memory.rm("/changes", recursive=True)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("nope://x", "nope://x: expected an address that can be read, got 'Protocol not known: nope'"),
        ("memory://nothing", "memory://nothing: expected files at this address, got none; check data.root"),
        ("{cut}/data.tar", "data.tar: expected an address that can be read, got 'unexpected end of data'"),
        ("{cut}/header.tar", "header.tar: expected a whole archive, got one that ends early; copy it again"),
        ("{cut}/between.tar", "between.tar: expected a whole archive, got one that ends early; copy it again"),
        ("{cut}/gz.tar.gz", "gz.tar.gz: expected an address that can be read, got '.*end-of-stream"),
        ("{cut}/no.zip", "no.zip: expected an address that can be read, got 'File is not a zip file'"),
        ("http://user:s3cret@127.0.0.1:9/x.tar", r"http://\*\*\*@127.0.0.1:9/x.tar: expected an address that can be"),
        ("s3://bucket/x", r"got 'Install s3fs to access S3'; pip install 'patchattack\[s3\]'"),
    ],
)
def test_what_cannot_be_reached_is_one_clear_error(
    root: str, message: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    whole = Path(places["tar"]).read_bytes()
    with tarfile.open(places["tar"]) as archive:
        last = archive.getmembers()[-1]
    for name, data in {
        "data.tar": whole[: last.offset_data + last.size // 2],
        "header.tar": whole[: last.offset + 100],
        "between.tar": whole[: last.offset],
        "gz.tar.gz": Path(places["gztar"]).read_bytes()[:300],
        "no.zip": Path(places["zip"]).read_bytes()[:-30],
    }.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        Frames(root.format(cut=tmp_path))
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_streamed_frame_that_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "a", copy)
    (copy / "11.png").write_bytes((copy / "11.png").read_bytes()[:-20])
    source = Frames(str(copy), stream=True)
    assert source[0].frames.shape == (1, 2, 3, 32, 64)
    with pytest.raises(InputError, match=r"11.png: expected an image"):
        source[1]
    assert cv2.imwrite(str(copy / "11.png"), np.zeros((32, 62, 3), np.uint8))
    with pytest.raises(InputError, match=r"11.png: expected 32×64 like .*9.png, got 32×62"):
        source[1]


def test_a_service_that_speaks_s3_gives_the_same_scenes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    try:
        host, port = service.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("bucket")
        system.put(str(folder), "bucket/drive", recursive=True)
        whole, far = Frames(str(folder)), Frames("s3://bucket/drive")
        assert torch.equal(whole.__getitems__([0, 3, 2]).frames, far.__getitems__([0, 3, 2]).frames)
    finally:
        service.stop()


@pytest.fixture(scope="module")
def series(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder in three archives, a file here and one there; one that does not belong to it is beside them."""
    there = tmp_path_factory.mktemp("shards")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(3):
        with tarfile.open(there / f"shard-{number + 8:02}.tar", "w") as archive:
            for path in files[number::3]:
                archive.add(path, path.relative_to(folder))
    shutil.copy(there / "shard-08.tar", there / "shard-11.tar")
    return str(there / "shard-{08..10}.tar")


@pytest.mark.parametrize("kind", [Frames, Photographs])
def test_shards_hold_what_the_folder_holds(kind: Callable[..., Source], series: str, folder: Path) -> None:
    whole, sharded = kind(root=str(folder), size=(16, 24)), kind(root=series, size=(16, 24))
    assert (len(sharded), sharded.classes) == (len(whole), whole.classes)
    indices = [*range(len(whole))]
    again = pickle.loads(pickle.dumps(sharded))  # as for processes that load
    for one in (sharded, again):
        assert torch.equal(one.__getitems__(indices).frames, whole.__getitems__(indices).frames)


def test_a_series_names_its_numbers() -> None:
    assert shards("s3://a/b-{098..101}.tar") == [f"s3://a/b-{number}.tar" for number in ("098", "099", "100", "101")]
    assert shards("a/b.tar") == ["a/b.tar"]
    with pytest.raises(InputError, match=r"expected a series that rises, as \{000..099\}, got \{3..2\}"):
        shards("b-{3..2}.tar")


def test_shards_that_are_missing_cut_off_or_hold_the_same_are_refused(series: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shard-11.tar; rename one"):
        open_place(series.replace("10", "11"), 0)
    with pytest.raises(InputError, match=r"shard-07.tar: expected an address that can be read"):
        open_place(series.replace("08", "07"), 0)
    for number in (8, 9):
        whole = Path(series.replace("{08..10}", f"{number:02}")).read_bytes()
        (tmp_path / f"shard-{number}.tar").write_bytes(
            whole if number == 8 else whole[: len(whole) // 1024 * 512 - 512]
        )
    with pytest.raises(InputError, match=r"shard-9.tar: expected"):
        open_place(str(tmp_path / "shard-{8..9}.tar"), 0)
