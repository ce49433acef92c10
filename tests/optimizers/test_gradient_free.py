"""Searches without gradients: against exact gradients, on functions that everybody understands."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchattack import seeding
from patchattack.errors import InputError
from patchattack.optimizers.evolution import Evolution
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.optimizers.nes import NES
from patchattack.optimizers.random_search import RandomSearch
from patchattack.optimizers.spsa import SPSA
from patchattack.optimizers.zoo import ZOO

SHAPE = (3, 8, 8)
MAKE: dict[str, Callable[..., GradientFree]] = {
    "nes": functools.partial(NES, lr=0.02, basis="pixels"),
    "nes, dct": functools.partial(NES, lr=0.02, resolution=4),
    "spsa": functools.partial(SPSA, lr=0.02, basis="pixels"),
    "zoo": functools.partial(ZOO, lr=0.1, resolution=4),
    "random_search": functools.partial(RandomSearch, lr=0.3),
    "evolution": functools.partial(Evolution, population=12, resolution=4),
}
every_one = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def random(seed: int) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


class Bowl:
    """A quadratic around cells of random colours, each texel with its weight; it counts how often it is asked."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter, self.calls = parameter, 0
        cells = random(1)[None, :, :4, :4].round()  # corners of the colour cube, which random search paints with
        self.target = nn.functional.interpolate(cells, SHAPE[1:], mode="nearest-exact")[0]
        self.weight = 0.5 + random(2)

    def __call__(self) -> Tensor:
        self.calls += 1
        return (self.weight * (self.parameter.detach() - self.target).square()).sum()

    def gradient(self) -> Tensor:
        return 2 * self.weight * (self.parameter.detach() - self.target)


def run(optimizer: GradientFree, closure: Callable[[], Any], steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.draw(seeding.generator(7, step))
        losses.append(optimizer.step(closure))
    return losses


@every_one
def test_every_search_descends_and_asks_as_often_as_it_says(make: Callable[..., GradientFree]) -> None:
    parameter = nn.Parameter(random(0))
    optimizer, bowl = make([parameter]), Bowl(parameter)
    before = bowl().item()
    bowl.calls = 0
    run(optimizer, bowl, range(60))
    assert bowl.calls == 60 * optimizer.evaluations
    assert bowl().item() < 0.8 * before


@every_one
def test_a_search_that_is_resumed_goes_on_to_the_bit(make: Callable[..., GradientFree]) -> None:
    whole = nn.Parameter(random(0))
    optimizer = make([whole])
    run(optimizer, Bowl(whole), range(4))
    half = nn.Parameter(whole.detach().clone())
    state = copy.deepcopy(optimizer.state_dict())
    run(optimizer, Bowl(whole), range(4, 8))
    resumed = make([half])
    resumed.load_state_dict(state)
    run(resumed, Bowl(half), range(4, 8))
    assert torch.equal(whole, half)


@every_one
def test_no_gradient_is_needed_or_made(make: Callable[..., GradientFree]) -> None:
    parameter = nn.Parameter(random(0))
    optimizer = make([parameter])

    def closure() -> Tensor:
        assert not torch.is_grad_enabled()
        return parameter.sum()

    run(optimizer, closure, range(2))
    assert parameter.grad is None
    assert parameter.requires_grad


@every_one
def test_where_all_losses_are_equal_nothing_breaks(make: Callable[..., GradientFree]) -> None:
    parameter = nn.Parameter(random(0))
    run(make([parameter]), lambda: torch.tensor(1.0), range(3))
    assert parameter.isfinite().all()


@every_one
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=3),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=3, cycle_momentum=False),
    ],
    ids=["cosine", "onecycle"],
)
def test_schedules_take_them(make: Callable[..., GradientFree], schedule: Callable[..., Any]) -> None:
    parameter = nn.Parameter(random(0))
    optimizer = make([parameter])
    scheduler = schedule(optimizer)
    for step in range(3):
        run(optimizer, Bowl(parameter), range(step, step + 1))
        scheduler.step()
    assert parameter.isfinite().all()


@pytest.mark.parametrize("basis", ["pixels", "dct", "grid"])
@pytest.mark.parametrize("make", [NES, SPSA])
def test_the_estimate_has_the_gradient_s_direction_and_scale(make: Callable[..., Any], basis: str) -> None:
    parameter = nn.Parameter(random(0))
    optimizer, bowl = make([parameter], lr=0.1, population=4000, basis=basis, resolution=3), Bowl(parameter)
    optimizer.draw(seeding.generator(3))
    estimate, loss = optimizer.estimate(bowl)
    rows, columns = optimizer.basis._rows, optimizer.basis._columns
    exact = rows.T @ bowl.gradient() @ columns  # the chain rule: of the loss in the coefficients
    assert estimate.shape == exact.shape
    assert torch.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0) > 0.9
    slope = (estimate * exact).sum() / exact.square().sum()  # 1 on average
    assert slope == pytest.approx(1, abs=0.1)
    assert loss > bowl().item() - 0.1
    assert torch.equal(parameter.detach(), random(0))


def test_a_step_of_nes_has_the_length_that_it_is_told() -> None:
    for scale in (1.0, 1e-6):
        parameter = nn.Parameter(random(0))
        bowl = Bowl(parameter)
        run(NES([parameter], lr=0.03, resolution=4), lambda bowl=bowl, scale=scale: scale * bowl(), range(1))
        moved = (parameter.detach() - random(0)).square().mean().sqrt()
        assert moved == pytest.approx(0.03, rel=1e-3)


def test_zoo_finds_exact_slopes_of_the_coordinates_that_it_tries() -> None:
    parameter = nn.Parameter(random(0))
    optimizer, bowl = ZOO([parameter], lr=0.01, population=8, basis="pixels"), Bowl(parameter)
    exact = bowl.gradient()
    run(optimizer, bowl, range(1))
    moved = parameter.detach() - random(0)
    tried = moved != 0
    assert tried.sum() == 4
    torch.testing.assert_close(moved[tried], -0.01 * exact[tried].sign(), rtol=1e-3, atol=1e-6)
    found = optimizer.memory["mean"].view(SHAPE)[tried] / 0.1  # Adam's first mean is a tenth of the slope
    torch.testing.assert_close(found, exact[tried], rtol=1e-2, atol=1e-3)
    assert optimizer.memory["count"].sum() == 4


def test_zoo_tries_no_more_coordinates_than_there_are() -> None:
    optimizer = ZOO([nn.Parameter(random(0))], lr=0.1, population=1000, resolution=2)
    assert optimizer.evaluations == 2 * 3 * 2 * 2


def test_random_search_never_rises_and_changes_squares_of_one_colour() -> None:
    parameter = nn.Parameter(random(0))
    optimizer, bowl = RandomSearch([parameter], lr=0.25, population=2), Bowl(parameter)
    accepted = 0
    for step in range(80):
        before, least = parameter.detach().clone(), bowl().item()
        run(optimizer, bowl, range(step, step + 1))
        changed = (parameter.detach() != before).any(dim=0)
        assert bowl().item() <= least
        if changed.any():
            accepted += 1
            places = changed.nonzero()
            low, high = places.amin(dim=0), places.amax(dim=0) + 1
            square = parameter.detach()[:, low[0] : high[0], low[1] : high[1]]
            assert (high - low <= 2).all()
            assert set(square.unique().tolist()) <= {0.0, 1.0}
            assert all(len(channel.unique()) == 1 for channel in square)
    assert 3 < accepted < 80


def test_random_search_takes_what_changes_nothing_so_that_labels_are_enough() -> None:
    """The label flips once half of the texels are dark: until then all losses are 1."""
    parameter = nn.Parameter(torch.ones(SHAPE))

    def label() -> float:
        return float(parameter.detach().mean() > 0.55)

    losses = run(RandomSearch([parameter], lr=0.5, population=10), label, range(20))
    assert losses[-1] == 0
    assert losses == sorted(losses, reverse=True)


def test_squares_of_cells_end_at_cells() -> None:
    parameter = nn.Parameter(torch.full(SHAPE, 0.5))
    run(RandomSearch([parameter], lr=0.25, population=2, basis="grid", resolution=4), lambda: 1.0, range(30))
    cells = nn.functional.avg_pool2d(parameter.detach(), 2)
    assert torch.equal(nn.functional.interpolate(cells[None], SHAPE[1:])[0], parameter.detach())


@pytest.mark.parametrize(("basis", "resolution"), [("grid", 2), ("pixels", 1)])
def test_evolution_minimises_a_quadratic(basis: str, resolution: int) -> None:
    parameter = nn.Parameter(random(0)[:, :4, :4].clone())
    target = 0.5 + 0.2 * torch.arange(3.0).view(3, 1, 1).expand(3, 4, 4)
    optimizer = Evolution([parameter], basis=basis, resolution=resolution)
    run(optimizer, lambda: (parameter.detach() - target).square().sum(), range(150))
    torch.testing.assert_close(parameter.detach(), target, rtol=0, atol=0.02)


def test_evolution_is_separable_where_there_are_many_coefficients() -> None:
    few, many = (nn.Parameter(torch.rand(3, side, side)) for side in (4, 16))
    for parameter, separable in ((few, False), (many, True)):
        optimizer = Evolution([parameter], basis="pixels", population=None)
        run(optimizer, lambda parameter=parameter: parameter.detach().sum(), range(1))
        assert optimizer._strategy.opts["CMA_diagonal"] is separable
        assert optimizer.evaluations == 4 + int(3 * np.log(parameter.numel()))


def test_the_same_draws_search_alike_and_others_do_not() -> None:
    ends = []
    for seed in (0, 0, 1):
        parameter = nn.Parameter(random(0))
        optimizer = NES([parameter], lr=0.1)
        optimizer.draw(seeding.generator(seed))
        optimizer.step(Bowl(parameter))
        ends.append(parameter.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (NES, {"lr": 0.0}, "optimizer nes: expected lr > 0, got 0.0"),
        (NES, {"lr": 1.0, "sigma": -1.0}, "optimizer nes: expected sigma > 0, got -1.0"),
        (NES, {"lr": 1.0, "population": 3}, "optimizer nes: expected an even population from 2 on, got 3"),
        (NES, {"lr": 1.0, "momentum": 1.0}, r"optimizer nes: expected momentum in \[0, 1\), got 1.0"),
        (NES, {"lr": 1.0, "basis": "wavelet"}, "optimizer: expected basis of pixels, dct, grid"),
        (SPSA, {"lr": 1.0, "betas": [0.9]}, r"optimizer spsa: expected betas of two numbers in \[0, 1\), got \[0.9\]"),
        (ZOO, {"lr": 1.0, "delta": 0.0}, "optimizer zoo: expected delta > 0, got 0.0"),
        (
            RandomSearch,
            {"lr": 1.0, "basis": "dct"},
            "random_search: expected a population from 2 on and basis of pixels",
        ),
        (RandomSearch, {"lr": 1.0, "population": 1}, "random_search: expected a population from 2 on"),
        (Evolution, {"population": 3}, "optimizer evolution: expected a population from 4 on, got 3"),
    ],
)
def test_values_that_cannot_be_are_refused(make: Callable[..., Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make([nn.Parameter(random(0))], **values)


def test_one_parameter_is_searched() -> None:
    with pytest.raises(InputError, match=r"expected one parameter \[c, h, w\].*got \[\[3, 8, 8\], \[3, 8, 8\]\]"):
        NES([nn.Parameter(random(0)), nn.Parameter(random(1))], lr=0.1)


def test_without_cma_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cma", None)
    with pytest.raises(InputError, match=r"expected the package cma, got none; pip install 'patchattack\[evolution\]'"):
        Evolution([nn.Parameter(random(0))])
