"""What a run's folder has stored of its command line, and what of that may be trusted: it may be a stranger's."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from patchattack import files
from patchattack.cli.checks import key_of
from patchattack.cli.messages import groups
from patchattack.errors import InputError, one_line
from patchattack.redaction import HIDDEN, all_redacted, is_redacted

# A resumed run may differ in these and in nothing else: they do not change what is computed.
FREE_TO_CHANGE = (
    *("resume", "output", "tracker", "trainer.workers", "trainer.memory_gb"),
    *("trainer.devices", "trainer.nodes"),
    *("trainer.max_queries", "data.cache_gb"),
    *("victim.rate", "victim.retries", "victim.timeout", "victim.batch", "victim.cache"),  # how an endpoint is asked
)
# A run's folder may be a stranger's. What these name runs code, or sends pictures and keys away: it comes from the
# groups or from the command line of now, and from no folder. So does a ``root`` that is an address.
TRUSTED = ("_target_", "_args_", "factory", "function", "trust_checkpoint", "url", "key_variable")
_OPTION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # a name, and no path to anywhere else
CONFIG, OVERRIDES = "config.yaml", "overrides.yaml"


def overrides_of_the_run(typed: list[str], name: str | None) -> list[str]:
    """For ``name=RUN``, as ``resume=RUN``, the overrides that the run was started with and that are not typed again."""
    asked = [one.split("=", 1)[1] for one in typed if one.startswith(f"{name}=")]
    if not asked or asked[-1] in ("", "null"):
        return []
    (folder,) = OverridesParser.create().parse_overrides([f"{name}={asked[-1]}"])
    path = Path(str(folder.value())) / OVERRIDES
    if not path.is_file():
        raise InputError(f"{name}: expected the folder of a run, got {path.parent} without {path.name}; check the path")
    stored = _read_yaml(path, list)
    for one in stored:
        _check_override(path, one)
    given = {key_of(one) for one in typed} | ({"output"} if name != "resume" else set())
    return [one for one in stored if key_of(one) not in given]


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


def check_trusted(config: DictConfig, stored: list[str], typed: list[str]) -> None:
    """Refuse what only the folder of a run has named, where that would run code or send something."""
    known = _known_entries()
    for one in typed:
        with contextlib.suppress(HydraException):
            override = OverridesParser.create().parse_override(one)
            known |= {named[1:] for named in _trusted_entries({key_of(one).rpartition(".")[2]: override.value()})}
    found = _trusted_entries(OmegaConf.to_container(config, resolve=True))
    strange = {path: value for path, key, value in found if (key, value) not in known}
    if strange:
        # The same may stand in several places: those that an override names say it best.
        given = {key_of(one): one for one in stored}
        paths = [path for path in strange if path in given] or [*strange][:1]
        raise InputError(
            f"{paths[0]}: expected it to be typed, since it runs code or sends data and a run's folder may be a "
            f"stranger's, got {strange[paths[0]]} from overrides.yaml; where you trust it, add to the command: "
            f"{shlex.join(given.get(path, f'++{path}={strange[path]}') for path in paths)}"
        )


def _trusted_entries(node: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, key and value of all that is :data:`TRUSTED` in a config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        place = f"{path}.{key}".lstrip(".")
        if _needs_trust(str(key), value):
            yield place, str(key), str(value)
        yield from _trusted_entries(value, place)


def _needs_trust(key: str, value: Any) -> bool:
    is_trusted = key in TRUSTED or (key == "root" and "://" in str(value))
    return is_trusted and value not in (None, False, "???")


def _known_entries() -> set[tuple[str, str]]:
    """Key and value of all that is :data:`TRUSTED` in the YAMLs of the groups, ours and those of ``--config-dir``."""
    found = set()
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file":
            for pattern in ("*.yaml", *(f"{group}/**/*.yaml" for group in groups())):
                for path in Path(source.path).glob(pattern):
                    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # Hydra says so where it is chosen
                        node = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
                        found |= {named[1:] for named in _trusted_entries(node)}
    return found


def check_whole(arguments: list[str]) -> None:
    """Refuse an address that was read where it had been redacted."""
    if cut := [key_of(one) for one in arguments if is_redacted(one)]:
        raise InputError(
            f"{cut[0]}: expected the whole address, got one with {HIDDEN} in place of its password or token, which are "
            f"never stored; give {cut[0]}=ADDRESS again"
        )


def write(folder: Path, plain: dict[str, Any]) -> None:
    """Store the config of a new run and what was typed to start it."""
    files.write(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(plain)))
    files.write(folder / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(typed_overrides())))


def typed_overrides() -> list[str]:
    """What was typed, and where a run was named what that was started with, but for ``resume=``."""
    return [one for one in HydraConfig.get().overrides.task if not one.startswith("resume=")]


def to_type_again() -> list[str]:
    """Those of :func:`typed` that a run's folder is not trusted with, quoted for the shell."""
    keys = ((one, key_of(one).rpartition(".")[2], one.partition("=")[2]) for one in typed_overrides())
    return [shlex.quote(one) for one, key, value in keys if _needs_trust(key, value)]


def check_same(plain: dict[str, Any], folder: Path) -> None:
    """Refuse to resume a run with another config."""
    stored = _read_yaml(folder / CONFIG, dict)
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
