"""What is measured: patches of finished runs and any image as a patch, and the scenes that no run has seen."""

from __future__ import annotations

import hashlib
import logging
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError, one_line
from patchattack.job import Settings, spread
from patchattack.patch import Patch, read_facts, read_image, resize
from patchattack.pictures import ENDINGS
from patchattack.scene import Source

# Of data: how scenes are shown and read, and how many there are.
SHOWN = ("size", "crop", "supersampling", "device", "scenes", "stream", "cache_gb")
LONGEST = 512  # texels along the longer side: a photograph has more than any frame shows

_log = logging.getLogger(__name__)


def load_image(path: Path, width_mm: float) -> Patch:
    """A patch from an image file: with the JSON that a run has written beside it, or without.

    Args:
        path: of the image, whose alpha is the mask. Without a JSON it keeps its proportions.
        width_mm: on paper, where there is no JSON.

    Raises:
        InputError: it is no image, the JSON beside it is not this patch's, or there is no such size.
    """
    if path.with_suffix(".json").exists():
        return Patch.load(path)
    image = read_image(path, "patch")
    height, width = image.shape[1:]
    scale = min(1.0, LONGEST / max(height, width))
    if scale < 1:
        image = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    return Patch(image[:3], image[3:], (width_mm, width_mm * height / width))


def load_patches(given: Sequence[str], width_mm: float) -> dict[str, Patch]:
    """The patches of runs' folders, named after the victims that they were crafted on, and of image files, after these.

    Args:
        given: folders and files.
        width_mm: of an image on paper, as of :func:`load_image`.

    Raises:
        InputError: nothing is given, a folder without a patch, or a file that is no image.
    """
    if not given:
        raise InputError("runs: expected the folders of runs, got none; give runs=[outputs/...,outputs/...]")
    patches: dict[str, Patch] = {}
    for path in (Path(one).expanduser() for one in given):
        if _is_image(path):
            name, patch = path.stem, load_image(path, width_mm)
        else:
            patch = Patch.load(path / "patch.png")
            name = " + ".join(read_facts(path / "patch.png")["victims"]) or path.name
        patches[name if name not in patches else f"{name} ({path.name})"] = patch
    return patches


def _is_image(path: Path) -> bool:
    return path.is_file() or (path.suffix.lower() in ENDINGS and not path.is_dir())


def all_held_out(source: Source, settings: Settings) -> list[int]:
    """Numbers of the test scenes, where no run has to be asked what it has seen."""
    return settings.split_indices(len(source))[2]


@dataclass(frozen=True)
class _Seen:
    """What a run was trained and validated on: the scenes before number ``before`` of the data, or some by digest.

    ``digests`` are of frames; ``files`` of what picture files hold.
    """

    run: Path
    before: int = 0
    digests: frozenset[bytes] = frozenset()
    files: frozenset[bytes] = frozenset()

    def __call__(self, source: Source, number: int) -> bool:
        return (
            source.original(number) < self.before
            or (bool(self.digests) and _digest(source[number].frames) in self.digests)
            or (bool(self.files) and not self.files.isdisjoint(_file_digests(source, number)))
        )


class HeldOut:
    """The test scenes that none of some runs was trained or validated on.

    A run has seen the first scenes of its own data, in the order that its config gives them. Scenes of the same data
    are the same by their numbers. Where files come in another order (another seed, another folder), they are the same
    by their pixels; and by their files where another kind of source reads them.

    Args:
        given: folders of runs, and files; a file in no run's folder has seen nothing.
        data: config of the scenes that are measured on.
        source: of them.
        build: makes a source of a config.

    Raises:
        InputError: what a run says of its data cannot be read.
    """

    def __init__(
        self,
        given: Sequence[str],
        data: Mapping[str, Any],
        source: Source,
        build: Callable[[Mapping[str, Any]], Source],
    ) -> None:
        self.seen: list[_Seen] = []
        self._told: set[str] = set()
        for path in (Path(one).expanduser() for one in given):
            folder = path.parent if _is_image(path) else path
            if (folder / "config.yaml").is_file():
                self.seen.append(_scenes_seen(folder, data, source, build))
            elif folder == path:
                _log.warning("%s: which scenes it has seen cannot be told, it has no config.yaml", folder)

    def __call__(self, source: Source, settings: Settings) -> list[int]:
        """Numbers of test scenes of ``source``, at most ``settings.test_scenes``; the log says what is left out.

        Raises:
            InputError: every one of the test part was seen.
        """
        left = replace(settings, test_scenes=len(source)).split_indices(len(source))[2]
        whole = len(left)
        for seen in self.seen:
            known = [number for number in left if seen(source, number)]
            left = [number for number in left if number not in known]
            text = f"{len(known)} of {whole} test scenes are left out: {seen.run} was trained or validated on them"
            if known and text not in self._told:
                self._told.add(text)
                _log.warning(text)
        if not left:
            raise InputError(
                f"data: expected test scenes that no run has seen, got {whole} that were all trained or validated on; "
                "give the seed and the trainer.split of the runs, or other data"
            )
        return spread(left, settings.test_scenes)

    def check(self, source: Source, indices: Sequence[int]) -> None:
        """Refuse scenes that a run has seen.

        Raises:
            InputError: one of them was.
        """
        for seen in self.seen:
            if known := sum(seen(source, index) for index in indices):
                raise InputError(
                    f"data: expected test scenes that {seen.run} has not seen, got {known} of {len(indices)} that it "
                    "was trained or validated on; give the run's own seed, data and trainer.split"
                )


def _scenes_seen(
    folder: Path, data: Mapping[str, Any], source: Source, build: Callable[[Mapping[str, Any]], Source]
) -> _Seen:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        own, split = dict(config["data"]), config["trainer"]["split"]
        kind, share = own["_target_"], float(split[0]) + float(split[1])
        told = files.read_json(folder / "patch.json").get("seen")
        told = None if told is None else files.integer(told)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(
            f"{folder}: expected the folder of a run, whose config.yaml has data and trainer.split, got {error!r}"
        ) from error

    def before(scenes: int) -> int:
        """Of runs of earlier versions, which do not tell it, the fraction of all scenes."""
        return round(own.get("scenes", scenes) * share) if told is None else told

    if _which(own) == _which(data):
        return _Seen(folder, before=before(len(source)))
    # A folder may be a stranger's, who names what he likes.
    alike = kind == data["_target_"] and "root" in own and _targets(own) <= _targets(data)
    if not alike and not (source.files(0) and all(map(_is_ours, _targets(own)))):
        return _Seen(folder)  # scenes of another kind, or drawn from another seed
    try:
        theirs = build(own | {key: data[key] for key in SHOWN if alike and key in own and key in data})
    except Exception as error:  # of a folder that is gone, or a config of another version
        reason = one_line(error)
        _log.warning("%s: which scenes it has seen cannot be told, for its data cannot be read: %s", folder, reason)
        return _Seen(folder)
    indices = range(min(before(len(theirs)), len(theirs)))
    if alike:
        return _Seen(folder, digests=frozenset(_digest(theirs[index].frames) for index in indices))
    return _Seen(folder, files=frozenset(one for index in indices for one in _file_digests(theirs, index)))


def _is_ours(target: str) -> bool:
    """Whether it is a source of this package, which reads files and runs nothing."""
    if not target.startswith("patchattack.data."):
        return False
    try:
        kind = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(kind, type) and issubclass(kind, Source)


def _file_digests(source: Source, number: int) -> list[bytes]:
    """Of what the files of a scene hold, wherever they lie."""
    return [hashlib.sha256(path.read_bytes()).digest() for path in source.files(number)]


def _targets(node: Any) -> set[str]:
    """Every ``_target_`` in a config."""
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    own = {str(node["_target_"])} if isinstance(node, Mapping) and "_target_" in node else set()
    return own.union(*map(_targets, inner))


def _which(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of a source's config decides which scene has which number."""
    return {key: value for key, value in data.items() if key not in SHOWN}


def _digest(frames: Tensor) -> bytes:
    return hashlib.sha256(frames.cpu().contiguous().numpy().tobytes()).digest()
