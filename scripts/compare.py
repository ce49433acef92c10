"""Lay runs side by side: their patches, what differs in their configs, their numbers and their learning curves.

python scripts/compare.py RUN RUN [RUN ...] [output=FOLDER]
"""

from __future__ import annotations

import json
import sys
from typing import Any

from patchattack import cli


def main() -> None:
    """Words that set no key are runs."""
    runs = [word for word in sys.argv[1:] if "=" not in word and not word.startswith("-")]
    if runs:
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in runs] + [f"runs={json.dumps(runs)}"]
    cli.command("compare", compare)


def compare(parts: dict[str, Any]) -> None:
    """Read the runs and write the report."""
    from patchattack.reporting.compare import load_runs, write_comparison

    runs = load_runs([str(run) for run in parts["runs"]])
    path = cli.new_folder(parts["output"], "compare") / "report.html"
    write_comparison(path, runs, cli.command_line("scripts/compare.py"))
    print(f"report    {path}")


if __name__ == "__main__":
    main()
