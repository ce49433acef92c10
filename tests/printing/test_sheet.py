from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pypdf import PdfReader
from torch import Tensor

from patchattack.errors import InputError
from patchattack.printing.sheet import Sheet

MM = 72 / 25.4


def quarters() -> Tensor:
    """Red, green / blue, yellow."""
    texture = torch.zeros(3, 8, 8)
    texture[0, :4, :4] = texture[1, :4, 4:] = texture[2, 4:, :4] = 1
    texture[:2, 4:, 4:] = 1
    return texture


def write(path: Path, size_mm: tuple[float, float], page: str = "a4", mask: Tensor | None = None) -> PdfReader:
    mask = torch.ones(1, 8, 8) if mask is None else mask
    Sheet(page).write(path, quarters(), mask, size_mm, title="Flow patch", note="for two victims")
    return PdfReader(path)


def image_box(reader: PdfReader) -> list[float]:
    """Left, bottom, width, height of the one image, in mm."""
    boxes: list[list[float]] = []

    def visit(operator: bytes, operands: list, matrix: list[float], _text: list[float]) -> None:  # noqa: ARG001
        if operator == b"Do":
            assert matrix[1] == matrix[2] == 0
            boxes.append([matrix[4] / MM, matrix[5] / MM, matrix[0] / MM, matrix[3] / MM])

    reader.pages[0].extract_text(visitor_operand_before=visit)
    (box,) = boxes
    return box


@pytest.mark.parametrize(
    ("page", "size_mm", "paper"),
    [
        ("a4", (100, 100), (210, 297)),
        ("a4", (190, 233), (210, 297)),
        ("a4", (220, 80), (297, 210)),  # turned
        ("a3", (153.3, 201.7), (297, 420)),
        ("letter", (25.4, 50.8), (215.9, 279.4)),
    ],
)
def test_patch_has_its_true_size_in_the_middle_of_the_page(
    tmp_path: Path, page: str, size_mm: tuple[float, float], paper: tuple[float, float]
) -> None:
    reader = write(tmp_path / "sheet.pdf", size_mm, page)
    assert len(reader.pages) == 1
    media = reader.pages[0].mediabox
    assert [media.width / MM, media.height / MM] == pytest.approx(paper, abs=0.01)
    left, bottom, width, height = image_box(reader)
    assert (width, height) == pytest.approx(size_mm, abs=0.01)
    assert (left + width / 2, bottom + height / 2) == pytest.approx((paper[0] / 2, paper[1] / 2), abs=0.01)


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
    for words in ("Flow patch", "for two victims", "Print at 100 %", "must measure 100 mm", "Adversarial test pattern"):
        assert words in text
    assert reader.viewer_preferences is not None
    assert reader.viewer_preferences.print_scaling == "/None"


def test_same_patch_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        write(tmp_path / name, (100, 100))
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


@pytest.mark.parametrize("size_mm", [(191, 200), (100, 234), (0, 100)])
def test_patch_must_fit_on_the_page(tmp_path: Path, size_mm: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"got \d+ × \d+ mm, the largest that fits is 190 × 233 mm; use a smaller"):
        write(tmp_path / "sheet.pdf", size_mm)
    assert not list(tmp_path.iterdir())


def test_unknown_page() -> None:
    with pytest.raises(InputError, match="expected one of a4, a3, letter, got 'a5'"):
        Sheet("a5")
