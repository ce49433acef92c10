from __future__ import annotations

import math

import torch

from patchattack.attacks.flow import FlowAttack
from patchattack.scene import Scene, View
from patchattack.studies.sweep.rings import averages, rings


def view(*places: tuple[int, int]) -> View:
    """A frame of 12 × 20 px for each place, with a patch of 2 × 2 px there."""
    coverage = torch.zeros(1, len(places), 1, 12, 20)
    for frame, (row, column) in enumerate(places):
        coverage[0, frame, 0, row : row + 2, column : column + 2] = 1
    return View(torch.zeros(1, len(places), 3, 12, 20), coverage, torch.zeros(1, len(places), 4, 2))


def test_rings_hold_the_pixels_at_their_distance_and_none_of_the_patch() -> None:
    """A side is 2 px: the rings end half a pixel, one, two, four and eight pixels away."""
    found = [*rings(view((5, 0))).values()]
    assert [int(ring.sum()) for ring in found[:3]] == [0, 6, 2 + 2 + 2 + 2]  # beside it: 2 above, below and right
    assert found[2][5, 3]
    assert not found[2][5, 4]
    everywhere = torch.stack(found).sum(dim=0)
    assert everywhere.max() == 1
    assert everywhere[5:7, :2].sum() == 0
    assert everywhere[:, 10:].sum() == 0  # farther than four sides


def test_a_pixel_that_shows_the_patch_in_any_frame_is_in_no_ring() -> None:
    assert torch.stack([*rings(view((5, 0), (5, 6))).values()]).any(dim=0)[5].tolist()[:8] == [
        *[False, False, True, True, True, True, False, False]
    ]


def test_averages_leave_out_what_is_unknown() -> None:
    values = torch.tensor([[[1.0, 3.0], [math.nan, 8.0]]])
    parts = {"left": torch.tensor([[True, False], [True, False]]), "none": torch.zeros(2, 2, dtype=torch.bool)}
    found = averages(values, parts)
    assert found["left"].tolist() == [1.0]
    assert found["none"].isnan().all()


def test_pixels_average_to_the_metric_over_the_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, output = torch.randn(2, 1, 2, 12, 20, generator=generator)
    attack, shown = FlowAttack(), view((5, 0))
    metrics = attack.metrics(output, clean, Scene(shown.frames, torch.zeros(1)), shown)
    assert attack.per_pixel(output, clean).nanmean() == metrics[attack.reach, "all"][0]
