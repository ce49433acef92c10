"""Attacks on monocular depth: pull a region near or push it far (Yamanaka et al. 2020)."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from patchattack import geometry
from patchattack.attacks.attack import Attack, Metric, Size
from patchattack.attacks.pictures import bar, colour_map, over
from patchattack.devices import constant, transfer
from patchattack.errors import InputError
from patchattack.scene import Scene, Source, View

GOALS = ("near", "far")
REGIONS = ("patch", "surface", "all")
DISTANCES = ("absolute", "log_ratio")
WEIGHTS = ("even", "cospgd")
METRES = {"near": 3.0, "far": 150.0}  # the targets of Yamanaka et al.
PERCENTILES = {"near": 95.0, "far": 5.0}  # of inverse depth
FARTHEST = 150.0  # metres; where a fitted inverse depth says nearly zero, or less
NEAREST = 1e-3  # metres; a depth is divided by, and its logarithm taken
SMALLEST = 1e-9  # of the values whose ratio is taken
CHANGED = "RdBu_r"  # colour map of pictures: farther, the same, nearer
WIDEST = 80.0, 1.0  # metres, or fraction of the clean range, by which a pixel changes that is coloured fully

_log = logging.getLogger(__name__)


class DepthAttack(Attack):
    """Drive the depth of a region to a near or a far target.

    The loss is that of Yamanaka et al. 2020: the mean over the region of |d_t - F(I with the patch)|. For a victim of
    metric depth it is in metres. A relative victim gives inverse depth up to scale and shift: its target
    is a percentile of the scene's own clean prediction, and the loss is in fractions of the clean range (from the 5th
    to the 95th percentile), so that it does not depend on the victim's units. Everything that turns a relative output
    into a number comes from the clean prediction and is reused for the attacked one: fitted anew, a changed scale
    would vanish.

    With ``distance=log_ratio`` the loss is the logarithm of the factor that the region's mean lacks of the target, 0
    beyond it: of scenes whose targets are far apart none outweighs the others, and none that is won pulls any more.

    What is left of the way to the target decides, as ``gap``; beyond it nothing is left. ``success`` is harder: the
    region's mean is at the target, within the tolerance, or beyond it. A scene whose clean prediction is there already
    can show no success and is left out of it (NaN).

    Args:
        goal: ``near`` or ``far``.
        target: metres for a metric victim, null takes 3 near and 150 far or what of it the victim can express; for a
            relative one a percentile in [0, 100] of the scene's clean inverse depth, null takes 95 near and 5 far.
        region: pixels that count: those of which the ``patch`` covers more than half, those of the ``surface`` that
            carries it, or ``all``.
        tolerance: how far from the target counts as there: a fraction of the target's metres, or of the clean range.
        margin: how far beyond the target the loss aims, in the same fractions, or in units of the logarithm, so that a
            mean that comes to rest near its aim is a success too (as the confidence of Carlini & Wagner 2017); metrics
            know the target alone.
        distance: ``absolute`` or ``log_ratio``, which needs outputs above 0: metres, or an inverse depth without shift.
        weights: ``even``, or ``cospgd``, of ``absolute`` alone: each pixel of the loss counts by the fraction of its
            way to the aim that is left, 1 where the patch has not moved it: CosPGD (Agnihotri et al. 2024) for one
            channel, which has no angle.

    Raises:
        InputError: an option that does not exist or a number that cannot be.
    """

    task = "depth"
    reach = "error"
    clean_metric = ("error_truth", "all")

    def __init__(
        self,
        goal: str = "near",
        target: float | None = None,
        region: str = "patch",
        tolerance: float = 0.1,
        margin: float = 0.0,
        distance: str = "absolute",
        weights: str = "even",
    ) -> None:
        if goal not in GOALS or region not in REGIONS or distance not in DISTANCES or weights not in WEIGHTS:
            raise InputError(
                f"attack: expected goal of {', '.join(GOALS)}, region of {', '.join(REGIONS)}, distance of "
                f"{', '.join(DISTANCES)} and weights of {', '.join(WEIGHTS)}, got {goal}, {region}, {distance} and "
                f"{weights}"
            )
        if weights != "even" and distance != "absolute":
            raise InputError(
                f"attack.weights={weights}: expected distance absolute, got {distance}, which has no pixels"
            )
        if not 0 <= tolerance < 1:
            raise InputError(f"attack.tolerance: expected a fraction of 0 or more and less than 1, got {tolerance}")
        if not 0 <= margin < math.inf:
            raise InputError(f"attack.margin: expected a fraction of 0 or more, got {margin}")
        self.goal, self.target, self.region = goal, target, region
        self.tolerance, self.margin, self.distance, self.weights = tolerance, margin, distance, weights
        self.attacked = "all" if region == "all" else "patch"
        self.primary_metric = ("gap", self.attacked)

    def bind(self, victim: Any, source: Source) -> None:
        """Settle the target for what the victim can express, and what its numbers mean.

        Args:
            victim: whose ``is_metric`` and ``depth_range`` count.
            source: of the scenes, which need a surface for that region.

        Raises:
            InputError: the target is out of the victim's reach, or there is no surface.
        """
        if self.region == "surface" and source[0].surface is None:
            raise InputError(
                "attack.region=surface: expected scenes with a surface that carries the patch, got scenes without; "
                "choose patch or all, or other data"
            )
        self.is_metric: bool = victim.is_metric
        self.farthest = victim.depth_range[1] if self.is_metric else FARTHEST
        self.aim = self._metres(victim) if self.is_metric else self._percentile(victim)
        # Inverse depth grows towards the camera, metres away from it.
        self.direction = 1.0 if (self.goal == "near") != self.is_metric else -1.0
        target = f"{self.aim:g} m" if self.is_metric else f"percentile {self.aim:g} of the clean inverse depth"
        beyond = {"near": "nearer", "far": "farther"}[self.goal]
        slack = f"{100 * self.tolerance:g} %" + ("" if self.is_metric else " of the clean range")
        unit = "m" if self.is_metric else "fraction of the clean range of inverse depth"
        self.widest = min(WIDEST[0], self.farthest) if self.is_metric else WIDEST[1]
        what = {"patch": "its place", "surface": "the surface that carries it", "all": "the whole frame"}[self.region]
        way = {"near": "nearer", "far": "farther"}[self.goal]
        self.size = (
            Size(self.primary_metric, f"makes {what} look {{}} {way}", small=1.0, unit="m")
            if self.is_metric
            else Size(self.primary_metric, f"makes {what} look {way} by {{}} of the scene's range", small=0.1)
        )
        self.metric_info = {
            "gap": Metric(f"mean distance left to {target} ({unit})", "lower"),
            "success": Metric(
                f"fraction of scenes whose mean is {target} or {beyond} (± {slack})", "higher", rate=True
            ),
            "reached": Metric(f"fraction of pixels that are at {target} or {beyond} (± {slack})", "higher"),
            "error": Metric(f"mean change against the clean prediction ({unit})", "higher"),
            "relative": Metric("mean change of the depth as a fraction of the clean depth", "higher"),
            "error_truth": Metric(f"mean error against the true depth up to {self.farthest:g} m (m)", "higher"),
        }

    def loss(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> Tensor:
        """``[B]``: what the region lacks of the target and the margin beyond it; 0 of a region without a pixel.

        It is the mean distance, in metres or in fractions of the clean range, or the logarithm of the mean's ratio.

        Args:
            output: ``[B, 1, H, W]`` of the victim on the view.
            clean: ``[B, 1, H, W]`` of the victim on the same scenes without the patch.
            scene: the scenes.
            view: the rendered scenes.
        """
        goal, unit = self._scale(clean)
        counts = self._regions(scene, view)[self.attacked]
        pixels = counts.sum(dim=(1, 2, 3))
        if self.distance == "log_ratio":
            mean = torch.where(counts, output, 0).sum(dim=(1, 2, 3)) / pixels.clamp(min=1)
            lacking = goal.flatten().clamp(min=SMALLEST).log() - mean.clamp(min=SMALLEST).log()
            return (self.direction * lacking + self.margin).clamp(min=0) * (pixels > 0)
        aim = goal + self.direction * self.margin * (goal if self.is_metric else unit.where(unit.isfinite(), 0))
        away = (output - aim).abs() / unit
        if self.weights == "cospgd":
            away = away * ((output.detach() - aim).abs() / (clean - aim).abs().clamp(min=SMALLEST)).clamp(max=1)
        away = torch.where(counts, away, 0)
        return away.sum(dim=(1, 2, 3)) / pixels.clamp(min=1)

    @torch.no_grad()
    def metrics(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """Each of :attr:`metric_info` that can be had.

        The region ``patch`` is the one that is attacked, the surface too, ``outside`` is the rest and shows what spills
        over; ``success`` and ``reached`` are of the attacked region alone. A relative victim has ``relative`` and
        ``error_truth`` where the true depth is known, by which its clean prediction becomes metres.
        """
        goal, unit = self._scale(clean)
        parts = self._regions(scene, view)
        slack = self.tolerance * (goal if self.is_metric else unit)

        def there(values: Tensor) -> Tensor:
            return self.direction * (values - goal) >= -slack

        attacked = parts[self.attacked]
        before, after = (average(values, attacked).view(-1, 1, 1, 1) for values in (clean, output))
        success = torch.where(there(before) | before.isnan(), torch.nan, there(after).float())
        found = {
            ("gap", self.attacked): average((self.direction * (goal - output)).clamp(min=0) / unit, attacked),
            ("success", self.attacked): success.flatten(),
            ("reached", self.attacked): average(there(output).float(), attacked),
        }
        everywhere = torch.ones_like(attacked)
        maps = {"error": ((output - clean).abs() / unit, everywhere)}
        if self.is_metric or scene.depth is not None:
            clean_metres, output_metres = clean, output
            if not self.is_metric:
                assert scene.depth is not None
                clean_metres, output_metres = (metres(one, clean, scene.depth) for one in (clean, output))
            maps["relative"] = ((output_metres - clean_metres).abs() / clean_metres.clamp(min=NEAREST), everywhere)
            if scene.depth is not None:
                known = scene.depth.isfinite() & (scene.depth <= self.farthest)
                maps["error_truth"] = ((output_metres - scene.depth.nan_to_num()).abs(), known)
        return found | {
            (name, region): average(values, counts & part)
            for name, (values, counts) in maps.items()
            for region, part in parts.items()
        }

    @torch.no_grad()
    def per_pixel(self, output: Tensor, clean: Tensor) -> Tensor:
        """The metric ``error`` of each pixel."""
        return ((output - clean).abs() / self._scale(clean)[1])[:, 0]

    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """Depth ``[1, 1, H, W]`` in matplotlib's magma, the logarithm of metres or inverse depth: near is bright.

        The scale is that of the first output, which is the clean one, from its 2nd to its 98th percentile.
        """
        nearness = torch.cat(outputs)[:, 0].cpu()
        if self.is_metric:
            nearness = -nearness.clamp(min=NEAREST).log()
        low, high = nearness[0].flatten().quantile(torch.tensor([0.02, 0.98]))
        return list(colour_map((nearness - low) / (high - low).clamp(min=1e-6), "magma"))

    def legend(self) -> tuple[Tensor, str]:
        """A bar of the colours."""
        strip = colour_map(torch.linspace(0, 1, 192).expand(1, 16, -1), "magma")[0]
        return strip, "Dark is far and bright is near, on one scale per scene: that of the clean prediction."

    def changes(self, outputs: list[Any], clean: Any, frames: list[Tensor]) -> list[Tensor]:
        """How much nearer (red) or farther (blue) each pixel became, over the frame; the same scale in every scene.

        Colours go by the root of the change, so that metres show beside the tens of metres of what hides the sky.
        """
        unit = self._scale(clean)[1] * self.widest * (-1 if self.is_metric else 1)  # metres grow away from the camera
        pictures = []
        for output, frame in zip(outputs, frames, strict=True):
            nearer = ((output - clean) / unit)[:, 0].detach().float().cpu()
            colours = colour_map((nearer.sign() * nearer.abs().sqrt() + 1) / 2, CHANGED)
            pictures.append(over(frame[0], colours[0]))
        return pictures

    def changes_legend(self) -> tuple[Tensor, str]:
        """A bar from farther to nearer."""
        full, quarter = (
            (f"{self.widest:g} m", f"{self.widest / 4:g} m") if self.is_metric else ("the range", "a quarter of it")
        )
        text = "How the depth changed against that without a patch: red is nearer, blue is farther."
        return bar(CHANGED, [full, quarter, "0", quarter, full]), text

    def _metres(self, victim: Any) -> float:
        """The target for a metric victim."""
        nearest, farthest = victim.depth_range
        if self.target is None:
            wanted = METRES[self.goal]
            aim = min(max(wanted, nearest), farthest)
            if aim != wanted:
                _log.warning("attack.target: %g m is out of the reach of %s; %g m it is", wanted, victim.name, aim)
            return aim
        if not max(nearest, NEAREST) <= self.target <= farthest:
            raise InputError(
                f"attack.target: expected metres that {victim.name} can express, from {nearest:g} to {farthest:g} and "
                f"above 0, got {self.target}; choose one of them, or null for the default"
            )
        return self.target

    def _percentile(self, victim: Any) -> float:
        """The target for a relative victim."""
        aim = PERCENTILES[self.goal] if self.target is None else self.target
        if not 0 <= aim <= 100:
            raise InputError(
                f"attack.target: expected a percentile from 0 to 100 of the clean inverse depth, because {victim.name} "
                f"gives no metres, got {self.target}; choose one, or null for the default"
            )
        return aim

    def _scale(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """The target and the unit of distances to it, ``[B, 1, 1, 1]``, in the victim's numbers."""
        if self.is_metric:
            one = torch.ones_like(clean[:, :, :1, :1])
            return self.aim * one, one
        shares = constant((self.aim, 5, 95), clean.dtype, clean.device) / 100
        goal, low, high = clean.flatten(1).quantile(shares, dim=1).view(3, -1, 1, 1, 1)
        # A prediction that is the same everywhere has no unit: nothing is far from anything.
        return goal, (high - low).where(high > low, torch.inf)

    def _regions(self, scene: Scene, view: View) -> dict[str, Tensor]:
        """``[B, 1, H, W]`` bool: what is attacked (the patch where that is all), the rest, and all."""
        coverage = view.coverage[:, 0]
        attacked = surface(scene, coverage.device) if self.region == "surface" else coverage > 0.5
        return {"patch": attacked, "outside": ~attacked, "all": torch.ones_like(attacked)}


def average(values: Tensor, counts: Tensor) -> Tensor:
    """``[B]``: the mean of ``values [B, 1, H, W]`` where ``counts [B, 1, H, W]``; NaN where nothing does."""
    return torch.where(counts, values, 0).sum(dim=(1, 2, 3)) / counts.sum(dim=(1, 2, 3))


def surface(scene: Scene, device: torch.device) -> Tensor:
    """``[B, 1, H, W]`` bool: pixels of frame 0 inside the scene's surface, where nothing stands in front of it."""
    assert scene.surface is not None
    corners = transfer(scene.surface[:, 0], device).view(-1, 4, 1, 1, 2)  # [B, 4, 1, 1, 2]
    edges, spokes = corners.roll(-1, 1) - corners, geometry.pixel_grid(scene.size, device) - corners
    side = edges[..., 0] * spokes[..., 1] - edges[..., 1] * spokes[..., 0]  # [B, 4, H, W]
    # Seen from the back, the corners turn the other way.
    inside = (side >= 0).all(dim=1, keepdim=True) | (side <= 0).all(dim=1, keepdim=True)
    return inside if scene.occluder is None else inside & ~scene.occluder[:, 0]


def metres(output: Tensor, clean: Tensor, truth: Tensor) -> Tensor:
    """Metres for an inverse depth up to scale and shift, which come from the clean prediction (Ranftl et al. 2020).

    They are those of the least squares between the clean prediction and the true inverse depth, so that a change of
    scale from ``clean`` to ``output`` is a change of metres.

    Args:
        output: ``[B, 1, H, W]`` relative inverse depth.
        clean: ``[B, 1, H, W]`` relative inverse depth of the clean frames.
        truth: ``[B, 1, H, W]`` metres, NaN where unknown.

    Returns:
        ``[B, 1, H, W]``, at most :data:`FARTHEST`; NaN in scenes whose depth is known nowhere.
    """
    known = truth.isfinite()
    inverse = torch.where(known, 1 / truth, 0)
    mean, inverse_mean = (average(values, known).view(-1, 1, 1, 1) for values in (clean, inverse))
    centred = torch.where(known, clean - mean, 0)
    spread = centred.square().sum(dim=(1, 2, 3), keepdim=True)
    scale = (centred * inverse).sum(dim=(1, 2, 3), keepdim=True) / spread.where(spread > 0, torch.inf)
    return 1 / (scale * (output - mean) + inverse_mean).clamp(min=1 / FARTHEST)
