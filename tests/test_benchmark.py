"""Every suite runs, and says what has changed; nothing here depends on how fast the machine is."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models import squeezenet1_0

from patchattack.attacks.flow import FlowAttack
from patchattack.victims.compact.flow import CompactFlow

sys.path.append(str(Path(__file__).parents[1] / "scripts" / "maintain"))
import benchmark
from suites import data, eot, host, peer, scale, start, step
from suites.measure import Options, Row

CPU = torch.device("cpu")
SMALL = Options(CPU, 1, small=True)


def test_a_step_is_the_step_that_it_speaks_of() -> None:
    whole = step.Step(CompactFlow("matching", "random"), FlowAttack().loss, (1, 2, 64, 64), CPU)
    before = whole.patch().detach().clone()
    whole.floor()
    assert torch.equal(whole.patch(), before)
    whole.whole()
    assert not torch.equal(whole.patch(), before)


def test_a_step_is_few_operations_whatever_the_batch() -> None:
    counts = {row.name: row.median for row in host.rows(replace(SMALL, pairs=1)) if row.unit == "operations"}
    for transforms, draw, gradient in (("light", 80, 200), ("default", 150, 350), ("all", 200, 500)):
        for part, most in (("draw", draw), ("gradient", gradient)):
            few, more = (counts[f"{part}, {transforms}, batch {batch}"] for batch in (2, 5))
            assert few == more <= most


def named(rows: Iterator[Row]) -> dict[str, Row]:
    found = list(rows)
    assert len({(row.name, row.unit) for row in found}) == len(found)
    assert all(row.low <= row.median <= row.high for row in found)
    return {row.name: row for row in found}


def test_steps_over_their_victims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "Raft", lambda *_, **__: CompactFlow("matching", "random"))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: None)  # which takes a minute
    assert [row.unit for row in named(step.rows(SMALL)).values()] == ["ratio"] * 4


def test_every_transform_is_compared_with_none() -> None:
    rows = named(eot.rows(SMALL))
    assert rows.keys() == {"render without transforms", *(each.__name__ for each in host.APPEARANCE + host.CAMERA)}


def test_scenes_are_decoded_remembered_and_moved() -> None:
    rows = named(data.rows(SMALL))
    assert rows["2 scenes remembered over rendered"].median < 1


def test_the_toolbox_races_on_the_same_images(tmp_path: Path) -> None:
    weights, images = tmp_path / "weights.safetensors", tmp_path / "images"
    safetensors.torch.save_file(squeezenet1_0().state_dict(), weights)
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), np.full((64, 64, 3), 80 * number, np.uint8))
    rows = named(peer.race(replace(SMALL, weights=weights, images=images)))
    assert [row.unit for row in rows.values()] == ["s"] * 3
    assert all("at least: 0% after 1 steps" in row.note for row in rows.values())


def test_the_toolbox_takes_the_same_steps() -> None:
    assert [row.unit for row in named(peer.rows(SMALL)).values()] == ["ratio"] * 2  # no race without weights


def test_the_toolbox_is_measured_as_shipped_and_mended() -> None:
    """As shipped, a step goes by the sum of all gradients so far, and those of the weights are computed too."""
    frames = torch.randint(0, 256, (1, 1, 3, 32, 32), dtype=torch.uint8)
    victim = step.LogitsOnly()
    for shipped in (False, True):
        toolbox = peer.Toolbox(victim, 0.3, 32, 1, CPU, shipped)
        gradients = []
        toolbox.attack._patch.register_hook(lambda gradient, kept=gradients: kept.append(gradient.clone()))
        for _ in range(2):
            toolbox.step(frames)
        assert torch.equal(toolbox.attack._patch.grad, sum(gradients) if shipped else gradients[-1])
        weights = list(toolbox.attack.estimator.model.parameters())
        assert {weight.requires_grad for weight in weights} == {shipped}
    assert not any(weight.requires_grad for weight in victim.parameters())


def test_a_step_grows_with_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        """One process, this one."""

        def __init__(self, devices: int, options: Options) -> None:
            self.training = scale.Training(devices, scale.scenes(True), CPU)

        def seconds(self) -> float:
            out = io.StringIO()
            scale.serve(self.training, iter(["step"]), out)
            return float(out.getvalue().removeprefix("took "))

        def close(self) -> None:
            pass

    monkeypatch.setattr(scale, "Worker", Worker)
    monkeypatch.setattr(scale, "CompactFlow", lambda _: CompactFlow("matching", "random"))
    rows = named(scale.rows(SMALL))
    assert len([row for row in rows.values() if row.unit == "ratio"]) == 7
    if sys.platform == "linux":
        assert rows["peak memory of a step, batch 4"].median > 1


def test_the_start_is_that_of_commands(
    command: Callable[..., Any], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\n1," in (finished / "metrics.csv").read_text()
    seen = []

    def run(words: Sequence[str], *_: object) -> tuple[float, float]:
        seen.append([word for word in words if not word.startswith("output=")])
        return 1.0, 2.0

    with monkeypatch.context() as patches:
        patches.setattr(start, "run", run)
        rows = named(start.rows(SMALL))
    assert rows["first step beyond import torch"].median == -1
    assert rows["a run of one step on eight small scenes"].median == 2
    assert command(*seen[3][1:], "--cfg=job").status == 0
    first, whole = start.run(["-c", "print(1)"])
    assert 0 < first <= whole
    with pytest.raises(RuntimeError, match="no such thing"):
        start.run(["-c", "raise SystemExit('no such thing')"])


def test_a_file_tells_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "--suite", "data", "--device", "cpu", *arguments])
        benchmark.main()
        return capsys.readouterr().out

    def rows(*medians: float) -> None:
        found = [Row.of(f"row {n}", "ratio", [median, median + 0.2]) for n, median in enumerate(medians)]
        monkeypatch.setattr(data, "rows", lambda _: iter(found))

    old = tmp_path / "old.json"
    rows(1, 2, 3, 4)
    run("--output", str(old))
    stored = json.loads(old.read_text())
    assert [Row(**row) for row in stored["rows"]] == list(data.rows(SMALL))
    assert stored["machine"]["torch"] == torch.__version__
    assert str(Path.home()) not in old.read_text()
    stored["machine"]["torch"] = "1.0"
    old.write_text(json.dumps(stored))
    rows(1.1, 1, 4)
    said = run("--against", str(old))
    assert "torch: 1.0 before" in said
    verdicts = [line.split(" | ")[-1].strip(" |") for line in said.split("before | now")[1].splitlines()[2:]]
    assert verdicts == ["as before", "less", "more", "no more measured"]
