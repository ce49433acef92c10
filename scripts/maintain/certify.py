"""What a defence proves of a victim, and what it costs without a patch; no patch is trained or rendered.

python scripts/maintain/certify.py attack=classification defense=[patch_cleanser] defense.patch_cleanser.side=0.1414
python scripts/maintain/certify.py attack=detection defense=[object_seeker] trainer.test_scenes=20 output=FOLDER

It measures on held-out scenes, and with the ``output`` of an earlier call resumes there. Tables of the site come from
its ``certified.json``, in docs/results.
"""

from __future__ import annotations

import time
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("train", run)


def run(parts: dict[str, Any]) -> None:
    """Measure scene by scene, write ``certified.json`` after each, and print the means."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from patchattack import files, processes, statistics
    from patchattack.job import bind_victim
    from patchattack.scene import View
    from patchattack.victims.defended import Defended

    victim, settings = parts["victim"], parts["trainer"]
    if not isinstance(victim, Defended):
        raise InputError("defense: expected one that proves something, got none; give defense=[patch_cleanser]")
    attack, predict, scenes = bind_victim(parts["attack"], victim, parts["data"], processes.start(settings))
    folder = folders.new_folder(parts["output"], "certified")
    path, command = folder / "certified.json", cli.command_line()
    found: list[dict[str, Any]] = []
    if path.is_file():
        earlier = files.read_json(path)
        if earlier["command"] != command:
            raise InputError(f"output: expected a folder of this command, got one of: {earlier['command']}")
        found = earlier["scenes"]
    done = {one["scene"] for one in found}
    for index in tqdm([n for n in settings.split_indices(len(scenes))[2] if n not in done], unit="scene"):
        scene, begin = scenes.__getitems__([index]).to("cpu"), time.process_time()
        nowhere = View(scene.frames, torch.zeros_like(scene.frames[:, :, :1]), torch.zeros(1, 1, 4, 2))
        with torch.no_grad():
            undefended, defended = victim.network(scene.frames), predict(scene.frames)
            seconds = time.process_time() - begin
            proved = attack.certified(victim, scene)
        if proved is None:
            raise InputError(f"defense: expected one that proves something, got {victim.name}")
        answers = {"undefended": undefended, "defended": defended}
        values = {name: attack.metrics(one, undefended, scene, nowhere) for name, one in answers.items()}
        values["certified"] = proved
        shown = {attack.clean_metric[0], "false_positives", *(metric for metric, _ in proved)}
        rows = [
            {"condition": condition, "metric": metric, "region": region, "value": value.item()}
            for condition, measured in values.items()
            for (metric, region), value in measured.items()
            if metric in shown
        ]
        certifying = time.process_time() - begin - seconds
        found.append({"scene": index, "seconds": seconds, "certifying": certifying, "rows": rows})
        columns: dict[tuple[str, str, str], list[float]] = {}
        for row in (row for one in found for row in one["rows"]):
            columns.setdefault((row["condition"], row["metric"], row["region"]), []).append(row["value"])
        means = [
            dict(zip(("condition", "metric", "region"), key, strict=True))
            | statistics.estimate(np.array(column), attack.metric_info[key[1]].rate)
            for key, column in columns.items()
        ]
        facts = {"victim": victim.network.name, "defense": victim.defenses[0].name, "command": command}
        files.write_json(path, facts | {"rows": means, "scenes": found})
    for row in files.read_json(path)["rows"]:
        print(f"{row['condition']:11} {row['metric']} {row['region']}: {statistics.with_interval(row)} n = {row['n']}")
    cli.print_files(folder, numbers="certified.json")


if __name__ == "__main__":
    main()
