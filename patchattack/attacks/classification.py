"""Attacks on image classification: towards a class, or away from the true one (Brown et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import geometry
from patchattack.attacks.attack import Attack, Metric, Size, Textures
from patchattack.attacks.classes import by_name, few, number_of, plain
from patchattack.devices import transfer
from patchattack.errors import InputError
from patchattack.patch import Patch, read_image, resize
from patchattack.scene import Scene, Source, View

GOALS = ("targeted", "untargeted", "least_likely")
DISTANCES = ("log_probability", "margin", "logit")
TOP = 5  # classes that pictures show and that success_top5 looks at
PHOTOS, SEARCHED = 4, 500  # scenes of the target class that serve as control, and scenes looked at to find them
PICTURE = 160  # pixels that a picture is high at least, or as high as the frame: names can be read
ORANGE, GREY, PALE = "#c2410c", "#9aa1ab", "#d5d9de"
_Row = tuple[str, list[tuple[float, str]]]  # a class with its bars: length in [0, 1] and colour


class ClassificationAttack(Attack):
    """Make the victim see one class everywhere, or anything but the true class.

    With ``goal=targeted`` and ``distance=log_probability`` the loss is that of Brown et al. 2017: -log P(target). The
    loss counts all scenes, those of the target class too, as theirs does; the success counts only scenes that a patch
    can win, which are those that the victim gets right without it (all, where there are no labels) and that are not
    of the target class anyway.

    Args:
        goal: ``targeted`` to one class for all scenes; ``untargeted`` away from each scene's label, or from the
            victim's clean prediction where there is none; ``least_likely`` to the class that is least likely on each
            scene's clean frame (Kurakin et al. 2016).
        target: name or number of a class of the victim, for ``targeted`` alone.
        distance: ``log_probability``; ``margin`` between the logits (Carlini & Wagner 2017, section V.A, f6); or
            ``logit``, of the class aimed at alone: its gradient does not fade where the network is sure already, which
            helps a patch on networks that it was not trained on (Zhao et al. 2021, equation 3).
        confidence: the margin at which a scene counts as won and its loss stops falling, κ there.
        photo: image of the target class that is tried as a patch for comparison; null takes scenes of that class.

    Raises:
        InputError: an option that does not exist, no target, or no such photo.
    """

    task = "classification"
    clean_metric = ("accuracy", "all")
    primary_metric = ("success", "all")
    metric_info: Mapping[str, Metric] = {
        "success": Metric("attack success rate", "higher", rate=True),
        "success_top5": Metric("attack success rate among the five likeliest classes", "higher", rate=True),
        "confidence": Metric("probability of the target class, or of any but the true one", "higher"),
        "accuracy": Metric("fraction of scenes that are classified as they are labelled", "lower", rate=True),
    }

    def __init__(
        self,
        goal: str,
        target: str | int | None = None,
        distance: str = "log_probability",
        confidence: float = 0.0,
        photo: str | None = None,
    ) -> None:
        if goal not in GOALS or distance not in DISTANCES:
            raise InputError(
                f"attack: expected goal of {', '.join(GOALS)} and distance of {', '.join(DISTANCES)}, "
                f"got {goal} and {distance}"
            )
        if goal == "targeted" and target is None:
            raise InputError("attack.target: expected the name or number of a class for attack.goal=targeted, got none")
        if not 0 <= confidence < math.inf:
            raise InputError(f"attack.confidence: expected a margin of logits of 0 or more, got {confidence}")
        self.goal, self.target, self.distance, self.confidence = goal, target, distance, confidence
        self.photo = None if photo is None else read_image(photo, "attack.photo")[:3]
        self._classes: tuple[str, ...] = ()
        self._number: int | None = None  # of the target among the victim's classes
        self._numbers: Tensor | None = None  # of the source's classes among the victim's

    def bind(self, victim: Any, source: Source) -> None:
        """Find the target and the source's classes among the victim's.

        Classes are the same where their names are, but for case, and with a space, an underscore and a hyphen alike.
        A victim's class "tench, Tinca tinca" goes by each of these names too, and any class by its number, where no
        class is called so. Labels of a source without ``classes`` are the victim's own numbers.

        Raises:
            InputError: the victim names no classes, or does not know the target or a class of the source.
        """
        classes = tuple(victim.classes)
        if not classes:
            raise InputError(f"victim {victim.name}: expected the names of its classes, got none; give it its classes")
        self._classes = classes
        self._number = None
        if self.goal == "targeted":
            assert self.target is not None
            self._number = number_of("attack.target", self.target, classes, victim.name)
        called = "" if self._number is None else classes[self._number]
        words = {
            "targeted": f"makes the victim see {called} in {{}} of the images",
            "untargeted": "makes the victim wrong on {} of the images",
            "least_likely": "makes the victim see the least likely class in {} of the images",
        }[self.goal]
        self.size = Size(("success", "all"), words, small=0.1)
        self._numbers = self._class_map(victim.name, source) if source.classes else None

    def _class_map(self, victim: str, source: Source) -> Tensor:
        """``[classes + 1]`` the source's classes in the victim's numbers; the last entry, -1, is that of label -1."""
        if tuple(source.classes) == self._classes:  # a name that stands for two classes does no harm then
            return torch.tensor([*range(len(self._classes)), -1])
        known = by_name(self._classes)
        numbers = [known.get(plain(name), []) for name in source.classes]
        if strangers := [name for name, found in zip(source.classes, numbers, strict=True) if len(found) != 1]:
            raise InputError(
                f"data: expected classes that victim {victim} tells apart, got {len(strangers)} that it has not or has "
                f"twice: {few(strangers)}; rename them as the victim does ({few(self._classes)}) or choose another"
            )
        return torch.tensor([*(number for (number,) in numbers), -1])

    def controls(self, source: Source, patch: Patch) -> Mapping[str, Textures]:
        """``photo``: the target's own picture as a patch, for each repetition another one of at most four scenes."""
        if self.goal != "targeted":
            return {}
        size = (patch.mask.shape[-2], patch.mask.shape[-1])
        photos = self._photos(source, size) if self.photo is None else [resize(self.photo, *size)]
        return {"photo": lambda repetition: photos[repetition % len(photos)]} if photos else {}

    def _photos(self, source: Source, size: tuple[int, int]) -> list[Tensor]:
        """The first scenes of the target class, each as a texture of ``size``."""
        photos: list[Tensor] = []
        if self._numbers is not None and self._number not in self._numbers.tolist():
            return photos
        for number in range(min(len(source), SEARCHED)):
            scene = source[number]
            if self._labels(scene).item() == self._number:
                photos.append(_front_view(scene, size))
            if scene.label is None or len(photos) == PHOTOS:
                break
        return photos

    def loss(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> Tensor:
        """``[B]``: -log P of the class aimed at or log P of the true one; so its logit; or the margin, down to -κ."""
        aim = self._aim(clean, scene).unsqueeze(1)
        if self.distance == "log_probability":
            score = output.log_softmax(dim=1).gather(1, aim)
        else:
            score = output.gather(1, aim)
        if self.distance == "margin":
            score = score - output.scatter(1, aim, -math.inf).amax(dim=1, keepdim=True)
        score = score.squeeze(1) if self.goal == "untargeted" else -score.squeeze(1)
        return score.clamp(min=-self.confidence) if self.distance == "margin" else score

    @torch.no_grad()
    def metrics(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """Each of :attr:`metric_info`; all but the accuracy are NaN where the patch has nothing to win."""
        labels, truth, aim = self._labels(scene), self._truth(clean, scene), self._aim(clean, scene)
        winnable = clean.argmax(dim=1) == truth
        if self.goal != "untargeted":
            winnable = winnable & (aim != truth)

        def measured(values: Tensor, counts: Tensor) -> Tensor:
            return torch.where(counts, values.to(output.dtype), torch.nan)

        def won(values: Tensor) -> Tensor:
            """What is true of the class aimed at, or untrue of the true one."""
            return measured(1 - values.to(output.dtype) if self.goal == "untargeted" else values, winnable)

        first = output.argmax(dim=1)
        found = {
            "success": won(first == aim),
            "confidence": won(output.softmax(dim=1).gather(1, aim.unsqueeze(1)).squeeze(1)),
            "accuracy": measured(first == labels, labels >= 0),
        }
        if output.shape[1] > TOP:
            found["success_top5"] = won((output.topk(TOP, dim=1).indices == aim.unsqueeze(1)).any(dim=1))
        return {(name, "all"): values for name, values in found.items()}

    def certified(self, victim: Any, scene: Scene) -> dict[tuple[str, str], Tensor] | None:
        """``accuracy``: 1 where the true class is proved (:meth:`Defense.certify`)."""
        proved, labels = victim.certify(scene.frames), self._labels(scene)
        if proved is None:
            return None
        return {("accuracy", "all"): torch.where(labels >= 0, (proved == labels).to(scene.frames.dtype), torch.nan)}

    def _labels(self, scene: Scene) -> Tensor:
        """``[B]`` the scenes' classes in the victim's numbers, -1 where unknown."""
        if scene.label is None:
            return torch.full((len(scene),), -1, device=scene.frames.device)
        return scene.label if self._numbers is None else transfer(self._numbers, scene.label.device)[scene.label]

    def _truth(self, clean: Tensor, scene: Scene) -> Tensor:
        """``[B]`` the scenes' classes; where unknown, what the victim takes them for without the patch."""
        labels = self._labels(scene)
        return torch.where(labels >= 0, labels, clean.argmax(dim=1))

    def _aim(self, clean: Tensor, scene: Scene) -> Tensor:
        """``[B]`` the class whose score is raised, or lowered by an untargeted attack."""
        if self.goal == "untargeted":
            return self._truth(clean, scene)
        if self.goal == "least_likely":
            return clean.argmin(dim=1)
        assert self._number is not None, "bind comes first"
        return torch.full((len(clean),), self._number, device=clean.device)

    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """Bars of the five likeliest classes of each output ``[1, K]``, in the frames' proportions."""
        return [_bars(self._rows([output]), _size(frames[0])) for output in outputs]

    def legend(self) -> tuple[None, str]:
        """A sentence only."""
        text = "The likeliest classes with their probabilities; a bar across the whole picture is 100 %."
        return None, text if self._number is None else f"{text} The target, {self._classes[self._number]}, is orange."

    def changes(self, outputs: list[Any], clean: Any, frames: list[Tensor]) -> list[Tensor]:
        """Two bars for each of the five classes that are likeliest with or without the patch: before and after."""
        return [_bars(self._rows([clean, output]), _size(frames[0])) for output in outputs]

    def changes_legend(self) -> tuple[None, str]:
        """A sentence only."""
        return None, "The upper bar of each class is its probability without a patch, the lower one with it."

    def _rows(self, outputs: list[Tensor]) -> list[_Row]:
        """The classes that are likeliest in any of ``outputs [1, K]``, in each of them."""
        chances = torch.cat([output.detach().cpu() for output in outputs]).softmax(dim=1)
        numbers = chances.amax(dim=0).topk(min(TOP, chances.shape[1])).indices.tolist()
        before = [PALE] * (len(outputs) - 1)
        return [
            (
                self._classes[n],
                list(zip(chances[:, n].tolist(), [*before, ORANGE if n == self._number else GREY], strict=True)),
            )
            for n in numbers
        ]


def _front_view(scene: Scene, size: tuple[int, int]) -> Tensor:
    """``[3, h, w]`` in [0, 1]: what the surface of a single scene shows in frame 0; without a surface, that frame."""
    frame = scene.to("cpu").frames[:, 0]
    if scene.surface is None:
        return resize(frame[0], *size)
    corners = scene.surface[0, 0].double()
    longest = (corners - corners.roll(1, dims=0)).norm(dim=-1).max()
    samples = max(1, math.ceil(longest / min(size)))  # of each texel, a pixel apart at most
    texels = geometry.pixel_grid(size, supersampling=samples).double()
    square = (texels + 0.5) / torch.tensor([size[1], size[0]])
    points = geometry.project(geometry.homography_from_corners(corners), square)
    return F.avg_pool2d(geometry.sample(frame, points.float()[None]), samples)[0]


def _size(frame: Tensor) -> tuple[int, int]:
    """Of a picture in the proportions of ``frame [T, 3, H, W]`` in which names can be read."""
    height, width = frame.shape[-2:]
    factor = max(1, PICTURE / height)
    return round(height * factor), round(width * factor)


def _bars(rows: Sequence[_Row], size: tuple[int, int]) -> Tensor:
    """``[3, h, w]`` in [0, 1]: classes with their probabilities as bars on white."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = size
    row = height / TOP
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(row * 0.4)
    margin = row * 0.2
    for place, (name, bars) in enumerate(rows):
        top = place * row
        percent = " to ".join(f"{value:.0%}" for value, _ in bars)
        room = width - 3 * margin - draw.textlength(percent, font)
        while len(name) > 1 and draw.textlength(name, font) > room:
            name = name.rstrip("…")[:-1] + "…"
        draw.text((margin, top + row * 0.5), name, "black", font, anchor="ls")
        draw.text((width - margin, top + row * 0.5), percent, "black", font, anchor="rs")
        thick = 0.2 if len(bars) == 1 else 0.15
        for number, (value, colour) in enumerate(bars):
            upper = top + row * (0.65 if len(bars) == 1 else 0.6 + 0.18 * number)
            draw.rectangle((margin, upper, margin + value * (width - 2 * margin), upper + row * thick), colour)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
