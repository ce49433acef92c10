from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pypdf import PdfReader

from patchattack.printing import chart
from patchattack.printing.sheet import Sheet

MM = 72 / 25.4


def test_the_colours_are_a_grid_with_greys_all_over_the_page() -> None:
    colours = np.round(chart.colours() * 255).astype(int)
    assert colours.shape == (chart.ROWS * chart.COLUMNS, 3)
    distinct, counts = np.unique(colours, axis=0, return_counts=True)
    assert len(distinct) == 6**3 + 8
    assert sorted(distinct[counts > 1, 0]) == sorted(chart.REPEATED)
    greys = chart.is_repeated().reshape(chart.ROWS, chart.COLUMNS)
    assert greys.sum() == 56
    for row in range(chart.ROWS - 4):
        for column in range(chart.COLUMNS - 4):
            assert greys[row : row + 5, column : column + 5].sum() == 5


def test_neighbours_differ() -> None:
    cells = chart.colours().reshape(chart.ROWS, chart.COLUMNS, 3)
    for axis in (0, 1):
        difference = np.abs(np.diff(cells, axis=axis)).max(axis=-1)
        assert difference.min() > 0.1
        assert difference.mean() > 0.5


def test_the_layout_overlaps_nowhere_and_stays_inside() -> None:
    taken = np.zeros(chart.SIZE[::-1], int)
    for corners in (*chart.fiducials().values(), *chart.inner(1)):
        (left, top), (right, bottom) = corners[[0, 2]].astype(int)
        assert np.array_equal(corners, np.round(corners))  # whole units: sharp edges at any whole resolution
        taken[top:bottom, left:right] += 1
        assert 0 <= left < right <= chart.SIZE[0]
        assert 0 <= top < bottom <= chart.SIZE[1]
    assert taken.max() == 1
    np.testing.assert_allclose(chart.inner(0.5).mean(axis=1), chart.centres())


def test_the_image_has_the_colours_and_fiducials_where_they_should_be() -> None:
    image = chart.image(4)
    assert image.shape == (4 * chart.SIZE[1], 4 * chart.SIZE[0], 3)
    x, y = (chart.centres() * 4).astype(int).T
    assert np.array_equal(image[y, x], np.round(chart.colours() * 255))
    grey = np.pad(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 20, constant_values=255)
    corners, numbers, _ = cv2.aruco.ArucoDetector(chart.dictionary()).detectMarkers(grey)
    found = dict(zip(numbers.ravel().tolist(), corners, strict=True))
    assert found.keys() == chart.fiducials().keys()
    for number, expected in chart.fiducials().items():
        np.testing.assert_allclose(found[number][0] - 20, 4 * expected, atol=1.1)


@pytest.mark.parametrize(("page", "paper"), [("a4", (210, 297)), ("a3", (297, 420)), ("letter", (215.9, 279.4))])
def test_the_page_is_in_millimetres_and_the_chart_undistorted(
    tmp_path: Path, page: str, paper: tuple[float, float]
) -> None:
    path = tmp_path / "chart.pdf"
    chart.write(path, Sheet(page))
    reader = PdfReader(path)
    boxes: list[list[float]] = []

    def visit(operator: bytes, operands: list, matrix: list[float], _text: list[float]) -> None:  # noqa: ARG001
        if operator == b"Do":
            boxes.append([matrix[i] / MM for i in (4, 5, 0, 3)])

    text = reader.pages[0].extract_text(visitor_operand_before=visit)
    ((left, bottom, width, height),) = boxes
    media = reader.pages[0].mediabox
    assert [media.width / MM, media.height / MM] == pytest.approx(paper, abs=0.01)
    assert width / height == pytest.approx(chart.SIZE[0] / chart.SIZE[1], rel=1e-5)
    assert left == pytest.approx((paper[0] - width) / 2, abs=0.01)
    assert min(left, bottom) > 10 - 1e-3
    assert bottom + height < paper[1] - 10 - 10  # the heading
    assert width == pytest.approx(paper[0] - 20) or bottom + height > paper[1] - 10 - 15
    assert f"version {chart.VERSION}" in text
    # The numbers are the chart's and of the profile that a patch's are of.
    assert reader.pages[0]["/Resources"]["/ColorSpace"]["/DefaultRGB"][0] == "/ICCBased"
    (image,) = reader.pages[0].images
    assert np.array_equal(np.asarray(image.image), chart.image())
    assert reader.viewer_preferences is not None
    assert reader.viewer_preferences.print_scaling == "/None"


def test_same_chart_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        chart.write(tmp_path / name, Sheet())
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
