"""The command line: the only module that knows Hydra."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from patchattack import files
from patchattack.errors import InputError

# A resumed run may differ in these and in nothing else: they do not change what is computed.
FREE_TO_CHANGE = ("resume", "output", "tracker", "trainer.workers", "trainer.memory_gb", "trainer.devices")


def main() -> None:
    """``patchattack train attack=flow``: the installed command."""
    if sys.argv[1:2] == ["train"]:
        del sys.argv[1]
        train()
    else:
        given = " ".join(sys.argv[1:]) or "nothing"
        print(f"patchattack: expected a command, got {given}; try: patchattack train attack=flow", file=sys.stderr)
        sys.exit(2)


def train() -> None:
    """``python train.py attack=flow``: compose the config from ``sys.argv``, train, and exit with a status."""
    debugging = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
    failures: list[Exception] = []

    def job(config: DictConfig) -> None:
        try:
            run(config)
        except Exception as error:  # of one job of a sweep: the others go on
            _say(error, debugging)
            failures.append(error)

    try:
        sys.argv[1:] = _with_overrides_of_the_run(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(files.shipped("conf").resolve()), config_name="train")(job)()
    except Exception as error:
        _say(error, debugging)
        failures.append(error)
    if failures:
        sys.exit(2)


def _say(error: Exception, debugging: bool) -> None:
    """Print the one line for an error; raise it again if there is none."""
    line = explain(error)
    if debugging or line is None:
        raise error
    if os.environ.get("LOCAL_RANK", "0") == "0":  # every process meets the same error
        print(f"patchattack: {line}", file=sys.stderr)


def run(config: DictConfig) -> None:
    """Train with a composed config and print the verdict and where everything is."""
    plain = _resolved(config)
    previous = None if plain["resume"] is None else Path(plain["resume"])
    if previous is not None:
        _check_same(plain, previous)
    # Torch is imported late: help and errors of the command line do not wait for it.
    from patchattack import pipeline, training

    parts = build(plain)
    fabric = pipeline.start_fabric(parts.settings)
    job = pipeline.assemble(parts, fabric)
    folder = fabric.broadcast(previous or _new_folder(plain["output"], parts.attack.task))
    overrides = [one for one in sys.argv[1:] if not one.startswith(("-", "resume="))]
    origin = pipeline.Origin(
        {key: value for key, value in plain.items() if key not in ("resume", "output")},
        shlex.join(["python", "train.py", *overrides]),
    )
    if fabric.global_rank == 0:
        print(f"{parts.attack.task} attack on {parts.victim.name}, on {fabric.device}, into {folder}", flush=True)
        if previous is None:
            files.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain)))
            files.write(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
    try:
        verdict = pipeline.run(parts, job, folder, origin, resumes=previous is not None)
    except training.InterruptedRunError as stop:
        if fabric.global_rank == 0:
            print(f"{stop}. To go on: python train.py resume={shlex.quote(str(folder))}")
        sys.exit(130)
    except training.DivergedError as stop:
        raise InputError(
            f"{stop}: expected finite numbers; the last good patch is {folder / 'patch.png'}; try a lower optimizer.lr"
        ) from stop
    if verdict is not None:
        print(f"\n{verdict.sentence}\n")
        for name, file in (
            ("report", "report.html"),
            ("patch", "patch.png"),
            ("to print", f"print/{parts.sheet.page}.pdf"),
            ("numbers", "results.json"),
        ):
            print(f"  {name:9} {folder / file}")


def build(plain: dict[str, Any]) -> Any:
    """Instantiate every part of a resolved config.

    Raises:
        InputError: a part refuses its arguments.
    """
    from patchattack.pipeline import Parts

    names = {"data": "source", "trainer": "settings", "print": "sheet"}
    keys = ("seed", "attack", "victim", "renderer", "patch", "regularizers", "optimizer", "schedule", "tracker")
    chosen = {names.get(key, key): plain[key] for key in (*keys, *names)}
    return Parts(**instantiate(chosen, _convert_="all"))


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend; None for any other."""
    for one in _causes(error):
        parent = getattr(one, "parent_node", None)
        if isinstance(one, InputError):
            return str(one)
        if isinstance(one, MissingMandatoryValue):
            return f"{one.full_key}: expected a value, got none; give {one.full_key}=VALUE"
        if isinstance(one, OmegaConfBaseException) and isinstance(parent, DictConfig) and one.full_key:
            names = [str(key) for key in parent if not str(key).startswith(("_", "hydra"))]
            return f"{one.full_key}: expected one of {_choices(str(one.key), names)}, got {one.key}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        text = " ".join(str(error).split()).removeprefix("In 'train': ").split(" Config search path")[0]
        return f"{text} (HYDRA_FULL_ERROR=1 shows where)"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _choices(given: str, names: list[str]) -> str:
    close = difflib.get_close_matches(given, names, n=1)
    return ", ".join(names) + (f" (did you mean {close[0]}?)" if close else "")


def _resolved(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]


def _with_overrides_of_the_run(arguments: list[str]) -> list[str]:
    """For ``resume=RUN`` the overrides that the run was started with, before those of now."""
    asked = [one.split("=", 1)[1] for one in arguments if one.startswith("resume=")]
    if not asked or asked[-1] in ("", "null"):
        return arguments
    path = Path(OverridesParser.create().parse_override(f"resume={asked[-1]}").value()) / "overrides.yaml"  # type: ignore[arg-type]
    if not path.is_file():
        raise InputError(f"resume: expected the folder of a run, got {path.parent} without {path.name}; check the path")
    stored = [str(one) for one in OmegaConf.load(path)]
    given = {_key(one) for one in arguments}
    return [one for one in stored if _key(one) not in given] + arguments


def _check_same(plain: dict[str, Any], folder: Path) -> None:
    """Refuse to resume a run with another config."""
    before, now = (
        dict(_flat(each)) for each in (OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")), plain)
    )
    differing = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if differing:
        raise InputError(
            f"resume={folder}: expected the config that the run was started with, got another: "
            f"{'; '.join(differing)}; drop these overrides, or start a new run"
        )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), node


def _new_folder(output: str | None, task: str) -> Path:
    """The folder of a new run, made and writable.

    Raises:
        InputError: it cannot be written, or holds a run already.
    """
    if output is None:
        stem = Path("outputs") / task / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = next(f for n in range(1, 1000) if not (f := stem.with_name(stem.name + f"-{n}" * (n > 1))).exists())
    else:
        folder = Path(output)
        if (folder / "config.yaml").exists():
            raise InputError(
                f"output={folder}: expected a new folder, got that of another run; "
                f"go on with it by resume={folder}, or name another"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output={folder}: expected a folder that can be written, got '{error.strerror}'; name another"
        ) from error
    return folder
