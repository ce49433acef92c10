from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack import seeding
from patchattack.seeding import GAMMA, Numbers, mix_


def rows(count: int, *key: int) -> Numbers:
    return seeding.numbers([(*key, row) for row in range(count)])


def unsigned(values: Tensor) -> list[int]:
    return [value % 2**64 for value in values.tolist()]


@pytest.mark.parametrize(
    ("seed", "expected"),
    [  # of the authors' Java and of Vigna's C, as in the test suites of NumPy's and Rust's implementations
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]),
        (
            1234567,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423,
                4593380528125082431,
                16408922859458223821,
            ],
        ),
    ],
)
def test_the_mix_is_splitmix64(seed: int, expected: list[int]) -> None:
    assert unsigned(mix_(seed + torch.arange(1, len(expected) + 1) * GAMMA)) == expected


def test_the_numbers_of_a_key_never_change() -> None:
    """A run that is resumed with another version of the project goes on alike."""
    numbers = seeding.numbers([(0, 1, 2), (2**64 - 1, 1, 2)])
    unit = numbers.streams({"camera/gamma": 1})[0].unit(3)
    assert (unit * 2**24).tolist() == [[6022690, 4914854, 12986501], [3060894, 9104506, 11988035]]
    normal = torch.tensor([[0.2111517, -1.4843061], [-2.4563270, -0.8896521]])
    torch.testing.assert_close(numbers.streams({"noise": 1})[0].normal(2), normal)


def drawn(numbers: Numbers) -> list[Tensor]:
    """In turn, beyond what is prepared."""
    return [numbers.uniform((2, 5), (-1, 0)), numbers.normal(3, 5), numbers.unit(40), numbers.normal(1)]


def test_a_row_depends_on_its_key_alone() -> None:
    together = drawn(rows(5, 3))
    for row in (0, 4):
        alone = drawn(seeding.numbers([(3, row)]))
        assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, together, strict=True))
    other = drawn(rows(5, 4))
    assert not any(torch.equal(one, another) for one, another in zip(together, other, strict=True))


def test_every_place_of_a_key_counts() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (2**63, 0), (0, 2**64 - 1)]
    assert len(seeding.numbers(keys).unit(1).unique()) == len(keys)
    lengths = [seeding.numbers([[0] * count]).unit(1).item() for count in range(1, 5)]
    assert len(set(lengths)) == 4
    with pytest.raises(OverflowError):
        seeding.numbers([(-1,)])


def test_a_stream_depends_on_its_name_alone() -> None:
    numbers = rows(4, 0)
    many = dict(zip("abc", numbers.streams({"a": 1, "b": 3, "c": 1}), strict=True))
    (alone,) = numbers.streams({"c": 1})
    for one, other in zip(drawn(alone), drawn(many["c"]), strict=True):
        assert torch.equal(one, other)
    first, frames = (numbers.streams({"b": count})[0].unit(2) for count in (1, 3))
    assert torch.equal(frames[::3], first)
    assert torch.equal(many["b"].unit(2), frames)
    assert (
        len(torch.cat([frames.flatten(), *(numbers.streams({x: 1})[0].unit(2).flatten() for x in "acd")]).unique())
        == 48
    )
    assert numbers.streams({}) == []


def test_what_is_prepared_is_what_would_be_made() -> None:
    (stream,) = rows(3, 0).streams({"a": 1})
    apart = Numbers(stream._states)
    for count in (1, 7, 8, 1, 30):
        assert torch.equal(stream.unit(count), apart.unit(count))


def test_uniform_numbers_are_uniform_and_independent() -> None:
    """Over rows, numbers, steps and streams: χ² of 64 cells, and of pairs of neighbours in 16 × 16 (four σ)."""
    block = torch.stack(
        [rows(128, 0, step).streams({"a": 1, "b": 1})[place].unit(16) for step in range(16) for place in (0, 1)]
    )
    block = block.unflatten(0, (16, 2))  # [step, stream, row, number]
    assert block.min() >= 0
    assert block.max() < 1
    assert chi_square((block * 64).long().flatten(), 64) < 4
    for dim in range(4):
        one, other = block.narrow(dim, 0, block.shape[dim] - 1), block.narrow(dim, 1, block.shape[dim] - 1)
        pairs = (one * 16).long() * 16 + (other * 16).long()
        assert chi_square(pairs.flatten(), 256) < 4
    for bit in range(24):
        share = ((block * 2**24).long() >> bit & 1).double().mean().item()
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(block.numel())


def chi_square(cells: Tensor, count: int) -> float:
    """How many standard deviations χ² lies from its mean under uniform cells."""
    expected = len(cells) / count
    statistic = ((cells.bincount(minlength=count) - expected) ** 2 / expected).sum().item()
    return abs(statistic - (count - 1)) / math.sqrt(2 * (count - 1))


def test_normal_numbers_are_normal_and_independent() -> None:
    values = rows(64, 1).normal(3, 33, 33).double()
    assert values.isfinite().all()
    total = values.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean().item() - expected) < 4 * math.sqrt(variance / total)
    flat = values.flatten(1)
    cells = (torch.special.ndtr(flat) * 64).long()
    assert chi_square(cells.flatten(), 64) < 4
    for one, other in ((flat[1:], flat[:-1]), (flat[:, 1:], flat[:, :-1]), (flat[:, :1634], flat[:, 1633:])):
        assert abs((one * other).mean().item()) < 4 / math.sqrt(one.numel())


def test_a_range_is_met() -> None:
    values = rows(2000, 5).uniform((2, 5), (-1, -1))
    assert values.shape == (2000, 2)
    assert values[:, 0].min() >= 2
    assert values[:, 0].max() <= 5
    assert values[:, 0].mean().item() == pytest.approx(3.5, abs=0.1)
    assert (values[:, 1] == -1).all()


def test_a_generator_depends_on_its_key_alone() -> None:
    first = torch.rand(3, generator=seeding.generator(1, 2))
    torch.rand(100)
    assert torch.equal(torch.rand(3, generator=seeding.generator(1, 2)), first)
    assert not torch.equal(torch.rand(3, generator=seeding.generator(2, 1)), first)
    seed = int(np.random.SeedSequence((1, 2)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(seed)), first)
