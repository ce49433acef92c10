from __future__ import annotations

import copy
import importlib.util
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchattack.errors import InputError
from patchattack.victims.ptlflow_flow import PtlflowFlow

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ptlflow") is None, reason="needs ptlflow: pip install 'patchattack[ptlflow]'"
)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_the_network_sees_rgb_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    victim: Any = PtlflowFlow("raft_small", weights="random")
    assert capsys.readouterr() == ("", "")
    assert (victim.name, victim.multiple, victim.minimum) == ("ptlflow_raft_small", 8, 128)
    seen: list[Tensor] = []
    victim.network.fnet.register_forward_pre_hook(lambda _, given: seen.extend(given[0]))
    victim.network.iters = 1
    frames = noise(1, 2, 3, 128, 136)
    victim(frames)
    torch.testing.assert_close(torch.stack(seen, dim=1), frames * 2 - 1)  # RAFT was trained on RGB in [-1, 1]


@pytest.mark.parametrize("name", ["rapidflow_it1", "liteflownet"])
def test_any_size_any_batch_and_a_gradient_to_both_frames(name: str) -> None:
    victim = PtlflowFlow(name, weights="random")
    frames = noise(2, 2, 3, 61, 75).requires_grad_()
    flow = victim.train()(frames)
    assert flow.shape == (2, 2, 61, 75)
    flow.square().sum().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert (frames.grad.abs().amax(dim=(2, 3, 4)) > 0).all()
    torch.testing.assert_close(copy.deepcopy(victim)(frames[1:]), flow[1:], rtol=1e-3, atol=1e-3)


def test_local_weights_load_as_ptlflow_saves_them(tmp_path: Path) -> None:
    network = PtlflowFlow("rapidflow_it1", weights="random").network
    state = {key: value + 1 for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"iters": 1}}, tmp_path / "weights.ckpt")
    loaded = PtlflowFlow("rapidflow_it1", tmp_path / "weights.ckpt").network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_wrong_names_and_checkpoints_name_the_choices() -> None:
    with pytest.raises(InputError, match=r"expected a network of ptlflow such as .*raft_small.*, got raft_smal"):
        PtlflowFlow("raft_smal")
    with pytest.raises(InputError, match=r"expected one of raft_small's \(things\), got sintel"):
        PtlflowFlow("raft_small", checkpoint="sintel")


def test_a_hub_out_of_reach_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"raft_small-things.*no route to host.*victim\.weights=PATH"):
        PtlflowFlow("raft_small")
