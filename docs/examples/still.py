"""An attack: push the flow outside the patch to zero by its end-point error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from patchattack.attacks.attack import Attack, Metric, Size
from patchattack.attacks.pictures import bar, colour_map
from patchattack.scene import Scene, View


class StillAttack(Attack):
    """Less motion outside the patch: the mean length of the flow there, in pixels."""

    task = "flow"  # victims of the same task fit
    metric_info: Mapping[str, Metric] = {
        "length": Metric("mean length of the flow (px)", stronger="lower"),
        "change": Metric("mean change of the flow (px)", stronger="higher"),
    }
    primary_metric = ("length", "outside")  # decides whether a patch works
    clean_metric = ("change", "outside")  # how good an output is, where the data know: what a defence may cost
    size = Size(("length", "outside"), "takes {} of the motion outside it away", small=0.5, unit="px")

    def loss(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> Tensor:
        """``[B]``, lower when the attack is stronger."""
        return self.metrics(output, clean, scene, view)["length", "outside"]

    def metrics(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """``(metric, region) -> [B]``; NaN where nothing can be measured."""
        outside = 1 - view.coverage.amax(dim=1)  # [B, 1, H, W]
        pixels = outside.sum(dim=(1, 2, 3))

        def mean(flow: Tensor) -> Tensor:
            length = flow.square().sum(dim=1, keepdim=True).add(1e-8).sqrt()
            return (length * outside).sum(dim=(1, 2, 3)) / pixels

        return {("length", "outside"): mean(output), ("change", "outside"): mean(output - clean)}

    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """The length of each flow, on the scale of the first, which is the clean one."""
        lengths = [flow[0].norm(dim=0) for flow in outputs]
        return [colour_map((length / lengths[0].max())[None].cpu(), "viridis")[0] for length in lengths]

    def legend(self) -> tuple[Tensor, str]:
        """A picture and a sentence."""
        return bar("viridis", ["0", "longest"]), "How far each pixel moves, against the longest flow without a patch."
