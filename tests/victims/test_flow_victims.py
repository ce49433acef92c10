from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.data.flying_shapes import FlyingShapes
from patchattack.data.world import World
from patchattack.errors import InputError
from patchattack.victims.compact.correlation import RawCorrelation
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.torchvision_flow import Raft
from patchattack.victims.victim import FlowVictim

REAL = Path(__file__).parents[2] / "../shared/real"
COMPACT = ("matching", "encoder_decoder", "correlation")
VICTIMS = {
    "raft_small": lambda: Raft("small", weights="random", updates=2),
    "raft_large": lambda: Raft("large", weights="random", updates=1),
    "matching": lambda: CompactFlow("matching", weights="random"),
    "encoder_decoder": lambda: CompactFlow("encoder_decoder", weights="random"),
    "correlation": lambda: CompactFlow("correlation", weights="random"),
}


@pytest.fixture(params=VICTIMS)
def victim(request: pytest.FixtureRequest) -> FlowVictim:
    return VICTIMS[request.param]()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Probe(FlowVictim):
    """Returns red of frame 0 and blue of frame 1 as the flow, and keeps what it was given."""

    def flow(self, frames: Tensor) -> Tensor:
        self.seen = frames
        return torch.stack([frames[:, 0, 0], frames[:, 1, 2]], dim=1)


@pytest.mark.parametrize("size", [(65, 131), (64, 128), (1, 1), (33, 7)])
def test_padding_repeats_the_border_on_both_sides_and_is_taken_off_again(size: tuple[int, int]) -> None:
    victim, frames = Probe(nn.Identity(), "probe", multiple=8, minimum=32), noise(2, 2, 3, *size)
    flow = victim(frames)
    assert torch.equal(flow, torch.stack([frames[:, 0, 0], frames[:, 1, 2]], dim=1))
    padded = victim.seen.shape[-2:]
    assert all(side % 8 == 0 and side >= max(32, given) for side, given in zip(padded, size, strict=True))
    assert all(side < max(32, given) + 8 for side, given in zip(padded, size, strict=True))
    for axis, (side, given) in enumerate(zip(padded, size, strict=True)):
        before, after = (side - given) // 2, side - given - (side - given) // 2
        seen = victim.seen.movedim(3 + axis, 0)
        assert all(torch.equal(seen[i], seen[before]) for i in range(before))
        assert all(torch.equal(seen[-1 - i], seen[-1 - after]) for i in range(after))


def test_odd_sizes_come_back_as_they_were(victim: FlowVictim) -> None:
    flow = victim(noise(1, 2, 3, 65, 131))
    assert flow.shape == (1, 2, 65, 131)
    assert flow.dtype == torch.float32
    assert flow.isfinite().all()


@pytest.mark.parametrize("network", COMPACT)
def test_the_smallest_frames_still_have_a_flow(network: str) -> None:
    assert CompactFlow(network, weights="random")(noise(1, 2, 3, 5, 9)).isfinite().all()


@pytest.mark.parametrize(
    "frames",
    [
        torch.rand(2, 1, 3, 64, 64),
        torch.rand(2, 2, 4, 64, 64),
        torch.rand(2, 3, 64, 64),
        torch.zeros(1, 2, 3, 8, 8).byte(),
    ],
    ids=["one frame", "four channels", "no pairs", "uint8"],
)
def test_other_frames_are_refused(frames: Tensor) -> None:
    with pytest.raises(InputError, match=r"victim probe: expected frames \[B, 2, 3, H, W\] as floats") as caught:
        Probe(nn.Identity(), "probe")(frames)
    assert str(list(frames.shape)) in str(caught.value)


def test_weights_are_frozen_and_eval_mode_survives_train(victim: FlowVictim) -> None:
    assert victim.task == "flow"
    assert victim.frames == 2
    assert not any(p.requires_grad for p in victim.parameters())
    assert victim.train() is victim
    nn.ModuleList([victim]).train()  # as the loop does with a whole attack
    assert not any(module.training for module in victim.modules())


def test_statistics_do_not_change(victim: FlowVictim) -> None:
    before = copy.deepcopy(victim.state_dict())
    victim.train()(noise(1, 2, 3, 128, 128))
    assert all(torch.equal(value, before[key]) for key, value in victim.state_dict().items())


def test_a_batch_of_one_equals_a_batch_of_many(victim: FlowVictim) -> None:
    frames = noise(3, 2, 3, 64, 64)
    torch.testing.assert_close(victim(frames)[1:2], victim(frames[1:2]), rtol=1e-3, atol=1e-3)


def test_order_of_channels_and_of_frames_matters(victim: FlowVictim) -> None:
    frames = noise(1, 2, 3, 64, 64)
    flow = victim(frames)
    assert not torch.allclose(victim(frames.flip(2)), flow)
    assert not torch.allclose(victim(frames.flip(1)), flow)


@pytest.mark.parametrize("name", ["raft_small", "matching"])
def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    first = VICTIMS[name]().state_dict()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(value, first[key]) for key, value in VICTIMS[name]().state_dict().items())


def test_gradient_reaches_both_frames(victim: FlowVictim) -> None:
    frames = noise(1, 2, 3, 128, 128).requires_grad_()
    victim(frames).square().sum().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert (frames.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("network", COMPACT)
def test_gradient_matches_finite_differences(network: str) -> None:
    victim = CompactFlow(network, weights="random").double()
    frames = noise(1, 2, 3, 61, 67).double().requires_grad_()
    direction = F.avg_pool2d(noise(2, 3, 61, 67, seed=1).double() - 0.5, 9, 1, 4).unsqueeze(0)
    weights = noise(1, 2, 61, 67, seed=2).double()

    def scalar(step: float) -> Tensor:
        return (victim(frames + step * direction) * weights).mean()

    (gradient,) = torch.autograd.grad(scalar(0), frames)
    with torch.no_grad():
        difference = (scalar(1e-6) - scalar(-1e-6)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in VICTIMS if name != "raft_large"])  # as small; bfloat16 is slow
def test_the_flow_is_float32_under_autocast(name: str) -> None:
    victim, frames = VICTIMS[name](), noise(1, 2, 3, 128, 128).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        flow = victim(frames)
    assert flow.dtype == torch.float32
    flow.sum().backward()
    assert frames.grad is not None
    assert frames.grad.dtype == torch.float32


def test_a_used_victim_can_be_copied(victim: FlowVictim) -> None:
    frames = noise(1, 2, 3, 64, 64).requires_grad_()
    flow = victim(frames)
    assert torch.equal(copy.deepcopy(victim)(frames), flow)


def test_the_last_update_of_raft_counts() -> None:
    frames = noise(1, 2, 3, 128, 128)
    one, two = (Raft("small", weights="random", updates=updates) for updates in (1, 2))
    every = two.network(*(frames * 2 - 1).unbind(1), num_flow_updates=2)
    torch.testing.assert_close(one(frames), every[0])
    torch.testing.assert_close(two(frames), every[1])


def test_wrong_options_name_the_choices() -> None:
    with pytest.raises(InputError, match="expected variant small or large and updates >= 1, got variant=tiny"):
        Raft("tiny", weights="random")
    with pytest.raises(InputError, match="updates=0"):
        Raft("small", weights="random", updates=0)
    with pytest.raises(InputError, match="expected network encoder_decoder or matching or correlation, got raft"):
        CompactFlow("raft")


@pytest.mark.parametrize(
    ("network", "data", "share"),
    [
        ("matching", World, 0.5),
        ("encoder_decoder", World, 0.5),
        ("correlation", FlyingShapes, 0.8),
        ("correlation", World, 0.9),  # which it was not trained on
    ],
)
def test_shipped_weights_know_their_data(network: str, data: type[World] | type[FlyingShapes], share: float) -> None:
    scene = data(scenes=8, seed=998).__getitems__(list(range(8))).to("cpu")
    assert scene.flow is not None
    with torch.no_grad():
        error = (CompactFlow(network)(scene.frames) - scene.flow).norm(dim=1).mean()
    assert error < share * scene.flow.norm(dim=1).mean()


def test_correlations_are_products_of_features_as_they_are() -> None:
    first, second = noise(1, 6, 5, 7), noise(1, 6, 5, 7, seed=1) - 0.7
    matched = RawCorrelation((1, 2))(first, second)
    assert matched.shape == (1, 3 * 5, 5, 7)
    product = (first[0, :, 2, 3] * second[0, :, 3, 5]).mean()  # a cell down, two to the right: the last
    torch.testing.assert_close(matched[0, -1, 2, 3], F.leaky_relu(product, 0.1))
    torch.testing.assert_close(RawCorrelation((1, 2))(3 * first, second), 3 * matched)
    assert not matched[0, -1, -1].any()  # beyond the frame


def test_the_correlation_sees_31_pixels() -> None:
    """A wider field before it is what cures a network of this kind (Schrodi et al. 2022)."""
    network = CompactFlow("correlation", weights="random").network
    frames = noise(1, 3, 128, 128).requires_grad_()
    network.eighth(network.quarter(frames))[0, :, 8, 8].sum().backward()
    assert frames.grad is not None
    (rows,) = torch.where(frames.grad[0].abs().sum(dim=(0, 2)) > 0)
    assert (rows.min().item(), rows.max().item()) == (64 - 15, 64 + 15)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real test material in ../shared/real")
def test_raft_small_with_real_weights_on_a_kitti_pair() -> None:
    def read(name: str, mode: int) -> np.ndarray:
        image = cv2.imread(str(REAL / "pairs" / name), mode)
        assert image is not None
        return image

    pair = np.stack([read(f"kitti000045_{n}.png", cv2.IMREAD_COLOR_RGB) for n in (10, 11)])
    frames = torch.from_numpy(pair).permute(0, 3, 1, 2)[None].float() / 255
    truth = torch.from_numpy(read("kitti000045_gt.png", cv2.IMREAD_UNCHANGED).astype(np.float32))  # valid, v, u
    known, flow = truth[..., 0] > 0, (truth[..., [2, 1]] - 2**15) / 64
    with torch.no_grad():
        estimate = Raft("small", weights=REAL / "flow" / "raft_small.safetensors")(frames)
    error = (estimate[0].permute(1, 2, 0) - flow).norm(dim=-1)[known].mean().item()
    assert error == pytest.approx(0.79, abs=0.02)
