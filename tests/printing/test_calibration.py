from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from patchattack.commands import calibrate
from patchattack.eot.calibrated import Calibrated, Calibration
from patchattack.errors import InputError
from patchattack.files import package_folder
from patchattack.printing import calibration, chart
from patchattack.printing.colour import delta_e, lab
from patchattack.regularizers.nps import load_palette

SIZE = (720, 960)
HELD_OUT = np.random.default_rng(9).random((400, 3))
Response = Callable[[np.ndarray], np.ndarray]


def response(seed: int) -> Response:
    """An unknown polynomial of degree 3 in the printed sRGB: ink that mixes the channels, a tint, grey blacks."""
    generator = np.random.default_rng(seed)
    powers = [power for power in itertools.product(range(4), repeat=3) if 0 < sum(power) <= 3]
    factors = 0.04 * generator.normal(size=(len(powers), 3))
    mix = np.array([[0.8, 0.12, 0.08], [0.1, 0.8, 0.1], [0.06, 0.14, 0.8]])

    def seen(colours: np.ndarray) -> np.ndarray:
        terms = np.stack([np.prod(colours**power, axis=-1) for power in powers], axis=-1)
        return np.clip(0.06 + 0.84 * (colours @ mix.T + terms @ factors), 0, 1)

    return seen


def printed(colours: Response) -> np.ndarray:
    """The chart on its page as the printer and the light make it, ``[h, w, 3]``."""
    page = np.pad(chart.image(4).astype(int), ((48, 48), (48, 48), (0, 0)), constant_values=255)
    codes, place = np.unique(page @ [65536, 256, 1], return_inverse=True)
    shown = colours(np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1) / 255)
    return shown[place].reshape(page.shape).astype(np.float32)


def photographed(
    page: np.ndarray,
    vignetting: float = 0.3,
    noise: float = 0.01,
    blur: float = 0.8,
    turns: int = 1,
    glare: tuple[float, float, float, float] | None = None,
    exposure: float = 1.0,
) -> np.ndarray:
    """The page at a slant, in a camera that darkens towards the corners, uint8 ``[720, 960, 3]``."""
    (height, width), (rows, columns) = SIZE, page.shape[:2]
    there = np.float32([[0.08, 0.05], [0.93, 0.02], [0.97, 0.96], [0.03, 0.93]]) * [width, height]
    here = np.float32([[0, 0], [columns, 0], [columns, rows], [0, rows]])
    homography = cv2.getPerspectiveTransform(here, np.roll(there, turns, axis=0).astype(np.float32))
    finer = np.diag([3.0, 3.0, 1.0]) @ homography
    table = (0.3, 0.28, 0.25)
    image = cv2.warpPerspective(page, finer, (3 * width, 3 * height), flags=cv2.INTER_LINEAR, borderValue=table)
    image = cv2.GaussianBlur(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), (0, 0), blur)
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    falloff = 1 - 2 * vignetting * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    light = image.clip(0) ** 2.2 * (falloff * exposure)[..., None]
    if glare is not None:
        at_x, at_y, radius, strength = glare
        light += (strength * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * radius**2)))[..., None]
    image = light ** (1 / 2.2) + noise * np.random.default_rng(0).normal(size=image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def saved(path: Path, image: np.ndarray) -> Path:
    cv2.imwrite(str(path), image[..., ::-1])
    return path


@pytest.fixture(scope="module")
def page() -> np.ndarray:
    return printed(response(1))


@pytest.fixture(scope="module")
def good(page: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> calibration.Fit:
    return calibration.fit([saved(tmp_path_factory.mktemp("good") / "photo.png", photographed(page))])


def held_out_error(fit: calibration.Fit, colours: Response) -> float:
    seen = lab(fit.calibration.predict(torch.from_numpy(HELD_OUT).float()))
    return float(delta_e(seen, lab(torch.from_numpy(colours(HELD_OUT)))).mean())


def relative(colours: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """sRGB with paper as white."""

    def linear(value: np.ndarray) -> np.ndarray:
        return np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)

    light = (linear(colours) / linear(paper)).clip(0, 1)
    return np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_unknown_printer_and_camera_are_found(tmp_path: Path, seed: int) -> None:
    unknown = response(seed)
    fit = calibration.fit([saved(tmp_path / "photo.png", photographed(printed(unknown)))])
    assert fit.verdict == "good"
    assert held_out_error(fit, unknown) < 0.5  # the aim is 2.5
    assert fit.left_out.mean() < 0.5
    assert fit.errors.mean() < fit.left_out.mean()
    # What is in the palette comes out as itself, as nearly as its own numbers say.
    palette = fit.palette.numpy()
    again = relative(unknown(palette), unknown(np.ones((1, 3))))
    changes = delta_e(lab(fit.palette), lab(torch.from_numpy(again).float()))
    assert changes.mean() < 3
    torch.testing.assert_close(changes.float(), fit.changes, rtol=0, atol=1.0)


def test_a_printer_with_a_narrow_gamut_is_found_in_a_coarse_compressed_photograph(tmp_path: Path) -> None:
    """The shipped print model is far from a polynomial: saturated colours end at the inks."""
    offset = Calibrated().calibration

    def colours(printed: np.ndarray) -> np.ndarray:
        return 0.03 + 0.85 * offset.predict(torch.from_numpy(printed).float()).numpy()

    path = tmp_path / "photo.jpg"
    image = photographed(printed(colours), vignetting=0.5, noise=0.02)
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    fit = calibration.fit([path])
    assert fit.verdict == "good"
    assert held_out_error(fit, colours) < 2.5


@pytest.mark.parametrize(("blur", "noise"), [(0.4, 0.004), (1.2, 0.02)])
def test_blur_and_noise_are_measured(tmp_path: Path, page: np.ndarray, blur: float, noise: float) -> None:
    reading = calibration.read(saved(tmp_path / "photo.png", photographed(page, blur=blur, noise=noise)))
    assert reading.blur == pytest.approx(blur, abs=0.15)
    assert reading.noise == pytest.approx(noise, rel=0.15, abs=2e-4)


def test_the_light_is_taken_out(tmp_path: Path, page: np.ndarray) -> None:
    """With and without vignetting, the cells are the same."""
    seen = [
        calibration.read(saved(tmp_path / "photo.png", photographed(page, vignetting=strength, noise=0.005))).seen
        for strength in (0.0, 0.6)
    ]
    assert delta_e(lab(seen[0]), lab(seen[1])).mean() < 0.7
    expected = torch.from_numpy(response(1)(chart.colours())).float()
    assert delta_e(lab(seen[0]), lab(expected)).mean() < 0.5


@pytest.mark.parametrize("turns", [0, 3])
def test_the_page_may_lie_as_it_likes(tmp_path: Path, page: np.ndarray, good: calibration.Fit, turns: int) -> None:
    """Among others upside down to the others."""
    fit = calibration.fit([saved(tmp_path / "photo.png", photographed(page, turns=turns))])
    assert fit.verdict == "good"
    assert delta_e(lab(fit.seen), lab(good.seen)).mean() < 0.5


def test_photographs_of_other_exposure_join(tmp_path: Path, page: np.ndarray) -> None:
    paths = [
        saved(tmp_path / f"{i}.png", photographed(page, turns=i, exposure=exposure))
        for i, exposure in enumerate((0.9, 0.6))
    ]
    fit = calibration.fit(paths)
    assert fit.verdict == "good"
    between = response(1)(np.ones(3)) * 0.75 ** (1 / 2.2)
    assert fit.calibration.predict(torch.ones(1, 3))[0].numpy() == pytest.approx(between, abs=0.02)
    assert "0.png, 1.png" in fit.calibration.note


def test_the_map_rises_along_each_channel(good: calibration.Fit) -> None:
    table = good.calibration.table
    assert all((table[..., channel].diff(dim=channel) >= 0).all() for channel in range(3))


def test_a_palette_of_a_perfect_printer_is_all_colours() -> None:
    step = torch.linspace(0, 1, 9)
    identity = torch.stack(torch.meshgrid(step, step, step, indexing="ij"), dim=-1)
    colours, changes = calibration.palette(Calibration(identity, 0.0, None, None, ""))
    assert len(colours) == 48
    assert colours[0].tolist() == [1, 1, 1]
    assert changes.max() < 1e-3
    differences = delta_e(lab(colours)[:, None], lab(colours)[None]) + 100 * torch.eye(48)
    assert differences.min() >= 5


def test_a_palette_of_a_printer_that_changes_everything_holds_what_changes_least() -> None:
    step = torch.linspace(0, 1, 9)
    turned = torch.stack(torch.meshgrid(step, step, step, indexing="ij"), dim=-1).roll(1, dims=-1) ** 2
    colours, changes = calibration.palette(Calibration(turned, 0.0, None, None, ""))
    assert len(colours) >= 2
    greys = (colours.amax(dim=1) - colours.amin(dim=1)) < 0.2
    assert greys.all()
    assert changes.min() < 1e-3


@pytest.mark.parametrize(
    ("glare", "where"),
    [
        ((0.25, 0.25, 0.06, 0.5), "upper left"),
        ((0.75, 0.78, 0.05, 0.15), "lower right"),
        ((0.5, 0.5, 0.08, 0.1), "middle"),
        ((0.5, 0.2, 0.06, 0.3), "top"),
    ],
)
def test_glare_is_seen_and_said_where(
    tmp_path: Path, page: np.ndarray, glare: tuple[float, float, float, float], where: str
) -> None:
    fit = calibration.fit([saved(tmp_path / "photo.png", photographed(page, glare=glare))])
    assert fit.verdict.startswith(f"retake: glare at the {where}; turn the page away")
    assert "photo.png" in fit.verdict
    assert "\n" not in fit.verdict


def test_a_shadow_is_no_glare(tmp_path: Path, page: np.ndarray) -> None:
    image = photographed(page)
    image[:, :400] = image[:, :400] * 0.6
    assert "retake: a shadow or an edge of light" in calibration.fit([saved(tmp_path / "photo.png", image)]).verdict


def test_another_chart_and_too_much_light_are_seen(
    tmp_path: Path, page: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    bright = np.clip(photographed(page) * 1.7, 0, 255).astype(np.uint8)
    assert "too bright" in calibration.fit([saved(tmp_path / "bright.png", bright)]).verdict
    colours = chart.colours()
    others = ~chart.is_repeated()
    colours[others] = colours[others][::-1]
    with monkeypatch.context() as patched:
        patched.setattr(chart, "colours", lambda: colours)
        image = photographed(printed(response(1)))
    assert "retake: wrong chart: its colours" in calibration.fit([saved(tmp_path / "other.png", image)]).verdict


def cropped(image: np.ndarray) -> np.ndarray:
    return image[:, : int(0.8 * image.shape[1])]


def small(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA)


def covered(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[:130], image[590:] = 90, 90
    return image


def sheet(image: np.ndarray) -> np.ndarray:
    frame = np.full_like(image, 230)
    patterns = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    for number, (y, x) in enumerate(((100, 100), (100, 700), (500, 100), (500, 700))):
        frame[y : y + 90, x : x + 90] = cv2.aruco.generateImageMarker(patterns, number, 90)[..., None]
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: np.full_like(image, 150), "wrong chart or out of focus: .* got none of its 12 fiducials"),
        (sheet, "wrong chart or out of focus: .* got the fiducials of a print sheet"),
        (lambda image: (image * 0.1).astype(np.uint8), r"too dark: expected paper at .* got \d%"),
        (lambda image: (image * 0.3).astype(np.uint8), r"too dark: expected paper at .* got 2\d%"),
        (cropped, "cropped: expected the whole chart, .* the photograph's right; step back"),
        (covered, r"expected all 12 fiducials, got \d"),
        (small, "too far: expected cells of at least 12 pixels"),
    ],
    ids=["empty", "print sheet", "black", "dark", "cropped", "covered", "small"],
)
def test_a_photograph_without_a_readable_chart_is_refused(
    tmp_path: Path, page: np.ndarray, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    path = saved(tmp_path / "photo.png", change(photographed(page)))
    with pytest.raises(InputError, match=f"^{path}: .*{message}") as caught:
        calibration.fit([path])
    assert "\n" not in str(caught.value)


def test_a_chart_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(chart, "VERSION", 2)
        image = photographed(printed(response(1)))
    with pytest.raises(InputError, match="wrong chart: expected the colour chart of version 1, got version 2"):
        calibration.read(saved(tmp_path / "photo.png", image))


def test_no_photograph_and_one_that_is_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"photo: expected a photograph .* got none"):
        calibration.fit([])
    with pytest.raises(InputError, match=r"no\.png: expected an image, got no file"):
        calibration.fit([tmp_path / "no.png"])


@pytest.mark.figures
def test_palette_and_picture_are_written(tmp_path: Path, good: calibration.Fit) -> None:
    calibration.write_palette(tmp_path / "c.csv", good)
    torch.testing.assert_close(load_palette(tmp_path / "c.csv"), good.palette, rtol=0, atol=0.51 / 255)
    calibration.write_picture(tmp_path / "c.png", good)
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 30


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("derive", package_folder("conf").parent / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_shipped_is_what_its_script_derives() -> None:
    derive = script("maintain/make_print_defaults")
    assert (package_folder("assets") / "palettes" / "default.csv").read_text() == derive.palette()
    colours, default = derive.print_model(), Calibrated().calibration
    assert delta_e(lab(colours.table), lab(default.table)).max() < 0.2  # no two machines round alike
    assert (colours.note, colours.spread) == (default.note, default.spread)


def test_the_shipped_palette_and_print_model_agree() -> None:
    """The palette's colours come out of the model nearly as they are; the darkest a little lighter, for black is."""
    palette = load_palette(package_folder("assets") / "palettes" / "default.csv")
    changes = delta_e(lab(palette), lab(Calibrated().calibration.predict(palette)))
    assert changes.mean() < 3
    assert changes[0] < 0.1  # paper


def test_the_command_line_fits_or_says_why_not(
    tmp_path: Path, page: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["patchattack calibrate", *words])
        calibrate.main()
        return capsys.readouterr().out

    assert "chart.pdf" in run("chart", "print=a3")
    saved(tmp_path / "good.png", photographed(page))
    done = run("fit", "photo=good.png")
    assert "verdict   good" in done
    assert "appearance.calibrated.file=calibration.json" in done
    assert Calibrated("calibration.json").calibration.blur == pytest.approx(0.8, abs=0.15)

    saved(tmp_path / "glare.png", photographed(page, glare=(0.25, 0.25, 0.06, 0.5)))
    for words, message in (
        (("fit", "photo=[good.png,glare.png]", "output=second.json"), "retake: glare at the upper left"),
        (("fit", "photo=good.png", "output=here.png"), "output: expected a file .json, got here.png"),
        (("fit",), "photo: expected a photograph of the printed chart, got none"),
        (("charts",), "calibrate: expected chart or fit, got charts"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(*words)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    written = {path.name for path in tmp_path.iterdir()} - {"good.png", "glare.png"}
    assert written == {"chart.pdf", "calibration.json", "calibration.csv", "calibration.png", "second.png"}
