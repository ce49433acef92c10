"""A user's own frames: folders of images or a video, unlabelled, in pairs or alone."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from patchattack import pictures
from patchattack.addresses import Place, is_address, open_place
from patchattack.errors import InputError
from patchattack.scene import Scene, Source
from patchattack.videos import decode

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
MEMORY = 8 * 2**30  # bytes that the decoded frames may take

_log = logging.getLogger(__name__)


class Frames(Source):
    """Frames of image sequences or of one video without ground truth: pairs of ``i`` and ``i + stride``, or each alone.

    Every folder that directly holds images, ``root`` or one below it, is a sequence in the natural order of its
    file names (2 before 10). A pair never crosses sequences, and images that cannot be used leave a gap. A folder can
    hold many sequences, too: those of one have names that are alike but for their last number, as in FlyingChairs
    (``00001_img1.ppm``, ``00001_img2.ppm``) and KITTI 2015 (``000000_10.png``, ``000000_11.png``).

    All frames are decoded once, here, and stay in memory as uint8: it shows before the work starts which files are
    damaged, reading in random order costs no decoding, and seeking in a video, which is not exact to the frame with
    every codec, is not needed. Streamed images are read when a scene needs them: they need not fit, and one that cannot
    be used ends the work.

    Args:
        root: a folder, or a video file that OpenCV decodes; or a folder at an address that fsspec knows, as
            ``s3://bucket/drive``, or in an archive (tar, zip) here or there.
        size: ``(h, w)`` to which frames are resized, ``None`` keeps theirs.
        stride: frames from the first of a pair to the second.
        frames: of a scene: 2 for pairs, 1 for networks that take one image.
        pairs: names alike but for their last number are a sequence of their own; False takes a folder as one sequence,
            None does so where the last numbers are not the same two or more for all, and warns where they are.
        stream: read images when they are needed; None does so with addresses and archives.
        cache_gb: of images from an address that are kept on this machine's disk.

    Raises:
        InputError: there is no such folder or video, it cannot be read, it holds no scene, its frames differ in size
            while ``size`` is ``None``, or they take more than 8 GiB.
    """

    def __init__(
        self,
        root: str,
        size: tuple[int, int] | None = None,
        stride: int = 1,
        frames: int = 2,
        pairs: bool | None = None,
        stream: bool | None = None,
        cache_gb: float = 10.0,
    ) -> None:
        if stride < 1 or frames not in (1, 2) or (size is not None and (len(size) != 2 or min(size) < 1)):
            raise InputError(
                f"data=frames: expected stride >= 1, frames of 1 or 2 and size [h, w] of positive numbers or null, "
                f"got stride={stride}, frames={frames} and size={size if size is None else list(size)}"
            )
        self.size = size
        path = open_place(root, cache_gb) if is_address(root) else Path(root).expanduser()
        if isinstance(path, Place) or path.is_dir():
            listed = _images(path, pairs if frames == 2 else False)
            if stream or (stream is None and isinstance(path, Place)):
                self._stream(path, listed, stride, frames)
                return
            count, decoded = len(listed), _decode(listed)
        elif stream:
            raise InputError(f"data.stream: expected false for {path}, which is no folder of images, got true")
        else:
            count, decoded = _open_video(path)
        of_files = not isinstance(path, Path) or path.is_dir()
        pixels = bytearray()
        rows: dict[tuple[int, int], int] = {}  # (sequence, number in it) -> row among the frames
        paths: list[Path] = []
        refused: list[InputError] = []
        for place, name, frame in tqdm(decoded, "Reading frames", count, unit="frame", delay=2, disable=None):
            if isinstance(frame, InputError):
                refused.append(frame)
                continue
            frame = self._resize(frame)
            if not rows:
                first, shape = name, frame.shape
            held = count if of_files else len(rows) + 1  # a video need not have the frames that it announces
            if held * frame.size > MEMORY:
                got = f"{held:,}{'' if of_files else ' or more'} of {shape[0]}×{shape[1]}"
                raise InputError(
                    f"{path}: expected frames that fit in {MEMORY / 2**30:g} GiB, got {got} "
                    f"({held * frame.size / 2**30:.1f} GiB); shrink them with data.size=[h,w], name fewer with "
                    f"data.root{', or read them as they are needed with data.stream=true' if of_files else ''}"
                )
            if frame.shape != shape:
                raise _other_size(name, frame, first, shape)
            rows[place] = len(rows)
            paths += [Path(name)] if isinstance(path, Path) and of_files else []
            pixels += frame.data
        skipped = f"{len(refused)} image(s) cannot be used, the first is {refused[0]}" if refused else ""
        self.scenes = _scenes(path, rows, stride, frames, skipped)
        if skipped:
            _log.warning("%s: %s", path, skipped)
        self.paths = paths
        self.streamed: list[pictures.Readable] = []
        self.pixels = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, *shape)  # [N, h, w, 3]

    def __len__(self) -> int:
        return len(self.scenes)

    def files(self, index: int) -> tuple[Path, ...]:
        """The images of a folder; a video's frames are no files of this machine, nor are those at an address."""
        return tuple(self.paths[row] for row in self.scenes[index].tolist()) if self.paths else ()

    def __getitem__(self, index: int) -> Scene:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Scene:
        """The scenes at ``indices`` as one batch, frames uint8.

        Raises:
            InputError: a streamed image cannot be used.
        """
        rows = self.scenes[indices]  # [B, T]
        if self.streamed:
            read = {row: torch.from_numpy(self._read(row)) for row in rows.unique().tolist()}
            pixels = torch.stack([read[row] for row in rows.flatten().tolist()]).unflatten(0, rows.shape)
        else:
            pixels = self.pixels[rows]
        return Scene(frames=pixels.permute(0, 1, 4, 2, 3).contiguous(), index=torch.tensor(indices))

    def _stream(
        self, root: Path | Place, listed: Mapping[tuple[int, int], pictures.Readable], stride: int, frames: int
    ) -> None:
        rows = {place: row for row, place in enumerate(listed)}
        self.scenes = _scenes(root, rows, stride, frames, "")  # [n, T]
        self.streamed = [*listed.values()]
        self.paths = [file for file in self.streamed if isinstance(file, Path)]
        self.shape = None
        self.shape = self._read(0).shape

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        return frame if self.size is None else cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)

    def _read(self, row: int) -> np.ndarray:
        file = self.streamed[row]
        frame = self._resize(pictures.read(file).permute(1, 2, 0).numpy())
        if self.shape is not None and frame.shape != self.shape:
            raise _other_size(str(file), frame, str(self.streamed[0]), self.shape)
        return frame


def _other_size(name: str, frame: np.ndarray, first: str, shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"{name}: expected {shape[0]}×{shape[1]} like {first}, got {frame.shape[0]}×{frame.shape[1]}; "
        "resize all frames with data.size=[h,w]"
    )


def _scenes(
    root: Path | Place, rows: Mapping[tuple[int, int], int], stride: int, frames: int, skipped: str
) -> torch.Tensor:
    """``[n, T]`` the rows of the frames of each scene; ``rows`` are of (sequence, number in it)."""
    places = [[(s, n + stride * t) for t in range(frames)] for s, n in rows]
    scenes = [[rows[place] for place in scene] for scene in places if scene[-1] in rows]
    if not scenes:
        raise InputError(
            f"{root}: expected {f'two frames {stride} apart in one sequence' if frames == 2 else 'frames'}, "
            f"got {len(rows)} in {len({sequence for sequence, _ in rows})} sequence(s); "
            + (skipped or "add frames or lower data.stride")
        )
    return torch.tensor(scenes)


# (sequence, number in it), a name for messages, and the frame as uint8 RGB [h, w, 3] or why there is none.
_Decoded = Iterator[tuple[tuple[int, int], str, np.ndarray | InputError]]


def _images(root: Path | Place, pairs: bool | None) -> dict[tuple[int, int], pictures.Readable]:
    """The images of the sequences in ``root``, by sequence and number in it."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: expected a folder to read, got '{error.strerror}'; give it rights to read")

    found: dict[tuple[int, int], pictures.Readable] = {}
    if isinstance(root, Place):
        walk = root.walk()
    else:
        walk = [(folder, files) for folder, _, files in os.walk(root, onerror=refuse, followlinks=True)]
    sequence = 0
    for folder, files in sorted(walk, key=lambda entry: _natural(entry[0])):
        # A dot file is not a frame: macOS leaves ._name.jpg beside name.jpg on foreign disks.
        names = [n for n in files if n.lower().endswith(pictures.ENDINGS) and not n.startswith(".")]
        for part in _sequences(Path(folder), sorted(names, key=_natural), pairs):
            for number, name in enumerate(part):
                file = f"{folder}/{name}".lstrip("/")
                found[sequence, number] = root.file(file) if isinstance(root, Place) else Path(folder, name)
            sequence += 1
    if not found:
        raise InputError(
            f"{root}: expected images ({', '.join(pictures.ENDINGS)}) in this folder or below it, got none; "
            "name another folder or a video with data.root"
        )
    return found


def _decode(listed: Mapping[tuple[int, int], pictures.Readable]) -> _Decoded:
    for place, file in listed.items():
        try:
            yield place, str(file), pictures.read(file).permute(1, 2, 0).numpy()
        except InputError as error:
            yield place, str(file), error


def _open_video(path: Path) -> tuple[int, _Decoded]:
    """How many frames the video announces (0: unknown), and those that it has."""
    # By its ending, because OpenCV takes a text file for a film of typed letters and an image for a numbered sequence.
    if not path.is_file() or path.suffix.lower() not in VIDEOS:
        single = "a single image" if path.suffix.lower() in pictures.ENDINGS else "another file"
        got = single if path.is_file() else "nothing there"
        raise InputError(
            f"{path}: expected a folder of images or a video ({', '.join(VIDEOS)}), got {got}; "
            "name one with data.root=PATH"
        )
    video = cv2.VideoCapture(pictures.c_path(path))
    if not video.isOpened():
        raise InputError(
            f"{path}: expected a video that OpenCV decodes, got one that does not open; convert it to H.264 or "
            "extract its frames into a folder"
        )
    announced = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))

    def decoded() -> _Decoded:
        number = 0
        for number, frame in enumerate(decode(video), 1):
            name = f"frame {number - 1} of {path}"
            damaged = InputError(f"{name}: expected one that can be decoded, got a damaged one")
            yield (0, number - 1), name, damaged if frame is None else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        video.release()
        if number < announced:
            _log.warning("%s: it announces %d frames and has %d", path, announced, number)

    return announced, decoded()


def _sequences(folder: Path, names: list[str], pairs: bool | None) -> list[list[str]]:
    """``names`` of one folder as sequences, as :class:`Frames` says of ``pairs``."""
    parts: dict[str, list[str]] = {}
    numbers: dict[str, list[list[str]]] = {}
    for name in names:
        alike = re.sub(r"[0-9]+(?=[^0-9]*\Z)", "*", name)
        parts.setdefault(alike, []).append(name)
        numbers.setdefault(alike, []).append(re.findall("[0-9]+", name)[-1:])
    counts = list(numbers.values())
    if pairs is None and len(parts) > 1 and len(counts[0]) > 1 and all(one == counts[0] for one in counts):
        _log.warning(
            "%s: pairs are taken within each of %d sequences, such as %s; data.pairs=false makes them one sequence",
            folder,
            len(parts),
            " and ".join(next(iter(parts.values()))[:2]),
        )
        pairs = True
    return list(parts.values()) if pairs else [names]


def _natural(name: str) -> list[str | int]:
    """A sorting key: text and numbers take turns, so that each is compared with its like."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]
