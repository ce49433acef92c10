from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_sweep_report import Page, check_asks_nothing

from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.reporting.compare import differences, load_run, load_runs, write_comparison

pytestmark = pytest.mark.figures

CONFIG: dict[str, Any] = {
    "attack": {"_target_": "patchattack.attacks.flow.FlowAttack", "target": None},
    "seed": 0,
    "output": "x",
    "tracker": {"_target_": "patchattack.tracking.NullTracker"},
    "placement": {"area": 0.09},
    "renderer": {"placement": {"area": 0.09}, "whole_frame": False},
    "data": {"scenes": 40},
}


def write_run(
    folder: Path,
    mean: float = 0.5,
    half: float = 0.1,
    torch_version: str = "2.15.0",
    task: str = "flow",
    metric: str = "cosine",
    **config: Any,
) -> str:
    """A finished run's folder, of a flow attack whose patch leaves a cosine of ``mean`` ± ``half``."""
    versions = {"torch": torch_version}
    patch = Patch(torch.rand(3, 8, 8), torch.ones(1, 8, 8), (60, 60))
    facts = {"victims": ["flow_matching"], "step": 7, "versions": versions, "task": task}
    patch.save(folder / "patch.png", facts | {"primary_metric": [metric, "outside"]})
    rows = [
        {"condition": condition, "metric": metric, "region": "outside", "n": 9, "stronger": "lower"}
        | {"label": "cosine similarity to the clean flow"}
        | {"mean": value, "low": value - half, "high": value + half}
        for condition, value in (("random", 0.9), ("patch", mean))
    ]
    (folder / "results.json").write_text(json.dumps(rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"output": str(folder)} | config))
    (folder / "metrics.csv").write_text(f"step,attack,validation/patch\n0,,0.9\n10,-0.3,\n20,-0.5,{mean}\n")
    return str(folder)


def page_of(folder: Path, *runs: str) -> Page:
    write_comparison(folder / "report.html", load_runs(runs), "patchattack compare 'a b'")
    return Page(folder / "report.html")


def test_the_page_shows_the_runs_and_asks_nothing_of_anybody(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "first <1>"), write_run(tmp_path / "second", mean=-0.25, seed=3))
    check_asks_nothing(page)
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    assert sum(tag == "svg" for tag, _ in page.tags) == 3  # effect, validation, losses
    text = " | ".join(page.text)
    for words in ("first <1>", "flow_matching", "60 × 60 mm, step 7", "−0.250", "[−0.350, −0.150]", "random 0.900"):
        assert words in text
    assert "cosine similarity to the clean flow ↓" in text
    assert "patchattack compare 'a b'" in text
    assert "Made by different versions" not in text


def test_only_what_differs_is_told_and_once(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", extra=1)
    area = {"area": 0.04}
    second = write_run(tmp_path / "b", placement=area, renderer={"placement": area, "whole_frame": True}, seed=3)
    found = differences(load_runs([first, second]))
    expected = {"placement.area", "renderer.whole_frame", "seed", "extra"}
    assert found.keys() == expected  # neither outputs, nor what the renderer repeats
    assert found["placement.area"] == ["0.09", "0.04"]
    assert found["extra"] == ["1", "–"]
    page = page_of(tmp_path, first, second)
    assert expected <= set(page.text)
    assert "data.scenes" not in page.text


def test_runs_that_differ_in_nothing_are_said_to(tmp_path: Path) -> None:
    assert "Nothing in their configs." in page_of(tmp_path, write_run(tmp_path / "a"), write_run(tmp_path / "b")).text


@pytest.mark.parametrize(
    ("means", "half", "sentence"),
    [
        ((0.5, 0.1), 0.1, "The patch of b is the strongest: cosine similarity to the clean flow 0.100 [0.000, 0.200]"),
        ((0.1, 0.5), 0.1, "The patch of a is the strongest"),
        ((0.2, 0.1), 0.1, "No patch is shown to be the strongest"),
    ],
)
def test_the_strongest_is_named_only_if_intervals_are_apart(
    tmp_path: Path, means: tuple[float, float], half: float, sentence: str
) -> None:
    page = page_of(tmp_path, *(write_run(tmp_path / name, mean, half) for name, mean in zip("ab", means, strict=True)))
    assert any(text.startswith(sentence) for text in page.text)


def test_what_makes_numbers_less_comparable_is_said_at_the_top(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", torch_version="2.16.0", data={"scenes": 80}, metric="epe_clean")
    page = page_of(tmp_path, first, second)
    top = " | ".join(page.text[: page.text.index("The patches")])
    assert "Made by different versions of torch: 2.15.0 (a), 2.16.0 (b)." in top
    assert "Measured on different scenes: data.scenes differ." in top
    assert "judged by different metrics: cosine outside (a), epe_clean outside (b)." in top


def test_runs_of_the_same_name_go_by_their_paths(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / parent / "run") for parent in "ab"]
    assert [run.name for run in load_runs(folders)] == folders


def test_bad_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good")
    other = write_run(tmp_path / "other", task="classification")
    unfinished = write_run(tmp_path / "unfinished")
    (Path(unfinished) / "results.json").unlink()
    torn = write_run(tmp_path / "torn")
    (Path(torn) / "results.json").write_text('[{"condition"')
    for runs, message in (
        ([], "expected the folders of at least two runs, got none"),
        ([good], f"at least two runs, got {good}"),
        ([good, other], f"expected runs of one task, got {good} of flow and {other} of classification"),
        ([good, unfinished], f"patchattack train resume={unfinished}"),
        ([good, torn], f"this version, got {torn}"),
        ([good, str(tmp_path / "nowhere")], "nowhere"),
    ):
        with pytest.raises(InputError) as error:
            load_runs(runs)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    folder = Path(write_run(tmp_path / "run"))
    rows = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps([{**row, "metric": "another"} for row in rows]))
    with pytest.raises(InputError, match=r"finished runs of this version, got .*no row of cosine"):
        load_run(folder)


def test_the_command_refuses_in_one_line(command: Callable[..., Any], tmp_path: Path) -> None:
    outcome = command(f"runs=[{tmp_path}]", entry="compare")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "at least two runs" in outcome.err
