"""How long the command takes to be at work: help, import and the first step, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from suites.measure import Options, Row

PROJECT = Path(__file__).parents[3]
FIRST_STEP = (
    *("attack=flow", "tracker=none", "data.scenes=8", "data.size=[64,128]", "trainer.steps=1", "trainer.log_every=1"),
    *("trainer.batch=2", "trainer.starts=0", "trainer.split=[0.5,0.25,0.25]", "trainer.test_draws=1"),
)


def run(words: Sequence[str], awaited: Path | None = None) -> tuple[float, float]:
    """Seconds until the file ``awaited`` has a row of step 1, and until Python with ``words`` has ended.

    Raises:
        RuntimeError: it failed.
    """
    begin, seen = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        while process.poll() is None:
            if not seen and awaited is not None and awaited.is_file() and "\n1," in awaited.read_text():
                seen = time.perf_counter() - begin
            time.sleep(0.005)
        ended = time.perf_counter() - begin
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(words)}: {errors.read().decode()[-500:]}")
    return seen or ended, ended


def rows(options: Options) -> Iterator[Row]:
    """Yield seconds of each, and of what a first step takes beyond the import of torch."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(options.pairs + 1), desc="starts", leave=False, disable=None):
            output = Path(folder) / str(number)
            _, torch = run(["-c", "import torch"])
            _, ours = run(["-c", "import patchattack.pipeline"])
            _, shown = run(["train.py", "--help"])
            first, whole = run(["train.py", *FIRST_STEP, f"output={output}"], output / "metrics.csv")
            if number:  # the first fills the disk's cache
                for name, value in (
                    ("import torch", torch),
                    ("import of the pipeline beyond torch", ours - torch),
                    ("--help", shown),
                    ("first step beyond import torch", first - torch),
                    ("a run of one step on eight small scenes", whole),
                ):
                    found.setdefault(name, []).append(value)
    for name, values in found.items():
        yield Row.of(name, "s", values)
