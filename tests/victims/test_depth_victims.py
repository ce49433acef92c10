from __future__ import annotations

import copy
import json
import math
import socket
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.victims.midas import HALF, IMAGENET, Midas, in_proportion
from patchattack.victims.transformers_depth import TransformersDepth
from patchattack.victims.victim import DepthVictim
from patchattack.victims.weights import HUB_TIMEOUT

DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 42,
    "patch_size": 14,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}
BEIT = {
    "model_type": "beit",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 64,
    "patch_size": 16,
    "use_relative_position_bias": True,
    "reshape_hidden_states": False,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
DEPTH_ANYTHING = {
    "model_type": "depth_anything",
    "backbone_config": DINOV2,
    "reassemble_hidden_size": 16,
    "head_hidden_size": 8,
    **NECK,
}
ZOEDEPTH = {
    "model_type": "zoedepth",
    "backbone_config": BEIT,
    "bottleneck_features": 8,
    "num_attractors": [4, 4, 2, 1],
    "bin_embedding_dim": 8,
    "num_relative_features": 8,
    "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
    **NECK,
}
DPT = {
    "model_type": "dpt",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 64,
    "patch_size": 16,
    "backbone_out_indices": [0, 1, 2, 3],
    **NECK,
}
HYBRID = {
    **DPT,
    "is_hybrid": True,
    "neck_hidden_sizes": [8, 16, 8, 8],
    "backbone_featmap_shape": [1, 32, 4, 4],
    "backbone_config": {
        "model_type": "bit",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 32],
        "depths": [1, 1, 1],
        "num_groups": 4,
        "global_padding": "same",
        "layer_type": "bottleneck",
        "embedding_dynamic_padding": True,
        "out_features": ["stage1", "stage2", "stage3"],
    },
}
CONFIGS = {
    "depth_anything": (DEPTH_ANYTHING, 42),
    "metric": ({**DEPTH_ANYTHING, "depth_estimation_type": "metric", "max_depth": 20}, 42),
    "dpt": (DPT, 64),
    "hybrid": (HYBRID, 64),
    "zoedepth": (ZOEDEPTH, 64),
}

HUBCONF = """
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 1, 3, padding=1))

        def forward(self, images):
            self.seen = images
            return self.net(images).squeeze(1)

    def DPT_Hybrid(pretrained=True):
        assert not pretrained
        return Network()

    def MiDaS_small(pretrained=True):
        raise EOFError("no answer\\nto a question")
"""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def folder(path: Path, config: dict[str, Any]) -> str:
    """A folder as on the hub, without weights."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def repository(tmp_path: Path) -> str:
    path = tmp_path / "MiDaS"
    path.mkdir()
    (path / "hubconf.py").write_text(textwrap.dedent(HUBCONF))
    return str(path)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DepthVictim]:
    """Small networks with random weights, the biases such that rectified outputs are not zero."""

    def make(name: str) -> DepthVictim:
        if name == "midas":
            path = tmp_path_factory.mktemp("repository")
            (path / "hubconf.py").write_text(textwrap.dedent(HUBCONF))
            return Midas("DPT_Hybrid", "random", str(path), side=64, trust_checkpoint=True)
        config, side = CONFIGS[name]
        victim = TransformersDepth(folder(tmp_path_factory.mktemp(name), config), "random", side=side)
        for layer in victim.network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(10)
                if layer.bias is not None:
                    layer.bias.add_(0.5)
        return victim

    return make


@pytest.fixture(params=[*CONFIGS, "midas"])
def victim(request: pytest.FixtureRequest, build: Callable[[str], DepthVictim]) -> DepthVictim:
    return build(request.param)


def test_odd_sizes_come_back_as_they_were(victim: DepthVictim) -> None:
    for size in ((61, 107), (130, 70)):
        depth = victim(noise(1, 1, 3, *size))
        assert depth.shape == (1, 1, *size)
        assert depth.dtype == torch.float32
        assert depth.isfinite().all()
        assert depth.std() > 0


def test_the_victim_is_frozen_and_stays_in_eval_mode(victim: DepthVictim) -> None:
    assert (victim.task, victim.frames) == ("depth", 1)
    assert not any(parameter.requires_grad for parameter in victim.parameters())
    victim.train()
    assert not any(module.training for module in victim.modules())


def test_a_batch_of_one_equals_a_batch_of_many(victim: DepthVictim) -> None:
    frames = noise(3, 1, 3, 64, 96)
    torch.testing.assert_close(victim(frames)[1:2], victim(frames[1:2]), rtol=1e-4, atol=1e-4)


def test_gradient_matches_finite_differences(victim: DepthVictim) -> None:
    victim = victim.double()
    frames = noise(1, 1, 3, 61, 77).double().requires_grad_()
    direction = F.avg_pool2d(noise(1, 3, 61, 77, seed=1).double() - 0.5, 9, 1, 4).unsqueeze(0)
    weights = noise(1, 1, 61, 77, seed=2).double()

    def scalar(step: float) -> Tensor:
        return (victim(frames + step * direction) * weights).mean()

    (gradient,) = torch.autograd.grad(scalar(0), frames)
    assert (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).all()
    with torch.no_grad():
        difference = (scalar(1e-6) - scalar(-1e-6)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-3, atol=1e-12)


def test_the_network_gets_normalised_images_in_its_resolution(build: Callable[[str], DepthVictim]) -> None:
    for name, (mean, std) in {"midas": HALF, "dpt": HALF, "zoedepth": HALF, "depth_anything": IMAGENET}.items():
        victim, seen = build(name), []
        victim.network.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        frames = torch.tensor([0.2, 0.5, 0.9]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 60, 100)
        victim(frames)
        side, multiple = (42, 14) if name == "depth_anything" else (64, 32)
        wide = side if name == "dpt" else round(side * 100 / 60 / multiple) * multiple
        assert seen[0].shape == (1, 3, side, wide)
        expected = [(value - m) / s for value, m, s in zip((0.2, 0.5, 0.9), mean, std, strict=True)]
        torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), torch.tensor(expected))


def test_metric_and_relative_networks_are_told_apart(build: Callable[[str], DepthVictim]) -> None:
    found = {name: (build(name).is_metric, build(name).depth_range) for name in (*CONFIGS, "midas")}
    relative = (False, (0.0, math.inf))
    assert found == {
        **dict.fromkeys(("depth_anything", "dpt", "hybrid", "midas"), relative),
        "metric": (True, (0.0, 20.0)),
        "zoedepth": (True, (0.001, 10.0)),
    }
    depth = build("metric")(noise(1, 1, 3, 42, 42))
    assert 0 < depth.min() <= depth.max() < 20


def test_random_weights_are_the_same_every_time(tmp_path: Path, repository: str) -> None:
    name = folder(tmp_path / "tiny", DEPTH_ANYTHING)
    torch.manual_seed(5)
    one, after = TransformersDepth(name, "random").state_dict(), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(value, one[key]) for key, value in TransformersDepth(name, "random").state_dict().items())
    first, second = (Midas(weights="random", repository=repository, trust_checkpoint=True) for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


def test_the_shorter_side_is_fitted_in_proportion() -> None:
    images = noise(1, 3, 375, 1242)
    assert in_proportion(images, 518, 14).shape == (1, 3, 518, 1722)  # 1715.7
    assert in_proportion(images.mT, 384, 32).shape == (1, 3, 1280, 384)  # 1271.8
    assert in_proportion(images[..., :96, :160], 96, 32).data_ptr() == images[..., :96, :160].data_ptr()


@pytest.mark.parametrize("name", ["depth_anything", "zoedepth"])
def test_weights_in_a_folder_and_in_a_file_are_read(
    name: str, build: Callable[[str], DepthVictim], tmp_path: Path
) -> None:
    victim, frames = build(name), noise(1, 1, 3, 64, 96)
    side = CONFIGS[name][1]
    network: Any = victim.network
    network.half().save_pretrained(tmp_path)  # a checkpoint of half precision is a network of single precision
    loaded = TransformersDepth(str(tmp_path), side=side)
    assert loaded.name == tmp_path.name
    assert {value.dtype for value in loaded.network.parameters()} == {torch.float32}
    network.float()
    torch.testing.assert_close(loaded(frames), victim(frames))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "mine.safetensors")
    torch.testing.assert_close(
        TransformersDepth(str(tmp_path), tmp_path / "mine.safetensors", side)(frames), victim(frames)
    )


def test_weights_of_midas_come_from_a_local_file(repository: str, tmp_path: Path) -> None:
    state = {key: value + 1 for key, value in copy.deepcopy(fake(repository).network.state_dict()).items()}
    torch.save({"model": state}, tmp_path / "midas.pt")
    loaded = fake(repository, weights=str(tmp_path / "midas.pt"))
    assert loaded.name == "midas_DPT_Hybrid"
    assert all(torch.equal(value, state[key]) for key, value in loaded.network.state_dict().items())
    with pytest.raises(InputError, match="expected a file of weights"):
        fake(repository, weights=str(tmp_path / "nothing.pt"))


def fake(repository: str, **options: Any) -> Midas:
    return Midas(**{"weights": "random", "repository": repository, "trust_checkpoint": True, **options})


def refusal(build: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_code_of_a_repository_runs_without_trust(repository: str) -> None:
    Path(repository, "hubconf.py").write_text("raise SystemExit('it ran')")
    for options in ({}, {"repository": repository}):
        message = refusal(lambda options=options: Midas(weights="random", **options))
        assert "expected victim.trust_checkpoint=true, got false" in message
        assert "its own Python code, which can do whatever you can" in message


def test_what_a_repository_raises_ends_in_one_line(repository: str, tmp_path: Path) -> None:
    assert "to build MiDaS_small, got 'no answer to a question'" in refusal(
        lambda: fake(repository, name="MiDaS_small")
    )
    assert "to build DPT_Large, got 'Cannot find callable" in refusal(lambda: fake(repository, name="DPT_Large"))
    assert "victim.repository=FOLDER" in refusal(lambda: fake(str(tmp_path / "nothing")))


def test_a_hub_that_cannot_be_reached_ends_in_one_line(
    repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a look-up in the network, and with a limit to the wait."""
    waited = []

    def refuse(*_: object, **__: object) -> None:
        waited.append(socket.getdefaulttimeout())
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    message = refusal(lambda: Midas(weights="random", trust_checkpoint=True))
    assert "Network is unreachable" in message
    assert "clone https://github.com/isl-org/MiDaS" in message
    assert "victim.weights=PATH" in refusal(lambda: fake(repository, weights="hub"))
    assert waited == [HUB_TIMEOUT] * 2
    assert socket.getdefaulttimeout() is None
    message = refusal(lambda: TransformersDepth("Intel/a-network-that-nobody-has"))
    assert message.startswith("Intel/a-network-that-nobody-has: expected a local folder or a repository on the Hugging")
    assert "victim.name=FOLDER" in message
    assert len(waited) <= 4  # the hub's client may ask for a list of its own, once, and does not try again


def test_pickled_weights_alone_are_refused(tmp_path: Path) -> None:
    name = folder(tmp_path / "pickled", DEPTH_ANYTHING)
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"code")
    assert "expected weights in model.safetensors, got none; pickled weights (.bin) can run code" in refusal(
        lambda: TransformersDepth(name)
    )


def test_weights_that_are_missing_foreign_or_damaged_are_refused(
    build: Callable[[str], DepthVictim], tmp_path: Path
) -> None:
    network: Any = build("depth_anything").network
    network.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file({key: value for key, value in state.items() if "head.conv3" not in key}, file)
    assert "without 2 of them (head.conv3.bias, head.conv3.weight)" in refusal(lambda: TransformersDepth(str(tmp_path)))
    safetensors.torch.save_file({key: value.repeat_interleave(2, 0) for key, value in state.items()}, file)
    assert "expected weights that fit its config.json" in refusal(lambda: TransformersDepth(str(tmp_path)))
    file.write_bytes(b"not safetensors")
    assert "expected weights that fit its config.json" in refusal(lambda: TransformersDepth(str(tmp_path)))
    assert "missing: " in refusal(lambda: TransformersDepth(str(tmp_path), write_other(tmp_path)))


def write_other(path: Path) -> str:
    safetensors.torch.save_file({"a": torch.zeros(1)}, path / "other.safetensors")
    return str(path / "other.safetensors")


@pytest.mark.parametrize(
    ("config", "side", "message"),
    [
        ({"model_type": "resnet"}, None, "expected a network of depth_anything, dpt, zoedepth, got resnet"),
        ({**DPT, "backbone_config": DINOV2}, None, "expected a network of .*, got dpt on dinov2"),
        ({"model_type": "nonsense"}, None, "expected a config.json that transformers .* reads, got 'The checkpoint"),
        (DEPTH_ANYTHING, 13, r"victim\.side: expected at least 14 pixels, got 13"),
        (HYBRID, 96, r"victim\.side: expected 64 for .*, the only one it takes, got 96"),
    ],
    ids=["family", "dinov2", "unknown", "short", "hybrid"],
)
def test_other_networks_and_sides_are_refused(
    config: dict[str, Any], side: int | None, message: str, tmp_path: Path
) -> None:
    name = folder(tmp_path / "network", config)
    with pytest.raises(InputError, match=message):
        TransformersDepth(name, "random", side)


def test_wrong_options_name_the_choices(repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(lambda: fake(repository, name="DPT_Huge")) == (
        "victim.name: expected one of MiDaS, MiDaS_small, DPT_Hybrid, DPT_Large, got DPT_Huge"
    )
    assert "victim.side: expected at least 32 pixels, got 16" in refusal(lambda: fake(repository, side=16))
    assert "expected a local folder or a repository" in refusal(
        lambda: TransformersDepth(str(tmp_path / "no" / "folder"))
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install patchattack[transformers]" in refusal(lambda: TransformersDepth("any"))
