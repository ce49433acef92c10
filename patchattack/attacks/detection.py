"""Attacks on object detection: hide objects (Thys et al. 2019), or make one appear that is not there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from patchattack.attacks.attack import Attack, Metric, Size
from patchattack.attacks.classes import by_name, few, number_of, plain
from patchattack.attacks.objects import Objects
from patchattack.detections import Detections, detections, iou
from patchattack.devices import transfer
from patchattack.errors import InputError
from patchattack.scene import Scene, Source, View

GOALS = ("hide", "hide_class", "appear")
BOXES = ("labels", "victim", "auto")
PICTURE = 320  # pixels that a picture is high at least
ATTACKED, OTHER = "#c2410c", "#2f6690"  # boxes in the pictures
LOST, KEPT, NEW = (209, 36, 47), (63, 111, 78), (194, 65, 12)  # boxes in the pictures of changes, RGB


class DetectionAttack(Attack):
    """Hide objects from a detector, or show it one that does not exist.

    Hiding minimises the scores of every candidate that overlaps an object, because whichever is left finds it; Thys
    et al. 2019 minimise the highest of them. The victims' outputs are candidates ``[B, A, 4 + K]`` before any
    suppression: left, top, right and bottom in pixels, then a score in [0, 1] for each class.

    Args:
        goal: ``hide`` the object that carries the patch (the first of ``Scene.boxes``), ``hide_class`` every object of
            the class, or make one of the class ``appear`` where the patch is.
        target: name or number of the victim's class; null, for ``hide`` alone, takes each object's own.
        boxes: where objects come from: the data's ``labels``, what the ``victim`` itself detects on the clean frames,
            or ``auto``, which takes labels where the data has any.
        min_height: objects shorter than this (px) are not attacked.
        confidence: lowest score of a detection.
        iou: overlap (intersection over union) from which a detection finds an object.
        overlap: overlap with an object from which a candidate counts in the loss.

    Raises:
        InputError: an option that does not exist, a number out of range, or a goal that lacks its class.
    """

    task = "detection"
    clean_metric = ("ap50", "all")
    metric_info: Mapping[str, Metric] = {
        "recall": Metric("fraction of the attacked objects that are detected", "lower", rate=True),
        "success": Metric("success rate (an object lost, or one that appeared)", "higher", rate=True),
        "score": Metric("highest score of an attacked object's candidates", "lower"),
        "false_positives": Metric("detections where there is no object", "higher"),
        "ap50": Metric("average precision at IoU 0.5, scene by scene", "lower"),
        "appear_score": Metric("highest score of the class on the patch", "higher"),
    }

    def __init__(
        self,
        goal: str = "hide",
        target: str | int | None = None,
        boxes: str = "auto",
        min_height: float = 24.0,
        confidence: float = 0.4,
        iou: float = 0.5,
        overlap: float = 0.3,
    ) -> None:
        if goal not in GOALS or boxes not in BOXES:
            raise InputError(
                f"attack: expected goal of {', '.join(GOALS)} and boxes of {', '.join(BOXES)}, got {goal} and {boxes}"
            )
        if target is None and goal != "hide":
            raise InputError(
                f"attack.goal={goal}: expected the class that it is about, got none; set attack.target=NAME"
            )
        for key, share in (("confidence", confidence), ("iou", iou), ("overlap", overlap)):
            if not 0 < share < 1:
                raise InputError(f"attack.{key}: expected a number between 0 and 1, got {share}")
        if min_height < 0:
            raise InputError(f"attack.min_height: expected pixels of 0 or more, got {min_height}")
        self.goal, self.target, self.boxes, self.min_height = goal, target, boxes, min_height
        self.confidence, self.iou, self.overlap = confidence, iou, overlap
        self.primary_metric = ("success" if goal == "appear" else "recall", "all")
        lost = "sees one without a patch already" if goal == "appear" else "finds none of the objects without a patch"
        self.nothing_to_win = f"it {lost}"

    def bind(self, victim: Any, source: Source) -> None:
        """Find the class among the victim's, and the victim's class for each of the data's.

        Names agree as :func:`plain` has them. Classes of the data that the victim
        does not know are ignored. :class:`Objects` brings its boxes along, whoever found them.

        Raises:
            InputError: there is no such class, no labels where labels are asked for, or none that the victim knows.
        """
        self._names = tuple(victim.classes)
        self._target = (
            None if self.target is None else number_of("attack.target", self.target, self._names, victim.name)
        )
        called = "" if self._target is None else self._names[self._target]
        words = {
            "hide": "hides {} of the objects that are found without it",
            "hide_class": f"hides {{}} of all objects of class {called} that are found without it",
            "appear": f"makes an object of class {called} appear in {{}} of the scenes",
        }[self.goal]
        self.size = Size(("success", "all"), words, small=0.1)
        if self.goal == "appear":
            return
        labelled = source[0].boxes is not None
        if self.boxes == "labels" and not labelled:
            raise InputError(
                "attack.boxes=labels: expected data with boxes, got none; "
                "use attack.boxes=victim for what the victim itself detects"
            )
        self._from_victim = not labelled or (self.boxes == "victim" and not isinstance(source, Objects))
        self._of_boxes = self._names if self._from_victim else source.classes
        known = by_name(self._names)
        numbers = [known.get(plain(name), [-1])[0] for name in self._of_boxes]
        usable = max(numbers, default=-1) >= 0 if self._target is None else self._target in numbers
        if not usable:
            wanted = (
                "boxes of a class that it knows" if self._target is None else f"boxes of {self._names[self._target]}"
            )
            raise InputError(
                f"victim {victim.name}: expected {wanted}, got data with {few(self._of_boxes) or 'no class'}; use "
                "attack.boxes=victim for what the victim itself detects, or set attack.target"
            )
        self._numbers = torch.tensor([*numbers, -1])  # the last for rows of NaN

    def scenes(self, source: Source, predict: Callable[[Tensor], Any]) -> Source:
        """A scene per object to attack; for ``goal=appear``, the scenes unchanged.

        Raises:
            InputError: no scene shows an object that can be attacked.
        """
        if self.goal == "appear":
            return source

        @torch.no_grad()
        def find(scene: Scene) -> Tensor:
            (found,) = detections(predict(scene.to("cpu").frames), self.confidence)
            return torch.cat([found.boxes, found.classes.unsqueeze(1)], dim=1)

        together = self.goal == "hide_class"
        objects = Objects(source, self._is_attacked, self._of_boxes, together, find if self._from_victim else None)
        if not len(objects):
            what = "an object of a class that the victim knows" if self._target is None else self._names[self._target]
            found = f"detected by the victim at {self.confidence:g} or more" if self._from_victim else "labelled"
            raise InputError(
                f"data: expected {what}, {found} and at least {self.min_height:g} px high, got none in {len(source)} "
                "scenes; lower attack.min_height or attack.confidence, or set another attack.target"
            )
        return objects

    def loss(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> Tensor:
        """``[B]``: a smooth maximum over an object's candidates, and its mean over the attacked objects.

        It is ``log(1 + Σ s / (1 - s))`` of their scores ``s``: ``-log(1 - s)`` of a single one, never less than that of
        the highest, and its slope in a candidate's logit is that candidate's part of what the logarithm is taken of.
        So all of them sink, the highest most, and one that is low already counts for little.

        To make one appear, ``-log`` of the highest score of the class among the candidates whose centre lies on the
        patch. Zero, with no gradient, where there is no candidate. Where candidates lie is not part of the gradient.
        """
        if self.goal == "appear":
            best, some = self._appear_score(output, view)
            return torch.where(some, -best.clamp(min=1e-12).log(), 0)
        scores = self._scores(output, scene)
        odds = scores / (1 - scores).clamp(min=1e-6)
        return odds.sum(dim=2).log1p().sum(dim=1) / self._targets(scene).sum(dim=1).clamp(min=1)

    @torch.no_grad()
    def metrics(self, output: Tensor, clean: Tensor, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """What is known of the scenes as a whole; detections and objects are matched image by image.

        A detection is the best of its like: candidates of at least ``confidence``, after suppression within each
        class. ``recall`` is the fraction of the attacked objects that a detection of their class finds. ``success`` is
        the fraction of those found on the clean frame that are not found now. ``score`` is the mean over the attacked
        objects, ``false_positives`` counts the detections that overlap no object of any class. ``ap50`` is the average
        precision over all of this one scene's objects, at IoU 0.5, mean over their classes: detections below
        ``confidence`` do not enter, and scenes are not pooled, so it is no benchmark's mAP.

        To make one appear, ``success`` is a score of at least ``confidence`` on the patch; unknown where the clean
        frame has one there already. ``appear_score`` is that score.
        """
        if self.goal == "appear":
            score, already = self._appear_score(output, view)[0], self._appear_score(clean, view)[0]
            success = torch.where(already >= self.confidence, torch.nan, (score >= self.confidence).to(score.dtype))
            return {("success", "all"): success, ("appear_score", "all"): score}
        assert scene.boxes is not None
        truth = scene.boxes[..., :4], self._classes(scene.boxes), self._targets(scene)
        boxes, classes, targets = (values.cpu() for values in truth)
        columns: dict[str, list[Tensor]] = {"recall": [], "success": [], "false_positives": [], "ap50": []}
        for now, before, box, number, target in zip(
            detections(output, self.confidence),
            detections(clean, self.confidence),
            boxes,
            classes,
            targets,
            strict=True,
        ):
            seen, was_seen = (_is_detected(found, box, number, self.iou) for found in (now, before))
            columns["recall"].append(seen[target].float().mean())
            columns["success"].append((~seen[target & was_seen]).float().mean())
            columns["false_positives"].append((iou(now.boxes, box) >= self.iou).any(dim=1).logical_not().sum())
            columns["ap50"].append(average_precision(now, box, number))
        score = self._scores(output, scene).amax(dim=2).sum(dim=1) / self._targets(scene).sum(dim=1)
        measured = {(name, "all"): torch.stack(values).to(output) for name, values in columns.items()}
        return measured | {("score", "all"): score}

    def certified(self, victim: Any, scene: Scene) -> dict[tuple[str, str], Tensor] | None:
        """``recall`` of the attacked objects, each region a place of the patch (:meth:`Defense.certify_objects`)."""
        if self.goal == "appear":
            return None
        assert scene.boxes is not None
        classes, targets = self._classes(scene.boxes), self._targets(scene)
        objects = torch.cat([scene.boxes[..., :4], classes.unsqueeze(-1)], dim=-1)
        proved = victim.certify_objects(scene.frames, objects, self.confidence)
        if proved is None:
            return None
        return {("recall", place): (one & targets).sum(dim=1) / targets.sum(dim=1) for place, one in proved.items()}

    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """The frames with their detections; those of the attacked class, or all where it is null, in orange."""
        from torchvision.utils import draw_bounding_boxes

        drawn = []
        for output, frame in zip(outputs, frames, strict=True):
            (found,) = detections(output, self.confidence)
            classes, scores = found.classes.tolist(), found.scores.tolist()
            larger = max(1, -(-PICTURE // frame.shape[-2]))  # so that names can be read
            picture = frame[0].clamp(0, 1).repeat_interleave(larger, 1).repeat_interleave(larger, 2)
            if not classes:  # torchvision warns
                drawn.append(picture)
                continue
            drawn.append(
                draw_bounding_boxes(
                    picture,
                    (larger * (found.boxes + 0.5) - 0.5).round().flip(0),  # the best on top
                    [f"{self._names[c]} {score:.2f}" for c, score in zip(classes, scores, strict=True)][::-1],
                    [ATTACKED if self._target in (None, c) else OTHER for c in classes][::-1],
                    label_colors="white",
                    fill_labels=True,
                )
            )
        return drawn

    def legend(self) -> tuple[None, str]:
        """No picture, the boxes carry their names."""
        text = f"Boxes are detections of at least {self.confidence:g} with class and score"
        return None, f"{text}." if self._target is None else f"{text}; those of {self._names[self._target]} are orange."

    def changes(self, outputs: list[Any], clean: Any, frames: list[Tensor]) -> list[Tensor]:
        """The frames in grey with what was detected without the patch, kept or lost, and what is new."""
        (before,) = detections(clean, self.confidence)
        drawn = []
        for output, frame in zip(outputs, frames, strict=True):
            (now,) = detections(output, self.confidence)
            same = (now.classes.unsqueeze(1) == before.classes) & (iou(now.boxes, before.boxes) >= self.iou)
            image = _Drawing(frame[0])
            for box, number, known in zip(now.boxes, now.classes.tolist(), same.any(dim=1).tolist(), strict=True):
                if not known:
                    image.box(box, NEW, f"new {self._names[number]}")
            for box, number, kept in zip(before.boxes, before.classes.tolist(), same.any(dim=0).tolist(), strict=True):
                image.box(box, KEPT if kept else LOST, "" if kept else f"lost {self._names[number]}", not kept)
            drawn.append(image.render())
        return drawn

    def changes_legend(self) -> tuple[None, str]:
        """No picture: boxes differ in line and name."""
        text = "Against what is detected without a patch: dashed red boxes are lost, solid green ones are kept"
        return None, f"{text}, orange ones are new."

    def _classes(self, boxes: Tensor) -> Tensor:
        """``[...]`` the victim's class for rows ``[..., 5]`` of boxes, -1 where there is none."""
        return transfer(self._numbers, boxes.device)[boxes[..., 4].nan_to_num(-1).long()]

    def _is_attacked(self, boxes: Tensor) -> Tensor:
        """``[...]`` bool: rows ``[..., 5]`` of boxes that are high enough and of the class."""
        classes = self._classes(boxes)
        right = classes >= 0 if self._target is None else classes == self._target
        return right & (boxes[..., 3] - boxes[..., 1] >= self.min_height)

    def _targets(self, scene: Scene) -> Tensor:
        """``[B, N]`` bool: the objects that this attack hides."""
        assert scene.boxes is not None
        targets = self._is_attacked(scene.boxes)
        if self.goal == "hide":
            targets[:, 1:] = False
        return targets

    def _scores(self, candidates: Tensor, scene: Scene) -> Tensor:
        """``[B, N, A]`` of each attacked object's class, 0 where a candidate does not overlap it."""
        assert scene.boxes is not None
        overlaps = iou(scene.boxes[..., :4], candidates[..., :4].detach()) >= self.overlap
        classes = self._classes(scene.boxes).clamp(min=0)
        scores = candidates[..., 4:].mT.gather(1, classes.unsqueeze(-1).expand(-1, -1, candidates.shape[1]))
        return torch.where(overlaps & self._targets(scene).unsqueeze(-1), scores, 0)

    def _appear_score(self, candidates: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """``[B]`` highest score of the class among the candidates whose centre is on the patch, and whether any is."""
        corners = transfer(view.corners[:, :1], candidates.device).to(candidates.dtype)  # [B, 1, 4, 2]
        low, high = corners.amin(dim=2), corners.amax(dim=2)
        boxes = candidates[..., :4].detach()
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        counts = ((centres >= low) & (centres <= high)).all(dim=-1)
        assert self._target is not None
        return torch.where(counts, candidates[..., 4 + self._target], 0).amax(dim=1), counts.any(dim=1)


class _Drawing:
    """A frame ``[3, H, W]`` in [0, 1] in pale grey, enlarged as in the pictures, with boxes."""

    def __init__(self, frame: Tensor) -> None:
        grey = 0.35 + 0.65 * frame.detach().cpu().clamp(0, 1).mean(dim=0)
        self.larger = max(1, -(-PICTURE // frame.shape[-2]))
        large = grey.repeat_interleave(self.larger, 0).repeat_interleave(self.larger, 1)
        self.image = np.ascontiguousarray((large * 255).round().byte().unsqueeze(2).repeat(1, 1, 3).numpy())

    def box(self, box: Tensor, colour: tuple[int, int, int], name: str, dashed: bool = False) -> None:
        """``box [4]`` in the frame's pixels; ``name`` stands in its upper left corner."""
        height, width = self.image.shape[:2]
        edges = (self.larger * (box + 0.5) - 0.5).round().long().tolist()
        left, right = (min(max(x, 0), width - 1) for x in edges[::2])
        top, bottom = (min(max(y, 0), height - 1) for y in edges[1::2])
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
        thick, dash = max(2, height // 100), max(8, height // 28)
        for start, end in itertools.pairwise(corners):
            count = max(1, round(float(np.abs(end - start).sum()) / dash) | 1) if dashed else 1
            points = np.linspace(start, end, count + 1).round().astype(int).tolist()
            for first, last in list(itertools.pairwise(points))[::2]:
                cv2.line(self.image, first, last, (255, 255, 255), thick + 2)
                cv2.line(self.image, first, last, colour, thick)
        if name:
            size = height / 600
            (wide, high), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
            x, y = min(left, width - wide - 8), max(top, high + 10)
            cv2.rectangle(self.image, (x, y - high - 10), (x + wide + 8, y), colour, -1)
            cv2.putText(
                self.image, name, (x + 4, y - 5), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA
            )

    def render(self) -> Tensor:
        """``[3, h, w]`` in [0, 1]."""
        return torch.from_numpy(self.image).permute(2, 0, 1).float() / 255


def match(found: Detections, boxes: Tensor, classes: Tensor, least: float) -> list[int | None]:
    """The object that each detection finds: none is found twice, and the highest score chooses first.

    Args:
        found: in one image.
        boxes: ``[N, 4]`` objects.
        classes: ``[N]`` theirs.
        least: IoU that it takes.
    """
    fits = torch.where(found.classes.unsqueeze(1) == classes, iou(found.boxes, boxes), 0)
    objects: list[int | None] = []
    for fit in fits.tolist():
        free = [number for number, overlap in enumerate(fit) if overlap >= least and number not in objects]
        objects.append(max(free, key=fit.__getitem__, default=None))
    return objects


def average_precision(found: Detections, boxes: Tensor, classes: Tensor) -> Tensor:
    """Area under one image's interpolated precision over recall at IoU 0.5, mean over the objects' classes.

    As in PASCAL VOC from 2010 on. NaN without objects; arguments as in :func:`matched`.
    """
    right = torch.tensor([one is not None for one in match(found, boxes, classes, 0.5)], dtype=torch.bool)
    areas = []
    for number in classes[classes >= 0].unique():
        hits = right[found.classes == number]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        best_from_here = precision.flip(0).cummax(0).values.flip(0)
        areas.append(best_from_here[hits].sum() / (classes == number).sum())
    return torch.stack(areas).mean() if areas else torch.tensor(torch.nan)


def _is_detected(found: Detections, boxes: Tensor, classes: Tensor, least: float) -> Tensor:
    """``[N]`` bool: which objects any detection finds; arguments as in :func:`matched`."""
    objects = match(found, boxes, classes, least)
    return torch.tensor([number in objects for number in range(len(boxes))], dtype=torch.bool)
