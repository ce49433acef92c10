"""Starts, candidates and stages, and the loop that holds them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from patchattack import hand_drawn, search
from patchattack.errors import InputError
from patchattack.hand_drawn import HandDrawn
from patchattack.optimizers.random_search import RandomSearch
from patchattack.patch import Patch
from patchattack.search import CANDIDATES, STARTS, SearchPlan, find_starts

adam = functools.partial(torch.optim.Adam, lr=0.1)


def plan(patch: Patch, optimizer: torch.optim.Optimizer | None = None, **asked: int) -> SearchPlan:
    chosen = {"starts": None, "candidates": None, "stages": None, **asked}
    return SearchPlan.of(*chosen.values(), optimizer or adam(patch.parameters()), patch)


def test_what_null_stands_for_depends_on_optimiser_and_patch() -> None:
    patch = Patch.create(resolution=64)
    assert plan(patch) == SearchPlan(STARTS, CANDIDATES, 3)
    assert plan(Patch.create(resolution=16)).stages == 2
    assert plan(Patch.create(resolution=8)).stages == plan(Patch.create(resolution=1)).stages == 1
    # Whoever gives a texture to begin with gets it.
    assert plan(Patch.create(resolution=64, start="grey")) == SearchPlan(0, 1, 1)
    for alone in (torch.optim.LBFGS(patch.parameters()), RandomSearch(patch.parameters(), lr=0.3)):
        assert plan(patch, alone) == SearchPlan(0, 1, 1)
        assert plan(patch, alone, starts=5) == SearchPlan(5, 1, 1)


def test_a_plan_that_cannot_be_is_refused() -> None:
    patch = Patch.create(resolution=10)
    with pytest.raises(InputError, match=r"trainer\.stages: expected at most 3 for patch\.resolution=10.*got 4"):
        plan(patch, stages=4)
    for name in ("candidates", "stages"):
        with pytest.raises(InputError, match=rf"trainer\.{name}: expected 1 for LBFGS.*got 2"):
            plan(patch, torch.optim.LBFGS(patch.parameters()), **{name: 2})


def test_stages_are_of_equal_length_and_each_is_twice_as_fine() -> None:
    assert [SearchPlan(0, 1, 3).scale(step, 9) for step in range(9)] == [4, 4, 4, 2, 2, 2, 1, 1, 1]
    assert {SearchPlan(0, 1, 1).scale(step, 9) for step in range(9)} == {1}


class Likes:
    """A loss that is least for one texture, and counts what it is asked."""

    def __init__(self, best: Tensor) -> None:
        self.best, self.asked = best, 0

    def __call__(self, textures: list[Tensor]) -> list[float]:
        self.asked += len(textures)
        return [-float(((texture - 0.5) * (self.best - 0.5)).mean()) for texture in textures]


def found(best: Tensor, starts: int = 48, candidates: int = 4) -> tuple[search.Starts, Likes, Patch]:
    patch, loss = Patch.create(resolution=32, seed=3), Likes(best)
    generator = torch.Generator().manual_seed(0)
    return find_starts(SearchPlan(starts, candidates, 1), patch, generator, loss), loss, patch


def test_starts_are_of_both_kinds_and_the_best_comes_first() -> None:
    best = HandDrawn("stripes", 3, 20, colours=("100", "011")).texture(32, 32)
    starts, loss, _ = found(best)
    assert loss.asked == 48 + 1  # and the patch as it is
    assert starts.textures.shape == (4, 3, 32, 32)
    losses = loss(list(starts.textures))
    assert losses[0] == min(losses)
    assert starts.hand_drawn is not None
    assert torch.equal(starts.textures[0], starts.hand_drawn.texture(32, 32))
    # Two of four colours hold the corners of the cube and little else, two are noise.
    corners = [float(((texture == 0) | (texture == 1)).float().mean()) for texture in starts.textures]
    assert sorted(corner > 0.5 for corner in corners) == [False, False, True, True]


def test_the_search_goes_beyond_what_every_run_tries() -> None:
    best = HandDrawn("stripes", 3, 20, colours=("100", "011")).texture(32, 32)
    starts, loss, _ = found(best, starts=120)
    of_all = min(loss([one.texture(32, 32) for one in hand_drawn.standard_textures()]))
    assert loss([starts.textures[0]])[0] < 1.2 * of_all < 0


def test_the_patch_as_it_is_wins_where_it_is_the_best() -> None:
    own = Patch.create(resolution=32, seed=3)().detach()
    starts, _, patch = found(5 * (own - 0.5) + 0.5, candidates=1)
    assert torch.equal(starts.textures[0], patch().detach())


@pytest.mark.parametrize("starts", [0, 1, 2, 5])
def test_more_candidates_than_starts_are_filled_up_with_noise(starts: int) -> None:
    made, loss, patch = found(torch.zeros(3, 32, 32), starts, candidates=6)
    assert len(made.textures) == len({texture.numpy().tobytes() for texture in made.textures}) == 6
    assert loss.asked == (starts + 1 if starts else 0)
    assert (made.hand_drawn is None) == (starts == 0)
    assert any(torch.equal(texture, patch().detach()) for texture in made.textures)
