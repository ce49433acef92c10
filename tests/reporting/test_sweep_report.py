from __future__ import annotations

import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from patchattack.controls import CONDITIONS
from patchattack.reporting import latex, page
from patchattack.reporting.report import Example, Panel
from patchattack.reporting.sweep import write_evidence
from patchattack.reporting.sweep_figures import figures_of
from patchattack.reporting.sweep_numbers import Evidence, Numbers, PlottedAxis
from patchattack.statistics import Outcome

pytestmark = pytest.mark.figures

VOID = {"img", "meta", "br", "path", "use", "rect"}
AXES = {
    "yaw": PlottedAxis("yaw (°)", [30.0, -30.0, 0.0], "line"),  # not in their order
    "location": PlottedAxis("place of the centre", [(row, column) for row in range(2) for column in range(3)], "grid"),
    "half_sphere": PlottedAxis("pose", [(0.0, 0), *((40.0, azimuth) for azimuth in range(0, 360, 45))], "half_sphere"),
    "print": PlottedAxis("print <model>", ["off", "on"], "category"),
}
RINGS = {"0 to 1 sides away": (0.0, 1.0), "1 to 2 sides away": (1.0, 2.0)}
MEANS = {"clean": 0.0, "grey": 0.02, "white": 0.03, "random": 0.05, "patch": 0.6}


def some_evidence(*pairs: tuple[str, str], axes: dict[str, PlottedAxis] = AXES) -> Evidence:
    """Values tell where they belong: every further level adds 0.01, every further pair 0.1."""
    rows, excess, destruction, breaks, worst = [], [], [], [], []
    for add, (victim, patch) in enumerate(pairs or [("net", "stop")]):
        varied = [(axis, level, n) for axis in axes for n, level in enumerate(axes[axis].levels)]
        for axis, level, n in [("baseline", "", 0), *varied]:
            place: dict[str, Any] = {"victim": victim, "patch": patch, "axis": axis, "level": level, "n": 40}
            for condition, mean in MEANS.items():
                value = mean + (0.1 * add + 0.01 * n if condition == "patch" else 0)
                row = place | {"condition": condition, "mean": value, "low": value * 0.9, "high": value * 1.1 + 0.01}
                rows += [row | {"metric": metric, "region": "all"} for metric in ("success", "confidence")]
                if axis == "baseline":
                    rows += [row | {"metric": "confidence", "region": ring} for ring in RINGS]
            value = 0.55 + 0.1 * add + 0.01 * n
            # Of each axis the first level is chance's.
            p = 0.25 if axis != "baseline" and n == 0 else 0.0001
            excess.append(place | {"mean": value, "low": value - 0.1, "high": value + 0.1, "p": p / 5, "p_adjusted": p})
            if axis == "yaw":
                destruction.append(place | {"rate": 0.123, "low": 0.1, "high": 0.2})
        pair = {"victim": victim, "patch": patch}
        breaks.append(
            pair | {"axis": "yaw", "level": 12.5, "low": None, "high": 20.0, "n": 40, "rises": False, "most": 0.9}
        )
        for condition in ("random", "patch"):
            place = {"axis": "half_sphere", "level": (40.0, 90), "condition": condition, "n": 20}
            worst.append(pair | place | {"mean": MEANS[condition], "low": 0.01, "high": 0.7})
    panel = Panel(torch.rand(3, 9, 16), torch.rand(3, 9, 16))
    return Evidence(
        title="sweep <1>",
        sentence="It works: the excess over random is 0.55 [0.45, 0.65] & more.",
        outcome=Outcome.WORKS,
        facts="Success 0.050 with a random patch.",
        setup=[("Seed", "0")],
        command="patchattack evaluate run='a b'",
        versions={"torch": "2.15.0"},
        axes=axes,
        rows=rows,
        excess=excess,
        destruction=destruction,
        breaks=breaks,
        worst=worst,
        reach=("confidence", RINGS),
        primary_metric=("success", "all"),
        labels={"success": "attack success rate", "confidence": "probability in $x_1$"},
        arrows={"success": "higher", "confidence": "higher"},
        examples=[Example({"clean": panel, "random": panel, "patch": panel})],
        legend=torch.rand(3, 5, 5),
        legend_text="Colour is direction.",
        changes_legend=(None, ""),
        patches={patch: torch.rand(4, 6, 6) for _, patch in pairs or [("net", "stop")]},
    )


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())


def check_asks_nothing(page: Page) -> None:
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#")), tag
    assert not re.search(r"@import|url\((?!#)", page.source)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<>]*", page.source)) <= namespaces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    write_evidence(folder, some_evidence())
    return folder


@pytest.fixture(scope="module")
def shown(folder: Path) -> Page:
    return Page(folder / "report.html")


def test_the_page_is_whole_and_asks_nothing_of_anybody(shown: Page) -> None:
    check_asks_nothing(shown)
    assert sum(tag == "img" for tag, _ in shown.tags) == 1 + 1 + 3 * 2  # patch, legend, conditions × (frame, output)
    assert sum(tag == "svg" for tag, _ in shown.tags) == 2 + len(AXES)  # the baseline and the reach, too


def test_the_page_shows_everything_and_escapes_it(shown: Page) -> None:
    text = " | ".join(shown.text)
    for words in (
        *("sweep <1>", "The patch works", "0.55 [0.45, 0.65] & more", "0.050 with a random patch", "run='a b'"),
        *("Print <model>", "Place of the centre", "Colour is direction.", "torch 2.15.0", "probability in $x_1$ ↑"),
        *(CONDITIONS[name] for name in MEANS),
    ):
        assert words in text
    written = re.sub(r"data:[\w/+;,=-]+", "", shown.source.split("</style>")[1])  # not in pictures' letters
    assert "nan" not in written.lower()


def test_figures_turn_with_the_theme(shown: Page) -> None:
    styles = " ".join(attributes["style"] or "" for _, attributes in shown.tags if "style" in attributes)
    assert "var(--patch)" in styles
    assert set(re.findall(r"#[0-9a-f]{6}", styles)) <= {"#000000"}


def test_behind_every_picture_are_its_numbers(shown: Page) -> None:
    tables = shown.source.split("<details>")[1:]
    assert len(tables) == 2 + len(AXES)
    around, yaw, location, pose, printed = (
        re.sub(r"<[^>]*>", " ", table.split("</details>")[0]).split() for table in tables[1:]
    )
    assert [yaw.index(level) for level in ("−30", "0", "30")] == sorted(
        yaw.index(level) for level in ("−30", "0", "30")
    )
    for number in ("0.620", "0.610", "0.600", "[0.540,", "0.550", "0.250", "0.001", "0.123", "40"):
        assert number in yaw
    assert yaw.index("0.610") < yaw.index("0.620") < yaw.index("0.600")  # as the levels are ordered, not as given
    assert "Destruction" not in location
    assert " ".join(location).count("row 2, column 3") == 1
    assert "0 to 1 sides away" in " ".join(around)
    assert "Excess" not in around
    assert "40° towards 315°" in " ".join(pose)
    assert {"off", "on", "0.600", "0.610"} <= set(printed)


def test_breaks_and_the_worst_place_are_said_below_their_figures(shown: Page) -> None:
    said = re.sub(r"\s+", " ", shown.source)
    assert "Half of the scenes are won at 12.5 [beyond, 20.0], more of them below it." in said
    assert "The patch is strongest at 40° towards 90°: 0.600 [0.010, 0.700], a random patch 0.050 [" in said


@pytest.mark.parametrize(("most", "words"), [(1.0, "every one"), (0.2, "none"), (None, "none")])
def test_a_break_beyond_the_levels_says_on_which_side(most: float | None, words: str) -> None:
    beyond = some_evidence().breaks[0] | {"level": None, "most": most}
    said = Numbers(replace(some_evidence(), breaks=[beyond])).remarks(("net", "stop"), "yaw")
    assert said == [f"Half of the scenes or more are won at {words} of these levels."]


def test_figures_for_papers_are_as_wide_as_a_column(folder: Path) -> None:
    names = {"baseline", "reach", *AXES}
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")}
    assert {path.name for path in (folder / "figures").iterdir()} == expected | {"primary_metric.tex", "conditions.tex"}
    for name in names:
        file = folder / "figures" / name
        png = file.with_suffix(".png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", png[16:20]) == (990,)  # 3.3 inches of 300 pixels
        pdf = file.with_suffix(".pdf").read_bytes()
        assert pdf.startswith(b"%PDF-")
        assert b"/Type3" not in pdf
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf)
        assert float(width) == pytest.approx(3.3 * 72)
        svg = ElementTree.parse(file.with_suffix(".svg")).getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert float((svg.get("width") or "").removesuffix("pt")) == pytest.approx(3.3 * 72)
        assert not list(svg.iter("{http://www.w3.org/2000/svg}text"))  # outlines need no font


def test_tables_for_latex_have_the_numbers(folder: Path) -> None:
    headline = (folder / "figures" / "primary_metric.tex").read_text()
    assert "% patchattack evaluate run='a b'\n" in headline
    assert r"\begin{tabular}{ll" + "r" * 7 + "}" in headline
    assert "Victim & Patch & no patch & grey card & random patch & patch & excess & p & n" in headline
    assert r"net & stop & 0.000 & 0.020 & 0.050 & 0.600 & 0.550 {[}0.450, 0.650] & $<$ 0.001 & 40 \\" in headline
    conditions = (folder / "figures" / "conditions.tex").read_text()
    assert r"Yaw ($^\circ$) & $-$30 & 0.050 & 0.610 & 0.560 {[}0.460, 0.660] & $<$ 0.001 & 40 \\" in conditions
    assert r"Print $<$model$>$ & off & 0.050 & 0.600 & 0.550 {[}0.450, 0.650] & 0.250 & 40 \\" in conditions
    assert "\n & 0 & 0.050 & 0.620 &" in conditions  # an axis is named once
    assert conditions.count(r"\midrule") == len(AXES)
    for table in (headline, conditions):
        lines = [line for line in table.splitlines() if line.endswith(r"\\")]
        columns = re.findall(r"tabular}{([lr]+)}", table)[0]
        assert {line.count(" & ") + 1 for line in lines} == {len(columns)}
        assert table.isascii()


def test_what_latex_would_read_is_escaped() -> None:
    assert latex.escape(r"5 % & a_b [x] \n") == r"5 \% \& a\_b {[}x] \textbackslash{}n"


def test_the_same_evidence_gives_the_same_bytes(tmp_path: Path) -> None:
    evidence = some_evidence(axes={"print": AXES["print"]})
    for name in ("a", "b"):
        write_evidence(tmp_path / name, evidence)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 1 + 3 * 3 + 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_several_patches_and_victims_have_figures_of_their_own(tmp_path: Path) -> None:
    pairs = [("net", "A/1"), ("net", "B"), ("other", "B")]
    write_evidence(tmp_path, some_evidence(*pairs, axes={"print": AXES["print"]}))
    names = {path.stem for path in (tmp_path / "figures").glob("*.pdf")}
    told = ("1-a-1-on-net", "2-b-on-net", "3-b-on-other")
    assert names == {"excess", *(f"{figure}-{name}" for figure in ("baseline", "reach", "print") for name in told)}
    shown = Page(tmp_path / "report.html")
    check_asks_nothing(shown)
    assert {"A/1 on net", "B on net", "B on other"} <= set(shown.text)
    assert "B on other & Print $<$model$>$ & off &" in (tmp_path / "figures" / "conditions.tex").read_text()


def test_what_was_not_measured_is_a_dash_and_nothing_breaks(tmp_path: Path) -> None:
    whole = some_evidence()
    unknown = {"mean": math.nan, "low": math.nan, "high": math.nan}
    rows = [row | unknown if row["level"] == (0, 1) else row for row in whole.rows if row["level"] != 30.0]
    excess = [row | unknown | {"p_adjusted": math.nan} for row in whole.excess if row["axis"] == "location"]
    bare = replace(
        whole,
        rows=rows,
        excess=excess,
        destruction=[],
        breaks=[],
        worst=[],
        examples=[],
        legend=None,
        outcome=Outcome.FAILS,
    )
    write_evidence(tmp_path, bare)
    shown = Page(tmp_path / "report.html")
    assert "Not shown to work" in shown.text
    assert "What the network sees" not in shown.text
    assert "–" in shown.text
    written = re.sub(r"data:[\w/+;,=-]+", "", shown.source.split("</style>")[1])  # not in pictures' letters
    assert "nan" not in written.lower()
    assert "nan" not in (tmp_path / "figures" / "conditions.tex").read_text()


def drawn(evidence: Evidence, axis: str) -> Any:
    numbers = Numbers(evidence)
    with page.figure_style():
        return figures_of(numbers)[numbers.figure(axis, next(iter(numbers.pairs)))]()


def test_a_level_that_may_be_chance_has_a_hollow_dot() -> None:
    excess = drawn(some_evidence(), "yaw").axes[1]
    hollow, filled = (
        {float(x) for line in excess.lines if line.get_markerfacecolor() == face for x in line.get_xdata()}
        for face in (page.DAY["paper"], page.DAY["patch"])
    )
    assert hollow == {30.0}
    assert {-30.0, 0.0} <= filled


@pytest.mark.parametrize("way", ["higher", "lower"])
def test_maps_are_darker_where_the_attack_is_stronger(way: str) -> None:
    evidence = replace(some_evidence(), arrows={"success": way, "confidence": way})
    success, excess = drawn(evidence, "location").axes
    strengths = [patch.get_alpha() for patch in success.patches]
    assert strengths == sorted(strengths, reverse=way == "lower")
    assert (success.patches[0].get_xy(), success.patches[-1].get_xy()) == ((0, 0), (2, 1))
    assert success.yaxis_inverted()  # the first row is the frame's upper one
    texts = [(text.get_text(), text.get_weight()) for text in excess.texts]
    assert texts[0] == ("0.550", "normal")  # chance's
    assert texts[5] == ("0.600", "bold")


def test_charts_of_one_metric_have_one_scale() -> None:
    evidence = some_evidence(("net", "A"), ("other", "A"))
    assert drawn(evidence, "yaw").axes[0].get_ylim() == drawn(evidence, "print").axes[0].get_ylim()


@pytest.mark.parametrize("style", [page.figure_style, page.paper_style])
def test_names_of_curves_never_lie_upon_each_other(style: Any) -> None:
    with style():
        figure, axes = page.axes_of(height=1.5)
        axes.set_ylim(0, 1)
        ends = [(f"curve {n}", "#000000", value) for n, value in enumerate([0.0, 0.01, 0.02, 0.5, 0.98, 1.0, math.nan])]
        page.label_ends(axes, ends)
        figure.draw_without_rendering()
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert [text.get_text() for text in sorted(axes.texts, key=lambda text: text.get_window_extent().y0)] == [
        f"curve {n}" for n in range(6)
    ]


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        ([1.0, 5.0, 9.0], [1, 5, 9]),  # room enough
        ([5.0, 5.0], [4, 6]),  # about their common place
        ([0.0, 0.0, 9.0], [0, 2, 9]),  # not below the axes
        ([10.0, 10.0], [8, 10]),  # nor above
        ([4.0, 5.0, 5.5], [2.83, 4.83, 6.83]),
    ],
)
def test_places_keep_their_distance(wanted: list[float], placed: list[float]) -> None:
    assert page._spread(wanted, gap=2, length=10) == pytest.approx(placed, abs=0.01)
