"""PatchCleanser: certified double masking (Xiang et al. 2022)."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from patchattack.defenses.defense import Defense, Predict, check_share
from patchattack.errors import InputError

GREY = 0.5  # of the masks


class PatchCleanser(Defense):
    """A classifier that is asked with every mask in turn, of which one at least hides any patch of the given size.

    Where a mask changes the answer, masks are laid over that mask too; the dissenting answer wins if it stays
    (algorithm 1). If every two masks together leave one class, no square patch of up to ``side`` changes it, whatever
    is on it and wherever it is (theorem 1): it is certified.

    The logits are the mean over the masks that vote for the answer. With a generator, each scene is asked once, with a
    mask of its own at random: the mean over training's steps is the expectation over the masks, which an adaptive
    attack needs, because the vote itself has no gradient. Without one, the gradient is that of the logits.

    Preprocessing goes between the masks and the network, so that this is the first of stacked defences.

    Args:
        side: of the largest patch, upright, as a fraction of the frame's shorter side.
        masks: along each side of the frame; their square is how often the victim is asked, and its square at most.

    Raises:
        InputError: a number that cannot be.
    """

    name = "patch_cleanser"
    tasks = ("classification",)

    def __init__(self, side: float = 0.3, masks: int = 6) -> None:
        if masks < 2:
            raise InputError(f"defense.patch_cleanser.masks: expected at least 2, got {masks}")
        self.side, self.masks = check_share("defense.patch_cleanser.side", side), masks
        self._generator: torch.Generator | None = None

    def randomise(self, generator: torch.Generator | None) -> None:
        """See :meth:`Defense.randomise`."""
        self._generator = generator

    def __call__(self, frames: Tensor, predict: Predict) -> Tensor:
        """See :meth:`Defense.__call__`."""
        masks = self._masks(frames)
        if self._generator is not None:
            rows = torch.randint(len(masks), (len(frames),), generator=self._generator)
            return predict(mask_out(frames, masks[rows.to(frames.device)]))
        logits = torch.stack([predict(mask_out(frames, mask)) for mask in masks], dim=1)  # [B, masks, classes]
        votes = logits.argmax(dim=2)
        labels = votes.mode(dim=1).values
        with torch.no_grad():
            for row in (votes != labels.unsqueeze(1)).any(dim=1).nonzero().flatten().tolist():
                labels[row] = self._second_round(frames[row : row + 1], votes[row], labels[row], masks, predict)
        agree = (votes == labels.unsqueeze(1)).unsqueeze(2)
        return (logits * agree).sum(dim=1) / agree.sum(dim=1)

    def _second_round(self, frame: Tensor, votes: Tensor, majority: Tensor, masks: Tensor, predict: Predict) -> Tensor:
        """The first dissenter's vote that no second mask changes, or else the majority's (algorithm 1)."""
        for first in (votes != majority).nonzero().flatten().tolist():
            pairs = (predict(mask_out(frame, few | masks[first])) for few in masks.split(self.masks))
            if all((logits.argmax(dim=1) == votes[first]).all() for logits in pairs):  # most fail among the first few
                return votes[first]
        return majority

    @torch.no_grad()
    def certify(self, frames: Tensor, predict: Predict) -> Tensor:
        """See :meth:`Defense.certify`."""
        masks = self._masks(frames)
        labels = predict(mask_out(frames, masks[0])).argmax(dim=1)
        pairs = combinations_with_replacement(range(len(masks)), 2)
        for first, second in sorted(pairs, key=lambda pair: pair[0] != pair[1]):  # one mask alone fails cheaply
            rows = (labels >= 0).nonzero().flatten()
            if len(rows) == 0:
                break
            both = predict(mask_out(frames[rows], masks[first] | masks[second])).argmax(dim=1)
            labels[rows] = torch.where(both == labels[rows], both, -1)
        return labels

    def _masks(self, frames: Tensor) -> Tensor:
        """``[masks², 1, 1, H, W]`` for these frames."""
        size = (frames.shape[-2], frames.shape[-1])
        return mask_set(size, math.ceil(self.side * min(size)), self.masks).to(frames.device)


def mask_out(frames: Tensor, masks: Tensor) -> Tensor:
    """``frames [..., 3, H, W]``, grey where ``masks [..., 1, H, W]`` (bool) are."""
    return torch.where(masks, GREY, frames)


def mask_set(size: tuple[int, int], patch: int, count: int) -> Tensor:
    """``[count², 1, 1, h, w]`` bool: rectangles, of which one at least hides any square of ``patch`` pixels.

    Args:
        size: ``(h, w)`` of the frames.
        patch: pixels along the square's side, at most as many as the frame has.
        count: masks along each side.
    """
    hidden = []
    for length in size:
        stride = math.ceil((length - patch + 1) / count)
        width = patch + stride - 1
        starts = torch.tensor([min(number * stride, length - width) for number in range(count)])
        places = torch.arange(length) - starts.unsqueeze(1)
        hidden.append((places >= 0) & (places < width))
    rows, columns = hidden
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)[:, None, None]
