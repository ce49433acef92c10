from __future__ import annotations

import contextlib
import copy
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.victims import ultralytics_models
from patchattack.victims.ultralytics_models import UltralyticsClassifier, UltralyticsDetector
from patchattack.victims.victim import Victim

REAL = Path(__file__).parents[2] / "../shared/real/detect"
VICTIMS: dict[str, Callable[[], Victim]] = {
    "yolov8n": lambda: UltralyticsDetector("yolov8n", weights="random"),
    "yolov10n": lambda: UltralyticsDetector("yolov10n", weights="random"),
    "yolo26n one to one": lambda: UltralyticsDetector("yolo26n", weights="random", head="one_to_one"),
    "yolo26n-cls": lambda: UltralyticsClassifier("yolo26n-cls", weights="random", size=(64, 64)),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def stirred(model: nn.Module) -> Any:
    """With statistics and biases that let the input through: a fresh network answers the same to everything."""
    network = getattr(model, "network", model)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.uniform_(-1, 1, generator=generator)
    with torch.no_grad():
        network.train()(noise(2, 3, 64, 64, seed=3))
    network.eval()
    return model


@pytest.fixture(scope="module", autouse=True)
def _package() -> None:
    """The adapter imports the package for the first time: else it would leave its settings in the home."""
    UltralyticsDetector("yolov8n", "random")


@pytest.fixture(params=VICTIMS)
def victim(request: pytest.FixtureRequest) -> Victim:
    return stirred(VICTIMS[request.param]())


def theirs(name: str, classes: int = 80) -> Any:
    """The package's own network, stirred; a detector's two branches differ."""
    from ultralytics.nn.tasks import ClassificationModel, DetectionModel

    kind = ClassificationModel if name.endswith("-cls") else DetectionModel
    return stirred(kind(f"{name}.yaml", nc=classes, verbose=False)).eval().requires_grad_(False)


def refusal(build: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        build(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["yolov5nu", "yolov8n", "yolo26n"])
def test_candidates_are_what_the_package_decodes(name: str, tmp_path: Path) -> None:
    from ultralytics.utils.ops import xywh2xyxy

    reference, frames = theirs(name.removesuffix("u")), noise(2, 1, 3, 96, 128)
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    victim = UltralyticsDetector(name, tmp_path / "weights.safetensors")
    expected = reference(frames[:, 0])[0].mT
    expected[..., :4] = xywh2xyxy(expected[..., :4])
    found = victim(frames)
    assert found.shape == (2, 12 * 16 + 6 * 8 + 3 * 4, 84)
    torch.testing.assert_close(found[..., 4:], expected[..., 4:])
    # Edges from 0 there. Boxes of a random network span up to millions of pixels, whose edges are rounded so.
    size = expected[..., :4].abs().amax(dim=-1, keepdim=True).clamp(min=100)
    torch.testing.assert_close((found[..., :4] + 0.5) / size, expected[..., :4] / size, rtol=0, atol=1e-5)
    assert found[..., 4:].std() > 0.01


@pytest.mark.parametrize("name", ["yolov10n", "yolo26n"])
def test_the_one_to_one_head_is_what_the_package_ends_with(name: str, tmp_path: Path) -> None:
    reference, frames = theirs(name), noise(1, 1, 3, 64, 96)
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    one, many = (
        UltralyticsDetector(name, tmp_path / "weights.safetensors", head=f"one_to_{n}") for n in ("one", "many")
    )
    reference.end2end = True
    boxes, scores, classes = reference(frames[:, 0])[0][0].split([4, 1, 1], dim=1)  # of its best anchors
    found = one(frames)[0]
    anchors = torch.cdist(boxes, found[:, :4] + 0.5, p=1).argmin(dim=1)
    torch.testing.assert_close(found[anchors, :4] + 0.5, boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found[anchors, 4 + classes[:, 0].long()], scores[:, 0])
    torch.testing.assert_close(found[:, 4:].flatten().topk(len(scores)).values, scores[:, 0])
    assert not torch.allclose(many(frames)[0], found, atol=0.01)


@pytest.mark.parametrize("size", [(65, 131), (64, 96), (1, 1), (33, 7)])
def test_odd_sizes_are_padded(size: tuple[int, int]) -> None:
    found = UltralyticsDetector("yolov8n", "random")(noise(1, 1, 3, *size))
    rows, columns = (-(-side // 32) for side in size)
    assert found.shape == (1, rows * columns * (16 + 4 + 1), 84)
    assert found.isfinite().all()


def test_boxes_follow_the_fit_into_the_networks_size() -> None:
    frames = noise(1, 1, 3, 60, 128)
    fitted = stirred(UltralyticsDetector("yolov8n", "random", size=(64, 64)))
    inside = F.interpolate(frames[:, 0], size=(30, 64), mode="bilinear", align_corners=False, antialias=True)
    padded = F.pad(inside, (0, 0, 17, 17), value=114 / 255)
    plain = stirred(UltralyticsDetector("yolov8n", "random"))(padded[:, None])
    expected = (plain[..., :4] + 0.5 - torch.tensor([0, 17, 0, 17])) * 2 - 0.5
    torch.testing.assert_close(fitted(frames)[..., :4], expected, rtol=1e-4, atol=1e-3)


def test_sizes_may_change_between_calls() -> None:
    victim = stirred(UltralyticsDetector("yolov8n", "random"))
    small, large = noise(1, 1, 3, 64, 64), noise(1, 1, 3, 96, 64)
    first = victim(small)
    victim(large)
    assert torch.equal(victim(small), first)


def test_the_six_strides_of_a_p6_network_fit() -> None:
    assert UltralyticsDetector("yolov8n-p6", "random")(noise(1, 1, 3, 65, 30)).shape[1] == (256 + 64 + 16 + 4) // 2


def test_gradient_reaches_the_whole_input(victim: Victim) -> None:
    frames = noise(2, 1, 3, 64, 64).requires_grad_()
    output = victim(frames)
    (output[..., 4:] if victim.task == "detection" else output).square().sum().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert (frames.grad != 0).float().mean() > 0.99
    assert frames.grad.abs().max() > 1e-6


def test_gradient_matches_finite_differences(victim: Victim) -> None:
    victim.double()
    frames = noise(1, 1, 3, 64, 64).double().requires_grad_()
    direction = F.avg_pool2d(noise(3, 64, 64, seed=1).double() - 0.5, 9, 1, 4)[None, None]
    weights = noise(*victim(frames).shape, seed=2).double()

    def scalar(step: float) -> Tensor:
        return (victim(frames + step * direction) * weights).mean()

    (gradient,) = torch.autograd.grad(scalar(0), frames)
    with torch.no_grad():
        difference = (scalar(1e-6) - scalar(-1e-6)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-4, atol=0)


def test_eval_mode_weights_and_statistics_stay(victim: Victim) -> None:
    before = copy.deepcopy(victim.state_dict())
    nn.ModuleList([victim]).train()  # as the loop does with a whole attack
    victim(noise(2, 1, 3, 64, 64).requires_grad_()).sum().backward()
    assert not any(module.training for module in victim.modules())
    assert not any(p.requires_grad or p.grad is not None for p in victim.parameters())
    assert all(torch.equal(value, before[key]) for key, value in victim.state_dict().items())


def test_a_batch_of_one_equals_a_batch_of_many(victim: Victim) -> None:
    victim.double()  # rounding differs between the sizes of a batch
    frames = noise(3, 1, 3, 64, 64).double()
    torch.testing.assert_close(victim(frames)[1:2], victim(frames[1:2]))


def test_a_used_victim_can_be_copied(victim: Victim) -> None:
    frames = noise(1, 1, 3, 64, 64).requires_grad_()
    output = victim(frames)
    assert torch.equal(copy.deepcopy(victim)(frames), output)


def test_no_stride_is_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a device without values would refuse."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    victim = UltralyticsDetector("yolov8n", "random")
    victim(noise(1, 1, 3, 64, 64))  # the package reads them once for every size
    assert victim.to("meta")(torch.empty(1, 1, 3, 64, 64, device="meta")).shape == (1, 64 + 16 + 4, 84)


def test_boxes_stay_exact_under_autocast() -> None:
    victim = UltralyticsDetector("yolov8n", "random")
    for branch in victim.network.model[-1].cv2:  # every edge 7.5 strides away, which bfloat16 can say
        nn.init.zeros_(branch[-1].weight)
        nn.init.zeros_(branch[-1].bias)
    frames = noise(1, 1, 3, 32, 2080).requires_grad_()
    exact = victim(frames)
    with torch.autocast("cpu", torch.bfloat16):
        cast = victim(frames)
    torch.testing.assert_close(cast[..., :4], exact[..., :4])
    assert cast.dtype == torch.float32
    cast.sum().backward()
    assert frames.grad is not None
    assert frames.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["yolov8n-cls", "yolo26n-cls"])
def test_logits_come_before_the_softmax_of_the_package(name: str) -> None:
    victim = stirred(UltralyticsClassifier(name, "random"))
    images = noise(2, 3, 224, 224)
    logits = victim(images[:, None])
    assert logits.shape == (2, 1000)
    torch.testing.assert_close(logits.softmax(1), victim.network(images)[0])
    assert not torch.allclose(logits.sum(1), torch.ones(2))
    assert victim(noise(1, 1, 3, 37, 90)).shape == (1, 1000)


def test_classes_are_those_of_coco_and_imagenet() -> None:
    coco = UltralyticsDetector("yolo11n", "random").classes
    assert len(coco) == 80
    assert (coco[0], coco[5], coco[79]) == ("person", "bus", "toothbrush")
    imagenet = UltralyticsClassifier("yolo11n-cls", "random").classes
    assert len(imagenet) == 1000
    assert (imagenet[0], imagenet[1]) == ("tench", "goldfish")


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    first = UltralyticsDetector("yolov8n", "random").state_dict()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    again = UltralyticsDetector("yolov8n.yaml", "random").state_dict()
    assert all(torch.equal(value, first[key]) for key, value in again.items())


@pytest.mark.parametrize("name", ["yolov8n-seg", "rtdetr-l", "yolov8s-world", "yolo11n-cls", "yolov8q", "resnet50", ""])
def test_what_is_no_detector_is_refused(name: str) -> None:
    message = refusal(UltralyticsDetector, name, "random")
    assert (
        f"expected name of a detector such as yolov5nu, yolov8n, yolov10n, yolo11n, yolo26n, got name={name}" in message
    )


def test_wrong_options_name_the_choices() -> None:
    message = refusal(UltralyticsDetector, "yolov8", "random")
    assert "expected a name with a size (n, s, m, l, x), got name=yolov8" in message
    message = refusal(UltralyticsDetector, "yolov8n", "random", head="one_to_one")
    assert "victim yolov8n: expected head one_to_many, got head=one_to_one" in message
    message = refusal(UltralyticsDetector, "yolo26n", "random", head="both")
    assert "expected head one_to_many or one_to_one, got head=both" in message
    message = refusal(UltralyticsDetector, "yolov8n", "random", size=(640, 600))
    assert "expected size [h, w] of positive multiples of 32 or null, got [640, 600]" in message
    message = refusal(UltralyticsClassifier, "yolov8n-cls", "random", size=(0, 224))
    assert "expected size [h, w] of positive numbers, got [0, 224]" in message
    assert "expected name of a classifier" in refusal(UltralyticsClassifier, "yolov8n", "random")


def checkpoint(path: Path, name: str, **names: str) -> Any:
    """A checkpoint as the package's trainer saves it."""
    network = theirs(name, len(names)).half()
    network.names = dict(enumerate(names.values()))
    torch.save({"model": None, "ema": network, "train_args": {}, "epoch": 3}, path)
    return network.float()


def test_a_trusted_checkpoint_brings_its_classes(tmp_path: Path) -> None:
    reference = checkpoint(tmp_path / "best.pt", "yolov8n", a="sign", b="cone")
    victim = UltralyticsDetector("yolov8n", tmp_path / "best.pt", trust_checkpoint=True)
    assert victim.classes == ("sign", "cone")
    frames = noise(1, 1, 3, 64, 64)
    torch.testing.assert_close(victim(frames)[..., 4:], reference(frames[:, 0])[0].mT[..., 4:])


def test_classes_that_a_checkpoint_calls_by_numbers_have_names(tmp_path: Path) -> None:
    checkpoint(tmp_path / "best.pt", "yolov8n", a=30, b=50)  # type: ignore[arg-type]
    assert UltralyticsDetector("yolov8n", tmp_path / "best.pt", trust_checkpoint=True).classes == ("30", "50")
    victim = UltralyticsDetector("yolov8n", tmp_path / "best.pt", trust_checkpoint=True, classes=["slow", "fast"])
    assert victim.classes == ("slow", "fast")


@pytest.mark.parametrize(
    ("build", "name"),
    [(UltralyticsDetector, "yolov8n"), (UltralyticsClassifier, "yolo11n-cls")],
)
def test_a_fine_tuned_state_dict_has_classes_of_its_own(tmp_path: Path, build: Any, name: str) -> None:
    """As many as its head; YOLO's layers before that depend on their number too."""
    state = theirs(name, 3).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    victim = build(name, tmp_path / "weights.pt", classes=["stop", "yield", "no entry"])
    assert victim.classes == ("stop", "yield", "no entry")
    assert victim(noise(1, 1, 3, 64, 64)).shape[-1] == (7 if build is UltralyticsDetector else 3)
    assert build(name, tmp_path / "weights.pt").classes == ("class 0", "class 1", "class 2")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "best.pt", "yolov8n", a="sign", b="cone")
    message = refusal(UltralyticsDetector, "yolo11n", tmp_path / "best.pt", trust_checkpoint=True)
    assert message.endswith("best.pt: expected weights of victim.name=yolo11n, got those of yolov8n.yaml")


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("trust", [False, True])
def test_only_a_trusted_checkpoint_runs_code(trust: bool, tmp_path: Path) -> None:
    torch.save({"model": Code(tmp_path / "ran")}, tmp_path / "best.pt")
    message = refusal(UltralyticsDetector, "yolov8n", tmp_path / "best.pt", trust_checkpoint=trust)
    assert (tmp_path / "ran").exists() is trust
    expected = "expected a checkpoint of ultralytics" if trust else "give victim.trust_checkpoint=true"
    assert expected in message


@pytest.mark.parametrize(
    ("prefix", "trust"), [("", False), ("model.", False), ("model.model.", False), ("model.", True)]
)
def test_a_state_dict_needs_no_trust(prefix: str, trust: bool, tmp_path: Path) -> None:
    reference = theirs("yolov8n").state_dict()
    renamed = {prefix + key.removeprefix("model."): value for key, value in reference.items()}
    torch.save(renamed, tmp_path / "weights.pt")
    state = UltralyticsDetector("yolov8n", tmp_path / "weights.pt", trust_checkpoint=trust).network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in reference.items())


@pytest.mark.parametrize("trust", [False, True])
def test_files_that_are_not_weights_are_refused(trust: bool, tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(b"no weights")
    assert "found none" in refusal(UltralyticsDetector, "yolov8n", tmp_path / "none.pt", trust_checkpoint=trust)
    message = refusal(UltralyticsDetector, "yolov8n", tmp_path / "noise.pt", trust_checkpoint=trust)
    assert f"noise.pt: expected a {'checkpoint' if trust else 'state dict'}" in message


@pytest.mark.parametrize(
    ("victim", "name", "file"),
    [
        (UltralyticsDetector, "yolo26n", "yolo26n.pt"),
        (UltralyticsDetector, "yolov5n", "yolov5nu.pt"),
        (UltralyticsDetector, "yolov5n6u", "yolov5n6u.pt"),
        (UltralyticsClassifier, "yolov8n-cls", "yolov8n-cls.pt"),
    ],
)
def test_the_hub_is_the_packages_release_and_needs_trust(
    victim: Any, name: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unreachable(url: str) -> None:
        asked.append(url)
        raise InputError("unreachable")

    monkeypatch.setattr(ultralytics_models, "fetch", unreachable)
    assert f"{file}: expected victim.trust_checkpoint=true with weights=hub" in refusal(victim, name)
    assert asked == []
    assert refusal(victim, name, trust_checkpoint=True) == "unreachable"
    assert asked == [f"https://github.com/ultralytics/assets/releases/download/v8.4.0/{file}"]


def test_the_release_is_the_one_of_the_installed_package() -> None:
    from ultralytics.utils.downloads import attempt_download_asset

    release = inspect.signature(attempt_download_asset).parameters["release"].default
    assert ultralytics_models.ASSETS.endswith(f"/{release}")


def test_what_is_not_published_is_refused() -> None:
    message = refusal(UltralyticsDetector, "yolov6n", trust_checkpoint=True)
    assert "yolov6n.pt: expected weights that ultralytics publishes, got none; set victim.weights=PATH" in message


@pytest.mark.parametrize(
    "build",
    [
        "from patchattack.victims.ultralytics_models import UltralyticsDetector as V; V('yolov8n', 'random')",
        "from patchattack.victims.compact.detection import CompactDetector as V; V('yolo', 'random')",
    ],
    ids=["yolov8n", "compact"],
)
def test_the_package_leaves_the_home_the_terminal_and_the_program_alone(tmp_path: Path, build: str) -> None:
    program = f"""
import json, os, socket, cv2, torch
from PIL import Image
def online(*arguments):
    raise AssertionError("asked for the network")
socket.getaddrinfo = online
before = dict(os.environ), cv2.getNumThreads(), torch.save, Image.open
{build}
print(json.dumps(before == (dict(os.environ), cv2.getNumThreads(), torch.save, Image.open)))
"""
    folders = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    environment = {key: value for key, value in os.environ.items() if key != "YOLO_CONFIG_DIR"} | folders
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert json.loads(result.stdout) is True
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real test material in ../shared/real")
def test_real_weights_find_what_predict_finds() -> None:
    """The reference is ``YOLO("yolov8n.yaml").predict`` on this image with these weights: class, score, corners."""
    from torchvision.ops import batched_nms

    victim = UltralyticsDetector("yolov8n", REAL / "yolov8n.safetensors")
    from ultralytics.utils import ASSETS

    image = cv2.resize(cv2.imread(str(ASSETS / "bus.jpg"), cv2.IMREAD_COLOR_RGB), (480, 640))  # as predict resizes
    with torch.no_grad():
        found = victim(torch.from_numpy(image).permute(2, 0, 1)[None, None].float() / 255)[0]
    scores, classes = found[:, 4:].max(dim=1)
    sure = scores > 0.25
    boxes, scores, classes = found[sure, :4], scores[sure], classes[sure]
    kept = batched_nms(boxes, scores, classes, 0.7)
    assert [victim.classes[number] for number in classes[kept]] == ["bus", *["person"] * 4, "stop sign"]
    reference = torch.tensor(
        [
            [0.88247, 23.111, 231.63, 805.80, 757.86],
            [0.87011, 49.228, 398.48, 245.50, 902.50],
            [0.85152, 669.95, 392.26, 808.92, 876.80],
            [0.83093, 221.10, 405.95, 345.07, 857.36],
            [0.26473, 0.35736, 550.06, 63.318, 873.51],
            [0.25526, 0.17047, 254.46, 32.671, 324.89],
        ]
    )
    torch.testing.assert_close(scores[kept], reference[:, 0], rtol=0, atol=1e-3)
    torch.testing.assert_close((boxes[kept] + 0.5) * 1080 / 640, reference[:, 1:], rtol=0, atol=0.1)
