"""One line for whatever the user can mend."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from patchattack import files
from patchattack.errors import DivergedError, InputError, VictimError, assignment, one_line, out_of_memory


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend; None for any other."""
    for one in _causes(error):
        parent = getattr(one, "parent_node", None)
        if isinstance(one, InputError | VictimError | DivergedError):
            return str(one)
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{one.filename or 'output'}: expected room on the disk, got '{one.strerror}'; free some and resume"
        if isinstance(one, OverrideParseException) and "=" in one.override:
            return _how_to_quote(one.override, "special characters")
        if several := re.match("Ambiguous value for argument '(.*)'", str(one)):
            return _how_to_quote(several[1], "several; several options of a group are GROUP=[A,B]")
        if isinstance(one, MissingConfigException) and one.missing_cfg_file:
            group, _, option = one.missing_cfg_file.rpartition("/")
            # Of a group whose options are stacked, Hydra does not name them.
            options = one.options or options_of(group)
            return f"{group}: expected one of {choices(option, [*options])}, got {option or 'nothing'}"
        if isinstance(one, MissingMandatoryValue):
            return f"{one.full_key}: expected a value, got none; give {one.full_key}=VALUE"
        if isinstance(one, OmegaConfBaseException) and isinstance(parent, DictConfig) and one.full_key:
            names = [str(key) for key in parent if not str(key).startswith(("_", "hydra"))]
            return f"{one.full_key}: expected one of {choices(str(one.key), names)}, got {one.key}"
    if out_of_memory(error):
        return f"expected room, got '{one_line(error)}'; free memory, or take a smaller trainer.batch or trainer.draws"
    return in_one_line(error) if isinstance(error, HydraException | OmegaConfBaseException) else None


def _how_to_quote(override: str, got: str) -> str:
    key, _, value = override.partition("=")
    mend = f"quote it: {assignment(key, value)}"
    if value.startswith(("[", "{")):
        mend = "close its brackets, and put text with special characters in quotes"
    return f"{override}: expected one value as Hydra reads it, got {got}; {mend}"


def in_one_line(error: BaseException) -> str:
    """What Hydra or OmegaConf says."""
    return f"{' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def choices(given: str, names: list[str]) -> str:
    """``names``, and which of them may have been meant."""
    close = difflib.get_close_matches(given, names, n=1)
    return ", ".join(names) + (f" (did you mean {close[0]}?)" if close else "")


def groups() -> list[str]:
    """Names of the config groups."""
    return sorted(path.name for path in files.package_folder("conf").iterdir() if path.is_dir())


def options_of(group: str) -> list[str]:
    """Names of the group's options, those that the package ships."""
    return sorted(path.stem for path in (files.package_folder("conf") / group).glob("*.yaml"))
