"""Pages and tables that are made from the code, its configs and its results whenever the site is built."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.append(str(Path(__file__).parent))
import tables

ROOT = Path(__file__).parents[1]
CONF, PACKAGE = ROOT / "conf", ROOT / "patchattack"
STACKED = ("appearance", "camera", "defense", "regularizers", "axes")  # groups whose options are lists
# The modules that somebody builds on; the rest is how it is done.
PUBLIC = {
    "The nouns": ("scene", "patch", "errors"),
    "Victims": ("victims.victim", "victims.contract", "victims.custom", "victims.callable", "victims.ensemble"),
    "Attacks": (
        *("attacks.attack", "attacks.flow", "attacks.classification", "attacks.depth", "attacks.detection"),
        "attacks.ensemble",
    ),
    "EoT": (
        *("eot.renderer", "eot.placement", "eot.bend", "eot.transform", "eot.appearance", "eot.camera"),
        "eot.calibrated",
    ),
    "Data": ("data.world", "data.frames", "data.photographs", "data.coco", "data.yolo", "data.kitti"),
    "Optimisers": ("optimizers.gradient_free", "optimizers.nes", "optimizers.random_search", "optimizers.clamped"),
    "Regularisers": ("regularizers.tv", "regularizers.nps", "regularizers.content"),
    "Defences": (
        *("defenses.defense", "defenses.jpeg", "defenses.resize_pad", "defenses.patch_cleanser"),
        "defenses.object_seeker",
    ),
    "Measuring": ("controls", "evaluation", "statistics", "indicators", "reporting.threat_model"),
    "Running": ("job", "pipeline", "tracking", "runs"),
    "Paper and camera": (
        *("printing.sheet", "printing.fiducials", "printing.calibration", "webcam.pose", "webcam.pass_bys"),
    ),
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation; leave out a script that the offline plugin would fetch."""
    config.extra["polyfills"] = []
    made = {
        "config": [{group or "Top level": f"reference/config/{group or 'index'}.md"} for group in ["", *_groups()]],
        "api": [{title: f"reference/api/{_slug(title)}.md"} for title in PUBLIC],
    }
    for part in config.nav or []:
        for pages in part.values():
            for place, entry in enumerate(pages if isinstance(pages, list) else []):
                title, target = next(iter(entry.items())) if isinstance(entry, dict) else ("", "")
                if isinstance(target, str) and target.startswith("GENERATED "):
                    pages[place] = {title: made[target.split()[1]]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the pictures that the README shows too."""
    pages = {"reference/config/index.md": _top_level(), "results/cards.md": _cards()}
    pages |= {f"reference/config/{group}.md": _group(group) for group in _groups()}
    pages |= {f"reference/api/{_slug(title)}.md": _api(title) for title in PUBLIC}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    shown = (("assets/readme", "*.webp"), ("docs/results", "*.webp"), ("assets/benchmark", "*.png"))
    for picture in (path for folder, names in shown for path in (ROOT / folder).glob(names)):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put what is generated in the place of ``{{ name }}``, and leave out what only the tests read."""
    command = Path(page.file.src_uri).stem
    made: dict[str, Callable[[], str]] = {
        "help": lambda: _help(command),
        "keys": lambda: _own_keys(command),
        "default_runs": tables.default_runs,
        "in_media": tables.in_media,
        "beaten": tables.beaten,
        "details": tables.details,
        "gallery": tables.gallery,
        "benchmark": tables.benchmark,
        "benchmark_patches": tables.benchmark_patches,
        "speed": tables.speed,
        "pass_bys": tables.pass_bys,
        "certified_classes": tables.certified_classes,
        "certified_objects": tables.certified_objects,
    }
    markdown = re.sub(r"^<!-- small: .*? -->\n", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^\{\{ (\w+) \}\}$", lambda found: made[found.group(1)](), markdown, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name things by Sphinx's roles, whose names nobody wants to read."""
    return re.sub(r":(?:class|func|meth|data|attr|mod):(<code)", r"\1", html)


# ---- commands


def _help(command: str) -> str:
    """What ``patchattack COMMAND --help`` says."""
    text = ast.get_docstring(ast.parse((PACKAGE / "commands" / f"{command}.py").read_text(encoding="utf-8"))) or ""
    first, *rest = text.split("\n\n")
    shown = [f"```sh\n{part}\n```" if part.startswith("patchattack ") else part for part in rest]
    return "\n\n".join([f"**{first}**", *shown])


def _own_keys(command: str) -> str:
    """The keys that a command has beside those of the training."""
    file = CONF / f"{command}.yaml"
    table = _table(file)
    trains = any(base == "train" for base in yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", []))
    more = "\n\nEvery key of a training can be given too: see [Configuration](../reference/config/index.md)."
    return table + (more if trains else "")


# ---- configuration


def _groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def _top_level() -> str:
    return f"""# Configuration

Everything is a [Hydra](https://hydra.cc) config group or a key. `key=value` on the command line sets one, and
`GROUP=NAME` chooses an option of a group. A misspelt key stops the command and names the keys that there are.
`patchattack COMMAND --help` shows the composed config.

## Keys of a training

{_table(CONF / "train.yaml")}
"""


def _group(group: str) -> str:
    """One page with every option of a group."""
    how = f"`{group}=[NAME,NAME]`; `[]` switches all off" if group in STACKED else f"`{group}=NAME`"
    sections = []
    for path in sorted((CONF / group).glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        lead = " ".join(line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line)
        target = _target(text)
        if not lead and target is not None and target.docstring:
            lead = target.docstring.value.split("\n\n")[0].replace("\n", " ")
        rows = _table(path)
        if group in ("experiment", "suite") or not rows:
            rows = f"It sets:\n\n```yaml\n{_settings(text)}\n```"
        sections.append(f"## {path.stem}\n\n{lead}\n\n{rows}")
    return f"# {group}\n\nChosen by {how}.\n\n" + "\n\n".join(sections)


def _settings(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()


def _target(text: str) -> Any:
    """What the first ``_target_`` of a config names, if it is ours."""
    found = re.search(r"_target_: patchattack\.(\S+)", text)
    return _package()[found.group(1)] if found else None


@functools.cache
def _package() -> Any:
    return griffe.load("patchattack", search_paths=[ROOT])


def _table(file: Path) -> str:
    """Key, type, default and meaning of every key of a YAML file."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text)
    prefix = f"{file.parent.name}." if file.parent != CONF and "@package _global_" not in text else ""
    if file.parent.name in STACKED:
        prefix = f"{file.parent.name}."
    rows = [
        f"| `{prefix}{key}` | {_code(kind)} | {_code(default)} | {_escaped(meaning)} |"
        for key, kind, default, meaning in _keys(root, text.splitlines())
    ]
    if not rows:
        return ""
    return "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows])


def _keys(node: Any, lines: list[str], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key that holds a value, from the outside in."""
    values = {key.value: value for key, value in node.value}
    target = values["_target_"].value if "_target_" in values else ""
    described = _described(target)
    for key, value in node.value:
        if key.value in ("defaults", "hydra", "_target_", "_partial_", "_recursive_"):
            continue
        name = f"{path}{key.value}"
        line = lines[value.end_mark.line if value.end_mark.line < len(lines) else -1]
        comment = _comment(lines[key.start_mark.line]) or (_comment(line) if value.end_mark.column else "")
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _keys(value, lines, f"{name}.")
            continue
        default = "\n".join(lines)[value.start_mark.index : value.end_mark.index].strip()
        kind, meaning = described.get(key.value, ("", ""))
        yield name, kind or _kind(default), default, comment or meaning


def _comment(line: str) -> str:
    found = re.search(r"(?:^|\s)# ?(.*)$", line)
    return found.group(1) if found else ""


def _described(target: str) -> dict[str, tuple[str, str]]:
    """Type and meaning of each parameter of what a ``_target_`` names, if it is ours."""
    if not target.startswith("patchattack."):
        return {}
    made = _package()[target.removeprefix("patchattack.")]
    meanings: dict[str, str] = {}
    initial = made.members.get("__init__") if made.is_class else None
    for docstring in filter(None, (made.docstring, initial and initial.docstring)):
        for section in docstring.parse("google", warnings=False):
            if section.kind.value in ("parameters", "attributes"):
                meanings |= {one.name: " ".join(str(one.description).split()) for one in section.value}
    return {
        one.name: (str(one.annotation or "").replace("collections.abc.", ""), meanings.get(one.name, ""))
        for one in made.parameters
    }


def _kind(default: str) -> str:
    """The type of a default that no signature tells."""
    value = yaml.safe_load(default)
    return "" if value is None or default.startswith(("${", "???")) else type(value).__name__


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`".replace("|", "\\|") if text else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


# ---- API and model cards


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_")


def _api(title: str) -> str:
    return f"# {title}\n\n" + "\n\n".join(f"::: patchattack.{module}" for module in PUBLIC[title])


def _cards() -> str:
    lead = """# Model cards

The networks that ship with the project. `scripts/maintain/train_victims.py` trains them and writes these cards."""
    cards = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "assets" / "victims").glob("*.md"))]
    return "\n\n".join([lead, *(re.sub(r"^#", "##", card, flags=re.MULTILINE) for card in cards)])
