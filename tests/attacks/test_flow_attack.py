from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from patchattack.attacks.flow import DISTANCES, REGIONS, FlowAttack, cosine, regions
from patchattack.errors import InputError
from patchattack.scene import Scene, View

SIZE = (8, 12)
PIXELS = SIZE[0] * SIZE[1]
ON_PATCH = 3 * 4  # pixels of the patch in `view`


def constant(u: float, v: float, count: int = 1) -> Tensor:
    return torch.tensor([u, v], dtype=torch.float32).view(1, 2, 1, 1).expand(count, 2, *SIZE).clone()


def random(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def scene(count: int = 1, flow: Tensor | None = None) -> Scene:
    return Scene(frames=torch.zeros(count, 2, 3, *SIZE), index=torch.arange(count), flow=flow)


def view(count: int = 1) -> View:
    """The patch is 2 × 4 pixels in frame 0 and one row further down in frame 1; a soft edge counts."""
    coverage = torch.zeros(count, 2, 1, *SIZE)
    coverage[:, 0, :, 2:4, 3:7] = 1
    coverage[:, 1, :, 3:5, 3:7] = 0.1
    return View(torch.zeros(count, 2, 3, *SIZE), coverage, torch.zeros(count, 2, 4, 2))


def test_regions_part_the_frame() -> None:
    parts = regions(view())
    assert tuple(parts) == REGIONS
    assert {name: int(part.sum()) for name, part in parts.items()} == {
        "all": PIXELS,
        "outside": PIXELS - ON_PATCH,
        "patch": ON_PATCH,
    }
    assert not (parts["patch"] & parts["outside"]).any()
    assert parts["patch"][0, 2:5, 3:7].all()


@pytest.mark.parametrize(
    ("output", "similarity", "turned", "error"),
    [
        ((3.0, 4.0), 1.0, 0.0, 0.0),
        ((-3.0, -4.0), -1.0, 1.0, 10.0),
        ((6.0, 8.0), 1.0, 0.0, 5.0),
        ((-4.0, 3.0), 0.0, 0.0, math.sqrt(50)),
        ((0.0, 0.0), 0.0, 0.0, 5.0),
        ((-3.0, 4.0), 7 / 25, 0.0, 6.0),
    ],
    ids=["same", "reversed", "longer", "right angle", "zero", "mirrored"],
)
def test_what_is_measured_on_plain_flows(
    output: tuple[float, float], similarity: float, turned: float, error: float
) -> None:
    clean, seen = constant(3, 4), constant(*output)
    metrics = FlowAttack().metrics(seen, clean, scene(flow=constant(3, 3)), view())
    true_error = math.hypot(output[0] - 3, output[1] - 3)
    for region in REGIONS:
        assert metrics["cosine", region].item() == pytest.approx(similarity, abs=1e-6)
        assert metrics["turned", region].item() == turned
        assert metrics["epe_clean", region].item() == pytest.approx(error, abs=1e-5)
        assert metrics["epe_truth", region].item() == pytest.approx(true_error, abs=1e-5)
    distances = {
        "cosine": similarity,
        "epe": -error,
        "l1": -(abs(output[0] - 3) + abs(output[1] - 4)),
    }
    for distance, expected in distances.items():
        loss = FlowAttack(distance=distance).loss(seen, clean, scene(), view())
        assert loss.shape == (1,)
        assert loss.item() == pytest.approx(expected, abs=2e-4)  # the root of epe is rounded off at 0


@pytest.mark.parametrize(
    ("target", "distance", "expected"),
    [
        ("zero", "epe", 5.0),
        ("zero", "l1", 7.0),
        ([3.0, 0.0], "epe", 4.0),
        ([3.0, 0.0], "l1", 4.0),
        ([6.0, 8.0], "cosine", -1.0),
        ([-8.0, 6.0], "cosine", 0.0),
        ([-3, -4], "cosine", 1.0),
    ],
)
def test_a_target_draws_the_flow_to_itself(target: str | list[float], distance: str, expected: float) -> None:
    """The loss is the distance that is left, whatever the clean flow was."""
    attack = FlowAttack(target=target, distance=distance)
    loss = attack.loss(constant(3, 4), constant(1, 0), scene(), view())
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert attack.primary_metric == ("epe_clean", "outside")


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_only_the_region_counts(region: str, distance: str) -> None:
    """The patch's own area is no victory over the rest of the frame."""
    clean = constant(2, 0)
    output = clean.clone()
    output[..., 2:5, 3:7] *= -1  # reversed on the patch alone
    loss = FlowAttack(distance=distance, region=region).loss(output, clean, scene(), view())
    share = {"all": ON_PATCH / PIXELS, "outside": 0.0, "patch": 1.0}[region]
    expected = 1 - 2 * share if distance == "cosine" else -4 * share
    assert loss.item() == pytest.approx(expected, abs=2e-4)
    metrics = FlowAttack().metrics(output, clean, scene(flow=clean), view())
    assert metrics["cosine", region].item() == pytest.approx(1 - 2 * share)
    assert metrics["turned", region].item() == pytest.approx(share)
    assert metrics["epe_clean", region].item() == pytest.approx(4 * share)
    assert metrics["epe_truth", region].item() == pytest.approx(4 * share)


def test_the_primary_metric_is_in_the_region_of_the_loss() -> None:
    assert FlowAttack().primary_metric == ("cosine", "outside")
    assert FlowAttack(region="outside").primary_metric == ("cosine", "outside")
    assert FlowAttack(region="patch").primary_metric == ("cosine", "patch")
    assert FlowAttack(target="zero", distance="epe", region="patch").primary_metric == ("epe_clean", "patch")
    assert set(FlowAttack.metric_info) >= {FlowAttack().primary_metric[0], "epe_clean"}


def test_still_pixels_have_no_direction_and_do_not_count() -> None:
    clean = constant(2, 0)
    clean[..., :6] = torch.tensor([0.1, 0.1]).view(2, 1, 1)  # shorter than a quarter of a pixel
    output = constant(2, 0)
    output[..., :6] = -5
    assert FlowAttack(region="all").loss(output, clean, scene(), view()).item() == pytest.approx(1)
    metrics = FlowAttack().metrics(output, clean, scene(), view())
    assert metrics["cosine", "all"].item() == pytest.approx(1)
    assert metrics["turned", "all"].item() == 0
    assert metrics["epe_clean", "all"].item() == pytest.approx(math.hypot(5.1, 5.1) / 2, abs=1e-5)
    everything = FlowAttack(region="all", still=0.01).loss(output, clean, scene(), view())
    assert everything.item() == pytest.approx(0, abs=1e-6)
    epe = FlowAttack(region="all", distance="epe").loss(output, clean, scene(), view())
    assert epe.item() == pytest.approx(-math.hypot(5.1, 5.1) / 2, abs=1e-3)


def test_a_scene_in_which_nothing_moves_is_no_scene_for_the_cosine() -> None:
    """Its loss is 0 with no gradient, and its metric unknown; the other scene of the batch is not touched."""
    clean = torch.cat([constant(0.1, 0), constant(2, 0)])
    output = torch.cat([constant(1, 1), constant(-2, 0)]).requires_grad_()
    loss = FlowAttack().loss(output, clean, scene(2), view(2))
    assert loss.tolist() == pytest.approx([0, -1])
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() == 0
    metrics = FlowAttack().metrics(output, clean, scene(2), view(2))
    for name in ("cosine", "turned"):
        assert metrics[name, "all"].isnan().tolist() == [True, False]
    assert metrics["epe_clean", "all"].isfinite().all()


def test_without_a_patch_in_sight_its_region_is_unknown() -> None:
    unseen = dataclasses.replace(view(), coverage=torch.zeros(1, 2, 1, *SIZE))
    metrics = FlowAttack().metrics(constant(1, 0), constant(1, 0), scene(), unseen)
    assert metrics["cosine", "patch"].isnan().all()
    assert metrics["cosine", "outside"] == metrics["cosine", "all"] == pytest.approx(1)
    loss = FlowAttack(region="patch", distance="epe").loss(constant(1, 0), constant(1, 0), scene(), unseen)
    assert loss.item() == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_zero_flow_has_a_finite_gradient(distance: str) -> None:
    output = constant(0, 0).requires_grad_()
    for clean in (constant(0, 0), constant(2, 1)):
        (gradient,) = torch.autograd.grad(
            FlowAttack(distance=distance).loss(output, clean, scene(), view()).sum(), output
        )
        assert gradient.isfinite().all()
    assert cosine(output, constant(2, 1)).abs().max() == 0


def test_a_zero_flow_can_be_driven_away_from_the_clean_one() -> None:
    output = constant(0, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(
        FlowAttack(region="all").loss(output, constant(2, 0), scene(), view()).sum(), output
    )
    assert (gradient[:, 0] > 0).all()  # a step down the loss goes to the left


def test_the_cosine_has_no_length() -> None:
    clean, output = random(0), random(1)
    attack = FlowAttack(region="all")
    expected = attack.loss(output, clean, scene(2), view(2))
    torch.testing.assert_close(attack.loss(output * 1e3, clean, scene(2), view(2)), expected)
    similarity = torch.nn.functional.cosine_similarity(output, clean, dim=1)
    moves = clean.norm(dim=1) > 0.25
    by_hand = torch.stack([similarity[i][moves[i]].mean() for i in range(2)])
    torch.testing.assert_close(expected, by_hand)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("target", [None, [2.0, -1.0]])
def test_the_gradient_is_the_slope(target: list[float] | None, distance: str, region: str) -> None:
    attack = FlowAttack(target, distance, region)
    clean, direction = random(0, torch.float64), random(2, torch.float64)
    output = random(1, torch.float64).requires_grad_()

    def value(output: Tensor) -> Tensor:
        return (attack.loss(output, clean, scene(2), view(2)) * torch.tensor([1.0, 2.0])).sum()

    (gradient,) = torch.autograd.grad(value(output), output)
    step = 1e-6
    with torch.no_grad():
        slope = (value(output + step * direction) - value(output - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", [None, [-2.0, 0.0]])
def test_a_pixel_that_has_turned_counts_no_more(target: list[float] | None) -> None:
    """Left of the patch the flow is as it was, right of it half turned, above and below reversed."""
    clean = constant(2, 0)
    output = -clean
    output[..., :3] = clean[..., :3]
    output[:, :, :, 7:] = constant(0, 2)[..., 7:]
    output.requires_grad_()
    attack = FlowAttack(target, weights="cospgd", region="all")
    loss = attack.loss(output, clean, scene(), view())
    parts = (3 * SIZE[0] / PIXELS, (SIZE[1] - 7) * SIZE[0] / PIXELS)
    assert loss.item() == pytest.approx(parts[0], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    even = torch.autograd.grad(FlowAttack(target, region="all").loss(output, clean, scene(), view()).sum(), output)[0]
    torch.testing.assert_close(gradient[..., 7:], even[..., 7:] / 2)
    assert gradient[..., 3:7].abs().max() == 0


def test_scenes_of_a_batch_are_measured_apart() -> None:
    clean, output = random(0), random(1)
    attack = FlowAttack()
    together = attack.metrics(output, clean, scene(2, random(2)), view(2))
    for i in range(2):
        part = slice(i, i + 1)
        alone = attack.metrics(output[part], clean[part], scene(1, random(2)[part]), view())
        for key, values in together.items():
            torch.testing.assert_close(alone[key][0], values[i])


def test_unknown_truth_does_not_count() -> None:
    truth = constant(1, 0)
    truth[:, :, :4] = math.nan
    truth[:, 0, 4] = math.nan  # half a vector is unknown too
    output = constant(1, 0)
    output[:, 0, :5] = 100
    output[:, 0, 5:] = 3
    metrics = FlowAttack().metrics(output, constant(1, 0), scene(flow=truth), view())
    assert metrics["epe_truth", "all"].item() == pytest.approx(2)
    assert metrics["epe_truth", "patch"].isnan().all()  # its rows 2 to 4 are unknown
    unknown = FlowAttack().metrics(output, constant(1, 0), scene(flow=torch.full_like(truth, math.nan)), view())
    assert unknown["epe_truth", "all"].isnan().all()
    assert not any(name == "epe_truth" for name, _ in FlowAttack().metrics(output, output, scene(), view()))


def test_metrics_carry_no_gradient() -> None:
    output = random(1).requires_grad_()
    metrics = FlowAttack().metrics(output, random(0), scene(2), view(2))
    assert not any(value.requires_grad for value in metrics.values())
    assert {name for name, _ in metrics} <= set(FlowAttack.metric_info)
    assert all(value.shape == (2,) for value in metrics.values())


def colours(picture: Tensor) -> Tensor:
    """``[3]`` the median of ``picture [3, h, w]``, in which arrows, which cover less, do not count."""
    return picture.flatten(1).median(dim=1).values


def test_pictures_share_the_scale_of_the_clean_one() -> None:
    """As long as the clean flow is full; a longer one is no fuller, a shorter one paler, by the root."""
    full, longer, shorter = FlowAttack().pictures([constant(4, 0), constant(400, 0), constant(1, 0)], [])
    assert full.shape == (3, 40 * SIZE[0], 40 * SIZE[1])  # 8 pixels high would show no arrow
    assert torch.equal(full, longer)
    red, pale = colours(full), colours(shorter)
    assert red.min() < 0.02
    assert pale.min() == pytest.approx(0.5, abs=0.03)
    assert 0 <= shorter.min() <= shorter.max() <= 1
    assert colours(FlowAttack().pictures([constant(0, 0)], [])[0]).min() > 0.95  # nothing moves: white


def test_a_few_fast_pixels_do_not_bleach_the_others() -> None:
    clean = constant(2, 0)
    clean[:, 0, -1, :8] = 100  # the road at one's feet, less than a tenth of the picture
    assert colours(FlowAttack().pictures([clean], [])[0]).min() < 0.02


def ink(picture: Tensor) -> Tensor:
    return (picture < 0.1).all(dim=0)


def test_arrows_point_where_things_move() -> None:
    """Each is thicker at its head: the ink lies on that side of the middle of its cell."""
    for u, v in ((5, 0), (-5, 0), (0, 5), (0, -5)):
        cell = ink(FlowAttack().pictures([constant(u, v)], [])[0])[:45, :48].float()  # the first of 7 rows
        middle = (torch.tensor(cell.shape) - 1) / 2
        place = cell.nonzero().float().mean(dim=0) - middle
        assert place[1].sign() * (place[1].abs() > 1) == math.copysign(1, u) * (u != 0)
        assert place[0].sign() * (place[0].abs() > 1) == math.copysign(1, v) * (v != 0)
    dots = ink(FlowAttack().pictures([constant(0.1, 0)], [])[0])
    assert 0 < dots.float().mean() < 0.01


def test_changes_are_the_angles_by_which_the_motion_turned() -> None:
    clean = constant(3, 0)
    clean[..., 8:] = 0.1  # stands still
    frame = torch.zeros(2, 3, *SIZE)
    kept, right, reversed_ = FlowAttack().changes([clean, constant(0, 9), constant(-1, 0)], clean, [frame] * 3)
    assert kept.shape == (3, 40 * SIZE[0], 40 * SIZE[1])
    bar, text = FlowAttack().changes_legend()
    row = 0.7 * bar[:, 20]  # over a black frame
    for picture, place in ((kept, 17), (right, 216), (reversed_, 414)):
        torch.testing.assert_close(picture[:, 100, 100], row[:, place], rtol=0, atol=0.03)
        assert picture[:, 100, 400].tolist() == pytest.approx([0.7 * 0.45] * 3, abs=1e-4)
    assert "less than 0.25 px" in text
    bright = FlowAttack().changes([clean], clean, [torch.ones(2, 3, *SIZE)])[0]
    torch.testing.assert_close(bright[:, 100, 100], kept[:, 100, 100] + 0.3)


def test_the_legend_has_the_colours_of_the_pictures() -> None:
    wheel, text = FlowAttack().legend()
    size = wheel.shape[-1]
    for u, v in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        colour = colours(FlowAttack().pictures([constant(u, v)], [])[0])
        place = (size - 1) / 2 * (1 + 0.97 * torch.tensor([u, v]))
        x, y = place.round().long().tolist()
        torch.testing.assert_close(wheel[:, y, x], colour, rtol=0, atol=0.06)
    assert wheel[:, 0, 0].tolist() == [1, 1, 1]
    assert text.startswith("Colours and arrows point where things move")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"distance": "l2"},
            r"attack: expected distance of cosine, epe, l1, region of all, outside, patch and .* got l2",
        ),
        ({"region": "inside"}, r"attack: expected .* got cosine, inside and even"),
        ({"weights": "odd"}, r"attack: expected .* weights of even, cospgd, got cosine, outside and odd"),
        ({"target": "stop"}, r"attack\.target: expected null, zero or \[u, v\] in pixels, got stop"),
        ({"target": [1.0]}, r"attack\.target: expected null, zero or \[u, v\] in pixels, got \[1.0\]"),
        ({"target": ["a", "b"]}, r"attack\.target: expected null, zero or \[u, v\] in pixels"),
        ({"target": 5}, r"attack\.target: expected null, zero or \[u, v\] in pixels, got 5"),
        ({"target": "zero"}, r"attack\.target=zero: expected distance epe or l1, got cosine"),
        ({"target": [0, 0]}, r"attack\.target=\[0, 0\]: expected distance epe or l1, got cosine"),
        ({"still": 0}, r"attack\.still: expected pixels above 0, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        FlowAttack(**options)
    assert "\n" not in str(caught.value)
