"""What holds for every command: its help, and what it says of whatever ends it."""

from __future__ import annotations

import errno
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from patchattack import commands

NAMES = [module.name for module in pkgutil.iter_modules(commands.__path__)]
WITHOUT_ATTACK = ("bench", "calibrate", "check_victim", "compare", "one_pixel", "print")
WORK = {"calibrate": "write_chart"}
WORDS = {"bench": "run", "calibrate": "chart"}


COMPOSED: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command's config is composed for the first of its endings, and stays for the others."""
    load = ConfigLoaderImpl.load_configuration

    def loaded(loader: ConfigLoaderImpl, **given: Any) -> Any:
        key = repr(given)
        if key not in COMPOSED:
            COMPOSED[key] = load(loader, **given)
        return COMPOSED[key]

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", loaded)


def arguments(name: str) -> list[str]:
    """As few as it takes to reach the command's own work."""
    words = [WORDS[name]] if name in WORDS else []
    return words if name in WITHOUT_ATTACK else [*words, "attack=classification"]


@pytest.mark.parametrize("name", NAMES)
def test_help_begins_with_what_the_command_is_and_an_example(name: str, command: Callable[..., Any]) -> None:
    outcome = command("--help", entry=name)
    assert (outcome.status, outcome.err) == (0, "")
    first, _, example, *_ = outcome.out.splitlines()
    assert first.endswith(".")
    assert example.startswith(f"patchattack {name.replace('_', '-')} ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted."),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.csv"),
            2,
            "patchattack: x.csv: expected room on the disk,",
        ),
        (MemoryError("too much"), 2, "patchattack: expected room, got 'too much'; free memory"),
        (BrokenPipeError(), 0, ""),
    ],
    ids=["Ctrl-C", "full disk", "full memory", "closed pipe"],
)
def test_what_ends_a_command_is_one_line_and_a_status(
    name: str,
    error: BaseException,
    status: int,
    said: str,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ends(_: Any) -> None:
        raise error

    module = importlib.import_module(f"patchattack.commands.{name}")
    monkeypatch.setattr(module, WORK.get(name, "run"), ends)
    outcome = command(*arguments(name), entry=name)
    assert outcome.status == status
    text = outcome.out + outcome.err
    assert text.startswith(said)
    assert text.count("\n") == (1 if said else 0)
