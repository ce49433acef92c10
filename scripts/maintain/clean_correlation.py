"""Put the clean frames' correlation back into an attacked flow network: if it is the cause, the attack is gone.

The test of Schrodi et al. 2022 (Towards understanding adversarial robustness of optical flow networks): everything
else, the features of the attacked first frame among them, stays attacked.

python scripts/maintain/clean_correlation.py run=RUN
python scripts/maintain/clean_correlation.py attack=flow victim=flow_correlation stripes=16 patch.resolution=128
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError

BATCH = 8  # scenes
CONDITIONS = ("attacked", "attacked, clean correlation", "attacked correlation alone")


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("clean_correlation", run, of_run="run")


def run(parts: dict[str, Any]) -> None:
    """Measure, write ``table.json`` and ``figure.png``, and print the table."""
    import torch

    from patchattack import files, processes, statistics
    from patchattack.controls import always
    from patchattack.evaluation import Evaluator, Measured, References, per_scene
    from patchattack.job import TEST, bind_victim

    victim, settings = parts["victim"], parts["trainer"]
    network: Any = getattr(victim, "network", None)
    if not hasattr(network, "correlation"):
        raise InputError(f"victim: expected flow_correlation, got {victim.name}; it has no correlation to put back")
    patch = _patch(parts)
    fabric = processes.start(settings)
    attack, predict, scenes = bind_victim(parts["attack"], victim, parts["data"], fabric)
    numbers = settings.split_indices(len(scenes))[2]
    key = (parts["seed"], TEST)
    evaluator = Evaluator(predict, attack, parts["renderer"], References(predict), patch, scenes, fabric.device, key)

    def exchanged(frames: Any, other: Any) -> Any:
        """The flow of ``frames`` with the correlation of ``other``."""
        seen: list[Any] = []
        hook = network.correlation.register_forward_hook(lambda _, __, result: seen.append(result))
        predict(other)
        hook.remove()
        hook = network.correlation.register_forward_hook(lambda *_: seen[0])
        flow = predict(frames)
        hook.remove()
        return flow

    measured: list[Measured] = []
    example: list[Any] = []
    for part in (numbers[first : first + BATCH] for first in range(0, len(numbers), BATCH)):
        for repetition in range(settings.test_draws):
            texture = {"patch": always(patch().detach())}
            with torch.no_grad():
                _, scene, clean, output, view = next(evaluator.views(texture, part, repetition))
                flows = output, exchanged(view.frames, scene.frames), exchanged(scene.frames, view.frames)
            for condition, flow in zip(CONDITIONS, flows, strict=True):
                metrics = attack.metrics(flow, clean, scene, view)
                for place, number in enumerate(part):
                    measured.append(Measured(condition, number, {one: float(of[place]) for one, of in metrics.items()}))
            example = example or [view.frames[:1, 0], *(one[:1] for one in (clean, *flows))]

    rows = []
    for condition in CONDITIONS:
        for metric in ("cosine", "epe_clean"):
            mean, low, high = statistics.bootstrap(per_scene(measured, condition, (metric, "outside")))
            rows.append({"condition": condition, "metric": metric, "mean": mean, "low": low, "high": high})
    folder = folders.new_folder(parts["output"], "clean_correlation")
    files.write_json(folder / "table.json", rows)
    _draw(folder / "figure.png", attack, example)
    print(f"outside the patch, {len(numbers)} scenes, {settings.test_draws} draws each; mean [95 %]")
    for row in rows:
        print(f"  {row['condition']:28} {row['metric']:10} {row['mean']:7.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    print(f"  figure    {folder / 'figure.png'}")


def _patch(parts: dict[str, Any]) -> Any:
    """The run's, or one with stripes."""
    import torch

    from patchattack.patch import Patch

    if (parts["run"] is None) == (parts["stripes"] is None):
        raise InputError("expected one of run=RUN and stripes=TEXELS, got " + ("both" if parts["run"] else "none"))
    if parts["run"] is not None:
        return Patch.load(Path(str(parts["run"])) / "patch.png")
    if not isinstance(parts["stripes"], int | float) or parts["stripes"] < 2:
        raise InputError(f"stripes: expected a period of 2 texels or more, got {parts['stripes']}")
    patch = parts["patch"]
    columns = torch.arange(patch.mask.shape[-1]) % parts["stripes"] < parts["stripes"] / 2
    patch.set_texture(columns.float().expand_as(patch().detach()))
    return patch


def _draw(path: Path, attack: Any, example: list[Any]) -> None:
    """The attacked frame, and flows on one scale."""
    import io

    import torch
    import torch.nn.functional as F
    from PIL import Image

    from patchattack import files

    frame, *flows = example
    drawn = attack.pictures(flows, [])
    shown = F.interpolate(frame[:1].cpu(), size=drawn[0].shape[1:], mode="bilinear", align_corners=False)[0]
    tiles = [shown, *drawn]
    image = torch.cat(tiles, dim=1).clamp(0, 1).mul(255).round().to(torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
    files.write(path, stream.getvalue())


if __name__ == "__main__":
    main()
