"""Where a run's numbers and pictures go: always its own metrics.csv, and a tracker of the user's choice."""

from __future__ import annotations

import csv
import io
import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from patchattack.errors import InputError, one_line
from patchattack.files import write
from patchattack.redaction import all_redacted

if TYPE_CHECKING:
    import wandb
    from torch import Tensor


class MetricsCsv:
    """The run's ``metrics.csv``: ``step,<columns>``, one line per call of :meth:`log`, on disk at once.

    Numbers are written so that reading them back gives the same float64; a cell is empty where a scalar was not
    logged. A run that is resumed ends with the same bytes as one that was never stopped.

    Args:
        path: the file; a fresh run replaces what is there.
        columns: names of all scalars that the run may log.
        resume_at: the last step of the run's checkpoint. Lines of later steps, and a last line that a kill has torn,
            are dropped. None starts a fresh file.

    Raises:
        InputError: the file of the run to resume is missing, or does not have these columns.
    """

    def __init__(self, path: Path, columns: list[str], resume_at: int | None = None) -> None:
        self.columns = columns
        header = ",".join(["step", *columns]) + "\n"
        kept = "" if resume_at is None else _lines_until(path, header, resume_at)
        self._path, self._text = path, header + kept
        self._open()

    def _open(self) -> None:
        write(self._path, self._text)
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Append one line.

        Raises:
            ValueError: a scalar is not among the columns.
        """
        if unknown := scalars.keys() - set(self.columns):
            raise ValueError(f"metrics.csv has no column {sorted(unknown)}; its columns are {self.columns}")
        cells = [repr(float(scalars[name])) if name in scalars else "" for name in self.columns]
        line = ",".join([str(step), *cells]) + "\n"
        self._text += line
        try:
            if self._path.exists():
                self._file.write(line)
                self._file.flush()
            else:  # somebody has deleted it: the work goes on
                self._file.close()
                self._open()
        except OSError as error:
            raise InputError(
                f"{self._file.name}: expected room for another line, got '{error.strerror}'; "
                "free space and resume the run"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def read(path: Path) -> list[dict[str, float]]:
        """One dict per line, with the scalars that were logged and ``step``."""
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def _lines_until(path: Path, header: str, last: int) -> str:
    """The whole lines of ``path`` below its header whose step is ``last`` at most."""
    try:
        found, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected the metrics of the run to resume, got no such table; start a new run (drop resume=)"
        ) from error
    if found != header:
        raise InputError(
            f"{path}: expected the columns '{header.strip()}', got '{found.strip()}'; "
            "resume with the configuration that the run was started with"
        )
    lines = [line for line in lines if line.endswith("\n")]
    try:
        steps = [_step(line, header.count(",")) for line in lines]
    except ValueError as error:
        raise InputError(
            f"{path}: expected lines of a step and numbers, got one that is none ({one_line(error)}); start a new run "
            "(drop resume=)"
        ) from error
    return "".join(line for step, line in zip(steps, lines, strict=True) if step <= last)


def _step(line: str, scalars: int) -> int:
    """The step of a line of a table with so many ``scalars``.

    Raises:
        ValueError: it is no such line.
    """
    step, *cells = line.rstrip("\n").split(",")
    if len(cells) != scalars:
        raise ValueError(f"{len(cells)} cells besides the step instead of {scalars}")
    for cell in filter(None, cells):
        float(cell)
    return int(step)


class Tracker(Protocol):
    """Whoever else is told about the run. Made with ``folder``, ``config`` and ``run_id``.

    A class that can tell sooner that it will not start has a static method ``check``: it gets the options, before the
    run has a folder, and raises an InputError.
    """

    run_id: str | None
    """Names the run to the tracker; give it back to a tracker that is to continue the run."""

    def log(self, step: int, scalars: dict[str, float], images: dict[str, Tensor] | None = None) -> None:
        """Scalars and images (``[3, h, w]`` in [0, 1]) of one step."""

    def finish(self, rows: list[dict[str, Any]], files: list[Path]) -> None:
        """The final table of results, and the files that make up the patch."""

    def close(self) -> None:
        """The run is over; nothing is logged after this."""


class NullTracker:
    """No tracker: the run's folder holds all there is."""

    def __init__(self, folder: Path, config: dict[str, Any], run_id: str | None = None) -> None:
        self.run_id: str | None = None

    def log(self, step: int, scalars: dict[str, float], images: dict[str, Tensor] | None = None) -> None:
        """Ignored."""

    def finish(self, rows: list[dict[str, Any]], files: list[Path]) -> None:
        """Ignored."""

    def close(self) -> None:
        """Nothing is open."""


class Csv(NullTracker):
    """Beside ``metrics.csv``, the final table as ``results.csv``: the run as a spreadsheet reads it."""

    def __init__(self, folder: Path, config: dict[str, Any], run_id: str | None = None) -> None:
        super().__init__(folder, config, run_id)
        self._path = folder / "results.csv"

    def finish(self, rows: list[dict[str, Any]], files: list[Path]) -> None:
        """Write the table."""
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write(self._path, table.getvalue())


_PATIENCE = 7  # seconds that W&B's server may take to answer before the run goes on without it
_ALIASES = {"dryrun": "offline", "run": "online"}  # of W&B's own for WANDB_MODE


class Wandb:
    """Weights & Biases: config, scalars, images, the final table, and the patch as an artifact.

    It asks nothing and prints at most two lines of its own. Offline, it makes no connection and looks up no
    name. What cannot be sent is kept: a server that does not answer costs seven seconds at the start, or a minute at
    the end.

    Args:
        folder: the run's folder; W&B's files go to ``folder/wandb``.
        config: the run's composed config.
        project: W&B project.
        entity: W&B team or user; None is the account's default.
        name: the run's name on W&B; None lets W&B choose.
        mode: "online", "offline", "disabled", or "auto": what the environment variable ``WANDB_MODE`` says (``dryrun``
            and ``run`` too, W&B's other names for offline and online), else online where an API key is found
            (``WANDB_API_KEY``, netrc, W&B's settings) and the server answers, else offline.
        run_id: continues the W&B run of this id; None starts one.

    Raises:
        InputError: ``mode`` is none of these, or is "online" and there is no key or no answer.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        project: str = "patchattack",
        entity: str | None = None,
        name: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        run_id: str | None = None,
    ) -> None:
        wanted = _resolve_mode(mode)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb")  # else tables wait for upload in the user's home
        self._folder = folder
        self.run_id: str | None = run_id or secrets.token_hex(4)
        about = {"project": project, "entity": entity, "name": name, "config": all_redacted(config), "id": self.run_id}
        typed = sys.argv
        sys.argv = all_redacted(typed)  # which W&B stores
        try:
            self._run = self._start(wanted, {**about, "dir": folder, "resume": "allow"})
        finally:
            sys.argv = typed
        if not self._run.offline and self._run.url:
            print(f"W&B: {self._run.url}")

    @staticmethod
    def check(mode: str = "auto", **_: Any) -> None:
        """Before the run has a folder: a mode that there is, and a key where it is "online".

        Raises:
            InputError: there is none.
        """
        if _resolve_mode(mode) != "online":
            return
        import wandb

        try:
            _log_in()
        except wandb.Error as error:
            raise _offline(error) from error
        finally:
            wandb.teardown()  # it reads its environment once, and the folder is not known yet

    def _start(self, mode: str, about: dict[str, Any]) -> wandb.Run:
        import wandb

        settings = _settings()
        if mode in ("auto", "online"):
            try:
                _log_in()
                return wandb.init(mode="online", settings=settings, **about)
            except wandb.Error as error:
                if mode == "online":
                    raise _offline(error) from error
                print(f"W&B is offline: {str(error).splitlines()[0]}")
                wandb.teardown()  # it would hold the run's id for the attempt that failed
        return wandb.init(mode="disabled" if mode == "disabled" else "offline", settings=settings, **about)

    def log(self, step: int, scalars: dict[str, float], images: dict[str, Tensor] | None = None) -> None:
        """Scalars and images (``[3, h, w]`` in [0, 1]) of one step."""
        import wandb

        # W&B stretches the contrast of float images: bytes are shown as they are.
        pictures = {
            name: wandb.Image((image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
            for name, image in (images or {}).items()
        }
        self._run.log({**scalars, **pictures}, step=step)

    def finish(self, rows: list[dict[str, Any]], files: list[Path]) -> None:
        """The final table of results, and the files that make up the patch as an artifact of type "patch"."""
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({"results": table})
        artifact = wandb.Artifact(f"patch-{self.run_id}", type="patch")
        for file in files:
            # Immutable: sent from where it lies, instead of from a copy in the user's home.
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Send what is left; where W&B is offline, say how to send it later."""
        import wandb

        self._run.finish()
        wandb.teardown()  # finish alone returns before all is on disk
        if self._run.offline:
            parts = sorted(self._folder.glob(f"wandb/offline-run-*-{self.run_id}"))  # one for each time it was resumed
            print("W&B is offline, to upload the run: " + shlex.join(["wandb", "sync", *map(str, parts)]))


def _resolve_mode(mode: str) -> str:
    """What ``tracker.mode`` or, where that is "auto", the environment asks for.

    Raises:
        InputError: there is no such mode.
    """
    source, wanted = "tracker.mode", str(mode)
    if mode == "auto" and os.environ.get("WANDB_MODE"):
        source, wanted = "WANDB_MODE", os.environ["WANDB_MODE"]
        wanted = _ALIASES.get(wanted, wanted)
    if wanted not in ("auto", "online", "offline", "disabled"):
        raise InputError(f"{source}: expected auto, online, offline or disabled, got {wanted!r}")
    return wanted


def _settings() -> wandb.Settings:
    import wandb

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's telemetry, which looks up a host even offline
    return wandb.Settings(silent=True, console="off", init_timeout=_PATIENCE, finish_timeout=60)


def _log_in() -> None:
    """Look for a key: without one, W&B's ``init`` would ask for it.

    Raises:
        wandb.Error: there is none.
    """
    import wandb

    wandb.setup(_settings())  # before login, which would otherwise write to the console
    if not wandb.login(prompt=False, verify=False):
        raise wandb.errors.AuthenticationError("no API key, run `wandb login` or set WANDB_API_KEY")


def _offline(error: Exception) -> InputError:
    reason = str(error).splitlines()[0]
    return InputError(f"tracker.mode=online: expected W&B to accept the run, got '{reason}'; or use tracker.mode=auto")
