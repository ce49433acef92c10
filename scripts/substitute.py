"""Teach a small network what a victim answers, to attack it in the victim's place.

python scripts/substitute.py victim=onnx victim.task=classification victim.file=model.onnx substitute.queries=5000
python scripts/substitute.py victim=callable victim.task=classification victim.function=path/to/file.py:predict
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from patchattack import cli


def run(parts: dict[str, Any]) -> None:
    """Teach it, and print how well it agrees and what to do with it."""
    from patchattack import pipeline, substitute
    from patchattack.errors import InputError, VictimError

    trial = substitute.Trial(
        victim=parts["victim"],
        source=parts["data"],
        recipe=parts["substitute"],
        settings=parts["trainer"],
        seed=parts["seed"],
    )
    folder = cli.new_folder(parts["output"], "substitute")
    try:
        notebook = substitute.learn(trial, pipeline.start_fabric(trial.settings), folder)
    except VictimError as stop:
        raise InputError(
            f"{stop}; the answers so far are kept: go on with the same command and output={folder}"
        ) from stop
    print(f"round  queries  agreement with {notebook.victim} on {len(notebook.held_out)} held-out scenes")
    for row in notebook.rows:
        print("{round:5}  {queries:7}  {agreement:.3f} [{low:.3f}, {high:.3f}]".format(**row))
    given = shlex.split(cli.command_line("scripts/substitute.py"))[2:]
    print(
        f"\n  queries    {len(notebook.points)} to teach it and {len(notebook.held_out)} to measure it\n"
        f"  attack it  {attack(given, folder)}\n  transfer   {transfer(given, folder)}"
    )


def attack(given: list[str], folder: Path) -> str:
    """The command that attacks the substitute in white box."""
    return shlex.join(["python", "train.py", *_rest(given), "victim=substitute", f"victim.weights={folder}"])


def transfer(given: list[str], folder: Path) -> str:
    """The command that measures its patch on the victim that it stands for."""
    name = next((one.removeprefix("victim=") for one in given if one.startswith("victim=")), "classifier_residual")
    options = [one.replace("victim.", f"victims.{name}.", 1) for one in given if one.startswith("victim.")]
    victims = [f"victims=[substitute,{name}]", f"victims.substitute.weights={folder}", *options]
    return shlex.join(["python", "scripts/transfer.py", *_rest(given), "runs=[RUN]", *victims])


def _rest(given: list[str]) -> list[str]:
    """What the other commands take too: all that is not about the victim, the lesson or the folder."""
    own = ("victim=", "victim.", "substitute.", "output=", "attack=")
    return ["attack=classification", *(one for one in given if not one.startswith(own))]


if __name__ == "__main__":
    cli.command("substitute", run)
