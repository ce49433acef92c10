from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchattack.commands import cost as command_cost
from patchattack.errors import InputError
from patchattack.job import Settings
from patchattack.studies import cost
from patchattack.studies.cost import Measured, Plan, estimate

FOUND = Measured(
    start=10, steps=[4, 2, 1], validations=[0.5, 0.25, 0.125], scene=0.5, export=3, test_scene=0.25, scene_bytes=1000
)


def settings(**given: Any) -> Settings:
    return Settings(**{"steps": 100, "batch": 4, "validate_every": 10, **given})


def test_one_run_is_the_sum_of_its_parts() -> None:
    found = estimate(FOUND, Plan(), settings(), scenes=30, test_scenes=8)
    # 10 steps each with four and two candidates, 80 with one; each of 30 scenes is unseen once, then remembered.
    assert found.training == 10 * 4 + 10 * 2 + 80 * 1 + 30 * 0.5
    assert found.validation == 0.5 + 0.25 + 8 * 0.125
    assert (found.start, found.measurement) == (10, 3 + 8 * 0.25)
    assert found.total == 10 + found.training + found.validation + found.measurement


@pytest.mark.parametrize(
    ("plan", "given", "steps", "training"),
    [
        (Plan(steps=0), {}, 0, 0),
        (Plan(steps=5), {}, 5, 5 * 4 + 20 * 0.5),  # ends before a candidate is dropped
        (Plan(scenes=200), {}, 50, 40 + 20 + 30 + 200 * 0.5),
        (Plan(scenes=200, epochs=2), {}, 100, 40 + 20 + 80 + 200 * 0.5),
        (Plan(scenes=200, epochs=2), {"memory_gb": 1e-4}, 100, 40 + 20 + 80 + 400 * 0.5),  # they do not fit
        (Plan(scenes=200, epochs=2), {"zoom": 2.0}, 100, 40 + 20 + 80 + 400 * 0.5),  # no scene is seen twice
        (Plan(scenes=201), {"accumulate": 2}, 26, 40 + 20 + 6 + 201 * 0.5),
    ],
)
def test_a_plan_says_how_many_steps(plan: Plan, given: dict[str, Any], steps: int, training: float) -> None:
    chosen = settings(**given)
    assert plan.updates(chosen) == steps
    assert estimate(FOUND, plan, chosen, scenes=30, test_scenes=8).training == training


def test_prices_are_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert cost.price({"cpu": 0.5}, torch.device("cpu")) == ("cpu", 0.5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    prices = {"cpu": 1.0, "A10": 2.0, "a100": 3.0}
    assert cost.price(prices, torch.device("cuda:0")) == ("a100", 3.0)
    with pytest.raises(InputError, match=r"""'\+prices."NVIDIA A100-SXM4-80GB"=PRICE'"""):
        cost.price({"T4": 1.0}, torch.device("cuda:0"))
    with pytest.raises(InputError, match=r"prices.T4: expected a price of 0 or more an hour, got -1"):
        cost.price({"T4": -1.0}, torch.device("cpu"))


def test_the_table_adds_up_runs_devices_and_money() -> None:
    one = cost.Estimate(1800, 3600, 900, 900)  # two hours
    text = cost.table({"mine": (Plan(runs=5), 100, one)}, per_hour=1.5, devices=2, currency="EUR")
    assert [line.split() for line in text.splitlines()][1] == ["mine", "5", "100", "2.00", "10.0", "6.0", "15.00"]


def test_the_command_measures_every_part_and_leaves_nothing(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Measured] = []
    measure = cost.measure
    monkeypatch.setattr(cost, "measure", lambda *given: measured.append(measure(*given)) or measured[0])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    plan = "+plans.mine={runs: 3, steps: 7}"
    outcome = command("attack=flow", *tiny, "devices=2", plan, entry="cost")
    assert outcome.status == 0, outcome.err
    (found,) = measured
    assert len(found.steps) == len(found.validations) == 2  # two candidates, and one
    assert min(found.start, found.scene, found.test_scene, found.scene_bytes) > 0
    assert min(found.export, *found.steps, *found.validations) >= 0
    lines = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line[:1].isalpha()}
    assert lines["mine"][:2] == ["3", "7"]
    assert lines["kitti_raw"][:2] == ["1", "16,000"]
    assert not [*tmp_path.rglob("*.json")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("+plans.mine={days: 3}", "plans: expected runs, scenes, epochs and steps as numbers, got: "),
        ("+plans.mine={runs: 0}", "plans: expected runs of 1 or more, got 0"),
        ("devices=0", "devices: expected an integer >= 1, got 0"),
    ],
)
def test_bad_plans_are_refused_before_anything_is_measured(
    given: str, message: str, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_cost.cli, "build_parts", None)
    outcome = command("attack=flow", *tiny, given, entry="cost")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
