from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from patchattack.benchmark import patch_file
from patchattack.benchmark.importers import KINDS
from patchattack.benchmark.patch_file import PatchFile
from patchattack.data import pack
from patchattack.errors import InputError
from patchattack.patch import Patch

Change = Callable[[dict[str, Any]], object]


def one() -> PatchFile:
    """5 × 3 texels of a triangle's mask, every value one of 8 bits."""
    pixels = torch.randint(0, 256, (4, 3, 5), generator=torch.Generator().manual_seed(0)) / 255
    return PatchFile(
        patch=Patch(pixels[:3], pixels[3:], (50, 30)),
        name="toaster 1",
        task="classification",
        victims=["resnet50"],
        defenses=["jpeg"],
        knowledge="white box",
        goal="targeted",
        target="toaster",
        seed=3,
        source="https://example.org/paper",
        licence="CC-BY-4.0",
        made="2026-11-30",
        versions={"torch": "2.11.0"},
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = patch_file.write(tmp_path, one())
    again = patch_file.read(path)
    assert path == tmp_path / "toaster 1.png"
    assert again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(again.patch(), one().patch())
    assert torch.equal(again.patch.mask, one().patch.mask)
    assert again.patch.size_mm == (50, 30)
    assert replace(again, patch=None, sha256="") == replace(one(), patch=None)  # type: ignore[arg-type]
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    assert patch_file.write(tmp_path, again) == path
    assert before == (path.read_bytes(), path.with_suffix(".json").read_bytes())


def test_a_run_becomes_a_patch_file(tmp_path: Path, finished: Path) -> None:
    mine = patch_file.of_run(finished)
    assert (mine.task, mine.knowledge, mine.defenses, mine.name) == ("flow", "white box", [], "run")
    assert mine.victims == json.loads((finished / "patch.json").read_text())["victims"]
    assert mine.sha256 == hashlib.sha256((finished / "patch.png").read_bytes()).hexdigest()
    again = patch_file.read(patch_file.write(tmp_path, mine))
    assert again.sha256 == mine.sha256
    for name in ("patch.png", "patch.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    with pytest.raises(InputError, match="expected the folder of a finished run"):
        patch_file.of_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("format"), "expected format patchattack-patch, got None"),
        (lambda facts: facts.update(version=2), "expected version 1 of patchattack-patch, got 2; update patchattack"),
        (lambda facts: facts.update(version=True), "expected version 1"),
        (lambda facts: facts.update(sha256="0" * 64), "expected the PNG with the sha256 0000"),
        (lambda facts: facts.update(sha256=0), "expected sha256 as text, got 0"),
        (lambda facts: facts.pop("size_mm"), "got none of size_mm"),
        (lambda facts: facts.update(size_mm=[50]), "expected a list of 2 numbers"),
        (lambda facts: facts.update(size_mm=[50, 0]), "expected a number from 0.1"),
        (lambda facts: facts.update(_target_="os.system"), "got _target_ besides"),
        (lambda facts: facts.update(task="text"), "expected task to be classification, depth, detection, flow"),
        (lambda facts: facts.update(task=[]), "expected task to be"),
        (lambda facts: facts.update(knowledge="grey box"), "expected knowledge to be white box, black box, none"),
        (lambda facts: facts.update(victims="resnet50"), "expected victims as a list of names"),
        (lambda facts: facts.update(defenses=[1]), "expected defenses as a list of names"),
        (lambda facts: facts.update(goal={"_target_": "os.system"}), "expected goal as text or null"),
        (lambda facts: facts.update(seed=0.5), "expected an integer >= 0"),
        (lambda facts: facts.update(made="yesterday"), "Invalid isoformat"),
        (lambda facts: facts.update(versions=["torch"]), "expected versions of packages"),
        (lambda facts: facts.update(name="../../.bashrc"), "expected a name of letters, digits"),
        (lambda facts: facts.update(licence=None), "expected licence as text"),
    ],
)
def test_a_json_of_another_kind_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    path = patch_file.write(tmp_path, one())
    facts = json.loads(path.with_suffix(".json").read_text())
    change(facts)
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(InputError) as error:
        patch_file.read(path)
    assert message in str(error.value)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def other_mode(path: Path) -> None:
    Image.open(path).convert("P").save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "expected a PNG of 8 bits a channel"),
        (lambda path: path.write_bytes(path.read_bytes() + pickle.dumps(Evil())), "nothing behind its end"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "expected a PNG of 8 bits a channel"),
        (lambda path: Image.new("RGB", (5, 3)).save(path, "JPEG"), "expected a PNG of 8 bits a channel"),
        (lambda path: Image.new("I;16", (5, 3)).save(path), "expected a PNG of 8 bits a channel"),
        (other_mode, "expected a PNG of 8 bits a channel"),
        (lambda path: Image.new("RGB", (5, 3)).save(path), "expected the PNG with the sha256"),
        (lambda path: path.unlink(), "expected the PNG of a patch file, got 'No such file"),
        (lambda path: path.with_suffix(".json").unlink(), "expected the JSON of a patch file"),
        (lambda path: path.with_suffix(".json").write_bytes(pickle.dumps(Evil())), "expected the JSON of a patch"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "expected the JSON of a patch"),
    ],
)
def test_files_that_are_no_patch_are_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = patch_file.write(tmp_path, one())
    change(path)
    with pytest.raises(InputError) as error:
        patch_file.read(path)
    assert message in str(error.value)
    assert not Path("executed").exists()


def test_another_patch_of_the_same_name_stays(tmp_path: Path) -> None:
    path = patch_file.write(tmp_path, one())
    before = path.read_bytes()
    other = Patch.create(resolution=4)
    with pytest.raises(InputError, match="got another patch of this name"):
        patch_file.write(tmp_path, replace(one(), patch=other))
    assert path.read_bytes() == before


def test_facts_of_another_kind_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a name of letters"):
        patch_file.write(tmp_path, replace(one(), name="a/b"))
    assert not list(tmp_path.iterdir())


def test_the_page_shows_the_formats(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/pages/reference/benchmark_files.md").read_text(encoding="utf-8")
    patch, head = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    path = patch_file.write(tmp_path, one())
    facts = json.loads(patch)
    path.with_suffix(".json").write_text(json.dumps(facts | {"sha256": patch_file.read(path).sha256}))
    assert patch_file.read(path).victims == facts["victims"]
    (tmp_path / "scenes.json").write_text(head)
    (tmp_path / "scenes.csv").write_text(re.findall(r"```text\n(.*?)```", page, re.DOTALL)[0])
    assert len(pack.read(tmp_path)[1]) == 1
    assert all(f"| `{kind}` |" in page for kind in KINDS)
