from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from patchattack.errors import InputError
from patchattack.optimizers.sign import SignMomentum


def parameter(*values: float, gradient: tuple[float, ...] | None = None) -> nn.Parameter:
    made = nn.Parameter(torch.tensor(values))
    made.grad = None if gradient is None else torch.tensor(gradient)
    return made


def test_steps_by_hand() -> None:
    p = parameter(0.5, 0.5, 0.5, gradient=(3.0, -1.0, 0.0))
    optimizer = SignMomentum([p], lr=0.25, momentum=0.5)
    optimizer.step()
    assert p.tolist() == [0.25, 0.75, 0.5]
    torch.testing.assert_close(optimizer.state[p]["direction"], torch.tensor([0.75, -0.25, 0.0]))
    p.grad = torch.tensor([-3.0, -4.0, 1.0])  # divided by 8: (-0.375, -0.5, 0.125); 0.375 of the past cancels the first
    optimizer.step()
    assert p.tolist() == [0.25, 1.0, 0.25]


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    one, other = parameter(0.0, 0.0), parameter(0.0, 0.0)
    optimizers = [SignMomentum([p], lr=0.1) for p in (one, other)]
    for step in range(10):
        gradient = torch.randn(2, generator=torch.Generator().manual_seed(step))
        for p, optimizer, scale in zip((one, other), optimizers, (1.0, 1e-6), strict=True):
            p.grad = gradient * scale
            optimizer.step()
    assert torch.equal(one, other)


def test_a_zero_gradient_moves_nothing_at_first_and_is_no_nan() -> None:
    p = parameter(0.5, gradient=(0.0,))
    optimizer = SignMomentum([p], lr=0.1)
    optimizer.step()
    assert p.tolist() == [0.5]
    p.grad = torch.tensor([2.0])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.4]))


def test_a_parameter_without_gradient_stays() -> None:
    still, moving = parameter(1.0), parameter(1.0, gradient=(1.0,))
    optimizer = SignMomentum([still, moving], lr=0.5)
    optimizer.step()
    assert (still.item(), moving.item()) == (1.0, 0.5)
    assert still not in optimizer.state


def test_a_resumed_run_goes_on_exactly() -> None:
    def run(p: nn.Parameter, optimizer: SignMomentum, steps: range) -> None:
        for step in steps:
            p.grad = torch.randn(8, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    whole = nn.Parameter(torch.zeros(8))
    optimizer = SignMomentum([whole], lr=0.1)
    run(whole, optimizer, range(5))
    state, half = copy.deepcopy(optimizer.state_dict()), nn.Parameter(whole.detach().clone())
    run(whole, optimizer, range(5, 10))
    resumed = SignMomentum([half], lr=9.0, momentum=0.0)
    resumed.load_state_dict(state)
    run(half, resumed, range(5, 10))
    assert torch.equal(whole, half)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=8),
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8, cycle_momentum=False),
    ],
    ids=["constant", "cosine", "step", "onecycle"],
)
def test_a_schedule_sets_the_length_of_a_step(schedule: object) -> None:
    p = parameter(0.0)
    optimizer = SignMomentum([p], lr=0.1)
    scheduler = schedule(optimizer)  # type: ignore[operator]
    for _ in range(7):
        lr, before = optimizer.param_groups[0]["lr"], p.item()
        p.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        assert before - p.item() == pytest.approx(lr, rel=1e-5)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_closure_and_descent() -> None:
    p = parameter(0.93, -0.71)
    optimizer = SignMomentum([p], lr=0.01, momentum=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(100)]
    assert losses[0] == pytest.approx(0.93**2 + 0.71**2)
    assert losses[-1] < 3e-4


@pytest.mark.parametrize("values", [{"lr": -0.1}, {"lr": 0.1, "momentum": -0.5}])
def test_negative_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="optimizer sign: expected lr >= 0 and momentum >= 0"):
        SignMomentum([parameter(0.0)], **values)
