"""The benefit of calibration: patches trained with and without it, printed and photographed alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from patchattack import assembly, files, pipeline, statistics
from patchattack.assembly import Parts
from patchattack.errors import InputError
from patchattack.evaluation import Row
from patchattack.patch import Patch, random_texture
from patchattack.rehearsal import rehearse
from patchattack.rehearsal.rehearse import Progress, RehearsalPlan
from patchattack.rehearsal.street import DriveBy, Lab
from patchattack.rehearsal.unknown import Unknown
from patchattack.reporting.calibration import CHANGES, PARTS, PATCHES, Gain, write_gain
from patchattack.statistics import FEWEST
from patchattack.studies.study import check_settings, publish_table, write_csv
from patchattack.webcam.camera_victim import camera_victims, select_victims
from patchattack.webcam.records import read
from patchattack.webcam.summary import SessionOrigin, by_stretch, percent

MOST_FRAMES = 10**7  # of a video; a damaged number is not to cost all memory
# Keys that may change between two calls that share a folder: no patch and no video depends on them.
_FREE = ("tracker", "experiment", "resume")


@dataclass(frozen=True)
class CalibrationStudy:
    """What is trained and rehearsed.

    Attributes:
        config: of ``train.py``, plain; beside it ``fitted``, the appearance that the calibration's file is given to,
            and ``size``, ``fps``, ``keep``, ``margin`` and ``independent`` of the rehearsals.
        build: makes the parts that a config describes.
        printers: seed of a training to that of its unknown printer and camera.
        shown: name to part of the rehearsal, ``lab`` and ``drive_by``.
        command: that was typed.

    Raises:
        InputError: several processes.
    """

    config: dict[str, Any]
    build: Callable[[dict[str, Any]], Parts]
    printers: Mapping[int, int]
    shown: Mapping[str, Lab | DriveBy]
    command: str

    def __post_init__(self) -> None:
        if (devices := self.config["trainer"]["devices"]) != 1:
            raise InputError(f"trainer.devices: expected 1, got {devices}; patches are trained in one process")


def pair(seeds: Sequence[int], printers: Sequence[int]) -> dict[int, int]:
    """Each seed with its printer.

    Raises:
        InputError: no seed, one twice, or another number of printers.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: expected one or more, each once, got {list(seeds)}")
    if len(printers) != len(seeds):
        raise InputError(f"printers: expected one for each of {len(seeds)} seeds, got {len(printers)}")
    return dict(zip(seeds, printers, strict=True))


def plans(study: CalibrationStudy, parts: Parts, fabric: Any) -> dict[int, RehearsalPlan]:
    """The rehearsal of each seed, with the random patch on the sheet.

    Raises:
        InputError: the parts do not fit together, or the sheet cannot be rehearsed.
    """
    assembly.assemble(parts, fabric)
    config, mask, size_mm = study.config, parts.patch.mask.cpu(), parts.patch.size_mm
    height, width = mask.shape[1:]
    asked = camera_victims(select_victims({}, parts.victim), parts.attack, fabric, config["margin"])[0]
    return {
        seed: rehearse.make_plan(
            asked,
            Patch(random_texture(height, width, seed), mask, size_mm),
            [parts.sheet.layout(size_mm)],
            parts.sheet,
            config["data"],
            Unknown.draw(printer),
            seed,
            **{key: config[key] for key in ("size", "fps", "keep", "independent")},
        )
        for seed, printer in study.printers.items()
    }


def measure(
    study: CalibrationStudy, plans: Mapping[int, RehearsalPlan], folder: Path, fabric: Any, progress: Progress = iter
) -> tuple[list[Row], dict[tuple[int, str], Patch]]:
    """Calibrate, train and rehearse what ``folder`` does not hold yet.

    Both patches of a seed are trained from the same start, in the same scenes and with the same random numbers; the
    calibrated one meets ``appearance=calibrated`` before the rest of the stack. The blur and the noise that the
    calibration knows are those of the camera's own pixels; of the many of them that make one of the victim's they
    leave nothing, so both have the camera of the config.

    Returns:
        Rows, and the patch by seed and name. Rows have seed (``all`` pools them), printer, part (``lab``,
        ``drive_by``), patch (of :data:`PATCHES`, or ``difference`` or ``lost``, as of :func:`won`, paired frame by
        frame), mean, low and high (95 %) of the success, n takes, which are what is independent, and frames; pooled
        differences also p of the sign-flip test, and p_adjusted over the parts (Holm).

    Raises:
        InputError: the folder holds what was made with other settings, or the chart cannot be read.
        DivergedError, VictimError, KeyboardInterrupt: what was done is kept.
    """
    patches: dict[tuple[int, str], Patch] = {}
    for seed, plan in tqdm(plans.items(), desc="seeds", unit="seed", dynamic_ncols=True):
        own = folder / f"seed_{seed}"
        made_with = {key: value for key, value in study.config.items() if key not in _FREE}
        check_settings(own, made_with | {"printer": plan.unknown.seed})
        patches[seed, "random"] = plan.setup.patch
        patches[seed, "without"] = _train_patch(study, seed, None, own / "without", fabric)
        calibration = own / "calibration.json"
        if not calibration.is_file():
            rehearse.calibrate(own, plan.unknown)
        patches[seed, "with"] = _train_patch(study, seed, calibration, own / "with", fabric)
        for name, words in PATCHES.items():
            place = own / name / "rehearsal"
            if (place / "rehearsal.json").is_file():  # the last of its files
                continue
            origin = SessionOrigin(
                title=f"Rehearsal of seed {seed}, {words}",
                setup=[("Printer and camera", f"simulated, number {plan.unknown.seed}")],
                command=study.command,
                versions=pipeline.versions(),
            )
            on_paper = replace(plan, setup=replace(plan.setup, patch=patches[seed, name]))
            rehearse.rehearse(on_paper, dict(study.shown), place, origin, progress)
    return _rows(study, folder), patches


def _train_patch(study: CalibrationStudy, seed: int, calibration: Path | None, place: Path, fabric: Any) -> Patch:
    """The patch of a run in ``place``, which is trained, or resumed where it is not complete."""
    if not (place / "report.html").is_file():  # the last of its files
        config = copy.deepcopy(study.config)
        config["seed"] = config["patch"]["seed"] = seed
        if calibration is not None:
            others = {key: one for key, one in config["appearance"].items() if key != "calibrated"}
            fitted = config["fitted"]["calibrated"] | {"file": str(calibration)}
            config["appearance"] = config["renderer"]["appearance"] = {"calibrated": fitted, **others}
        begun = (place / "checkpoint.safetensors").is_file()
        parts = study.build(config)
        job = assembly.assemble(parts, fabric, place if begun else None)
        pipeline.run(parts, job, place, pipeline.Origin(config, study.command), resumes=begun)
    return Patch.load(place / "patch.png")


def _rows(study: CalibrationStudy, folder: Path) -> list[Row]:
    """Of every seed and of all together."""
    rows: list[Row] = []
    for part in study.shown:
        pooled: dict[str, list[np.ndarray]] = {}
        frames: dict[str, int] = {}
        for seed, printer in study.printers.items():
            success, take = camera_results(folder / f"seed_{seed}", part)
            for name, values in success.items():
                takes, known = by_stretch(values, take), int((~np.isnan(values)).sum())
                rows.append({"seed": seed, "printer": printer, "part": part} | _row(name, takes, known))
                pooled.setdefault(name, []).append(takes)
                frames[name] = frames.get(name, 0) + known
        for name, several in pooled.items():
            takes = np.concatenate(several)
            row: Row = {"seed": "all", "printer": "", "part": part} | _row(name, takes, frames[name])
            if name == "difference":
                row["p"] = statistics.sign_flip(takes)
            rows.append(row)
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, statistics.holm([row["p"] for row in tested]), strict=True):
        row["p_adjusted"] = p
    return rows


def _row(name: str, takes: np.ndarray, frames: int) -> Row:
    # A take's difference is a fraction of its frames; so they are resampled, as by the evaluator.
    return {"patch": name} | statistics.estimate(takes, rate=name in PATCHES) | {"frames": frames}


def camera_results(folder: Path, part: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the camera has seen of a seed's patches in one part of the rehearsal.

    Returns:
        ``[n]`` for each frame of the video, NaN where nothing was measured: the success of each of the patches,
        ``difference``, with minus without, and ``lost``, digital minus printed, of the patch without; and ``[n]``, the
        number of the frame's take.
    """
    places = {name: folder / name / "rehearsal" / part for name in PATCHES}
    truth = places["random"] / "truth.csv"
    shown = read(truth, ["frame"])["frame"]
    if not (len(shown) and shown[0] >= 0 and (np.diff(shown) > 0).all() and shown[-1] < MOST_FRAMES):
        raise InputError(f"{truth}: expected the frames of a video in their order, got others; measure again")
    frames = np.arange(shown[-1] + 1)
    take = np.searchsorted(shown[:-1][np.diff(shown) > 1], frames)  # between two takes there is a black frame

    def success(path: Path) -> np.ndarray:
        records = read(path, ["frame", "success"])
        if not np.isin(records["frame"], frames).all():
            raise InputError(f"{path}: expected frames of {truth}, got others; measure again")
        values = np.full(len(frames), np.nan)
        values[records["frame"].astype(int)] = records["success"]
        return values

    found = {name: success(place / "frames.csv") for name, place in places.items()}
    found["difference"] = found["with"] - found["without"]
    found["lost"] = success(places["without"] / "predicted.csv") - found["without"]
    return found, take


def verdict(rows: Sequence[Row]) -> str:
    """Whether it pays, beyond chance, in each part of the rehearsal."""
    pooled = {(row["part"], row["patch"]): row for row in rows if row["seed"] == "all"}
    said = []
    for part, words in PARTS.items():
        row = pooled[part, "difference"]
        if row["n"] < FEWEST:
            said.append(f"cannot be judged {words}: {row['n']} takes are too few")
            continue
        pays = statistics.effect(row["low"], row["p_adjusted"])
        costs = statistics.effect(-row["high"], row["p_adjusted"])
        shares = [f"{percent(pooled[part, name]['mean'])} {name} it" for name in ("with", "without")]
        change = f"{percent(row['mean'], '+')} [{percent(row['low'], '+')}, {percent(row['high'], '+')}]"
        verb = "pays" if pays else "costs" if costs else "makes no difference beyond chance"
        said.append(f"{verb} {words}: of the frames the patch wins {' and '.join(shares)}, {change}")
    return f"Calibrating {'. It '.join(said)}."


def publish(
    study: CalibrationStudy,
    plans: Mapping[int, RehearsalPlan],
    rows: Sequence[Row],
    patches: Mapping[tuple[int, str], Patch],
    folder: Path,
) -> str:
    """Write ``results.json``, ``results.csv``, ``report.html`` and ``table.tex``, and return the table in Markdown."""
    files.write_json(folder / "results.json", rows)
    write_csv(folder / "results.csv", rows)
    first = next(iter(plans.values()))
    (asked,) = first.setup.trials
    settings = study.config["trainer"]
    gain = Gain(
        title=f"The benefit of calibration: a {asked.attack.task} patch against {asked.name}",
        verdict=verdict(rows),
        rule=asked.rule[0].upper() + asked.rule[1:],
        rows=rows,
        patches={
            f"seed {seed}, {PATCHES[name]}": _print_comparison(patch, plans[seed].unknown)
            for (seed, name), patch in patches.items()
        },
        setup=[
            ("Victim", asked.name),
            ("Printers", ", ".join(f"{printer} of seed {seed}" for seed, printer in study.printers.items())),
            (
                "Training",
                f"{settings['steps']} steps of {settings['batch']} × {settings['draws']} views for each patch",
            ),
            ("World", rehearse.world(first.street)),
            ("Appearance", ", ".join(study.config["appearance"]) or "none"),
            ("Camera", ", ".join(study.config["camera"]) or "none"),
        ],
        command=study.command,
        versions=pipeline.versions(),
    )
    write_gain(folder / "report.html", gain)
    return _publish_table(folder, gain)


def _print_comparison(patch: Patch, unknown: Unknown) -> Tensor:
    """``[4, h, 2 w]``: what the printer is told, and what it prints."""
    told = patch().detach().cpu()
    pixels = (told.permute(1, 2, 0) * 255).round().byte().numpy()
    shown = torch.from_numpy(unknown.print_image(pixels)).permute(2, 0, 1)
    return torch.cat([torch.cat([told, shown], dim=2), patch.mask.cpu().repeat(1, 1, 2)])


def _publish_table(folder: Path, gain: Gain) -> str:
    heads = ["seed", "part", *PATCHES.values(), *CHANGES.values()]
    lines = [
        [
            *(str(seed), part.replace("_", "-")),
            *(statistics.with_interval(cells[name], 2) for name in PATCHES),
            *(statistics.with_interval(cells[name], 2, "+") for name in CHANGES),
        ]
        for (seed, part), cells in gain.cells().items()
    ]
    note = f"Success: mean and 95 % interval over takes. {gain.rule}."
    return publish_table(folder, heads, lines, 2, gain.verdict, note)
