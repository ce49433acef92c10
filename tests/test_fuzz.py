"""A few of the inputs of scripts/maintain/fuzz.py: damaged files are read, or refused in one line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "scripts" / "maintain" / "fuzz.py"
spec = importlib.util.spec_from_file_location("fuzz", FILE)
assert spec is not None
assert spec.loader is not None
fuzz: Any = importlib.util.module_from_spec(spec)
sys.modules["fuzz"] = fuzz  # where dataclasses look themselves up
spec.loader.exec_module(fuzz)


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    for file, data in fuzz.READERS[name].files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(data)
    fuzz.READERS[name].read(tmp_path)  # the input is valid as long as nothing is mutated
    assert fuzz.run(name, 25, seed=0) == []
