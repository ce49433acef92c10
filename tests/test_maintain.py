from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from patchattack import geometry, seeding
from patchattack.attacks.classification import ClassificationAttack
from patchattack.attacks.flow import FlowAttack
from patchattack.data.flying_shapes import FlyingShapes
from patchattack.data.world import World
from patchattack.defenses.jpeg import JpegDefense
from patchattack.defenses.patch_cleanser import PatchCleanser
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError
from patchattack.job import Settings
from patchattack.patch import Patch
from patchattack.scene import Scene
from patchattack.victims.compact.classification import CompactClassifier
from patchattack.victims.compact.correlation import RawCorrelation
from patchattack.victims.compact.depth import CompactDepth
from patchattack.victims.compact.detection import CompactDetector
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.defended import Defended

SCRIPTS = Path(__file__).parents[1] / "scripts" / "maintain"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train_victims(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, in worlds and with measurements that take no time."""
    module = script("train_victims")
    monkeypatch.setattr(module, "SCENES_PER_WORLD", 5)
    for recipe in module.RECIPES.values():
        monkeypatch.setattr(type(recipe), "held_out", 10)
        monkeypatch.setattr(type(recipe), "options", recipe.options | {"supersampling": 1})
    return module


def test_augmented_pairs_keep_their_flow(train_victims: Any) -> None:
    recipe = train_victims.RECIPES["flow_matching"]
    scene = World(scenes=8, size=(64, 128)).__getitems__(list(range(8)))
    assert scene.flow is not None
    augmented = recipe.augmented(recipe.kept(scene).to("cpu"), seeding.generator(0))
    frames, flow = augmented.frames, augmented.flow.float()
    assert 0 <= frames.min() < frames.max() <= 1
    mirrored = ((flow - scene.flow).abs().mean(dim=(1, 2, 3)) > 0.1).tolist()
    assert 0 < sum(mirrored) < 8
    points = geometry.pixel_grid((64, 128)) + flow.permute(0, 2, 3, 1)
    stays = ((points >= 0) & (points <= torch.tensor([127, 63]))).all(dim=-1).unsqueeze(1)
    error = (geometry.sample(frames[:, 1], points) - frames[:, 0]).abs() * stays
    still = (frames[:, 1] - frames[:, 0]).abs() * stays
    assert (error.mean(dim=(1, 2, 3)) < still.mean(dim=(1, 2, 3))).all()


def test_flying_shapes_keep_their_flow_in_a_mirror_along_the_diagonal(train_victims: Any) -> None:
    flow = torch.zeros(8, 2, 4, 4)
    flow[:, 0, 1, 2] = 3  # at x 2, y 1: to the right
    scene = Scene(flow[:, None, :1].expand(8, 2, 3, 4, 4), torch.arange(8), flow=flow)
    seen = train_victims.transposed(scene, seeding.generator(0))
    turned = seen.flow[:, 1, 2, 1] == 3  # at x 1, y 2: down
    assert 0 < turned.sum() < 8
    assert torch.equal(seen.flow[~turned], flow[~turned])
    assert torch.equal(seen.flow.sum(dim=1), seen.frames[:, 0, 0])
    assert torch.equal(seen.flow.sum(dim=1), seen.frames[:, 1, 2])


def test_pairs_of_flying_shapes_lie_side_by_side_or_one_above_the_other(train_victims: Any) -> None:
    flow = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 8, 8)
    scene = Scene(flow[:, None, :1].expand(4, 2, 3, 8, 8), torch.arange(4), flow=flow)
    for axis, size in ((0, (8, 8)), (1, (16, 8)), (2, (8, 16))):
        seen = train_victims.mosaic(scene, axis)
        assert seen.size == size
        assert len(seen) == (2 if axis else 4)
        assert torch.equal(seen.flow[:, 0], seen.frames[:, 1, 2])
        assert set(seen.flow.unique().tolist()) == {0, 1, 2, 3}


def test_faint_scenes_keep_their_mean(train_victims: Any) -> None:
    frames = torch.rand(32, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = train_victims.faint(Scene(frames, torch.arange(32)), seeding.generator(0)).frames
    mean = frames.mean(dim=(1, 3, 4), keepdim=True)
    torch.testing.assert_close(seen.mean(dim=(1, 3, 4), keepdim=True), mean)
    share = ((seen - mean).flatten(1).norm(dim=1) / (frames - mean).flatten(1).norm(dim=1)).sort().values
    assert 0.15 <= share[0] < 0.2
    assert 0.4 < share[-1] <= 0.5


def test_the_matching_loss_is_least_for_the_true_displacement(train_victims: Any) -> None:
    reach, first = (3, 4), torch.randn(2, 64, 12, 14, generator=torch.Generator().manual_seed(0))
    matched = RawCorrelation(reach)(first, first.roll((1, 2), dims=(2, 3)))  # a cell down and two to the right

    def loss(x: float, y: float) -> float:
        there = torch.tensor([x, y]).view(1, 2, 1, 1).expand(2, 2, 12, 14)
        return train_victims.matching_loss(matched, there, reach).item()

    assert loss(2, 1) < 0.1
    assert min(loss(1, 2), loss(-2, -1), loss(2, -1), loss(-2, 1)) > 5
    assert loss(1.75, 1) == pytest.approx(0.75 * loss(2, 1) + 0.25 * loss(1, 1), rel=0.2)
    assert loss(4, 1) == 0  # beyond the reach


def test_a_training_goes_on_where_it_stopped(
    train_victims: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(train_victims.RECIPES["flow_correlation"], scenes=5, batch=2, steps=3)
    monkeypatch.setattr(train_victims, "pool", lambda *_: scene)
    scene = recipe.kept(FlyingShapes(scenes=5, size=(64, 64), supersampling=1).__getitems__(list(range(5))))
    whole, _ = train_victims.train(recipe, 0, torch.device("cpu"))
    monkeypatch.setattr(train_victims, "CHECKPOINT_EVERY", 2)
    checkpoint = tmp_path / "training.checkpoint"
    train_victims.train(recipe, 0, torch.device("cpu"), checkpoint)  # the checkpoint is that of step 2
    torch.manual_seed(7)
    resumed, minutes = train_victims.train(recipe, 0, torch.device("cpu"), checkpoint)
    assert minutes > 0
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_what_is_mirrored_keeps_its_depth_and_its_boxes(train_victims: Any) -> None:
    frames = torch.zeros(8, 1, 3, 4, 10)
    frames[..., 1:3, 6:9] = 1  # pixels 6 to 8: from 5.5 to 8.5
    boxes = torch.tensor([[[5.5, 0.5, 8.5, 2.5, 1], [torch.nan] * 5]]).repeat(8, 1, 1)
    given = Scene(frames, torch.arange(8), depth=frames[:, 0, :1], boxes=boxes)
    seen = train_victims.mirrored(given, seeding.generator(0))
    turned = seen.frames[:, 0, 0, 1, 1] == 1
    assert 0 < turned.sum() < 8
    assert torch.equal(seen.depth, seen.frames[:, 0, :1])
    for turn, box in zip(turned, seen.boxes, strict=True):
        assert box[0].tolist() == ([0.5, 0.5, 3.5, 2.5, 1] if turn else [5.5, 0.5, 8.5, 2.5, 1])
        assert box[1].isnan().sum() >= 4


def test_signs_move_a_little_and_are_not_mirrored(train_victims: Any) -> None:
    sign = torch.zeros(64, 64)
    sign[24:40, 16:24] = 1  # left of the middle
    scene = Scene(sign.expand(32, 1, 3, 64, 64), torch.arange(32))
    frames = train_victims.moved(scene, seeding.generator(0)).frames
    columns = frames.mean(dim=(1, 2, 3)) @ torch.arange(64.0) / frames.mean(dim=(1, 2, 3)).sum(dim=1)
    assert (columns < 36).all()  # 20 moves away from 31.5 by a quarter at most, and then by 6.4 px
    assert columns.std() > 2
    area = frames.sum(dim=(1, 2, 3, 4)) / scene.frames.sum(dim=(1, 2, 3, 4))
    assert 0.5 < area.min() < 0.8
    assert 1.2 < area.max() < 1.7


def test_an_opponent_lies_on_every_second_scene_and_climbs(train_victims: Any) -> None:
    recipe = train_victims.RECIPES["classifier_residual"]
    opponent = train_victims.Opponent(0.09, 0, torch.device("cpu"))
    world = World(scenes=4, seed=3, **recipe.options)
    scene = recipe.kept(world.__getitems__(range(4))).to("cpu")
    seen = opponent.over(scene)
    changed = (seen.frames != scene.frames).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False, True]
    assert torch.equal(seen.label, scene.label)
    before = opponent.patch().detach().clone()
    (seen.frames * 2).sum().backward()  # brighter is worse
    opponent.climb()
    moved = opponent.patch().detach() - before
    assert moved.min() >= 0
    assert moved.max() == pytest.approx(train_victims.OPPONENT_RATE)


@pytest.mark.parametrize("mix", ["cutout", "mixup", "cutmix"])
def test_mixed_images_are_learned_from(train_victims: Any, mix: str) -> None:
    """A network that sees nothing has the loss of chance, whatever the labels are mixed with."""
    classes = len(train_victims.classification.CLASSES)
    recipe = replace(train_victims.RECIPES["classifier_residual"], mix=mix)
    scene = Scene(torch.rand(4, 1, 3, 64, 64), torch.arange(4), label=torch.arange(4))
    loss = recipe.loss(lambda images: torch.zeros(len(images), classes), scene)
    assert loss.item() == pytest.approx(math.log(classes), rel=1e-5)


def test_greedy_cutout_hides_what_a_network_looks_at(train_victims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that answers by one bright pixel loses it to the first mask that can hide it; grey leaves it unsure."""

    class Pixel(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            modes.append(self.training)
            signal = images[:, 0, 20, 40] - 0.5
            return torch.stack([signal, -signal], dim=1)

    monkeypatch.setattr(train_victims, "GREEDY_TRIED", 36)
    modes: list[bool] = []
    network, images = Pixel(), torch.zeros(8, 3, 64, 64)
    images[:, :, 20, 40] = 1.0
    masked = train_victims.greedily_masked(network, images, torch.zeros(8, dtype=torch.long))
    assert modes == [False, False]  # batch norm does not learn from masks that were only tried
    assert network.training
    assert torch.equal(masked[::4], images[::4])
    hidden = torch.cat([masked[1:4], masked[5:]])
    assert hidden[:, :, 20, 40].unique().tolist() == [0.5]
    share = (hidden == 0.5).float().mean(dim=(1, 2, 3))
    assert share.min() >= 0.02  # at least a patch of the smallest area
    assert share.max() <= 2 * 28**2 / 64**2  # two masks of the largest

    recipe = replace(train_victims.RECIPES["classifier_residual"], mix=train_victims.GREEDY_CUTOUT)
    scene = Scene(images.unsqueeze(1), torch.arange(8), label=torch.zeros(8, dtype=torch.long))
    assert recipe.loss(network, scene) > replace(recipe, mix=None).loss(network, scene)


def test_a_training_can_begin_with_weights(train_victims: Any, tmp_path: Path) -> None:
    recipe = replace(train_victims.RECIPES["classifier_residual"], steps=1, scenes=5, batch=2, rate=1e-9)
    shipped = CompactClassifier().network.state_dict()
    file = tmp_path / "start.safetensors"
    save_file(shipped, file)
    trained, _ = train_victims.train(recipe, 0, torch.device("cpu"), start=file)
    for name, values in trained.named_parameters():
        torch.testing.assert_close(values, shipped[name], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="expected a file of weights"):
        train_victims.train(recipe, 0, torch.device("cpu"), start=tmp_path / "none.safetensors")


def test_average_precision(train_victims: Any) -> None:
    near, far, wrong = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 0, 60, 10]
    truth = [torch.tensor([[*near, 0], [*far, 0], [torch.nan] * 5])]

    def precision(*found: list[float], number: int = 0) -> float:
        return train_victims.average_precision([torch.tensor(found).view(-1, 6)], truth, number)

    assert precision([*near, 0.9, 0], [*far, 0.8, 0]) == 1
    assert precision([*near, 0.9, 0]) == 0.5
    assert precision([*near, 0.9, 0], [*far, 0.8, 1]) == 0.5  # another class
    assert precision() == 0
    assert math.isnan(precision(number=1))
    assert precision([*wrong, 0.9, 0], [*near, 0.8, 0], [*far, 0.7, 0]) == pytest.approx(2 / 3)
    # Found again is found wrongly: precision 1 up to a recall of 1/2, then 2/3.
    assert precision([*near, 0.9, 0], [*near, 0.8, 0], [*far, 0.7, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert precision([1.0, 0, 16, 10, 0.9, 0]) == 0.5  # 9 of 16
    assert precision([4.0, 0, 14, 10, 0.9, 0]) == 0  # 6 of 14


def test_the_best_of_all_scenes_comes_first(train_victims: Any) -> None:
    box = [0.0, 0, 10, 10]
    found = [torch.tensor([[50.0, 0, 60, 10, 0.5, 0]]), torch.tensor([[*box, 0.6, 0]])]
    truth = [torch.tensor([[*box, 0]]), torch.tensor([[*box, 0]])]
    assert train_victims.average_precision(found, truth, 0) == 0.5


def test_suppression_keeps_the_best_of_each_class(train_victims: Any) -> None:
    candidates = torch.tensor(
        [[0.0, 0, 10, 10, 0.3, 0.1], [0, 1, 10, 10, 0.6, 0.2], [0, 0, 10, 10, 0.1, 0.5], [20, 0, 30, 10, 0.2, 0.1]]
    )
    kept = train_victims.detections(candidates)
    expected = [[0, 1, 10, 10, 0.6, 0], [0, 0, 10, 10, 0.5, 1], [20, 0, 30, 10, 0.2, 0]]
    torch.testing.assert_close(kept, torch.tensor(expected))


TRAINED: dict[str, Any] = {
    "flow_correlation": lambda weights: CompactFlow("correlation", weights),
    "flow_encoder_decoder": lambda weights: CompactFlow("encoder_decoder", weights),
    "classifier_residual": lambda weights: CompactClassifier("residual", weights),
    "depth_unet": lambda weights: CompactDepth("unet", weights),
    "detector_centre": lambda weights: CompactDetector("centre", weights),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_victim_can_be_attacked(
    name: str, train_victims: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [name, "--steps", "2", "--scenes", "5", "--batch", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_victims.py", *arguments])
    train_victims.main()
    victim = TRAINED[name](tmp_path / f"{name}.safetensors")
    assert victim(torch.rand(1, victim.frames, 3, 64, 64)).isfinite().all()
    card = (tmp_path / f"{name}.md").read_text()
    assert f"train_victims.py {name} --steps 2 --batch 2 --scenes 5 --seed 0" in card
    assert "On 10 held-out scenes" in card
    assert card in capsys.readouterr().out


def test_what_is_certified_is_measured_scene_by_scene_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certify = script("certify")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(certify.cli, "command_line", lambda: "certify")
    victim = CompactClassifier(weights="random")
    parts: dict[str, Any] = {
        "attack": ClassificationAttack(goal="untargeted", target=None),
        "victim": Defended(victim, [PatchCleanser(side=0.25, masks=2)]),
        "data": World(scenes=10, size=(32, 64), subject="sign", frames=1, supersampling=1),
        "trainer": Settings(steps=1, batch=1, test_scenes=2, accelerator="cpu"),
        "output": str(tmp_path / "out"),
    }
    certify.run(parts)
    written = (tmp_path / "out" / "certified.json").read_text()
    facts = json.loads(written)
    assert facts["area"] == 0.25**2 / 2  # of a frame twice as wide as high
    assert facts["settings"] == {"side": 0.25, "masks": 2}
    rows = {(row["condition"], row["metric"]): row for row in facts["rows"]}
    answers = ("undefended", "defended", "certified")
    assert list(rows) == [*((one, "accuracy") for one in answers), *((one, "seconds") for one in answers)]
    assert {row["n"] for row in rows.values()} == {2}
    certify.run(parts)  # everything is there
    assert (tmp_path / "out" / "certified.json").read_text() == written
    assert "certified   accuracy all: " in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "scenes.json").read_text()) | {"command": "another"}
    (tmp_path / "out" / "scenes.json").write_text(json.dumps(kept))
    with pytest.raises(InputError, match="output: expected a folder of this command, got one of: another"):
        certify.run(parts)
    for unproved in (victim, Defended(victim, [JpegDefense()])):
        with pytest.raises(InputError, match="defense: expected one that proves something"):
            certify.run(parts | {"victim": unproved, "output": str(tmp_path / "other")})


def test_the_clean_correlation_undoes_what_comes_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing but the correlation tells the network of the frames, all of the attack is gone."""
    exchange = script("clean_correlation")
    monkeypatch.chdir(tmp_path)
    victim = CompactFlow("correlation")
    with torch.no_grad():
        victim.network.redirect[1].weight.zero_()
        victim.network.predict[-1].weight[:, 32:96] = 0  # the first frame's features at 1/4
    parts: dict[str, Any] = {
        "attack": FlowAttack(),
        "victim": victim,
        "data": World(scenes=10, size=(64, 128), supersampling=1),
        "renderer": Renderer(Uniform(area=0.09)),
        "patch": Patch.create(resolution=32),
        "trainer": Settings(steps=1, batch=1, test_scenes=2, test_draws=2, accelerator="cpu"),
        "seed": 0,
        "run": None,
        "stripes": 8,
        "output": str(tmp_path / "out"),
    }
    exchange.run(parts)
    assert set(parts["patch"]().unique().tolist()) == {0.0, 1.0}
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    mean = {(row["condition"], row["metric"]): row["mean"] for row in table}
    attacked, clean, alone = exchange.CONDITIONS
    assert mean[clean, "cosine"] == pytest.approx(1)
    assert mean[clean, "epe_clean"] == pytest.approx(0, abs=1e-5)
    assert mean[attacked, "cosine"] < 0.999
    assert mean[alone, "cosine"] == pytest.approx(mean[attacked, "cosine"])
    assert (tmp_path / "out" / "figure.png").stat().st_size > 0
    assert "2 scenes, 2 draws each" in capsys.readouterr().out
    with pytest.raises(InputError, match="expected one of run=RUN and stripes=TEXELS, got none"):
        exchange.run(parts | {"stripes": None})
    with pytest.raises(InputError, match="expected flow_correlation, got flow_matching"):
        exchange.run(parts | {"victim": CompactFlow("matching", "random")})
