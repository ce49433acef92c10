"""A tracker: a line of JSON for each step that is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Lines:
    """Writes ``lines.jsonl`` into the run's folder.

    Args:
        folder: of the run.
        config: composed, plain containers.
        run_id: that an earlier part of the run had; None for a new run.
    """

    run_id: str | None = None  # the service's name for the run, by which it is resumed

    def __init__(self, folder: Path, config: dict[str, Any], run_id: str | None = None) -> None:
        self.file = (folder / "lines.jsonl").open("a", encoding="utf-8")

    def log(self, step: int, scalars: dict[str, float], images: Any = None) -> None:
        """One step."""
        self.file.write(json.dumps({"step": step, **scalars}) + "\n")

    def finish(self, rows: list[dict[str, Any]], files: list[Path]) -> None:
        """The final table, and the files that the run has made."""

    def close(self) -> None:
        """The end, whatever came of it."""
        self.file.close()
