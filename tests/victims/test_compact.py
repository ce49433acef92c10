from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from patchattack import files
from patchattack.data.world import World
from patchattack.errors import InputError
from patchattack.scene import Scene
from patchattack.victims.compact import classification, depth, detection
from patchattack.victims.compact.classification import CompactClassifier
from patchattack.victims.compact.depth import CompactDepth
from patchattack.victims.compact.depth_networks import REACH, metres
from patchattack.victims.compact.detection import CompactDetector
from patchattack.victims.compact.detectors import CentreNet, YoloNetwork
from patchattack.victims.victim import Victim

CLASSES = {
    CompactClassifier: classification.NETWORKS,
    CompactDepth: depth.NETWORKS,
    CompactDetector: detection.NETWORKS,
}
VICTIMS: dict[str, Callable[..., Any]] = {
    f"{kind.task}_{network}": lambda weights="random", kind=kind, network=network: kind(network, weights)
    for kind, networks in CLASSES.items()
    for network in networks
}
NONE = [torch.nan] * 5


@pytest.fixture(params=VICTIMS)
def victim(request: pytest.FixtureRequest) -> Victim:
    return VICTIMS[request.param]()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def scenes(count: int, **options: Any) -> Scene:
    """Scenes that training never saw."""
    return World(scenes=count, seed=998, frames=1, **options).__getitems__(range(count)).to("cpu")


def test_outputs_are_those_of_the_task(victim: Victim) -> None:
    output = victim(noise(2, 1, 3, 65, 131))
    if victim.task == "classification":
        assert output.shape == (2, 16)
    elif victim.task == "depth":
        assert output.shape == (2, 1, 65, 131)
        assert (output > REACH[0]).all()
        assert (output < REACH[1]).all()
    else:
        assert output.shape[::2] == (2, 4 + 2)
        assert (output[..., :2] < output[..., 2:4]).all()
        assert ((output[..., 4:] > 0) & (output[..., 4:] < 1)).all()
        centre = (output[..., :2] + output[..., 2:4]).mean(dim=(0, 1)) / 2
        assert (centre - torch.tensor([65.0, 32.0])).abs().max() < 8  # candidates are all over the frame


def test_victims_are_frozen_and_deterministic(victim: Victim) -> None:
    assert not any(p.requires_grad for p in victim.parameters())
    before, frames = copy.deepcopy(victim.state_dict()), noise(3, 1, 3, 64, 96)
    victim.train()
    output = victim(frames)
    assert all(torch.equal(value, before[key]) for key, value in victim.state_dict().items())
    torch.testing.assert_close(victim(frames[1:2]), output[1:2], rtol=1e-3, atol=1e-3)
    assert torch.equal(copy.deepcopy(victim)(frames), output)
    assert not torch.allclose(victim(frames.flip(2)), output)  # red is not blue


@pytest.mark.parametrize("name", VICTIMS)
def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    first = VICTIMS[name]().state_dict()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(value, first[key]) for key, value in VICTIMS[name]().state_dict().items())


@pytest.mark.parametrize("name", VICTIMS)
def test_gradient_matches_finite_differences(name: str) -> None:
    victim = VICTIMS[name]("shipped").double()
    frames = noise(1, 1, 3, 61, 67).double().requires_grad_()
    direction = F.avg_pool2d(noise(3, 61, 67, seed=1).double() - 0.5, 9, 1, 4)
    with torch.no_grad():
        weights = torch.rand_like(victim(frames), generator=torch.Generator().manual_seed(2))

    def scalar(step: float) -> Tensor:
        return (victim(frames + step * direction) * weights).mean()

    (gradient,) = torch.autograd.grad(scalar(0), frames)
    with torch.no_grad():
        difference = (scalar(1e-6) - scalar(-1e-6)) / 2e-6
    assert difference != 0
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=0)


def test_outputs_are_float32_under_autocast(victim: Victim) -> None:
    frames = noise(1, 1, 3, 128, 256).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = victim(frames)
    assert output.dtype == torch.float32
    output.sum().backward()
    assert frames.grad is not None
    assert frames.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", CLASSES)
def test_wrong_networks_name_the_choices(kind: Any) -> None:
    choices = " or ".join(CLASSES[kind])
    with pytest.raises(InputError, match=f"expected network {choices}, got large"):
        kind("large")


@pytest.mark.parametrize(("kind", "subject"), [(CompactClassifier, "sign"), (CompactDetector, "vehicle")])
def test_classes_are_those_of_the_world(kind: Any, subject: str) -> None:
    assert kind(weights="random").classes == World(subject=subject, frames=1).classes


def test_depth_is_the_logarithm_between_the_ends_of_the_reach() -> None:
    near, far = REACH
    torch.testing.assert_close(metres(torch.tensor([-20.0, 0.0, 20.0])), torch.tensor([near, (near * far) ** 0.5, far]))


@pytest.mark.parametrize("network", classification.NETWORKS)
def test_shipped_classifiers_know_the_signs(network: str) -> None:
    scene = scenes(64, subject="sign", size=(64, 64))
    right = CompactClassifier(network)(scene.frames).argmax(dim=1) == scene.label
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("network", depth.NETWORKS)
def test_shipped_depth_networks_know_the_road(network: str) -> None:
    scene = scenes(8, subject="none", camera_height=(1.5, 1.5))
    assert scene.depth is not None
    near = scene.depth < REACH[1]
    error = (CompactDepth(network)(scene.frames) / scene.depth - 1).abs()[near].mean()
    assert error < 0.15


@pytest.mark.parametrize("network", detection.NETWORKS)
def test_shipped_detectors_find_the_vehicle_ahead(network: str) -> None:
    scene = scenes(16, subject="vehicle")
    assert scene.boxes is not None
    candidates = CompactDetector(network)(scene.frames)
    for found, truth in zip(candidates, scene.boxes, strict=True):
        best = found[found[:, 4].argmax()]
        overlaps = box_iou(best[None, :4], truth[truth[:, 4] == 0][:, :4])
        assert overlaps.max() > 0.5
        assert best[4] > best[5]


def test_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in (files.package_folder("assets") / "victims").iterdir()) < 16e6


@pytest.mark.parametrize("network", [CentreNet, YoloNetwork])
def test_the_loss_counts_known_boxes_alone(network: Any) -> None:
    torch.manual_seed(0)
    built, images = network(2).train(), noise(2, 3, 64, 64)
    boxes = torch.tensor([[[4.0, 8, 40, 44, 0], [30, 30, 60, 62, 1]], [[10, 10, 30, 40, 1], NONE]])
    state = copy.deepcopy(built.state_dict())
    losses = []
    for given in (boxes, F.pad(boxes, (0, 0, 0, 2), value=torch.nan), boxes.flip(1)):
        built.load_state_dict(state)
        losses.append(built.loss(images, given).detach())
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


@pytest.mark.parametrize("network", [CentreNet, YoloNetwork])
def test_scenes_without_an_object_have_a_loss(network: Any) -> None:
    loss = network(2).train().loss(noise(2, 3, 64, 64), torch.tensor([[NONE], [NONE]]))
    assert loss.isfinite()
    loss.backward()


class Answer(CentreNet):
    """A network with these maps."""

    def __init__(self, heat: Tensor, boxes: Tensor) -> None:
        super().__init__(2)
        self.answer = heat, boxes

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.answer


def test_the_centre_loss_is_nothing_for_the_truth_and_much_beside_it() -> None:
    truth = torch.tensor([[[8.0, 4, 24, 36, 1], NONE]])  # its centre (16, 20) is in the cell of column 4 and row 5
    heat = torch.full((1, 2, 16, 16), -20.0)
    heat[0, 1, 5, 4] = 20
    boxes = truth[:, 0, :4].view(1, 4, 1, 1).expand(1, 4, 16, 16)
    images = torch.zeros(1, 3, 64, 64)
    assert Answer(heat, boxes).loss(images, truth) < 1e-5
    assert Answer(heat.flip(1), boxes).loss(images, truth) > 5  # another class
    assert Answer(heat.roll(4, dims=3), boxes).loss(images, truth) > 5  # another place
    overlap = 16 * 16 / (16 * 32)  # a box of the same top and half the height
    half = boxes.clone()
    half[:, 3] = 20
    assert Answer(heat, half).loss(images, truth).item() == pytest.approx(5 * (1 - overlap), rel=1e-4)


def test_a_place_under_two_objects_belongs_to_the_smaller_one() -> None:
    large, small = [0.0, 0, 64, 64, 0], [24.0, 24, 40, 40, 0]
    heat = torch.full((1, 2, 16, 16), -20.0)
    heat[0, 0, 8, 8] = 20
    middle = torch.zeros(16, 16, dtype=torch.bool)
    middle[8, 7:10] = middle[7:10, 8] = True  # what the small one's bell reaches

    def loss(inside: list[float], outside: list[float], *truth: list[float]) -> float:
        boxes = torch.where(middle, *(torch.tensor(box[:4]).view(1, 4, 1, 1) for box in (inside, outside)))
        return Answer(heat, boxes).loss(torch.zeros(1, 3, 64, 64), torch.tensor([truth])).item()

    assert loss(small, large, large, small) < 1e-5
    assert loss(small, large, small, large) < 1e-5
    # Half of the objects are answered by a box of a sixteenth of their area, few places or many.
    assert loss(small, small, large, small) == pytest.approx(5 / 2 * 15 / 16, rel=1e-4)
    assert loss(large, large, large, small) == pytest.approx(5 / 2 * 15 / 16, rel=1e-4)
