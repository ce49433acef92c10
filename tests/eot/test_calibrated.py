from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patchattack import seeding
from patchattack.eot.calibrated import Calibrated, Calibration, look_up
from patchattack.errors import InputError

NOWHERE = torch.zeros(1, 2, dtype=torch.long)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(seed: int, count: int) -> seeding.Numbers:
    return seeding.numbers([(seed, row) for row in range(count)])


def grid(side: int) -> Tensor:
    step = torch.linspace(0, 1, side)
    return torch.stack(torch.meshgrid(step, step, step, indexing="ij"), dim=-1)


def printer(colours: Tensor) -> Tensor:
    """A smooth response that mixes the channels and rises in each."""
    mix = torch.tensor([[0.7, 0.1, 0.05], [0.1, 0.65, 0.1], [0.02, 0.1, 0.7]])
    return 0.06 + colours**1.3 @ mix.T


def calibration(table: Tensor, spread: float = 0.01) -> Calibration:
    return Calibration(table, spread, 0.8, 0.01, "of a test")


def calibrated(path: Path, table: Tensor, **options: float) -> Calibrated:
    calibration(table).save(path)
    return Calibrated(path, **options)


def test_look_up_is_exact_at_the_grid_and_for_what_is_linear() -> None:
    table = random(2, 5, 5, 5, 3)
    nodes = grid(5).flatten(0, 2).expand(2, -1, -1)
    torch.testing.assert_close(look_up(table, nodes), table.flatten(1, 3))
    colours = random(2, 40, 3, seed=1)
    linear = torch.stack([grid(4) @ random(3, 3, seed=seed).T for seed in (2, 3)])
    expected = torch.stack([colours[i] @ random(3, 3, seed=seed).T for i, seed in enumerate((2, 3))])
    torch.testing.assert_close(look_up(linear, colours), expected)
    # The channels of colour are not mixed up: red is the first index.
    table = torch.zeros(1, 2, 2, 2, 3)
    table[0, 1, 0, 0] = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(look_up(table, torch.tensor([[[1.0, 0, 0]]]))[0, 0], torch.tensor([0.1, 0.2, 0.3]))


def test_the_neutral_map_changes_nothing(tmp_path: Path) -> None:
    transform = calibrated(tmp_path / "c.json", grid(9))
    for image in (random(1, 3, 12, 20), torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)):
        torch.testing.assert_close(transform.apply(image, torch.zeros(1, 3, 3, 3, 3), NOWHERE), image)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0], ids=["black", "grey", "white"])
@pytest.mark.parametrize("file", ["default", "printer"])
def test_gradients_are_finite_and_alive_everywhere(tmp_path: Path, value: float, file: str) -> None:
    transform = Calibrated() if file == "default" else calibrated(tmp_path / "c.json", printer(grid(9)))
    image = torch.full((4, 3, 8, 8), value, requires_grad=True)
    parameters = transform.draw(numbers(0, 4))
    result = transform.apply(image, parameters, NOWHERE.expand(4, -1))
    (gradient,) = torch.autograd.grad((result * random(4, 3, 8, 8)).sum(), image)
    assert gradient.isfinite().all()
    assert (gradient != 0).any(dim=1).all()


def test_gradients_are_right(tmp_path: Path) -> None:
    transform = calibrated(tmp_path / "c.json", printer(grid(9)))
    image = random(2, 3, 6, 10).double().requires_grad_()
    parameters = transform.draw(numbers(0, 2)).double()

    def value(image: Tensor) -> Tensor:
        return (transform.apply(image, parameters, NOWHERE.expand(2, -1)) * random(2, 3, 6, 10, seed=1)).sum()

    direction = random(2, 3, 6, 10, seed=2).double() - 0.5
    (gradient,) = torch.autograd.grad(value(image), image)
    with torch.no_grad():
        difference = (value(image + 1e-7 * direction) - value(image - 1e-7 * direction)) / 2e-7
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


def test_the_map_is_applied_to_each_pixel_in_its_place(tmp_path: Path) -> None:
    transform = calibrated(tmp_path / "c.json", printer(grid(9)), spread=0)
    image = random(2, 3, 5, 7)
    parameters = transform.draw(numbers(0, 2))
    seen = transform.apply(image, parameters, NOWHERE.expand(2, -1))
    torch.testing.assert_close(seen, printer(image.movedim(1, -1)).movedim(-1, 1), rtol=0, atol=5e-3)


def test_a_draw_is_its_row_of_numbers_and_spreads_as_told(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    transform = calibrated(path, grid(9), spread=2.0)
    draws = transform.draw(numbers(1, 200))
    assert torch.equal(draws[:1], transform.draw(numbers(1, 1)))
    assert draws.dtype == torch.float32
    assert draws.std().item() == pytest.approx(2 * 0.01, rel=0.05)
    assert Calibrated(path, spread=0).draw(numbers(0, 1)).abs().max() == 0
    # Black's, half red's and red's errors are drawn apart, and between them it is straight.
    reds = torch.linspace(0, 1, 5).view(1, 1, 1, -1) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    errors = (transform.apply(reds.expand(200, -1, -1, -1), draws, NOWHERE.expand(200, -1)) - reds).squeeze(2)
    assert errors[..., ::2].std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.corrcoef(errors[..., ::2].flatten(0, 1).T).fill_diagonal_(0).abs().max() < 0.15
    torch.testing.assert_close(errors[..., 1], (errors[..., 0] + errors[..., 2]) / 2, rtol=0, atol=1e-6)


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    transform = Calibrated()
    images = random(3, 3, 8, 12)
    parameters = transform.draw(numbers(2, 3))
    together = transform.apply(images, parameters, NOWHERE.expand(3, -1))
    for i in range(3):
        alone = transform.apply(images[i : i + 1], parameters[i : i + 1], NOWHERE)
        torch.testing.assert_close(alone[0], together[i])


def test_the_inverse_prints_what_shall_be_seen() -> None:
    found = calibration(printer(grid(9)))
    colours = torch.cat([random(200, 3), torch.eye(3), torch.zeros(1, 3), torch.ones(1, 3)])
    torch.testing.assert_close(found.inverse(found.predict(colours)), colours, rtol=0, atol=2e-3)


def test_what_no_print_shows_becomes_the_nearest_that_one_does() -> None:
    found = calibration(printer(grid(9)))
    wanted = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.3]])
    told = found.inverse(wanted)
    assert told.min() >= 0
    assert told.max() <= 1
    nearest = torch.cdist(wanted, found.predict(grid(41).flatten(0, 2))).min(dim=1).values
    assert ((found.predict(told) - wanted).norm(dim=1) <= nearest + 2e-3).all()


def test_a_file_is_data_and_says_all(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    before = calibration(printer(grid(9)))
    before.save(path)
    after = Calibration.load(path)
    torch.testing.assert_close(after.table, before.table, rtol=0, atol=6e-5)
    assert (after.spread, after.blur, after.noise, after.note) == (0.01, 0.8, 0.01, "of a test")
    assert json.loads(path.read_text())["format"] == 1


def test_the_shipped_print_model_knows_paper_and_ink() -> None:
    default = Calibrated().calibration
    black, grey, white = default.predict(torch.tensor([[0.0] * 3, [0.5] * 3, [1.0] * 3]))
    torch.testing.assert_close(white, torch.ones(3), rtol=0, atol=2e-3)
    assert 0.1 < black.min() <= black.max() < 0.25
    assert grey.max() - grey.min() < 0.02
    assert (default.blur, default.noise) == (None, None)
    green = default.predict(torch.tensor([[0.0, 1.0, 0.0]]))[0]  # far outside what inks reach
    assert green[1] < 0.8
    assert green[0] > 0.2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a calibration (JSON), got FileNotFoundError"),
        ("no JSON", "expected a calibration (JSON), got JSONDecodeError"),
        ("[]", "expected a calibration (JSON)"),
        ('{"format": 2}', "expected a calibration of format 1, got 2"),
        ('{"format": 1, "table": [[1, 2, 3]], "side": 9}', "expected a calibration (JSON)"),
        (
            '{"format": 1, "table": [[NaN, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], '
            '[0, 0, 0]], "side": 2, "spread": 0, "blur": null, "noise": null, "note": ""}',
            "expected a calibration of colours in [0, 1] or near, got others",
        ),
    ],
    ids=["missing", "text", "list", "other format", "table too small", "NaN"],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        Calibrated(path)
    assert message in str(caught.value)
    assert "patchattack calibrate fit" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spread_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"^appearance\.calibrated\.spread: expected"):
        Calibrated(spread=-1)
