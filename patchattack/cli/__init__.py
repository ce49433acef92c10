"""The command line: the only part that knows Hydra."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from patchattack import files, folders
from patchattack.cli import multirun, stored
from patchattack.cli.checks import check_added, check_chosen, check_renamed, check_types, fits, key_of
from patchattack.cli.messages import explain, in_one_line
from patchattack.errors import InputError, VictimError, assignment, one_line, shorten
from patchattack.redaction import printable, redact

_CONFIG_DIR = ("--config-dir", "-cd")


def command(
    name: str, work: Callable[[dict[str, Any]], None], of_run: str | None = None, unbuilt: Sequence[str] | None = ()
) -> None:
    """Compose ``conf/<name>.yaml`` and ``sys.argv``, check the values, do the work, and exit with a status.

    Whatever ends the work is answered here, once for all commands: an error that the user can mend becomes one line
    and status 2, Ctrl-C a line and 130, a closed pipe nothing.

    Args:
        name: of the config.
        work: gets the config's values, each ``_target_`` instantiated.
        of_run: the key whose value is a run's folder; the overrides that the run was started with then hold here too.
        unbuilt: keys whose values stay as they are written; None for all.
    """

    def job(config: DictConfig) -> None:
        plain = _resolve(config)
        if "seed" in plain and (not fits(plain["seed"], int) or plain["seed"] < 0):
            raise InputError(f"seed: expected an integer >= 0, got {plain['seed']}")
        if name != "train" and plain.get("resume") is not None:
            raise InputError(
                f"resume: expected output=FOLDER, by which all but a training are resumed, got {plain['resume']}"
            )
        check_types(OmegaConf.to_container(config))  # not resolved, so that a value is met where the user has set it
        kept = {key: plain.pop(key) for key in (list(plain) if unbuilt is None else unbuilt)}
        work(build(plain) | kept)

    _compose(name, job, of_run, inspect.getdoc(sys.modules[work.__module__]) or "")


def _set_threads() -> None:
    """For torch, which reads it when it is loaded: threads that wait for work leave the cores to others."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (cores := _quota(Path("/sys/fs/cgroup/cpu.max"))) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def _quota(file: Path) -> int | None:
    """Whole cores that a container may use, where it may not use all that it sees: torch counts what it sees."""
    try:
        quota, period = map(int, file.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no such limit is "max"
        return None
    cores = max(1, quota // period)
    return cores if cores < (os.cpu_count() or 1) else None


def _compose(name: str, work: Callable[[DictConfig], None], of_run: str | None, example: str) -> None:
    """Hand the composed config to ``work``; errors become one line, and a status."""
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    failures: list[Exception] = []
    typed = sys.argv[1:]
    of_the_run: list[str] = []

    many: multirun.Multirun | None = None

    def checked(config: DictConfig) -> None:
        check_chosen(config)
        check_added(config)
        if of_the_run:
            stored.check_trusted(config, of_the_run, typed)
        work(config)

    def job(config: DictConfig) -> float | None:
        os.environ["HYDRA_FULL_ERROR"] = full_error  # for the processes that the run starts
        _set_threads()
        try:
            if many is not None:
                _find_own_modules(typed)  # in a process of a launcher
                return many.run(config, checked, explain)
            checked(config)
        except BrokenPipeError:
            _silence()
        except Exception as error:
            failures.append(error)
            _say(error, explain(error), full_error)
        finally:
            folders.release()
            os.environ["HYDRA_FULL_ERROR"] = "1"
        return None

    try:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
        check_renamed(typed)
        _find_own_modules(typed)
        of_the_run = stored.overrides_of_the_run(typed, of_run)
        sys.argv[1:] = _with_several_victims(_for_help([*of_the_run, *typed], name, example))
        stored.check_whole(sys.argv[1:])
        many = multirun.prepare(name, sys.argv[1:], [sys.argv[0], *typed], program_with(*map(shlex.quote, typed)))
        conf = str(files.package_folder("conf").resolve())
        start = hydra.main(version_base="1.3", config_path=conf, config_name=name)(job)
        if many is None:
            start()
        else:
            sys.argv[1:] = many.arguments
            _start_many(many, start)
    except BrokenPipeError:  # of Hydra's own output
        _silence()
    except Exception as error:
        if error in failures:
            raise
        failures.append(error)
        # Whatever Hydra raises while it composes comes of the command line; =3 ends in a ValueError.
        _say(error, explain(error) or in_one_line(error), full_error)
    except KeyboardInterrupt as stop:
        _exit_interrupted(stop)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error
    if failures:
        sys.exit(2)


def _start_many(many: multirun.Multirun, start: Callable[[], None]) -> None:
    """Run what ``-m`` asks for, and gather it.

    Raises:
        InputError: some of the runs are missing in the end.
    """
    many.announce()
    try:
        with many.watched():
            start()
    except KeyboardInterrupt as stop:
        _exit_interrupted(stop, many.again)
    except Exception as error:  # what is wrong for all of them, or the process of one was killed
        if many.withdraw():
            raise
        many.gather()
        raise InputError(f"a launcher ended early: {one_line(error)}; resume with: {many.again}") from error
    many.gather()
    if missing := many.missing():
        raise InputError(
            f"{len(missing)} of the runs {'is' if len(missing) == 1 else 'are'} missing, the first: {missing[0]}; "
            f"once mended, run the same again: {many.again}"
        )


def _config_folders(typed: Sequence[str]) -> list[Path]:
    """Those of ``--config-dir``."""
    given = (
        one.partition("=")[2] or follows
        for one, follows in zip(typed, [*typed[1:], "."], strict=False)
        if one.startswith(_CONFIG_DIR)
    )
    return [Path(folder).resolve() for folder in given]


def _find_own_modules(typed: Sequence[str]) -> None:
    """Let a ``_target_`` name modules of the working folder and of ``--config-dir``, after those that are installed."""
    for folder in map(str, (Path.cwd().resolve(), *_config_folders(typed))):
        if folder not in sys.path:
            sys.path.append(folder)


def _silence() -> None:
    """Whoever read the output has seen enough: what is left of it goes nowhere."""
    with contextlib.suppress(OSError):  # what is no file is left alone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(error: Exception, line: str | None, full_error: str) -> None:
    """Print the one line for an error; raise it again if there is none."""
    if full_error == "1" or line is None:
        raise error
    if folders.is_first():  # every process meets the same error
        print(f"patchattack: {printable(redact(shorten(line)))}", file=sys.stderr)


def _exit_interrupted(stop: KeyboardInterrupt, again: str | None = None) -> None:
    """Say that Ctrl-C has ended the work, and how to resume it; exit with its status."""
    if folders.is_first():
        print(f"{str(stop) or 'interrupted'}." + (f" Resume with: {redact(again)}" if again else ""))
    sys.exit(130)


@contextlib.contextmanager
def resumable(again: str) -> Iterator[None]:
    """Whatever ends the work inside is told with the command ``again`` that resumes it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        _exit_interrupted(stop, again)
    except VictimError as stop:
        raise InputError(f"{stop}; what was done is kept, resume with: {again}") from stop


def attack() -> str:
    """The option of the group ``attack``."""
    return str(HydraConfig.get().runtime.choices["attack"])


def program() -> str:
    """What was typed before the options: ``patchattack train``, or ``python train.py``."""
    started = sys.argv[0]
    return f"python {shlex.quote(started)}" if started.endswith(".py") else started


def program_with(*words: str) -> str:
    """The same program with other overrides, quoted already, but for the passwords and tokens of addresses."""
    return redact(" ".join([program(), *words]))


def command_line() -> str:
    """What to type to repeat what runs now."""
    return program_with(*map(shlex.quote, stored.typed_overrides()))


def command_into(folder: Path) -> str:
    """What to type to resume what writes into ``folder`` now."""
    others = [one for one in stored.typed_overrides() if key_of(one) != "output"]
    return program_with(*map(shlex.quote, others), assignment("output", folder))


def print_files(folder: Path, **names: str) -> None:
    """Print where the files of ``folder`` are that there are, each with what it is."""
    for what, name in names.items():
        if (folder / name).exists():
            print(f"  {what.replace('_', ' '):9} {folder / name}")


def make(node: Any) -> Any:
    """``node`` with every ``_target_`` instantiated."""
    return instantiate(node, _convert_="all")


def build(plain: dict[str, Any]) -> dict[str, Any]:
    """Each ``_target_`` of a resolved config made; ``defense`` is not among them, the victims are behind it."""
    built = make(plain)
    if defenses := built.pop("defense", None):
        from patchattack.victims.defended import defend

        built["victim"] = defend(built["victim"], defenses)
        if "victims" in built:
            built["victims"] = {name: defend(victim, defenses) for name, victim in built["victims"].items()}
    return built


def compose(root: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of another command with these overrides, resolved; nothing of it is made.

    Raises:
        InputError: a value that cannot be.
    """
    config = hydra.compose(root, _with_several_victims([*overrides]))
    check_types(OmegaConf.to_container(config))
    return _resolve(config)


def build_parts(plain: dict[str, Any], resumed: Path | None = None) -> Any:
    """Instantiate every part of a resolved config.

    Args:
        plain: the config.
        resumed: folder of the run that is resumed, whose victim is not asked again while it is made.

    Raises:
        InputError: a part refuses its arguments.
    """
    from patchattack.assembly import Parts
    from patchattack.victims.journal import of_run

    journal = of_run(resumed)
    names = {"data": "source", "trainer": "settings", "print": "sheet"}
    keys = ("seed", "attack", "victim", "renderer", "patch", "regularizers", "optimizer", "schedule", "tracker")
    with journal.asks():
        built = build({key: plain[key] for key in (*keys, *names, "defense")})
    return Parts(**{names.get(key, key): part for key, part in built.items()}, journal=journal)


def _resolve(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _for_help(arguments: list[str], name: str, example: str) -> list[str]:
    """Where help is asked for: print the command's own and the groups, and let Hydra show the config below them.

    Hydra's own help takes seconds to list the groups. A config that leaves the attack open shows that of one: without
    any there is nothing to compose.
    """
    if not {"-h", "--help"} & set(arguments):
        return arguments
    folders = [files.package_folder("conf"), *_config_folders(arguments)]
    options = sorted((path.parent.name, path.stem) for folder in folders for path in folder.glob("*/*.yaml"))
    print(f"{example}\n\n== Configuration groups ==\nOf each choose an option, as group=option\n")
    for group, found in itertools.groupby(options, key=lambda one: one[0]):
        print(f"{group}: {', '.join(option for _, option in found)}")
    print("\n== Config ==\nChange any value, as foo.bar=value\n")
    text = (files.package_folder("conf") / f"{name}.yaml").read_text(encoding="utf-8")
    is_open = re.search(r"^  - (train$|attack: \?)", text, re.MULTILINE) and "override attack" not in text
    attack = ["attack=flow"] if is_open and "attack" not in map(key_of, arguments) else []
    return [*attack, *(one for one in arguments if one not in ("-h", "--help")), "--cfg=job"]


def _with_several_victims(arguments: list[str]) -> list[str]:
    """``victim=[a,b]`` is an ensemble and ``victims=[a,b]`` one after another; Hydra would merge both into one.

    ``defenses=[a,b]``, one after another too, are options of the group ``defense``.
    """
    result = []
    for one in arguments:
        key, _, names = one.partition("=")
        if key == "defenses":
            result.append(f"defense@defenses={names}")
            continue
        if key not in ("victim", "victims") or not names.startswith("["):
            result.append(one)
            continue
        listed = OverridesParser.create().parse_override(one).value()
        assert isinstance(listed, list)
        ensemble, package = (["victim=ensemble"], "victim.members") if key == "victim" else ([], "victims")
        result += [*ensemble, *(f"+victim@{package}.{name}={name}" for name in listed)]
    return result
