"""Attacks on optical flow: reverse it, or drive it to a given one (Ranjan et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import geometry
from patchattack.attacks.attack import Attack, Metric, Size
from patchattack.attacks.pictures import bar, colour_map, enlarge, over
from patchattack.devices import constant
from patchattack.errors import InputError
from patchattack.scene import Scene, View

DISTANCES = ("cosine", "epe", "l1")
REGIONS = ("all", "outside", "patch")
WEIGHTS = ("even", "cospgd")
SATURATED = 0.9  # quantile of the clean flow's length from which on a picture is fully saturated
PICTURE = 320  # pixels that a picture is high at least
ROWS = 7  # of arrows
TURNED, STANDS = "YlOrRd", 0.45  # colour map of the angles, grey of what stood still


class FlowAttack(Attack):
    """Move the flow away from the victim's own clean flow, or towards a target.

    With ``target=null`` and ``distance=cosine`` the loss is that of Ranjan et al. 2019, equation 3: the mean cosine
    between the flow with the patch and the victim's own flow without it, -1 when every vector is reversed.

    Args:
        target: null moves away from the clean flow; ``zero`` stops it; ``[u, v]`` is a flow in pixels.
        distance: ``cosine`` of the angle, ``epe`` (end-point error, px) or ``l1`` (px).
        region: pixels that count in the loss: those ``outside`` the patch, ``all``, as in the paper, or those of the
            ``patch``.
        still: pixels whose clean flow is shorter than this (px) have no direction and do not count in a cosine.
        weights: ``even``, or ``cospgd``: each pixel of the loss counts by how far its direction is from won, 1 where it
            has not turned and 0 where it points the other way, or to the target (Agnihotri et al. 2024, section 3).

    Raises:
        InputError: an option that does not exist, or the cosine to zero flow.
    """

    task = "flow"
    reach = "turned"
    clean_metric = ("epe_truth", "all")
    metric_info: Mapping[str, Metric] = {
        "cosine": Metric("cosine similarity to the clean flow", "lower"),
        "turned": Metric("fraction of pixels whose flow turned by more than 90°", "higher"),
        "epe_clean": Metric("end-point error against the clean flow (px)", "higher"),
        "epe_truth": Metric("end-point error against the true flow (px)", "higher"),
    }

    def __init__(
        self,
        target: str | Sequence[float] | None = None,
        distance: str = "cosine",
        region: str = "outside",
        still: float = 0.25,
        weights: str = "even",
    ) -> None:
        if distance not in DISTANCES or region not in REGIONS or weights not in WEIGHTS:
            raise InputError(
                f"attack: expected distance of {', '.join(DISTANCES)}, region of {', '.join(REGIONS)} and weights of "
                f"{', '.join(WEIGHTS)}, got {distance}, {region} and {weights}"
            )
        pair = isinstance(target, list | tuple) and [isinstance(part, int | float) for part in target] == [True, True]
        if target not in (None, "zero") and not pair:
            raise InputError(f"attack.target: expected null, zero or [u, v] in pixels, got {target}")
        self.target = [0.0, 0.0] if target == "zero" else target
        if distance == "cosine" and self.target is not None and not any(self.target):
            raise InputError(
                f"attack.target={target}: expected distance epe or l1, got cosine; zero flow has no direction"
            )
        if still <= 0:
            raise InputError(f"attack.still: expected pixels above 0, got {still}")
        self.distance, self.region, self.still, self.weights = distance, region, still, weights
        # What the loss moves is what decides: an attack on the patch's own flow may leave the rest alone.
        where = "patch" if region == "patch" else "outside"
        place = {"patch": "on it", "outside": "outside it"}[where]
        if target is None:
            self.primary_metric = ("cosine", where)
            words = f"turns the motion of {{}} of the moving pixels {place} by more than 90°"
            self.size = Size(("turned", where), words, small=0.1)
        else:
            self.primary_metric = ("epe_clean", where)
            self.size = Size(
                self.primary_metric, f"changes the motion {place} by {{}} on average", small=1.0, unit="px"
            )

    def loss(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> Tensor:
        """``[B]``: the cosine or minus the distance to the clean flow; or the distance to the target."""
        goal = clean
        if self.target is not None:
            goal = constant(tuple(self.target), clean.dtype, clean.device).view(1, 2, 1, 1).expand_as(clean)
        counts = regions(view)[self.region]
        if self.distance == "cosine":
            counts = counts & (length(clean) > self.still)
            towards = -cosine(output, goal)
        elif self.distance == "epe":
            towards = (output - goal).square().sum(dim=1).add(1e-8).sqrt()
        else:
            towards = (output - goal).abs().sum(dim=1)
        if self.weights == "cospgd":
            similar = cosine(output.detach(), goal)
            towards = towards * (1 + similar if self.target is None else 1 - similar) / 2
        value = torch.where(counts, towards, 0).sum(dim=(1, 2)) / counts.sum(dim=(1, 2)).clamp(min=1)
        return -value if self.target is None else value

    @torch.no_grad()
    def metrics(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """Each of :attr:`metric_info` over the whole frame, outside the patch and on it."""
        moves = length(clean) > self.still
        similarity = cosine(output, clean)
        everywhere = torch.ones_like(moves)
        maps = {
            "cosine": (similarity, moves),
            "turned": ((similarity < 0).float(), moves),
            "epe_clean": (length(output - clean), everywhere),
        }
        if scene.flow is not None:
            known = scene.flow.isfinite().all(dim=1)
            maps["epe_truth"] = (length(output - scene.flow.nan_to_num()), known)
        return {
            (name, region): torch.where(counts & part, values, 0).sum(dim=(1, 2)) / (counts & part).sum(dim=(1, 2))
            for name, (values, counts) in maps.items()
            for region, part in regions(view).items()
        }

    @torch.no_grad()
    def per_pixel(self, output: Tensor, clean: Tensor) -> Tensor:
        """1 where the flow turned by more than 90°, 0 where it did not, NaN where nothing moved."""
        turned = (cosine(output, clean) < 0).float()
        return torch.where(length(clean) > self.still, turned, torch.nan)

    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """Flows ``[1, 2, H, W]`` in the colours of Baker et al. 2011 under arrows.

        The scale is that of the first output, which is the clean one: a vector as long as :data:`SATURATED` of its
        vectors is fully saturated, and its arrow as long as the grid of arrows is wide. Shorter ones go by the root of
        their length, or all but the road at one's feet would be white.
        """
        from torchvision.utils import flow_to_image

        flows = torch.cat(outputs).detach().float().cpu()
        limit = length(flows[:1]).quantile(SATURATED).clamp(min=self.still)
        moved = length(flows).unsqueeze(1)
        scaled = flows / moved.clamp(min=1e-9) * (moved / limit).clamp(max=1).sqrt()
        unit = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand_as(flows[:1])  # the longest of all, for torchvision
        colours = flow_to_image(torch.cat([scaled, unit]))[:-1].float() / 255
        still = (moved < self.still).float()
        return [
            _with_arrows(enlarge(colour, PICTURE), flow, quiet)
            for colour, flow, quiet in zip(colours, scaled, still, strict=True)
        ]

    def legend(self) -> tuple[Tensor, str]:
        """The colour wheel."""
        from torchvision.utils import flow_to_image

        size = 96
        place = geometry.pixel_grid((size, size)).permute(2, 0, 1) / ((size - 1) / 2) - 1
        inside = place.norm(dim=0, keepdim=True) <= 1
        wheel = flow_to_image((place * inside)[None])[0].float() / 255
        text = (
            "Colours and arrows point where things move, the stronger and longer the farther. One scale per scene: the "
            f"{100 * SATURATED:.0f} % quantile of the flow without a patch is full. Dots stand still."
        )
        return torch.where(inside, wheel, 1.0), text

    def changes(self, outputs: list[Any], clean: Any, frames: list[Tensor]) -> list[Tensor]:
        """By how many degrees each pixel's motion turned, over the frame; where it stood still there is no colour."""
        before = clean.detach().float().cpu()
        moves = length(before) > self.still
        pictures = []
        for output, frame in zip(outputs, frames, strict=True):
            turned = cosine(output.detach().float().cpu(), before).clamp(-1, 1).acos() / math.pi
            colours = torch.where(moves.unsqueeze(1), colour_map(turned, TURNED), STANDS)
            pictures.append(enlarge(over(frame[0], colours[0]), PICTURE))
        return pictures

    def changes_legend(self) -> tuple[Tensor, str]:
        """A bar of the angles."""
        text = (
            "By how much the motion turned against that without a patch: pale is kept, dark red is reversed. Dark "
            f"grey stood still (less than {self.still:g} px)."
        )
        return bar(TURNED, ["0°", "90°", "180°"]), text


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """``[B, H, W]`` cosine of the angle between flows ``[B, 2, H, W]``; 0, with a finite gradient, for a zero flow."""
    squares = first.square().sum(dim=1) * second.square().sum(dim=1)
    return (first * second).sum(dim=1) / squares.clamp(min=1e-12).sqrt()


def length(flow: Tensor) -> Tensor:
    """``[B, H, W]`` length in pixels of ``flow [B, 2, H, W]``; torch's own norm is slow over two channels."""
    return flow.square().sum(dim=1).sqrt()


def regions(view: View) -> dict[str, Tensor]:
    """``[B, H, W]`` bool for each of :data:`REGIONS`; the patch's pixels are those that show it in any frame."""
    patch = (view.coverage > 0).any(dim=1)[:, 0]
    return {"all": torch.ones_like(patch), "outside": ~patch, "patch": patch}


def _with_arrows(picture: Tensor, flow: Tensor, still: Tensor) -> Tensor:
    """``picture [3, h, w]`` with arrows for ``flow [2, H, W]`` of at most 1, the mean of the cell that each lies in.

    Black with a white rim, so that they show on any colour; a dot where most of the cell is ``still [1, H, W]``.
    """
    image = np.ascontiguousarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
    height, width = image.shape[:2]
    rows = max(1, min(ROWS, flow.shape[1]))
    columns = max(1, min(round(rows * width / height), flow.shape[2]))
    means = F.adaptive_avg_pool2d(torch.cat([flow, still]), (rows, columns)).permute(1, 2, 0).numpy()
    cell = min(height / rows, width / columns)
    thin = max(1, round(cell / 24))
    for row, column in np.ndindex(rows, columns):
        u, v, quiet = means[row, column]
        middle = np.array([(column + 0.5) * width / columns, (row + 0.5) * height / rows])
        half = 0.45 * cell * np.array([u, v])
        tail, head = ((16 * point).round().astype(int).tolist() for point in (middle - half, middle + half))
        for colour, wide in ((255, 3 * thin), (0, thin)):
            if quiet > 0.5:
                centre = (16 * middle).round().astype(int).tolist()
                cv2.circle(image, centre, 16 * wide, (colour,) * 3, -1, cv2.LINE_AA, 4)
            else:
                cv2.arrowedLine(image, tail, head, (colour,) * 3, wide, cv2.LINE_AA, 4, 0.4)
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255
