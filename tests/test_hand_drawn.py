"""Textures that a ruler and two pens can draw."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from patchattack import hand_drawn
from patchattack.errors import InputError
from patchattack.hand_drawn import HandDrawn
from patchattack.patch import resize


def test_stripes_are_upright_and_begin_with_the_first_colour() -> None:
    texture = HandDrawn("stripes", 2, colours=("100", "011")).texture(4, 8)
    first = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0])
    assert torch.equal(texture, torch.stack([first, 1 - first, 1 - first])[:, None].expand(3, 4, 8))


def test_periods_are_along_the_longer_side() -> None:
    tall = HandDrawn("stripes", 2, angle=90).texture(8, 4)
    assert torch.equal(tall, HandDrawn("stripes", 2).texture(4, 8).rot90(1, (1, 2)))


@pytest.mark.parametrize(
    "one", [*hand_drawn.standard_textures(), HandDrawn("stripes", 3.3, 27, 0.4, 0.3, ("110", "001"))], ids=str
)
def test_a_drawing_does_not_depend_on_the_resolution(one: HandDrawn) -> None:
    texture = one.texture(64, 64)
    assert texture.shape == (3, 64, 64)
    assert 0 <= texture.min() <= texture.max() <= 1
    assert torch.allclose(resize(texture, 32, 32), one.texture(32, 32), atol=0.1)


def test_duty_is_the_fraction_of_the_first_colour_and_phase_moves_it() -> None:
    one = HandDrawn("stripes", 4, duty=0.25)
    assert one.texture(64, 64).mean() == pytest.approx(0.25)
    moved = HandDrawn("stripes", 4, duty=0.25, phase=0.25).texture(64, 64)
    assert torch.equal(moved, one.texture(64, 64).roll(-4, 2))


def test_checkers_change_both_ways() -> None:
    texture = HandDrawn("checkers", 2).texture(8, 8)[0]
    assert torch.equal(texture, texture.roll((2, 2), (0, 1)))
    assert torch.equal(texture, 1 - texture.roll(2, 0))
    assert torch.equal(texture, 1 - texture.roll(2, 1))


def test_random_and_varied_drawings_can_be_written_and_read() -> None:
    generator = torch.Generator().manual_seed(0)
    one = hand_drawn.sample(generator)
    for _ in range(200):
        one = hand_drawn.vary(one, generator)
        assert HandDrawn.read(one.facts()) == one
        assert one.colours[0] != one.colours[1]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "spiral"},
        {"periods": 0},
        {"periods": math.nan},
        {"periods": 1e9},
        {"angle": math.inf},
        {"duty": 0.0},
        {"colours": ["100"]},
        {"colours": ["100", "200"]},
        {"colours": 7},
        {"more": 1},
    ],
)
def test_what_is_no_drawing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="hand-drawn texture: expected"):
        HandDrawn.read(HandDrawn("stripes", 2).facts() | change)
