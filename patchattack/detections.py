"""What a detector reports of an image: threshold, non-maximum suppression, and how far boxes overlap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NMS_IOU = 0.7  # IoU above which the lower of two detections of a class is dropped


@dataclass(frozen=True)
class Detections:
    """What a detector reports of one image, the highest score first; all on the host.

    Attributes:
        boxes: ``[n, 4]`` left, top, right and bottom in pixels.
        scores: ``[n]`` in [0, 1].
        classes: ``[n]`` int64, of the victim.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def detections(candidates: Tensor, confidence: float) -> list[Detections]:
    """What is left of the candidates ``[B, A, 4 + K]`` of each image after threshold and non-maximum suppression."""
    found = []
    for image in candidates.detach():
        rows, classes = kept(image, confidence)
        found.append(Detections(image[rows, :4].cpu(), image[rows, 4 + classes].cpu(), classes.cpu()))
    return found


def kept(image: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """``[n]`` rows of the candidates ``image [A, 4 + K]`` that are detections, and ``[n]`` their classes.

    The highest score comes first. Suppression is within the classes; a candidate counts once for each class that it is
    confident of.
    """
    from torchvision.ops import batched_nms

    image = image.detach()
    rows, classes = confident(image, confidence).nonzero(as_tuple=True)
    survivors = batched_nms(image[rows, :4], image[rows, 4 + classes], classes, NMS_IOU)
    return rows[survivors], classes[survivors]


def confident(image: Tensor, confidence: float) -> Tensor:
    """``[A, K]`` bool: which candidates ``image [A, 4 + K]`` are boxes with at least this score for the class."""
    drawn = (image[:, 2:4] >= image[:, :2]).all(dim=1, keepdim=True)  # a box that ends before it begins is none
    return (image[:, 4:] >= confidence) & drawn


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """``[..., N, M]`` intersection over union of ``boxes [..., N, 4]`` and ``others [..., M, 4]``; NaN of NaN."""
    common = intersection(boxes, others)
    return common / (area(boxes).unsqueeze(-1) + area(others).unsqueeze(-2) - common).clamp(min=1e-9)


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """``[..., N, M]`` area that ``boxes [..., N, 4]`` and ``others [..., M, 4]`` share, square pixels; NaN of NaN."""
    one, other = boxes.unsqueeze(-2), others.unsqueeze(-3)
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def area(boxes: Tensor) -> Tensor:
    """``[...]`` of ``boxes [..., 4]``, square pixels."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
