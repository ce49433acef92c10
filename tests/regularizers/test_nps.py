from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from patchattack.errors import InputError
from patchattack.files import package_folder
from patchattack.regularizers.nps import NonPrintability, load_palette, non_printability

PALETTE = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.9, 0.1, 0.1]])
DEFAULT = package_folder("assets") / "palettes" / "default.csv"


def test_value_by_hand() -> None:
    texture = torch.tensor([[0.1, 0.2, 0.0], [1.0, 0.9, 0.7], [0.9, 0.2, 0.1], [0.5, 0.0, 0.0]]).T.view(3, 2, 2)
    mask = torch.ones(1, 2, 2)
    assert non_printability(texture, PALETTE, mask).item() == pytest.approx((0.3 + 0.4 + 0.1 + 0.5) / 4)
    mask[0, 0, 1] = 0
    assert non_printability(texture, PALETTE, mask).item() == pytest.approx((0.3 + 0.1 + 0.5) / 3)


def test_printable_colours_cost_nothing() -> None:
    texture = PALETTE.T.view(3, 1, 3)
    assert non_printability(texture, PALETTE, torch.ones(1, 1, 3)).item() == 0


def test_the_resolution_does_not_matter() -> None:
    texture = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(36).view(1, 6, 6) % 3 > 0).float()
    larger, larger_mask = (x.repeat_interleave(4, 1).repeat_interleave(4, 2) for x in (texture, mask))
    small, large = non_printability(texture, PALETTE, mask), non_printability(larger, PALETTE, larger_mask)
    torch.testing.assert_close(small, large)


def test_gradient_points_to_the_nearest_colour() -> None:
    texture = torch.tensor([0.8, 0.3, 0.1]).view(3, 1, 1).requires_grad_()
    non_printability(texture, PALETTE, torch.ones(1, 1, 1)).backward()
    assert texture.grad.flatten().tolist() == [-1, 1, 0]


def test_gradient_matches_finite_differences() -> None:
    texture = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    mask = torch.ones(1, 5, 4).double()
    assert torch.autograd.gradcheck(lambda t: non_printability(t, PALETTE.double(), mask), texture)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"regularizer nps: expected one texture \[3, h, w\]"):
        non_printability(torch.zeros(shape), PALETTE, torch.ones(1, 8, 8))


def test_the_module_carries_its_weight_and_palette(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("# measured\n0,0,0\n\n255,255,255\n 229.5, 25.5,25.5\n")
    regularizer = NonPrintability(weight=0.25, palette=str(path))
    assert regularizer.weight == 0.25
    torch.testing.assert_close(regularizer.palette, PALETTE)
    assert "palette" in dict(regularizer.named_buffers())
    texture, mask = torch.rand(3, 4, 4), torch.ones(1, 4, 4)
    assert torch.equal(regularizer(texture, mask), non_printability(texture, regularizer.palette, mask))


@pytest.mark.parametrize("line", ["1,2", "1,2,3,4", "red,0,0", "0,0,256", "-1,0,0", "nan,0,0", "1;2;3"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"# header\n0,0,0\n{line}\n")
    with pytest.raises(InputError, match=rf"mine\.csv, line 3: expected an sRGB colour .*, got '{re.escape(line)}'"):
        load_palette(path)


def test_a_palette_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("# nothing\n")
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    for name, message in {"empty": "at least one", "image": "or 'default'", "absent": "or 'default'"}.items():
        with pytest.raises(InputError, match=message) as caught:
            NonPrintability(0.1, palette=tmp_path / f"{name}.csv")
        assert "\n" not in str(caught.value)


def test_the_default_palette_is_what_its_header_says() -> None:
    """Compute it anew from the primaries in the header."""
    lines = [line for line in DEFAULT.read_text().splitlines() if line.startswith("#   ")]
    labs = {name: [float(x) for x in lab] for _, name, *lab in map(str.split, lines)}
    white = np.array([0.9642, 1, 0.8249])

    def xyz(lab: list[float]) -> np.ndarray:
        y = (lab[0] + 16) / 116
        f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
        return np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))

    solid = {name: xyz(lab) / xyz(labs["paper"]) * white for name, lab in labs.items()}
    mixtures = []
    for areas in itertools.product((0, 0.5, 1), repeat=3):
        mixture = np.zeros(3)
        for inks in itertools.product((0, 1), repeat=3):
            name = "".join(ink for ink, on in zip("CMY", inks, strict=True) if on) or "paper"
            share = np.prod([area if on else 1 - area for area, on in zip(areas, inks, strict=True)])
            mixture += share * solid[name]
        mixtures.append(mixture)
    mixtures += [(solid["paper"] + solid["K"]) / 2, solid["K"]]
    # XYZ under D50 to linear sRGB, Bradford's adaptation included.
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = (np.array(mixtures) @ np.array(matrix).T).clip(0, 1)
    colours = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(load_palette(DEFAULT).numpy() * 255, colours * 255, atol=0.5 + 1e-3)


def test_the_default_palette_knows_paper_and_ink() -> None:
    default = NonPrintability(1.0)
    white = torch.ones(3, 2, 2)
    assert default(white, white[:1]).item() == 0
    pure_green = white * torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)
    assert default(pure_green, white[:1]) > 0.4
