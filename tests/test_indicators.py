from __future__ import annotations

import math

import pytest
import torch

from patchattack.indicators import (
    Indicator,
    best_last,
    indicators,
    is_overfitting,
    is_saturated,
    no_gradient,
    start_kept,
    still_falling,
)

MASK = torch.ones(1, 4, 4)
GREY = torch.full((3, 4, 4), 0.5)


def history(training: list[float], validation: dict[int, float] | None = None) -> list[dict[str, float]]:
    rows = [{"step": 10.0 * n, "attack": loss, "tv": 1.0} for n, loss in enumerate(training)]
    for row, loss in (validation or {}).items():
        rows[row]["validation/loss"] = loss
    return [{"step": 0.0, "validation/loss": 9.9}, *rows] if validation is None else rows


def noisy(values: list[float], noise: float) -> list[float]:
    return [value + noise * (-1) ** n for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("losses", "raised"),
    [
        ([1 - n / 40 for n in range(40)], True),  # as steep at the end as before
        ([math.exp(-n / 4) for n in range(40)], False),  # what it still falls by is nothing beside what it fell by
        ([1.0] * 40, False),
        ([n / 40 for n in range(40)], False),  # it rises
        (noisy([1 - n / 400 for n in range(40)], 0.5), False),  # within noise
        (noisy([1 - n / 40 for n in range(40)], 0.05), True),
        ([3.0, 2.0, 1.0], None),
    ],
    ids=["falls", "converged", "flat", "rises", "noise", "falls with noise", "short"],
)
def test_the_loss_still_falls(losses: list[float], raised: bool | None) -> None:
    assert still_falling(history(losses)).raised is raised


def test_how_far_it_still_falls_is_said() -> None:
    """Quarters of four rows: 7.5 to 3.5... the mean of the third is 5.5 and that of the last 1.5."""
    found = still_falling(history([15.0 - n for n in range(16)]))
    assert found.sentence == "The training loss still fell at the end, by 4."
    assert found.advice == "train longer: raise trainer.steps"


@pytest.mark.parametrize(("best", "raised"), [(400, True), (350, False), (0, False)])
def test_the_best_step_is_the_last(best: int, raised: bool) -> None:
    assert best_last(best, 400).raised is raised
    assert not best_last(0, 0).raised  # nothing was trained


@pytest.mark.parametrize(("share", "raised"), [(0.0, False), (0.1, False), (0.11, True), (1.0, True), (math.nan, True)])
def test_texels_have_no_gradient(share: float, raised: bool) -> None:
    assert no_gradient(share).raised is raised


@pytest.mark.parametrize(("ends", "raised"), [(0, False), (14, False), (15, True), (16, True)])
def test_values_are_stuck_at_the_ends_of_their_range(ends: int, raised: bool) -> None:
    best = GREY.clone()
    best.view(3, 16)[:, :ends] = torch.tensor([0.0, 1.0, 0.002]).view(3, 1)
    assert is_saturated(best, GREY, MASK).raised is raised
    black_and_white = (torch.arange(48) % 2).float().view(3, 4, 4)
    assert not is_saturated(best, black_and_white, MASK).raised  # as a palette's texels are from the start


def test_what_is_not_printed_does_not_count() -> None:
    mask, best = MASK.clone(), GREY.clone()
    mask[:, :2] = 0
    best[:, :2] = 1
    assert is_saturated(best, GREY, mask).sentence == "0 % of the colour values are at 0 or 1."
    assert start_kept(best, GREY, mask, 50).raised


@pytest.mark.parametrize(
    ("step", "moved", "raised"), [(0, 0.3, True), (50, 0.3, False), (50, 0.019, True), (50, 0.021, False)]
)
def test_the_start_was_never_left(step: int, moved: float, raised: bool) -> None:
    assert start_kept(GREY + moved, GREY, MASK, step).raised is raised


@pytest.mark.parametrize(
    ("training", "validation", "raised"),
    [
        ([3.0, 3.0, 2.0, 2.0, 1.0, 1.0], {0: 3.2, 5: 1.2}, False),
        ([3.0, 3.0, 2.0, 2.0, 1.0, 1.0], {0: 3.2, 5: 2.4}, True),  # by 0.8 of 2
        ([3.0, 3.0, 2.0, 2.0, 1.0, 1.0], {0: 3.2, 5: 3.5}, True),
        ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], {0: 3.2, 5: 3.5}, False),  # nothing was learned: another indicator's
        ([3.0, 1.0, 3.0, 1.0, 2.9, 0.9], {0: 2.0, 5: 2.0}, False),  # within noise
        ([3.0, 3.0, 2.0, 2.0, 1.0, 1.0], {0: 3.2, 2: 3.0}, None),
        ([3.0, 2.0, 1.0], {0: 3.2, 2: 3.0}, None),
    ],
    ids=["follows", "parts", "rises", "flat", "noise", "one validation", "short"],
)
def test_the_validation_loss_parts_from_the_training_loss(
    training: list[float], validation: dict[int, float], raised: bool | None
) -> None:
    assert is_overfitting(history(training, validation)).raised is raised


def test_what_parted_is_said() -> None:
    found = is_overfitting(history([3.0, 3.0, 2.0, 2.0, 1.0, 1.0], {0: 3.2, 5: 3.5}))
    assert found.sentence == "The training loss fell by 2, the validation loss rose by 0.3."


def test_a_healthy_run_raises_nothing_and_no_gradient_is_asked_of_a_search_without_one() -> None:
    losses = [math.exp(-n / 4) for n in range(40)]
    rows = history(losses, {n: losses[n] for n in (0, 13, 26, 39)})

    def found(zero_gradient: float | None) -> list[Indicator]:
        return indicators(rows, GREY + 0.2, GREY, MASK, zero_gradient, 300, 400)

    assert [one.raised for one in found(0.0)] == [False] * 6
    assert len(found(None)) == 5
    assert all(one.advice and one.sentence.endswith(".") for one in found(0.0))
