from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack import geometry
from patchattack.attacks.attack import Metric
from patchattack.attacks.flow import FlowAttack
from patchattack.eot.appearance import Brightness, Hue
from patchattack.eot.bend import Cylinder
from patchattack.eot.camera import Defocus, SensorNoise
from patchattack.eot.placement import OnSurface, Uniform
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError, VictimError
from patchattack.evaluation import Evaluator
from patchattack.job import TEST, Settings
from patchattack.patch import Patch, write_png
from patchattack.runs import load_image
from patchattack.scene import Scene, Source
from patchattack.statistics import sign_flip
from patchattack.studies.study import check_settings
from patchattack.studies.sweep import bench, extremes, measure, summary
from patchattack.studies.sweep.axis import Axis, points
from patchattack.victims.victim import FlowVictim

SIZE = (24, 32)
CONTROLS = ("grey", "white", "black", "mean", "shuffled", "natural", "drawn", "random")
TARGETS = {
    "renderer": Renderer,
    "uniform": Uniform,
    "cylinder": Cylinder,
    "surface": OnSurface,
    "brightness": Brightness,
    "hue": Hue,
    "defocus": Defocus,
    "noise": SensorNoise,
}


def config() -> dict[str, Any]:
    return {
        "_target_": "renderer",
        "placement": {
            "_target_": "uniform",
            "side": 0.5,
            "area": None,
            "rotation": [-10, 10],
            "x": [0, 1],
            "y": [0, 1],
        },
        "bend": {"_target_": "cylinder"},
        "appearance": {"hue": {"_target_": "hue"}},
        "camera": {"noise": {"_target_": "noise", "range": [0.0, 0.02]}},
    }


def build(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    made = {key: build(value) for key, value in node.items() if key != "_target_"}
    return TARGETS[node["_target_"]](**made) if "_target_" in node else made


def axis(kind: str = "line", **options: Any) -> Axis:
    known: dict[str, Any] = {"label": "what is varied", "levels": [0.25, 1], "sets": {}, "adds": {}, "placed": None}
    return Axis(kind=kind, **(known | {"breaks": False} | options))


SIDE = axis(levels=[0.25, 0.75], sets={"placement.side": "level"})
BLUR = axis(
    levels=[1, 2],
    sets={"camera.defocus.range": ["level", "level"]},
    adds={"camera": {"defocus": {"_target_": "defocus", "range": [0.1, 0.2]}}},
)


# Axes and points


def test_a_line_sets_each_number() -> None:
    one = axis(levels=[1, 2.5], sets={"placement.rotation": ["level", "level"], "placement.area": None})
    assert one.steps() == [
        (1.0, {"placement.rotation": [1.0, 1.0], "placement.area": None}),
        (2.5, {"placement.rotation": [2.5, 2.5], "placement.area": None}),
    ]


def test_a_grid_goes_from_edge_to_edge() -> None:
    one = axis("grid", levels=[2, 3], sets={"placement.y": ["row", "row"], "placement.x": ["column", "column"]})
    levels, sets = zip(*one.steps(), strict=True)
    assert levels == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    assert sets[1] == {"placement.y": [0.0, 0.0], "placement.x": [0.5, 0.5]}
    assert sets[5] == {"placement.y": [1.0, 1.0], "placement.x": [1.0, 1.0]}


def test_a_half_sphere_has_every_azimuth_of_each_polar_angle_and_the_front_once() -> None:
    one = axis("half_sphere", levels=[0, 40], sets={"placement.pitch": ["pitch", "pitch"], "placement.yaw": ["yaw"]})
    steps = dict(one.steps())
    assert [*steps] == [(0.0, 0), *((40.0, azimuth) for azimuth in range(0, 360, 45))]
    assert steps[40.0, 0] == {"placement.pitch": [0.0, 0.0], "placement.yaw": [40.0]}  # a camera on the right
    assert steps[40.0, 90] == {"placement.pitch": [40.0, 40.0], "placement.yaw": [0.0]}  # one above
    assert steps[40.0, 225]["placement.yaw"][0] == pytest.approx(-40 / math.sqrt(2))


def test_the_patchs_normal_leans_by_the_polar_angle_towards_the_camera() -> None:
    """Of a camera on the right and above, the right and the upper edge are nearer."""
    one = axis("half_sphere", levels=[50], sets={"pitch": "pitch", "yaw": "yaw"})
    for (polar, azimuth), sets in one.steps():
        turn = geometry.rotation(torch.tensor([sets["pitch"], sets["yaw"], 0.0], dtype=torch.float64))
        assert math.degrees(math.acos(turn[2, 2])) == pytest.approx(polar)
        way = math.radians(azimuth)
        side = turn @ torch.tensor([math.cos(way), -math.sin(way), 0.0], dtype=torch.float64)  # y points down
        assert side[2] == pytest.approx(-math.sin(math.radians(polar)))  # z points away from the camera


def test_a_category_sets_what_each_name_says() -> None:
    one = axis("category", levels={"off": {"camera.noise": None}, "on": {}}, sets={"placement.side": 0.3})
    assert one.steps() == [
        ("off", {"placement.side": 0.3, "camera.noise": None}),
        ("on", {"placement.side": 0.3}),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "circle"}, "expected kind of line, grid, half_sphere, category"),
        ({"placed": "wall"}, "placed of frame, surface or null, got line and wall"),
        ({"levels": []}, "expected at least one level"),
        ({"levels": {"a": {}}}, "expected numbers as levels"),
        ({"kind": "category"}, "expected names with what they set"),
        ({"kind": "grid", "levels": [3]}, "expected the rows and columns of its grid"),
        ({"kind": "grid", "levels": [0, 2]}, "expected the rows and columns of its grid"),
        ({"kind": "half_sphere", "levels": [20], "breaks": True}, "expected kind=line where breaks=true"),
    ],
)
def test_axes_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        axis(**options)


def test_each_axis_is_varied_by_itself_around_the_runs_own_ranges() -> None:
    own = config()
    found = points({"side": SIDE, "blur": BLUR}, own, build)
    assert own == config()
    assert [(one.axis, one.level, one.text) for one in found] == [
        ("baseline", "", ""),
        ("side", 0.25, "0.25"),
        ("side", 0.75, "0.75"),
        ("blur", 1.0, "1"),
        ("blur", 2.0, "2"),
    ]
    assert found[0].config == own
    assert [one.config["placement"]["side"] for one in found] == [0.5, 0.25, 0.75, 0.5, 0.5]
    assert isinstance(found[1].renderer.placement, Uniform)
    assert found[1].renderer.placement.side == 0.25
    # What the run does not have comes last, so that the draws of the others stay.
    assert found[3].transforms == ["appearance.hue", "camera.noise", "camera.defocus"]
    (blur,) = found[4].renderer.camera[1:]
    assert isinstance(blur, Defocus)
    assert blur.range == (2, 2)


def test_a_transform_that_the_run_has_is_changed_where_it_stands_and_null_takes_it_away() -> None:
    own = config() | {"camera": {"defocus": {"_target_": "defocus", "range": [1, 3]}, "noise": {"_target_": "noise"}}}
    off = axis("category", levels={"off": {"camera.noise": None}})
    found = points({"blur": BLUR, "noise": off}, own, build)
    assert found[1].transforms == ["appearance.hue", "camera.defocus", "camera.noise"]
    assert found[1].config["camera"]["defocus"]["range"] == [1.0, 1.0]
    assert found[3].transforms == ["appearance.hue", "camera.defocus"]


def test_a_factorial_sweep_crosses_the_axes() -> None:
    found = points({"side": SIDE, "blur": BLUR}, config(), build, factorial=True)
    assert [(one.axis, one.level) for one in found] == [
        ("baseline", ""),
        *[("side × blur", f"{side} × {blur}") for side in ("0.25", "0.75") for blur in ("1", "2")],
    ]
    assert found[2].config["placement"]["side"] == 0.25
    assert found[2].config["camera"]["defocus"]["range"] == [2.0, 2.0]
    assert len(points({}, config(), build, factorial=True)) == 1


@pytest.mark.parametrize("key", ["placement.sides", "placements.side", "camera.defocus.range"])
def test_a_key_that_the_renderer_does_not_have_is_told(key: str) -> None:
    baseline, *others = points({"side": axis(sets={key: ["level", "level"]})}, config(), build)
    assert baseline.missing is None
    assert [one.missing for one in others] == [key, key]
    crossed = points({"blur": BLUR, "side": axis(sets={key: ["level", "level"]})}, config(), build, factorial=True)
    assert {one.missing for one in crossed[1:]} == ({None} if key == "camera.defocus.range" else {key})


# Measuring


class Pictures(Source):
    """Scenes of random pictures, the same whenever they are asked for."""

    def __init__(self, count: int = 20, surface: bool = False) -> None:
        self.count, self.surface = count, surface

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        generator = torch.Generator().manual_seed(index)
        frames = torch.randint(0, 256, (1, 2, 3, *SIZE), generator=generator, dtype=torch.uint8)
        square = torch.tensor([[2.0, 2.0], [20.0, 2.0], [20.0, 20.0], [2.0, 20.0]]).expand(1, 2, 4, 2)
        return Scene(frames, torch.tensor([index]), surface=square if self.surface else None)


class Colours(FlowVictim):
    """Flow from colours alone."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__(torch.nn.Identity(), "colours")
        self.strength = strength

    def flow(self, frames: Tensor) -> Tensor:
        spread = torch.nn.functional.avg_pool2d(frames.flatten(1, 2), 5, 1, 2)
        return self.strength * torch.stack([spread[:, 0] - spread[:, 4] + 0.3, spread[:, 2] * 3 - 1], dim=1)


class Host:
    """As much of Lightning Fabric as there is on one host."""

    device = torch.device("cpu")
    global_rank, world_size = 0, 1

    def autocast(self) -> Any:
        return nullcontext()

    def all_reduce(self, data: Any, *, reduce_op: str) -> Any:
        return data


def sweep(axes: Mapping[str, Axis] | None = None, scenes: int = 3, draws: int = 2, **options: Any) -> bench.Sweep:
    known: dict[str, Any] = {
        "attack": FlowAttack(still=0.05),
        "source": Pictures(),
        "victims": {"colours": Colours()},
        "patches": {"random": Patch.create(resolution=8, seed=5)},
        "points": points({"side": SIDE, "blur": BLUR} if axes is None else axes, config(), build),
        "settings": Settings(steps=1, batch=1, test_scenes=scenes, test_draws=draws),
        "seed": 7,
    }
    return bench.Sweep(**(known | options))


def table_of(one: bench.Sweep) -> measure.ViewTable:
    found = bench.benches(one, Host())
    return measure.ViewTable(found, bench.fitting(one.points, found)[0])


def views(folder: Path, table: measure.ViewTable, batch: int = 4, workers: int = 1) -> bytes:
    check_settings(folder, measure.plan(table))
    measure.begin(folder, table)
    measure.measure(folder, table, 0, batch, workers)
    return (folder / "views.csv").read_bytes()


def test_the_table_has_a_row_for_every_condition_of_every_view_with_all_that_was_drawn(tmp_path: Path) -> None:
    one = sweep()
    table = table_of(one)
    rows = list(csv.DictReader(views(tmp_path, table).decode().splitlines()))
    conditions = ["clean", *CONTROLS, "patch"]
    assert [row["condition"] for row in rows[:10]] == conditions
    assert len(rows) == 5 * 3 * 2 * 10 == table.views()
    numbers = one.settings.split_indices(20)[2]
    first = [(row["axis"], row["level"], int(row["scene"]), int(row["draw"])) for row in rows[::10]]
    levels = [("baseline", ""), ("side", "0.25"), ("side", "0.75"), ("blur", "1"), ("blur", "2")]
    assert first == [(*level, number, draw) for level in levels for number in numbers for draw in range(2)]
    # Everything that was drawn is the same for all conditions of a view.
    drawn = [name for name in table.columns if name in measure.CORNERS or ("." in name and "/" not in name)]
    hue, bend = (["appearance.hue.0", "appearance.hue.1"], ["bend.0", "bend.1"])
    assert drawn[8:] == [*hue, "camera.noise", *bend, "camera.defocus"]
    assert all(rows[0][name] == rows[9][name] for name in drawn)
    assert rows[0]["camera.defocus"] == ""
    assert rows[-1]["camera.defocus"] == "2"
    side = {row["level"]: float(row["x1"]) - float(row["x0"]) for row in rows if row["axis"] == "side"}
    assert side["0.25"] < 8 < 16 < side["0.75"]


def test_the_numbers_are_those_of_the_evaluator_under_the_same_draws(tmp_path: Path) -> None:
    one = sweep(axes={})
    table = table_of(one)
    (bench,) = table.benches
    rows = list(csv.DictReader(views(tmp_path, table).decode().splitlines()))
    evaluator = Evaluator(
        bench.predict,
        bench.attack,
        one.points[0].renderer,
        bench.references,
        bench.patch,
        bench.source,
        bench.device,
        (one.seed, TEST),
    )
    expected = evaluator.measure({"patch": bench.textures["patch"]}, bench.indices, repetitions=2, batch=1)
    for condition in ("patch", "clean"):
        mine = [float(row["cosine/outside"]) for row in rows if row["condition"] == condition]
        theirs = [each.metrics["cosine", "outside"] for each in expected if each.condition == condition]
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


def test_the_bytes_do_not_depend_on_the_batch_or_the_processes(tmp_path: Path) -> None:
    one = views(tmp_path / "one", table_of(sweep()), batch=1)
    assert views(tmp_path / "many", table_of(sweep()), batch=32) == one
    assert views(tmp_path / "two", table_of(sweep()), batch=3, workers=2) == one
    assert views(tmp_path / "seed", table_of(sweep(seed=8))) != one


@pytest.mark.parametrize("workers", [1, 2])
def test_a_victim_that_fails_midway_is_said_in_one_line(tmp_path: Path, workers: int) -> None:
    victim = Colours()
    table = table_of(sweep(victims={"colours": victim}))
    victim.strength = None  # type: ignore[assignment]
    with pytest.raises(VictimError, match=r"^victim colours: expected an answer, got 'unsupported operand.*'$"):
        views(tmp_path, table, workers=workers)


@pytest.mark.parametrize("lost", [0.0, 0.3, 0.62, 0.999])
def test_an_interrupted_sweep_goes_on_to_the_same_bytes(tmp_path: Path, lost: float) -> None:
    """Killed at any byte: what is not whole is measured again."""
    whole = views(tmp_path, table_of(sweep()))
    head = whole.index(b"\n") + 1
    (tmp_path / "views.csv").write_bytes(whole[: head + int((len(whole) - head) * (1 - lost))])
    table = table_of(sweep())
    first = measure.begin(tmp_path, table)
    assert first == int(len(table) * (1 - lost)) or abs(first - len(table) * (1 - lost)) < 2
    measure.measure(tmp_path, table, first, batch=5, workers=1)
    assert (tmp_path / "views.csv").read_bytes() == whole


def test_rows_that_are_damaged_are_refused(tmp_path: Path) -> None:
    table = table_of(sweep(axes={}, scenes=2, draws=1))
    lines = views(tmp_path, table).decode().splitlines()
    known = [place for place, name in enumerate(table.columns) if name not in ("scene", "draw")][: 5 + 1]
    for place, cell in itertools.product(known, ("stranger", "1,2", "\udcff")):
        cells = lines[1].split(",")
        damaged = [lines[0], ",".join([*cells[:place], cell, *cells[place + 1 :]]), *lines[2:], ""]
        (tmp_path / "views.csv").write_bytes("\n".join(damaged).encode(errors="surrogateescape"))
        with pytest.raises(InputError, match=r"views\.csv: expected the rows of this evaluation, got"):
            list(summary.read(tmp_path / "views.csv", table))
    (tmp_path / "views.csv").write_bytes(b"\xff" * 99)
    with pytest.raises(InputError, match=r"views\.csv: expected the columns of this evaluation"):
        measure.begin(tmp_path, table)


def test_another_sweep_does_not_go_on_there(tmp_path: Path) -> None:
    views(tmp_path, table_of(sweep(axes={})))
    for other, key in (
        (sweep(axes={}, seed=8), "seed"),
        (sweep(axes={}, draws=1), "draws"),
        (sweep(axes={"side": SIDE}), "points"),
        (sweep(axes={}, scenes=2), "benches"),
        (sweep(axes={}, patches={"random": Patch.create(resolution=8, seed=6)}), "patches"),
    ):
        with pytest.raises(InputError, match=f"expected the settings that it was made with, got other ones: .*{key}"):
            check_settings(tmp_path, measure.plan(table_of(other)))
    other = table_of(sweep(axes={}, attack=Success()))
    with pytest.raises(InputError, match="expected the columns of this evaluation, got others"):
        measure.begin(tmp_path, other)


def test_several_patches_and_victims_each_have_their_rows(tmp_path: Path) -> None:
    patches = {"a": Patch.create(resolution=8), "b": Patch.create(shape="circle", resolution=6, size_mm=(60, 40))}
    table = table_of(sweep(axes={}, victims={"one": Colours(), "two": Colours(2.0)}, patches=patches, draws=1))
    rows = list(csv.DictReader(views(tmp_path, table).decode().splitlines()))
    assert list(dict.fromkeys((row["victim"], row["patch"]) for row in rows)) == [
        ("one", "a"),
        ("one", "b"),
        ("two", "a"),
        ("two", "b"),
    ]


def test_every_scene_and_draw_meets_another_random_texture_and_a_piece_of_another_scene() -> None:
    (found,) = bench.benches(sweep(axes={}, scenes=4), Host())
    for condition in ("random", "shuffled", "natural"):
        textures = [found.textures[condition](unit) for unit in range(8)]
        assert all(one.shape == (3, 8, 8) and one.min() >= 0 and one.max() <= 1 for one in textures)
        assert len({one.numpy().tobytes() for one in textures}) == 8
    # Scene 2 of 4 lends its pieces to the first.
    frame = found.source[found.indices[2]].to("cpu").frames[0, 0]
    (piece, *_) = (found.textures["natural"](unit) for unit in range(2))
    height, width = 12, 12  # half of the largest square
    cuts = (frame[:, y : y + height, x : x + width] for y in range(13) for x in range(21))
    sizes = [torch.nn.functional.interpolate(cut[None], size=(8, 8), mode="area")[0] for cut in cuts]
    assert any(torch.equal(one, piece) for one in sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenes": 1}, "scenes: expected at least two test scenes, got 1 of the 20 scenes of Pictures"),
        ({"attack": FlowAttack(still=1e6)}, "expected test scenes that a patch can win from colours, got 3 in none"),
    ],
)
def test_an_empty_selection_says_which_filter_left_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.benches(sweep(axes={}, **options), Host())


def test_levels_that_cannot_be_rendered_are_left_out_with_the_reason() -> None:
    axes = {
        "side": SIDE,
        "area": axis(levels=[0.1, 0.9], sets={"placement.side": None, "placement.area": "level"}),
        "on": axis(sets={"placement.side": "level"}, placed="surface"),
        "in": axis(sets={"placement.side": "level"}, placed="frame"),
        "none": axis(sets={"placement.size": "level"}),
    }
    one = sweep(axes=axes)
    kept, left_out = bench.fitting(one.points, bench.benches(one, Host()))
    found = [(each.axis, each.text) for each in kept]
    assert found == [("baseline", ""), ("side", "0.25"), ("side", "0.75"), ("area", "0.1"), ("in", "0.25"), ("in", "1")]
    assert left_out[0].startswith("area = 0.9 (placement: expected a patch that fits into the frame of 32×24 px")
    assert left_out[1:] == [
        "on = 0.25, 1 (for a patch placed on the surface, this one is on the frame)",
        "none = 0.25, 1 (the run's renderer has no placement.size)",
    ]


def test_axes_of_which_none_fits_are_refused() -> None:
    one = sweep(axes={"on": axis(sets={"placement.side": "level"}, placed="surface")})
    with pytest.raises(InputError, match=r"axes: expected at least one level that fits, got none: on = 0\.25, 1"):
        bench.fitting(one.points, bench.benches(one, Host()))


def test_processes_cannot_share_a_gpu(tmp_path: Path) -> None:
    table = table_of(sweep(axes={}))
    object.__setattr__(table.benches[0], "device", torch.device("meta"))
    with pytest.raises(InputError, match="workers: expected 1 on a GPU"):
        measure.measure(tmp_path, table, 0, 1, workers=2)


# Summaries


class Success(FlowAttack):
    """Whose primary metric is a rate."""

    metric_info: Mapping[str, Metric] = {"success": Metric("success rate", "higher", rate=True)}

    def __init__(self) -> None:
        super().__init__()
        self.primary_metric = ("success", "all")

    def metrics(self, output: Any, clean: Any, scene: Scene, view: Any) -> dict[tuple[str, str], Tensor]:
        return {("success", "all"): (output != clean).flatten(1).any(dim=1).float()}


def written(
    folder: Path, values: Callable[[str, str, int, int], float | str], attack: Any = None, scenes: int = 6
) -> tuple[Path, measure.ViewTable]:
    """A table whose primary metric is ``values(level, condition, place, draw)``."""
    table = table_of(sweep(axes={"side": SIDE}, attack=attack or Success(), scenes=scenes, draws=2))
    name = "/".join(table.benches[0].attack.primary_metric)
    measure.begin(folder, table)
    path = folder / "views.csv"
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, table.columns, lineterminator="\n")
        for point in table.points:
            for place, number in enumerate(table.benches[0].indices):
                for draw in range(2):
                    for condition in table.benches[0].conditions:
                        key = ("colours", "random", point.axis, point.text, number, draw, condition)
                        cells = dict(zip(measure.KEYS, key, strict=True))
                        writer.writerow(cells | {name: values(point.text, condition, place, draw), "loss/all": 0})
    return path, table


def test_means_excess_and_destruction_are_those_of_the_table(tmp_path: Path) -> None:
    """Both draws win in six scenes; random in one draw of the first; at 0.25 four scenes lose one draw, one both."""

    def value(level: str, condition: str, place: int, draw: int) -> float | str:
        if condition == "patch":
            return 0 if level == "0.25" and (place == 5 or (draw == 0 and place > 0)) else 1
        return 1 if (condition, place, draw) == ("random", 0, 0) else 0

    found = summary.summarise(*written(tmp_path, value), {}, margin=0.1)
    (row,) = (
        one for one in found.rows if (one["axis"], one["condition"], one["metric"]) == ("baseline", "random", "success")
    )
    assert row["mean"] == pytest.approx(1 / 12)
    assert row["n"] == 6
    baseline, quarter, three = found.excess
    assert baseline["mean"] == pytest.approx(11 / 12)
    assert baseline["p"] == sign_flip(np.array([0.5, 1, 1, 1, 1, 1])) == 2 / 64
    assert (quarter["level"], three["level"]) == (0.25, 0.75)
    assert quarter["mean"] == pytest.approx((0.5 + 4 * 0.5 + 0) / 6)
    assert baseline["p_adjusted"] == pytest.approx(3 * 2 / 64)
    assert [one["rate"] for one in found.destruction] == pytest.approx([(4 * 0.5 + 1) / 6, 0.0])
    assert [one["n"] for one in found.destruction] == [6, 6]
    assert {one["condition"] for one in found.rivals} == set(CONTROLS)
    assert found.rivals[0]["condition"] == "random"
    assert json.loads(json.dumps(found.excess))[1]["level"] == 0.25


def test_half_of_the_scenes_are_won_between_the_levels_where_the_fraction_passes_one_half() -> None:
    """Of 40 scenes 8, 16, 32 and 32 are won: one half is a quarter of the way from the second to the third level."""
    won = np.array([[float(scene < count) for scene in range(40)] for count in (8, 16, 32, 32)])
    found = extremes.break_level([0.1, 0.2, 0.3, 0.4], won)
    assert found["level"] == pytest.approx(0.225)
    assert found["rises"]
    assert 0.1 <= found["low"] < 0.225 < found["high"] <= 0.3
    falling = extremes.break_level([4, 3, 2, 1], won)  # neither the order of the levels matters nor the direction
    assert (falling["level"], falling["rises"]) == (pytest.approx(2.75), False)
    unknown = np.concatenate([won, np.full((4, 3), np.nan)], axis=1)
    assert extremes.break_level([0.1, 0.2, 0.3, 0.4], unknown) == found


def test_a_break_beyond_the_levels_is_none() -> None:
    never = np.zeros((2, 8))
    for won, most in ((never, 0.0), (never + 1, 1.0)):
        row = extremes.break_level([1, 2], won)
        assert (row["level"], row["most"]) == (None, most)
    assert extremes.break_level([1, 2], np.full((2, 8), np.nan))["n"] == 0
    rare = np.array([[0.0] * 8, [1.0] * 5 + [0.0] * 3])  # in some resamples less than half are won at both
    assert extremes.break_level([1, 2], rare)["high"] is None


def test_the_worst_place_is_chosen_on_other_scenes_than_it_is_measured_on() -> None:
    effects = np.array([[1.0, 0.0] * 4, [0.5, 0.9] * 4])
    assert extremes.worst_place([(0, 0), (0, 1)], effects) == (0, 0)
    assert extremes.at_place(effects[0], rate=True)["mean"] == 0.0
    assert extremes.worst_place([(0, 0)], np.full((1, 4), np.nan)) is None


def test_breaks_and_the_worst_place_are_those_of_the_table(tmp_path: Path) -> None:
    path, table = written(tmp_path, lambda level, condition, *_: float(condition == "patch" and level == "0.75"))
    found = summary.summarise(path, table, {"side": replace(SIDE, breaks=True)}, 0.1)
    (row,) = found.breaks
    assert (row["axis"], row["level"], row["n"]) == ("side", pytest.approx(0.5), 6)
    found = summary.summarise(path, table, {"side": replace(SIDE, kind="half_sphere")}, 0.1)
    assert [(one["level"], one["condition"], one["mean"], one["n"]) for one in found.worst] == [
        (0.75, "random", 0.0, 3),
        (0.75, "patch", 1.0, 3),
    ]


def test_what_is_unknown_counts_nowhere(tmp_path: Path) -> None:
    """The first scene has nothing to win, and the second in its first draw."""

    def value(level: str, condition: str, place: int, draw: int) -> float | str:
        unknown = place == 0 or (place == 1 and draw == 0)
        return "" if unknown else float(condition == "patch" and level != "0.75")

    found = summary.summarise(*written(tmp_path, value), {}, margin=0.1)
    assert found.excess[0]["n"] == 5
    assert found.excess[0]["mean"] == 1.0
    assert [(one["rate"], one["n"]) for one in found.destruction] == [(0.0, 5), (1.0, 5)]


def test_a_primary_metric_that_is_no_rate_succeeds_by_the_margin(tmp_path: Path) -> None:
    """The cosine, which a stronger attack lowers, falls from 0.8: by an eighth in the first draw, a sixteenth then."""

    def value(level: str, condition: str, place: int, draw: int) -> float | str:  # noqa: ARG001
        return 0.8 - 0.1 / (draw + 1) * (condition == "patch")

    path, table = written(tmp_path, value, FlowAttack(still=0.05))
    baseline = next(iter(summary.read(path, table)))
    np.testing.assert_array_equal(summary.successes(baseline, 0.1), [[1, 0]] * 6)
    np.testing.assert_array_equal(summary.successes(baseline, 0.05), [[1, 1]] * 6)
    excess = summary.summarise(path, table, {}, 0.1).excess
    assert excess[0]["mean"] == pytest.approx(0.075)  # positive: the stronger attack


def test_a_rate_that_a_stronger_attack_lowers_succeeds_the_other_way_round(tmp_path: Path) -> None:
    class Recall(Success):
        metric_info: Mapping[str, Metric] = {"recall": Metric("recall", "lower", rate=True)}

        def __init__(self) -> None:
            super().__init__()
            self.primary_metric = ("recall", "all")

        def metrics(self, output: Any, clean: Any, scene: Scene, view: Any) -> dict[tuple[str, str], Tensor]:
            return {("recall", "all"): (output == clean).flatten(1).all(dim=1).float()}

    path, table = written(
        tmp_path, lambda _l, condition, place, _d: float(condition != "patch" or place == 0), Recall()
    )
    baseline = next(iter(summary.read(path, table)))
    assert summary.successes(baseline, 0.1)[:, 0].tolist() == [0, 1, 1, 1, 1, 1]
    assert summary.summarise(path, table, {}, 0.1).excess[0]["mean"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("winners", "scenes", "works", "words"),
    [
        (("patch",), 6, True, "The patch moves the success rate by 1.000 [0.292, 1.000] more than a random patch"),
        ((), 6, False, "No effect is shown: beyond a random patch of its size it moves the success rate by 0.000"),
        (("patch", "random"), 6, False, "No effect is shown"),
        (("patch", "white"), 6, False, "but by no more than a white card does."),
        (("patch",), 5, False, "Inconclusive: 5 test scenes are too few (at least 6 are needed)."),
    ],
)
def test_the_headline_says_whether_the_patch_does_more_than_its_controls(
    tmp_path: Path, winners: tuple[str, ...], scenes: int, works: bool, words: str
) -> None:
    """At the baseline alone, so that one of three points stands after the correction only if p is small enough."""
    path, table = written(tmp_path, lambda _l, one, _p, _d: float(one in winners), scenes=scenes)
    found = summary.summarise(path, table, {}, 0.1)
    for row in found.excess:  # six scenes reach no p below 0.03
        row["p_adjusted"] = row["p"]
    answer = summary.headline(found, table.benches[0].attack)
    assert (answer.outcome == "works") is works
    assert (answer.outcome == "inconclusive") is (scenes < 6)
    assert words in answer.sentence
    assert f"{scenes} test scenes, 95 % intervals" in answer.facts


def test_the_headline_of_several_pairs_counts_them(tmp_path: Path) -> None:
    path, table = written(tmp_path, lambda _l, one, _p, _d: float(one == "patch"))
    found = summary.summarise(path, table, {}, 0.1)
    found.excess[0]["p_adjusted"] = 0.01
    second = summary.Summary(*([row | {"victim": "other"} for row in rows] for rows in vars(found).values()))
    for row in second.excess:
        row["p_adjusted"] = 0.5
    both = summary.Summary(*(a + b for a, b in zip(vars(found).values(), vars(second).values(), strict=True)))
    answer = summary.headline(both, table.benches[0].attack)
    assert answer.outcome == "does not work"
    assert answer.sentence.startswith("1 of 2 pairs of patch and victim do more than random patches")
    assert "random on other: success rate" in answer.facts


def test_the_table_is_parquet_too(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    table = table_of(sweep(axes={"blur": BLUR}, draws=1))
    text = views(tmp_path, table)
    frame = polars.read_parquet(summary.to_parquet(tmp_path / "views.csv", table))
    assert frame.columns == table.columns
    assert frame.height == text.count(b"\n") - 1
    assert frame["scene"].dtype == polars.Int64
    assert frame["level"].dtype == polars.String
    rows = list(csv.DictReader(text.decode().splitlines()))
    assert frame["cosine/outside"][3] == pytest.approx(float(rows[3]["cosine/outside"]))
    assert frame["camera.defocus"][0] is None
    assert frame["camera.defocus"][-1] == 2


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="format: expected csv or parquet, got xlsx"):
        summary.check_format("xlsx")


# Any image as a patch


def test_an_image_keeps_its_proportions_and_its_mask(tmp_path: Path) -> None:
    texture, mask = torch.rand(3, 20, 40), torch.ones(1, 20, 40)
    mask[:, :5] = 0
    write_png(tmp_path / "card.png", texture, mask, (100.0, 50.0))
    patch = load_image(tmp_path / "card.png", 80)
    assert patch.size_mm == (80, 40)
    torch.testing.assert_close(patch.mask, mask)
    torch.testing.assert_close(patch(), texture, atol=0.003, rtol=0)
    write_png(tmp_path / "photo.png", torch.rand(3, 300, 600), torch.ones(1, 300, 600), (100.0, 50.0))
    assert load_image(tmp_path / "photo.png", 80).mask.shape == (1, 256, 512)


def test_the_json_of_a_run_says_how_large_its_patch_is(tmp_path: Path) -> None:
    Patch.create(resolution=12, size_mm=(90, 60)).save(tmp_path / "patch.png", {"victims": ["x"]})
    assert load_image(tmp_path / "patch.png", 80).size_mm == (90, 60)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON with size_mm"),
        ('{"width": 3}', "expected JSON with size_mm"),
        ('{"size_mm": [100, "wide"]}', "expected JSON with size_mm"),
        ('{"size_mm": [-10, 10]}', r"expected JSON with size_mm.*expected a number from 0\.1 to 100000, got -10"),
        (
            '{"size_mm": [10, 10], "texels": [9, 8]}',
            r"expected the JSON of this patch of \[8, 8\] texels, got .*\[9, 8\]",
        ),
    ],
)
def test_a_patch_whose_json_is_not_its_own_is_refused(tmp_path: Path, content: str, message: str) -> None:
    Patch.create(resolution=8).save(tmp_path / "patch.png", {})
    (tmp_path / "patch.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_image(tmp_path / "patch.png", 80)


def test_what_is_no_image_or_shows_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="patch: expected a readable image file"):
        load_image(tmp_path / "text.png", 80)
    write_png(tmp_path / "clear.png", torch.rand(3, 4, 4), torch.zeros(1, 4, 4), (10.0, 10.0))
    with pytest.raises(InputError, match="some of the mask above 0"):
        load_image(tmp_path / "clear.png", 80)
    write_png(tmp_path / "card.png", torch.rand(3, 4, 4), torch.ones(1, 4, 4), (10.0, 10.0))
    with pytest.raises(InputError, match=r"patch\.size_mm: expected millimetres above 0"):
        load_image(tmp_path / "card.png", -1)
