"""The threat model of a run and its evidence: who attacks what, under which conditions, and what was not tested."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patchattack.attacks.attack import Attack
from patchattack.controls import CONDITIONS, NO_RIVALS
from patchattack.eot import appearance, camera
from patchattack.eot.transform import Transform
from patchattack.patch import Patch
from patchattack.reporting.page import REGIONS, number

BOX = {"attacker": "Attacker", "conditions": "Operational conditions", "measurement": "Evidence"}  # titles


@dataclass(frozen=True)
class RunFacts:
    """What a run knows beside its config.

    Attributes:
        outcome, sentence, unbeaten: of the verdict.
        attack: with its metrics.
        victims: names of the networks.
        gradients: the attacker used the victim's gradients, not its outputs alone.
        queries: that the attacker asked.
        patch: as printed.
        frame: height and width in pixels.
        frames: of a scene.
        corners: ``[n, 4, 2]`` pixels, where the patch lay in the first frame of each test scene and draw.
        scenes: for training, validation and test.
        rows: of results.json.
    """

    outcome: str
    sentence: str
    unbeaten: Mapping[str, list[str]]
    attack: Attack
    victims: list[str]
    gradients: bool
    queries: int
    patch: Patch
    frame: tuple[int, int]
    frames: int
    corners: Tensor
    scenes: tuple[int, int, int]
    rows: list[dict[str, Any]]


def threat_model(config: Mapping[str, Any], facts: RunFacts) -> dict[str, Any]:
    """Threat model and evidence of a run, plain containers: what ``evidence.json`` holds.

    Args:
        config: composed, plain containers.
        facts: the rest.
    """
    name, region = facts.attack.primary_metric
    metric = facts.attack.metric_info[name]
    defences = list(config["defense"])
    training, validation, test = facts.scenes
    mine = [row for row in facts.rows if (row["metric"], row["region"]) == facts.attack.primary_metric]
    return {
        "verdict": {"outcome": facts.outcome, "sentence": facts.sentence, "unbeaten": dict(facts.unbeaten)},
        "attacker": {
            "knowledge": "white box: the victim's gradients" if facts.gradients else "black box: the victim's outputs",
            "victims": facts.victims,
            "queries": facts.queries,
            "defences": defences,
            "data": {"source": _class(config["data"]), "training scenes": training, "validation scenes": validation},
            "goal": f"{'raise' if metric.sign > 0 else 'lower'} the {metric.label}"
            + ("" if region == "all" else f" {REGIONS[region]}"),
            "settings": _settings(config["attack"]),
            "patch": {
                "shape": config["patch"]["shape"],
                "size_mm": list(facts.patch.size_mm),
                "texels": list(facts.patch.mask.shape[1:]),
            },
        },
        "conditions": {
            **_geometry(facts, config["print"]),
            "placement": _settings(config["placement"]),
            "bend": _settings(config["bend"]) if config["bend"] else None,
            "appearance": {key: _settings(node) for key, node in config["appearance"].items()},
            "camera": {key: _settings(node) for key, node in config["camera"].items()},
        },
        "measurement": {
            "scenes": test,
            "draws": config["trainer"]["test_draws"],
            "seed": config["seed"],
            "metric": {"name": name, "region": region, "label": metric.label, "stronger": metric.stronger},
            "intervals": f"95 %, {'Wilson' if metric.rate else 'studentised bootstrap'}, over scenes",
            "results": {row["condition"]: {key: row[key] for key in ("mean", "low", "high", "n")} for row in mine},
            "controls": [row["condition"] for row in mine if row["condition"] not in NO_RIVALS],
        },
        "not_tested": _not_tested(config, facts),
    }


def in_words(model: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """:func:`threat_model` for the page: a section's title to names and values."""
    attacker, conditions, measured = (model[name] for name in BOX)
    data, patch, results = attacker["data"], attacker["patch"], measured["results"]
    known = f", behind {' and '.join(attacker['defences'])}, which the attacker knows" if attacker["defences"] else ""
    rows = {
        "attacker": [
            ("Knowledge", f"{attacker['knowledge']}; {attacker['queries']:,} queries"),
            ("Victim", " + ".join(attacker["victims"]) + known),
            ("Goal", f"{attacker['goal']} ({_words(attacker['settings'])})"),
            (
                "Data",
                f"{data['source']}: optimised on {data['training scenes']} scenes, "
                f"chosen on {data['validation scenes']} others",
            ),
            ("Patch", f"{patch['shape']}, {_times(patch['size_mm'])} mm on paper, {_times(patch['texels'])} texels"),
        ],
        "conditions": [
            ("Frame", f"{_times(conditions['frame_px'])} px"),
            ("Size", f"{_range(conditions['side_px'])} px a side, {_range(conditions['area_percent'])} % of the frame"),
            (
                "Distance",
                f"as a print {_range(conditions['distance_m'])} m from a camera that sees "
                f"{conditions['field_of_view']:g}°",
            ),
            ("Angle", f"{_range(conditions['rotation_degrees'])}° in the image"),
            ("Placement", _words(conditions["placement"])),
            ("Lies on", _words(conditions["bend"]) if conditions["bend"] else "a plane"),
            ("Light and print", _stack(conditions["appearance"])),
            ("Camera", _stack(conditions["camera"])),
        ],
        "measurement": [
            ("Sample", f"{measured['scenes']} held-out scenes × {measured['draws']} draws, seed {measured['seed']}"),
            ("Intervals", measured["intervals"]),
            ("Controls", ", ".join(CONDITIONS.get(name, name) for name in measured["controls"])),
            *(
                (CONDITIONS[name].capitalize(), f"{number(row['mean'])} [{number(row['low'])}, {number(row['high'])}]")
                for name, row in results.items()
                if name in ("clean", "random", "patch")
            ),
        ],
    }
    return {BOX[name]: rows[name] for name in BOX}


def _geometry(facts: RunFacts, sheet: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes, distances and angles at which the patch was seen, each as lowest and highest."""
    corners = facts.corners.double()
    height, width = facts.frame
    edges = corners.roll(-1, 1) - corners  # top, right, bottom, left
    x, y = corners.unbind(-1)
    area = (x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(1).abs() / 2 * float(facts.patch.mask.mean())
    seen = (edges[:, 0].norm(dim=-1) + edges[:, 2].norm(dim=-1)) / 2  # the width, which has a size on paper
    focal = width / 2 / math.tan(math.radians(sheet["field_of_view"]) / 2)
    top = edges[:, 0]
    return {
        "frame_px": [width, height],
        "side_px": _ends(edges.norm(dim=-1).mean(dim=1)),
        "area_percent": _ends(100 * area / (width * height)),
        "distance_m": _ends(focal * facts.patch.size_mm[0] / 1000 / seen),
        "field_of_view": sheet["field_of_view"],
        "rotation_degrees": _ends((-top[:, 1]).atan2(top[:, 0]).rad2deg()),
    }


def _not_tested(config: Mapping[str, Any], facts: RunFacts) -> list[str]:
    """What a reader may take for tested, each with the command that tests it."""
    placement = config["placement"]
    faced = "tilt" in placement and not any(placement.get(turn) for turn in ("tilt", "yaw", "pitch"))
    still = placement.get("motion") == "static" and facts.frames == 2
    missing = [*_unused(appearance, config["appearance"]), *_unused(camera, config["camera"])]
    return [
        "a real printer and camera: the printed and photographed patch is a model's (patchattack webcam)",
        f"any other network than {' and '.join(facts.victims)} (patchattack transfer)",
        "conditions beyond these ranges (patchattack evaluate)",
        *(["views from the side: the patch faced the camera (patchattack evaluate axes=[yaw,pitch])"] if faced else []),
        *([f"{', '.join(missing)}: not varied"] if missing else []),
        *([] if config["bend"] else ["cylinders and cloth: the patch was flat (patchattack evaluate bend=cloth)"]),
        *([] if config["defense"] else ["defences (patchattack defenses)"]),
        *(["a patch that moves with the scene"] if still else []),
        "decisions over time: every frame or pair of frames is judged alone",
    ]


def _unused(module: Any, chosen: Mapping[str, Any]) -> list[str]:
    """Transforms of a module that a config leaves out, in words."""
    known = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Transform)]
    used = {_class(node) for node in chosen.values()}
    names = [one.__name__ for one in known if one.__module__ == module.__name__ and one.__name__ not in used]
    return [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in names]


def _class(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _settings(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a part is and the options that are set."""
    options = {key: value for key, value in node.items() if not key.startswith("_") and value is not None}
    return {"is": _class(node), **options}


def _ends(values: Tensor) -> list[float]:
    return [float(f"{float(value):.4g}") for value in (values.min(), values.max())]


def _range(ends: list[float]) -> str:
    low, high = map(number, ends)
    return low if low == high else f"{low} to {high}"


def _times(sides: list[float]) -> str:
    return " × ".join(f"{side:g}" for side in sides)


def _words(settings: Mapping[str, Any]) -> str:
    """``Uniform: area 0.09, scale 0.95 to 1.05``."""
    said = [f"{key} {_value(value)}" for key, value in settings.items() if key != "is"]
    return f"{settings['is']}: {', '.join(said)}" if said else str(settings["is"])


def _value(value: Any) -> str:
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value)
    return f"{value[0]:g} to {value[1]:g}".replace("-", "−") if numbers else str(value)


def _stack(parts: Mapping[str, Any]) -> str:
    """``contrast 0.8 to 1.2; print noise 0.02``."""
    said = []
    for key, settings in parts.items():
        values = (_value(value) for option, value in settings.items() if option != "is")
        said.append(f"{key.replace('_', ' ')} {', '.join(values)}")
    return "; ".join(said) or "as in the scenes"
