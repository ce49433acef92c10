"""A patch with the whole set-up and one without each ingredient, from the command line."""

from __future__ import annotations

import copy
import csv
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from patchattack import files, statistics
from patchattack.cli.checks import check_types
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.studies import study
from patchattack.studies.ablation import AblationStudy, Line, variants, verdict
from patchattack.tracking import NullTracker

MEDIA = ("digital", "printed")
CONTROLS = ["clean", "grey", "white", "black", "drawn", "random"]
CONFIG: dict[str, Any] = {
    "renderer": {
        "placement": {"rotation": [-10, 10], "scale": [0.9, 1.1]},
        "appearance": {"contrast": {"range": [0.8, 1.2]}},
        "camera": {"jpeg": {"range": [50, 95]}},
        "whole_frame": False,
    },
    "regularizers": {"tv": {"weight": 1e-4}, "nps": {"weight": 0.01}},
    "patch": {"resolution": 8, "seed": 3},
    "attack": {"weights": "even"},
    "optimizer": {"lr": 0.1},
    "schedule": {"T_max": 400},
    "trainer": {"grow": 1.0, "devices": 1, "split": [0.6, 0.1, 0.3]},
    "seed": 3,
}


@pytest.fixture(scope="module")
def base(tiny: tuple[str, ...]) -> tuple[str, ...]:
    return ("attack=flow", "victim=flow_matching", "camera=[jpeg]", *tiny)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any], base: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "table"
    outcome = command(*base, "only=[without_camera,without_defocus]", f"output={folder}", entry="ablate")
    assert outcome.status == 0, outcome.err
    assert "left out: without_defocus (the set-up is the same: no camera.defocus)" in outcome.err
    return folder


def test_every_patch_stands_beside_the_whole_set_up(table: Path) -> None:
    rows = json.loads((table / "ablations.json").read_text())
    trained = ["whole_set_up", "another_seed", "without_camera"]
    assert [(row["medium"], row["patch"]) for row in rows] == [
        (medium, name) for medium in MEDIA for name in CONTROLS + trained
    ]
    assert {row["n"] for row in rows} == {2}
    means = {(row["patch"], row["medium"]): row["mean"] for row in rows}
    # The primary metric is a cosine: the stronger patch has the lower one, and its difference is positive.
    tested = [row for row in rows if "p" in row]
    assert [row["patch"] for row in tested] == trained[1:] * 2
    for row in tested:
        expected = means["whole_set_up", row["medium"]] - means[row["patch"], row["medium"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
    assert [row["p_adjusted"] for row in tested] == statistics.holm([row["p"] for row in tested])
    # What is rendered differs between the media; without a patch nothing is.
    assert means["clean", "digital"] == means["clean", "printed"]
    assert means["white", "digital"] != means["white", "printed"]
    with (table / "ablations.csv").open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [row["mean"] for row in rows]


def test_patches_are_trained_without_their_ingredient_and_from_the_same_start(table: Path) -> None:
    saved = {place.name: place for place in (table / "patches").iterdir()}
    assert saved.keys() == {"whole_set_up", "another_seed", "without_camera"}
    assert len({(place / "checkpoint.safetensors").read_bytes() for place in saved.values()}) == 3
    assert json.loads((saved["another_seed"] / "patch.json").read_text())["seed"] == 1
    assert json.loads((saved["without_camera"] / "patch.json").read_text())["seed"] == 0


def test_the_report_shows_them(table: Path) -> None:
    page = (table / "report.html").read_text()
    assert all(f"<th>{name}<small>" in page for name in ("whole set-up", "another seed", "without camera"))
    assert "no camera" in page
    assert "2 held-out scenes are too few" in page
    assert page.count("<svg") == 2
    assert page.count("data:image/png") == 3
    assert "<script" not in page
    assert "https://" not in page


def test_more_ablations_join_what_is_there(
    table: Path, tmp_path: Path, command: Callable[..., Any], base: tuple[str, ...]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (table / "patches").glob("*/patch.png")}
    old = json.loads((table / "ablations.json").read_text())
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "more.yaml").write_text("steady: {placement.scale: [1, 1]}\n")
    outcome = command(
        *(*base, "only=[without_camera,upright,steady]", f"output={table}"),
        *("+ablations=more", "+ablations.upright={placement.rotation:[0,0]}", f"--config-dir={tmp_path}"),
        entry="ablate",
    )
    assert outcome.status == 0, outcome.err
    said = outcome.out + outcome.err
    assert "training upright" in said
    assert "training steady" in said
    assert "training without_camera" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # Measured again, the numbers are the same; only the correction is for more of them.
    new = {(row["patch"], row["medium"]): row for row in json.loads((table / "ablations.json").read_text())}
    kept = [{key: value for key, value in row.items() if key != "p_adjusted"} for row in old]
    assert kept == [
        {key: value for key, value in new[row["patch"], row["medium"]].items() if key != "p_adjusted"} for row in old
    ]
    lines = [line for line in outcome.out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(CONTROLS) + 5


def test_an_interrupted_training_goes_on_to_the_bit(
    table: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    base: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stops(NullTracker):
        def log(self, step: int, scalars: dict[str, float], images: Any = None) -> None:
            if step == 1 and self.folder.name == "without_camera":
                signal.raise_signal(signal.SIGINT)

        def __init__(self, folder: Path, config: dict[str, Any]) -> None:
            super().__init__(folder, config)
            self.folder = folder

    given = (*base, "only=[without_camera]", f"output={tmp_path}")
    with monkeypatch.context() as patches:
        patches.setattr(study, "NullTracker", Stops)
        outcome = command(*given, entry="ablate")
    assert outcome.status == 130, outcome.err
    assert "\ninterrupted after step 1 of 4. Resume with: patchattack ablate attack=flow" in outcome.out
    assert outcome.out.count(f"output={tmp_path}") == 1
    assert not (tmp_path / "ablations.json").exists()

    outcome = command(*given, entry="ablate")
    assert outcome.status == 0, outcome.err
    said = outcome.out + outcome.err
    assert "training whole_set_up" not in said
    assert "training without_camera" in said
    for name in ("whole_set_up", "without_camera"):
        for file in (f"patches/{name}/patch.png", f"patches/{name}/checkpoint.safetensors"):
            assert (tmp_path / file).read_bytes() == (table / file).read_bytes()


def test_other_settings_do_not_join(table: Path, command: Callable[..., Any], base: tuple[str, ...]) -> None:
    given = (*base, "only=[without_camera]", f"output={table}")
    for override in ("optimizer.lr=0.5", "+ablations.without_camera={camera.sensor_noise:null}"):
        outcome = command(*given, override, entry="ablate")
        assert outcome.status == 2
        line = outcome.err.splitlines()[-1]
        assert line.startswith(f"patchattack: {table / 'patches'}")
        assert "expected the settings that it was made with, got other ones: " in line
    # How many scenes are measured, and what is printed, changes no patch.
    outcome = command(*given, "trainer.test_draws=1", "camera@printed.camera=[jpeg]", entry="ablate")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("only=[without_tvv]", "only: expected a list of without_nps, without_tv,"),
        ("only=without_tv", "only: expected a list of without_nps"),
        ("+ablations.mine={placement.rotation:[9,0]}", "placement.rotation: expected [low, high]"),
        ("only=[without_tv] printed.camera.jpeg.range=[95,50]", "camera.jpeg.range: expected [low, high]"),
        ("seed=-1 data.seed=0", "seed: expected an integer >= 0, got -1"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, command: Callable[..., Any], base: tuple[str, ...], given: str, message: str
) -> None:
    outcome = command(*base, *given.split(), f"output={tmp_path / 'table'}", entry="ablate")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "table" / "patches").exists()


def test_scenes_that_nobody_can_win_are_refused(
    tmp_path: Path, command: Callable[..., Any], base: tuple[str, ...]
) -> None:
    # The untrained network puts every sign into one class: none is its own.
    options = ("attack=classification", "attack.goal=untargeted", "data.size=[32,32]")
    kept = [one for one in base if not one.startswith(("attack", "victim=", "data.size"))]
    outcome = command(*kept, *options, f"output={tmp_path}", entry="ablate")
    assert outcome.status == 2
    assert "data: expected test scenes that a patch can win from classifier_residual, got 2" in outcome.err
    assert not (tmp_path / "patches").exists()


def trial(ablations: dict[str, Any], config: dict[str, Any] = CONFIG) -> AblationStudy:
    """Of parts that remember what they were to be made of."""

    def build(node: dict[str, Any]) -> Any:
        patch = Patch.create(resolution=node.get("resolution", 8), size_mm=node.get("size_mm", 60))
        settings = {"processes": node.get("devices"), "split": node.get("split"), "memory_gb": 0.0}
        return SimpleNamespace(made_of=copy.deepcopy(node), mask=patch.mask, size_mm=patch.size_mm, **settings)

    shared: dict[str, Any] = {name: SimpleNamespace(classes=()) for name in ("victim", "source", "tracker", "sheet")}
    return AblationStudy(shared, copy.deepcopy(config), ablations, {}, build, "patchattack ablate attack=flow")


def made(name: str, sets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What renderer and regularizers of one ablation are made of."""
    parts = variants(trial({name: sets}))[0][name].parts
    return parts.renderer.made_of, parts.regularizers.made_of  # type: ignore[attr-defined]


def test_an_ablation_changes_its_keys_and_nothing_else() -> None:
    renderer, regularizers = made("a", {"regularizers.nps": None})
    assert list(regularizers) == ["tv"]
    assert renderer == CONFIG["renderer"]

    renderer, regularizers = made("a", {"camera": {}, "placement.rotation": [0, 0], "renderer.whole_frame": True})
    assert renderer["camera"] == {}
    assert renderer["placement"] == {"rotation": [0, 0], "scale": [0.9, 1.1]}
    assert renderer["whole_frame"] is True
    assert renderer["appearance"] == CONFIG["renderer"]["appearance"]
    assert regularizers == CONFIG["regularizers"]


def test_the_search_and_the_loss_can_be_ablated() -> None:
    sets = {"attack.weights": "cospgd", "trainer.grow": 4.0, "optimizer.lr": 0.05}
    changed, whole = (variants(trial({"a": sets}))[0][name].parts for name in ("a", "whole_set_up"))
    for parts, values in ((changed, ("cospgd", 4.0, 0.05)), (whole, ("even", 1.0, 0.1))):
        made: Any = parts
        found = made.attack.made_of["weights"], made.settings.made_of["grow"], made.optimizer.made_of["lr"]
        assert found == values


def test_what_is_new_comes_first_and_what_is_there_keeps_its_place() -> None:
    renderer, regularizers = made("a", {"appearance.calibrated": {"file": "default"}, "regularizers.tv": {"weight": 1}})
    assert list(renderer["appearance"]) == ["calibrated", "contrast"]
    assert list(regularizers) == ["tv", "nps"]
    assert regularizers["tv"] == {"weight": 1}


def test_the_whole_set_up_is_trained_again_from_another_seed() -> None:
    found, left_out = variants(trial({"a": {"camera": {}}, "same": {"camera.shadow": None}}))
    assert list(found) == ["whole_set_up", "another_seed", "a"]
    assert [one.parts.seed for one in found.values()] == [3, 4, 3]
    starts: list[Any] = [one.parts.patch.made_of for one in found.values()]
    assert [start["seed"] for start in starts] == [3, 4, 3]
    assert left_out == ["same (the set-up is the same: no camera.shadow)"]


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("mine", {"placement.rotaton": [0, 0]}, "expected a key of the set-up, got placement.rotaton; it has rotation"),
        ("mine", {"camera.shadow.range": [0, 1]}, "a key of the set-up, got camera.shadow.range; it has jpeg"),
        ("mine", {"regularizer.tv": None}, "expected a key of the set-up, got regularizer.tv; it has regularizers"),
        ("mine", "upright", "ablations.mine: expected keys and values"),
        ("mine", {"camera.shadow": None}, "expected at least one that changes the set-up, got mine (the set-up is the"),
        ("mine", {"patch.resolution": 9}, "ablations.mine: expected a patch in the whole set-up's shape"),
        ("mine", {"patch.size_mm": 50}, "ablations.mine: expected a patch in the whole set-up's shape"),
        ("mine", {"trainer.split": [0.5, 0.2, 0.3]}, "ablations.mine: expected the whole set-up's trainer.split"),
        ("random", {"camera": {}}, "expected a name of its own that can name a folder, got random"),
        ("whole_set_up", {"camera": {}}, "expected a name of its own that can name a folder, got whole_set_up"),
        ("a/b", {"camera": {}}, "expected a name of its own that can name a folder, got a/b"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused(name: str, sets: Any, message: str) -> None:
    config = copy.deepcopy(CONFIG)
    config["patch"]["size_mm"] = 60
    with pytest.raises(InputError, match=re.escape(message)):
        variants(trial({name: sets}, config))


def test_several_processes_are_refused() -> None:
    config = copy.deepcopy(CONFIG)
    config["trainer"]["devices"] = 2
    several = trial({"a": {"camera": {}}}, config)
    with pytest.raises(InputError, match=r"trainer\.devices: expected 1, got 2"):
        variants(several)


def test_every_shipped_ablation_fits_every_placement() -> None:
    with initialize_config_dir(str(files.package_folder("conf").resolve()), version_base="1.3"):
        for overrides in (["attack=flow"], ["attack=detection"], ["attack=classification", "placement=brown"]):
            config = compose("ablate", overrides)
            check_types(OmegaConf.to_container(config))
            plain: Any = OmegaConf.to_container(config, resolve=True)
            whole = {key: plain[key] for key in CONFIG}
            found, left_out = variants(trial(plain["ablations"], whole))
            assert len(found) + len(left_out) == 2 + len(plain["ablations"])
            unprinted: Any = found["without_print"].parts.renderer
            assert list(unprinted.made_of["appearance"]) == ["contrast", "brightness"]
            sharp: Any = found["without_defocus"].parts.renderer
            assert list(sharp.made_of["camera"]) == ["sensor_noise"]
            bare: Any = found["without_eot"].parts.renderer
            assert (bare.made_of["appearance"], bare.made_of["camera"]) == ({}, {})
            assert list(plain["printed"]["appearance"]) == ["calibrated", "print_noise"]
            assert list(plain["printed"]["camera"]) == ["defocus", "sensor_noise", "jpeg"]


def line(name: str, role: str, difference: float, half: float, p: float, n: int = 48) -> Line:
    cell = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": n, "difference": difference, "p_adjusted": p}
    cell |= {"difference_low": difference - half, "difference_high": difference + half}
    calm = cell | {"difference": 0.0, "difference_low": -half, "difference_high": half, "p_adjusted": 1.0}
    return Line(name, "", role, {"digital": cell, "printed": calm})


def test_an_ablation_counts_beyond_chance_and_beyond_another_seed() -> None:
    again = line("another seed", "again", -0.1, 0.05, 0.01)
    calm = "As printed and photographed: no ablation changes the patch beyond chance."
    for difference, half, p, said in (
        (-0.3, 0.1, 0.01, "weaker without tv"),
        (0.3, 0.1, 0.01, "stronger without tv"),
        (-0.3, 0.4, 0.01, "no ablation changes the patch beyond chance"),  # the interval holds zero
        (-0.3, 0.1, 0.06, "no ablation changes the patch beyond chance"),
        (-0.09, 0.01, 0.01, "no ablation changes the patch beyond chance"),  # another seed does as much
    ):
        assert verdict([again, line("without tv", "ablation", difference, half, p)]) == f"Digital: {said}. {calm}"
    assert verdict([line("", "again", 0, 0, 1, n=5)]) == (
        "Inconclusive: 5 held-out scenes are too few (at least 6 are needed)."
    )
