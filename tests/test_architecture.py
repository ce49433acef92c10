"""Imports go one way, and what is heavy or foreign is imported where it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "patchattack"
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = [*MODULES, *sorted((PROJECT / "scripts").rglob("*.py")), *sorted((PROJECT / "tests").rglob("*.py"))]

# A part imports from the rows above its own, and from no other part of its row.
LAYERS = (
    ("redaction",),
    ("devices", "errors"),
    ("files", "jpeg", "names", "pictures", "seeding", "videos"),
    ("addresses", "cells", "detections", "scene", "hand_drawn"),
    ("geometry",),
    ("patch",),
    ("eot", "victims", "attacks", "regularizers", "optimizers", "defenses", "data", "tracking"),
    ("controls", "statistics", "indicators", "search"),
    ("evaluation", "reporting", "printing"),
    ("job",),
    ("checkpoint", "processes", "runs"),
    ("batches",),
    ("budget", "update"),
    ("training", "tuning", "webcam"),  # the loop measures the patch while it trains: evaluation is below it
    ("assembly",),
    ("pipeline",),
    ("rehearsal",),
    ("studies",),
    ("folders",),
    ("benchmark",),
    ("cli",),
    ("commands",),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# Foreign packages that one module alone may know.
RESERVED = {"hydra": "cli", "omegaconf": "cli", "wandb": "tracking"}

# Slow to import, or not everybody's: inside functions only.
HEAVY = {
    *("torchvision", "kornia", "matplotlib", "reportlab", "PIL", "jinja2", "lightning", "lightning_fabric", "wandb"),
    *(
        "ultralytics",
        "transformers",
        "timm",
        "ptlflow",
        "onnxruntime",
        "onnx",
        "requests",
        "scipy",
        "cma",
        "art",
        "polars",
        "fsspec",
    ),
}


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def part(path: Path) -> str:
    """``eot`` for patchattack/eot/camera.py, ``scene`` for patchattack/scene.py, nothing for the package itself."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")


def imported(node: ast.AST) -> list[str]:
    """Full names that one statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def at_import(node: ast.AST) -> Iterator[str]:
    """Full names that importing the module imports: not those in functions or for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from imported(child)
        yield from at_import(child)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in MODULES:
        mine = part(path)
        assert mine in RANK or not mine, f"{mine} is in no layer: give it its place in LAYERS"
        for node in ast.walk(ast.parse(path.read_text())):
            for full in imported(node):
                package, _, rest = full.partition(".")
                other = rest.partition(".")[0]
                if package != "patchattack" or other == mine or not rest:
                    continue
                if not mine or RANK.get(other, -1) >= RANK[mine]:
                    wrong.append(f"{name(path)}:{getattr(node, 'lineno', 0)} imports {full}, which is not below it")
    assert not wrong


def test_foreign_packages_stay_where_they_belong() -> None:
    wrong = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        everywhere = {full.partition(".")[0] for node in ast.walk(tree) for full in imported(node)}
        strangers = {package for package in everywhere & RESERVED.keys() if RESERVED[package] != part(path)}
        heavy = HEAVY & {full.partition(".")[0] for full in at_import(tree)}
        wrong += [f"{name(path)} imports {package}" for package in strangers | heavy]
    assert not wrong


def test_json_is_written_in_one_place() -> None:
    """Which knows what JSON does not: ``json.dumps`` writes NaN."""
    written = {name(path) for path in MODULES if "json.dump" in path.read_text()}
    assert written == {"patchattack/files.py"}


def calls(path: Path) -> set[str]:
    """What a module calls, by its last name."""
    found = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(one) for one in found if isinstance(one, ast.Name | ast.Attribute)}


def test_pictures_are_opened_in_one_place() -> None:
    """A second reader of a file is a second opinion of what it shows."""
    readers = {"cv2.imread", "cv2.imdecode", "cv2.imreadmulti", "Image.open", "PIL.Image.open", "plt.imread"}
    readers |= {"torchvision.io.read_image", "torchvision.io.decode_image", "read_file", "decode_image", "imread"}
    programs = [path for path in CODE if PROJECT / "tests" not in path.parents]
    assert {name(path) for path in programs if calls(path) & readers} == {"patchattack/pictures.py"}


def test_secrets_are_hidden_in_one_place() -> None:
    """Two places would hide different things."""
    programs = [path for path in CODE if PROJECT / "tests" not in path.parents]
    hide = {name(path) for path in programs for node in ast.walk(ast.parse(path.read_text())) if is_hiding(node)}
    assert hide == {"patchattack/redaction.py"}


def is_hiding(node: ast.AST) -> bool:
    """Whether it is a text that stands for a secret, or takes a secret out of an address by itself."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.strip() in ("***", "****", "[REDACTED]", "REDACTED")
    return isinstance(node, ast.FunctionDef) and "redact" in node.name


def test_every_file_is_named_after_what_it_holds() -> None:
    nothing = {"utils", "util", "helpers", "helper", "common", "misc"}
    named = {name(path): {*path.relative_to(PROJECT).parts, path.stem.removeprefix("test_")} for path in CODE}
    assert not [file for file, words in named.items() if words & nothing]


def test_importing_loads_nothing_heavy_and_does_nothing(tmp_path: Path) -> None:
    program = f"""
import importlib, json, sys
import patchattack
first = sorted({{"torch", "hydra"}} & sys.modules.keys())
import patchattack.cli  # help and errors of the command line do not wait for torch
second = "torch" in sys.modules
import torch
torches = {{name.partition(".")[0] for name in sys.modules}}
for module in {[".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in MODULES]}:
    importlib.import_module(module.removesuffix(".__init__"))
loaded = {{name.partition(".")[0] for name in sys.modules}} - torches
print(json.dumps([first, second, sorted(loaded & set({sorted(HEAVY)})), torch.cuda.is_initialized()]))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert json.loads(result.stdout) == [[], False, [], False]
    assert list(tmp_path.iterdir()) == []
