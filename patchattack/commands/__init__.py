"""One module for each ``patchattack COMMAND``: what the user types, and nothing else.

A module's docstring is what ``patchattack --help`` says of the command; its ``main`` composes the config of its name
and works.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
import sys
from pathlib import Path

import patchattack


def main() -> None:
    """``patchattack COMMAND [key=value ...]``: do what is asked for, and exit with a status."""
    names = [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]
    word, *rest = sys.argv[1:] or ["--help"]
    command = word.replace("_", "-")
    if word in ("-h", "--help"):
        print("usage: patchattack COMMAND [key=value ...]\n")
        print(*(f"  {name:17} {_summary(name)}" for name in names), sep="\n")
        print("\npatchattack COMMAND --help shows the options and an example; patchattack --version the version")
    elif word == "--version":
        print(f"patchattack {patchattack.__version__}")
    elif command in names:
        sys.argv = [f"patchattack {command}", *rest]
        importlib.import_module(f"{__name__}.{command.replace('-', '_')}").main()
    else:
        near = difflib.get_close_matches(command, names, n=1, cutoff=0.4)
        meant = f"; did you mean patchattack {near[0]}?" if near else ""
        print(f"patchattack: expected one of {', '.join(names)}, got {word}{meant}", file=sys.stderr)
        sys.exit(2)


def _summary(name: str) -> str:
    """The first line of a command's docstring, without importing what it imports."""
    source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0].rstrip(".")
