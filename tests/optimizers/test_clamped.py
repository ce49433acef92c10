from __future__ import annotations

import pytest
import torch

from patchattack.errors import InputError
from patchattack.optimizers.clamped import ClampedGradient


def test_steps_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.tensor([0.5, 0.5, 0.5]))
    optimizer = ClampedGradient([parameter], lr=10.0, most=0.25)
    parameter.grad = torch.tensor([0.01, -1.0, 0.0])
    optimizer.step()
    assert torch.allclose(parameter, torch.tensor([0.4, 0.75, 0.5]))


def test_closure_and_missing_gradients() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = ClampedGradient(parameters, lr=0.1)

    def closure() -> float:
        assert torch.is_grad_enabled()
        loss = parameters[0].square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 1.0
    assert [parameter.item() for parameter in parameters] == pytest.approx([0.8, 1.0])


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": 1.0, "most": 0.0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="optimizer clamped: expected"):
        ClampedGradient([torch.nn.Parameter(torch.ones(1))], **options)
