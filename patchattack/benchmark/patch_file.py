"""A patch that is handed on: ``NAME.png`` beside ``NAME.json``. Both are data; nothing in them is executed.

The PNG has 8 bits a channel, RGB or RGBA, and its alpha is the mask. The JSON says whose patch it is, for what, how
large it is on paper, and the digest of the PNG. Keys that the format does not know are refused: a file of a later
version, or one with something to run in it, is never half understood.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from patchattack import files
from patchattack.errors import InputError
from patchattack.patch import SIDES_MM, Patch, encode_png, read_facts

FORMAT, VERSION = "patchattack-patch", 1
TASKS = ("classification", "depth", "detection", "flow")
KNOWLEDGE = ("white box", "black box", "none")  # of the victims, that whoever made the patch had
_TEXTS, _OPTIONAL, _LISTS = ("name", "source", "licence"), ("goal", "target", "made"), ("victims", "defenses")
_KEYS = (
    "format",
    "version",
    "sha256",
    "size_mm",
    "task",
    "knowledge",
    "seed",
    "versions",
    *_TEXTS,
    *_OPTIONAL,
    *_LISTS,
)
_NAME = re.compile(r"\w[\w.+() -]{0,99}")  # it becomes the files' name
_SIGNATURE, _END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"
_KINDS = (b"\x08\x02", b"\x08\x06")  # bit depth and colour type in IHDR: RGB and RGBA of 8 bits a channel


@dataclass(frozen=True)
class PatchFile:
    """A patch and where it comes from.

    Attributes:
        patch: texture, mask and size on paper.
        name: by which tables call it; letters, digits and ``._+()- `` only, for it names the files.
        task: one of :data:`TASKS`.
        victims: names of the networks that it was trained on; none for a patch that knows no network.
        defenses: names of the defences that it was trained through.
        knowledge: of the victims, one of :data:`KNOWLEDGE`.
        goal, target: as the task's attack calls them.
        seed: of the run.
        source: a command, a paper or an address.
        licence: under which it may be handed on.
        made: ISO date.
        versions: package to version.
        sha256: of the PNG's bytes; "" before it is written.
    """

    patch: Patch
    name: str
    task: str
    victims: Sequence[str] = ()
    defenses: Sequence[str] = ()
    knowledge: str = "none"
    goal: str | None = None
    target: str | None = None
    seed: int | None = None
    source: str = ""
    licence: str = ""
    made: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""


def read(path: Path) -> PatchFile:
    """The patch of ``NAME.png``, as :func:`write` has written it.

    Raises:
        InputError: PNG or JSON is missing, of another format or version, or holds what the format does not know.
    """
    facts = _read_facts(path.with_suffix(".json"))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected the PNG of a patch file, got '{error.strerror}'; check the name") from error
    if data[:8] != _SIGNATURE or data[24:26] not in _KINDS or not data.endswith(_END):
        raise InputError(
            f"{path}: expected a PNG of 8 bits a channel, RGB or RGBA, and nothing behind its end, got another file; "
            "save it again, or import it as a picture"
        )
    digest = hashlib.sha256(data).hexdigest()
    if facts["sha256"] != digest:
        raise InputError(
            f"{path}: expected the PNG with the sha256 {str(facts['sha256'])[:64]} of its JSON, got {digest}; "
            "get both files again from whoever made them"
        )
    known = {key: facts[key] for key in facts if key not in ("format", "version", "size_mm")}
    return PatchFile(patch=Patch.load(path), **known)


def _read_facts(path: Path) -> dict[str, Any]:
    """What the JSON says, each value of its kind."""
    try:
        facts = files.read_object(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the JSON of a patch file, got {error!r}; keep it beside the PNG") from error
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected format {FORMAT}, got {str(facts.get('format'))[:60]}; for a run's patch give the run's "
            "folder, for any other picture import it"
        )
    if facts.get("version") != VERSION or facts["version"] is True:
        raise InputError(
            f"{path}: expected version {VERSION} of {FORMAT}, got {str(facts.get('version'))[:60]}; update patchattack"
        )
    if facts.keys() != set(_KEYS):
        lacking = [key for key in _KEYS if key not in facts]
        more = [str(key)[:60] for key in facts if key not in _KEYS]
        got = f"none of {', '.join(lacking)}" if lacking else f"{', '.join(more)} besides"
        raise InputError(f"{path}: expected the keys {', '.join(_KEYS)}, got {got}; write the file again")
    try:
        _check(facts)
    except ValueError as error:
        raise InputError(f"{path}: {error}; write the file again") from error
    return facts


def _check(facts: Mapping[str, Any]) -> None:
    """That every value is of its kind.

    Raises:
        ValueError: one is not.
    """
    for key in (*_TEXTS, "sha256"):
        if not isinstance(facts[key], str):
            raise ValueError(f"expected {key} as text, got {facts[key]!r}")
    for key in _OPTIONAL:
        if not isinstance(facts[key], str | None):
            raise ValueError(f"expected {key} as text or null, got {facts[key]!r}")
    for key in _LISTS:
        if not isinstance(facts[key], list) or not all(isinstance(name, str) for name in facts[key]):
            raise ValueError(f"expected {key} as a list of names, got {facts[key]!r}")
    if not _NAME.fullmatch(facts["name"]):
        raise ValueError(f"expected a name of letters, digits and ._+()-, got {facts['name'][:120]!r}")
    for key, choices in (("task", TASKS), ("knowledge", KNOWLEDGE)):
        if facts[key] not in choices:
            raise ValueError(f"expected {key} to be {', '.join(choices)}, got {facts[key]!r}")
    if facts["made"] is not None:
        date.fromisoformat(facts["made"])
    files.numbers(facts["size_mm"], 2, *SIDES_MM)
    if facts["seed"] is not None:
        files.integer(facts["seed"])
    versions = facts["versions"]
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise ValueError(f"expected versions of packages, got {versions!r}")


def write(folder: Path, one: PatchFile) -> Path:
    """Write ``NAME.png`` and ``NAME.json`` into ``folder``; what is there already is the same patch or stays.

    Returns:
        The path of the PNG.

    Raises:
        InputError: the facts are not of their kind, another patch has this name in the folder, or it cannot be written.
    """
    facts: dict[str, Any] = {key: getattr(one, key) for key in _KEYS if hasattr(one, key)}
    facts |= {key: list(facts[key]) for key in _LISTS} | {"versions": dict(one.versions)}
    facts = {"format": FORMAT, "version": VERSION, "size_mm": [float(side) for side in one.patch.size_mm]} | facts
    try:
        _check(facts)
    except ValueError as error:
        raise InputError(f"patch file {one.name[:60]}: {error}") from error
    path = folder / f"{one.name}.png"
    data = encode_png(one.patch().detach(), one.patch.mask, one.patch.size_mm)
    if path.exists() and path.read_bytes() != data:
        raise InputError(
            f"{path}: expected a new name or the same patch, got another patch of this name; name another output"
        )
    files.write(path, data)
    facts["sha256"] = hashlib.sha256(data).hexdigest()
    files.write_json(path.with_suffix(".json"), {key: facts[key] for key in _KEYS})
    return path


def of_run(folder: Path) -> PatchFile:
    """The patch of a finished run, named after its folder.

    Raises:
        InputError: the folder is not that of a finished run.
    """
    path = folder / "patch.png"
    facts = read_facts(path)
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        attack, defenses = dict(config["attack"]), list(config["defense"])
        knowledge = str(files.read_object(folder / "evidence.json")["attacker"]["knowledge"]).partition(":")[0]
        one = PatchFile(
            patch=Patch.load(path),
            name=re.sub(r"[^\w.+() -]", "_", folder.resolve().name)[:100],
            task=facts["task"],
            victims=list(dict.fromkeys(name.partition(" behind ")[0] for name in facts["victims"])),
            defenses=[str(name) for name in defenses],
            knowledge=knowledge,
            goal=_text(attack.get("goal")),
            target=_text(attack.get("target")),
            seed=facts["seed"],
            source="patchattack train",
            made=datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat(),
            versions=facts["versions"],
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(
            f"{folder}: expected the folder of a finished run, with config.yaml and evidence.json, got {error!r}"
        ) from error
    return one


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
