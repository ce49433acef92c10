"""Substitute model: teach a small network a black-box victim's answers, to attack it in the victim's place.

patchattack substitute victim=onnx victim.task=classification victim.file=model.onnx substitute.queries=5000
patchattack substitute victim=callable victim.task=classification victim.function=path/to/file.py:predict

With ``output=FOLDER`` of an earlier call, nothing is asked twice.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from patchattack import cli, folders
from patchattack.cli import stored


def main() -> None:
    """Compose the config from the command line and teach."""
    cli.command("substitute", run)


def run(parts: dict[str, Any]) -> None:
    """Teach it, and print how well it agrees and what to do with it."""
    from patchattack import processes
    from patchattack.studies import substitute

    study = substitute.SubstituteStudy(
        victim=parts["victim"],
        source=parts["data"],
        recipe=parts["substitute"],
        settings=parts["trainer"],
        seed=parts["seed"],
    )
    folder = folders.new_folder(parts["output"], "substitute")
    with cli.resumable(cli.command_into(folder)):
        notebook = substitute.learn(study, processes.start(study.settings), folder)
    print(f"round  queries  agreement with {notebook.victim} on {len(notebook.held_out)} held-out scenes")
    for row in notebook.rows:
        print("{round:5}  {queries:7}  {agreement:.3f} [{low:.3f}, {high:.3f}]".format(**row))
    given = stored.typed_overrides()
    print(
        f"\n  queries    {len(notebook.points)} to teach it and {len(notebook.held_out)} to measure it\n"
        f"  attack it  {attack(given, folder)}\n  transfer   {transfer(given, folder)}"
    )


def attack(given: list[str], folder: Path) -> str:
    """The command that attacks the substitute in white box."""
    return shlex.join(["patchattack", "train", *_rest(given), "victim=substitute", f"victim.weights={folder}"])


def transfer(given: list[str], folder: Path) -> str:
    """The command that measures its patch on the victim that it stands for."""
    name = next((one.removeprefix("victim=") for one in given if one.startswith("victim=")), "classifier_residual")
    options = [one.replace("victim.", f"victims.{name}.", 1) for one in given if one.startswith("victim.")]
    victims = [f"victims=[substitute,{name}]", f"victims.substitute.weights={folder}", *options]
    return shlex.join(["patchattack", "transfer", *_rest(given), "runs=[RUN]", *victims])


def _rest(given: list[str]) -> list[str]:
    """What the other commands take too: all that is not about the victim, the lesson or the folder."""
    own = ("victim=", "victim.", "substitute.", "output=", "attack=")
    return ["attack=classification", *(one for one in given if not one.startswith(own))]
