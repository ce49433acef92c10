from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchattack.errors import InputError
from patchattack.victims.journal import Journal, current, of_run, packed, unpacked


def frames(seed: int, count: int = 2) -> Tensor:
    return torch.rand(count, 1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


class Asked:
    """Answers with the mean of each frame, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, given: Tensor) -> Tensor:
        self.count += len(given)
        return given.flatten(1).mean(dim=1, keepdim=True)


def opened(folder: Path) -> Journal:
    journal = Journal()
    journal.open(folder)
    return journal


def test_what_is_kept_is_asked_once_in_the_life_of_a_run(tmp_path: Path) -> None:
    ask = Asked()
    journal = Journal()
    first = journal.keep(frames(0), ask)  # before there is a folder
    assert torch.equal(journal.keep(frames(0), ask), first)
    journal.open(tmp_path)
    journal.keep(frames(1), ask)
    journal.checkpoint()
    journal.close()
    again = opened(tmp_path)
    for seed in (0, 1):
        assert torch.equal(again.keep(frames(seed), ask), Asked()(frames(seed)))
    assert ask.count == 4


def test_what_was_noted_is_answered_again_in_its_order_until_it_ends(tmp_path: Path) -> None:
    ask = Asked()
    journal = opened(tmp_path)
    for seed in (0, 1, 0):
        journal.note(frames(seed), ask)
    assert ask.count == 6  # the third question is asked as any other
    # Killed: nothing is closed.
    again = opened(tmp_path)
    for seed in (0, 1, 0):
        assert torch.equal(again.note(frames(seed), ask), Asked()(frames(seed)))
    assert ask.count == 6
    again.note(frames(2), ask)
    assert ask.count == 8
    third = opened(tmp_path)
    for seed in (0, 1, 0, 2):
        third.note(frames(seed), ask)
    assert ask.count == 8


def test_after_a_checkpoint_nothing_noted_is_left(tmp_path: Path) -> None:
    ask = Asked()
    journal = opened(tmp_path)
    journal.note(frames(0), ask)
    journal.checkpoint()
    journal.note(frames(0), ask)
    assert ask.count == 4


def test_notes_from_before_a_checkpoint_that_a_kill_left_behind_do_no_harm(tmp_path: Path) -> None:
    ask = Asked()
    journal = opened(tmp_path)
    for seed in (0, 1):
        journal.note(frames(seed), ask)
    again = opened(tmp_path)  # killed after the checkpoint was written and before the journal knew
    again.note(frames(2), ask)
    assert ask.count == 6
    third = opened(tmp_path)
    third.note(frames(2), ask)
    third.note(frames(3), ask)
    assert ask.count == 8


def test_pieces_of_an_answer_are_there_until_it_is_whole(tmp_path: Path) -> None:
    def ask(given: Tensor, dies: bool = False) -> Tensor:
        run = current()
        assert run is not None
        answers = []
        for number, frame in enumerate(given):
            piece = bytes([number])
            if (known := run.recall(piece)) is None:
                if dies and number == 1:
                    raise KeyboardInterrupt
                asked.append(piece)
                known = frame.mean().numpy().tobytes()
                run.remember(piece, known)
            answers.append(torch.frombuffer(bytearray(known), dtype=torch.float32))
        return torch.stack(answers)

    for name in ("keep", "note"):
        asked: list[bytes] = []
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            getattr(opened(folder), name)(frames(0), lambda given: ask(given, dies=True))
        assert current() is None
        again = opened(folder)
        found = getattr(again, name)(frames(0), ask)
        assert torch.equal(found, frames(0).flatten(1).mean(dim=1, keepdim=True))
        assert asked == [b"\0", b"\1"]
        again.note(frames(1), ask)  # other frames: what was said of the first ones is forgotten
        assert asked == [b"\0", b"\1"] * 2


def test_two_victims_that_are_asked_the_same_have_their_own_answers(tmp_path: Path) -> None:
    journal = Journal()
    for name, value in (("a", 1.0), ("b", 2.0)):
        journal.keep(frames(0), lambda _, value=value: torch.tensor([value]), name)
    journal.open(tmp_path)
    again = of_run(tmp_path)
    answers = [again.keep(frames(0), Asked(), name) for name in ("a", "b")]
    assert [answer.item() for answer in answers] == [1, 2]
    assert of_run(None).recall(b"") is None
    assert list((tmp_path / "none").glob("*")) == []


def test_other_frames_are_another_question() -> None:
    ask = Asked()
    journal = Journal()
    journal.keep(frames(0), ask)
    journal.keep(frames(0)[:1], ask)
    journal.keep(frames(0).view(1, 2, 3, 4, 4), ask)
    journal.keep(frames(0) + 1e-7, ask)
    assert ask.count == 2 + 1 + 1 + 2


def test_an_answer_that_never_came_is_not_remembered(tmp_path: Path) -> None:
    def fail(_: Tensor) -> Any:
        raise RuntimeError("gone")

    journal = opened(tmp_path)
    for method in (journal.keep, journal.note):
        with pytest.raises(RuntimeError, match="gone"):
            method(frames(0), fail)
    ask = Asked()
    again = opened(tmp_path)
    again.note(frames(0), ask)
    again.keep(frames(0), ask)
    assert ask.count == 4


@pytest.mark.parametrize(
    "answer",
    [
        torch.rand(2, 5),
        torch.arange(3),
        (torch.rand(1, 2), None, (torch.rand(2), torch.rand(2, 2).T)),
    ],
)
def test_answers_survive_to_the_bit(answer: Any) -> None:
    back = unpacked(packed(answer), torch.zeros(1))

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return one.dtype == other.dtype and torch.equal(one, other)
        if one is None:
            return other is None
        return len(one) == len(other) and all(map(same, one, other))

    assert same(answer, back)


def test_another_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(
        InputError, match=r"answers.sqlite: expected a file of answers that can be read and written, got '"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("what", ["the file", "the folder"])
def test_a_journal_that_is_deleted_is_written_again(tmp_path: Path, what: str) -> None:
    ask, folder = Asked(), tmp_path / "run"
    folder.mkdir()
    journal = opened(folder)
    journal.keep(frames(0), ask)
    journal.note(frames(1), ask)
    if what == "the file":
        (folder / "answers.sqlite").unlink()  # which leaves SQLite's files beside it
    else:
        shutil.rmtree(folder)
    journal.note(frames(2), ask)
    # Killed: nothing is closed.
    again = opened(folder)
    assert torch.equal(again.keep(frames(0), ask), Asked()(frames(0)))
    for seed in (1, 2):
        assert torch.equal(again.note(frames(seed), ask), Asked()(frames(seed)))
    assert ask.count == 6


@pytest.mark.parametrize("answer", [None, 7, "text", b"", b"\0" * 8, packed(torch.rand(2))[:-1]])
def test_an_answer_that_is_damaged_is_refused(tmp_path: Path, answer: Any) -> None:
    journal = opened(tmp_path)
    journal.keep(frames(0), Asked())
    journal.note(frames(0), Asked())
    journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "answers.sqlite")) as file, file:
        file.execute("UPDATE recent SET answer = ?", [answer])
        file.execute("UPDATE kept SET answer = ?", [answer])
    again = opened(tmp_path)
    for method in (again.note, again.keep) if answer is not None else (again.note,):
        with pytest.raises(InputError, match=r"answers.sqlite: expected the answers of a run, got"):
            method(frames(0), Asked())


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "answers.sqlite")) as file, file:
        file.execute("CREATE TABLE kept (question BLOB PRIMARY KEY, other BLOB)")
    with pytest.raises(InputError, match="no such column: answer"):
        opened(tmp_path).keep(frames(0), Asked())
