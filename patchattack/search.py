"""Where the optimisation starts, how many patches it holds side by side, and how fine they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from patchattack import hand_drawn
from patchattack.errors import InputError
from patchattack.hand_drawn import HandDrawn
from patchattack.optimizers.gradient_free import GradientFree
from patchattack.patch import Patch, noise

STARTS, CANDIDATES, STAGES = 48, 2, 3  # what null stands for, where the optimiser goes by gradients
COARSEST = 8  # texels along the longer side in the first stage, at least, where null chooses
NOISE_CELLS = (4, 8, 16, 32)  # along the longer side: the scales of noise that a search tries
_KEPT = 4  # hand-drawn textures whose surroundings are searched


@dataclass(frozen=True)
class SearchPlan:
    """How a run searches.

    Attributes:
        starts: textures that are tried before the first step; 0 takes the patch as it is.
        candidates: patches that are optimised side by side to begin with; validation halves them.
        stages: of equal length, in each of which the texture is twice as fine as in the one before.
    """

    starts: int
    candidates: int
    stages: int

    @classmethod
    def of(
        cls,
        starts: int | None,
        candidates: int | None,
        stages: int | None,
        optimizer: torch.optim.Optimizer,
        patch: Patch,
    ) -> SearchPlan:
        """What is asked for; None of it stands for what suits the optimiser and the patch.

        Raises:
            InputError: the optimiser or the patch cannot do what is asked for.
        """
        # These remember the parameter's shape, or compare losses that several patches would share.
        alone = isinstance(optimizer, GradientFree | torch.optim.LBFGS)
        longer = max(patch.mask.shape)
        if alone:
            for name, value in (("candidates", candidates), ("stages", stages)):
                if value not in (None, 1):
                    raise InputError(
                        f"trainer.{name}: expected 1 for {type(optimizer).__name__}, which changes one patch of one "
                        f"resolution, got {value}; choose optimizer=adam, sgd or sign"
                    )
        # Whoever gives a texture to begin with gets it, as fine as it is.
        given = alone or not patch.from_noise
        if stages is None:
            stages = 1 if given else max(1, min(STAGES, 1 + int(math.log2(max(1, longer / COARSEST)))))
        elif longer < 2**stages:
            most = max(1, int(math.log2(longer)))
            raise InputError(
                f"trainer.stages: expected at most {most} for patch.resolution={longer}, so that the first has two "
                f"texels or more, got {stages}"
            )
        if candidates is None:
            candidates = 1 if given else CANDIDATES
        if starts is None:
            starts = 0 if given else STARTS
        return cls(starts, candidates, stages)

    def scale(self, step: int, steps: int) -> int:
        """How many texels of the patch one texel spans along each side in ``step`` of ``steps``."""
        return int(2 ** (self.stages - 1 - step * self.stages // steps))


@dataclass(frozen=True)
class Starts:
    """What a search of starts has found.

    Attributes:
        textures: ``[P, 3, h, w]`` to begin with.
        hand_drawn: the best of its kind, None where none was tried.
    """

    textures: Tensor
    hand_drawn: HandDrawn | None


def find_starts(
    plan: SearchPlan, patch: Patch, generator: torch.Generator, losses: Callable[[list[Tensor]], list[float]]
) -> Starts:
    """Try textures and choose those to begin with.

    A quarter of them is noise at several scales. Half is hand-drawn: those that every run tries, then random ones. The
    last quarter varies the best of these: a random search through the few numbers that describe them.

    Args:
        plan: of the run.
        patch: whose own texture is tried too.
        generator: of everything that is random.
        losses: of textures ``[3, h, w]``, all under the same draws; lower is stronger.
    """
    height, width = patch.mask.shape[1:]
    own = patch().detach()
    quarter = plan.starts // 4

    def noises(first: int, last: int) -> list[Tensor]:
        cells = [NOISE_CELLS[n % len(NOISE_CELLS)] for n in range(first, last)]
        return [noise(height, width, one, generator).to(own) for one in cells]

    if not plan.starts:
        return Starts(torch.stack([own, *noises(1, plan.candidates)]), None)

    def rank(pool: list[tuple[Any, Tensor]]) -> list[tuple[float, Any, Tensor]]:
        found = losses([texture for _, texture in pool])
        return sorted(((loss, *one) for loss, one in zip(found, pool, strict=True)), key=lambda one: one[0])

    def pool(drawings: list[HandDrawn]) -> list[tuple[Any, Tensor]]:
        return [(one, one.texture(height, width).to(own)) for one in drawings]

    plain = noises(0, quarter)
    drawings = hand_drawn.standard_textures()[: plan.starts - 2 * quarter]
    drawings += [hand_drawn.sample(generator) for _ in range(plan.starts - 2 * quarter - len(drawings))]
    drawn = rank(pool(drawings))
    for _ in range(quarter):
        parent = drawn[int(torch.randint(min(_KEPT, len(drawn)), (), generator=generator))][1]
        drawn = sorted(drawn + rank(pool([hand_drawn.vary(parent, generator)])), key=lambda one: one[0])
    both = sorted((drawn, rank([(None, texture) for texture in (own, *plain)])), key=lambda one: one[0][0])
    turns = [one for pair in zip_longest(*both) for one in pair if one is not None]  # neither kind crowds out the other
    textures = [texture for *_, texture in turns[: plan.candidates]]
    textures += noises(len(textures), plan.candidates)
    return Starts(torch.stack(textures), drawn[0][1])
