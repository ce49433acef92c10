from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchattack.errors import InputError
from patchattack.patch import Patch, low_passed, random_texture, write_png


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def picture(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def test_a_patch_is_its_texture_its_mask_and_its_size() -> None:
    patch = Patch.create(resolution=32)
    assert patch().shape == (3, 32, 32)
    assert patch.mask.shape == (1, 32, 32)
    assert patch.size_mm == (150, 150)
    assert patch().min() >= 0
    assert patch().max() <= 1
    assert [name for name, _ in patch.named_parameters()] == ["parameter"]
    assert patch.dpi == pytest.approx((32 / 150 * 25.4,) * 2)


def test_a_random_start_is_its_seed() -> None:
    first, again, other = (Patch.create(resolution=8, seed=seed)() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(Patch.create(resolution=8, start="grey")(), torch.full((3, 8, 8), 0.5))


def test_creating_a_patch_does_not_disturb_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Patch.create(resolution=8)
    random_texture(8, 8, 0)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("resolution", [16, 63, 64])
def test_a_circle_has_the_area_of_a_circle(resolution: int) -> None:
    mask = Patch.create(shape="circle", resolution=resolution).mask
    assert mask.mean().item() == pytest.approx(math.pi / 4, rel=2e-3)
    assert mask[0, 0, 0] == 0
    assert mask[0, resolution // 2, resolution // 2] == 1
    torch.testing.assert_close(mask, mask.flip(1))
    torch.testing.assert_close(mask, mask.transpose(1, 2))
    assert ((mask > 0) & (mask < 1)).any()  # its edge is soft


def test_an_ellipse_touches_all_sides() -> None:
    mask = Patch.create(shape="circle", resolution=40, size_mm=[100, 50]).mask
    assert mask.shape == (1, 20, 40)
    assert mask.mean().item() == pytest.approx(math.pi / 4, rel=5e-3)
    assert min(mask[0, 10, 0], mask[0, 10, -1], mask[0, 0, 20], mask[0, -1, 20]) > 0.5


@pytest.mark.parametrize(
    ("size_mm", "shape", "expected"),
    [(100, (64, 64), (100, 100)), ([200, 100], (32, 64), (200, 100)), ([50, 150], (64, 21), (50, 150))],
)
def test_resolution_counts_along_the_longer_side(
    size_mm: float | list[float], shape: tuple[int, int], expected: tuple[float, float]
) -> None:
    patch = Patch.create(resolution=64, size_mm=size_mm)
    assert patch.mask.shape[1:] == shape
    assert patch.size_mm == expected


def test_alpha_is_the_mask(tmp_path: Path) -> None:
    pixels = np.full((20, 40, 4), 255, np.uint8)
    pixels[:, :10, 3] = 0
    patch = Patch.create(shape=picture(tmp_path / "mask.png", pixels), resolution=40, size_mm=80)
    assert patch.size_mm == (80, 40)  # the image's proportions
    assert patch.mask.shape == (1, 20, 40)
    assert patch.mask[..., :10].max() == 0
    assert patch.mask[..., 10:].min() == 1


def test_without_alpha_brightness_is_the_mask(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, 4:12] = 255
    mask = Patch.create(shape=picture(tmp_path / "mask.png", pixels), resolution=8).mask
    assert mask.sum() == 16
    assert mask[0, 2:6, 2:6].min() == 1


def test_an_image_can_be_the_start(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0] = 255  # red first: RGB
    patch = Patch.create(start=picture(tmp_path / "start.png", pixels), resolution=4)
    torch.testing.assert_close(patch(), torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 4))


def test_free_pixels_stay_in_range_after_project() -> None:
    """A clamp whose result is dropped would leave them outside."""
    patch = Patch.create(resolution=8)
    optimizer = torch.optim.SGD(patch.parameters(), lr=10.0)
    (patch() * torch.linspace(-1, 1, 8)).sum().backward()
    optimizer.step()
    before = patch().detach().clone()
    assert before.min() < 0
    assert before.max() > 1
    assert patch.project_() is None
    assert torch.equal(patch(), before.clamp(0, 1))
    assert patch.parameter.requires_grad


def test_the_tanh_variable_starts_at_the_texture_and_never_leaves_the_range() -> None:
    texture = random(3, 8, 8)
    texture[0, 0, :2] = torch.tensor([0.0, 1.0])
    patch = Patch(texture, torch.ones(1, 8, 8), (10, 10), parameterisation="tanh")
    torch.testing.assert_close(patch(), texture, rtol=0, atol=6e-4)
    (gradient,) = torch.autograd.grad(patch().sum(), patch.parameter)
    assert gradient.isfinite().all()
    assert gradient.min() > 0  # black and white texels can still move
    with torch.no_grad():
        patch.parameter.add_(torch.linspace(-50, 50, 64).view(8, 8))
    free = patch.parameter.detach().clone()
    patch.project_()
    assert torch.equal(patch.parameter, free)
    assert 0 <= patch().min() <= patch().max() <= 1


def test_a_palette_variable_shows_its_colours_alone_and_still_moves() -> None:
    colours = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.8, 0.1, 0.1]]
    patch = Patch(random(3, 8, 8), torch.ones(1, 8, 8), (10, 10), parameterisation="palette", palette=colours)
    shown = patch().flatten(1).T
    distance = torch.cdist(random(3, 8, 8).flatten(1).T, torch.tensor(colours))
    torch.testing.assert_close(shown, torch.tensor(colours)[distance.argmin(dim=1)], rtol=0, atol=1e-6)
    weights = random(3, 8, 8)
    (gradient,) = torch.autograd.grad((patch() * weights).sum(), patch.parameter)
    torch.testing.assert_close(gradient, weights)
    with torch.no_grad():
        patch.parameter.fill_(3)
    patch.project_()
    assert patch.parameter.max() == 1


def test_bars_are_two_pieces() -> None:
    rows = Patch.create(shape="bars", resolution=20).mask[0, :, 0]
    assert rows.diff().abs().sum() == 4
    assert rows.mean() == pytest.approx(0.4)


@pytest.mark.parametrize("variable", ["pixels", "tanh", "palette"])
def test_a_patch_comes_back_from_its_file(tmp_path: Path, variable: str) -> None:
    patch = Patch.create(shape="circle", resolution=48, size_mm=[123.4, 56.7], parameterisation=variable)
    patch.save(tmp_path / "patch.png", {"victims": ["a", "b"]})
    loaded = Patch.load(tmp_path / "patch.png")
    torch.testing.assert_close(loaded(), patch(), rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(loaded.mask, patch.mask, rtol=0, atol=0.5 / 255 + 1e-6)
    assert loaded.size_mm == patch.size_mm
    sheet = json.loads((tmp_path / "patch.json").read_text())
    assert sheet["victims"] == ["a", "b"]
    assert sheet["texels"] == [22, 48]
    loaded.save(tmp_path / "again.png", {})
    assert torch.equal(Patch.load(tmp_path / "again.png")(), loaded())


def test_colour_under_the_mask_survives(tmp_path: Path) -> None:
    """The file keeps the texture where its alpha is 0: training can go on from it."""
    mask = torch.ones(1, 4, 4)
    mask[:, :2] = 0
    Patch(random(3, 4, 4), mask, (10, 10)).save(tmp_path / "patch.png", {})
    torch.testing.assert_close(Patch.load(tmp_path / "patch.png")(), random(3, 4, 4), rtol=0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("size_mm", [(150.0, 150.0), (210.0, 74.25)])
def test_the_dpi_of_the_file_gives_millimetres(tmp_path: Path, size_mm: tuple[float, float]) -> None:
    write_png(tmp_path / "patch.png", random(3, 30, 60), torch.ones(1, 30, 60), size_mm)
    with Image.open(tmp_path / "patch.png") as image:
        found = tuple(n / dpi * 25.4 for n, dpi in zip(image.size, image.info["dpi"], strict=True))
    assert found == pytest.approx(size_mm, rel=2e-3)  # PNG stores whole pixels per metre


class Bomb:
    """What a pickle can do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return open, (str(self.path), "w")  # type: ignore[return-value]


def test_a_patch_is_never_unpickled(tmp_path: Path) -> None:
    Patch.create(resolution=4).save(tmp_path / "patch.png", {})
    for name in ("patch.json", "patch.png"):  # the image last: the sheet beside a good image, too
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "fired")))
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            Patch.load(tmp_path / "patch.png")
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize(
    "sheet",
    [
        "",
        "{",
        "null",
        "[1, 2]",
        "{}",
        '{"size_mm": 5}',
        '{"size_mm": [1]}',
        '{"size_mm": [1, 2, 3]}',
        '{"size_mm": ["wide", 2]}',
        '{"size_mm": [null, 2]}',
        f'{{"size_mm": [1{"0" * 400}, 2]}}',
        "[" * 100_000,
        b"\xff\xfe\x00",
    ],
    ids=lambda sheet: repr(sheet[:24]),
)
def test_a_sheet_without_a_size_is_refused(tmp_path: Path, sheet: str | bytes) -> None:
    Patch.create(resolution=4).save(tmp_path / "patch.png", {})
    (tmp_path / "patch.json").write_bytes(sheet.encode() if isinstance(sheet, str) else sheet)
    with pytest.raises(InputError, match=r"patch\.json: expected JSON with size_mm: \[width, height\]") as caught:
        Patch.load(tmp_path / "patch.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["[0, 2]", "[-1, 2]", "[NaN, 2]", "[1, Infinity]"])
def test_a_sheet_with_an_impossible_size_is_refused(tmp_path: Path, size: str) -> None:
    Patch.create(resolution=4).save(tmp_path / "patch.png", {})
    (tmp_path / "patch.json").write_text(f'{{"size_mm": {size}}}')
    with pytest.raises(InputError, match=r"expected JSON with size_mm: \[width, height\].*expected a (finite )?number"):
        Patch.load(tmp_path / "patch.png")


def test_a_patch_needs_both_files(tmp_path: Path) -> None:
    Patch.create(resolution=4).save(tmp_path / "patch.png", {})
    (tmp_path / "patch.json").unlink()
    with pytest.raises(InputError, match=r"keep patch\.png and patch\.json together"):
        Patch.load(tmp_path / "patch.png")
    with pytest.raises(InputError, match=r"patch: expected a readable image file, got .*absent\.png"):
        Patch.load(tmp_path / "absent.png")


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    """Whatever a damaged file makes the decoder say, the user reads one line; some damage cannot be seen."""
    Patch.create(resolution=8).save(tmp_path / "patch.png", {})
    raw = (tmp_path / "patch.png").read_bytes()
    choose = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[choose.integers(80)] = choose.integers(256)
        (tmp_path / "patch.png").write_bytes(damaged[: choose.integers(40, len(raw))])
        try:
            Patch.load(tmp_path / "patch.png")
        except InputError:
            refused += 1
    assert refused > 250


def test_an_image_without_any_patch_is_refused(tmp_path: Path) -> None:
    Patch.create(resolution=4).save(tmp_path / "patch.png", {})
    picture(tmp_path / "patch.png", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match="some of the mask above 0"):
        Patch.load(tmp_path / "patch.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 0}, r"patch\.resolution: expected at least 1 texel, got 0"),
        ({"size_mm": 0}, r"patch\.size_mm: expected millimetres above 0, got 0"),
        ({"size_mm": -3.5}, r"patch\.size_mm: expected millimetres above 0, got -3.5"),
        ({"size_mm": math.nan}, r"patch\.size_mm: expected millimetres above 0, got nan"),
        ({"size_mm": math.inf}, r"patch\.size_mm: expected millimetres above 0, got inf"),
        ({"size_mm": [100, 0]}, r"patch\.size_mm: expected millimetres above 0, got \[100, 0\]"),
        ({"size_mm": [1, 2, 3]}, r"patch\.size_mm: expected one number or \[width, height\], got \[1, 2, 3\]"),
        ({"size_mm": "5O"}, r"patch\.size_mm: expected one number or \[width, height\]"),
        ({"shape": "triangle"}, r"patch\.shape: expected square, circle, bars or a readable image file, got triangle"),
        ({"start": "noise"}, r"patch\.start: expected random, grey or a readable image file, got noise"),
        ({"palette": [[0, 0, 0]]}, r"patch\.palette: expected at least two colours"),
        ({"palette": [[0, 0, 0], [255, 255, 255]]}, r"patch\.palette: expected at least two colours"),
        ({"parameterisation": "sigmoid"}, r"expected pixels, tanh or palette, got sigmoid"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Patch.create(**options)


@pytest.mark.parametrize(
    ("texture", "mask"),
    [
        (torch.zeros(1, 4, 4), torch.ones(1, 4, 4)),
        (torch.zeros(3, 4, 4), torch.ones(1, 4, 5)),
        (torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)),
        (torch.full((3, 4, 4), 1.1), torch.ones(1, 4, 4)),
        (torch.full((3, 4, 4), math.nan), torch.ones(1, 4, 4)),
        (torch.zeros(3, 4, 4), -torch.ones(1, 4, 4)),
    ],
)
def test_impossible_tensors_are_refused(texture: Tensor, mask: Tensor) -> None:
    with pytest.raises(InputError, match="patch: expected a texture"):
        Patch(texture, mask, (10, 10))


def test_a_low_pass_keeps_what_is_coarse_and_takes_what_is_as_fine_as_the_texels() -> None:
    fine = (torch.arange(12)[:, None] + torch.arange(8)).remainder(2).float().expand(3, -1, -1)
    torch.testing.assert_close(low_passed(fine), torch.full((3, 12, 8), 0.5))
    ramp = torch.linspace(0, 1, 12).view(1, -1, 1).repeat(3, 1, 7)  # an odd side stays as long as it is
    torch.testing.assert_close(low_passed(ramp)[:, 1:-1], ramp[:, 1:-1])


def test_random_textures_differ_and_repeat() -> None:
    textures = [random_texture(64, 64, number) for number in range(8)]
    for number, texture in enumerate(textures):
        assert torch.equal(texture, random_texture(64, 64, number))
        assert texture.shape == (3, 64, 64)
        assert 0 <= texture.min() <= texture.max() <= 1
        assert all(not torch.equal(texture, other) for other in textures[:number])


def test_random_textures_have_coarse_and_fine_cells() -> None:
    for number, cells in enumerate((8, 16, 32, 64)):
        texture = random_texture(64, 64, number)
        assert len(texture.flatten(1).unique(dim=1).T) == cells**2
    assert len(random_texture(32, 64, 0).flatten(1).unique(dim=1).T) == 4 * 8
