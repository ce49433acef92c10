"""The one reader of picture files: every part of the project sees the same pixels, the right way up.

A picture is what viewers show of the file: turned by its EXIF orientation, the first of several pages, 16 bits a
channel rounded to 8; but colour profiles are not applied. Maps of numbers (depth, flow) are read with all their bits
by :func:`read_16_bit`, and turned by the same rule.

Files are opened by Python and decoded from memory: C libraries do not take every file name. JPEG is OpenCV's, as
decoders differ by a grey level; what is transparent is PIL's, as OpenCV multiplies or loses some alpha. The header goes
first: a file of a few bytes can ask for gigabytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from patchattack.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL knows others, some of which run programs
PIXELS = 2**28  # that a picture may have; the largest of today's telephones have 0.2 billion


class Readable(Protocol):
    """A file as the readers need it: a path, or what lies at an address. As text it is its name in messages."""

    def is_file(self) -> bool:
        """Whether it is there, and a file."""

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Its bytes."""


@dataclass(frozen=True)
class Header:
    """What a picture's header says.

    Attributes:
        stored: height and width of the stored pixels.
        orientation: EXIF's number of how they are turned to be shown; 1 where they are not.
    """

    stored: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown."""
        return (self.stored[1], self.stored[0]) if self.orientation >= 5 else self.stored


def header(path: Path) -> Header:
    """Size and orientation, without decoding the picture.

    Raises:
        InputError: there is no such file, it is no picture, its end is missing (of a PNG) or it has too many pixels.
    """
    with _file(path) as file, _open(path, file) as image:
        found = _header(path, image)
        if image.format == "PNG":
            file.seek(-min(64, file.seek(0, io.SEEK_END)), io.SEEK_END)
            if b"IEND" not in file.read():
                raise InputError(f"{path}: expected a whole PNG, got a damaged file; copy it again")
        return found


def read(path: Readable) -> Tensor:
    """The picture in ``path`` as uint8 RGB ``[3, h, w]``: grey as three equal channels, what is transparent on white.

    Raises:
        InputError: the file is missing, damaged (cut off too), too large, or holds numbers that are no picture's.
    """
    pixels = _decode(path)
    if pixels.dtype == np.uint16 and pixels.ndim == 2:  # depth maps look so, and no camera's pictures
        raise InputError(f"{path}: expected 8 bits per channel, got uint16; take away what is not a frame")
    pixels = _eight_bits(pixels)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_rgba(path: Path, longest: int | None = None) -> Tensor:
    """The picture in ``path`` as uint8 RGBA ``[4, h, w]``, opaque where the file says nothing else.

    Args:
        path: of the file.
        longest: pixels to which the longer side of a larger picture is shrunk; None keeps them all.

    Raises:
        InputError: as :func:`read`; grey of 16 bits is a picture here.
    """
    pixels = _eight_bits(_decode(path))
    if longest is not None and (scale := longest / max(pixels.shape[:2])) < 1:
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    if pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_16_bit(path: Path, channels: int = 1, orientation: int | None = None) -> Tensor:
    """float32 ``[channels, h, w]``, as stored and in the file's order of channels, from a PNG or TIFF of 16 bits.

    Args:
        path: of the file.
        channels: that it has, 1 or 3.
        orientation: EXIF's number by which the numbers are turned; None is that of the file.

    Raises:
        InputError: the file is missing, damaged, too large or of another kind.
    """
    with _file(path) as file:
        data = file.read()
    with _open(path, io.BytesIO(data)) as image:
        found = _header(path, image)
    values = _decode_raw(path, data, found)
    values = np.atleast_3d(_orient(values, orientation or found.orientation))
    if values.dtype != np.uint16 or values.shape[2] != channels:
        got = f"{values.shape[2]} of {values.dtype}"
        raise InputError(f"{path}: expected a 16-bit PNG of {channels} channel(s), got {got}; copy the file again")
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)


def decode(data: np.ndarray) -> Tensor:
    """uint8 RGB ``[3, h, w]`` of a picture that OpenCV has encoded in memory."""
    return torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)).permute(2, 0, 1)


def c_path(path: Path) -> str:
    """The path for a C library that opens files by their name alone, which ends the process where it is not UTF-8.

    Raises:
        InputError: such a name.
    """
    try:
        return str(path).encode().decode()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!r}: expected a name of UTF-8 characters, got other bytes; rename it") from error


@contextmanager
def quietly() -> Iterator[None]:
    """OpenCV's own log of a damaged file or a missing camera is long; the user gets one line of ours."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _file(path: Readable) -> BinaryIO:
    try:
        if path.is_file():  # a pipe or a device may never end
            return path.open("rb")
        got = "no file"
    except OSError as error:
        got = f"'{error.strerror}'"
    raise InputError(f"{path}: expected an image, got {got}; check the name")


@contextmanager
def _open(path: Readable, file: BinaryIO) -> Iterator[Image]:
    """PIL's image, with nothing but its header read; whatever PIL says of a bad file becomes one line."""
    from PIL import Image, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the limit is ours
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            yield image
    except InputError:
        raise
    except Exception as error:  # PIL's decoders end in any kind of error
        said = "a file that cannot be decoded" if isinstance(error, UnidentifiedImageError) else f"'{one_line(error)}'"
        raise InputError(f"{path}: expected an image, got {said}; replace it or take it away") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _header(path: Readable, image: Image) -> Header:
    from PIL.Image import Exif

    width, height = image.size
    if not 0 < height * width <= PIXELS:
        raise InputError(
            f"{path}: expected an image of 1 to {PIXELS // 10**6} million pixels, got {height}×{width}; make it smaller"
        )
    exif, orientation = Exif(), 1
    with suppress(Exception):  # damaged EXIF is none; TIFF has none, as both libraries turn it by themselves
        exif.load(image.info.get("exif", b""))
        orientation = int(exif.get(0x0112, 1))
    return Header((height, width), orientation if 1 <= orientation <= 8 else 1)


def _decode(path: Readable) -> np.ndarray:
    """``[h, w]`` grey, ``[h, w, 3]`` RGB or ``[h, w, 4]`` RGBA as shown, uint8 or uint16 as stored."""
    with _file(path) as file:
        data = file.read()
    with _open(path, io.BytesIO(data)) as image:
        found = _header(path, image)
        transparent = image.has_transparency_data
        if transparent:
            pixels = np.array(image.convert("RGBA"))
        elif image.format in ("JPEG", "MPO"):
            _refuse_truncated(path, image)
    if not transparent:
        pixels = _decode_raw(path, data, found)
        if pixels.ndim == 3:
            pixels = pixels[..., :3]  # OpenCV makes RGBA of CMYK, too
    return np.ascontiguousarray(_orient(pixels, found.orientation))


def _refuse_truncated(path: Readable, image: Image) -> None:
    """OpenCV decodes a JPEG that ends too early and fills the rest; PIL does not."""
    try:
        image.draft("RGB", (1, 1))  # reads the whole file, but computes an eighth of its pixels
        image.load()
    except OSError as error:
        raise InputError(f"{path}: expected a whole JPEG, got '{error}'; replace it or take it away") from error


def _decode_raw(path: Readable, data: bytes, found: Header) -> np.ndarray:
    """OpenCV's ``[h, w]``, ``[h, w, 3]`` RGB or ``[h, w, 4]`` RGBA, uint8 or uint16, not turned."""
    with quietly():
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            pixels = None
    if pixels is None or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise InputError(f"{path}: expected an image, got a file that cannot be decoded; replace it or take it away")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: expected 8 or 16 bits per channel, got {pixels.dtype}; save it as PNG")
    if pixels.shape[:2] != found.stored:
        (height, width), stored = pixels.shape[:2], found.stored
        raise InputError(
            f"{path}: expected {stored[0]}×{stored[1]} pixels as in its header, got {height}×{width}; replace it"
        )
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return pixels


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``[h, w, ...]`` as EXIF's ``orientation`` says that it is shown."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 ``[h, w, 3]`` or ``[h, w, 4]``."""
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if pixels.ndim == 2 else pixels
