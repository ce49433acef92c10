"""One reader: every format, every orientation and every place where the project reads a picture."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from patchattack import patch, pictures
from patchattack.data.coco import Coco
from patchattack.data.frames import Frames
from patchattack.data.photographs import Photographs
from patchattack.data.yolo import Yolo
from patchattack.errors import InputError
from patchattack.names import class_names
from patchattack.victims.victim import ClassificationVictim
from patchattack.webcam.capture import open_source

PROJECT = Path(__file__).parents[1]
CASES = (PROJECT / "../shared/cases/formats").resolve()

# 16×24 pixels: white above; below it red on the left and blue on the right, and a green corner.
BASE = np.zeros((16, 24, 3), np.uint8)
BASE[:4], BASE[4:, :12], BASE[4:, 12:], BASE[12:, :6] = (250, 250, 250), (220, 30, 30), (20, 40, 200), (0, 255, 0)
GREY = np.array(Image.fromarray(BASE).convert("L"))
CUT = np.dstack([BASE, np.full(BASE.shape[:2], 255, np.uint8)])
CUT[:, :8] = 0  # transparent, and what it hides is black
ON_WHITE = np.where(CUT[..., 3:] == 0, np.uint8(255), CUT[..., :3])


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def saved(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def palette(pixels: np.ndarray, **options: object) -> bytes:
    image = Image.fromarray(pixels).quantize(8)
    return saved(image, "PNG", **options)


def encoded(ending: str, pixels: np.ndarray) -> bytes:
    """OpenCV's file of RGB or grey."""
    return cv2.imencode(ending, pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def encoded_rgba(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


SHOWN = {  # what a viewer shows of BASE with each orientation, written down apart from the code
    1: BASE,
    2: np.fliplr(BASE),
    3: np.rot90(BASE, 2),
    4: np.flipud(BASE),
    5: BASE.transpose(1, 0, 2),
    6: np.rot90(BASE, -1),
    7: np.rot90(BASE, 2).transpose(1, 0, 2),
    8: np.rot90(BASE, 1),
}

# name -> (file, pixels as data [h, w, 3], pixels as a patch's picture with alpha or None where that is opaque, levels)
TABLE: dict[str, tuple[bytes, np.ndarray, np.ndarray | None, int]] = {
    "rgb.png": (saved(BASE, "PNG"), BASE, None, 0),
    "rgb.bmp": (saved(BASE, "BMP"), BASE, None, 0),
    "rgb.ppm": (saved(BASE, "PPM"), BASE, None, 0),
    "rgb.tif": (saved(BASE, "TIFF", compression="tiff_lzw"), BASE, None, 0),
    "rgb.webp": (saved(BASE, "WEBP", lossless=True), BASE, None, 0),
    "rgb.jpg": (saved(BASE, "JPEG", quality=100, subsampling=0), BASE, None, 3),
    "progressive.jpg": (saved(BASE, "JPEG", quality=100, subsampling=0, progressive=True), BASE, None, 3),
    "cmyk.jpg": (saved(Image.fromarray(BASE).convert("CMYK"), "JPEG", quality=100), BASE, None, 4),
    "cmyk.tif": (saved(Image.fromarray(BASE).convert("CMYK"), "TIFF"), BASE, None, 1),
    "misnamed.jpg": (saved(BASE, "PNG"), BASE, None, 0),
    "grey.png": (saved(GREY, "PNG"), three(GREY), None, 0),
    "grey.jpg": (saved(GREY, "JPEG", quality=100), three(GREY), None, 2),
    "one_bit.png": (saved(Image.fromarray(GREY > 100), "PNG"), three((GREY > 100) * np.uint8(255)), None, 0),
    "palette.png": (palette(BASE), BASE, None, 0),
    "rgba.png": (saved(CUT, "PNG"), ON_WHITE, CUT, 0),
    "rgba.webp": (saved(CUT, "WEBP", lossless=True, exact=True), ON_WHITE, CUT, 0),
    "rgba.tif": (saved(CUT, "TIFF"), ON_WHITE, CUT, 0),
    "palette_alpha.png": (palette(CUT), ON_WHITE, CUT, 0),
    "grey_alpha.png": (
        saved(np.dstack([CUT[..., 0], CUT[..., 3]]), "PNG"),
        three(ON_WHITE[..., 0]),
        np.dstack([three(CUT[..., 0]), CUT[..., 3]]),
        0,
    ),
    "colour_key.png": (
        saved(BASE, "PNG", transparency=(0, 255, 0)),
        np.where((BASE == (0, 255, 0)).all(axis=2)[..., None], np.uint8(255), BASE),
        np.dstack([BASE, np.where((BASE == (0, 255, 0)).all(axis=2), 0, 255).astype(np.uint8)]),
        0,
    ),
    "grey_key.png": (
        saved(GREY, "PNG", transparency=250),
        three(np.where(GREY == 250, np.uint8(255), GREY)),
        np.dstack([three(GREY), np.where(GREY == 250, 0, 255).astype(np.uint8)]),
        0,
    ),
    "16_bits.png": (encoded(".png", np.minimum(BASE * np.uint32(257) + 100, 65535).astype(np.uint16)), BASE, None, 0),
    "16_bits_alpha.png": (encoded_rgba(CUT.astype(np.uint16) * 257), ON_WHITE, CUT, 0),
    "16_bits.tif": (encoded(".tif", BASE.astype(np.uint16) * 257), BASE, None, 0),
    # Colour profiles are not applied: the numbers are taken for sRGB.
    "profile.png": (
        saved(BASE, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
        BASE,
        None,
        0,
    ),
    "one_pixel.png": (saved(BASE[:1, :1], "PNG"), BASE[:1, :1], None, 0),
    "turned.tif": (saved(BASE, "TIFF", exif=turned(6)), SHOWN[6], None, 0),
    "turned_alpha.png": (
        saved(CUT, "PNG", exif=turned(8)),
        np.rot90(ON_WHITE, 1),
        np.rot90(CUT, 1),
        0,
    ),
    **{
        f"turned_{number}.{kind}": (saved(BASE, kind.upper(), exif=turned(number), **options), shown, None, levels)
        for number, shown in SHOWN.items()
        for kind, options, levels in (
            ("jpeg", {"quality": 100, "subsampling": 0}, 3),
            ("png", {}, 0),
            ("webp", {"lossless": True}, 0),
        )
    },
}


def difference(found: torch.Tensor, expected: np.ndarray) -> int:
    array = found.permute(1, 2, 0).numpy()
    assert array.shape == expected.shape
    return int(np.abs(array.astype(int) - expected).max())


@pytest.mark.parametrize("name", TABLE)
def test_a_format_is_the_picture_that_a_viewer_shows(tmp_path: Path, name: str) -> None:
    data, expected, cut, levels = TABLE[name]
    path = tmp_path / name
    path.write_bytes(data)
    found = pictures.read(path)
    assert found.dtype == torch.uint8
    assert difference(found, expected) <= levels
    assert pictures.header(path).size == expected.shape[:2]
    opaque = np.dstack([expected, np.full(expected.shape[:2], 255, np.uint8)])
    assert difference(pictures.read_rgba(path), opaque if cut is None else cut) <= levels


def read_by_images(path: Path) -> np.ndarray:
    shape = pictures.header(path).size
    frame = Photographs(str(path.parent), size=shape, crop=1.0)[0].frames[0, 0]
    return frame.permute(1, 2, 0).numpy()


def read_by_frames(path: Path) -> np.ndarray:
    return Frames(str(path.parent), frames=1)[0].frames[0, 0].permute(1, 2, 0).numpy()


def read_by_capture(path: Path) -> np.ndarray:
    return next(iter(open_source(str(path.parent), 1).shots())).images[0]


def read_as_patch(path: Path) -> np.ndarray:
    image = patch.read_image(path, "patch.start")
    return image[:3].mul(255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("place", [read_by_images, read_by_frames, read_by_capture, read_as_patch])
@pytest.mark.parametrize("name", ["turned_3.jpeg", "turned_6.png", "grey.png", "16_bits.png"])
def test_every_place_sees_the_same(tmp_path: Path, name: str, place: Callable[[Path], np.ndarray]) -> None:
    data, expected, _, levels = TABLE[name]
    (tmp_path / name).write_bytes(data)
    assert np.abs(place(tmp_path / name).astype(int) - expected).max() <= levels


def test_boxes_are_those_of_the_picture_as_shown(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(TABLE["turned_6.jpeg"][0])
    (tmp_path / "labels" / "a.txt").write_text("0 0.875 0.25 0.25 0.5\n")  # white, on the right as shown
    scene = Yolo(str(tmp_path), None, ["white"], size=(24, 16))[0]
    assert scene.boxes is not None
    assert scene.boxes[0, 0].tolist() == [11.5, -0.5, 15.5, 11.5, 0]
    assert scene.frames[0, 0, :, :12, 12:].min() > 240
    (tmp_path / "a.json").write_text(
        '{"images": [{"id": 1, "file_name": "images/a.jpg", "height": 24, "width": 16}], "annotations": [], '
        '"categories": [{"id": 1, "name": "white"}]}'
    )
    assert len(Coco(str(tmp_path), str(tmp_path / "a.json"))) == 1


def test_alpha_is_mixed_with_white_exactly(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.dstack([*np.meshgrid(levels, levels), np.full((256, 256), 77, np.uint8), levels[None].repeat(256, 0)])
    (tmp_path / "a.png").write_bytes(saved(pixels, "PNG"))
    alpha = pixels[..., 3:] / 255
    exact = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(pictures.read(tmp_path / "a.png").permute(1, 2, 0).numpy() - exact).max() <= 0.5
    assert difference(pictures.read_rgba(tmp_path / "a.png"), pixels) == 0


def test_numbers_keep_all_their_bits_and_turn_by_the_same_rule(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5001
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png", numbers))
    assert pictures.read_16_bit(path).tolist() == [numbers.tolist()]
    assert pictures.read_16_bit(path, orientation=6)[0].tolist() == np.rot90(numbers, -1).tolist()
    path.write_bytes(saved(Image.fromarray(numbers), "PNG", exif=turned(3)))
    assert pictures.read_16_bit(path)[0].tolist() == np.rot90(numbers, 2).tolist()
    assert pictures.read_rgba(path).shape == (4, 3, 4)  # a mask may be grey of 16 bits
    path.write_bytes(encoded(".png", np.dstack([numbers, numbers + 1, numbers + 2])))
    assert pictures.read_16_bit(path, channels=3)[:, 0, 1].tolist() == [5001, 5002, 5003]  # as in the file
    with pytest.raises(InputError, match=r"expected a 16-bit PNG of 1 channel\(s\), got 3 of uint16"):
        pictures.read_16_bit(path)


def header_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that asks for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("bomb.png", header_of(32768, 32768), r"expected an image of 1 to 268 million pixels, got 32768×32768"),
        ("tall.png", header_of(16, 2**31 - 1), r"of 1 to 268 million pixels, got 2147483647×16; make it smaller"),
        ("lies.png", header_of(64, 64), "expected an image, got"),
        ("text.png", b"no picture", "expected an image, got a file that cannot be decoded; replace it"),
        ("empty.jpg", b"", "expected an image, got a file that cannot be decoded"),
        ("cut.png", saved(NOISE, "JPEG")[:900], "expected a whole JPEG, got 'image file is truncated"),
        ("cut_alpha.png", saved(np.dstack([NOISE, NOISE[..., 0]]), "PNG")[:900], "expected an image, got"),
        ("cut.tif", saved(NOISE, "TIFF")[:5000], "expected an image, got"),
        ("float.tif", saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "expected 8 or 16 bits .* got float32"),
        ("depth.png", encoded(".png", GREY.astype(np.uint16)), "expected 8 bits per channel, got uint16"),
        ("run.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a file that cannot be decoded"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[-5:] else "",
)
def test_what_is_no_picture_is_refused_by_name(
    tmp_path: Path, name: str, data: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: .*{message}") as caught:
        pictures.read(path)
    assert "\n" not in str(caught.value)
    assert "OpenCV" not in capfd.readouterr().err


def test_a_large_picture_is_shrunk_before_it_becomes_floats(tmp_path: Path) -> None:
    """The means of the pixels that each covers; a photograph of 200 million pixels would take 3 GB."""
    tall = np.repeat(np.array([[10], [20], [30], [41]], np.uint8), patch.LONGEST // 2, axis=0)
    (tmp_path / "a.png").write_bytes(saved(tall, "PNG"))
    found = patch.read_image(tmp_path / "a.png", "patch.start")
    assert found.shape == (4, patch.LONGEST, 1)
    half = patch.LONGEST // 4
    assert (found[0, [0, half, 2 * half, 3 * half], 0] * 255).round().tolist() == [10, 20, 30, 41]
    assert pictures.read_rgba(tmp_path / "a.png").shape == (4, 2 * patch.LONGEST, 1)


def test_the_limit_of_pil_is_left_as_it_was(tmp_path: Path) -> None:
    """200 million pixels, as telephones make them, are more than PIL takes by itself."""
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(header_of(16320, 12240))
    assert pictures.header(tmp_path / "a.png").size == (12240, 16320)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_folders_pipes_and_nothing_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "pipe.png", "nowhere.png", "a\0b.png"):
        with pytest.raises(InputError, match="expected an image, got no file"):
            pictures.read(tmp_path / name)


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    """Given to OpenCV, such a name ends the process."""
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        path.write_bytes(TABLE["rgb.png"][0])
    except OSError:
        pytest.skip("this file system has no such names")
    assert difference(pictures.read(path), BASE) == 0
    assert np.array_equal(read_by_capture(path), BASE)
    assert np.array_equal(read_by_frames(path), BASE)
    film = tmp_path / os.fsdecode(b"caf\xe9.avi")
    film.write_bytes(b"RIFF")
    for read in (lambda: Frames(str(film)), lambda: open_source(str(film), 1)):
        with pytest.raises(InputError, match="expected a name of UTF-8 characters, got other bytes; rename it"):
            read()


def test_a_patch_is_not_decoded_where_its_header_and_its_sheet_disagree(tmp_path: Path) -> None:
    patch.Patch.create(resolution=16).save(tmp_path / "patch.png", {})
    (tmp_path / "patch.png").write_bytes(header_of(16, 2_097_168))
    with pytest.raises(
        InputError, match=r"expected the JSON of this patch of \[2097168, 16\] texels, got .*\[16, 16\]"
    ):
        patch.Patch.load(tmp_path / "patch.png")


def test_names_of_classes_are_text() -> None:
    assert class_names(["stop", 30, 2.5], "data.yaml") == ("stop", "30", "2.5")
    assert ClassificationVictim(torch.nn.Identity(), "of a .pt", [30, "stop"]).classes == ("30", "stop")  # type: ignore[list-item]
    for wrong in (True, None, "", ["a"]):
        with pytest.raises(InputError, match=r"data\.yaml: expected the names of the classes as text, got .* class 1"):
            class_names(["a", wrong], "data.yaml")


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
@pytest.mark.parametrize(
    "name", ["exif3.jpg", "exif6.jpg", "exif8.jpg", "exif6.webp", "cmyk.jpg", "mpo.jpg", "u16.png"]
)
def test_files_of_other_programs(name: str) -> None:
    base = np.asarray(Image.open(CASES / "base.png"))
    number = int(name[4]) if name.startswith("exif") else 1
    shown = {1: base, 3: np.rot90(base, 2), 6: np.rot90(base, -1), 8: np.rot90(base, 1)}[number]
    found = pictures.read(CASES / name).permute(1, 2, 0).numpy()
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).mean() < 4
