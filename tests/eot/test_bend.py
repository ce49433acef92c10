from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.eot.appearance import Brightness
from patchattack.eot.bend import Bend, Cloth, Cylinder
from patchattack.eot.camera import Gamma
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Draw, Renderer
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.scene import Scene

SIZE = (96, 128)
PATCH = Patch.create(resolution=32)
BENDS: dict[str, Bend] = {
    "cylinder": Cylinder(),
    "lying cylinder": Cylinder((0.2, 0.5), axis="horizontal"),
    "cloth": Cloth(),
    "coarse cloth": Cloth(points=2, strength=0.15),
}
every_bend = pytest.mark.parametrize("bend", BENDS.values(), ids=BENDS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeding.generator(seed), dtype=torch.float64)


def scenes(count: int = 2, frames: int = 2) -> Scene:
    """Black ones."""
    return Scene(torch.zeros(count, frames, 3, *SIZE, dtype=torch.float64), torch.arange(count))


def renderer(bend: Bend | None, motion: str = "random") -> Renderer:
    placement = Uniform(side=0.5, tilt=15, motion=motion)
    return Renderer(placement, {"brightness": Brightness((0, 0))}, {"gamma": Gamma((1, 1))}, bend=bend)


def draw(by: Renderer, scene: Scene) -> Draw:
    return by.draw(scene, PATCH, seeding.numbers([(0, int(row)) for row in scene.index]))


def points(*places: tuple[float, float]) -> Tensor:
    """``[1, 2, 1, n]``."""
    return torch.tensor(places, dtype=torch.float64).T[None, :, None]


FLAT: list[tuple[Bend, Tensor]] = [
    (Cloth(strength=0), Cloth(strength=0).draw(seeding.numbers([(0,), (1,)]))),
    *((Cylinder(axis=axis), torch.tensor([[1e4, 0.0]]).repeat(2, 1)) for axis in ("vertical", "horizontal")),
]


@pytest.mark.parametrize(("bend", "parameters"), FLAT, ids=["cloth", "cylinder", "lying cylinder"])
def test_without_curvature_it_is_the_plane(bend: Bend, parameters: Tensor) -> None:
    scene, texture, mask = scenes(), random(3, 32, 32), torch.ones(1, 32, 32, dtype=torch.float64)
    plane, bent = renderer(None), renderer(bend)
    flat = plane(texture, mask, scene, draw(plane, scene))
    same = bent(texture, mask, scene, dataclasses.replace(draw(bent, scene), bend=parameters))
    torch.testing.assert_close(same.frames, flat.frames, rtol=0, atol=1e-6)
    torch.testing.assert_close(same.coverage, flat.coverage, rtol=0, atol=1e-6)
    assert torch.equal(same.corners, flat.corners)


def test_around_a_cylinder_lengths_are_true_along_the_arc() -> None:
    """A side as long as half a turn: its ends are at the outline, its quarter points 45 degrees before them."""
    radius = 1 / math.pi
    places = points((0.5, 0.3), (0.5 + radius * math.sqrt(0.5), 0.3), (0.5 - radius * 0.9999, 0.3), (0.9, 0.3))
    found = Cylinder().unbend(torch.tensor([[radius, 0.0]], dtype=torch.float64), places, 1)
    assert found[0, 0, 0, :3].tolist() == pytest.approx([0.5, 0.75, 0], abs=0.01)
    assert found[0, 0, 0, :2].tolist() == pytest.approx([0.5, 0.75], abs=1e-6)
    assert found[0, 0, 0, 3] == math.inf  # beside the cylinder
    assert found[0, 1].tolist() == [[0.3] * 4]
    lying = Cylinder(axis="horizontal").unbend(torch.tensor([[radius, 0.0]], dtype=torch.float64), places.flip(1), 1)
    assert torch.equal(lying, found.flip(1))


def test_a_turned_cylinder_hides_what_goes_around_it() -> None:
    """Turned by 60 degrees to the right: on that side it is seen up to 30 degrees from its middle."""
    one = torch.tensor([[0.25, 60.0]], dtype=torch.float64)
    edge = 0.25 * (1 - math.sin(math.pi / 3))
    places = points((0.5, 0.5), (0.5 + edge - 1e-9, 0.5), (0.5 + edge + 1e-9, 0.5), (0.5 - 0.25 * math.sqrt(0.75), 0.5))
    middle, last, hidden, left = Cylinder().unbend(one, places, 1)[0, 0, 0].tolist()
    assert (middle, last) == pytest.approx((0.5, 0.5 + 0.25 * math.pi / 6), abs=1e-4)
    assert hidden == math.inf
    assert left == pytest.approx(0.5 - 0.25 * math.pi / 3, abs=1e-6)  # straight before the camera


def test_cloth_is_a_thin_plate_spline() -> None:
    """By scipy's, at the points of the table; then smaller, so that it lies within the corners."""
    cloth = Cloth(points=4, strength=0.04)
    parameters = cloth.draw(seeding.numbers([(3,)])).double()
    control, table = (geometry.pixel_grid((n, n)).double().view(-1, 2) / (n - 1) for n in (4, 65))
    spline = RBFInterpolator(control, parameters.view(2, -1).T, kernel="thin_plate_spline")
    shift = torch.from_numpy(spline(table)).view(65, 65, 2)
    first = torch.stack([shift[:, 0, 0].max(), shift[0, :, 1].max()]).clamp(min=0)
    last = torch.stack([-shift[:, -1, 0].min(), -shift[-1, :, 1].min()]).clamp(min=0)
    assert first.max() > 0
    assert last.max() > 0
    seen = ((table + first) / (1 + first + last)).T[None, :, None]
    found = cloth.unbend(parameters, seen, 1)[0, :, 0].T
    torch.testing.assert_close(found, table + shift.view(-1, 2), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("count", "strength"), [(2, 0.2), (3, 0.086), (4, 0.05), (8, 0.02)])
def test_cloth_never_folds(count: int, strength: float) -> None:
    """As strong as it may be, the most extreme of shifts included: everywhere the texture keeps its orientation."""
    cloth = Cloth(count, strength)
    signs = (random(40, 2 * count**2) < 0.5).double() * 2 - 1
    parameters = torch.cat([cloth.draw(seeding.numbers([(row,) for row in range(40)])), signs * strength]).double()
    places = (geometry.pixel_grid((90, 90)).double() / 89).permute(2, 0, 1).expand(len(parameters), -1, -1, -1)
    u = cloth.unbend(parameters, places, 1)
    along, down = u[..., :-1, 1:] - u[..., :-1, :-1], u[..., 1:, :-1] - u[..., :-1, :-1]
    assert (along[:, 0] * down[:, 1] - along[:, 1] * down[:, 0]).min() > 0


@every_bend
def test_all_of_it_is_seen_within_the_corners(bend: Bend) -> None:
    scene, mask = scenes(8), torch.ones(1, 32, 32, dtype=torch.float64)
    plane, bent = renderer(None), renderer(bend)
    flat, view = (one(mask.expand(3, -1, -1), mask, scene, draw(one, scene)) for one in (plane, bent))
    assert view.coverage[flat.coverage == 0].max() == 0
    assert (view.coverage.sum(dim=(2, 3, 4)) < flat.coverage.sum(dim=(2, 3, 4))).all()
    assert view.coverage.sum() > 0.3 * flat.coverage.sum()
    torch.testing.assert_close(view.frames, view.coverage.expand_as(view.frames), rtol=0, atol=1e-6)


@every_bend
def test_the_gradient_is_the_slope(bend: Bend) -> None:
    by, scene, mask = renderer(bend), scenes(), PATCH.mask.double()
    texture, direction = (0.2 + 0.6 * random(3, 32, 32, seed=1)).requires_grad_(), random(3, 32, 32, seed=2) - 0.5
    one, weights = draw(by, scene), random(*scene.frames.shape, seed=3) - 0.5

    def value(texture: Tensor) -> Tensor:
        return (by(texture, mask, scene, one).frames * weights).sum()

    (gradient,) = torch.autograd.grad(value(texture), texture)
    with torch.no_grad():
        slope = (value(texture + 1e-6 * direction) - value(texture - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("minification", [2, 5, 8])
@pytest.mark.parametrize("angle", [0.0, 17.0])
@every_bend
def test_it_is_antialiased(bend: Bend, angle: float, minification: float) -> None:
    """As the plane: at least 30 dB in the window, against 12 × 12 samples of the full texture per pixel."""
    texture, samples = torch.cat([random(1, 3, 160, 160), torch.ones(1, 1, 160, 160)], dim=1).double(), 12
    side, turn = 160 / minification, torch.polar(torch.tensor(1.0), torch.tensor(math.radians(angle)))
    square = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * side
    corners = (torch.view_as_real(torch.view_as_complex(square) * turn) + 60.3).double()[None]
    homography = geometry.homography_from_corners(corners)
    window = geometry.Window.around(corners, (128, 128))
    unbend = partial(bend.unbend, bend.draw(seeding.numbers([(1,)])).double())
    view = geometry.warp_texture(texture, homography, window, unbend=unbend)

    grid = geometry.pixel_grid(window.size, supersampling=samples).double() + window.origin[0]
    flat = geometry.project(torch.linalg.inv(homography), grid.view(1, -1, 2)).view_as(grid)
    uv = unbend(flat.permute(2, 0, 1)[None], 1)[0].permute(1, 2, 0)
    found = geometry.sample(texture, (uv.clamp(0, 1) * 160 - 0.5).clamp(0, 159)[None])
    expected = F.avg_pool2d(found * ((uv >= 0) & (uv <= 1)).all(dim=-1), samples)
    assert -10 * math.log10((view - expected)[:, :3].square().mean()) >= 30


@every_bend
def test_neither_draw_nor_view_depends_on_the_batch(bend: Bend) -> None:
    by, scene, texture, mask = renderer(bend), scenes(3), random(3, 32, 32), PATCH.mask.double()
    together = draw(by, scene)
    views = by(texture, mask, scene, together)
    assert together.bend is not None
    assert len(together.bend.unique(dim=0)) == 3
    for row in range(3):
        alone = scene.select(slice(row, row + 1))
        one = draw(by, alone)
        assert one.bend is not None
        assert torch.equal(one.bend[0], together.bend[row])
        torch.testing.assert_close(by(texture, mask, alone, one).frames[0], views.frames[row], rtol=0, atol=1e-6)
    assert torch.equal(together.repeat(2).bend[3:], together.bend)  # type: ignore[index]


@every_bend
def test_both_frames_show_the_same_bend(bend: Bend) -> None:
    """Moved by whole pixels, the second is the first one, moved."""
    by, scene, mask = renderer(bend, "static"), scenes(3), PATCH.mask.double()
    one = draw(by, scene)
    moved = one.corners.clone()
    moved[:, 0], moved[:, 1] = moved[:, 0] * 0.5 + 20, moved[:, 1] * 0.5 + torch.tensor([27.0, 23.0])
    first, second = by(random(3, 32, 32), mask, scene, dataclasses.replace(one, corners=moved)).frames.unbind(1)
    torch.testing.assert_close(second[..., 3:, 7:], first[..., :-3, :-7], rtol=0, atol=1e-6)
    assert first.amax() > 0.5


@every_bend
def test_a_bend_changes_no_other_number(bend: Bend) -> None:
    flat, bent = (draw(renderer(one), scenes()) for one in (None, bend))
    assert torch.equal(flat.corners, bent.corners)
    assert torch.equal(flat.appearance[0], bent.appearance[0])
    assert torch.equal(flat.camera[0], bent.camera[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Cylinder(radius=(0.1, 1)),
            "expected at least 0.159 times the bent side, around which",
        ),
        (lambda: Cylinder(radius=(2, 1)), r"bend.radius: expected \[low, high\]"),
        (lambda: Cylinder(turn=(0, 120)), r"bend.turn: expected \[low, high\]"),
        (lambda: Cylinder(axis="diagonal"), "bend.axis: expected vertical or horizontal, got diagonal"),
        (lambda: Cloth(strength=0.06), r"expected 0 to 0.05\d, up to which 4 × 4 control points cannot fold the cloth"),
        (lambda: Cloth(strength=-0.01), "bend.strength: expected 0 to"),
        (lambda: Cloth(points=1), "bend.points: expected 2 to 16"),
    ],
)
def test_what_cannot_be_is_refused(make: type[Bend], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
