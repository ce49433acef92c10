"""What of a composed config is refused before anything is made of it."""

from __future__ import annotations

import contextlib
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from patchattack.cli.messages import choices, groups, options_of
from patchattack.errors import InputError

# What earlier versions took, and what takes its place.
RENAMED = {
    "attack=one_pixel": "the command patchattack one-pixel",
    "attack.cls": "attack.target",
    "attack.smallest": "attack.min_height",
    "patch.variable": "patch.parameterisation",
    "victim.metric": "victim.is_metric",
    "victim.reach": "victim.depth_range",
}


def check_renamed(typed: Sequence[str]) -> None:
    """Refuse what has another name today."""
    for one in typed:
        for old, new in RENAMED.items():
            if one == old or one.startswith((f"{old}=", f"{old}.")):
                raise InputError(f"{old}: expected {new}, its name today, got {one}")


def key_of(override: str) -> str:
    """The key that an override sets, without its package."""
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]


def check_chosen(config: DictConfig) -> None:
    """Refuse ``group=[]``, which leaves nothing, where the group's options are not stacked."""
    for key, _, value in (one.partition("=") for one in HydraConfig.get().overrides.task):
        if value == "[]" and key not in config and key in groups() and key != "experiment":
            raise InputError(f"{key}: expected one of {choices('', options_of(key))}, got none")


def check_added(config: DictConfig) -> None:
    """Refuse ``+key=value`` where nothing has such a key: Hydra takes it for one that is new."""
    given, groups = HydraConfig.get().overrides.task, {key_of(one) for one in HydraConfig.get().runtime.choices}
    if added := [one for one in given if one.startswith("+") and key_of(one) not in groups]:
        known = [str(key) for key in compose(HydraConfig.get().job.config_name, [o for o in given if o not in added])]
        if unknown := [str(key) for key in config if key not in known]:
            raise InputError(f"{unknown[0]}: expected one of {choices(unknown[0], known)}, got {unknown[0]}")


def check_types(node: Any, key: str = "") -> None:
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
        if not (isinstance(value, str) and "${" in value) and fits(value, hints.get(name)) is False:
            expected = inspect.formatannotation(hints[name]).replace("collections.abc.", "")
            if get_origin(hints[name]) is Literal:
                expected = f"one of {', '.join(get_args(hints[name]))}"
            quote = isinstance(value, list) and fits([str(one) for one in value], hints[name])
            mend = "; quote text that looks like a number or a truth value, as in '[car,\"30\"]'" if quote else ""
            raise InputError(f"{key}{name}: expected {expected}, got {value}{mend}")
        check_types(value, f"{key}{name}.")


def fits(value: Any, hint: Any) -> bool | None:
    """Whether a plain value may stand where ``hint`` is; None for a hint that says nothing about plain values."""
    inner = get_args(hint)
    if isinstance(value, dict):  # what it makes is not known
        return None
    if get_origin(hint) in (Union, UnionType):
        answers = {fits(value, one) for one in inner}
        return True if True in answers else False if False in answers else None
    if get_origin(hint) is Literal:
        return value in inner
    if get_origin(hint) in (Sequence, list, tuple):
        return isinstance(value, list) and all(fits(one, inner[0]) is not False for one in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str)
    if hint is bool:
        return isinstance(value, bool)
    return True if value is None and hint is NoneType else None
