"""The examples of docs/pages/how_to/parts.md: parts outside the tree, each one file and one YAML."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
OURS = (
    *("attack=still", "appearance=[posterise]", "defense=[rounded]", "regularizers=[grey]", "optimizer=normalised"),
    *("tracker=lines", "trainer.steps=2", "trainer.starts=2", "trainer.batch=2", "trainer.test_draws=1"),
    *("trainer.accelerator=cpu", "patch.resolution=16", "patch.size_mm=60"),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of somebody's own; what is imported from the examples is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or ".").parent == EXAMPLES:
            del sys.modules[name]


def test_every_example_has_its_yaml_and_all_run_together(place: Path, command: Callable[..., Any]) -> None:
    outcome = command(*OURS, "output=run", f"--config-dir={EXAMPLES}")
    assert outcome.status == 0, outcome.err
    assert "still attack on shifts behind rounded" in outcome.out
    assert [json.loads(line)["step"] for line in (place / "run" / "lines.jsonl").read_text().splitlines()][-1] == 2
    results = json.loads((place / "run" / "results.json").read_text())
    assert {row["label"] for row in results if row["metric"] == "length"} == {"mean length of the flow (px)"}
    yamls = "".join(path.read_text() for path in EXAMPLES.rglob("*.yaml"))
    assert set(re.findall(r"_target_: (\w+)", yamls)) == {path.stem for path in EXAMPLES.glob("*.py")} | {"patchattack"}


def test_an_axis_of_ones_own(place: Path, command: Callable[..., Any]) -> None:
    assert command(*OURS, "output=run", f"--config-dir={EXAMPLES}").status == 0
    outcome = command(
        "run=run", "axes=[posterise]", "scenes=2", "workers=1", f"--config-dir={EXAMPLES}", entry="evaluate"
    )
    assert outcome.status == 0, outcome.err
    assert "posterise,16," in (place / "run" / "evaluation" / "views.csv").read_text()
