"""Compact detectors: YOLO as ultralytics builds it, and a network of object centres."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack import geometry
from patchattack.victims.compact.layers import conv
from patchattack.victims.ultralytics_import import quietly

block = partial(conv, norm=True)


class YoloNetwork(nn.Module):
    """YOLO11 nano as ultralytics builds it, with the loss by which it trains it (Jocher and Qiu 2024, AGPL-3.0).

    Args:
        classes: how many it tells apart.
    """

    multiple = 32
    model: Any  # ultralytics does not say what its modules have

    def __init__(self, classes: int) -> None:
        super().__init__()
        with quietly():
            from ultralytics.cfg import get_cfg
            from ultralytics.nn.tasks import DetectionModel, yaml_model_load

        self.model = DetectionModel(yaml_model_load("yolo11n.yaml") | {"nc": classes}, verbose=False)
        self.model.args = get_cfg()  # weights of the terms of its loss
        self.model.model[-1].xyxy = True

    def forward(self, images: Tensor) -> Tensor:
        """Candidates ``[B, A, 4 + classes]`` of ``images [B, 3, H, W]`` in [0, 1], sides divisible by 32; in eval mode.

        Left, top, right and bottom in pixels of the images, which span ``[0, W] × [0, H]``, then a score in [0, 1] for
        each class.
        """
        head, (height, width) = self.model.model[-1], images.shape[-2:]
        if head.shape is not None and tuple(head.shape[2:]) == (height // 8, width // 8):
            # Its anchors are made anew, and the device waited for, where a batch has another length.
            head.shape = torch.Size((len(images), *head.shape[1:]))
        return self.model(images)[0].mT

    def loss(self, images: Tensor, boxes: Tensor) -> Tensor:
        """The training loss of ``images`` with objects ``boxes [B, N, 5]``: corners in their pixels and the class."""
        height, width = images.shape[-2:]
        image, row = boxes.isfinite().all(dim=-1).nonzero(as_tuple=True)
        corners, label = boxes[image, row].split((4, 1), dim=-1)
        first, last = corners.split(2, dim=-1)
        centred = torch.cat([(first + last) / 2, last - first], dim=-1)
        batch = {
            "img": images,
            "batch_idx": image,
            "cls": label,
            "bboxes": centred / centred.new_tensor([width, height, width, height]),
        }
        return self.model.loss(batch)[0].sum() / len(images)


class CentreNet(nn.Module):
    """Heat maps of object centres and the distances from there to the sides, after TTFNet (Liu et al. 2020).

    Args:
        classes: how many it tells apart.
    """

    multiple = 32
    stride = 4
    reach = 16.0  # pixels for which the head's output is about 1

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        widths = (24, 32, 48, 64, 80)  # at 1/2 .. 1/32
        self.down = nn.ModuleList(
            nn.Sequential(block(n, m, 3, 2), block(m, m)) for n, m in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.across = nn.ModuleList(nn.Conv2d(n, 40, 1) for n in widths[1:])
        self.smooth = nn.ModuleList(block(40, 40) for _ in widths[2:])
        centre = nn.Conv2d(40, classes, 1)
        self.heat = nn.Sequential(block(40, 40), centre)
        self.sides = nn.Sequential(block(40, 40), nn.Conv2d(40, 4, 1))
        centre.bias = nn.Parameter(torch.full((classes,), -4.0))  # at first hardly any place is a centre

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, classes, h, w]`` of centres and boxes ``[B, 4, h, w]`` in pixels at 1/4 of the resolution."""
        x, levels = images * 2 - 1, []
        for down in self.down:
            x = down(x)
            levels.append(x)
        x = self.across[-1](levels.pop())
        for across, smooth in zip(reversed(self.across[:-1]), reversed(self.smooth), strict=True):
            x = smooth(F.interpolate(x, scale_factor=2, mode="nearest") + across(levels.pop()))
        exact = torch.promote_types(x.dtype, torch.float32)  # a pixel in bfloat16 is off by one
        sides = F.softplus(self.sides(x).to(exact)) * self.reach
        places = self._places(x)
        return self.heat(x), torch.cat([places - sides[:, :2], places + sides[:, 2:]], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Candidates ``[B, A, 4 + classes]`` of ``images [B, 3, H, W]`` in [0, 1], sides divisible by 32.

        Left, top, right and bottom in pixels of the images, which span ``[0, W] × [0, H]``, then a score in [0, 1] for
        each class.
        """
        heat, boxes = self.maps(images)
        return torch.cat([boxes, heat.sigmoid()], dim=1).flatten(2).mT

    def loss(self, images: Tensor, boxes: Tensor) -> Tensor:
        """The training loss of ``images`` with objects ``boxes [B, N, 5]``: corners in their pixels and the class.

        TTFNet's: the focal loss of CornerNet (Law and Deng 2018, equation 1) towards a bell at each object's centre,
        and the generalised IoU of the boxes that the places under the bell predict.
        """
        from torchvision.ops import generalized_box_iou_loss

        heat, predicted = self.maps(images)
        known = boxes.isfinite().all(dim=-1)  # [B, N]
        boxes = boxes.nan_to_num()
        first, last = boxes[..., :2], boxes[..., 2:4]
        extent = last - first
        centre = (((first + last) / 2 / self.stride).floor() + 0.5) * self.stride
        spread = (extent * 0.09).clamp(min=self.stride / 2)  # TTFNet's 0.54 / 6
        away = (self._places(heat)[:, None] - centre[..., None, None]) / spread[..., None, None]  # [B, N, 2, h, w]
        bells = (-away.square().sum(dim=2) / 2).exp() * known[..., None, None]  # [B, N, h, w]

        of_class = F.one_hot(boxes[..., 4].long(), self.classes).to(bells.dtype)
        target = (bells.unsqueeze(2) * of_class[..., None, None]).amax(dim=1)  # [B, classes, h, w]
        score = heat.sigmoid()
        found = (1 - score).square() * F.logsigmoid(heat) * (target == 1)
        not_found = (1 - target) ** 4 * score.square() * F.logsigmoid(-heat) * (target < 1)
        objects = known.sum().clamp(min=1)
        focal = -(found + not_found).sum() / objects

        area = torch.where(known, extent.prod(dim=-1), torch.inf)
        order = area.argsort(dim=1)  # a place under several bells belongs to the smallest object
        reached = bells.gather(1, order[..., None, None].expand_as(bells)) > 0.1
        owner = order.gather(1, reached.int().argmax(dim=1).flatten(1))  # [B, h·w]
        weight = bells.flatten(2).gather(1, owner.unsqueeze(1)).squeeze(1) * reached.any(dim=1).flatten(1)
        total = torch.zeros_like(area).scatter_add(1, owner, weight).gather(1, owner)
        truth = boxes[..., :4].gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))
        errors = generalized_box_iou_loss(predicted.flatten(2).mT, truth)
        overlap = (errors * weight / total.clamp(min=1e-6)).sum() / objects  # all objects count the same
        return focal + 5 * overlap

    def _places(self, like: Tensor) -> Tensor:
        """``[1, 2, h, w]``: the middle of each place of a feature map, in pixels of the images."""
        grid = geometry.pixel_grid((like.shape[-2], like.shape[-1]), like.device)
        return ((grid + 0.5) * self.stride).permute(2, 0, 1).unsqueeze(0)
