"""Weights from files and from hubs, read as data: nothing is unpickled into code unless the user trusts its author."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from patchattack.errors import InputError, one_line

HUB_TIMEOUT = 10.0  # seconds without an answer
PROBE = 997  # classes of a network that is built to see where its classes are: no layer inside is as wide
WRAPPERS = ("state_dict", "model")  # keys under which training scripts like to put the weights

Network = TypeVar("Network", bound=nn.Module)


def initialise(build: Callable[[], Network]) -> Network:
    """The network that ``build`` makes, with the same random weights at every call.

    The global generator of random numbers is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build()


def load_weights(
    network: nn.Module, path: str | Path, trust: bool | None = None, rename: Callable[[str], str] | None = None
) -> None:
    """Load a local file of weights into ``network``, cast to the network's precision.

    Args:
        network: what the weights belong to; every key and every shape has to fit.
        path: ``.safetensors``, or a state dict saved by ``torch.save``, bare or under "state_dict" or "model", its
            keys with or without ``module.`` in front.
        trust: also read what runs code when it is read: a whole network, or a dict with one under "ema" (which goes
            first: the averaged weights are those that its trainer deploys), "state_dict" or "model". None is no, of a
            victim that has no such option.
        rename: from a key of the file to the network's.

    Raises:
        InputError: the file is missing, needs code to be read, holds something else, or fits another network.
    """
    path = _check(path)
    _fit(network, _state(path, trust), str(path), rename)


def _check(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"{path}: expected a file of weights (safetensors or a state dict), found none; check the path"
        )
    return path


def load_fitting(
    build: Callable[[int], Network],
    count: int,
    path: str | Path,
    trust: bool | None = None,
    rename: Callable[[str], str] | None = None,
) -> tuple[Network, int]:
    """The network with as many classes as a local file of weights tells apart, with these weights, and their number.

    Args:
        build: makes the network for a number of classes.
        count: of classes that the file has if nothing in it says otherwise.
        path, trust, rename: as of :func:`load_weights`.

    Raises:
        InputError: as of :func:`load_weights`.
    """
    state = _state(_check(path), trust)
    network = initialise(lambda: build(count))
    found = _rename(network, state, rename)
    if any(key in found and found[key].shape != value.shape for key, value in network.state_dict().items()):
        heads = [
            key for key, value in initialise(lambda: build(PROBE)).state_dict().items() if PROBE in value.shape[:1]
        ]
        counts = {len(found[key]) for key in heads if key in found and found[key].ndim}
        if len(counts) == 1 and counts != {count}:
            (count,) = counts
            network = initialise(lambda: build(count))
    _fit(network, state, str(path), rename)
    return network, count


def load_hub(network: nn.Module, url: str, rename: Callable[[str], str] | None = None) -> None:
    """Load the weights at ``url`` into ``network``, from torch.hub's cache where it has them.

    Raises:
        InputError: the weights are not in the cache and cannot be fetched, or fit another network.
    """
    load_weights(network, fetch(url), rename=rename)


def fetch(url: str) -> Path:
    """The local copy of the file at ``url``, in torch.hub's cache.

    Raises:
        InputError: it is not there and cannot be fetched.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        _download(url, path)
    return path


def fetch_from_hugging_face(repository: str, file: str) -> Path:
    """The local copy of a repository's ``file``, in the Hugging Face hub's cache.

    Raises:
        InputError: it is not there and cannot be fetched.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # Asked once: where there is no connection, the download itself would try again and again for minutes.
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file), timeout=HUB_TIMEOUT)
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # of a library for HTTP that is another one in every few versions
        raise _unreachable(f"huggingface.co/{repository}/{file}", error) from error


def _download(url: str, path: Path) -> None:
    digest = torch.hub.HASH_REGEX.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with short_timeout():
            torch.hub.download_url_to_file(url, str(path), digest and digest[1])
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # RuntimeError: another hash than the name's
        raise _unreachable(url, error) from error


@contextmanager
def short_timeout() -> Iterator[None]:
    """Connections give up after :data:`HUB_TIMEOUT`: torch.hub waits for minutes where packets are dropped."""
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HUB_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(default)


def _unreachable(source: str, error: Exception) -> InputError:
    return InputError(
        f"{source}: expected to download weights, got '{one_line(error)}'; fetch the file elsewhere and name it with "
        "victim.weights=PATH"
    )


def _read(path: Path, trust: bool | None) -> Any:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(
                f"{path}: expected a safetensors file, got '{error}'; fetch or convert it again"
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # arbitrary bytes end in arbitrary errors
        if trust:
            raise InputError(
                f"{path}: expected a checkpoint, got '{one_line(error)}'; where a module is missing, install it"
            ) from error
        remedy = "" if trust is None else "give victim.trust_checkpoint=true, or "
        raise InputError(
            f"{path}: expected a state dict of plain tensors, got a damaged file or one that runs code when it is "
            f"read, which is refused; where you trust its author, {remedy}convert its weights to safetensors"
        ) from error


def _state(path: Path, trust: bool | None) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    state = _read(path, trust)
    if isinstance(state, dict) and isinstance(state.get("ema"), nn.Module):
        state = state["ema"]
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict | nn.Module):
            state = state[wrapper]
    if isinstance(state, nn.Module):
        state = state.state_dict()
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a dict of tensors by name, got something else; save the state dict alone")
    return state


def _rename(network: nn.Module, state: dict[str, Tensor], rename: Callable[[str], str] | None) -> dict[str, Tensor]:
    """The tensors by the names that the network has for them."""
    expected = network.state_dict()
    if all(key.startswith("module.") and key not in expected for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state if rename is None else {rename(key): value for key, value in state.items()}


def _fit(network: nn.Module, state: dict[str, Tensor], source: str, rename: Callable[[str], str] | None) -> None:
    expected, state = network.state_dict(), _rename(network, state, rename)
    both = [key for key in expected if key in state]
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
            for key in both
            if state[key].shape != expected[key].shape
        ],
        "of another kind of number": [
            f"{key} {state[key].dtype} instead of {expected[key].dtype}"
            for key in both
            if state[key].is_floating_point() != expected[key].is_floating_point()
        ],
    }
    if any(problems.values()):
        count = sum(p.numel() for p in network.parameters())
        found = "; ".join(f"{what}: {len(keys)} ({_few(keys)})" for what, keys in problems.items() if keys)
        raise InputError(
            f"{source}: expected the weights of {type(network).__name__} with {count:,} parameters, "
            f"got keys {found}; name a file of this network or choose the victim that it belongs to"
        )
    expected.update(state)  # which knows the versions of the network's modules: MNASNet asks for its own
    network.load_state_dict(expected)


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
