"""The command line: the only module that knows Hydra."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra
import yaml
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from patchattack import files
from patchattack.errors import InputError, VictimError, assignment, one_line, out_of_memory, shortened
from patchattack.redaction import HIDDEN, all_redacted, is_redacted, printable, redacted

# A resumed run may differ in these and in nothing else: they do not change what is computed.
FREE_TO_CHANGE = (
    *("resume", "output", "tracker", "trainer.workers", "trainer.memory_gb", "trainer.devices"),
    "trainer.max_queries",
    *("victim.rate", "victim.retries", "victim.timeout", "victim.batch", "victim.cache"),  # how an endpoint is asked
)
# A run's folder may be a stranger's. What these name runs code, or sends pictures and keys away: it comes from the
# groups or from the command line of now, and from no folder.
TRUSTED = ("_target_", "_args_", "factory", "function", "trust_checkpoint", "url", "key_variable")
# What a run writes before its first checkpoint.
_OF_A_START = ("config.yaml", "overrides.yaml", "metrics.csv", "tracker.json", "wandb")
_OPTION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # a name, and no path to anywhere else
_claims = contextlib.ExitStack()  # on the folders that the command of now writes into


def main() -> None:
    """``patchattack train attack=flow``: the installed command."""
    command, given = "patchattack train attack=flow", sys.argv[1:]
    if given[:1] == ["train"]:
        del sys.argv[1]
        train()
    elif given in (["-h"], ["--help"]):
        print(f"usage: {command} [key=value ...]\nall options: patchattack train --help")
    else:
        print(f"patchattack: expected a command, got {' '.join(given) or 'nothing'}; try: {command}", file=sys.stderr)
        sys.exit(2)


def train() -> None:
    """``python train.py attack=flow``: compose the config from ``sys.argv``, train, and exit with a status."""
    _compose("train", run, "resume")


def command(
    name: str, work: Callable[[dict[str, Any]], None], of_run: str | None = None, unbuilt: Sequence[str] = ()
) -> None:
    """A script's main: compose ``conf/<name>.yaml`` and ``sys.argv``, check it, and exit with a status.

    Args:
        name: of the config.
        work: gets the config's values, each ``_target_`` instantiated; an :class:`InputError` becomes one line.
        of_run: the key whose value is a run's folder; the overrides that the run was started with then hold here too.
        unbuilt: keys whose values stay as they are written.
    """

    def job(config: DictConfig) -> None:
        plain = _resolved(config)
        _check_types(OmegaConf.to_container(config))
        kept = {key: plain.pop(key) for key in unbuilt}
        built = _instantiated(plain)
        _check_patch(built.get("attack"))
        work(built | kept)

    _compose(name, job, of_run)


def _compose(name: str, work: Callable[[DictConfig], None], of_run: str | None) -> None:
    """Hand the composed config to ``work``; errors become one line, and a status."""
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    failures: list[Exception] = []
    typed = sys.argv[1:]
    stored: list[str] = []

    def job(config: DictConfig) -> None:
        os.environ["HYDRA_FULL_ERROR"] = full_error  # for the processes that the run starts
        try:
            _check_chosen(config)
            _check_added(config)
            if stored:
                _check_trusted(config, stored, typed)
            work(config)
        except Exception as error:  # of one job of a sweep: the others go on
            failures.append(error)
            _say(error, explain(error), full_error)
        finally:
            _claims.close()
            os.environ["HYDRA_FULL_ERROR"] = "1"

    try:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
        stored = _overrides_of_the_run(typed, of_run)
        sys.argv[1:] = _with_several_victims(_with_attack_for_help([*stored, *typed], name))
        _check_whole(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(files.shipped("conf").resolve()), config_name=name)(job)()
    except Exception as error:
        if error in failures:
            raise
        failures.append(error)
        # Whatever Hydra raises while it composes comes of the command line; =3 ends in a ValueError.
        _say(error, explain(error) or _one_line(error), full_error)
    except KeyboardInterrupt as stop:
        _interrupted(stop)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error
    if failures:
        sys.exit(2)


def _say(error: Exception, line: str | None, full_error: str) -> None:
    """Print the one line for an error; raise it again if there is none."""
    if full_error == "1" or line is None:
        raise error
    if os.environ.get("LOCAL_RANK", "0") == "0":  # every process meets the same error
        print(f"patchattack: {printable(redacted(shortened(line)))}", file=sys.stderr)


def _interrupted(stop: KeyboardInterrupt, again: str | None = None) -> None:
    """Say that Ctrl-C has ended the work, and how to resume it; exit with its status."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{str(stop) or 'interrupted'}." + (f" To go on: {redacted(again)}" if again else ""))
    sys.exit(130)


@contextlib.contextmanager
def interruptible(again: str) -> Iterator[None]:
    """Inside, Ctrl-C ends the command with a line that says how to go on: by the command ``again``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        _interrupted(stop, again)


def run(config: DictConfig) -> None:
    """Train with a composed config and print the verdict and where everything is."""
    plain = _resolved(config)
    previous = None if plain["resume"] is None else Path(str(plain["resume"]))
    if previous is not None:
        _check_same(plain, previous)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            claim(previous)
    if not _fits(plain["seed"], int) or plain["seed"] < 0:
        raise InputError(f"seed: expected a whole number from 0 on, got {plain['seed']}")
    _check_types(OmegaConf.to_container(config))  # not resolved, so that a value is met where the user has set it
    # Torch is imported late: help and errors of the command line do not wait for it.
    from patchattack import checkpoint, pipeline, training

    parts = build(plain, previous)
    if isinstance(parts.attack, pipeline.PerImage):
        _check_used(parts.attack.uses)
    fabric = pipeline.start_fabric(parts.settings)
    job = pipeline.assemble(parts, fabric, previous)
    folder = previous or fabric.broadcast(_made(plain["output"], _attack(), fabric.global_rank))
    if isinstance(folder, InputError):
        raise folder
    origin = pipeline.Origin(
        all_redacted({key: value for key, value in plain.items() if key not in ("resume", "output")}),
        command_line("train.py"),
        tuple(one for one in _overrides() if _key(one).rpartition(".")[2] in TRUSTED),
    )

    def describe() -> None:
        if previous is None and not (folder / "config.yaml").exists():
            files.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain)))
            files.write(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(_overrides())))

    if fabric.global_rank == 0:
        print(f"{_attack()} attack on {parts.victim.name}, on {fabric.device}, into {folder}", flush=True)
        describe()
    try:
        verdict = pipeline.run(parts, job, folder, origin, resumes=previous is not None)
    except KeyboardInterrupt as stop:
        saved = isinstance(parts.attack, pipeline.PerImage) or (folder / checkpoint.FILE).exists()
        _interrupted(stop, origin.resume(folder) if saved else None)
    except training.DivergedError as stop:
        raise InputError(
            f"{stop}: expected finite numbers; the last good patch is {folder / 'patch.png'}; try a lower optimizer.lr"
        ) from stop
    if verdict is not None:
        describe()  # again, where the folder was deleted in the meantime
        print(f"\n{verdict.sentence}\n{verdict.facts}\n")
        for name, file in (
            ("report", "report.html"),
            ("patch", "patch.png"),
            ("to print", f"print/{parts.sheet.page}.pdf"),
            ("pictures", "pictures"),
            ("images", "images.csv"),
            ("numbers", "results.json"),
        ):
            if (folder / file).exists():
                print(f"  {name:9} {folder / file}")


def _check_patch(attack: Any) -> None:
    """Refuse an attack that has no patch, where patches are measured."""
    from patchattack.pipeline import PerImage

    if isinstance(attack, PerImage):
        raise InputError(f"attack: expected one that optimises a patch, got {_attack()}; that is for train.py alone")


def _check_used(uses: tuple[str, ...]) -> None:
    """Refuse what an attack would not heed."""
    if unused := [key for key in map(_key, _overrides()) if not key.startswith(uses)]:
        raise InputError(
            f"attack={_attack()}: expected nothing but {', '.join(uses)}, got {', '.join(unused)}, which it has no use "
            "for; leave it out"
        )


def _attack() -> str:
    """The option of the group."""
    return str(HydraConfig.get().runtime.choices["attack"])


def _overrides() -> list[str]:
    return [one for one in HydraConfig.get().overrides.task if not one.startswith("resume=")]


def command_line(script: str) -> str:
    """What to type to repeat what runs now, but for the passwords and tokens of addresses."""
    return redacted(shlex.join(["python", script, *_overrides()]))


def build(plain: dict[str, Any], resumed: Path | None = None) -> Any:
    """Instantiate every part of a resolved config.

    Args:
        plain: the config.
        resumed: folder of the run that is to go on, whose victim is not asked again while it is made.

    Raises:
        InputError: a part refuses its arguments.
    """
    from patchattack.pipeline import Parts
    from patchattack.victims.journal import of_run

    journal = of_run(resumed)
    names = {"data": "source", "trainer": "settings", "print": "sheet"}
    keys = ("seed", "attack", "victim", "renderer", "patch", "regularizers", "optimizer", "schedule", "tracker")
    with journal.asks():
        built = _instantiated({key: plain[key] for key in (*keys, *names, "defense")})
    return Parts(**{names.get(key, key): part for key, part in built.items()}, journal=journal)


def _instantiated(plain: dict[str, Any]) -> dict[str, Any]:
    """Each ``_target_`` of a resolved config made; ``defense`` is not among them, the victims are behind it."""
    built = instantiate(plain, _convert_="all")
    if defenses := built.pop("defense", None):
        from patchattack.victims.defended import defended

        built["victim"] = defended(built["victim"], defenses)
        if "victims" in built:
            built["victims"] = {name: defended(victim, defenses) for name, victim in built["victims"].items()}
    return built


def _check_chosen(config: DictConfig) -> None:
    """Refuse ``group=[]``, which leaves nothing, where the group's options are not stacked."""
    for key, _, value in (one.partition("=") for one in HydraConfig.get().overrides.task):
        if value == "[]" and key not in config and key in _groups() and key != "experiment":
            raise InputError(f"{key}: expected one of {_choices('', _options(key))}, got none")


def _groups() -> list[str]:
    return sorted(path.name for path in files.shipped("conf").iterdir() if path.is_dir())


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (files.shipped("conf") / group).glob("*.yaml"))


def _check_added(config: DictConfig) -> None:
    """Refuse ``+key=value`` where nothing has such a key: Hydra takes it for one that is new."""
    given, groups = HydraConfig.get().overrides.task, {_key(one) for one in HydraConfig.get().runtime.choices}
    if added := [one for one in given if one.startswith("+") and _key(one) not in groups]:
        known = [str(key) for key in compose(HydraConfig.get().job.config_name, [o for o in given if o not in added])]
        if unknown := [str(key) for key in config if key not in known]:
            raise InputError(f"{unknown[0]}: expected one of {_choices(unknown[0], known)}, got {unknown[0]}")


def _check_types(node: Any, key: str = "") -> None:
    """Refuse values that the annotations of a ``_target_`` exclude: only some targets would, and some too late."""
    if not isinstance(node, dict):
        return
    hints: dict[str, Any] = {}
    if "_target_" in node:
        try:
            target = pkgutil.resolve_name(str(node["_target_"]))
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(
                f"{key}_target_: expected what can be imported, got {node['_target_']}: {error}"
            ) from error
        with contextlib.suppress(NameError, TypeError):  # names imported for type checkers alone, or no annotations
            hints = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    for name, value in node.items():
        if not (isinstance(value, str) and "${" in value) and _fits(value, hints.get(name)) is False:
            expected = inspect.formatannotation(hints[name]).replace("collections.abc.", "")
            if get_origin(hints[name]) is Literal:
                expected = f"one of {', '.join(get_args(hints[name]))}"
            raise InputError(f"{key}{name}: expected {expected}, got {value}")
        _check_types(value, f"{key}{name}.")


def _fits(value: Any, hint: Any) -> bool | None:
    """Whether a plain value may stand where ``hint`` is; None for a hint that says nothing about plain values."""
    inner = get_args(hint)
    if isinstance(value, dict):  # what it makes is not known
        return None
    if get_origin(hint) in (Union, UnionType):
        answers = {_fits(value, one) for one in inner}
        return True if True in answers else False if False in answers else None
    if get_origin(hint) is Literal:
        return value in inner
    if get_origin(hint) in (Sequence, list, tuple):
        return isinstance(value, list) and all(_fits(one, inner[0]) is not False for one in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str)
    if hint is bool:
        return isinstance(value, bool)
    return True if value is None and hint is NoneType else None


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend; None for any other."""
    for one in _causes(error):
        parent = getattr(one, "parent_node", None)
        if isinstance(one, InputError | VictimError):
            return str(one)
        if isinstance(one, OverrideParseException) and "=" in one.override:
            return _how_to_quote(one.override, "special characters")
        if several := re.match("Ambiguous value for argument '(.*)'", str(one)):
            return _how_to_quote(several[1], "several; several options of a group are GROUP=[A,B]")
        if isinstance(one, MissingConfigException) and one.missing_cfg_file:
            group, _, option = one.missing_cfg_file.rpartition("/")
            # Of a group whose options are stacked, Hydra does not name them.
            options = one.options or _options(group)
            return f"{group}: expected one of {_choices(option, [*options])}, got {option or 'nothing'}"
        if isinstance(one, MissingMandatoryValue):
            return f"{one.full_key}: expected a value, got none; give {one.full_key}=VALUE"
        if isinstance(one, OmegaConfBaseException) and isinstance(parent, DictConfig) and one.full_key:
            names = [str(key) for key in parent if not str(key).startswith(("_", "hydra"))]
            return f"{one.full_key}: expected one of {_choices(str(one.key), names)}, got {one.key}"
    if out_of_memory(error):
        return f"expected room, got '{one_line(error)}'; free memory, or take a smaller trainer.batch or trainer.draws"
    return _one_line(error) if isinstance(error, HydraException | OmegaConfBaseException) else None


def _how_to_quote(override: str, got: str) -> str:
    key, _, value = override.partition("=")
    mend = f"quote it: {assignment(key, value)}"
    if value.startswith(("[", "{")):
        mend = "close its brackets, and put text with special characters in quotes"
    return f"{override}: expected one value as Hydra reads it, got {got}; {mend}"


def _one_line(error: BaseException) -> str:
    return f"{' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)"


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


def _with_attack_for_help(arguments: list[str], name: str) -> list[str]:
    """The help of a training run shows a composed config, which there is none of without an attack."""
    asked = name == "train" and {"-h", "--help"} & set(arguments) and "attack" not in map(_key, arguments)
    return [*arguments, "attack=flow"] if asked else arguments


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]


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


def _overrides_of_the_run(typed: list[str], name: str | None) -> list[str]:
    """For ``name=RUN``, as ``resume=RUN``, the overrides that the run was started with and that are not typed again."""
    asked = [one.split("=", 1)[1] for one in typed if one.startswith(f"{name}=")]
    if not asked or asked[-1] in ("", "null"):
        return []
    (folder,) = OverridesParser.create().parse_overrides([f"{name}={asked[-1]}"])
    path = Path(str(folder.value())) / "overrides.yaml"
    if not path.is_file():
        raise InputError(f"{name}: expected the folder of a run, got {path.parent} without {path.name}; check the path")
    stored = _read_yaml(path, list)
    for one in stored:
        _check_override(path, one)
    given = {_key(one) for one in typed} | ({"output"} if name != "resume" else set())
    return [one for one in stored if _key(one) not in given]


def _check_override(path: Path, text: Any) -> None:
    """Refuse what is no setting of a key: the folder may be a stranger's, and Hydra has options that run code.

    So has a YAML of the stranger's own, which a path would choose as the option of a group.
    """
    override = None
    if isinstance(text, str) and not text.startswith("-"):
        with contextlib.suppress(HydraException):
            override = OverridesParser.create().parse_override(text)
    if override is None or override.is_sweep_override() or not _is_of_a_run(override):
        raise InputError(f"{path}: expected KEY=VALUE of the project's own keys, got {text!r}; take that line out")


def _is_of_a_run(override: Override) -> bool:
    """Whether it sets a key of ours, or chooses options of a group by their names."""
    key, value = override.key_or_group, override.value()
    options = value if isinstance(value, list) else [value]
    paths = [one for one in options if isinstance(one, str) and not _OPTION.fullmatch(one)]
    names_options = "." not in key and key != "output"
    return (
        not key.startswith("hydra")
        and not (override.package or "").startswith("hydra")
        and not (names_options and paths)
    )


def _read_yaml(path: Path, kind: type) -> Any:
    """What a file of a run's folder holds.

    Raises:
        InputError: it cannot be read, or is no ``kind``.
    """
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: expected what a run has written, got '{one_line(error)}'") from error
    if not isinstance(found, kind):
        raise InputError(f"{path}: expected what a run has written (a {kind.__name__}), got {found!r}")
    return found


def _check_trusted(config: DictConfig, stored: list[str], typed: list[str]) -> None:
    """Refuse what only the folder of a run has named, where that would run code or send something."""
    known = _known()
    for one in typed:
        with contextlib.suppress(HydraException):
            override = OverridesParser.create().parse_override(one)
            known |= {named[1:] for named in _trusted({_key(one).rpartition(".")[2]: override.value()})}
    found = _trusted(OmegaConf.to_container(config, resolve=True))
    strange = {path: value for path, key, value in found if (key, value) not in known}
    if strange:
        # The same may stand in several places: those that an override names say it best.
        given = {_key(one): one for one in stored}
        paths = [path for path in strange if path in given] or [*strange][:1]
        raise InputError(
            f"{paths[0]}: expected it to be typed, since it runs code or sends data and a run's folder may be a "
            f"stranger's, got {strange[paths[0]]} from overrides.yaml; where you trust it, add to the command: "
            f"{shlex.join(given.get(path, f'++{path}={strange[path]}') for path in paths)}"
        )


def _trusted(node: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, key and value of all that is :data:`TRUSTED` in a config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        place = f"{path}.{key}".lstrip(".")
        if key in TRUSTED and value not in (None, False, "???"):
            yield place, key, str(value)
        yield from _trusted(value, place)


def _known() -> set[tuple[str, str]]:
    """Key and value of all that is :data:`TRUSTED` in the YAMLs of the groups, ours and those of ``--config-dir``."""
    found = set()
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file":
            for pattern in ("*.yaml", *(f"{group}/**/*.yaml" for group in _groups())):
                for path in Path(source.path).glob(pattern):
                    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # Hydra says so where it is chosen
                        node = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
                        found |= {named[1:] for named in _trusted(node)}
    return found


def known_targets() -> set[str]:
    """Every ``_target_`` of the groups, ours and those of ``--config-dir``."""
    return {value for key, value in _known() if key == "_target_"}


def _check_whole(arguments: list[str]) -> None:
    """Refuse an address that was read where it had been redacted."""
    if cut := [_key(one) for one in arguments if is_redacted(one)]:
        raise InputError(
            f"{cut[0]}: expected the whole address, got one with {HIDDEN} in place of its password or token, which are "
            f"never stored; give {cut[0]}=ADDRESS again"
        )


def _check_same(plain: dict[str, Any], folder: Path) -> None:
    """Refuse to resume a run with another config."""
    stored = _read_yaml(folder / "config.yaml", dict)
    before, now = (dict(_flat(each)) for each in (stored, all_redacted(plain)))
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


def _made(output: str | None, attack: str, rank: int) -> Path | InputError | None:
    """The new folder, or why there is none; the first process makes it for all."""
    try:
        return new_folder(output, attack) if rank == 0 else None
    except InputError as error:
        return error


def claim(folder: Path) -> None:
    """Keep every other process from writing into ``folder`` until the command ends.

    Raises:
        InputError: one does so already, or it cannot be written.
    """
    _claims.enter_context(files.claimed(folder))


def new_folder(output: str | None, task: str, stem: Path | None = None) -> Path:
    """The folder of a new run, made and claimed: ``output``, or ``stem``, or ``outputs/<task>/<time>``.

    The folder of a run that ended before its first checkpoint is as good as a new one.

    Raises:
        InputError: it cannot be written, another process writes into it, or it holds a run already.
    """
    if output is not None:
        folder = Path(str(output))
    else:
        folder = stem or Path("outputs") / task / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        if output is not None:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = files.make_numbered(folder)
    except OSError as error:
        raise InputError(
            f"output={folder}: expected a folder that can be written, got '{error.strerror}'; name another"
        ) from error
    claim(folder)
    _check_new(folder)
    return folder


def _check_new(folder: Path) -> None:
    """Refuse the folder of a run; of one that ended before it could be resumed, forget settings and answers."""
    if not (folder / "config.yaml").exists():
        return
    from patchattack.victims import journal

    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    answers = {name for name in names if name.startswith(journal.FILE)}
    if names - answers - {*_OF_A_START}:
        raise InputError(
            f"output={folder}: expected a new folder, got that of another run; "
            f"go on with it by {assignment('resume', folder)}, or name another"
        )
    for name in [*answers, "config.yaml", "overrides.yaml"]:
        (folder / name).unlink(missing_ok=True)
