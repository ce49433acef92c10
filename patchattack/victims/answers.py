"""Black-box (query-only) victims: what a function, a compiled network or a service says of images, as a task's output.

What is asked may say one of these (``B`` images of ``h × w`` pixels, ``K`` classes):

- classification: ``logits [B, K]``; ``probabilities [B, K]``, or for each image an object from the names of some
  classes to their probabilities, as services give that name the likeliest only; or ``labels [B]``, each the number or
  the name of a class;
- depth: ``depth [B, h', w']`` or ``[B, 1, h', w']``, of any size;
- flow: ``flow [B, h, w, 2]`` or ``[B, 2, h, w]``, pixels;
- detection: ``boxes``, for each image a list of ``[left, top, right, bottom, score, class]`` with the number or the
  name of the class, after suppression as detectors report them; or ``candidates [B, A, 4 + K]`` before it, a box and
  then a score for each class. Boxes are in pixels of the image, which spans ``[0, w] × [0, h]``; scores in [0, 1].

Probabilities become logits by their logarithm, no less than that of :data:`FLOOR`. A label is a probability of one.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchattack.errors import InputError, VictimError, one_line
from patchattack.redaction import quote
from patchattack.victims import journal
from patchattack.victims.own import Output, error_text, read_classes
from patchattack.victims.victim import Victim

KINDS = {
    "classification": ("logits", "probabilities", "labels"),
    "depth": ("depth",),
    "flow": ("flow",),
    "detection": ("boxes", "candidates"),
}
SHOWN = 300  # characters of what was got instead, in a message
FLOOR = 1e-12  # the smallest probability that differs from none
BOXES = 100  # of an image: the best are kept, and empty ones fill up, so that every image has as many

Ask = Callable[..., Any]


class AnswerCache:
    """A file of answers by what was asked, written as they come: whatever ends a run, they are there the next time.

    Args:
        path: of an SQLite database, made where there is none.

    Raises:
        InputError: the file cannot be written or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.file = journal.AnswersFile(path, "answers (query BLOB PRIMARY KEY, answer BLOB) WITHOUT ROWID")

    def recall(self, question: bytes) -> bytes | None:
        """What was answered, or None."""
        return self.file.first("SELECT answer FROM answers WHERE query = ?", question)

    def remember(self, question: bytes, answer: bytes) -> None:
        """Write the answer down."""
        self.file.write("INSERT OR REPLACE INTO answers VALUES (?, ?)", question, answer)


class Answers(nn.Module):
    """What ``ask`` says of images, read as its task's output; without gradient.

    Args:
        ask: gets images ``[B, 3, h, w]`` float32 on the host (flow: two of them) and says what ``kind`` names.
        about: what its answers depend on besides the images.
        task: of the victim.
        kind: of answer, as in :data:`KINDS`.
        name: of the victim, for messages.
        classes: names that answers go by; None where they are not known.
        batch: most images to ask about at once; None takes them all.
        memory: of answers, besides the journal of a run that asks.
    """

    def __init__(
        self,
        ask: Ask,
        about: str,
        task: str,
        kind: str,
        name: str,
        classes: Sequence[str] | None,
        batch: int | None = None,
        memory: AnswerCache | None = None,
    ) -> None:
        super().__init__()
        self.ask, self.about, self.task, self.kind, self.name, self.classes = ask, about, task, kind, name, classes
        self.batch, self.memory = batch, memory

    @torch.no_grad()
    def forward(self, *images: Tensor) -> Tensor:
        """The answers, in the shape that :class:`patchattack.victims.own.Output` takes for the task.

        Raises:
            VictimError: the victim failed, or said something else than ``kind``, or what is not finite.
        """
        given = [image.float().cpu() for image in images]
        memories = [one for one in (journal.current(), self.memory) if one is not None]
        questions = [self._digest(query) if memories else b"" for query in zip(*given, strict=True)]
        rows: dict[int, np.ndarray] = {}
        for number, question in enumerate(questions):
            if known := next(filter(None, (memory.recall(question) for memory in memories)), None):
                rows[number] = self._look_up(known)
        missing = [number for number in range(len(questions)) if number not in rows]
        group = self.batch or len(questions)
        for first in range(0, len(missing), group):
            numbers = missing[first : first + group]
            for number, row in zip(numbers, self._ask(*(one[numbers] for one in given)), strict=True):
                rows[number], data = row, io.BytesIO()
                np.save(data, row, allow_pickle=False)
                for memory in memories:
                    memory.remember(questions[number], data.getvalue())
        return torch.tensor(np.stack([rows[number] for number in range(len(questions))]), device=images[0].device)

    def _look_up(self, known: Any) -> np.ndarray:
        try:
            return np.asarray(np.load(io.BytesIO(known), allow_pickle=False), np.float32)
        except (TypeError, ValueError, EOFError, OSError, SyntaxError) as error:
            raise InputError(
                f"victim {self.name}: expected an answer from the file of answers, got '{one_line(error)}'; delete it"
            ) from error

    def _digest(self, query: Sequence[Tensor]) -> bytes:
        """Of one image ``[3, h, w]``, or two."""
        digest = hashlib.sha256(f"{self.about} {list(query[0].shape)}".encode())
        for image in query:
            digest.update(image.numpy().tobytes())
        return digest.digest()

    def _ask(self, *images: Tensor) -> np.ndarray:
        first = images[0]
        try:
            found = self.ask(*images)
        except VictimError:
            raise
        except Exception as error:  # of whatever is asked
            raise self._unlike("an answer", error_text(error)) from error
        try:
            if found is None or len(found) == 0:
                raise self._unlike(f"answers to {len(first)} image(s)", "nothing")
            with np.errstate(over="ignore"):  # what is infinite is refused as that
                values = getattr(self, f"_{self.kind}")(found, list(first.shape[-2:]))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise self._unlike(self.kind, error_text(error)) from error
        if len(values) != len(first):
            raise self._unlike(f"answers to {len(first)} image(s)", f"{len(values)}")
        if broken := int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum()):
            raise self._unlike("finite numbers", f"NaN or infinite ones for {broken} of {len(values)} image(s)")
        return values

    def _unlike(self, expected: str, got: str) -> VictimError:
        return VictimError(f"victim {self.name}: expected {expected}, got {quote(got, SHOWN)}")

    def _array(self, found: Any, shape: str, *fits: Sequence[int | None]) -> np.ndarray:
        """``found`` as float32 of one of the shapes; None stands for any number."""
        values = np.ascontiguousarray(found, dtype=np.float32)
        for one in fits:
            if len(one) == values.ndim and all(n in (None, m) for n, m in zip(one, values.shape, strict=True)):
                return values
        raise self._unlike(f"{self.kind} {shape}", f"an array {list(values.shape)}")

    def _number(self, label: Any) -> int:
        """Of a class that is called by its number or its name."""
        if self.classes is None:
            raise self._unlike("victim.classes, among which names choose", "none")
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if isinstance(label, (int, np.integer)) and 0 <= label < len(self.classes):
            return int(label)
        raise self._unlike(f"a class's name or its number below {len(self.classes)}", f"{label!r}")

    def _logits(self, found: Any, size: list[int]) -> np.ndarray:
        count = None if self.classes is None else len(self.classes)
        return self._array(found, f"[B, {count or 'K'}]", (None, count))

    def _probabilities(self, found: Any, size: list[int]) -> np.ndarray:
        if isinstance(found[0], Mapping):
            rows = np.zeros((len(found), len(self.classes or ())), np.float32)
            for row, likeliest in zip(rows, found, strict=True):
                for label, probability in likeliest.items():
                    row[self._number(label)] = probability
            found = rows
        values = self._logits(found, size)
        return np.log(self._shares(values).clip(min=FLOOR))

    def _labels(self, found: Any, size: list[int]) -> np.ndarray:
        values = np.zeros((len(found), len(self.classes or ())), np.float32)
        values[np.arange(len(found)), [self._number(label) for label in found]] = 1
        return np.log(values.clip(min=FLOOR))

    def _depth(self, found: Any, size: list[int]) -> np.ndarray:
        values = self._array(found, "[B, h, w] or [B, 1, h, w]", (None, None, None), (None, 1, None, None))
        if not values.size:
            raise self._unlike("depth of at least a pixel", f"an array {list(values.shape)}")
        return values.reshape(len(values), 1, *values.shape[-2:])

    def _flow(self, found: Any, size: list[int]) -> np.ndarray:
        height, width = size
        values = self._array(
            found, f"[B, {height}, {width}, 2] or [B, 2, {height}, {width}]", (None, *size, 2), (None, 2, *size)
        )
        return values if values.shape[1:] == (2, *size) else np.ascontiguousarray(values.transpose(0, 3, 1, 2))

    def _boxes(self, found: Any, size: list[int]) -> np.ndarray:
        values = np.zeros((len(found), BOXES, 4 + len(self.classes or ())), np.float32)
        for candidates, image in zip(values, found, strict=True):
            best = sorted(image, key=lambda box: -box[4])[:BOXES]
            for row, (*box, score, label) in zip(candidates, best, strict=False):
                row[:4], row[4 + self._number(label)] = box, score
        self._shares(values[..., 4:])
        return values

    def _candidates(self, found: Any, size: list[int]) -> np.ndarray:
        count = None if self.classes is None else 4 + len(self.classes)
        values = self._array(found, f"[B, A, {count or '4 + K'}]", (None, None, count))
        self._shares(values[..., 4:])
        return values

    def _shares(self, values: np.ndarray) -> np.ndarray:
        """``values`` as they came, which are in [0, 1] but for rounding; NaN is not said here."""
        if values.size and (np.nanmin(values) < -1e-3 or np.nanmax(values) > 1 + 1e-3):
            raise self._unlike(f"{self.kind} in [0, 1]", f"{np.nanmin(values):.3g} to {np.nanmax(values):.3g}")
        return values


def answering(
    output: Output,
    kind: str | None,
    name: str,
    ask: Ask,
    about: str,
    around: Callable[[nn.Module], nn.Module] = lambda answers: answers,
    batch: int | None = None,
    memory: AnswerCache | None = None,
) -> Victim:
    """A victim of what ``ask`` says. It is asked once, about a grey image, so that what does not fit shows at once.

    A resumed run knows the answer to that too.

    Args:
        output: of the task.
        kind: of answer, as in :data:`KINDS`; None is the first of the task.
        name: of the victim.
        ask, about, batch, memory: as of :class:`Answers`.
        around: what makes of the module of answers one that takes images in [0, 1].

    Raises:
        InputError: an answer of another task, classes that answers need and that are not named, or the first answer
            is none.
    """
    task, kinds = output.task, KINDS[output.task]
    kind = kinds[0] if kind is None else kind
    if kind not in kinds:
        raise InputError(f"victim.answer: expected {' or '.join(kinds)} for {task}, got {kind}")
    classes = read_classes(output.classes)
    if classes is None and kind in ("labels", "boxes"):
        raise InputError(f"victim.classes: expected the names that answer={kind} chooses among, got none")
    answers = Answers(ask, about, task, kind, name, classes, batch, memory)
    network = around(answers)
    images = [torch.full((1, 3, *output.trial_size), 0.5) for _ in range(2 if task == "flow" else 1)]
    run = journal.current()
    try:
        found = network(*images) if run is None else run.keep(images[0], lambda _: network(*images), about)
    except VictimError as error:
        raise InputError(
            f"{error} (asked about a grey image of {images[0].shape[-2]} × {images[0].shape[-1]} px)"
        ) from error
    count = {"classification": found.shape[-1], "detection": found.shape[-1] - 4}.get(task, 0)
    if task == "detection" and count < 1:
        raise InputError(f"victim {name}: expected candidates [B, A, 4 + K], got {list(found.shape)}: no score")
    if kind == "logits" and found.min() >= 0 and abs(found.sum().item() - 1) < 1e-3:
        raise InputError(f"victim {name}: expected logits, got probabilities; give victim.answer=probabilities")
    victim = output.victim(network, name, count)
    answers.classes = victim.classes or None
    victim.differentiable = False
    return victim


def as_bytes(images: Tensor) -> np.ndarray:
    """``[B, h, w, 3]`` uint8 RGB, of ``images [B, 3, h, w]`` in [0, 1]."""
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
