from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from patchattack.eot.calibrated import Calibration
from patchattack.errors import InputError
from patchattack.patch import Patch, random_texture
from patchattack.printing.fiducials import Layout, find, layout, save_layouts
from patchattack.printing.sheet import Sheet
from patchattack.rehearsal import rehearse
from patchattack.rehearsal.film import Paper, Truth, film, lay, photograph, truth, write_truth
from patchattack.rehearsal.poses import by_take, compare
from patchattack.rehearsal.street import DriveBy, Lab, Street
from patchattack.rehearsal.unknown import Unknown
from patchattack.rehearsal.wrap import Wrap, wrapped
from patchattack.webcam.capture import open_source
from patchattack.webcam.pose import Lens, pose

SIZE = (360, 640)
FIELD_OF_VIEW = 60.0
SHEET = Sheet().layout((150.0, 150.0), 3)


def street(task: str = "flow", size: tuple[int, int] = SIZE, seed: int = 0, field_of_view: float = 60.0) -> Street:
    return Street(SHEET, task, size, field_of_view, (1.5, 1.5), seed)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Paper:
    """The print of a random patch."""
    patch = Patch(random_texture(32, 32, 0), torch.ones(1, 32, 32), (150.0, 150.0))
    path = tmp_path_factory.mktemp("print") / "sheet.png"
    return rehearse.print_sheet(path, Sheet(), SHEET, patch, Unknown.draw(0))


def filmed(path: Path, paper: Paper, seed: int = 0, printer: int = 0) -> tuple[bytes, list[Truth | None]]:
    place = street(seed=seed)
    truths = film(path, place, DriveBy(passes=2, frames=4).takes(place), [paper], Unknown.draw(printer), 10)
    return path.read_bytes(), truths


def test_the_drive_by_is_measured_within_the_bars(paper: Paper, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    _, truths = filmed(path, paper)
    lens, checked = Lens(FIELD_OF_VIEW), 0
    for shot in open_source(str(path), 1).shots():
        true = truths[shot.number]
        sightings = find(shot.images[0], [SHEET])
        assert bool(sightings) == (true is not None)
        if true is None or true.size_px < 60 or true.tilt > 50:
            continue
        here = pose(sightings[0], SHEET, lens, SIZE)
        assert np.linalg.norm(sightings[0].corners - true.corners, axis=1).max() < 0.5
        assert here.distance == pytest.approx(true.distance_m, rel=0.01)
        for name in ("yaw", "pitch", "roll", "tilt"):
            assert getattr(here, name) == pytest.approx(getattr(true, name), abs=1.5)
        assert here.side == pytest.approx(true.size_px, rel=0.01)
        checked += 1
    assert checked >= 4


def test_a_seed_makes_the_same_video(paper: Paper, tmp_path: Path) -> None:
    first, truths = filmed(tmp_path / "a.mp4", paper)
    again, _ = filmed(tmp_path / "b.mp4", paper)
    assert first == again
    assert filmed(tmp_path / "c.mp4", paper, seed=1)[0] != first
    other, same = filmed(tmp_path / "d.mp4", paper, printer=1)
    assert other != first
    assert [one and one.distance_m for one in same] == [one and one.distance_m for one in truths]


def test_takes_are_apart_by_a_black_frame(paper: Paper, tmp_path: Path) -> None:
    _, truths = filmed(tmp_path / "video.mp4", paper)
    assert [one is None for one in truths] == [False] * 4 + [True] + [False] * 4
    black = [*open_source(str(tmp_path / "video.mp4"), 1).shots()][4].images[0]
    assert black.max() < 16


@pytest.mark.parametrize("task", ["flow", "classification", "detection"])
def test_on_the_way_by_the_sheet_stays_in_sight_and_comes_nearer(task: str) -> None:
    place = street(task, field_of_view=90.0)
    takes = DriveBy(passes=4, frames=5).takes(place)
    assert len(takes) == 4
    for take in takes:
        truths = [truth(place, take, view, 0) for view in take.views]
        assert all(one.whole for one in truths)
        distances = np.array([one.distance_m for one in truths])
        assert (np.diff(distances) < 0).all()
        assert np.ptp([view.light for view in take.views]) > 0.1
        spans = [one.size_px / min(SIZE) for one in truths]
        assert spans[0] == pytest.approx(place.stage.far, rel=0.2)
        assert spans[-1] == pytest.approx(place.stage.near, rel=0.35)
    assert np.ptp([truth(place, take, take.views[0], 0).yaw for take in takes]) > 20


@pytest.mark.parametrize("task", ["flow", "classification", "detection"])
def test_the_lab_has_its_distances_and_angles(task: str) -> None:
    place = street(task, field_of_view=90.0)
    lab = Lab(distances=[0.5, 1.0], angles=[-40, 0, 30], frames=2)
    takes = lab.takes(place)
    wanted = [(distance, angle) for distance in (0.5, 1.0) for angle in (-40, 0, 30)]
    for (distance, angle), take in zip(wanted, takes, strict=True):
        for view in take.views:
            true = truth(place, take, view, 0)
            assert true.distance_m == pytest.approx(distance)
            # The camera looks down at a vehicle, and between a sign and the sheet beside it.
            assert true.yaw == pytest.approx(angle, abs=15)
            assert true.tilt == pytest.approx(abs(angle), abs=0.01 if task == "classification" else 25)
    first, second = takes[0].views
    assert not np.allclose(first.rotation, second.rotation)  # a hand holds the camera: there is some flow


@pytest.mark.parametrize(("task", "beside"), [("flow", False), ("classification", True), ("detection", False)])
def test_the_sheet_lies_in_the_plane_of_its_subject(task: str, beside: bool) -> None:
    place = street(task, field_of_view=90.0)
    take = place.take(0, (0.5, 6.0), yaw=25, roll=3)
    left, top, right, bottom = SHEET.bounds_mm
    corners = np.array([(left, top, 1), (right, top, 1), (right, bottom, 1), (left, bottom, 1)]) @ take.sheet.T
    inside = []
    for origin, u, v in zip(take.planes.origin[0], take.planes.u[0], take.planes.v[0], strict=True):
        axes = torch.stack([u, v, torch.linalg.cross(u, v)], dim=1).numpy()
        a, b, away = np.linalg.solve(axes, (corners - origin.numpy()).T)
        if np.abs(away).max() < 1e-9:
            inside.append(bool((np.minimum(a, b) > 0).all() and (np.maximum(a, b) < 1).all()))
    # A billboard is exactly as high as the sheet, which is turned on it by 3 degrees.
    assert inside == [task == "detection"]
    assert np.linalg.norm(corners[1] - corners[0]) / (right - left) == pytest.approx(place.metres)
    assert place.model == pytest.approx(1000 * place.stage.sheet / (bottom - top))
    assert bool(place.stage.beside) == beside


def test_a_camera_that_turns_sees_the_same_world_elsewhere(paper: Paper) -> None:
    """The background and the sheet are drawn by the same camera."""
    place = street("detection", field_of_view=90.0)
    take = DriveBy(passes=1, frames=2).takes(place)[0]
    view = replace(take.views[0], light=1.0)
    perfect = replace(Unknown.draw(0), vignetting=0.0, noise=0.0, balance=np.ones(3))
    image = photograph(place, take, view, paper, perfect, 0)
    turn = cv2.Rodrigues(np.array([0.0, 0.05, 0.0]))[0]
    turned = replace(view, rotation=turn @ view.rotation)
    other = photograph(place, take, turned, paper, perfect, 0)
    homography = place.matrix @ turn @ np.linalg.inv(place.matrix)
    warped = cv2.warpPerspective(image, homography, SIZE[::-1], flags=cv2.INTER_LINEAR)
    part = (slice(20, -20), slice(80, -80))
    assert np.abs(warped[part].astype(float) - other[part]).mean() < 3
    assert np.abs(image[part].astype(float) - other[part]).mean() > 6


def test_the_print_changes_colours_and_keeps_places() -> None:
    unknown = Unknown.draw(0)
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    shown = unknown.print_image(image)
    assert (shown.shape, shown.dtype) == (image.shape, np.float32)
    assert shown.min() >= 0
    assert shown.max() <= 1
    np.testing.assert_array_equal(unknown.print_image(image[::-1, ::-1]), shown[::-1, ::-1])
    assert np.abs(shown - image / 255).mean() > 0.03
    greys = unknown.print_image(np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, axis=2))[0]
    assert (np.diff(greys, axis=0) > 0).all()
    assert greys[0].max() < 0.1  # black ink
    assert (greys[25] < (greys[0] + greys[-1]) / 2).all()  # dot gain
    assert np.abs(shown - Unknown.draw(1).print_image(image)).mean() > 0.01


def test_the_camera_darkens_corners_and_blurs_in_place() -> None:
    unknown = Unknown.draw(0)
    seen = unknown.photograph(np.full((61, 101, 3), 0.6, np.float32), 1.0, 0).astype(float)
    assert seen[:10, :10].mean() < seen[25:35, 45:55].mean() - 5
    assert seen.std(axis=(0, 1)).min() > 0
    assert seen[..., 0].mean() != pytest.approx(seen[..., 2].mean(), abs=0.5)  # white balance
    assert (unknown.photograph(np.full((61, 101, 3), 0.6, np.float32), 1.0, 1) != seen).any()  # noise of its own
    darker = unknown.photograph(np.full((61, 101, 3), 0.6, np.float32), 0.5, 0)
    assert darker.mean() == pytest.approx(seen.mean() * 0.5 ** (1 / 2.2), rel=0.02)
    dot = np.zeros((61, 101, 3), np.float32)
    dot[20, 70] = 1
    quiet = replace(unknown, noise=0.0).photograph(dot, 1.0, 0).sum(axis=2, dtype=float)
    y, x = (np.average(place, weights=quiet) for place in np.mgrid[:61, :101])
    assert (x, y) == pytest.approx((70, 20), abs=0.02)


def test_paper_is_laid_where_it_belongs() -> None:
    paper = np.indices((8, 6)).sum(axis=0)[..., None].repeat(3, axis=2).astype(np.float32) / 12
    image = np.full((20, 30, 3), 0.5, np.float32)
    lay(image, paper, np.array([(1, 0, 10), (0, 1, 5), (0, 0, 1.0)]))
    np.testing.assert_allclose(image[6:12, 11:15], paper[1:-1, 1:-1], atol=1e-3)
    outside = np.ones((20, 30), bool)
    outside[4:14, 9:17] = False
    assert (image[outside] == 0.5).all()
    # A fine pattern far away is grey, and a sheet covers as many pixels as it has area.
    checks = np.indices((400, 400)).sum(axis=0)[..., None].repeat(3, axis=2).astype(np.float32) % 2
    small = np.zeros((40, 40, 3), np.float32)
    lay(small, checks, np.array([(0.05, 0, 9.7), (0, 0.05, 11.3), (0, 0, 1.0)]))
    assert small.sum() / 3 == pytest.approx(0.5 * 20 * 20, rel=0.01)
    np.testing.assert_allclose(small[15:25, 15:25], 0.5, atol=0.02)
    before = small.copy()
    lay(small, checks, np.array([(0.05, 0, 100), (0, 0.05, 0), (0, 0, 1.0)]))  # beside the frame
    np.testing.assert_array_equal(small, before)


def known(number: int, size: float = 80.0, tilt: float = 10.0, whole: bool = True) -> Truth:
    square = np.array([(0.0, 0), (80, 0), (80, 80), (0, 80)])
    return Truth(number, square, size, 2.0, tilt, 0.0, 0.0, tilt, whole)


def columns(*rows: dict[str, Any]) -> dict[str, np.ndarray]:
    corners = {f"{axis}{i}": known(0).corners[i, "xy".index(axis)] for i in range(4) for axis in "xy"}
    usual = {"state": "found", "distance_m": 2.0, "yaw": 10.0, "pitch": 0.0, "roll": 0.0, "tilt": 10.0}
    usual |= corners | {"success": 1.0, "grey_success": 0.0}
    full = [usual | row for row in rows]
    return {name: np.array([row[name] for row in full]) for name in full[0]}


def test_measured_and_true_poses_are_compared() -> None:
    truths = [known(0), known(1), None, known(3), known(4, size=59), known(5, tilt=51), known(6, whole=False), known(7)]
    records = columns(
        *({"frame": 0}, {"frame": 1, "distance_m": 2.05, "x0": 0.6, "y0": -0.8}, {"frame": 2, "state": "lost"}),
        *({"frame": 3, "yaw": 13.5}, {"frame": 4, "x0": 99.0}, {"frame": 5, "x0": 99.0}, {"frame": 6, "x0": 99.0}),
    )
    found = compare(records, truths, 1)
    assert (found["shown"], found["found"], found["within"]) == (4, 3, 2)
    assert found["corners_px"] == pytest.approx({"median": 0.0, "p95": 0.9, "largest": 1.0, "bar": 1.0})
    assert found["distance_percent"]["largest"] == pytest.approx(2.5)
    assert found["angles_deg"]["largest"] == pytest.approx(3.5)
    assert compare(records, truths, 2)["shown"] == 2  # 1 and 7: pairs without a cut
    assert compare(columns({"frame": 9}), truths, 1) == {"shown": 4, "found": 0, "within": 0}


def test_success_by_take() -> None:
    records = columns({"frame": 0}, {"frame": 1, "success": 0.0}, {"frame": 3, "success": np.nan})
    first, second = by_take(records, [known(0), known(1), None, known(3)])
    place = {"distance_m": 2.0, "tilt": 10.0, "size_px": 80.0}
    assert first == place | {"frames": 2, "success": 0.5, "grey_success": 0.0}
    assert second == place | {"frames": 0}


def test_the_truth_is_written(tmp_path: Path) -> None:
    write_truth(tmp_path / "truth.csv", [known(0), None, known(2)])
    head, first, second = (tmp_path / "truth.csv").read_text().splitlines()
    assert head.startswith("frame,x0,y0,x1,y1,x2,y2,x3,y3,size_px,distance_m,yaw")
    assert first == "0,0,0,80,0,80,80,0,80,80,2,10,0,0,10"
    assert second.startswith("2,")


@pytest.mark.parametrize(
    ("most", "victim", "expected"),
    [
        ((720, 1280), None, (720, 1280)),
        ((720, 1280), (64, 64), (720, 720)),
        ((720, 1280), (128, 256), (640, 1280)),
        ((361, 641), (375, 1242), (194, 640)),
    ],
)
def test_the_video_has_the_proportions_of_the_victim(
    most: tuple[int, int], victim: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    assert rehearse.frame_size(most, victim) == expected


def test_numbers_that_cannot_be() -> None:
    for make, message in (
        (lambda: rehearse.frame_size((100, 100), None), "size: expected frames at least 120"),
        (lambda: rehearse.frame_size([720], None), "size: expected \\[height, width\\]"),
        (lambda: Lab(distances=[0.0]), "lab: expected distances above 0 m"),
        (lambda: Lab(angles=[81]), "lab: expected distances above 0 m, or null, and angles of at most 80"),
        (lambda: Lab(frames=1), "lab.frames: expected 2 or more, got 1"),
        (lambda: DriveBy(passes=0), "drive_by: expected passes >= 1"),
    ):
        with pytest.raises(InputError, match=message):
            make()


SMALL = ("size=[360,640]", "trainer.accelerator=cpu", "lab.angles=[30]", "lab.frames=2", "drive_by.passes=1")


@pytest.fixture
def start(command: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``patchattack rehearse`` on a run of a tiny flow network, into ``tmp_path / "out"``."""
    folder = tmp_path / "run"
    Patch(random_texture(16, 16, 0), torch.ones(1, 16, 16), (150.0, 150.0)).save(folder / "patch.png", {})
    save_layouts(folder / "print" / "layout.json", [SHEET, Sheet().layout(SHEET.size_mm, 4)])
    overrides = ("attack=flow", "victim=flow_matching", "victim.weights=random", "data.size=[64,128]")
    (folder / "overrides.yaml").write_text("".join(f"- {one}\n" for one in overrides))
    return lambda *given: command(
        f"run={folder}", f"output={tmp_path / 'out'}", *SMALL, "drive_by.frames=4", *given, entry="rehearse"
    )


def test_one_command_rehearses_all_of_it(start: Callable[..., Any], tmp_path: Path) -> None:
    outcome = start("calibrated=true", "lab.distances=[0.4,0.6]", "control=true", "pass_by.speed=30")
    assert (outcome.status, outcome.err) == (0, "")
    out = tmp_path / "out"
    found = json.loads((out / "rehearsal.json").read_text())
    assert found["size"] == [320, 640]
    lab, drive_by = found["parts"]["lab"], found["parts"]["drive_by"]
    assert lab["counts"]["with the sheet"] == 4  # pairs of two takes with the patch, and as many with the control
    assert lab["poses"]["shown"] == lab["poses"]["found"] == lab["poses"]["within"] == 4
    assert [take["distance_m"] for take in lab["takes"]] == pytest.approx([0.4, 0.6, 0.4, 0.6])
    assert drive_by["counts"]["with the sheet"] >= 4  # it begins with a patch of few pixels
    assert drive_by["poses"]["found"] == drive_by["poses"]["within"] == drive_by["poses"]["shown"] == 4
    assert lab["pass_bys"] == []
    assert [(row["condition"], row["n"]) for row in drive_by["pass_bys"]] == [("patch", 1), ("grey", 1), ("control", 1)]
    for part in ("lab", "drive_by"):
        names = {path.name for path in (out / part).iterdir()}
        assert names >= {"video.mp4", "truth.csv", "frames.csv", "report.html", "summary.json"}
    report = (out / "drive_by" / "report.html").read_text()
    assert "Rehearsal of run without hardware: drive-by" in report
    assert "patchattack rehearse" in report
    for words in (
        f"{out}/lab/report.html",
        "4 of 4 frames",
        "drive-by: ",
        "no pass-by was recorded",
        "control  1 pass-bys: ",
        "appearance.calibrated.file=",
    ):
        assert words in outcome.out

    # The calibration knows what the camera makes of a print.
    colours = np.random.default_rng(0).integers(0, 256, (1, 200, 3)).astype(np.uint8)
    unknown = Unknown.draw(0)
    seen = unknown.print_image(colours)[0] * (0.95 * unknown.balance) ** (1 / 2.2)
    fitted = Calibration.load(out / "calibration.json").predict(torch.from_numpy(colours[0] / 255).float()).numpy()
    assert np.abs(fitted - seen).mean() < 0.01
    assert np.abs(colours[0] / 255 - seen).mean() > 0.04


def test_bad_input_is_one_line_before_any_work(start: Callable[..., Any], tmp_path: Path) -> None:
    for given, message in (
        (("victims=[nobody]",), "nobody"),
        (("print=letter", "print.margin_mm=60"), "print.page: expected a page with"),
        (("print.fiducials=false",), "print.fiducials: expected true, got false"),
        (("printer=-1",), "printer: expected an integer >= 0, got -1"),
        (("fps=0",), "fps: expected frames a second above 0"),
        (("lab.angles=90",), "lab.angles: expected Sequence[float], got 90"),
    ):
        outcome = start(*given)
        assert outcome.status == 2
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
    layouts = tmp_path / "run" / "print" / "layout.json"
    save_layouts(layouts, [smaller_markers()])
    assert "give print=PAGE as then" in start().err
    layouts.unlink()
    outcome = start()
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    assert "patchattack print run=RUN" in outcome.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "run" / "overrides.yaml").unlink()
    assert "expected the folder of a run" in start().err


def smaller_markers() -> Layout:
    return layout((150.0, 150.0), 3, 20.0)


def test_a_cylinder_keeps_lengths_along_its_arc_and_of_no_curvature_is_the_plane() -> None:
    points = np.array([(75.0, 10.0), (20.0, 0.0), (150.0, 90.0)])
    around = Wrap(radius=60.0, middle=75.0).places(points)
    assert around[0].tolist() == [75, 10, 0]
    centre = np.array([75.0, 60.0])
    assert np.linalg.norm(around[:, ::2] - centre, axis=1) == pytest.approx([60] * 3)
    angles = np.arctan2(around[:, 0] - 75, 60 - around[:, 2])
    assert 60 * angles == pytest.approx(points[:, 0] - 75)
    assert around[:, 1].tolist() == points[:, 1].tolist()
    flat = Wrap(radius=1e9, middle=75.0).places(points)
    np.testing.assert_allclose(flat, [(*point, 0) for point in points], atol=1e-4)


def test_a_ray_sees_what_lies_where_it_meets_the_cylinder_first() -> None:
    wrap, eye = Wrap(radius=60.0, middle=75.0), np.array([100.0, 30.0, -500.0])
    points = np.array([(75.0, 10.0), (40.0, 0.0), (110.0, 90.0)])
    seen = wrap.seen(2.5 * (wrap.places(points) - eye), eye)
    np.testing.assert_allclose(seen, points, atol=1e-9)
    hidden = wrap.places(np.array([(75.0 + 60 * np.pi, 10.0)])) - eye  # on the back
    assert abs(wrap.seen(hidden, eye)[0, 0] - 75) < 60 * np.pi / 2
    beside = np.array([(200.0, 0.0, 500.0), (0.0, 0.0, -1.0)])  # past it, and away from it
    assert np.isinf(wrap.seen(beside, eye)).all()


def test_a_sheet_around_a_wide_cylinder_is_filmed_as_the_flat_one(paper: Paper) -> None:
    place, perfect = street(), replace(Unknown.draw(0), noise=0.0)
    take = DriveBy(passes=1, frames=2).takes(place)[0]
    view = take.views[-1]
    flat, nearly = (photograph(place, take, view, paper, perfect, 0, wrap) for wrap in (None, Wrap(1e6, 75.0)))
    assert np.abs(flat.astype(int) - nearly).max() <= 6
    assert np.abs(flat.astype(int) - nearly).mean() < 0.1
    bent = photograph(place, take, view, paper, perfect, 0, Wrap(100.0, 75.0))
    assert np.abs(flat.astype(int) - bent).mean() > 0.5
    same, around = (truth(place, take, view, 0, wrap) for wrap in (Wrap(1e7, 75.0), Wrap(100.0, 75.0)))
    np.testing.assert_allclose(same.corners, truth(place, take, view, 0).corners, atol=1e-2)
    widths = [np.linalg.norm(one.corners[1] - one.corners[0]) for one in (same, around)]
    assert widths[1] < 0.95 * widths[0]


def test_markers_of_a_sheet_around_a_cylinder_are_where_the_truth_says(paper: Paper) -> None:
    place, wrap = street(), Wrap(150.0, 75.0)
    take = Lab(angles=[0], frames=2).takes(place)[0]
    image = photograph(place, take, take.views[0], paper, replace(Unknown.draw(0), noise=0.0), 0, wrap)
    (sighting,) = find(image, [SHEET])
    true = truth(place, take, take.views[0], 0, wrap)
    assert np.linalg.norm(sighting.corners - true.corners, axis=1).max() < 0.05 * true.size_px


def test_a_sheet_that_would_wrap_around_more_than_once_is_refused() -> None:
    left, _, right, _ = SHEET.bounds_mm
    once = (right - left) / (2 * np.pi)
    assert wrapped(SHEET, None) is None
    assert wrapped(SHEET, once + 1) == Wrap(once + 1, 75.0)
    for radius in (once - 1, -1, float("nan")):
        with pytest.raises(InputError, match=r"radius_mm: expected .* or more, around which the sheet"):
            wrapped(SHEET, radius)
