from __future__ import annotations

import pytest
import torch

from patchattack.printing.colour import delta_e, encode, lab, linear

# Sharma, Wu & Dalal 2005, table 1: two CIELAB colours and their difference.
PAIRS = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.49 -0.0010 50 -2.49 0.0009 7.1792
50 2.49 -0.0010 50 -2.49 0.0010 7.1792
50 2.49 -0.0010 50 -2.49 0.0011 7.2195
50 2.49 -0.0010 50 -2.49 0.0012 7.2195
50 -0.0010 2.49 50 0.0009 -2.49 4.8045
50 -0.0010 2.49 50 0.0010 -2.49 4.8045
50 -0.0010 2.49 50 0.0011 -2.49 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_differences_are_the_published_ones() -> None:
    rows = torch.tensor([[float(x) for x in line.split()] for line in PAIRS.split("\n") if line], dtype=torch.float64)
    assert len(rows) == 34
    one, other, expected = rows[:, :3], rows[:, 3:6], rows[:, 6]
    torch.testing.assert_close(delta_e(one, other), expected, rtol=0, atol=6e-5)
    torch.testing.assert_close(delta_e(other, one), expected, rtol=0, atol=6e-5)


def test_a_colour_does_not_differ_from_itself_and_one_meets_many() -> None:
    colours = lab(torch.rand(5, 3, generator=torch.Generator().manual_seed(0)))
    assert delta_e(colours, colours).max() == 0
    assert delta_e(colours, colours[0]).shape == (5,)


@pytest.mark.parametrize(
    ("srgb", "expected"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 1), (32.3, 79.19, -107.86)),
    ],
)
def test_lab_is_that_of_d65(srgb: tuple[float, ...], expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(lab(torch.tensor(srgb).float()), torch.tensor(expected).float(), rtol=0, atol=0.03)


def test_light_and_srgb_are_inverse() -> None:
    values = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(encode(linear(values)), values, rtol=0, atol=2e-7)
    torch.testing.assert_close(linear(torch.tensor([0.0, 0.04, 0.5, 1.0])), torch.tensor([0, 0.04 / 12.92, 0.21404, 1]))
