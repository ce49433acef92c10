from __future__ import annotations

import io
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from pypdf import PageObject, PdfReader
from torch import Tensor

from patchattack.errors import InputError
from patchattack.printing.fiducials import bits, find
from patchattack.printing.sheet import Sheet

MM = 72 / 25.4


def quarters() -> Tensor:
    """Red, green / blue, yellow."""
    texture = torch.zeros(3, 8, 8)
    texture[0, :4, :4] = texture[1, :4, 4:] = texture[2, 4:, :4] = 1
    texture[:2, 4:, 4:] = 1
    return texture


def write(
    path: Path, size_mm: tuple[float, float], page: str = "a4", mask: Tensor | None = None, **options: Any
) -> PdfReader:
    mask = torch.ones(1, 8, 8) if mask is None else mask
    Sheet(page, **options).write(path, quarters(), mask, size_mm, title="Flow patch", note="for two victims")
    return PdfReader(path)


def image_box(page: PageObject) -> list[float]:
    """Left, bottom, width, height of the one image, in mm."""
    boxes: list[list[float]] = []

    def visit(operator: bytes, operands: list, matrix: list[float], _text: list[float]) -> None:  # noqa: ARG001
        if operator == b"Do":
            assert matrix[1] == matrix[2] == 0
            boxes.append([matrix[4] / MM, matrix[5] / MM, matrix[0] / MM, matrix[3] / MM])

    page.extract_text(visitor_operand_before=visit)
    (box,) = boxes
    return box


def polygons(page: PageObject) -> list[np.ndarray]:
    """Corners in mm of the page's polygons, of as many as there are."""
    found: list[list[tuple[float, float]]] = []

    def visit(operator: bytes, operands: list, matrix: list[float], _text: list[float]) -> None:
        if operator in (b"m", b"l"):
            a, b, c, d, e, f = matrix
            x, y = map(float, operands)
            point = ((a * x + c * y + e) / MM, (b * x + d * y + f) / MM)
            if operator == b"m":
                found.append([point])
            else:
                found[-1].append(point)

    page.extract_text(visitor_operand_before=visit)
    return [np.array(points) for points in found]


@pytest.mark.parametrize(
    ("page", "size_mm", "paper"),
    [
        ("a4", (100, 100), (210, 297)),
        ("a4", (150, 150), (210, 297)),
        ("a4", (220, 80), (297, 210)),  # turned
        ("a3", (153.3, 201.7), (297, 420)),
        ("letter", (150, 150), (215.9, 279.4)),  # with smaller markers
        ("letter", (25.4, 50.8), (215.9, 279.4)),
        ([120, 200.5], (60, 60), (120, 200.5)),
    ],
)
def test_patch_and_markers_have_their_true_size_on_one_page(
    tmp_path: Path, page: Any, size_mm: tuple[float, float], paper: tuple[float, float]
) -> None:
    reader = write(tmp_path / "sheet.pdf", size_mm, page, margin_mm=8)
    assert len(reader.pages) == 1
    media = reader.pages[0].mediabox
    assert [media.width / MM, media.height / MM] == pytest.approx(paper, abs=0.01)
    assert Sheet(page, margin_mm=8).check(size_mm) == pytest.approx(paper)
    left, bottom, width, height = image_box(reader.pages[0])
    assert (width, height) == pytest.approx(size_mm, abs=0.01)
    assert left + width / 2 == pytest.approx(paper[0] / 2, abs=0.01)
    # The markers' black stretches, from the patch's top-left corner, y down, are those of the layout.
    layout = Sheet(page, margin_mm=8).layout(size_mm)
    stretches = [four for four in polygons(reader.pages[0]) if len(four) == 4]
    points = (np.concatenate(stretches) - (left, bottom + height)) * (1, -1)
    for marker, corners in layout.markers.items():
        first, last = corners[0] - 0.02, corners[2] + 0.02
        inside = points[((points >= first) & (points <= last)).all(axis=1)].reshape(-1, 4, 2)
        assert inside.min(axis=(0, 1)) == pytest.approx(corners[0], abs=0.01)
        assert inside.max(axis=(0, 1)) == pytest.approx(corners[2], abs=0.01)
        area = np.ptp(inside, axis=1).prod(axis=1).sum()
        assert area == pytest.approx(bits(marker).mean() * layout.marker_mm**2, rel=1e-3)
    assert (np.abs(points - (width / 2, height / 2)).max(axis=0) <= np.array(paper) / 2 - 8).all()


def test_markers_can_be_left_out(tmp_path: Path) -> None:
    (page,) = write(tmp_path / "sheet.pdf", (190, 240), fiducials=False).pages
    assert image_box(page)[2:] == pytest.approx((190, 240), abs=0.01)
    assert not [four for four in polygons(page) if len(four) == 4]


def test_a_patch_larger_than_the_page_goes_on_several_that_overlap(tmp_path: Path) -> None:
    reader = write(tmp_path / "sheet.pdf", (400, 300))
    pages = [page for page in reader.pages if (page.mediabox.width > page.mediabox.height)]
    assert len(pages) == len(reader.pages) > 1
    corners = []
    for number, page in enumerate(reader.pages):
        assert f"Page {number + 1} of {len(pages)}" in page.extract_text()
        left, bottom, width, height = image_box(page)
        assert (width, height) == pytest.approx((400, 300), abs=0.01)
        x, y, across, up = clip(page)
        assert x >= 10 - 1e-6
        assert x + across <= 297 - 10 + 1e-6
        corners.append((x - left, bottom + height - y - up, across, up))  # of the tile, in the patch's frame
    bounds = Sheet().layout((400, 300)).bounds_mm
    first, last = corners[0], corners[-1]
    assert first[:2] == pytest.approx(bounds[:2], abs=0.01)
    assert (last[0] + last[2], last[1] + last[3]) == pytest.approx(bounds[2:], abs=0.01)
    columns = sum(tile[1] == pytest.approx(first[1]) for tile in corners)
    for one, other in pairwise(corners):
        if one[1] == pytest.approx(other[1]):
            assert one[0] + one[2] - other[0] == pytest.approx(10, abs=0.01)
    assert corners[columns - 1][0] + corners[columns - 1][2] == pytest.approx(bounds[2], abs=0.01)
    assert first[1] + first[3] - corners[columns][1] == pytest.approx(10, abs=0.01)


def clip(page: PageObject) -> list[float]:
    """Left, bottom, width and height in mm of the page's clipping rectangle."""
    boxes: list[list[float]] = []
    last: list[float] = []

    def visit(operator: bytes, operands: list, matrix: list[float], _text: list[float]) -> None:
        if operator == b"re":
            x, y, width, height = map(float, operands)
            last[:] = [(matrix[0] * x + matrix[4]) / MM, (matrix[3] * y + matrix[5]) / MM]
            last.extend([matrix[0] * width / MM, matrix[3] * height / MM])
        elif operator in (b"W", b"W*"):
            boxes.append([*last])

    page.extract_text(visitor_operand_before=visit)
    (box,) = boxes
    return box


def test_colours_are_exact_upright_and_white_outside_the_mask(tmp_path: Path) -> None:
    mask = torch.ones(1, 8, 8)
    mask[:, :, :2] = 0
    reader = write(tmp_path / "sheet.pdf", (80.1, 80.1), mask=mask)
    (image,) = reader.pages[0].images
    pixels = np.asarray(image.image)
    assert pixels.shape == (473, 473, 3)  # 150 dpi
    assert pixels[:, 10].min() == 255
    for row, column, colour in [
        (5, 190, (255, 0, 0)), (5, 465, (0, 255, 0)), (465, 190, (0, 0, 255)), (465, 465, (255, 255, 0))
    ]:  # fmt: skip
        assert tuple(pixels[row, column]) == colour
    # Bilinear between texel centres, as the renderer samples: half way from red to green at the border of the texels.
    assert tuple(pixels[5, 236]) == (128, 128, 0)
    ramp = pixels[5, 210:263, 0].astype(int)
    assert (np.diff(ramp) <= 0).all()
    assert len(np.unique(ramp)) > 50


def test_texture_finer_than_the_printer_is_not_reduced(tmp_path: Path) -> None:
    texture = torch.rand(3, 200, 300)
    Sheet().write(tmp_path / "sheet.pdf", texture, torch.ones(1, 200, 300), (15, 10), "", "")
    (image,) = PdfReader(tmp_path / "sheet.pdf").pages[0].images
    assert np.array_equal(np.asarray(image.image), (texture * 255).round().byte().permute(1, 2, 0).numpy())


def test_sheet_says_what_it_is_and_how_to_print_it(tmp_path: Path) -> None:
    reader = write(tmp_path / "sheet.pdf", (100, 100))
    text = reader.pages[0].extract_text()
    said = (
        "Flow patch",
        "for two victims, sheet 0",
        "Print at 100 %",
        "must measure 100 mm",
        "Adversarial test pattern",
    )
    for words in said:
        assert words in text
    assert reader.viewer_preferences is not None
    assert reader.viewer_preferences.print_scaling == "/None"


def test_same_patch_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        write(tmp_path / name, (100, 100))
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_table_says_how_many_pixels_the_patch_spans(tmp_path: Path) -> None:
    reader = write(tmp_path / "sheet.pdf", (100, 80), field_of_view=90, image_width=2000)
    # Focal length 1000 px: 100 mm at 1 m span 100 px.
    spans = reader.pages[0].extract_text().split("patch spans, px")[1].split()[:8]
    assert spans == ["100", "50", "33", "20", "14", "10", "7", "5"]


def test_colours_are_of_the_profile(tmp_path: Path) -> None:
    for name, profile in (("srgb", None), ("given", str(icc(tmp_path, ImageCms.createProfile("sRGB"))))):
        reader = write(tmp_path / f"{name}.pdf", (400, 100), profile=profile)
        for page in reader.pages:
            embedded = default_rgb(page)
            assert ImageCms.ImageCmsProfile(io.BytesIO(embedded)).profile.xcolor_space.strip() == "RGB"
    assert embedded == (tmp_path / "profile.icc").read_bytes()


def default_rgb(page: Any) -> bytes:
    """The profile that stands for the page's device colours."""
    space, stream = page["/Resources"]["/ColorSpace"]["/DefaultRGB"]
    assert (space, stream.get_object()["/N"]) == ("/ICCBased", 3)
    return stream.get_object().get_data()


def icc(folder: Path, profile: Any) -> Path:
    path = folder / "profile.icc"
    path.write_bytes(ImageCms.ImageCmsProfile(profile).tobytes())
    return path


def test_profile_must_be_one_of_rgb(tmp_path: Path) -> None:
    lab = icc(tmp_path, ImageCms.createProfile("LAB"))
    with pytest.raises(InputError, match="expected an ICC profile of RGB colours, got Lab in"):
        Sheet(profile=str(lab))
    lab.write_bytes(b"no profile")
    for path in (lab, tmp_path / "missing.icc"):
        with pytest.raises(InputError, match=r"print\.profile: expected a readable ICC profile, got"):
            Sheet(profile=str(path))


def test_cut_out_masks_print_with_their_outline(tmp_path: Path) -> None:
    y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) / 64 - 0.5] * 2, indexing="ij")
    radius = (x**2 + y**2).sqrt()[None]
    ring = ((radius < 0.45) & (radius > 0.2)).float()
    (page,) = write_texture(tmp_path / "ring.pdf", ring).pages
    left, bottom, width, height = image_box(page)
    curves = [points for points in polygons(page) if len(points) > 4]
    assert len(curves) == 2
    radii = [np.linalg.norm(curve - (left + width / 2, bottom + height / 2), axis=1) for curve in curves]
    assert sorted(float(np.median(each)) for each in radii) == pytest.approx([20, 45], abs=0.7)
    (page,) = write_texture(tmp_path / "square.pdf", torch.ones_like(ring)).pages
    assert not [points for points in polygons(page) if len(points) > 4]


def write_texture(path: Path, mask: Tensor) -> PdfReader:
    Sheet().write(path, torch.zeros(3, *mask.shape[1:]), mask, (100, 100), "", "")
    return PdfReader(path)


def test_blank_sheet_has_markers_and_an_outline_but_no_patch(tmp_path: Path) -> None:
    Sheet().write(tmp_path / "blank.pdf", None, torch.ones(1, 8, 8), (100, 80), "", "", number=7)
    (page,) = PdfReader(tmp_path / "blank.pdf").pages
    assert not page.images
    shapes = [np.ptp(four, axis=0) for four in polygons(page) if len(four) == 4]
    assert any(shape == pytest.approx((100, 80), abs=0.01) for shape in shapes)
    assert "sheet 7" in page.extract_text()


@pytest.mark.parametrize("dpi", [150, 203])
def test_picture_has_its_dpi_and_its_markers_are_found(tmp_path: Path, dpi: float) -> None:
    sheet, size_mm = Sheet("letter", dpi=dpi, number=5), (120, 90)
    sheet.write_png(tmp_path / "sheet.png", quarters(), torch.ones(1, 8, 8), size_mm, number=6)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.info["dpi"] == pytest.approx((dpi, dpi), abs=0.02)  # PNG knows pixels per metre
        assert ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])).profile.xcolor_space == "RGB "
        pixels = np.asarray(image)
    (sighting,) = find(pixels, [sheet.layout(size_mm, number) for number in (5, 6)])
    assert (sighting.number, sighting.markers) == (6, 6)
    left, top, right, bottom = sheet.layout(size_mm).bounds_mm
    density = dpi / 25.4
    assert pixels.shape[:2] == (math.ceil((bottom - top) * density), math.ceil((right - left) * density))
    corners = np.array([(0, 0), (120, 0), (120, 90), (0, 90)]) - (left, top)
    assert (sighting.corners + 0.5) / density == pytest.approx(corners, abs=0.1)
    x, y = np.rint(sighting.corners[0] + 4).astype(int)
    assert pixels[y, x].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("size_mm", "message"),
    [
        ((900, 900), r"print=a4: expected a patch that fits on 24 pages, got 900 × 900 mm, which takes \d+; use a sm"),
        ((0, 100), "expected a patch larger than 0 mm, got 0 × 100 mm"),
        ((math.nan, 100), "expected a patch larger than 0 mm"),
        ((1e30, 1e30), "expected a patch that fits on 24 pages"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_written(
    tmp_path: Path, size_mm: tuple[float, float], message: str
) -> None:
    for work in (lambda: Sheet().check(size_mm), lambda: write(tmp_path / "sheet.pdf", size_mm)):
        with pytest.raises(InputError, match=message):
            work()
    assert not list(tmp_path.iterdir())


def test_dpi_that_would_make_a_huge_file_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"print.dpi=3000: expected at most 200 million pixels, got \d+ .*=1818 or less"
    ):
        Sheet(dpi=3000).check((150, 150))
    Sheet(dpi=1818).check((150, 150))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"page": "a5"}, r"expected one of a4, a3, letter or \[width, height\] in mm, got 'a5'"),
        ({"page": [100]}, r"print.page: expected \[width, height\] in mm"),
        ({"page": [80, 80]}, "expected a page with 104 mm between its margins for the ruler, got 60 on 80x80mm"),
        ({"margin_mm": -1}, "expected a page with 104 mm between"),
        ({"margin_mm": 60}, "use a larger page or a smaller margin"),
        ({"number": 40}, "print.number: expected 0 to 39"),
        ({"dpi": 5}, "print.dpi: expected 36 to 4800 pixels per inch, got 5"),
        ({"field_of_view": 180}, "expected field_of_view between 0 and 180 degrees"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sheet(**options)
