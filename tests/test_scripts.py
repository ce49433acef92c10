from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from patchattack import geometry, seeding
from patchattack.attacks.flow import FlowAttack
from patchattack.data.world import World
from patchattack.victims.compact.flow import CompactFlow

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train_victims(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, in worlds and with validations that take no time."""
    module = script("train_victims")
    monkeypatch.setattr(module, "World", lambda **given: World(size=(64, 128), supersampling=1, **given))
    monkeypatch.setattr(module, "SCENES_PER_WORLD", 5)
    return module


def test_augmented_pairs_keep_their_flow(train_victims: Any) -> None:
    scene = World(scenes=8, size=(64, 128)).__getitems__(list(range(8)))
    assert scene.flow is not None
    frames, flow = train_victims.augment(scene.frames, scene.flow.half(), seeding.generator(0))
    assert frames.dtype == flow.dtype == torch.float32
    assert 0 <= frames.min() < frames.max() <= 1
    mirrored = ((flow - scene.flow).abs().mean(dim=(1, 2, 3)) > 0.1).tolist()
    assert 0 < sum(mirrored) < 8
    points = geometry.pixel_grid((64, 128)) + flow.permute(0, 2, 3, 1)
    stays = ((points >= 0) & (points <= torch.tensor([127, 63]))).all(dim=-1).unsqueeze(1)
    error = (geometry.sample(frames[:, 1], points) - frames[:, 0]).abs() * stays
    still = (frames[:, 1] - frames[:, 0]).abs() * stays
    assert (error.mean(dim=(1, 2, 3)) < still.mean(dim=(1, 2, 3))).all()


def test_a_trained_victim_can_be_attacked(
    train_victims: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_victims.validate, "__defaults__", (10,))
    arguments = ["flow_encoder_decoder", "--steps", "2", "--scenes", "5", "--batch", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_victims.py", *arguments])
    train_victims.main()
    weights = tmp_path / "flow_encoder_decoder.safetensors"
    assert CompactFlow("encoder_decoder", weights)(torch.rand(1, 2, 3, 64, 64)).isfinite().all()
    card = (tmp_path / "flow_encoder_decoder.md").read_text()
    assert "train_victims.py flow_encoder_decoder --steps 2 --batch 2 --scenes 5 --seed 0" in card
    assert card in capsys.readouterr().out


def test_the_benchmark_takes_the_step_that_it_speaks_of() -> None:
    benchmark = script("benchmark")
    victim = CompactFlow("matching", "random")
    step = benchmark.Step(victim, FlowAttack().loss, (1, 2, 64, 64), torch.device("cpu"))
    before = step.patch().detach().clone()
    step.floor()
    assert torch.equal(step.patch(), before)
    step.whole()
    assert not torch.equal(step.patch(), before)
