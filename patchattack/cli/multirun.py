"""Many runs of one command, as Hydra's launchers run them: what will run, how far it is, and what came of it.

Each run's folder follows from its overrides. So the same command, started again, skips what is finished and resumes
what is not, whoever has run it, wherever and until when.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shlex
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from patchattack import cells, files, folders
from patchattack.cells import FAILED, FINISHED, RUNNING, WAITING, Cell
from patchattack.cli.checks import key_of
from patchattack.cli.stored import FREE_TO_CHANGE
from patchattack.errors import InputError, assignment, one_line, shorten
from patchattack.redaction import printable, redact

FLAGS = ("-m", "--multirun")
ROOT = Path("outputs") / "sweeps"
_OWN = ".hydra"  # in the sweep's folder: what Hydra and its launchers leave
# Launchers and sweepers, with the module and the extra that they come with.
_EXTRAS = {
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "joblib"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "submitit"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "submitit"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray"),
    "hydra/launcher=ray_aws": ("hydra_ray_launcher", "ray"),
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
}


@dataclass(frozen=True)
class Multirun:
    """The runs of one command line with ``-m``.

    Attributes:
        command: that runs, as ``train``.
        folder: of the sweep.
        arguments: for Hydra.
        keys: that are swept over.
        planned: the runs as they are when it starts; empty where a sweeper chooses them one after another.
        argv: the command line as it was typed.
        again: what to type to start it again.
        is_new: whether there was no such folder.
    """

    command: str
    folder: Path
    arguments: list[str]
    keys: list[str]
    planned: list[Cell]
    argv: list[str]
    again: str
    is_new: bool

    def announce(self) -> None:
        """Print what will run, and make the folders."""
        print(f"{len(self.planned) or 'as many as the sweeper chooses'} runs of {self.command} into {self.folder}")
        if self.planned:
            same = [one for one in self.planned[0].overrides if key_of(one) not in self.keys]
            print(printable(redact(f"  all     {shlex.join(same)}")))
        words = {FINISHED: "finished", RUNNING: "to resume", FAILED: "failed, to try again"}
        for number, cell in enumerate(self.planned, 1):
            print(f"  {number:<6}  {self.label(cell)}  {cell.name}  {words.get(cell.status, '')}".rstrip())
        sys.stdout.flush()
        try:
            for cell in self.planned:
                cell.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"output={self.folder}: expected a folder that can be written, got '{error.strerror}'; name another"
            ) from error
        for cell in self.planned:
            if cell.status == FAILED or not (cell.folder / cells.FILE).exists():
                replace(cell, status=WAITING, reason="").write()

    def run(
        self, config: DictConfig, work: Callable[[DictConfig], None], line_of: Callable[[BaseException], str | None]
    ) -> float | None:
        """Do one of the runs, unless it is finished; in whatever process a launcher has chosen.

        Args:
            config: composed, of this run.
            work: does it.
            line_of: what an error says to the user; None for one that he cannot mend.

        Returns:
            What a sweeper minimises; None where there is nothing.
        """
        sys.argv[:] = self.argv
        cell = self.cell(HydraConfig.get().overrides.task)
        cell.folder.mkdir(parents=True, exist_ok=True)
        folders.claim(cell.folder, waits=True)
        before = Cell.read(cell.folder)
        if before is not None and before.status == FINISHED:
            return before.score
        replace(cell, status=RUNNING).write()
        with open_dict(config):
            config.output = str(cell.folder)
            if self.command == "train" and folders.can_resume(cell.folder):
                config.resume = str(cell.folder)
        with (cell.folder / cells.LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
            log = _Log(file)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                try:
                    trainer = config.get("trainer", {})
                    if (several := trainer.get("devices", 1) * trainer.get("nodes", 1)) > 1:
                        raise InputError(
                            f"trainer.devices: expected 1 in a sweep, got {several}; let the launcher "
                            "spread the runs over the devices, or start each alone"
                        )
                    work(config)
                    cell = replace(cell, status=FINISHED, score=self._score(cell.folder))
                except SystemExit as stop:
                    if stop.code == 130:
                        raise KeyboardInterrupt from stop
                    cell = replace(cell, status=FAILED, reason=f"it ended with status {stop.code}")
                except Exception as error:
                    line = line_of(error)
                    if line is None:
                        traceback.print_exc()
                        line = f"{type(error).__name__}: {one_line(error)} (see {cell.folder / cells.LOG})"
                    cell = replace(cell, status=FAILED, reason=printable(redact(shorten(line))))
                    print(f"patchattack: {cell.reason}")
        cell.write()
        return cell.score

    def _score(self, folder: Path) -> float | None:
        """Of the best texture of a training on its validation scenes."""
        if self.command != "train":
            return None
        score = files.read_again(folder / "state.json", files.read_object)["best_score"]
        return float(score) if isinstance(score, int | float) else None

    def cell(self, overrides: Sequence[str]) -> Cell:
        """The run of these overrides, before anything has happened to it."""
        free = tuple(key for key in FREE_TO_CHANGE if not any(one.startswith(key) for one in self.keys))
        own = [one for one in overrides if not key_of(one).startswith(free)]
        name = cells.name_of(own, self.keys)
        return Cell(self.folder / name, self.command, [one for one in overrides if key_of(one) != "output"])

    def label(self, cell: Cell) -> str:
        """What tells a cell from the others."""
        told = [one for one in cell.overrides if key_of(one) in self.keys] or [cell.name]
        return printable(redact(" ".join(told)))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Show how far the runs are, as their folders tell, whatever process or machine they are on."""
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended, sys.stderr), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, ended: threading.Event, stream: TextIO) -> None:
        known = {cell.folder for cell in self.planned if cell.status == FINISHED}
        total = len(self.planned) or None
        with tqdm(total=total, initial=len(known), desc="runs", unit="run", file=stream, dynamic_ncols=True) as bar:
            last = False
            while not last:
                last = ended.wait(1.0)
                # It holds the overrides, passwords of addresses among them.
                (self.folder / _OWN / "multirun.yaml").unlink(missing_ok=True)
                with contextlib.suppress(InputError):  # of a file that somebody edits: the end says so
                    running = []
                    for cell in self._own():
                        if cell.status == RUNNING:
                            running.append(f"{self.label(cell)} step {_last_step(cell.folder)}")
                        elif cell.status in (FINISHED, FAILED) and cell.folder not in known:
                            known.add(cell.folder)
                            tqdm.write(f"{cell.status}: {self.label(cell)} {cell.reason}".rstrip(), file=stream)
                            bar.update()
                    bar.set_postfix_str("; ".join(running))

    def _own(self) -> list[Cell]:
        """The cells of this command as they are now, without those that others have made in the same folder."""
        planned = {cell.folder for cell in self.planned}
        return [cell for cell in cells.read_all(self.folder) if not planned or cell.folder in planned]

    def withdraw(self) -> bool:
        """Whether nothing has begun; then what :meth:`announce` has made is gone again."""
        if any(cell.status != WAITING for cell in self._own()):
            return False
        if self.is_new:
            shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def gather(self) -> None:
        """Write the table and the reports, and print the table.

        Raises:
            InputError: a cell's file is damaged, or something cannot be written.
        """
        from patchattack.studies import gather

        print(f"\n{gather.publish(self.folder, self.folder, self.again)}\n")
        for path in gather.written(self.folder):
            print(f"  {path}")

    def missing(self) -> list[str]:
        """Those that are not finished, and why."""
        found = [cell for cell in self._own() if cell.status != FINISHED]
        return [f"{self.label(cell)}: {cell.reason or 'not finished'}" for cell in found]


class _Log(io.TextIOBase):
    """A file that takes what is printed, but for progress bars, which are written over each other, and empty lines."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.begun = file, False

    def write(self, text: str) -> int:
        """Redacted, as every file."""
        if not text.startswith("\r") and "\x1b[" not in text and (self.begun or text.strip("\n")):
            self.file.write(redact(text))
            self.file.flush()
            self.begun = not text.endswith("\n")
        return len(text)


def _last_step(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError), (folder / "metrics.csv").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        return file.read().decode().rstrip().rpartition("\n")[2].partition(",")[0].replace("step", "0")
    return "0"


def prepare(command: str, arguments: Sequence[str], argv: list[str], again: str) -> Multirun | None:
    """The runs that a command line asks for; None where it asks for one.

    Args:
        command: as ``train``.
        arguments: flags and overrides, for Hydra.
        argv: the command line as it was typed.
        again: what to type to start it again.

    Raises:
        InputError: a launcher whose extra is missing, no folder or several, or a cell's file that is damaged.
    """
    if not {*FLAGS} & {*arguments}:
        return None
    for given in arguments:
        if given in _EXTRAS:
            _check_installed(given, *_EXTRAS[given])
    own = [one for one in arguments if "=" in one and not key_of(one).startswith(("-", "hydra/", "hydra."))]
    try:
        overrides = OverridesParser.create().parse_overrides(own)
    except HydraException:  # which Hydra meets too
        return None
    keys = [one.key_or_group for one in overrides if one.is_sweep_override()]
    named = {one.key_or_group: one for one in overrides}
    if "output" in keys:
        raise InputError(
            f"output: expected one folder, in which each run has its own, got {named['output'].input_line}"
        )
    if "resume" in named:
        raise InputError("resume: expected the same command again, which resumes all runs of -m, got resume=")
    rest = [one for one in overrides if one.key_or_group != "output"]
    folder = ROOT / cells.name_of([command, *(one.input_line or "" for one in rest)], [], [command, *keys])
    if "output" in named and named["output"].value() is not None:
        folder = Path(str(named["output"].value()))
    passed = [one for one in arguments if key_of(one) != "output"]
    if not any(one.startswith("hydra/hydra_logging=") for one in arguments):
        passed.append("hydra/hydra_logging=none")  # it would print the overrides, passwords of addresses among them
    passed += shlex.split(assignment("hydra.sweep.dir", folder / _OWN))
    made = Multirun(command, folder, passed, keys, [], argv, again, not folder.exists())
    if any(one.startswith("hydra/sweeper=") for one in arguments):
        return made
    try:
        jobs = BasicSweeper.split_arguments(rest, None)[0]
    except HydraException:  # what only a composed config tells, as glob(*)
        return made
    planned = [made.cell(job) for job in jobs]
    return replace(made, planned=[Cell.read(cell.folder) or cell for cell in planned])


def _check_installed(given: str, module: str, extra: str) -> None:
    try:
        found = importlib.util.find_spec(f"hydra_plugins.{module}")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InputError(f"{given}: expected its package, got none; pip install 'patchattack[{extra}]'")
