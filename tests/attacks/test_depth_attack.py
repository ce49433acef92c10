from __future__ import annotations

import dataclasses
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from patchattack.attacks.depth import FARTHEST, DepthAttack, metres, surface
from patchattack.errors import InputError
from patchattack.scene import Scene, Source, View

SIZE = (10, 20)
PIXELS = SIZE[0] * SIZE[1]
ON_PATCH = 3 * 4  # pixels of the patch in `view`
REGIONS = ("patch", "outside", "all")


class Scenes(Source):
    """One scene, with a surface or without."""

    def __init__(self, with_surface: bool = True) -> None:
        self.with_surface = with_surface

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Scene:
        whole = scene()
        return whole if self.with_surface else dataclasses.replace(whole, surface=None)


def bound(is_metric: bool, depth_range: tuple[float, float] = (0.0, math.inf), **options: Any) -> DepthAttack:
    attack = DepthAttack(**options)
    attack.bind(SimpleNamespace(is_metric=is_metric, depth_range=depth_range, name="a victim"), Scenes())
    return attack


def scene(count: int = 1, depth: Tensor | None = None) -> Scene:
    """The surface covers 4 × 6 pixels around the patch."""
    corners = torch.tensor([[1.5, 0.5], [7.5, 0.5], [7.5, 4.5], [1.5, 4.5]])
    return Scene(
        frames=torch.zeros(count, 1, 3, *SIZE),
        index=torch.arange(count),
        depth=depth,
        surface=corners.expand(count, 1, 4, 2).clone(),
    )


def view(count: int = 1) -> View:
    """The patch covers 3 × 4 pixels, and a half or less of some beside it."""
    coverage = torch.zeros(count, 1, 1, *SIZE)
    coverage[..., 0:5, 2:8] = 0.5
    coverage[..., 1:4, 3:7] = 0.75
    return View(torch.zeros(count, 1, 3, *SIZE), coverage, torch.zeros(count, 1, 4, 2))


def constant(value: float, count: int = 1) -> Tensor:
    return torch.full((count, 1, *SIZE), float(value))


def on_patch(base: Tensor, value: float) -> Tensor:
    changed = base.clone()
    changed[..., 1:4, 3:7] = value
    return changed


def ramp() -> Tensor:
    """Inverse depth with 0 to 200 in equal steps, and 100 on average."""
    return torch.linspace(0, 200, PIXELS).view(1, 1, *SIZE)


def random(seed: int, count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 1, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 10 + 1


def test_the_loss_of_a_metric_victim_is_in_metres() -> None:
    clean, output = constant(20), on_patch(constant(20), 7)
    for options, expected in (
        ({}, 4),
        ({"goal": "far"}, 143),
        ({"target": 10}, 3),
        ({"target": 10, "margin": 0.2}, 1),
        ({"target": 10, "margin": 0.3, "goal": "far"}, 6),
        ({"region": "all"}, (17 * (PIXELS - ON_PATCH) + 4 * ON_PATCH) / PIXELS),
        ({"region": "surface"}, (17 * 12 + 4 * 12) / 24),
    ):
        loss = bound(True, **options).loss(output, clean, scene(), view())
        assert loss.shape == (1,)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("value", "share"), [(23.0, 1.0), (13.0, 0.5), (30.0, 1.0), (3.0, 0.0)])
def test_a_pixel_counts_by_what_is_left_of_its_way(value: float, share: float) -> None:
    output = on_patch(constant(23), value).requires_grad_()
    attack = bound(True, weights="cospgd")
    loss = attack.loss(output, constant(23), scene(), view())
    assert loss.item() == pytest.approx((value - 3) * share)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert gradient.sum().item() == pytest.approx(share)


def test_the_loss_of_a_relative_victim_is_in_shares_of_its_clean_range() -> None:
    """The ramp's percentile is twice its number, and its clean range 180."""
    clean = ramp()
    cases = (
        ({}, 90 / 180),
        ({"goal": "far"}, 90 / 180),
        ({"target": 30}, 40 / 180),
        ({"margin": 0.25}, 135 / 180),
        ({"goal": "far", "margin": 0.25}, 135 / 180),
    )
    for options, expected in cases:
        loss = bound(False, **options).loss(on_patch(clean, 100), clean, scene(), view())
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("is_metric", "goal", "value", "margin", "expected"),
    [
        (False, "far", 100.0, 0.0, math.log(10)),  # the ramp's 5th percentile is 10, its 95th 190
        (False, "far", 8.0, 0.5, 0.5 - math.log(10 / 8)),
        (False, "far", 5.0, 0.5, 0),
        (False, "near", 19.0, 0.0, math.log(10)),
        (False, "near", 400.0, 0.1, 0),
        (True, "near", 30.0, 0.0, math.log(10)),
        (True, "near", 2.0, 0.0, 0),
        (True, "far", 15.0, 0.1, math.log(10) + 0.1),
        (False, "far", 0.0, 0.0, 0),
    ],
)
def test_the_ratio_of_the_regions_mean_to_the_target(
    is_metric: bool, goal: str, value: float, margin: float, expected: float
) -> None:
    attack = bound(is_metric, goal=goal, margin=margin, distance="log_ratio")
    output = on_patch(ramp(), value).requires_grad_()
    loss = attack.loss(output, ramp(), scene(), view())
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert gradient.isfinite().all()
    slope = {"near": -1, "far": 1}[goal] * (-1 if is_metric else 1) / (value * ON_PATCH) if expected else 0
    torch.testing.assert_close(gradient, on_patch(torch.zeros_like(ramp()), slope))


def test_a_region_without_a_pixel_has_no_ratio() -> None:
    output = ramp().requires_grad_()
    nowhere = dataclasses.replace(view(), coverage=torch.zeros_like(view().coverage))
    loss = bound(False, distance="log_ratio").loss(output, ramp(), scene(), nowhere)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert loss.item() == gradient.abs().max().item() == 0


@pytest.mark.parametrize(
    ("goal", "output", "reached", "success"),
    [
        ("near", 3.0, 1, 1),
        ("near", 3.29, 1, 1),
        ("near", 3.31, 0, 0),
        ("near", 1.0, 1, 1),  # beyond counts
        ("near", 200.0, 0, 0),
        ("far", 136.0, 1, 1),
        ("far", 134.0, 0, 0),
        ("far", 900.0, 1, 1),
        ("far", 3.0, 0, 0),
    ],
)
def test_a_metric_target_is_reached_within_a_tenth_of_it_or_beyond(
    goal: str, output: float, reached: float, success: float
) -> None:
    clean = constant(20)
    metrics = bound(True, goal=goal).metrics(on_patch(clean, output), clean, scene(), view())
    assert metrics["reached", "patch"].item() == reached
    assert metrics["success", "patch"].item() == success
    assert metrics["error", "patch"].item() == pytest.approx(abs(output - 20))
    assert metrics["error", "outside"].item() == 0
    assert metrics["error", "all"].item() == pytest.approx(abs(output - 20) * ON_PATCH / PIXELS, rel=1e-4)
    assert metrics["relative", "patch"].item() == pytest.approx(abs(output - 20) / 20)
    assert not any(name == "error_truth" for name, _ in metrics)


@pytest.mark.parametrize(
    ("goal", "output", "there"),
    [
        *(("near", 190.0, 1), ("near", 173.0, 1), ("near", 171.0, 0), ("near", 500.0, 1), ("near", 10.0, 0)),
        *(("far", 10.0, 1), ("far", 27.0, 1), ("far", 29.0, 0), ("far", -90.0, 1), ("far", 190.0, 0)),
    ],
)
def test_a_relative_target_is_reached_within_a_tenth_of_the_range_or_beyond(
    goal: str, output: float, there: int
) -> None:
    clean = on_patch(ramp(), 100)
    metrics = bound(False, goal=goal).metrics(on_patch(clean, output), clean, scene(), view())
    assert metrics["reached", "patch"].item() == there
    assert metrics["success", "patch"].item() == there
    assert metrics["error", "patch"].item() == pytest.approx(abs(output - 100) / 180, rel=2e-2)  # its range is near 180
    assert {name for name, _ in metrics} == {"gap", "success", "reached", "error"}


@pytest.mark.parametrize(
    ("goal", "output", "left"), [("near", 7.0, 4.0), ("near", 1.0, 0.0), ("far", 110.0, 40.0), ("far", 900.0, 0.0)]
)
def test_beyond_the_target_nothing_is_left_of_the_way(goal: str, output: float, left: float) -> None:
    clean = constant(20)
    metrics = bound(True, goal=goal).metrics(on_patch(clean, output), clean, scene(), view())
    assert metrics["gap", "patch"].item() == left


def test_success_is_of_the_mean_and_reached_of_the_pixels() -> None:
    output = on_patch(constant(20), 1)
    output[..., 1, 3:7] = 8
    metrics = bound(True).metrics(output, constant(20), scene(), view())
    assert metrics["reached", "patch"].item() == pytest.approx(2 / 3)
    assert metrics["success", "patch"].item() == 0  # (4 · 8 + 8 · 1) / 12 = 3.33
    output[..., 1, 3:7] = 6
    assert bound(True).metrics(output, constant(20), scene(), view())["success", "patch"].item() == 1


def test_a_scene_that_is_there_already_is_no_success() -> None:
    clean = torch.cat([constant(2.5), constant(20)])
    output = torch.cat([constant(2.5), constant(2.5)])
    success = bound(True).metrics(output, clean, scene(2), view(2))["success", "patch"]
    assert success.isnan().tolist() == [True, False]
    assert success[1] == 1
    assert bound(True).metrics(clean, clean, scene(2), view(2))["success", "patch"][1] == 0
    near = on_patch(ramp(), 199)
    assert bound(False).metrics(near, near, scene(), view())["success", "patch"].isnan().all()


def test_without_a_patch_in_sight_there_is_nothing_to_measure() -> None:
    unseen = dataclasses.replace(view(), coverage=torch.zeros(1, 1, 1, *SIZE))
    output = constant(1).requires_grad_()
    loss = bound(True).loss(output, constant(20), scene(), unseen)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert gradient.abs().max() == 0
    metrics = bound(True).metrics(output, constant(20), scene(), unseen)
    assert all(metrics[key].isnan().all() for key in metrics if key[1] == "patch")
    assert metrics["error", "outside"] == metrics["error", "all"] == 19


def test_the_primary_metric_is_in_the_region_of_the_loss() -> None:
    for region, attacked in (("patch", "patch"), ("surface", "patch"), ("all", "all")):
        attack = bound(True, region=region)
        assert attack.primary_metric == ("gap", attacked)
        metrics = attack.metrics(constant(1), constant(20), scene(depth=constant(30)), view())
        assert metrics.keys() == {("gap", attacked), ("success", attacked), ("reached", attacked)} | {
            (name, part) for name in ("error", "relative", "error_truth") for part in REGIONS
        }
        assert metrics["success", attacked].item() == 1
        assert attack.metric_info["success"].rate
        assert {name for name, _ in metrics} == attack.metric_info.keys()


def test_the_surface_is_the_region_that_is_attacked_and_the_rest_is_outside() -> None:
    output = on_patch(constant(20), 2)
    metrics = bound(True, region="surface").metrics(output, constant(20), scene(), view())
    assert metrics["error", "patch"].item() == 18 * 12 / 24
    assert metrics["error", "outside"].item() == 0
    metrics = bound(True, region="all").metrics(output, constant(20), scene(), view())
    assert metrics["error", "patch"].item() == 18  # of the patch itself


def test_a_surface_is_filled_to_its_corners_whichever_way_they_turn() -> None:
    whole = scene()
    assert whole.surface is not None
    inside = surface(whole, torch.device("cpu"))
    assert inside.sum() == 24
    assert inside[..., 1:5, 2:8].all()
    turned = dataclasses.replace(whole, surface=whole.surface.flip(2))
    assert torch.equal(surface(turned, torch.device("cpu")), inside)
    slanted = dataclasses.replace(whole, surface=torch.tensor([[[[0.0, 0], [3, 0], [3, 9], [0, 3]]]]))
    columns = surface(slanted, torch.device("cpu"))[0, 0].sum(dim=0)
    assert columns.tolist() == [4, 6, 8, 10] + [0] * 16
    occluder = torch.zeros(1, 1, 1, *SIZE, dtype=torch.bool)
    occluder[..., 4:] = True
    hidden = dataclasses.replace(whole, occluder=occluder)
    assert surface(hidden, torch.device("cpu")).sum() == 8
    lost = dataclasses.replace(whole, surface=torch.full((1, 1, 4, 2), math.nan))
    assert not surface(lost, torch.device("cpu")).any()


@pytest.mark.parametrize("goal", ["near", "far"])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0), (7, -40), (0.2, 1e3)])
def test_units_of_a_relative_victim_do_not_matter(goal: str, scale: float, shift: float) -> None:
    """Scale and shift of clean and attacked output together change neither loss nor metrics."""
    clean, output = random(0, dtype=torch.float64), random(1, dtype=torch.float64)
    truth = random(2, dtype=torch.float64)
    truth[..., :7] = math.nan
    attack = bound(False, goal=goal)
    expected = attack.metrics(output, clean, scene(2, truth), view(2))
    found = attack.metrics(output * scale + shift, clean * scale + shift, scene(2, truth), view(2))
    assert {name for name, _ in found} == {"gap", "success", "reached", "error", "relative", "error_truth"}
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-6, atol=1e-9, equal_nan=True)
    loss = attack.loss(output * scale + shift, clean * scale + shift, scene(2), view(2))
    torch.testing.assert_close(loss, attack.loss(output, clean, scene(2), view(2)))


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (0.5, 0.0), (1.0, 0.4)])
def test_a_change_of_scale_or_shift_alone_does_not_vanish(scale: float, shift: float) -> None:
    """Fitted anew to the truth, the attacked output would be perfect again."""
    truth = random(2)
    clean = 5 / truth + 3  # a perfect relative victim
    metrics = bound(False).metrics(clean * scale + shift, clean, scene(2, truth), view(2))
    perfect = bound(False).metrics(clean, clean, scene(2, truth), view(2))
    for region in REGIONS:
        assert perfect["error_truth", region].max() < 1e-3
        for name in ("error", "relative", "error_truth"):
            assert (metrics[name, region] > 0.05).all()


def test_scale_and_shift_make_metres_of_a_relative_output() -> None:
    truth = random(2)
    clean = 5 / truth + 3
    torch.testing.assert_close(metres(clean, clean, truth), truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(metres(10 / truth + 3, clean, truth), truth / 2, rtol=1e-4, atol=1e-4)
    assert (metres(clean - 100, clean, truth) == FARTHEST).all()  # an inverse depth below zero
    wrong = clean.clone()
    wrong[..., 10:] = 1e3
    partly = truth.clone()
    partly[..., 10:] = math.nan
    torch.testing.assert_close(metres(wrong, wrong, partly)[..., :10], truth[..., :10], rtol=1e-4, atol=1e-4)
    assert metres(clean, clean, torch.full_like(truth, math.nan)).isnan().all()


def test_the_fit_is_that_of_least_squares() -> None:
    truth, clean = random(2, count=1, dtype=torch.float64), random(3, count=1, dtype=torch.float64)
    columns = torch.stack([clean.flatten(), torch.ones(PIXELS, dtype=torch.float64)], dim=1)
    fitted = columns @ torch.linalg.lstsq(columns, 1 / truth.view(-1, 1)).solution
    torch.testing.assert_close(metres(clean, clean, truth).view(-1, 1), 1 / fitted.clamp(min=1 / FARTHEST))


def test_the_error_to_the_truth_is_of_known_depth_alone() -> None:
    truth = constant(10)
    truth[..., 8:] = math.nan
    output = on_patch(constant(20), 4)
    metrics = bound(True).metrics(output, constant(20), scene(depth=truth), view())
    assert metrics["error_truth", "patch"].item() == 6
    assert metrics["error_truth", "outside"].item() == 10
    assert metrics["error_truth", "all"].item() == pytest.approx((6 * ON_PATCH + 10 * (80 - ON_PATCH)) / 80)


def test_a_flat_relative_prediction_pulls_nowhere() -> None:
    output = random(1, 1).requires_grad_()
    loss = bound(False).loss(output, constant(0), scene(), view())
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert loss.item() == 0
    assert gradient.abs().max() == 0
    metrics = bound(False).metrics(output, constant(0), scene(depth=random(2, 1)), view())
    assert metrics["error", "all"].item() == 0
    assert metrics["success", "patch"].isnan().all()
    assert metrics["error_truth", "all"].isfinite().all()


@pytest.mark.parametrize("region", ["patch", "surface", "all"])
@pytest.mark.parametrize("goal", ["near", "far"])
@pytest.mark.parametrize("is_metric", [True, False])
def test_the_gradient_is_the_slope(is_metric: bool, goal: str, region: str) -> None:
    attack = bound(is_metric, goal=goal, region=region)
    clean, direction = random(0, dtype=torch.float64), random(2, dtype=torch.float64) - 6
    output = random(1, dtype=torch.float64).requires_grad_()

    def value(output: Tensor) -> Tensor:
        return (attack.loss(output, clean, scene(2), view(2)) * torch.tensor([1.0, 2.0])).sum()

    (gradient,) = torch.autograd.grad(value(output), output)
    step = 1e-7
    with torch.no_grad():
        slope = (value(output + step * direction) - value(output - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("is_metric", "goal", "sign"), [(True, "near", 1), (True, "far", -1), (False, "near", -1)])
def test_a_step_down_the_loss_goes_to_the_goal(is_metric: bool, goal: str, sign: int) -> None:
    clean = ramp() / 10 + 10
    output = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bound(is_metric, goal=goal).loss(output, clean, scene(), view()).sum(), output)
    assert (gradient[..., 1:4, 3:7] * sign > 0).all()
    assert gradient.count_nonzero() == ON_PATCH


@pytest.mark.parametrize("is_metric", [True, False])
def test_scenes_of_a_batch_are_measured_apart(is_metric: bool) -> None:
    clean, output, truth = random(0), random(1), random(2)
    attack = bound(is_metric)
    together = attack.metrics(output, clean, scene(2, truth), view(2))
    for i in range(2):
        part = slice(i, i + 1)
        alone = attack.metrics(output[part], clean[part], scene(1, truth[part]), view())
        for key, values in together.items():
            torch.testing.assert_close(alone[key][0], values[i], equal_nan=True)


def test_metrics_carry_no_gradient() -> None:
    metrics = bound(False).metrics(random(1).requires_grad_(), random(0), scene(2, random(2)), view(2))
    assert not any(values.requires_grad for values in metrics.values())
    assert all(values.shape == (2,) for values in metrics.values())


def test_labels_say_what_is_asked_for_and_in_which_unit() -> None:
    labels = {name: metric.label for name, metric in bound(True).metric_info.items()}
    assert labels["success"] == "fraction of scenes whose mean is 3 m or nearer (± 10 %)"
    assert labels["error"] == "mean change against the clean prediction (m)"
    labels = {name: metric.label for name, metric in bound(False, goal="far", tolerance=0.05).metric_info.items()}
    assert labels["reached"] == (
        "fraction of pixels that are at percentile 5 of the clean inverse depth or farther (± 5 % of the clean range)"
    )
    assert labels["error"].endswith("(fraction of the clean range of inverse depth)")


def test_one_attack_can_meet_a_second_victim() -> None:
    attack = bound(True)
    attack.bind(SimpleNamespace(is_metric=False, depth_range=(0.0, math.inf), name="another"), Scenes())
    assert attack.aim == 95
    assert attack.loss(ramp(), ramp(), scene(), view()).item() < 1


def test_the_default_target_is_what_the_victim_can_express(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert bound(True, (0.0, 80.0)).aim == 3
        assert not caplog.records
        assert bound(True, (0.0, 80.0), goal="far").aim == 80
    assert caplog.messages == ["attack.target: 150 m is out of the reach of a victim; 80 m it is"]
    assert bound(True, (5.0, 80.0)).aim == 5
    assert bound(True, goal="far").aim == 150


@pytest.mark.parametrize(
    ("is_metric", "target", "message"),
    [
        (True, 100.0, r"expected metres that a victim can express, from 0 to 80 and above 0, got 100.0; choose"),
        (True, 0.0, r"expected metres that a victim can express, from 0 to 80 and above 0, got 0.0"),
        (True, math.nan, r"expected metres that a victim can express, .* got nan"),
        (False, 101.0, r"expected a percentile from 0 to 100 .*, because a victim gives no metres, got 101.0"),
        (False, -1.0, r"expected a percentile from 0 to 100 .*, got -1.0"),
    ],
)
def test_targets_that_the_victim_cannot_express_are_refused(is_metric: bool, target: float, message: str) -> None:
    with pytest.raises(InputError, match=rf"attack\.target: {message}") as caught:
        bound(is_metric, (0.0, 80.0), target=target)
    assert "\n" not in str(caught.value)


def test_a_surface_is_needed_for_its_region() -> None:
    victim = SimpleNamespace(is_metric=True, depth_range=(0.0, math.inf), name="a victim")
    with pytest.raises(InputError, match=r"attack\.region=surface: expected scenes with a surface"):
        DepthAttack(region="surface").bind(victim, Scenes(with_surface=False))
    DepthAttack(region="patch").bind(victim, Scenes(with_surface=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "away"}, r"attack: expected goal of near, far, region of patch, surface, all, .* got away, patch"),
        ({"region": "outside"}, r"attack: expected .* got near, outside, absolute and even"),
        ({"distance": "ratio"}, r"attack: expected .* distance of absolute, log_ratio and .* got near, patch, ratio"),
        ({"weights": "odd"}, r"attack: expected .* weights of even, cospgd, got near, patch, absolute and odd"),
        (
            {"weights": "cospgd", "distance": "log_ratio"},
            r"attack\.weights=cospgd: expected distance absolute, got log",
        ),
        ({"tolerance": -0.1}, r"attack\.tolerance: expected a fraction of 0 or more and less than 1, got -0.1"),
        ({"tolerance": 1.0}, r"attack\.tolerance: expected .* got 1.0"),
        ({"margin": -0.1}, r"attack\.margin: expected a fraction of 0 or more, got -0.1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        DepthAttack(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("is_metric", [True, False])
def test_pictures_are_bright_where_it_is_near_on_the_scale_of_the_clean_one(is_metric: bool) -> None:
    clean = ramp() + 1  # metres, or inverse depth
    attack = bound(is_metric)
    first, same, near = attack.pictures([clean, clean, on_patch(clean, 0.5 if is_metric else 500)], [])
    assert first.shape == (3, *SIZE)
    assert 0 <= first.min() < 0.1 < 0.9 < first.max() <= 1
    assert torch.equal(first, same)
    dark, bright = (first[:, -1, -1], first[:, 0, 0]) if is_metric else (first[:, 0, 0], first[:, -1, -1])
    assert dark.sum() < 0.1
    assert bright.sum() > 2.5
    assert torch.equal(near[:, 5:], first[:, 5:])  # what did not change looks the same
    assert torch.equal(near[:, 2, 4], near[:, 1, 3])
    assert near[:, 2, 4].sum() >= first.sum(dim=0).max()
    assert attack.pictures([constant(1)], [])[0].isfinite().all()


def test_the_legend_goes_from_the_colour_of_the_farthest_to_that_of_the_nearest() -> None:
    bar, text = bound(False).legend()
    assert bar.shape[0] == 3
    assert bar.shape[2] > bar.shape[1]
    brightness = bar.mean(dim=(0, 1))
    assert (brightness.diff() >= -0.01).all()
    picture = bound(False).pictures([ramp()], [])[0]
    torch.testing.assert_close(bar[:, 0, 0], picture[:, 0, 0])
    torch.testing.assert_close(bar[:, 0, -1], picture[:, -1, -1])
    assert text.startswith("Dark is far and bright is near")


@pytest.mark.parametrize("is_metric", [True, False])
def test_changes_are_red_where_it_is_nearer_and_blue_where_it_is_farther(is_metric: bool) -> None:
    """The colour goes by the root: a quarter of the full change is half of the way to the end of the bar."""
    attack = bound(is_metric)
    clean = ramp() + 1
    unit = attack.widest * (-1 if is_metric else (clean.quantile(0.95) - clean.quantile(0.05)).item())
    outputs = [clean + share * unit for share in (-1.0, -0.25, 0.0, 0.25, 1.0)]
    pictures = attack.changes(outputs, clean, [torch.zeros(1, 3, *SIZE)] * 5)
    bar, _ = attack.changes_legend()
    for picture, place in zip(pictures, (17, 116, 216, 315, 414), strict=True):
        assert picture.shape == (3, *SIZE)
        torch.testing.assert_close(picture[:, 0, 0], 0.7 * bar[:, 20, place], rtol=0, atol=0.03)
    farther, nearer = pictures[0], pictures[-1]
    assert (farther[2] > farther[0]).all()
    assert (nearer[0] > nearer[2]).all()


@pytest.mark.parametrize("is_metric", [True, False])
def test_pixels_average_to_the_error_over_the_frame(is_metric: bool) -> None:
    attack, clean = bound(is_metric), ramp() + 1
    output = on_patch(clean, 10)
    metrics = attack.metrics(output, clean, scene(), view())
    assert attack.reach == "error"
    torch.testing.assert_close(attack.per_pixel(output, clean).mean(), metrics["error", "all"][0])
