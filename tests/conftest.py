"""Whole runs of the command line, as small as the world allows."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from patchattack import commands

# Of tensors as small as those of the tests, threads wait for each other; and sums do not depend on the machine's cores.
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is loaded, in every process that a test starts too
if sys.dont_write_bytecode:  # each of these processes would compile torch anew: they share what they compile
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

TINY_WORLD = ("data.scenes=8", "data.size=[32,64]", "data.supersampling=1")
TINY_TRAINING = (
    *("trainer.steps=4", "trainer.batch=2", "trainer.draws=1", "trainer.split=[0.5,0.25,0.25]"),
    "trainer.starts=4",
    *("trainer.log_every=1", "trainer.validate_every=2", "trainer.checkpoint_every=2", "trainer.test_draws=1"),
)
TINY = (
    *("victim.weights=random", "patch.resolution=16", "patch.size_mm=60", "tracker=none", "trainer.accelerator=cpu"),
    *TINY_TRAINING,
    *TINY_WORLD,
)


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a good part of a tiny run and is none of most tests' business.

    Figures are drawn empty but where a test is marked with ``figures``. Hydra composes each config twice, the first
    time only to see whether it makes itself a sweep, which no test's does.
    """
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
    if "figures" not in request.keywords:
        monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)


@dataclass(frozen=True)
class Outcome:
    """What a command leaves on the terminal."""

    status: int
    out: str
    err: str


def run(*arguments: str, entry: str | Callable[[], None] = "train") -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with pytest.MonkeyPatch.context() as patches, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patches.setattr(sys, "argv", ["patchattack", *([entry] if isinstance(entry, str) else []), *arguments])
        try:
            commands.main() if isinstance(entry, str) else entry()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    """``patchattack ENTRY``, by default ``train``, with these arguments, in this process."""
    return run


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides for a run of a second on the world; without an attack."""
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on flow; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run("attack=flow", *TINY, f"output={folder}").status == 0
    return folder


@pytest.fixture(scope="session")
def tiny_training() -> tuple[str, ...]:
    """Those of :func:`tiny` that have to do with no data."""
    return tuple(one for one in TINY if one not in TINY_WORLD)
