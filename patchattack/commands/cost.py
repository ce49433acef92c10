"""Measure a step here, and say how many hours and how much money training takes.

patchattack cost attack=flow [key=value ...]
patchattack cost attack=depth victim=depth_unet '+plans.mine={runs: 24, scenes: 5000, epochs: 3}' devices=4

Whatever changes a run is given as to ``train``. A run of a few steps is made in a folder that is gone afterwards.
"""

from __future__ import annotations

import time
from typing import Any

from patchattack import cli
from patchattack.errors import InputError


def main() -> None:
    """Compose the config from the command line and measure."""
    began = time.perf_counter()
    cli.command("cost", lambda plain: run(plain | {"began": began}), unbuilt=None)


def run(plain: dict[str, Any]) -> None:
    """Measure, and print the table."""
    from patchattack import processes
    from patchattack.studies import cost

    if not (type(plain["devices"]) is int and plain["devices"] >= 1):
        raise InputError(f"devices: expected an integer >= 1, got {plain['devices']}")
    try:
        plans = {name: cost.Plan(**fields) for name, fields in plain["plans"].items()}
    except TypeError as error:
        raise InputError(f"plans: expected runs, scenes, epochs and steps as numbers, got: {error}") from error
    parts = cli.build_parts(plain)
    settings = parts.settings
    fabric = processes.start(settings)
    name, per_hour = cost.price(plain["prices"], fabric.device)
    found = cost.measure(parts, fabric, plain, plain["began"])
    scenes, _, test = map(len, settings.split_indices(len(parts.source)))
    estimates = {
        name: (plan, plan.updates(settings), cost.estimate(found, plan, settings, scenes, test))
        for name, plan in plans.items()
    }
    first, (_, _, one) = next(iter(estimates.items()))
    steps = " then ".join(f"{step:.3f}" for step in found.steps)
    print(
        f"\n{cost.device_name(fabric.device)} at {per_hour:g} {plain['currency']} an hour (prices.{name})\n"
        f"  start {found.start:.1f} s, a step {steps} s and {found.scene:.3f} s for each scene that is not remembered\n"
        f"  a validation {found.validations[-1]:.2f} s, the end {found.export:.1f} s and {found.test_scene:.3f} s for "
        f"each of {test} test scenes\n"
        f"  {first}: start {one.start:.0f} s, training {one.training:.0f} s, validation {one.validation:.0f} s, "
        f"measurement {one.measurement:.0f} s\n"
    )
    print(cost.table(estimates, per_hour, plain["devices"], plain["currency"]))
