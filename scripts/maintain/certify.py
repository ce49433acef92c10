"""What a defence proves of a victim, and what it costs without a patch; no patch is trained or rendered.

python scripts/maintain/certify.py attack=classification defense=[patch_cleanser] defense.patch_cleanser.side=0.1414
python scripts/maintain/certify.py attack=detection defense=[object_seeker] trainer.test_scenes=20 output=FOLDER

It measures on held-out scenes, in their order, and with the ``output`` of an earlier call resumes there. Tables of the
site come from its ``certified.json``, in docs/results.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("train", run)


def run(parts: dict[str, Any]) -> None:
    """Measure scene by scene, keep each in ``scenes.json``, write ``certified.json`` and print the means."""
    from tqdm import tqdm

    from patchattack import files, processes, statistics
    from patchattack.job import bind_victim
    from patchattack.victims.defended import Defended

    victim, settings = parts["victim"], parts["trainer"]
    if not isinstance(victim, Defended) or not hasattr(victim.defenses[0], "side"):
        raise InputError("defense: expected one that proves something, got none; give defense=[patch_cleanser]")
    attack, _, scenes = bind_victim(parts["attack"], victim, parts["data"], processes.start(settings))
    folder, command = folders.new_folder(parts["output"], "certified"), cli.command_line()
    path, found = folder / "scenes.json", list[dict[str, Any]]()
    if path.is_file():
        earlier = files.read_json(path)
        if earlier["command"] != command:
            raise InputError(f"output: expected a folder of this command, got one of: {earlier['command']}")
        found = earlier["scenes"]
    height, width = scenes[0].size
    defense = victim.defenses[0]
    facts = {
        "victim": victim.network.name,
        "defense": defense.name,
        "settings": {key: value for key, value in vars(defense).items() if not key.startswith("_")},
        "area": (defense.side * min(height, width)) ** 2 / (height * width),
    }
    done = {one["scene"] for one in found}
    try:
        for index in tqdm([n for n in settings.split_indices(len(scenes))[2] if n not in done], unit="scene"):
            found.append({"scene": index} | measure(attack, victim, scenes.__getitems__([index]).to("cpu")))
            files.write_json(path, {"command": command, "scenes": found})
    finally:  # of what there is, if it was interrupted
        rows = means(attack, found)
        files.write_json(folder / "certified.json", facts | {"rows": rows})
    for row in rows:
        print(f"{row['condition']:11} {row['metric']} {row['region']}: {statistics.with_interval(row)} n = {row['n']}")
    cli.print_files(folder, numbers="certified.json")


def measure(attack: Any, victim: Any, scene: Any) -> dict[str, Any]:
    """One scene without a patch: the network alone, behind the defence, and what is proved; CPU seconds of each."""
    import torch

    from patchattack.scene import View

    nowhere = View(scene.frames, torch.zeros_like(scene.frames[:, :, :1]), torch.zeros(1, 1, 4, 2))
    times = [time.process_time()]
    with torch.no_grad():
        answers = {}
        for name, network in (("undefended", victim.network), ("defended", victim)):
            answers[name] = network(scene.frames)
            times.append(time.process_time())
        proved = attack.certified(victim, scene)
        times.append(time.process_time())
    if proved is None:
        raise InputError(f"defense: expected one that proves something, got {victim.name}")
    values = {name: attack.metrics(one, answers["undefended"], scene, nowhere) for name, one in answers.items()}
    shown = {attack.clean_metric[0], "false_positives", *(metric for metric, _ in proved)}
    rows = [
        {"condition": condition, "metric": metric, "region": region, "value": value.item()}
        for condition, measured in (values | {"certified": proved}).items()
        for (metric, region), value in measured.items()
        if metric in shown
    ]
    seconds = (after - before for before, after in itertools.pairwise(times))
    rows += [
        {"condition": condition, "metric": "seconds", "region": "all", "value": value}
        for condition, value in zip(("undefended", "defended", "certified"), seconds, strict=True)
    ]
    return {"rows": rows}


def means(attack: Any, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and interval of every condition, metric and region over the scenes."""
    import numpy as np

    from patchattack import statistics

    columns: dict[tuple[str, str, str], list[float]] = {}
    for row in (row for one in found for row in one["rows"]):
        columns.setdefault((row["condition"], row["metric"], row["region"]), []).append(row["value"])
    return [
        dict(zip(("condition", "metric", "region"), key, strict=True))
        | statistics.estimate(np.array(column), key[1] != "seconds" and attack.metric_info[key[1]].rate)
        for key, column in columns.items()
    ]


if __name__ == "__main__":
    main()
