from __future__ import annotations

import pytest
import torch

from patchattack import seeding
from patchattack.data import signs
from patchattack.data.signs import COLOURS, SHAPES, SIGNS, arrow, bank, text

SIZE = 96


def at(kind: str, x: float, y: float) -> torch.Tensor:
    """Median colour ``[3]`` of many variants at a place in [-1, 1] of the plate."""
    images = bank(kind, 64, SIZE, seeding.generator(5))
    column, row = (int((place + 1) / 2 * SIZE) for place in (x, y))
    return images[:, :, row, column].median(dim=0).values


@pytest.mark.parametrize("kind", SIGNS)
def test_textures_have_their_shape_and_range_and_repeat(kind: str) -> None:
    images = bank(kind, 3, SIZE, seeding.generator(0))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, bank(kind, 3, SIZE, seeding.generator(0)))
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("kind", "x", "y", "colour"),
    [
        ("stop", 0.0, -0.6, "red"),
        ("yield", 0.0, -0.3, "white"),
        ("yield", 0.0, -0.72, "red"),
        ("no_entry", 0.0, 0.0, "white"),
        ("no_entry", 0.0, 0.5, "red"),
        ("no_stopping", 0.0, 0.0, "red"),
        ("no_stopping", 0.4, 0.0, "blue"),
        ("speed_80", 0.0, 0.5, "white"),
        ("speed_30", -0.8, 0.0, "red"),
        ("priority_road", 0.0, 0.0, "yellow"),
        ("priority_road", 0.0, -0.7, "white"),
        ("crossing", 0.0, 0.18, "black"),
        ("parking", 0.5, 0.5, "blue"),
        ("end_of_limit", 0.0, 0.0, "black"),
        ("end_of_limit", 0.5, 0.5, "white"),
    ],
)
def test_paint_is_where_it_belongs(kind: str, x: float, y: float, colour: str) -> None:
    measured = at(kind, x, y)
    distances = {name: (measured - torch.tensor(rgb)).norm().item() for name, rgb in COLOURS.items()}
    assert min(distances, key=lambda name: distances[name]) == colour


def test_arrows_point_where_their_names_say() -> None:
    """The half with the barbs has more white."""
    left, right, ahead = (
        bank(kind, 16, SIZE, seeding.generator(1)).mean(dim=(0, 1))
        for kind in ("turn_left", "turn_right", "straight_on")
    )
    half = SIZE // 2
    assert left[:, :half].mean() > left[:, half:].mean() + 0.01
    assert right[:, half:].mean() > right[:, :half].mean() + 0.01
    assert ahead[:half].mean() > ahead[half:].mean() + 0.01


@pytest.mark.parametrize("kind", ["no_entry", "yield", "speed_80"])
def test_edges_are_antialiased(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean sign drawn at twice the size and averaged is the sign."""
    monkeypatch.setattr(signs, "noise", lambda count, size, *_: torch.zeros(count, 1, size, size))
    fine, coarse = (bank(kind, 4, size, seeding.generator(2)) for size in (2 * SIZE, SIZE))
    difference = (torch.nn.functional.avg_pool2d(fine, 2) - coarse).abs()
    # Sharp corners differ: coverage is taken from the distance to one edge. Hard edges differ in 3 % of the texels.
    assert (difference > 0.1).float().mean() < 0.001
    assert difference.mean() < 0.002


def test_text_and_arrows_are_laid_out_about_the_middle() -> None:
    points = torch.tensor([point for line in text("80", 0.3, 0.6, 0.2) for point in line])
    torch.testing.assert_close(points.amin(dim=0), torch.tensor([-0.4, -0.3]))
    torch.testing.assert_close(points.amax(dim=0), torch.tensor([0.4, 0.3]))
    shaft, head = arrow((0.0, 0.5), (0.0, -0.5), head=0.2)
    assert shaft == ((0.0, 0.5), (0.0, -0.5))
    assert head[1] == (0.0, -0.5)
    assert head[0][1] == pytest.approx(head[2][1])
    assert -0.5 < head[0][1] < 0
    assert head[0][0] == pytest.approx(-head[2][0])


def test_every_sign_has_a_known_shape_and_colours() -> None:
    for sign in SIGNS.values():
        assert sign.shape in SHAPES
        assert {sign.rim, sign.face, sign.ink} <= COLOURS.keys()
        assert all(max(map(abs, point)) <= 1 for line in sign.symbol for point in line)
