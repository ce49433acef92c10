"""ObjectSeeker: certified detection by masks that need not know the patch (Xiang et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack.defenses.defense import Defense, Predict, check_share
from patchattack.defenses.patch_cleanser import mask_out
from patchattack.detections import NMS_IOU, area, confident, intersection, iou, kept
from patchattack.errors import InputError

TOGETHER = 0.9  # share of the smaller box inside the other from which two masked detections are one (their DBSCAN)
MERGED_IOU = NMS_IOU - 0.01  # from which a new box takes in another, before suppression could drop it for that one
EXTRA = 100  # rows for new boxes
CLOSE = 0.1  # of the frame's height and width: a patch that is no farther from an object is close to it


class ObjectSeeker(Defense):
    """A detector that is also asked with one side of the frame hidden, for lines across it in both directions.

    A patch that lies on one side of a line is gone when that side is hidden. Each detection under a mask counts unless
    one of its class in the whole frame covers the share ``pruning`` of it; those that count and lie in one another
    become one new box around them (algorithms 1 and 3). The candidates of the whole frame follow the new boxes, with
    score 0 where suppression drops them here. A new box takes in every detection that a later suppression at
    :data:`patchattack.detections.NMS_IOU` would drop it for, so that none is lost there.

    An object is certified for a place of the patch if some mask hides all of the patch there, and detections under it
    overlap the object by so much that what covers them still covers more than the share ``overlap`` of the object
    (algorithm 2), whatever is on the patch: a box of its class will be there. Its place may be poor: this is no proof
    of an intersection over union.

    With a generator, each scene is asked once, with one of the masks or none at random: the mean over training's steps
    is the expectation over the masks, which an adaptive attack needs, because it must hide an object under all of
    them. Without one, the gradient is that of the scores.

    Args:
        lines: in each direction; the victim is asked ``4 · lines + 1`` times.
        confidence: lowest score of a detection in the whole frame.
        masked_confidence: lowest score of a detection under a mask.
        pruning: share of a masked detection from which one in the whole frame stands for it.
        side: of the largest patch of the certificate, upright, as a fraction of the frame's shorter side. The defence
            itself does not depend on it.
        overlap: share of an object that must stay covered for a certificate; the paper's is 0.

    Raises:
        InputError: a number that cannot be.
    """

    name = "object_seeker"
    tasks = ("detection",)

    def __init__(
        self,
        lines: int = 10,
        confidence: float = 0.4,
        masked_confidence: float = 0.6,
        pruning: float = 0.6,
        side: float = 0.2,
        overlap: float = 0.0,
    ) -> None:
        key = "defense.object_seeker"
        if lines < 1:
            raise InputError(f"{key}.lines: expected at least 1, got {lines}")
        if not 0 <= overlap < 1:
            raise InputError(f"{key}.overlap: expected a number of 0 or more and less than 1, got {overlap}")
        self.lines, self.overlap = lines, overlap
        self.confidence = check_share(f"{key}.confidence", confidence)
        self.masked_confidence = check_share(f"{key}.masked_confidence", masked_confidence)
        self.pruning, self.side = check_share(f"{key}.pruning", pruning), check_share(f"{key}.side", side)
        if masked_confidence < confidence:
            raise InputError(
                f"{key}.masked_confidence: expected at least {key}.confidence ({confidence}), got {masked_confidence}"
            )
        self._generator: torch.Generator | None = None

    def randomise(self, generator: torch.Generator | None) -> None:
        """See :meth:`Defense.randomise`."""
        self._generator = generator

    def __call__(self, frames: Tensor, predict: Predict) -> Tensor:
        """See :meth:`Defense.__call__`."""
        size = (frames.shape[-2], frames.shape[-1])
        masks = half_masks(size, self.lines).to(frames.device)
        if self._generator is not None:
            masks = torch.cat([torch.zeros_like(masks[:1]), masks])
            rows = torch.randint(len(masks), (len(frames),), generator=self._generator)
            candidates = predict(mask_out(frames, masks[rows.to(frames.device)]))
            return F.pad(candidates, (0, 0, _rows_for_new(candidates), 0))  # every answer has the same shape
        whole, masked = predict(frames), [predict(mask_out(frames, mask)) for mask in masks]
        return torch.stack([self._join(image, [one[n] for one in masked], size) for n, image in enumerate(whole)])

    def _join(self, whole: Tensor, masked: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """New boxes, then the rest, of one image's candidates ``[A, 4 + K]`` in the whole frame and under each mask."""
        rows, classes = kept(whole, self.confidence)
        dropped = confident(whole, self.confidence)
        dropped[rows, classes] = False
        candidates = torch.cat([whole[:, :4], whole[:, 4:].masked_fill(dropped, 0)], dim=1)

        found = torch.cat([self._masked_detections(image, size) for image in masked])  # box, score, class
        if len(rows):
            same = found[:, 5:] == classes
            stands = same & (share(found[:, :4], whole[rows, :4]) >= self.pruning)
            found = found[~stands.any(dim=1)]
        detections = torch.cat([whole[rows, :4], whole[rows, 4 + classes, None], classes.unsqueeze(1)], dim=1)
        new = _unite(found, detections, whole.shape[1] - 4) if len(found) else candidates[:0]
        fill = _rows_for_new(whole) - len(new)
        return torch.cat([new, new.new_zeros(fill, whole.shape[1]), candidates])

    def _masked_detections(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """``[n, 6]`` box inside the frame, score and class of candidates ``[A, 4 + K]`` under a mask."""
        rows, classes = kept(image, self.masked_confidence)
        low, high = image.new_tensor([-0.5] * 4), image.new_tensor([size[1], size[0]] * 2) - 0.5
        boxes = torch.minimum(torch.maximum(image[rows, :4].detach(), low), high)
        found = torch.cat([boxes, image[rows, 4 + classes, None], classes.unsqueeze(1)], dim=1)
        return found[area(boxes) > 0]

    @torch.no_grad()
    def certify_objects(
        self, frames: Tensor, predict: Predict, objects: Tensor, confidence: float
    ) -> Mapping[str, Tensor]:
        """See :meth:`Defense.certify_objects`.

        Places are ``over`` the object (a pixel of the patch is in its box), ``close`` to it (no farther from it than
        a tenth of the frame's height and width) and ``far``. The patch may lie partly out of the frame.
        """
        if confidence > self.confidence:
            raise InputError(
                f"defense.object_seeker.confidence: expected at least attack.confidence ({confidence}) for a "
                f"certificate, got {self.confidence}; raise it or lower attack.confidence"
            )
        size, shortest = (frames.shape[-2], frames.shape[-1]), min(frames.shape[-2:])
        masks, patch = half_masks(size, self.lines).to(frames.device), math.ceil(self.side * shortest)
        seen = torch.stack([self._sees(predict(mask_out(frames, mask)), objects, size) for mask in masks])
        before, after = seen.unflatten(0, (2, 2, self.lines)).unbind(1)  # [2, lines, B, N]: rows and columns
        axes = []
        for axis, length in enumerate(size):
            lines = line_places(length, self.lines).to(frames.device).view(-1, 1, 1)
            until, since = (lines * before[axis]).amax(dim=0), lines.where(after[axis], length).amin(dim=0)  # [B, N]
            start = torch.arange(1 - patch, length, device=frames.device)
            first, end = start.clamp(min=0), (start + patch).clamp(max=length)  # of the patch's pixels in the frame
            low, high = objects[..., 1 - axis, None], objects[..., 3 - axis, None]
            gap = torch.maximum(low - (end - 0.5), first - 0.5 - high)  # [B, N, places]
            hidden = (end <= until.unsqueeze(-1)) | (first >= since.unsqueeze(-1))
            axes.append((hidden, gap < 0, gap < CLOSE * length))
        (rows_hidden, *rows), (columns_hidden, *columns) = axes
        over, near = (row.unsqueeze(-1) & column.unsqueeze(-2) for row, column in zip(rows, columns, strict=True))
        hidden = rows_hidden.unsqueeze(-1) | columns_hidden.unsqueeze(-2)  # [B, N, places, places]
        real = objects.isfinite().all(dim=-1) & (objects[..., 4] >= 0)
        places = {"far": ~near, "close": near & ~over, "over": over}
        return {name: real & (hidden | ~place).flatten(2).all(dim=2) for name, place in places.items()}

    def _sees(self, candidates: Tensor, objects: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, N]`` bool: whether detections under a mask prove an object, whatever may stand for them."""
        proved = []
        for image, rows in zip(candidates, objects, strict=True):
            found = self._masked_detections(image, size)
            left = intersection(rows[:, :4], found[:, :4]) - (1 - self.pruning) * area(found[:, :4])  # [N, n]
            enough = left > self.overlap * area(rows[:, :4]).unsqueeze(1)
            proved.append((enough & (rows[:, 4:] == found[:, 5])).any(dim=1))
        return torch.stack(proved)


def line_places(length: int, lines: int) -> Tensor:
    """``[lines]`` the first pixel after each line across ``length`` pixels, evenly spaced."""
    return (torch.arange(1, lines + 1) * length / (lines + 1)).round().long()


def half_masks(size: tuple[int, int], lines: int) -> Tensor:
    """``[4 * lines, 1, 1, H, W]`` bool: rows before each line, then rows after it, then so the columns.

    Args:
        size: ``(h, w)`` of the frames.
        lines: in each direction.
    """
    sides = []
    for axis, length in enumerate(size):
        before = torch.arange(length) < line_places(length, lines).unsqueeze(1)
        shape = (2 * lines, 1, 1, length, 1) if axis == 0 else (2 * lines, 1, 1, 1, length)
        sides.append(torch.cat([before, ~before]).view(shape).expand(-1, -1, -1, *size))
    return torch.cat(sides)


def share(boxes: Tensor, others: Tensor) -> Tensor:
    """``[N, M]`` fraction of each of ``boxes [N, 4]`` that lies in each of ``others [M, 4]`` (IoA)."""
    return intersection(boxes, others) / area(boxes).clamp(min=1e-9).unsqueeze(1)


def _rows_for_new(candidates: Tensor) -> int:
    """How many new boxes an answer holds: of candidates ``[..., 4 + K]``, one for each class at least."""
    return max(EXTRA, candidates.shape[-1] - 4)


def _unite(found: Tensor, detections: Tensor, classes: int) -> Tensor:
    """``[n, 4 + classes]`` new boxes around ``found [m, 6]``, with the ``detections [d, 6]`` that they take in.

    None is dropped for a detection or for another new box by a later suppression, in which it comes first: its score
    is the highest of all that it takes in.
    """
    items, count = torch.cat([found, detections]), len(found)
    boxes, scores, kinds = items[:, :4].detach(), items[:, 4], items[:, 5]
    inside = share(boxes[:count], boxes[:count])
    linked = (kinds[:count, None] == kinds[:count]) & (torch.maximum(inside, inside.mT) >= TOGETHER)
    members, before = F.pad(_groups(linked), (0, len(detections))), None  # [n, m + d] bool
    while True:
        around, kind = _around(members, boxes), kinds[members.int().argmax(dim=1)]
        if before is not None and torch.equal(members, before):
            score = torch.where(members, scores, 0).amax(dim=1, keepdim=True)
            return torch.cat([around, F.one_hot(kind.long(), classes) * score], dim=1)
        before = members
        taken = (kind.unsqueeze(1) == kinds) & (iou(around, boxes) >= MERGED_IOU)
        taken[:, :count] = False
        crowded = iou(around, around) >= MERGED_IOU if len(members) <= EXTRA else torch.ones_like(linked[:1, :1])
        together = _groups((kind.unsqueeze(1) == kind) & crowded)
        members = (together.unsqueeze(2) & (members | taken)).any(dim=1)


def _groups(linked: Tensor) -> Tensor:
    """``[groups, n]`` bool: the connected components of ``linked [n, n]``, in the order of their first members."""
    from scipy.sparse.csgraph import connected_components

    count, labels = connected_components(linked.cpu().numpy(), directed=False)
    return torch.arange(count, device=linked.device).unsqueeze(1) == torch.as_tensor(labels, device=linked.device)


def _around(members: Tensor, boxes: Tensor) -> Tensor:
    """``[n, 4]``: the smallest boxes around all ``boxes [m, 4]`` of which ``members [n, m]`` says so."""
    inside, infinite = members.unsqueeze(2), torch.inf
    low = torch.where(inside, boxes[:, :2], infinite).amin(dim=1)
    return torch.cat([low, torch.where(inside, boxes[:, 2:], -infinite).amax(dim=1)], dim=1)
