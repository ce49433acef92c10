"""How much a whole step costs over the victim's own forward and backward pass.

python scripts/maintain/benchmark.py
python scripts/maintain/benchmark.py --suite host # what the host does in a step: operations and milliseconds

One process; the two sides of each ratio run in turn, pair by pair, and the median of the pairs' ratios is printed, so
that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from patchattack import files, seeding
from patchattack.attacks.flow import FlowAttack
from patchattack.eot.appearance import Brightness, Contrast, Hue, Illumination, PrintNoise, Shadow, WhiteBalance
from patchattack.eot.calibrated import Calibrated
from patchattack.eot.camera import Defocus, Gamma, Jpeg, MotionBlur, SensorNoise
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Draw, Renderer
from patchattack.patch import Patch
from patchattack.regularizers.nps import NonPrintability
from patchattack.regularizers.tv import TotalVariation
from patchattack.scene import Scene
from patchattack.victims.torchvision_flow import Raft


class Step:
    """A whole step as the loop takes it: draw, render, victim, loss, regularisers, update; and its floor.

    Args:
        victim: frames to an output.
        loss: of the output, the clean output, the scene and the view, ``[B]``.
        shape: of the frames, ``(B, T, H, W)``.
        device: where to run.
        renderer: EoT; that of a run by default.
    """

    def __init__(
        self,
        victim: nn.Module,
        loss: Callable[..., Tensor],
        shape: tuple[int, int, int, int],
        device: torch.device,
        renderer: Renderer | None = None,
    ) -> None:
        batch, frames, height, width = shape
        self.victim, self.loss, self.device = victim.to(device), loss, device
        images = torch.randint(0, 256, (batch, frames, 3, height, width), dtype=torch.uint8)
        self.scene = Scene(images, torch.arange(batch))
        self.patch = Patch.create(resolution=64).to(device)
        self.renderer = renderer or Renderer(
            Uniform(area=0.09), {"contrast": Contrast(), "brightness": Brightness()}, {"sensor_noise": SensorNoise()}
        )
        self.regularizers = [TotalVariation(0.001).to(device), NonPrintability(0.1).to(device)]
        self.optimizer = torch.optim.Adam(self.patch.parameters(), lr=0.02)
        self.frames = self.scene.to(device).frames.requires_grad_()
        self.clean = self.reference()
        self.count = 0

    @torch.no_grad()
    def reference(self) -> Any:
        """The victim on the clean frames."""
        return self.victim(self.scene.to(self.device).frames)

    @torch.no_grad()
    def draw(self) -> Draw:
        """EoT of another step."""
        self.count += 1
        numbers = seeding.numbers([(0, 1, self.count, row, 0) for row in range(len(self.scene))])
        return self.renderer.draw(self.scene, self.patch, numbers)

    def gradient(self, draw: Draw, recompute: bool = False) -> None:
        """From the scenes on the host to the patch's gradient; with ``recompute`` the clean output is computed again
        instead of remembered.
        """
        scene = self.scene.to(self.device)
        clean = self.reference() if recompute else self.clean
        texture = self.patch()
        view = self.renderer(texture, self.patch.mask, scene, draw)
        total = self.loss(self.victim(view.frames), clean, scene, view).mean()
        for regularizer in self.regularizers:
            total = total + regularizer.weight * regularizer(texture, self.patch.mask)
        total.backward()

    def whole(self, recompute: bool = False) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.gradient(self.draw(), recompute)
        self.optimizer.step()
        self.patch.project_()

    def floor(self) -> None:
        """The victim's forward pass and its backward pass to the input, on the same batch."""
        torch.autograd.grad(self.victim(self.frames).sum(), self.frames)


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Of one call, the device's work included."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def compare(name: str, first: Callable[[], None], second: Callable[[], None], pairs: int, device: torch.device) -> str:
    """Median of first over second, and the quartiles, as a table's row."""
    first()
    second()
    ratios, seconds_first, seconds_second = [], [], []
    for number in tqdm(range(pairs), desc=name, leave=False):
        order = (first, second) if number % 2 else (second, first)
        times = {work: seconds(work, device) for work in order}
        ratios.append(times[first] / times[second])
        seconds_first.append(times[first])
        seconds_second.append(times[second])
    low, median, high = statistics.quantiles(ratios, n=4)
    one, other = (f"{statistics.median(values) * 1000:.0f} ms" for values in (seconds_first, seconds_second))
    return f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} | {one} / {other} |"


class Operations(TorchDispatchMode):
    """Counts the operations that are asked of a device, backward ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def host(
    device: torch.device,
    repetitions: int,
    batches: Sequence[int] = (8, 16, 64),
    size: tuple[int, int] = (128, 256),
) -> list[dict[str, Any]]:
    """Operations and the host's milliseconds, the best of all (on a CPU it computes in them too), in a row for each
    batch and transforms (default, or all): of a draw, of what follows until the gradient beside the victim, which gives
    its input back, and of a whole step.
    """
    looks = (Contrast, Brightness, Hue, WhiteBalance, Illumination, Shadow, Calibrated, PrintNoise)
    cameras = (Defocus, MotionBlur, Gamma, SensorNoise, Jpeg)
    appearance, camera = ({each.__name__: each() for each in group} for group in (looks, cameras))
    rows = []
    for transforms, renderer in (("default", None), ("all", Renderer(Uniform(area=0.09), appearance, camera))):
        for batch in batches:
            step = Step(
                *(nn.Identity(), lambda output, *_: output.mean(dim=(1, 2, 3, 4)), (batch, 2, *size), device), renderer
            )
            draw = step.draw()
            row: dict[str, Any] = {"transforms": transforms, "batch": batch}
            parts: dict[str, Callable[[], Any]] = {
                "draw": step.draw,
                "gradient": partial(step.gradient, draw),
                "step": step.whole,
            }
            for name, work in parts.items():
                work()
                with Operations() as operations:
                    work()
                times = []
                for _ in range(repetitions):
                    begin = time.perf_counter()
                    work()
                    times.append(time.perf_counter() - begin)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                row[f"{name}_operations"] = operations.count
                if times:
                    row[f"{name}_ms"] = round(1000 * min(times), 2)
            rows.append(row)
    return rows


class LogitsOnly(nn.Module):
    """torchvision's ResNet-18 on single frames."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.network = resnet18(weights=None).eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """``[B, 1, 3, H, W]`` to logits ``[B, 1000]``."""
        return self.network(frames[:, 0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--suite", choices=("step", "host"), default="step")
    parser.add_argument("--json", type=Path, help="file for the rows of the suite host")
    arguments = parser.parse_args()
    device, pairs = torch.device(arguments.device), arguments.pairs
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # as every run does
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    if arguments.suite == "host":
        rows = host(device, pairs)
        print(f"{where}, torch {torch.__version__}, best of {pairs}\n")
        print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(map(str, row.values())) + " |")
        if arguments.json is not None:
            files.write_json(arguments.json, rows)
        return

    attack = FlowAttack()
    logits = Step(LogitsOnly(), lambda output, *_: -output.log_softmax(dim=1)[:, 0], (16, 1, 224, 224), device)
    flow = Step(Raft("small", weights="random"), attack.loss, (2, 2, 256, 512), device)
    print(f"{where}, torch {torch.__version__}, medians over {pairs} interleaved pairs\n")
    print("| | ratio | quartiles | medians |\n| --- | --- | --- | --- |")
    for what, whole, floor in (
        ("step over victim, ResNet-18, 224×224, batch 16", logits.whole, logits.floor),
        ("step over victim, RAFT-small, 256×512, batch 2", flow.whole, flow.floor),
        ("cached over recomputed clean flow, RAFT-small", flow.whole, lambda: flow.whole(recompute=True)),
    ):
        print(compare(what, whole, floor, pairs, device), flush=True)


if __name__ == "__main__":
    main()
