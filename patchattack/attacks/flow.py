"""Attacks on optical flow: reverse it, or drive it to a given one (Ranjan et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from patchattack import geometry
from patchattack.attacks.attack import Attack, Metric
from patchattack.errors import InputError
from patchattack.scene import Scene, View

DISTANCES = ("cosine", "epe", "l1")
REGIONS = ("all", "outside", "patch")


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

    Raises:
        InputError: an option that does not exist, or the cosine to zero flow.
    """

    task = "flow"
    quality = ("epe_truth", "all")
    metrics_known: Mapping[str, Metric] = {
        "cosine": Metric("cosine similarity to the clean flow", "lower"),
        "turned": Metric("share of pixels whose flow turned by more than 90°", "higher"),
        "epe_clean": Metric("end-point error against the clean flow (px)", "higher"),
        "epe_truth": Metric("end-point error against the true flow (px)", "higher"),
    }

    def __init__(
        self,
        target: str | Sequence[float] | None = None,
        distance: str = "cosine",
        region: str = "outside",
        still: float = 0.25,
    ) -> None:
        if distance not in DISTANCES or region not in REGIONS:
            raise InputError(
                f"attack: expected distance of {', '.join(DISTANCES)} and region of {', '.join(REGIONS)}, "
                f"got {distance} and {region}"
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
        self.distance, self.region, self.still = distance, region, still
        # What the loss moves is what decides: an attack on the patch's own flow may leave the rest alone.
        self.headline = ("cosine" if target is None else "epe_clean", "patch" if region == "patch" else "outside")

    def loss(self, hit: Tensor, clean: Tensor, scene: Scene, view: View) -> Tensor:
        """``[B]``: the cosine or minus the distance to the clean flow; or the distance to the target."""
        goal = clean if self.target is None else clean.new_tensor(self.target).view(1, 2, 1, 1).expand_as(clean)
        counts = regions(view)[self.region]
        if self.distance == "cosine":
            counts = counts & (length(clean) > self.still)
            towards = -cosine(hit, goal)
        elif self.distance == "epe":
            towards = (hit - goal).square().sum(dim=1).add(1e-8).sqrt()
        else:
            towards = (hit - goal).abs().sum(dim=1)
        value = torch.where(counts, towards, 0).sum(dim=(1, 2)) / counts.sum(dim=(1, 2)).clamp(min=1)
        return -value if self.target is None else value

    @torch.no_grad()
    def metrics(self, hit: Tensor, clean: Tensor, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """Each of :attr:`metrics_known` over the whole frame, outside the patch and on it."""
        moves = length(clean) > self.still
        similarity = cosine(hit, clean)
        everywhere = torch.ones_like(moves)
        maps = {
            "cosine": (similarity, moves),
            "turned": ((similarity < 0).float(), moves),
            "epe_clean": (length(hit - clean), everywhere),
        }
        if scene.flow is not None:
            known = scene.flow.isfinite().all(dim=1)
            maps["epe_truth"] = (length(hit - scene.flow.nan_to_num()), known)
        return {
            (name, region): torch.where(counts & part, values, 0).sum(dim=(1, 2)) / (counts & part).sum(dim=(1, 2))
            for name, (values, counts) in maps.items()
            for region, part in regions(view).items()
        }

    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """Flows ``[1, 2, H, W]`` in the colours of Baker et al. 2011; the longest vector of all is fully saturated."""
        from torchvision.utils import flow_to_image

        return list(flow_to_image(torch.cat(outputs).cpu()).float() / 255)

    def legend(self) -> tuple[Tensor, str]:
        """The colour wheel."""
        from torchvision.utils import flow_to_image

        size = 96
        place = geometry.pixel_grid((size, size)).permute(2, 0, 1) / ((size - 1) / 2) - 1
        inside = place.norm(dim=0, keepdim=True) <= 1
        wheel = flow_to_image((place * inside)[None])[0].float() / 255
        text = "The colour is the direction in which a point moves, the saturation how far, on one scale per scene."
        return torch.where(inside, wheel, 1.0), text


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
