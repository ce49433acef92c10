"""A suite of two tasks that takes seconds, its patches, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchattack import hand_drawn
from patchattack.benchmark import patch_file
from patchattack.patch import Patch

NewPatch = Callable[[Path, str, str, tuple[str, ...]], Path]
SUITE = """
name: tiny
scenes: 3
validation: 1
tasks:
  flow:
    victims: {own: flow_matching}
    patches: [PATCHES]
    sizes: {default: {}, small: {placement.area: 0.05}}
    overrides: [victims.own.weights=random, "data.size=[32,64]", SHARED]
  classification:
    victims: {own: classifier_residual}
    defenses: [bit_depth]
    patches: [PATCHES]
    overrides: [victims.own.weights=random, "data.size=[32,32]", attack.goal=untargeted, attack.target=null, SHARED]
"""
SHARED = (
    'data.scenes=8, data.supersampling=1, "trainer.split=[0.25,0.25,0.5]", trainer.accelerator=cpu, patch.resolution=8'
)


def write_patch(folder: Path, name: str, task: str, victims: tuple[str, ...]) -> Path:
    """A white-box patch of noise."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
    patch = Patch.create(resolution=8, size_mm=60, seed=seed)
    told: dict[str, Any] = {"name": name, "task": task, "victims": victims, "defenses": (), "knowledge": "white box"}
    return patch_file.write(folder, patch_file.PatchFile(patch=patch, source="noise", licence="MIT", **told))


@pytest.fixture(scope="session")
def new_patch() -> NewPatch:
    """Writes a patch file, as :func:`write_patch`."""
    return write_patch


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``--config-dir`` with the suite ``tiny``, whose patches are in ``../patches``."""
    folder = tmp_path_factory.mktemp("mine") / "conf"
    write_patch(folder.parent / "patches", "for_flow", "flow", ("own",))
    write_patch(folder.parent / "patches", "for_another", "flow", ("another",))
    write_patch(folder.parent / "patches", "for_classes", "classification", ("own",))
    (folder / "suite").mkdir(parents=True)
    text = SUITE.replace("PATCHES", str(folder.parent / "patches")).replace("SHARED", SHARED)
    (folder / "suite" / "tiny.yaml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def bench(command: Callable[..., Any], configs: Path) -> Callable[..., Any]:
    """``patchattack bench run suite=tiny`` with more overrides, in this process, and of all hand-drawn textures two."""
    two = hand_drawn.standard_textures()[:2]

    def run(*more: str) -> Any:
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(hand_drawn, "standard_textures", lambda: two)
            return command("run", "suite=tiny", "workers=1", *more, f"--config-dir={configs}", entry="bench")

    return run


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, bench: Callable[..., Any]) -> Path:
    """The folder of the whole suite; nobody may change it."""
    folder = tmp_path_factory.mktemp("bench") / "whole"
    outcome = bench(f"output={folder}", "by=us")
    assert outcome.status == 0, outcome.err
    return folder
