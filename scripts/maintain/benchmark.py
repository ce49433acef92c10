"""Measure speed, on any machine.

python scripts/maintain/benchmark.py # a step over the victim's own forward and backward pass
python scripts/maintain/benchmark.py --suite host # what the host does in a step
python scripts/maintain/benchmark.py --suite peer # against the Adversarial Robustness Toolbox
python scripts/maintain/benchmark.py --suite eot # what each transform adds to a render
python scripts/maintain/benchmark.py --suite scale # batch, patch, draws, candidates, processes; memory
python scripts/maintain/benchmark.py --suite data # decoding, remembering and moving scenes
python scripts/maintain/benchmark.py --suite start # help, import, first step
python scripts/maintain/benchmark.py --suite step --output new.json --against old.json

One process, but for what is about processes; the two sides of each ratio run in turn, pair by pair, and the median and
the quartiles of the pairs are printed, so that a machine whose speed drifts does not matter. Less is better everywhere.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from suites.measure import Options, Row
from tqdm import tqdm

from patchattack import files

SUITES = ("step", "host", "peer", "eot", "scale", "data", "start")
PACKAGES = ("torchvision", "kornia", "opencv-python", "numpy", "adversarial-robustness-toolbox")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", cpu.read_text(), re.MULTILINE) if cpu.is_file() else []
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": names[0] if names else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    return facts


def table(head: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def shown(row: Row) -> list[str]:
    """A row of the table."""
    return [row.name, f"{row.median:.4g} {row.unit}", f"{row.low:.4g} to {row.high:.4g}", row.note]


def compare(new: Sequence[Row], old: Sequence[Row]) -> str:
    """A table of the rows that both have, which says what changed: their quartiles do not overlap."""
    before = {(row.name, row.unit): row for row in old}
    rows = []
    for row in new:
        if (other := before.pop((row.name, row.unit), None)) is None:
            rows.append([row.name, "", f"{row.median:.4g} {row.unit}", "new"])
            continue
        verdict = "more" if row.low > other.high else "less" if row.high < other.low else "as before"
        rows.append([row.name, f"{other.median:.4g} {row.unit}", f"{row.median:.4g} {row.unit}", verdict])
    rows += [[row.name, f"{row.median:.4g} {row.unit}", "", "no more measured"] for row in before.values()]
    return table(("", "before", "now", ""), rows)


def main() -> None:
    """Print the table of a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="step")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--weights", type=Path, help="of torchvision's squeezenet1_0, for the suite peer")
    parser.add_argument("--images", type=Path, help="folder of photographs, for the suite peer")
    parser.add_argument("--output", type=Path, help="JSON of the rows and the machine")
    parser.add_argument("--against", type=Path, help="such a file, to compare with")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    old = None if arguments.against is None else files.read_json(arguments.against)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # as every run does
    facts = machine(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None) + "\n")
    print(table(("", "median", "quartiles", "")), flush=True)
    options = Options(device, arguments.pairs, arguments.small, arguments.weights, arguments.images)
    rows = []
    for row in importlib.import_module(f"suites.{arguments.suite}").rows(options):
        rows.append(row)
        tqdm.write("| " + " | ".join(shown(row)) + " |")
    if arguments.output is not None:
        result = {"suite": arguments.suite, "pairs": arguments.pairs, "machine": facts, "rows": list(map(asdict, rows))}
        files.write_json(arguments.output, result)
    if old is not None:
        other = {name: value for name, value in old["machine"].items() if value != facts.get(name) and name != "load"}
        print("\n" + "".join(f"{name}: {value} before, {facts.get(name)} now\n" for name, value in other.items()))
        print(compare(rows, [Row(**row) for row in old["rows"]]))


if __name__ == "__main__":
    main()
