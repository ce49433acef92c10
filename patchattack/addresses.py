"""Files that lie at an address, as ``s3://bucket/drive``, or in an archive: read one by one, and kept for a while.

Whatever fsspec knows is an address. What was fetched is kept in a folder of bounded size, where every run of this
machine finds it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tqdm import tqdm

from patchattack import files
from patchattack.errors import InputError, one_line
from patchattack.redaction import redact

ARCHIVES = {".tar": "tar", ".tgz": "tar", ".tar.gz": "tar", ".zip": "zip"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocols that need one
_OLD = 3600  # seconds after which what a killed process has begun to write is swept up


_SERIES = re.compile(r"\{(\d+)\.\.(\d+)\}")  # as shells and WebDataset name shards


def is_address(root: str) -> bool:
    """Whether it is no path of this machine: an address, or an archive, whose files are reached like those of one."""
    first = shards(root)[0]
    return "://" in root or first != root or (_archive(root) is not None and Path(root).expanduser().is_file())


def shards(root: str) -> list[str]:
    """The addresses that one with a series in it names, as ``shard-{000..099}.tar``; else itself.

    Raises:
        InputError: the series ends before it begins.
    """
    series = _SERIES.search(root)
    if series is None:
        return [root]
    first, last = series.groups()
    if int(last) < int(first):
        raise InputError(f"{redact(root)}: expected a series that rises, as {{000..099}}, got {series[0]}")
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [root[: series.start()] + number + root[series.end() :] for number in numbers]


def _archive(root: str) -> str | None:
    return next((kind for ending, kind in ARCHIVES.items() if root.lower().endswith(ending)), None)


@dataclass
class Cache:
    """A folder that holds what was fetched, up to ``most`` bytes: what was not used for longest makes room.

    Several processes may share it.
    """

    folder: Path
    most: float
    _held: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._held = sum(size for _, size, _ in self._entries())

    def get(self, key: str) -> bytes | None:
        """What is kept under a name; None where nothing is."""
        path = self.folder / key
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep it, if there is room for it at all; a disk that is full keeps nothing."""
        if len(data) > self.most:
            return
        if self._held + len(data) > self.most:
            self._make_room(len(data))
        with contextlib.suppress(InputError):
            files.write(self.folder / key, data)
            self._held += len(data)

    def _make_room(self, size: int) -> None:
        entries = sorted(self._entries())
        self._held = sum(one for _, one, _ in entries)
        for _, one, path in entries:
            if self._held + size <= self.most:
                break
            path.unlink(missing_ok=True)
            self._held -= one

    def _entries(self) -> list[tuple[float, int, Path]]:
        """When each was used last, its bytes, and where it is."""
        found = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):
                facts = path.stat()
                if path.name.startswith(".") and time.time() - facts.st_mtime < _OLD:
                    continue
                found.append((facts.st_mtime, facts.st_size, path))
        return found


class Place:
    """A folder at an address.

    Args:
        root: the address, or an archive of this machine; one that ends as an archive does is opened.
        cache_gb: of what is fetched, to keep on this machine, in the folder ``patchattack/data`` of ``XDG_CACHE_HOME``
            (``~/.cache``); files of this machine are not kept.

    Raises:
        InputError: it cannot be reached, fsspec needs another package for it, or there is nothing.
    """

    def __init__(self, root: str, cache_gb: float) -> None:
        if not cache_gb >= 0:
            raise InputError(f"data.cache_gb: expected 0 or more, got {cache_gb}")
        address = root if "://" in root else f"file://{Path(root).expanduser().resolve()}"
        kind = _archive(root)
        self.shown = redact(root)
        self.address = f"{kind}://::{address}" if kind and not root.startswith(f"{kind}://") else address
        self._opened: tuple[int, Any, str] = (0, None, "")
        system, path = self._system()
        try:
            found = {str(name): info for name, info in system.find(path, detail=True).items()}
            self._version = self._archive_facts()
        except Exception as error:  # each of fsspec's systems has its own
            raise self._unreachable(error) from error
        if not found:
            raise InputError(f"{self.shown}: expected files at this address, got none; check data.root")
        names = {name.removeprefix(path).lstrip("/").removeprefix("./"): name for name in found}
        self.listed = {name: (there, found[there]) for name, there in names.items()}  # by name relative to this folder
        if root.lower().endswith(".tar") and not _has_end(system):
            raise InputError(f"{self.shown}: expected a whole archive, got one that ends early; copy it again")
        outermost = "file" in self._protocols()[-1:]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.cache = None if outermost or not cache_gb else Cache(home / "patchattack" / "data", cache_gb * 1e9)

    def __str__(self) -> str:
        return self.shown

    def _protocols(self) -> list[str]:
        return [part.partition("://")[0] for part in self.address.split("::")]

    def _archive_facts(self) -> str:
        """Of the archive at an address: what is in another one of the same name is not the same."""
        import fsspec

        _, several, inner = self.address.partition("::")
        if not several:
            return ""
        system, path = fsspec.core.url_to_fs(inner)
        return _facts(system.info(path))

    def _system(self) -> tuple[Any, str]:
        """fsspec's system of this process: those that were opened before a fork share their place in a file."""
        if self._opened[0] != os.getpid():
            import fsspec

            try:
                system, path = fsspec.core.url_to_fs(self.address)
            except Exception as error:
                raise self._unreachable(error) from error
            self._opened = (os.getpid(), system, str(path).rstrip("/"))
        return self._opened[1:]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": (0, None, "")}

    def _unreachable(self, error: Exception) -> InputError:
        extras = [_EXTRAS[one] for one in self._protocols() if one in _EXTRAS]
        mend = "check the address, the network and the rights"
        if isinstance(error, ImportError) and extras:
            mend = f"pip install 'patchattack[{extras[0]}]'"
        return InputError(
            f"{self.shown}: expected an address that can be read, got '{redact(one_line(error))}'; {mend}"
        )

    def walk(self) -> list[tuple[str, list[str]]]:
        """Folders, relative to this one, with the names of the files in them."""
        folders: dict[str, list[str]] = {}
        for name in sorted(self.listed):
            folder, _, file = name.rpartition("/")
            folders.setdefault(folder, []).append(file)
        return [*folders.items()]

    def file(self, name: str) -> File:
        """One of the files, by its name relative to this folder."""
        return File(self, name)

    def read(self, name: str) -> bytes:
        """What a file holds.

        Raises:
            InputError: it cannot be read, or ends early.
        """
        system, _ = self._system()
        there, info = self.listed[name]
        key = hashlib.sha256("\n".join((self.address, self._version, name, _facts(info))).encode()).hexdigest()
        size = info.get("size")  # which not every system knows
        if self.cache is not None and (kept := self.cache.get(key)) is not None and size in (None, len(kept)):
            return kept
        try:
            data = bytes(system.cat_file(there))
        except Exception as error:
            raise InputError(
                f"{self.shown}: expected {name} to be readable, got '{redact(one_line(error))}'; check the network, or "
                "copy it again; the run can be resumed"
            ) from error
        if size not in (None, len(data)):
            raise InputError(f"{self.shown}: expected {size:,} bytes of {name}, got {len(data):,}; copy it again")
        if self.cache is not None:
            self.cache.put(key, data)
        return data


class Shards(Place):
    """Several archives, as if all of them were unpacked into one folder: the shards of a WebDataset, or others.

    Args:
        roots: of the archives.
        shown: what they are called together.
        cache_gb: as of :class:`Place`.

    Raises:
        InputError: one of them cannot be reached or ends early, or two hold a file of the same name.
    """

    def __init__(self, roots: Sequence[str], shown: str, cache_gb: float) -> None:
        self.shown = redact(shown)
        self.parts: dict[str, Place] = {}
        for part in (Place(root, cache_gb) for root in tqdm(roots, "Listing shards", delay=2, disable=None)):
            if twice := self.parts.keys() & part.listed.keys():
                name = min(twice)
                raise InputError(
                    f"{self.shown}: expected files of different names, got {name} in {self.parts[name]} and in {part}; "
                    "rename one"
                )
            self.parts |= dict.fromkeys(part.listed, part)
        self.listed = {name: part.listed[name] for name, part in self.parts.items()}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def file(self, name: str) -> File:
        """As of :class:`Place`."""
        return self.parts[name].file(name)


def open_place(root: str, cache_gb: float) -> Place:
    """What lies at an address, or at all that a series such as ``shard-{000..099}.tar`` names.

    Raises:
        InputError: as of :class:`Place` and :class:`Shards`.
    """
    roots = shards(root)
    return Place(root, cache_gb) if roots == [root] else Shards(roots, root, cache_gb)


def _has_end(system: Any) -> bool:
    """Whether a tar has the block of zeros that ends it: one that is cut between two files looks whole."""
    archive = system.tar
    archive.fileobj.seek(archive.offset)
    return bool(archive.fileobj.read(512) == bytes(512))


def _facts(info: dict[str, Any]) -> str:
    """Size, time and checksum of a file, whatever its system knows of it."""
    return repr(sorted((key, str(value)) for key, value in info.items() if not isinstance(value, dict | list)))


@dataclass(frozen=True)
class File:
    """A file of a :class:`Place`, as far as the readers of files know one."""

    place: Place
    name: str

    def __str__(self) -> str:
        return f"{self.place.shown}/{self.name}"

    def is_file(self) -> bool:
        """It was listed."""
        return True

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Its bytes, read whole."""
        return io.BytesIO(self.place.read(self.name))
