"""Collect finished default runs for the site and the README: their numbers, and their patches as pictures.

python scripts/maintain/collect_results.py RUN [RUN ...]

It replaces runs of the same task and seed in docs/results/default_runs.json, and prints the README's table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2

from patchattack import files
from patchattack.patch import Patch, read_facts

sys.path.append(str(Path(__file__).parents[2] / "docs"))
import tables


def main() -> None:
    """Read the runs, write the JSON and the pictures, and print the table."""
    known = {(run["task"], run["seed"]): run for run in (tables.load() if tables.RUNS.exists() else [])}
    for folder in map(Path, sys.argv[1:]):
        run = collect(folder)
        known[run["task"], run["seed"]] = run
        print(f"{run['picture']}  {folder}")
    files.write_json(tables.RUNS, [known[key] for key in sorted(known)])
    print(tables.of_four_tasks())


def collect(folder: Path) -> dict[str, Any]:
    """What the site shows of a run; its patch's picture is written beside the JSON."""
    facts = read_facts(folder / "patch.png")
    name, region = facts.get("primary_metric") or facts["headline"]  # as runs of early versions call it
    metrics: dict[str, Any] = {}
    for row in files.read_json(folder / "results.json"):
        if row["region"] == region and row["metric"] != "loss":
            metric = metrics.setdefault(
                row["metric"], {key: row[key] for key in ("label", "stronger")} | {"values": {}}
            )
            numbers = [row[key] if row[key] is None else float(f"{row[key]:.5g}") for key in ("mean", "low", "high")]
            metric["values"][row["condition"]] = [*numbers, row["n"]]
    task, seed = facts["task"], facts["seed"]
    return {
        "task": task,
        "seed": seed,
        "command": f"python train.py attack={task}" + (f" seed={seed}" if seed else ""),
        "victim": " + ".join(facts["victims"]),
        "scenes": metrics[name]["values"]["patch"][3],
        "primary_metric": name,
        "region": region,
        "size_mm": facts["size_mm"],
        "texels": facts["texels"],
        "unbeaten": files.read_json(folder / "evidence.json")["verdict"]["unbeaten"],
        "versions": facts["versions"],
        "picture": _picture(folder / "patch.png", f"patch_{task}_{seed}.webp"),
        "metrics": metrics,
    }


def _picture(file: Path, name: str) -> str:
    """The texture as it is, without loss."""
    pixels = (Patch.load(file)().detach() * 255).round().byte().permute(1, 2, 0).numpy()
    cv2.imwrite(str(tables.RUNS.with_name(name)), pixels[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])
    return name


if __name__ == "__main__":
    main()
