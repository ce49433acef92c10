from __future__ import annotations

import pickle
import re
import socket
import time
import urllib.error
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from torch import nn

from patchattack.errors import InputError
from patchattack.victims import weights
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.torchvision_flow import Raft
from patchattack.victims.weights import fetch_from_hugging_face, load_hub, load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    other = network()
    return {key: torch.rand_like(v) if v.is_floating_point() else v + 7 for key, v in other.state_dict().items()}


def assert_loaded(loaded: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_load_bare_and_wrapped(
    tmp_path: Path, state: dict[str, torch.Tensor], wrap: str, prefix: str
) -> None:
    saved: dict[str, Any] = {prefix + key: value for key, value in state.items()}
    torch.save(saved if wrap == "bare" else {wrap: saved, "epoch": 3}, tmp_path / "weights.pt")
    loaded = network()
    load_weights(loaded, tmp_path / "weights.pt")
    assert_loaded(loaded, state)


def test_safetensors_load(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    loaded = network()
    load_weights(loaded, str(tmp_path / "weights.safetensors"))
    assert_loaded(loaded, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_cast_to_the_networks(tmp_path: Path, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    safetensors.torch.save_file(cast, tmp_path / "weights.safetensors")
    loaded = network()
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert_loaded(loaded, {key: value.to(state[key].dtype) for key, value in cast.items()})


def test_integers_are_no_weights(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state["0.weight"] = state["0.weight"].to(torch.int8)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(
        InputError, match=r"of another kind of number: 1 \(0.weight torch.int8 instead of torch.float32\)"
    ):
        load_weights(network(), tmp_path / "weights.pt")


def test_weights_of_another_network_name_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(CompactFlow("matching", weights="random").network.state_dict(), path)
    with pytest.raises(InputError) as caught:
        CompactFlow("encoder_decoder", weights=path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected the weights of EncoderDecoder with " in message
    assert re.search(r"got keys missing: \d+ \(\S+, \S+, \S+, \.\.\.\); unexpected: \d+ \(quarter\.0\.\w+, ", message)


def test_weights_of_another_shape_name_both(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state["0.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"of another shape: 1 \(0.bias \[5\] instead of \[4\]\); name a file"):
        load_weights(network(), tmp_path / "weights.pt")


def test_a_network_is_whole_or_untouched(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    del state["1.bias"]
    torch.save(state, tmp_path / "weights.pt")
    loaded = network()
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    with pytest.raises(InputError, match=r"missing: 1 \(1.bias\); name"):
        load_weights(loaded, tmp_path / "weights.pt")
    assert_loaded(loaded, before)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights"])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, name: str, zipped: bool) -> None:
    path, exploded = tmp_path / name, tmp_path / "exploded"
    torch.save({"state_dict": {"a": Bomb(exploded)}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"runs code .* refused; .* convert its weights to safetensors"):
        load_weights(network(), path)
    path.write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(InputError, match="refused"):
        load_weights(network(), path)
    assert not exploded.exists()


def test_a_whole_network_in_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "network.pt")
    with pytest.raises(InputError, match=r"give victim\.trust_checkpoint=true, or convert its weights to safetensors"):
        load_weights(network(), tmp_path / "network.pt", trust=False)
    with pytest.raises(InputError, match=r"refused; where you trust its author, convert its weights to safetensors"):
        load_weights(network(), tmp_path / "network.pt")  # of a victim without the option


def holding(state: dict[str, torch.Tensor]) -> nn.Module:
    whole = network()
    whole.load_state_dict(state)
    return whole


@pytest.mark.parametrize("wrap", ["bare", "parallel", "model", "state_dict", "ema"])
def test_a_whole_network_loads_where_its_author_is_trusted(
    tmp_path: Path, state: dict[str, torch.Tensor], wrap: str
) -> None:
    whole = holding(state)
    saved = {
        "bare": whole,
        "parallel": {"model": nn.DataParallel(whole)},
        "model": {"ema": None, "model": whole, "epoch": 3},
        "state_dict": {"state_dict": whole},
        "ema": {"model": network(), "ema": whole},
    }
    torch.save(saved[wrap], tmp_path / "network.pt")
    loaded = network()
    load_weights(loaded, tmp_path / "network.pt", trust=True)
    assert_loaded(loaded, state)


def test_trust_changes_nothing_for_a_state_dict(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"ema": {"decay": 0.9}, "model": state}, tmp_path / "weights.pt")
    loaded = network()
    load_weights(loaded, tmp_path / "weights.pt", trust=True)
    assert_loaded(loaded, state)


def test_a_trusted_file_that_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "network.pt").write_bytes(b"cno_such_module\nNetwork\n.")
    with pytest.raises(
        InputError, match=r"expected a checkpoint, got .*; where a module is missing, install it"
    ) as caught:
        load_weights(network(), tmp_path / "network.pt", trust=True)
    assert "\n" not in str(caught.value)


def test_keys_are_renamed_before_they_have_to_fit(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({f"old.{key}": value for key, value in state.items()}, tmp_path / "weights.pt")
    loaded = network()
    load_weights(loaded, tmp_path / "weights.pt", rename=lambda key: key.removeprefix("old."))
    assert_loaded(loaded, state)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not weights at all\n", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_weights(network(), tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}, torch.zeros(3)], ids=["list", "numbers", "tensor"])
def test_tensors_that_are_no_state_dict_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="expected a dict of tensors by name"):
        load_weights(network(), tmp_path / "weights.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pt", tmp_path):
        with pytest.raises(InputError, match="expected a file of weights") as caught:
            load_weights(network(), path)
        assert str(path) in str(caught.value)


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_hub_takes_what_is_in_the_cache(hub: Path, state: dict[str, torch.Tensor]) -> None:
    hub.mkdir(parents=True)
    torch.save(state, hub / "net-0123abcd.pth")
    loaded = network()
    load_hub(loaded, "https://example.invalid/net-0123abcd.pth")
    assert_loaded(loaded, state)


@pytest.mark.usefixtures("hub")
def test_hub_out_of_reach_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    with pytest.raises(InputError, match=r"raft_small.*no route to host.*victim\.weights=PATH"):
        Raft("small", weights="hub")


@pytest.mark.usefixtures("hub")
def test_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "HUB_TIMEOUT", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        with pytest.raises(InputError, match=r"timed out.*victim\.weights=PATH"):
            load_hub(network(), f"http://127.0.0.1:{server.getsockname()[1]}/net-0123abcd.pth")
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


def test_hub_keeps_no_file_of_another_hash(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "net-0123abcd.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"invalid hash value.*victim\.weights=PATH"):
        load_hub(network(), (tmp_path / "net-0123abcd.pth").as_uri())
    assert not list(hub.iterdir())


def test_hub_never_unpickles(hub: Path, tmp_path: Path) -> None:
    hub.mkdir(parents=True)
    torch.save({"a": Bomb(tmp_path / "exploded")}, hub / "net-0123abcd.pth")
    with pytest.raises(InputError, match="refused"):
        load_hub(network(), "https://example.invalid/net-0123abcd.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path / "models--someone--net"


def test_hugging_face_takes_what_is_in_the_cache(hugging_face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)  # nobody asks
    (hugging_face / "refs").mkdir(parents=True)
    (hugging_face / "refs" / "main").write_text("0123")
    path = hugging_face / "snapshots" / "0123" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert fetch_from_hugging_face("someone/net", "model.safetensors") == path


@pytest.mark.usefixtures("hugging_face")
def test_hugging_face_that_never_answers_is_given_up_without_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "HUB_TIMEOUT", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/net"
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_: address)
        start = time.monotonic()
        with pytest.raises(InputError, match=r"someone/net/model\.safetensors.*victim\.weights=PATH") as caught:
            fetch_from_hugging_face("someone/net", "model.safetensors")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
