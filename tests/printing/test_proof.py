from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageCms

from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.printing.proof import proof

HALF_SATURATED = 0.5


def profile(folder: Path, saturation: float) -> Path:
    """sRGB whose primaries are drawn to their mean, so that greys and white stay what they are."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", content[128:132])
    entries = (content[at : at + 12] for at in range(132, 132 + 12 * count, 12))
    tags = {bytes(entry[:4]): struct.unpack(">I", entry[4:8])[0] for entry in entries}
    places = [tags[name] + 8 for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    primaries = torch.tensor([struct.unpack(">3i", content[at : at + 12]) for at in places], dtype=torch.float64)
    mean = primaries.mean(dim=0)
    for at, primary in zip(places, mean + saturation * (primaries - mean), strict=True):
        content[at : at + 12] = struct.pack(">3i", *primary.round().int().tolist())
    path = folder / "printer.icc"
    path.write_bytes(bytes(content))
    assert ImageCms.ImageCmsProfile(io.BytesIO(bytes(content))).profile.xcolor_space.strip() == "RGB"
    return path


def test_a_printer_that_can_show_all_of_srgb_changes_nothing(tmp_path: Path) -> None:
    texture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = proof(texture, torch.ones(1, 8, 8), profile(tmp_path, 1.0))
    torch.testing.assert_close(found.texture, texture, rtol=0, atol=2 / 255)
    assert found.most < 1


def test_colours_out_of_gamut_move_and_greys_stay(tmp_path: Path) -> None:
    texture = torch.full((3, 1, 4), 0.6)
    texture[:, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    printer = profile(tmp_path, HALF_SATURATED)
    found = proof(texture, torch.ones(1, 1, 4), printer)
    torch.testing.assert_close(found.texture[..., 1:], texture[..., 1:], rtol=0, atol=2 / 255)
    assert found.texture[1, 0, 0] > 0.3  # a red with green in it
    assert found.most > 15 > found.mean > 2
    mask = torch.tensor([[[0.0, 1.0, 1.0, 1.0]]])  # what is cut away does not count
    assert proof(texture, mask, printer).most < 1


def test_what_is_no_profile_of_a_printer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.icc"
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for content in (None, b"no profile", lab):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match="proof: expected the ICC profile of a printer and its paper, got"):
            proof(torch.zeros(3, 2, 2), torch.ones(1, 2, 2), path)


def test_the_command_leaves_a_patch_to_evaluate(tmp_path: Path, command: Callable[..., Any]) -> None:
    texture = torch.zeros(3, 4, 4)
    texture[0] = 1
    Patch(texture, torch.ones(1, 4, 4), (60.0, 60.0)).save(tmp_path / "red.png", {"victims": ["a network"]})
    given = (f"patch={tmp_path / 'red.png'}", f"proof={profile(tmp_path, HALF_SATURATED)}", f"output={tmp_path}")
    outcome = command(*given, entry="print")
    assert outcome.status == 0, outcome.err
    assert "mean ΔE2000 " in outcome.out
    proofed = Patch.load(tmp_path / "proof.png")
    assert proofed.size_mm == (60.0, 60.0)
    assert proofed()[1:].min() > 0.3
