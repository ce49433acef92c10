"""Whether an attack itself failed, so that its failure says little of the victim (Pintor et al. 2022).

Indicators of Attack Failure: Debugging and Improving Optimization of Adversarial Examples, NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

ROWS = 6  # logged losses that a trend is read from at least
FALLING = 0.05  # fraction of the whole fall that the last window still falls by
DEAD = 0.1  # fraction of the texels without gradient
STUCK = 0.9  # fraction of the colour values at an end of their range
AT_END = 1 / 255  # of the range: as good as 0 or 1
MOVED = 0.02  # mean change of the colour values
PARTED = 0.5  # fraction of the training loss's fall that the validation loss does not follow
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Indicator:
    """One way in which an attack may have failed.

    Attributes:
        name: what was looked at, in a word.
        raised: it may have; None where it could not be checked.
        sentence: what was found.
        advice: what to try where it is raised.
    """

    name: str
    raised: bool | None
    sentence: str
    advice: str


def indicators(
    history: History,
    best: Tensor,
    start: Tensor,
    mask: Tensor,
    zero_gradient: float | None,
    best_step: int,
    steps: int,
) -> list[Indicator]:
    """All indicators, one after the other.

    Args:
        history: rows of ``metrics.csv``: ``attack`` is the training loss, ``validation/loss`` the same on validation
            scenes; a row may lack either.
        best: ``[3, h, w]`` in [0, 1], the texture that validation chose.
        start: ``[3, h, w]`` in [0, 1], what the run began with.
        mask: ``[1, h, w]``, above 0 where the patch is printed.
        zero_gradient: fraction of the printed texels whose gradient is 0; None of an optimiser without gradient, which
            leaves the indicator out.
        best_step: at which ``best`` was found.
        steps: that were done.
    """
    found = [still_falling(history), best_last(best_step, steps)]
    if zero_gradient is not None:
        found.append(no_gradient(zero_gradient))
    return [*found, is_saturated(best, start, mask), start_kept(best, start, mask, best_step), is_overfitting(history)]


def still_falling(history: History) -> Indicator:
    """The training loss of the last quarter of the rows against the quarter before it.

    It counts beyond noise, which is twice the standard error of the difference, and beyond :data:`FALLING` of the fall
    from the first quarter to the last.
    """
    name, advice = "Convergence", "train longer: raise trainer.steps"
    losses = _series(history, "attack")
    if len(losses) < ROWS:
        return Indicator(name, None, _too_short(len(losses)), advice)
    window = max(2, len(losses) // 4)
    last, before = losses[-window:], losses[-2 * window : -window]
    fall, whole = float(before.mean() - last.mean()), float(losses[:window].mean() - last.mean())
    noise = 2 * math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / window)
    if fall > noise and fall > FALLING * whole:
        return Indicator(name, True, f"The training loss still fell at the end, by {fall:.3g}.", advice)
    return Indicator(name, False, "The training loss no longer fell at the end.", advice)


def best_last(best_step: int, steps: int) -> Indicator:
    """Whether the best patch is the last one."""
    name, advice = "Length", "train longer: raise trainer.steps"
    if best_step >= steps > 0:
        return Indicator(name, True, f"The last step, {steps}, is the best.", advice)
    return Indicator(name, False, f"Step {best_step} of {steps} is the best.", advice)


def no_gradient(share: float) -> Indicator:
    """Whether much of the patch learns nothing."""
    name = "Gradient"
    advice = (
        "try another attack.distance, a smaller patch.resolution, or optimizer=nes, which needs no gradient; a victim "
        "that rounds or thresholds its input needs a differentiable stand-in (BPDA)"
    )
    found = f"{100 * share:.0f} % of the texels have no gradient."
    return Indicator(name, not share <= DEAD, found, advice)


def is_saturated(best: Tensor, start: Tensor, mask: Tensor) -> Indicator:
    """Whether most colour values are stuck at an end of their range; not where they were so from the start."""

    def share(texture: Tensor) -> float:
        values = _values_inside(texture, mask)
        return float(((values <= AT_END) | (values >= 1 - AT_END)).mean())

    stuck = share(best)
    found = f"{100 * stuck:.0f} % of the colour values are at 0 or 1."
    advice = "lower optimizer.lr, or try patch.parameterisation=tanh"
    return Indicator("Saturation", stuck > STUCK and share(start) <= STUCK, found, advice)


def start_kept(best: Tensor, start: Tensor, mask: Tensor, best_step: int) -> Indicator:
    """Whether the best patch is, but for little, the one that the run began with."""
    name = "Start"
    advice = "raise optimizer.lr, or try another optimizer or patch.start"
    moved = float(np.abs(_values_inside(best, mask) - _values_inside(start, mask)).mean())
    if best_step == 0:
        return Indicator(name, True, "No step improved on the start.", advice)
    found = f"The colour values moved by {moved:.2f} of their range on average."
    return Indicator(name, moved < MOVED, found, advice)


def is_overfitting(history: History) -> Indicator:
    """Whether the training loss falls without the validation loss, from the first to the last third of the rows."""
    name = "Overfitting"
    advice = "use more scenes, or more trainer.draws and wider placement, appearance and camera ranges"
    if (rows := len(_series(history, "attack"))) < ROWS:
        return Indicator(name, None, _too_short(rows), advice)
    first, last = history[: len(history) // 3], history[-(len(history) // 3) :]
    training, training_last = _series(first, "attack"), _series(last, "attack")
    validation, validation_last = _series(first, "validation/loss"), _series(last, "validation/loss")
    if not all(map(len, (training, validation, training_last, validation_last))):
        return Indicator(name, None, "There are too few validations to tell.", advice)
    fall, follows = training.mean() - training_last.mean(), validation.mean() - validation_last.mean()
    noise = 2 * math.sqrt(training.var() / len(training) + training_last.var() / len(training_last))
    if fall > noise and follows < PARTED * fall:
        way = "fell by" if follows > 0 else "rose by"
        found = f"The training loss fell by {fall:.3g}, the validation loss {way} {abs(follows):.3g}."
        return Indicator(name, True, found, advice)
    return Indicator(name, False, "The validation loss followed the training loss.", advice)


def _series(history: History, key: str) -> np.ndarray:
    """``[n]`` the values of the rows that have one."""
    return np.array([row[key] for row in history if key in row])


def _values_inside(texture: Tensor, mask: Tensor) -> np.ndarray:
    """``[3, n]`` colour values inside the mask."""
    return np.asarray(texture.detach().cpu()[:, mask.cpu()[0] > 0])


def _too_short(rows: int) -> str:
    return f"{rows} logged losses are too few to tell (at least {ROWS} are needed)."
