"""Lay runs side by side: their patches, what differs in their configs, their numbers and their learning curves.

python scripts/compare.py RUN RUN [RUN ...] [output=FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from patchattack import cli
from patchattack.errors import quoted


def main() -> None:
    """Words that set no key are runs."""
    runs = [word for word in sys.argv[1:] if not word.startswith("-") and ("=" not in word or Path(word).is_dir())]
    if runs:
        listed = ",".join(quoted(run) for run in runs)
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in runs] + [f"runs=[{listed}]"]
    cli.command("compare", compare)


def compare(parts: dict[str, Any]) -> None:
    """Read the runs and write the report."""
    from patchattack.reporting.compare import load_runs, write_comparison

    runs = load_runs([str(run) for run in parts["runs"]], cli.known_targets())
    path = cli.new_folder(parts["output"], "compare") / "report.html"
    write_comparison(path, runs, cli.command_line("scripts/compare.py"))
    print(f"report    {path}")


if __name__ == "__main__":
    main()
