from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack.attacks.attack import Attack
from patchattack.attacks.flow import FlowAttack
from patchattack.indicators import Indicator
from patchattack.patch import Patch
from patchattack.reporting import page
from patchattack.reporting.report import Example, Panel, Report, example, write_report
from patchattack.reporting.threat_model import RunFacts, threat_model
from patchattack.statistics import Outcome

pytestmark = pytest.mark.figures

VALUES = {"clean": 1.0, "grey": 0.98, "random": 0.962, "patch": -0.213}


CONFIG: dict[str, Any] = {
    "seed": 3,
    "attack": {"_target_": "patchattack.attacks.flow.FlowAttack", "target": None, "distance": "cosine"},
    "data": {"_target_": "patchattack.data.world.World"},
    "placement": {"_target_": "here.Uniform", "rotation": [-10, 10], "tilt": 0.0, "yaw": None, "motion": "static"},
    "bend": None,
    "appearance": {"contrast": {"_target_": "patchattack.eot.appearance.Contrast", "range": [0.8, 1.2]}},
    "camera": {"sensor_noise": {"_target_": "patchattack.eot.camera.SensorNoise", "range": [0.0, 0.02]}},
    "defense": {},
    "patch": {"shape": "circle"},
    "print": {"field_of_view": 90},
    "trainer": {"test_draws": 4},
}


def some_threat_model(**changes: Any) -> dict[str, Any]:
    """Of a square of 20 px and of one of 10 px that is turned by 90° counter-clockwise."""
    upright = torch.tensor([[0.0, 0.0], [20, 0], [20, 20], [0, 20]])
    row = {"metric": "cosine", "region": "outside", "mean": 0.5, "low": 0.4, "high": 0.6, "n": 12}
    facts = RunFacts(
        outcome="works",
        sentence="The patch works.",
        unbeaten={"digital": [], "photographed": ["drawn"]},
        attack=FlowAttack(),
        victims=["raft <small>"],
        gradients=True,
        queries=1234,
        patch=Patch.create(resolution=16, size_mm=100),
        frame=(100, 200),
        frames=2,
        corners=torch.stack([upright, upright.roll(1, 0) / 2]),
        scenes=(90, 5, 12),
        rows=[row | {"condition": name} for name in ("clean", "grey", "random", "patch", "coarse")],
    )
    return threat_model(CONFIG | changes.pop("config", {}), replace(facts, **changes))


def some_report() -> Report:
    rows = [
        {"condition": condition, "metric": metric, "region": region, "n": 128}
        | {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        for metric in ("cosine", "epe")
        for region in ("all", "outside")
        for condition, mean in VALUES.items()
    ]
    history: list[dict[str, float]] = [{"step": step, "attack": 1 / (step + 1), "tv": 0.1} for step in range(60)]
    for line in history[::20]:
        line |= {"validation/patch": line["attack"], "validation/random": 0.9}
    clean = Panel(frame=torch.rand(3, 8, 16), output=torch.rand(3, 8, 16))
    panel = replace(clean, change=torch.rand(3, 8, 16))
    return Report(
        title="run <one>",
        verdict="The patch turns the motion; 3 < 4 & so on.",
        facts="Cosine 1.000 without a patch, -0.400 with it.",
        outcome=Outcome.WORKS,
        threat_model=some_threat_model(),
        rule="Less than 10 % is small.",
        rows=rows,
        labels={"cosine": "cosine of <clean> flow, in $x_1$", "epe": "end-point error, px"},
        arrows={"cosine": "lower", "epe": "higher"},
        primary_metric=("cosine", "outside"),
        over="step",
        history=history,
        examples=[Example({"patch": panel, "clean": clean, "random": panel})],
        legend=torch.rand(3, 5, 5),
        legend_text="Colour is direction.",
        changes_legend=(torch.rand(3, 5, 20), "Red is reversed."),
        indicators=[
            Indicator("Convergence", True, "The loss still fell.", "train longer"),
            Indicator("Gradient", False, "0 % of the texels have no gradient.", "another loss"),
            Indicator("Overfitting", None, "2 losses are too few.", "more scenes"),
        ],
        patch=torch.rand(4, 6, 6),
        setup=[("Victim", "compact <b>bold</b>")],
        command="patchattack train 'attack=flow' seed=3",
        versions={"torch": "2.15.0"},
    )


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(path: Path, report: Report) -> Page:
    write_report(path / "report.html", report)
    return Page(path / "report.html")


def test_page_asks_nothing_of_anybody(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_report())
    assert not page.all("script")
    assert not page.all("link")
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#")), tag
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"@import|url\((?!#)", text)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<>]*", text)) <= namespaces


def test_pictures_are_the_tensors_in_rgb(tmp_path: Path) -> None:
    report = some_report()
    sources = [image["src"] for image in page_of(tmp_path, report).all("img")]
    assert len(sources) == 2 + (2 + 3 + 3) + 1  # legends, frame and output and change where there is one, patch
    raw = np.frombuffer(base64.b64decode(sources[-1].split(",")[1]), np.uint8)
    pixels = cv2.cvtColor(cv2.imdecode(raw, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    assert np.array_equal(pixels, (report.patch * 255).round().byte().permute(1, 2, 0).numpy())


def test_wide_frames_are_reduced(tmp_path: Path) -> None:
    panel = Panel(torch.rand(3, 20, 1280), torch.rand(3, 20, 1280))
    page = page_of(tmp_path, replace(some_report(), examples=[Example({"clean": panel})]))
    raw = np.frombuffer(base64.b64decode(page.all("img")[-2]["src"].split(",")[1]), np.uint8)
    assert cv2.imdecode(raw, cv2.IMREAD_UNCHANGED).shape == (10, 640, 3)


def test_text_is_escaped_also_in_figures(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_report())
    assert "compact <b>bold</b>" in page.text
    assert "The patch turns the motion; 3 < 4 & so on." in page.text
    assert page.text.count("cosine of <clean> flow, in $x_1$") == 1  # the axis; no mathematics is typeset
    assert not page.all("b")
    assert not page.all("clean")


def test_sections_come_in_their_order_and_conditions_in_theirs(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_report())
    shown = " | ".join(page.text)
    parts = [
        "The patch works",
        "3 < 4",
        "Threat model and evidence",
        "raft <small>",
        "Not tested",
        "Effect",
        "Less than 10 % is small.",
        "What the network sees",
        "Did the attack itself fail?",
        "Training",
        "compact <b>bold</b>",
        "All metrics",
        "Repeat",
    ]
    places = [shown.index(part, shown.index("run <one> | The patch works")) for part in parts]
    assert places == sorted(places)
    scene = shown[shown.index("frame | output") : shown.index("Did the attack")]
    assert [name.strip() for name in scene.split("|")][:-1] == [
        "frame", "output", "change", "no patch", "random patch", "optimised patch"
    ]  # fmt: skip
    assert [image["alt"] for image in page.all("img")][4:7] == [
        "Frame, random patch", "Output, random patch", "Change, random patch"
    ]  # fmt: skip


def test_table_has_every_number(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_report())
    for number in ("1.00", "0.980", "0.962", "−0.213"):
        assert page.text.count(number) >= 4  # metric × region
    assert page.text.count("[−0.313, −0.113]") == 4
    assert page.text.count("128") == 4
    assert "cosine of <clean> flow, in $x_1$ ↓" in page.text
    assert "end-point error, px ↑" in page.text


def test_missing_cells_and_unknown_conditions_and_regions_are_shown(tmp_path: Path) -> None:
    report = some_report()
    extra = {"condition": "jpeg 50", "metric": "epe", "region": "sky", "mean": 7.77, "low": 7.0, "high": 8.0, "n": 9}
    text = page_of(tmp_path, replace(report, rows=[*report.rows, extra])).text
    for words in ("jpeg 50", "sky", "7.77", "–"):
        assert words in text


@pytest.mark.parametrize(
    ("outcome", "look", "words"),
    [
        (Outcome.WORKS, "worked", "The patch works"),
        (Outcome.FAILS, "failed", "The patch does not work"),
        (Outcome.INCONCLUSIVE, "undecided", "Inconclusive"),
    ],
)
def test_verdict_has_a_state_in_words_and_colour(tmp_path: Path, outcome: Outcome, look: str, words: str) -> None:
    shown = page_of(tmp_path, replace(some_report(), outcome=outcome))
    assert shown.all("header")[0]["class"] == look
    assert words in shown.text
    assert "no more than a control" not in " ".join(shown.text)


def test_each_indicator_has_a_line_and_advice_where_it_is_raised(tmp_path: Path) -> None:
    shown = page_of(tmp_path, some_report())
    assert [one["class"] for one in shown.all("li") if one] == ["warn", "ok", "unknown"]
    text = " ".join(shown.text)
    assert "Convergence The loss still fell. To try: train longer." in text
    assert "another loss" not in text
    bare = page_of(tmp_path, replace(some_report(), indicators=[]))
    assert "Did the attack itself fail?" not in bare.text


def test_an_attack_without_pictures_of_changes_has_a_column_less(tmp_path: Path) -> None:
    class Plain(FlowAttack):
        def changes(self, outputs: list[Any], clean: Any, frames: list[Tensor]) -> list[Tensor]:
            return Attack.changes(self, outputs, clean, frames)

    frames, flows = [torch.rand(2, 3, 8, 16)] * 2, [torch.rand(1, 2, 8, 16)] * 2
    drawn = [example(attack, ["clean", "patch"], frames, flows) for attack in (FlowAttack(), Plain())]
    changes = [[panel.change is None for panel in one.panels.values()] for one in drawn]
    assert changes == [[True, False], [True, True]]
    page = page_of(tmp_path, replace(some_report(), examples=drawn[1:]))
    assert "change" not in page.text
    assert "Red is reversed." not in " ".join(page.text)


def test_figures_follow_the_page_in_size_and_colour(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_report())
    assert len(page.all("svg")) == 3
    assert all("width" not in figure and "viewbox" in figure for figure in page.all("svg"))
    styles = " ".join(attributes["style"] or "" for _, attributes in page.tags if "style" in attributes)
    assert "var(--patch)" in styles
    assert set(re.findall(r"#[0-9a-f]{6}", styles)) <= {"#000000"}  # the rest would not turn with the theme


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    page = page_of(tmp_path, replace(some_report(), history=[], examples=[], legend=None))
    assert "Training" not in page.text
    assert "What the network sees" not in page.text
    assert len(page.all("svg")) == 1


def test_same_report_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        torch.manual_seed(0)
        write_report(tmp_path / name, some_report())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (0.0123, "0.012"), (-1.234, "−1.23"), (14.66, "14.7"), (1234.5, "1,234"), (math.nan, "–")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert page.number(value) == shown


def test_curves_are_drawn_over_queries_where_they_are_what_is_spent(tmp_path: Path) -> None:
    history = [{"queries": 40.0 * line, "loss": 1.0 / line} for line in range(1, 9)]
    page = page_of(tmp_path, replace(some_report(), over="queries", history=history))
    assert "queries" in page.text
    assert "step" not in page.text


def test_ticks_of_close_values_do_not_collide(tmp_path: Path) -> None:
    """They are values of at most five characters, and none has a remainder to add to it."""
    close = {"clean": 1.0, "grey": 0.99997, "random": 0.99996, "patch": 0.99995}
    rows = [
        {"condition": name, "metric": "cosine", "region": "outside", "mean": mean, "low": mean, "high": mean, "n": 9}
        for name, mean in close.items()
    ]
    text = page_of(tmp_path, replace(some_report(), rows=rows, history=[])).text
    ticks = [one for one in text if re.fullmatch(r"[01]\.\d+", one) and one != "1.000"]
    assert 3 <= len({*ticks}) <= 9
    assert all(len(one) <= 5 for one in ticks)
    assert not [one for one in text if re.fullmatch(r"[+−-]?\d(\.\d+)?e[+−-]\d+.*", one)]


def test_the_threat_model_says_how_the_patch_was_seen() -> None:
    conditions = some_threat_model()["conditions"]
    assert conditions["side_px"] == [10, 20]
    assert conditions["area_percent"] == [0.5, 2]
    assert conditions["distance_m"] == [0.5, 1]  # 100 mm, of a camera whose focal length is 100 px
    assert conditions["rotation_degrees"] == [0, 90]


def test_the_threat_model_says_who_attacks_what_and_beside_what() -> None:
    model = some_threat_model()
    assert model["attacker"]["knowledge"].startswith("white box")
    assert model["attacker"]["goal"] == "lower the cosine similarity to the clean flow outside the patch"
    assert model["attacker"]["data"] == {"source": "World", "training scenes": 90, "validation scenes": 5}
    assert model["measurement"]["controls"] == ["grey", "random"]
    assert model["measurement"]["results"]["patch"] == {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 12}
    assert "bootstrap" in model["measurement"]["intervals"]
    assert some_threat_model(gradients=False)["attacker"]["knowledge"].startswith("black box")


def test_the_threat_model_leaves_out_what_was_tested() -> None:
    placement = CONFIG["placement"] | {"yaw": [-30, 30], "motion": "scene"}
    before = some_threat_model()["not_tested"]
    changed = {"placement": placement, "bend": {"_target_": "here.Cloth"}, "defense": {"jpeg": {}}}
    after = some_threat_model(config=changed)["not_tested"]
    gone = " ".join(one for one in before if one not in after)
    for words in ("views from the side", "moves with the scene", "cylinders and cloth", "defences"):
        assert words in gone
    assert "contrast" not in " ".join(after)
    assert "motion blur, gamma, jpeg: not varied" in " ".join(after)
