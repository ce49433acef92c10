"""The site builds without a warning and needs no network; its words are spelled, its figures come from files."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import pytest

from patchattack import commands

PROJECT = Path(__file__).parents[1]
PAGES = PROJECT / "docs" / "pages"
WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "docs", "patchattack", "conf", "scripts")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; a link, an anchor or a page that is missing ends the build."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [*(sys.executable, "-m", "mkdocs", "build", "--strict", "-q"), *("-f", "docs/mkdocs.yml", "-d", str(folder))],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def loaded(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(file).stem, PROJECT / file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return loaded("docs/tables.py")


def test_no_page_needs_the_network(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)|<link\b([^>]*)>")
    for page in site.rglob("*.html"):
        for source, link in fetched.findall(page.read_text(encoding="utf-8")):
            assert not source.startswith(("http:", "https:", "//")), page
            assert "//" not in link or 'rel="canonical"' in link, page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_generated_pages_have_what_they_are_made_of(site: Path) -> None:
    def text(name: str) -> str:
        return (site / name).read_text(encoding="utf-8")

    for group in (path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()):
        page = text(f"reference/config/{group}.html")
        assert all(f'id="{path.stem}"' in page for path in (PROJECT / "conf" / group).glob("*.yaml")), group
    steps = re.search(
        r"<td><code>trainer\.steps</code></td>(.*?)</tr>", text("reference/config/trainer.html"), re.DOTALL
    )
    assert steps
    assert re.findall(r"<td>(?:<code>)?(.*?)(?:</code>)?</td>", steps[1]) == ["int", "400", "updates of the patch"]
    assert "the centre of a pixel" in text("reference/api/the_nouns.html")
    assert "classifier_residual" in text("results/cards.html")
    assert "<!-- small" not in text("tutorials/first_patch.html")
    assert "{{" not in text("results/index.html") + text("how_to/webcam.html")


def test_every_command_has_a_page() -> None:
    named = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert named <= {path.stem for path in (PAGES / "how_to").glob("*.md")}
    for name in named:
        page = (PAGES / "how_to" / f"{name}.md").read_text(encoding="utf-8")
        assert "{{ help }}" in page
        assert name == "train" or "{{ keys }}" in page


def test_words_are_spelled() -> None:
    cards = (PROJECT / "assets" / "victims").glob("*.md")
    command = [sys.executable, "-m", "codespell_lib", *WRITTEN, *map(str, cards)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_the_readmes_table_is_that_of_the_results(tables: ModuleType) -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert tables.of_four_tasks() in readme
    beaten = not any(controls for run in tables.load() for controls in run["unbeaten"].values())
    assert beaten == ("Digital and photographed, every patch beats" in readme)


def test_tables_show_every_default_run(tables: ModuleType) -> None:
    runs = tables.load()
    assert {run["task"] for run in runs} == {*tables.MEASURED}
    assert len(tables.default_runs().splitlines()) == 2 + len(runs)
    assert tables.gallery().count("![") == len(runs)
    assert all((tables.RUNS.with_name(run["picture"])).is_file() for run in runs)


def test_what_is_certified_is_shown_from_the_largest_patch_on(tables: ModuleType) -> None:
    for table in (tables.certified_classes(), tables.certified_objects()):
        head, _, *lines = table.splitlines()
        assert len(lines) > 1
        assert {line.count("|") for line in lines} == {head.count("|")}
        sizes = [(line.split("|")[1], float(line.split("|")[2].split()[0])) for line in lines]
        for network in {name for name, _ in sizes}:
            mine = [area for name, area in sizes if name == network]
            assert mine == sorted(mine, reverse=True)


def test_the_benchmarks_page_shows_every_victim_and_every_shipped_patch(tables: ModuleType) -> None:
    victims = {line["victim"] for line in tables._board("victims")[1]}
    assert victims == {path.stem for path in (PROJECT / "assets" / "victims").glob("*.md")}
    patches = {path.stem for path in (PROJECT / "assets" / "benchmark").glob("*.png")}
    assert {title[4:] for title in tables.benchmark_patches().splitlines() if title.startswith("### ")} == patches
    assert victims <= patches  # each has met one that was trained for it


def test_results_are_collected_from_runs(tables: ModuleType, finished: Path, tmp_path: Path) -> None:
    tables.RUNS = tmp_path / "runs.json"
    script = loaded("scripts/maintain/collect_results.py")
    run = script.collect(finished)
    rows = json.loads((finished / "results.json").read_text())
    (row,) = (row for row in rows if (row["condition"], row["metric"], row["region"]) == ("patch", "cosine", "outside"))
    mean, *interval, n = run["metrics"]["cosine"]["values"]["patch"]
    assert (mean, n) == (pytest.approx(row["mean"], rel=1e-4), row["n"])
    assert interval == pytest.approx([row["low"], row["high"]], rel=1e-4)
    assert (run["primary_metric"], run["region"], run["command"]) == (
        "cosine",
        "outside",
        "python train.py attack=flow",
    )
    picture = cv2.imread(str(tmp_path / run["picture"]))
    assert (picture == cv2.imread(str(finished / "patch.png"))).all()


def test_the_readmes_picture_is_made_from_a_report(finished: Path) -> None:
    script = loaded("scripts/maintain/make_pictures.py")
    for kinds in (["Output"], ["Frame", "Output"]):  # of two scenes
        drawn = script.draw((finished / "report.html").read_text(), kinds)
        assert drawn.shape == (34 + 2 * len(kinds) * (script.WIDTH // 2 + 6), 3 * script.WIDTH + 12, 3)
